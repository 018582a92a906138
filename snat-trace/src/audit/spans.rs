//! Sets of addresses, by which it is known what a rule's destination match takes in and what it leaves out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The ranges that sites use within themselves (RFC 1918, RFC 4193).
pub(super) const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// Addresses from one to another, both included, as numbers; those of IPv4 as IPv6 has them (`::ffff:0:0/96`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Span {
    first: u128,
    last: u128,
}

impl Span {
    /// Every address there is.
    pub(super) const ALL: Self = Self { first: 0, last: u128::MAX };

    /// From one address to another.
    pub(super) fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let (first, last) = (bits(first), bits(last));
        (first <= last).then_some(Self { first, last })
    }

    /// The addresses that begin as `address` does, by this many bits.
    pub(super) fn prefix(address: IpAddr, length: u32) -> Option<Self> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let free = longest - Some(length).filter(|&length| length <= longest)?;
        let rest = 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        let first = bits(address) & !rest;
        Some(Self { first, last: first | rest })
    }

    /// From `ADDRESS`, `ADDRESS/BITS` or `ADDRESS-ADDRESS`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some((address, length)) = text.split_once('/') {
            return Self::prefix(address.parse().ok()?, length.parse().ok()?);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::between(first.parse().ok()?, last.parse().ok()?)
    }

    /// Every address of IPv4.
    pub(super) fn four() -> Self {
        let [first, last] = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST].map(|address| bits(address.into()));
        Self { first, last }
    }

    /// Whether an address is one of these.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        (self.first..=self.last).contains(&bits(address))
    }
}

/// As [`Span::parse`] reads it: an address, or the first and the last.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = *self;
        let four = Self::four();
        let is_four = (four.first..=four.last).contains(&first) && last <= four.last;
        let address = |bits| {
            let address = IpAddr::V6(Ipv6Addr::from_bits(bits));
            if is_four { address.to_canonical() } else { address }
        };
        write!(f, "{}", address(first))?;
        if last > first { write!(f, "-{}", address(last)) } else { Ok(()) }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// What is in `spans` and not in `holes`.
pub(super) fn without(spans: &[Span], holes: &[Span]) -> Vec<Span> {
    let mut left = spans.to_vec();
    for hole in holes {
        left = left
            .into_iter()
            .flat_map(|span| {
                let before = hole.first.checked_sub(1).map(|last| Span { last: last.min(span.last), ..span });
                let after = hole.last.checked_add(1).map(|first| Span { first: first.max(span.first), ..span });
                [before, after].into_iter().flatten().filter(|part| part.first <= part.last)
            })
            .collect();
    }
    left
}

/// What is in both.
pub(super) fn common(spans: &[Span], others: &[Span]) -> Vec<Span> {
    without(spans, &without(spans, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        Span::parse(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(span("10.0.0.0/8"), span("10.0.0.0-10.255.255.255"));
        assert_eq!(span("10.1.2.3/8"), span("10.0.0.0/8"));
        assert_eq!(span("0.0.0.0/0"), span("0.0.0.0-255.255.255.255"));
        assert_eq!(span("::/0"), Span::ALL);
        assert!(span("fd00::/8").contains("fd12::1".parse().unwrap()));
        assert!(!span("0.0.0.0/0").contains("fd12::1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/255.0.255.0", "10.0.0.9-10.0.0.1", "eth0", "@set", "/8", "::/129"] {
            assert_eq!(Span::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_told_is_read_again() {
        for (text, told) in [
            ("10.0.0.0/8", "10.0.0.0-10.255.255.255"),
            ("192.0.2.7", "192.0.2.7"),
            ("fd00::/64", "fd00::-fd00::ffff:ffff:ffff:ffff"),
            ("0.0.0.0/0", "0.0.0.0-255.255.255.255"),
        ] {
            assert_eq!(span(text).to_string(), told);
        }
        let around = without(&[Span::ALL], &[Span::four()]);
        for one in around.iter().chain(&[Span::ALL, span("10.1.2.3/30"), span("::1")]) {
            assert_eq!(Span::parse(&one.to_string()), Some(*one), "{one}");
        }
    }

    #[test]
    fn holes_are_cut_out() {
        let ten = [span("10.0.0.0/8")];
        assert_eq!(without(&ten, &[span("10.0.0.0/9")]), [span("10.128.0.0/9")]);
        assert_eq!(without(&ten, &[span("10.64.0.0/10")]), [span("10.0.0.0/10"), span("10.128.0.0/9")]);
        assert_eq!(without(&ten, &[span("0.0.0.0/0")]), []);
        assert_eq!(without(&ten, &[span("192.168.0.0/16"), span("fd00::/8")]), ten);
        assert_eq!(without(&ten, &[span("10.0.0.0/9"), span("10.128.0.0/9")]), []);
        assert_eq!(without(&[Span::ALL], &[Span::ALL]), []);
        assert_eq!(common(&ten, &[span("10.1.0.0/16"), span("11.0.0.0/8")]), [span("10.1.0.0/16")]);
    }
}
