//! One datagram per flow.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, send as send_connected, sendto};

use super::{First, set_ttl};

pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    let socket = UdpSocket::bind(first.source)?;
    if !first.open {
        socket.connect(first.destination)?;
    }
    set_ttl(&socket, first.source, first.ttl)?;
    Ok(socket.into())
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    let bytes = first.stamp.encode();
    if first.open {
        sendto(socket, &bytes, SendFlags::empty(), &first.destination)?;
    } else {
        send_connected(socket, &bytes, SendFlags::empty())?;
    }
    Ok(())
}
