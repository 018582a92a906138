//! Conntrack tuples by direction: what a sender made is not what stands on the wire after translation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use snat_trace_common::Tuple;

/// `AF_INET`, as it stands in `nf_conntrack_tuple.src.l3num`.
const AF_INET: u16 = 2;
/// `AF_INET6`.
const AF_INET6: u16 = 10;

/// An IP protocol number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// DCCP.
    pub const DCCP: Self = Self(33);
    /// GRE.
    pub const GRE: Self = Self(47);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDPLITE: Self = Self(136);

    /// Whether its flows are told apart by ports, where conntrack knows it.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::UDPLITE | Self::SCTP | Self::DCCP)
    }

    /// Whether it is ICMP of either family: such a flow has an id where others have a source port, and no destination port.
    #[must_use]
    pub fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }
}

/// Not a protocol's name or number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no protocol known by that name; give its number")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        const NAMED: [Protocol; 8] = [
            Protocol::TCP,
            Protocol::UDP,
            Protocol::SCTP,
            Protocol::DCCP,
            Protocol::UDPLITE,
            Protocol::ICMP,
            Protocol::ICMPV6,
            Protocol::GRE,
        ];
        let named = NAMED.into_iter().find(|protocol| protocol.to_string() == text);
        named.or_else(|| text.parse().ok().map(Self)).ok_or(UnknownProtocol)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::ICMP => "icmp",
            Self::TCP => "tcp",
            Self::UDP => "udp",
            Self::DCCP => "dccp",
            Self::ICMPV6 => "icmpv6",
            Self::SCTP => "sctp",
            Self::UDPLITE => "udplite",
            Self::GRE => "gre",
            Self(number) => return number.fmt(f),
        };
        f.pad(name)
    }
}

/// Both ends of a flow in one direction. Ports are in host byte order; for ICMP `source` has the id as its port and
/// `destination` has port 0.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ends {
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
}

/// A flow as its sender made it, before any translation: the entry's original direction.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OriginalTuple(Ends);

/// A flow as it looks on the wire after translation: the entry's reply direction, turned round.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TranslatedTuple(Ends);

impl OriginalTuple {
    /// Of an entry's original tuple; `None` when its address family is neither IPv4 nor IPv6.
    #[must_use]
    pub fn new(original: &Tuple) -> Option<Self> {
        ends(original).map(Self)
    }

    /// As the kernel has it; not for ICMP, whose type is not in the ends.
    #[must_use]
    pub fn to_tuple(self, protocol: Protocol) -> Tuple {
        let Ends { source, destination } = self.0;
        let l3num = if source.is_ipv4() { AF_INET } else { AF_INET6 };
        Tuple {
            src: address_bytes(source.ip()),
            src_port_be: source.port().to_be(),
            l3num,
            dst: address_bytes(destination.ip()),
            dst_port_be: destination.port().to_be(),
            protonum: protocol.0,
            dir: 0,
        }
    }

    /// From both ends.
    #[must_use]
    pub fn from_ends(ends: Ends) -> Self {
        Self(ends)
    }

    /// Both ends.
    #[must_use]
    pub fn ends(self) -> Ends {
        self.0
    }
}

impl TranslatedTuple {
    /// Of an entry's reply tuple; `None` when its address family is neither IPv4 nor IPv6.
    ///
    /// The reply's destination is the translated source. An ICMP tuple keeps its id in the source in both
    /// directions (net/netfilter/nf_conntrack_proto_icmp.c, `nf_conntrack_invert_icmp_tuple`).
    #[must_use]
    pub fn new(reply: &Tuple) -> Option<Self> {
        let Ends { source: mut destination, destination: mut source } = ends(reply)?;
        if Protocol(reply.protonum).is_icmp() {
            source.set_port(destination.port());
            destination.set_port(0);
        }
        Some(Self(Ends { source, destination }))
    }

    /// Whether translation left the source port, or the id of an echo, as the sender made it.
    #[must_use]
    pub fn keeps_port_of(self, original: OriginalTuple) -> bool {
        self.0.source.port() == original.0.source.port()
    }

    /// From both ends.
    #[must_use]
    pub fn from_ends(ends: Ends) -> Self {
        Self(ends)
    }

    /// Both ends.
    #[must_use]
    pub fn ends(self) -> Ends {
        self.0
    }
}

/// Both ends of a tuple as it stands.
fn ends(tuple: &Tuple) -> Option<Ends> {
    let destination_port = if Protocol(tuple.protonum).is_icmp() { 0 } else { u16::from_be(tuple.dst_port_be) };
    Some(Ends {
        source: SocketAddr::new(address(&tuple.src, tuple.l3num)?, u16::from_be(tuple.src_port_be)),
        destination: SocketAddr::new(address(&tuple.dst, tuple.l3num)?, destination_port),
    })
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(bytes: &[u8; 16], l3num: u16) -> Option<IpAddr> {
    match l3num {
        AF_INET => {
            let [a, b, c, d, ..] = *bytes;
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        AF_INET6 => Some(Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_survives_its_ends() {
        for (source, destination) in [("10.0.0.1:5", "9.9.9.9:53"), ("[fd00::1]:5", "[fd00::9]:53")] {
            let ends = Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            let tuple = OriginalTuple::from_ends(ends).to_tuple(Protocol::UDP);
            assert_eq!(OriginalTuple::new(&tuple).unwrap().ends(), ends);
            assert_eq!((tuple.protonum, tuple.dir), (17, 0));
        }
    }
}
