//! Addresses for addresses of their kind, and no two for one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Redactor;

/// Rounds of the permutation of addresses: four make it as good as its round function (Luby and Rackoff), more do for domains
/// as small as 16 bits.
const ROUNDS: u8 = 10;

impl Redactor {
    pub(super) fn address(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => self.v4(address).into(),
            IpAddr::V6(address) => self.v6(address).into(),
        }
    }

    pub(super) fn v4(&self, address: Ipv4Addr) -> Ipv4Addr {
        let kind = kind_v4(address);
        let Some(free) = kind else { return address };
        let mut bits = address.to_bits();
        loop {
            let fixed = if free == 32 { 0 } else { bits >> free << free };
            let low = self.permuted(4, free, u128::from(bits ^ fixed));
            bits = fixed | u32::try_from(low).unwrap_or(0);
            // Out of the kind, which only happens to public ones, it is exchanged again: that keeps any two apart.
            if kind_v4(bits.into()) == kind {
                return bits.into();
            }
        }
    }

    pub(super) fn v6(&self, address: Ipv6Addr) -> Ipv6Addr {
        if let Some(inner) = address.to_ipv4_mapped() {
            return self.v4(inner).to_ipv6_mapped();
        }
        let free = match address.segments()[0] {
            // Loopback and what is not specified, and multicast, whose groups are known.
            _ if address.is_loopback() || address.is_unspecified() || address.is_multicast() => return address,
            // Link-local, by its interface.
            0xfe80..=0xfebf => 64,
            // Unique local: the first byte tells.
            0xfc00..=0xfdff => 120,
            _ => 124,
        };
        let bits = address.to_bits();
        let fixed = bits >> free << free;
        (fixed | self.permuted(6, free, bits ^ fixed)).into()
    }

    /// A number of so many bits, an even number of them, for another: a Feistel network, so that no two become one.
    fn permuted(&self, domain: u8, bits: u32, number: u128) -> u128 {
        let half = bits / 2;
        let mask = (1_u128 << half) - 1;
        let (mut left, mut right) = (number >> half, number & mask);
        for round in 0..ROUNDS {
            let mixed = u128::from(self.hash(&(domain, bits, round, right))) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << half | right
    }
}

/// How many of an address's low bits may change without it becoming one of another kind; `None` where all of it is known.
fn kind_v4(address: Ipv4Addr) -> Option<u32> {
    match address.octets() {
        [0 | 127 | 224.., ..] => None,
        [10, ..] => Some(24),
        [172, 16..=31, ..] => Some(20),
        [192, 168, ..] | [169, 254, ..] => Some(16),
        // Carriers' own (RFC 6598).
        [100, 64..=127, ..] => Some(22),
        _ => Some(32),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::tests::with_key;
    use super::*;

    #[test]
    fn no_two_addresses_of_a_range_become_one() {
        let redactor = with_key(1);
        let all: HashSet<Ipv4Addr> = (0..=u16::MAX)
            .map(|low| redactor.v4(Ipv4Addr::from_bits(u32::from_be_bytes([192, 168, 0, 0]) | u32::from(low))))
            .collect();
        assert_eq!(all.len(), 1 << 16);
        assert!(all.iter().all(|address| address.octets()[..2] == [192, 168]));
        let public: HashSet<_> = (0..1 << 16).map(|low| redactor.v4(Ipv4Addr::from_bits(0x0808_0000 | low))).collect();
        assert_eq!(public.len(), 1 << 16);
    }

    #[test]
    fn what_is_known_anyway_stays() {
        let redactor = with_key(1);
        for address in ["127.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "::1", "::", "ff02::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(redactor.address(address), address);
        }
    }

    proptest! {
        #[test]
        fn an_address_stays_of_its_kind(bits: u32, key: u8) {
            let address = Ipv4Addr::from_bits(bits);
            let exchanged = with_key(key).v4(address);
            prop_assert_eq!(kind_v4(address), kind_v4(exchanged));
            prop_assert_eq!(address.is_private(), exchanged.is_private());
            prop_assert_eq!(exchanged, with_key(key).v4(address));
        }

        #[test]
        fn an_ipv6_address_stays_of_its_kind(bits: u128, range in prop::sample::select(vec![0xfd00_u16, 0xfe80, 0x2001, 0x64]), key: u8) {
            let address = Ipv6Addr::from_bits(bits >> 16 | u128::from(range) << 112);
            let exchanged = with_key(key).v6(address);
            prop_assert_eq!(address.is_unique_local(), exchanged.is_unique_local());
            prop_assert_eq!(address.is_unicast_link_local(), exchanged.is_unicast_link_local());
            prop_assert_ne!(address, exchanged);
        }

        #[test]
        fn different_ipv6_addresses_stay_different(one: u128, other: u128) {
            let redactor = with_key(3);
            prop_assert_eq!(one == other, redactor.v6(one.into()) == redactor.v6(other.into()));
        }
    }
}
