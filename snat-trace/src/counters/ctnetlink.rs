//! Entries of the conntrack table as ctnetlink asks for them and tells them (include/uapi/linux/netfilter/
//! `nfnetlink_conntrack.h`). What is about addresses and ports is in network byte order.

use std::net::{IpAddr, SocketAddr};

use bytes::Buf as _;

use super::wire::{Attributes, NESTED, put_attribute};
use crate::race::tuple::{Ends, Protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
pub(crate) const CT_NEW: u16 = 1 << 8;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
pub(crate) const CT_DELETE: u16 = (1 << 8) | 2;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
pub(crate) const CT_GET: u16 = (1 << 8) | 1;

// enum ctattr_type
pub(crate) const CTA_TUPLE_ORIG: u16 = 1;
pub(crate) const CTA_TUPLE_REPLY: u16 = 2;
pub(crate) const CTA_STATUS: u16 = 3;
pub(crate) const CTA_TIMEOUT: u16 = 7;
pub(crate) const CTA_ZONE: u16 = 18;
pub(crate) const CTA_FILTER: u16 = 25;
// enum ctattr_tuple
pub(crate) const CTA_TUPLE_IP: u16 = 1;
pub(crate) const CTA_TUPLE_PROTO: u16 = 2;
pub(crate) const CTA_TUPLE_ZONE: u16 = 3;
// enum ctattr_ip
pub(crate) const CTA_IP_V4_SRC: u16 = 1;
pub(crate) const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
// enum ctattr_l4proto
pub(crate) const CTA_PROTO_NUM: u16 = 1;
pub(crate) const CTA_PROTO_SRC_PORT: u16 = 2;
pub(crate) const CTA_PROTO_DST_PORT: u16 = 3;
pub(crate) const CTA_PROTO_ICMP_ID: u16 = 4;
pub(crate) const CTA_PROTO_ICMPV6_ID: u16 = 7;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What a message about entries with this address begins with: `struct nfgenmsg` (family, version, `res_id`).
pub(crate) fn header(address: IpAddr) -> Vec<u8> {
    vec![if address.is_ipv4() { AF_INET } else { AF_INET6 }, 0, 0, 0]
}

/// The attributes of a message after that.
pub(crate) fn attributes(message: &[u8]) -> Option<Attributes<'_>> {
    message.get(4..).map(Attributes)
}

/// Appends a `CTA_TUPLE_IP`. Where one of the two is of IPv6 both are made so.
pub(crate) fn put_addresses(tuple: &mut Vec<u8>, source: IpAddr, destination: IpAddr) {
    let mut addresses = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            put_attribute(&mut addresses, CTA_IP_V4_SRC, &source.octets());
            put_attribute(&mut addresses, CTA_IP_V4_DST, &destination.octets());
        }
        (source, destination) => {
            put_attribute(&mut addresses, CTA_IP_V6_SRC, &six(source));
            put_attribute(&mut addresses, CTA_IP_V6_DST, &six(destination));
        }
    }
    put_attribute(tuple, CTA_TUPLE_IP | NESTED, &addresses);
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Source and destination in a `CTA_TUPLE_IP`.
fn addresses(value: &[u8]) -> (Option<IpAddr>, Option<IpAddr>) {
    let (mut source, mut destination) = (None, None);
    for (kind, value) in Attributes(value) {
        let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(value).ok().map(IpAddr::from);
        match kind {
            CTA_IP_V4_SRC => source = v4(),
            CTA_IP_V4_DST => destination = v4(),
            CTA_IP_V6_SRC => source = v6(),
            CTA_IP_V6_DST => destination = v6(),
            _ => {}
        }
    }
    (source, destination)
}

/// One direction of an entry, as far as it is told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuple {
    /// Source and destination.
    addresses: (Option<IpAddr>, Option<IpAddr>),
    /// Of the flow.
    pub(crate) protocol: Option<Protocol>,
    /// Source and destination, in host byte order.
    ports: (Option<u16>, Option<u16>),
    /// What ICMP has instead of ports.
    echo: Option<u16>,
    /// A zone of this direction only.
    pub(crate) zone: Option<u16>,
}

impl Tuple {
    /// From a `CTA_TUPLE_ORIG` or `CTA_TUPLE_REPLY`.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut tuple = Self::default();
        for (kind, mut value) in Attributes(bytes) {
            match kind {
                CTA_TUPLE_IP => tuple.addresses = addresses(value),
                CTA_TUPLE_ZONE => tuple.zone = value.try_get_u16().ok(),
                CTA_TUPLE_PROTO => tuple.parse_protocol(value),
                _ => {}
            }
        }
        tuple
    }

    fn parse_protocol(&mut self, bytes: &[u8]) {
        for (kind, mut value) in Attributes(bytes) {
            match kind {
                CTA_PROTO_NUM => self.protocol = value.try_get_u8().ok().map(Protocol),
                CTA_PROTO_SRC_PORT => self.ports.0 = value.try_get_u16().ok(),
                CTA_PROTO_DST_PORT => self.ports.1 = value.try_get_u16().ok(),
                CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => self.echo = value.try_get_u16().ok(),
                _ => {}
            }
        }
    }

    /// Both ends of a flow that has ports.
    pub(crate) fn ends(&self) -> Option<Ends> {
        Some(Ends {
            source: SocketAddr::new(self.addresses.0?, self.ports.0?),
            destination: SocketAddr::new(self.addresses.1?, self.ports.1?),
        })
    }

    /// Both ends; the id of an echo stands as the destination's port, and the source has 0.
    pub(crate) fn ends_or_echo(self) -> Option<Ends> {
        let ports = self.echo.map_or(self.ports, |id| (Some(0), Some(id)));
        Self { ports, ..self }.ends()
    }
}
