//! One datagram per flow.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use rustix::net::SendFlags;

use super::{First, set_ttl};

pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    let socket = UdpSocket::bind(first.source)?;
    socket.connect(first.destination)?;
    set_ttl(&socket, first.source, first.ttl)?;
    Ok(socket.into())
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    rustix::net::send(socket, &first.stamp.encode(), SendFlags::empty())?;
    Ok(())
}
