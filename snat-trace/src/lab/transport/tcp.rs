//! One connection per flow; the stamp follows when it is up.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, bind, connect, getpeername, socket_with, sockopt};

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

/// A connection that is up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) struct Up {
    /// Segments sent again so far (`tcp_info.tcpi_total_retrans`, net/ipv4/tcp.c).
    pub(in super::super) retransmits: u32,
    /// Segments received so far (`tcp_info.tcpi_segs_in`).
    pub(in super::super) received: u32,
}

/// How a connect ended.
pub(in super::super) type Connected = Result<Up, Errno>;

/// `None` while it has not ended.
pub(in super::super) fn connected(socket: &OwnedFd) -> io::Result<Option<Connected>> {
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if fds[0].revents().is_empty() {
        return Ok(None);
    }
    match sockopt::socket_error(socket)? {
        Ok(()) => up(socket).map(|up| Some(Ok(up))),
        Err(error) => Ok(Some(Err(error))),
    }
}

/// Who a connection is with.
pub(in super::super) fn peer(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = getpeername(socket)?.ok_or(Errno::NOTCONN)?;
    Ok(SocketAddr::try_from(address)?)
}

/// What the kernel knows of a connection.
fn up(socket: &OwnedFd) -> io::Result<Up> {
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
    let info = unsafe { info.assume_init() };
    Ok(Up { retransmits: info.tcpi_total_retrans, received: info.tcpi_segs_in })
}
