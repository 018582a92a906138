//! What a pod sends, one file per protocol: how a first packet is prepared and sent.

pub(super) mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, sockopt};

use super::wire::Stamp;
use crate::race::tuple::Protocol;

/// A protocol of the test traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// A flow's first packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    /// Bound to before the packet is sent.
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Time to live or hop limit.
    pub(super) ttl: u8,
    pub(super) stamp: Stamp,
}

impl Transport {
    /// Its name in a pod's arguments.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }

    /// By its name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Udp, Self::Tcp].into_iter().find(|transport| transport.name() == name)
    }

    /// As conntrack knows it.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Udp => Protocol::UDP,
            Self::Tcp => Protocol::TCP,
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
            Self::Tcp => tcp::prepare(first),
        }
    }

    /// Sends the packet.
    pub(super) fn send(self, socket: &OwnedFd, first: &First) -> io::Result<()> {
        match self {
            Self::Udp => udp::send(socket, first),
            Self::Tcp => tcp::send(socket, first),
        }
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
