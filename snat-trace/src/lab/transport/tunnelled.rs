//! A datagram inside a tunnel, whose own datagram is the flow.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use super::super::tunnel::{INSIDE, peer};
use super::First;

/// A socket with the port of the tunnel's datagram, by which nothing is sent: whoever looks for a sender by port alone finds it.
pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    Ok(UdpSocket::bind(first.source)?.into())
}

pub(super) fn send(first: &First) -> io::Result<()> {
    let inside = UdpSocket::bind((INSIDE, first.source.port()))?;
    inside.send_to(&first.stamp.encode(), peer(first.destination)).map(drop)
}
