//! Who has which address in a lab, and by what its packets are told apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::setup::MAX_PODS;
use super::wiring::NODE_OUTSIDE;

/// The IP version of everything in a lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// A host of one of the lab's networks: `10.99.NETWORK.HOST`, or `fd99::NETWORK:HOST`.
    pub(super) fn address(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 99, network, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd99, 0, 0, u16::from(network), 0, 0, 0, u16::from(host)).into(),
        }
    }

    /// The node's address towards the pods.
    pub(super) fn bridge(self) -> IpAddr {
        self.address(0, 1)
    }

    /// The address a pod has on the node's bridge, or its gateway.
    pub(super) fn pod(self, pod: usize) -> IpAddr {
        self.address(0, 10 + low_byte(pod))
    }

    /// The node's address outwards: the source of every packet it translates.
    pub(super) fn node(self) -> IpAddr {
        self.address(NODE_OUTSIDE, 1)
    }

    /// Another address of the external host, by the lab's process id: what tells the flows of two labs apart where
    /// packets have no destination port.
    pub(super) fn portless(self, lab: u32) -> IpAddr {
        let [_, _, high, low] = lab.to_be_bytes();
        match self {
            Self::V4 => Ipv4Addr::new(10, 100, high, low).into(),
            Self::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0x100, 0, 0, 0, u16::from_be_bytes([high, low])).into(),
        }
    }

    /// An address that no host has.
    pub(super) fn nobody(self) -> IpAddr {
        self.address(2, 2)
    }

    /// Bits of an address.
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Bits of a network's prefix.
    pub(super) fn prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// Everywhere.
    pub(super) fn default_route(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

/// The address that packets from outside have, which come in by the link of the pod that has this one.
pub(super) fn stranger(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(own) => {
            let [a, b, _, host] = own.octets();
            Ipv4Addr::new(a, b, 4, host).into()
        }
        // No packets come from outside over IPv6.
        IpAddr::V6(own) => own.into(),
    }
}

/// The network a pod is alone in with its gateway.
pub(super) fn pod_network(pod: usize) -> u8 {
    100 + low_byte(pod)
}

/// A link-layer address of a host, locally administered.
pub(super) fn mac(network: u8, host: u8) -> String {
    format!("02:00:0a:63:{network:02x}:{host:02x}")
}

/// The link-layer address of a pod on the node's bridge, or of its gateway.
pub(super) fn pod_mac(pod: usize) -> String {
    mac(0, 10 + low_byte(pod))
}

/// Time to live, or hop limit, of a first packet of pod 0 where it is held; pod N has N more. Whatever else is sent has
/// [`PLAIN_TTL`], so a retransmitted SYN is told from the first without a clock.
pub(super) const MARK: u8 = 200;
/// Linux's own default.
pub(super) const PLAIN_TTL: u8 = 64;

/// The time to live a pod's first packets have in the hold chain.
pub(super) fn mark(pod: usize) -> u8 {
    MARK + low_byte(pod)
}

/// The time to live a pod gives its first packets, of which each of `hops` takes one on the way to the hold chain.
pub(super) fn first_ttl(pod: usize, hops: u8) -> u8 {
    mark(pod) + hops
}

/// The pod whose first packet has this time to live in the hold chain.
pub(super) fn marked_pod(ttl: u8) -> Option<usize> {
    let pod = usize::from(ttl.checked_sub(MARK)?);
    (pod < MAX_PODS).then_some(pod)
}

fn low_byte(pod: usize) -> u8 {
    // `Setup` admits MAX_PODS at most.
    u8::try_from(pod % MAX_PODS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_pods_and_are_no_plain_packets() {
        for pod in 0..MAX_PODS {
            assert_eq!(marked_pod(first_ttl(pod, 1) - 1), Some(pod));
        }
        assert_eq!(marked_pod(PLAIN_TTL - 1), None);
        assert_eq!(marked_pod(mark(MAX_PODS - 1) + 1), None);
    }

    #[test]
    fn every_host_has_an_address_of_its_own() {
        for family in [Family::V4, Family::V6] {
            let mut addresses = vec![family.bridge(), family.node(), family.portless(7), family.nobody()];
            addresses.extend((0..MAX_PODS).map(|pod| family.pod(pod)));
            addresses.extend((0..MAX_PODS).map(|pod| family.address(pod_network(pod), 2)));
            let all = addresses.len();
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), all);
            assert!(addresses.iter().all(|address| address.is_ipv6() == (family == Family::V6)));
        }
    }
}
