//! One connection per flow; the stamp follows when it is up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::{First, family, set_ttl};

pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family(first.source), SocketType::STREAM, flags, None)?;
    bind(&socket, &first.source)?;
    set_ttl(&socket, first.source, first.ttl)?;
    // Closed by a reset: no farewell packets among the test traffic.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(socket)
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    match connect(socket, &first.destination) {
        // The SYN left inside connect(); whatever follows has its own.
        Ok(()) | Err(Errno::INPROGRESS) => set_ttl(socket, first.source, first.ttl_again),
        Err(error) => Err(error.into()),
    }
}

/// How a connect ended: after so many segments sent again, or with an error.
pub(in super::super) type Connected = Result<u32, Errno>;

/// `None` while it has not ended.
pub(in super::super) fn connected(socket: &OwnedFd) -> io::Result<Option<Connected>> {
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if fds[0].revents().is_empty() {
        return Ok(None);
    }
    match sockopt::socket_error(socket)? {
        Ok(()) => total_retransmits(socket).map(|retransmits| Some(Ok(retransmits))),
        Err(error) => Ok(Some(Err(error))),
    }
}

/// Segments sent again over the life of a connection (`tcp_info.tcpi_total_retrans`, net/ipv4/tcp.c).
fn total_retransmits(socket: &OwnedFd) -> io::Result<u32> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it is integers, zero where the kernel wrote nothing.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans)
}
