//! A packet socket: what it sends goes past everything above the link.

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netdevice, sendto, socket_with};

use super::place::{GATEWAY, UPLINK};

/// `ETH_P_IP` (include/uapi/linux/if_ether.h), in network byte order.
const IP: u16 = 0x0800_u16.to_be();

/// `struct sockaddr_ll` (include/uapi/linux/if_packet.h).
#[repr(C)]
struct Station {
    family: u16,
    protocol: u16,
    device: i32,
    hardware: u16,
    packet: u8,
    length: u8,
    address: [u8; 8],
}

// SAFETY: what is passed is `self`, a `struct sockaddr_ll` of its own length.
unsafe impl SocketAddrArg for Station {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LENGTH: SocketAddrLen = 20;
        const { assert!(size_of::<Self>() == LENGTH as usize) };
        f(std::ptr::from_ref(self).cast(), LENGTH)
    }
}

/// A socket that hears nothing: without a protocol.
pub(super) fn open() -> Result<OwnedFd> {
    socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).context("socket")
}

/// Sends an IPv4 packet of a datagram to the node's bridge. Its header's checksum is made here.
pub(super) fn send(socket: BorrowedFd<'_>, mut packet: Vec<u8>) -> Result<()> {
    let length = u16::try_from(packet.len())?;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let mut sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!u16::try_from(sum)?).to_be_bytes());
    let mut address = [0; 8];
    address[..GATEWAY.len()].copy_from_slice(&GATEWAY);
    let station = Station {
        family: AddressFamily::PACKET.as_raw(),
        protocol: IP,
        device: i32::try_from(netdevice::name_to_index(socket, UPLINK)?)?,
        hardware: 0,
        packet: 0,
        length: u8::try_from(GATEWAY.len())?,
        address,
    };
    sendto(socket, &packet, SendFlags::empty(), &station).context("sendto")?;
    Ok(())
}
