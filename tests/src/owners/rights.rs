//! A socket that one process makes and another sends with, which got it through a Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// For one descriptor.
const SPACE: usize = rustix::cmsg_space!(ScmRights(1));

/// Hands a socket to whoever is at the other end.
pub(super) fn hand(to: impl AsFd, socket: BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let sockets = [socket];
    with.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(to, &[IoSlice::new(b"x")], &mut with, SendFlags::empty()).context("sendmsg")?;
    Ok(())
}

/// Takes one. As programs do, it is not given on to those started later.
pub(super) fn take(from: impl AsFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut with, RecvFlags::CMSG_CLOEXEC).context("recvmsg")?;
    let mut taken = with.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    taken.next().context("nothing was handed over")
}
