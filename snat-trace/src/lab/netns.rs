//! Network namespaces without a name: only fds and threads of this process hold them, so the kernel removes them with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::Family;
use super::error::{Doing, LabError};
use crate::race::event::NetnsInum;

/// One namespace of the lab.
#[derive(Debug)]
pub(super) struct Netns {
    fd: OwnedFd,
    inum: NetnsInum,
}

impl Netns {
    /// A new, quiet namespace: of one IP version, with neither router solicitation, duplicate address detection nor
    /// link-local addresses; no reverse path filter.
    pub(super) fn new(family: Family, forward: bool) -> Result<Self, LabError> {
        let fd = on_own_thread(move || -> io::Result<OwnedFd> {
            // SAFETY: only the network namespace is unshared, never the table of file descriptors.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
            // `/proc/sys/net` is that of the calling thread (net/sysctl_net.c, `net_ctl_header_lookup`).
            let net = Path::new("/proc/sys/net");
            for place in ["all", "default"] {
                fs::write(net.join("ipv4/conf").join(place).join("rp_filter"), "0")?;
                let ipv6 = net.join("ipv6/conf").join(place);
                match family {
                    Family::V4 if !ipv6.exists() => {}
                    Family::V4 => fs::write(ipv6.join("disable_ipv6"), "1")?,
                    Family::V6 => {
                        // A namespace can inherit them (net.core.devconf_inherit_init_net).
                        fs::write(ipv6.join("disable_ipv6"), "0")?;
                        fs::write(ipv6.join("accept_dad"), "0")?;
                        fs::write(ipv6.join("router_solicitations"), "0")?;
                        // IN6_ADDR_GEN_MODE_NONE
                        fs::write(ipv6.join("addr_gen_mode"), "1")?;
                        fs::write(ipv6.join("forwarding"), if forward { "1" } else { "0" })?;
                    }
                }
            }
            // Ping sockets for every group; IPv6 asks the same file (net/ipv4/ping.c, `ping_init_sock`).
            fs::write(net.join("ipv4/ping_group_range"), "0 2147483647")?;
            fs::write(net.join("ipv4/ip_forward"), if forward { "1" } else { "0" })?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })?
        .doing("make a network namespace")?;
        let inode = rustix::fs::fstat(&fd).doing("read a namespace's inode")?.st_ino;
        let inum = u32::try_from(inode).map_err(io::Error::other).doing("read a namespace's inode")?;
        Ok(Self { fd, inum: NetnsInum(inum) })
    }

    /// Its inode number.
    pub(super) fn inum(&self) -> NetnsInum {
        self.inum
    }

    /// A path by which another process can open it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `work` on a thread of its own inside this namespace. Processes it starts begin there too.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, LabError> + Send) -> Result<T, LabError> {
        on_own_thread(|| {
            enter(self.fd.as_fd())?;
            work()
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the calling thread, and it alone, into a namespace.
pub(super) fn enter(netns: BorrowedFd<'_>) -> Result<(), LabError> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).doing("enter a network namespace")
}

/// A thread that changes its namespace must not go back to a pool.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().spawn_scoped(scope, work).doing("start a thread")?;
        handle.join().map_err(|_| LabError::Ended("set-up thread"))
    })
}
