//! What a pod sends, one file per protocol: how a first packet is prepared and sent.

mod forwarded;
mod icmp;
mod sctp;
pub(super) mod tcp;
mod tunnelled;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

use super::addresses::Family;
use super::wire::Stamp;
use crate::race::tuple::Protocol;

/// A protocol of the test traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transport {
    Udp,
    /// UDP as another machine sends it.
    Forwarded,
    /// UDP by the kernel, around what a process sends.
    Tunnelled,
    Tcp,
    /// Echo requests of either family.
    Icmp,
    Sctp,
}

/// A flow's first packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    /// Bound to before the packet is sent.
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Time to live or hop limit.
    pub(super) ttl: u8,
    /// TCP only: that of everything after the first packet.
    pub(super) ttl_again: u8,
    /// UDP only: by a socket that hears everyone, not its destination alone.
    pub(super) open: bool,
    pub(super) stamp: Stamp,
}

impl Transport {
    /// Its name in a pod's arguments.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Forwarded => "forwarded",
            Self::Tunnelled => "tunnelled",
            Self::Tcp => "tcp",
            Self::Icmp => "icmp",
            Self::Sctp => "sctp",
        }
    }

    /// By its name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Udp, Self::Forwarded, Self::Tunnelled, Self::Tcp, Self::Icmp, Self::Sctp]
            .into_iter()
            .find(|transport| transport.name() == name)
    }

    /// As conntrack knows it.
    pub(super) fn protocol(self, family: Family) -> Protocol {
        match (self, family) {
            (Self::Udp | Self::Forwarded | Self::Tunnelled, _) => Protocol::UDP,
            (Self::Tcp, _) => Protocol::TCP,
            (Self::Icmp, Family::V4) => Protocol::ICMP,
            (Self::Icmp, Family::V6) => Protocol::ICMPV6,
            (Self::Sctp, _) => Protocol::SCTP,
        }
    }

    /// Whether a lost first packet is sent again until it is answered.
    pub(super) fn retransmits(self) -> bool {
        self == Self::Tcp
    }

    /// A socket that has everything but the packet, so that only the sending itself is left.
    pub(super) fn prepare(self, first: &First) -> io::Result<OwnedFd> {
        match self {
            Self::Udp => udp::prepare(first),
            Self::Forwarded => forwarded::prepare(),
            Self::Tunnelled => tunnelled::prepare(first),
            Self::Tcp => tcp::prepare(first),
            Self::Icmp => icmp::prepare(first),
            Self::Sctp => sctp::prepare(first),
        }
    }

    /// Sends the packet.
    pub(super) fn send(self, socket: &OwnedFd, first: &First) -> io::Result<()> {
        match self {
            Self::Udp => udp::send(socket, first),
            Self::Forwarded => forwarded::send(socket, first),
            Self::Tunnelled => tunnelled::send(first),
            Self::Tcp => tcp::send(socket, first),
            Self::Icmp => icmp::send(socket, first),
            Self::Sctp => sctp::send(socket, first),
        }
    }

    /// A socket that sees every packet of this protocol that reaches its namespace; `None` for those that have a socket
    /// of their own to arrive at.
    pub(super) fn raw(self, family: Family) -> io::Result<Option<OwnedFd>> {
        let protocol = match (self, family) {
            (Self::Udp | Self::Forwarded | Self::Tunnelled | Self::Tcp, _) => return Ok(None),
            (Self::Icmp, Family::V4) => ipproto::ICMP,
            (Self::Icmp, Family::V6) => ipproto::ICMPV6,
            (Self::Sctp, _) => ipproto::SCTP,
        };
        let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Some(socket_with(domain, SocketType::RAW, flags, Some(protocol))?))
    }

    /// The translated source and the stamp of what a raw socket received; `None` when it is no first packet of a pod.
    pub(super) fn read(self, received: &[u8], source: IpAddr) -> Option<(SocketAddr, Stamp)> {
        // Raw sockets of IPv4 receive the header too, of as many words of 32 bits as its second half byte says.
        let header = if source.is_ipv4() { usize::from(received.first()? & 15) * 4 } else { 0 };
        let packet = received.get(header..)?;
        let (port, stamp) = match self {
            Self::Udp | Self::Forwarded | Self::Tunnelled | Self::Tcp => return None,
            Self::Icmp => icmp::read(packet)?,
            Self::Sctp => sctp::read(packet)?,
        };
        Some((SocketAddr::new(source, port), stamp))
    }
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Sets the time to live, or hop limit, of what a socket of this address sends from now on.
fn set_ttl(socket: impl AsFd, address: SocketAddr, ttl: u8) -> io::Result<()> {
    if address.is_ipv4() {
        sockopt::set_ip_ttl(socket, ttl.into())?;
    } else {
        sockopt::set_ipv6_unicast_hops(socket, Some(ttl))?;
    }
    Ok(())
}
