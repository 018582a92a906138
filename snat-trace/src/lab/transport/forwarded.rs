//! A datagram of IPv4 as another machine would send it: whole, from an address that nobody here has.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use super::super::addresses::stranger;
use super::First;

/// A header without options, and that of UDP.
const HEADERS: usize = 20 + 8;

/// A socket whose packets have their header already.
pub(super) fn prepare() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?)
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    sendto(socket, &packet(first)?, SendFlags::empty(), &first.destination)?;
    Ok(())
}

/// The kernel fills the lengths' and the header's checksum in (net/ipv4/raw.c, `raw_send_hdrinc`); that of UDP may be left
/// out.
fn packet(first: &First) -> io::Result<Vec<u8>> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (first.source, first.destination) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let from = match stranger((*source.ip()).into()) {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let stamp = first.stamp.encode();
    let length = u16::try_from(8 + stamp.len()).map_err(io::Error::other)?;
    let mut packet = Vec::with_capacity(HEADERS + stamp.len());
    // Version and words of the header, type of service, length, id, fragment, time to live, protocol, checksum.
    packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, first.ttl, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(destination.ip().octets());
    for half in [source.port(), destination.port(), length, 0] {
        packet.extend(half.to_be_bytes());
    }
    packet.extend(stamp);
    Ok(packet)
}
