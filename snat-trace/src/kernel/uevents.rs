//! Being told at once that a module was unloaded.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;

use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often modules are to be looked at where nothing is told of them.
const LOOK: Duration = Duration::from_secs(10);

/// The kernel's own events; what udev says of them goes to another group.
const KERNEL_GROUP: u32 = 1;
/// More than the kernel makes of one event (include/linux/kobject.h, `UEVENT_BUFFER_SIZE`), and its head.
const RECEIVE_LEN: usize = 8 * 1024;
/// `PROC_USER_INIT_INO` (include/linux/proc_ns.h): the number of the first user namespace.
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// What is told of modules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    /// This one is removed. Its directory in sysfs may still be there (lib/kobject.c, `__kobject_del`).
    Removed(String),
    /// Nobody tells: they are to be looked at.
    Look,
}

/// Tells of modules that go, by the kernel's events, which wake nobody as long as there are none; or by the clock, where
/// the events do not come.
#[derive(Debug)]
pub struct ModuleNews(Source);

#[derive(Debug)]
enum Source {
    Events(Removals),
    Clock(Interval),
}

impl ModuleNews {
    /// Starts to listen. Needs a tokio runtime.
    #[must_use]
    pub fn listen() -> Self {
        Self(Removals::listen().map_or_else(|error| Source::clock(&error), Source::Events))
    }

    /// Waits for the next. Dropped before its end, it has lost nothing.
    pub async fn next(&mut self) -> News {
        match &mut self.0 {
            Source::Events(removals) => match removals.next().await {
                Ok(module) => News::Removed(module),
                Err(error) => {
                    // What was missed is looked for now, and from now on: who has lost an event may lose another.
                    self.0 = Source::clock(&error);
                    News::Look
                }
            },
            Source::Clock(clock) => {
                clock.tick().await;
                News::Look
            }
        }
    }
}

impl Source {
    fn clock(error: &io::Error) -> Self {
        tracing::debug!(%error, "modules are looked at every {} s", LOOK.as_secs());
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Clock(clock)
    }
}

/// The kernel's events of modules that go.
#[derive(Debug)]
struct Removals(AsyncFd<OwnedFd>);

impl Removals {
    /// Listens. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The events do not come to this network namespace, or cannot be listened to.
    fn listen() -> io::Result<Self> {
        if !events_come_here()? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        // SAFETY: the socket owns its descriptor and keeps it open and the same as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self(socket))
    }

    /// Waits for the next module that is removed, and gives its name. Dropped before its end, it has lost nothing.
    ///
    /// # Errors
    ///
    /// Events were lost, or there will be no more.
    async fn next(&mut self) -> io::Result<String> {
        let mut buffer = [0; RECEIVE_LEN];
        loop {
            let mut ready = self.0.readable_mut().await?;
            let received = rustix::net::recvfrom(ready.get_inner(), buffer.as_mut_slice(), RecvFlags::empty());
            let (message, sender) = match received {
                Ok((length, _, sender)) => (buffer.get(..length).unwrap_or_default(), sender),
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // Others may send to the group as well; the kernel's own number is 0.
            let kernel = sender.and_then(|address| SocketAddrNetlink::try_from(address).ok());
            if kernel.is_some_and(|address| address.pid() == 0)
                && let Some(module) = removed_module(message)
            {
                return Ok(module.to_owned());
            }
        }
    }
}

/// Whether this network namespace belongs to the first user namespace: modules are told of to no other
/// (lib/kobject_uevent.c, `uevent_net_init`).
fn events_come_here() -> io::Result<bool> {
    /// `NS_GET_USERNS` (include/uapi/linux/nsfs.h): `_IO(0xb7, 1)`.
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    let netns = File::open("/proc/thread-self/ns/net")?;
    // SAFETY: the request takes no argument and gives a new descriptor, or -1.
    let owner = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS as _) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    let owner = File::from(unsafe { OwnedFd::from_raw_fd(owner) });
    Ok(owner.metadata()?.st_ino() == FIRST_USER_NAMESPACE)
}

/// The module that a message says is removed. It begins `remove@/module/NAME`, and a zero byte ends that
/// (lib/kobject_uevent.c, `alloc_uevent_skb`).
fn removed_module(message: &[u8]) -> Option<&str> {
    let head = message.split(|&byte| byte == 0).next()?;
    let module = head.strip_prefix(b"remove@/module/")?;
    // Its parts, such as `/module/NAME/holders`, have no events.
    std::str::from_utf8(module).ok().filter(|name| !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    #[test]
    fn a_module_that_goes_is_named() {
        let message = b"remove@/module/nf_nat\0ACTION=remove\0DEVPATH=/module/nf_nat\0SUBSYSTEM=module\0SEQNUM=1234\0";
        assert_eq!(removed_module(message), Some("nf_nat"));
    }

    #[test]
    fn anything_else_is_not() {
        for message in [
            &b"add@/module/nf_nat\0ACTION=add\0"[..],
            b"remove@/devices/virtual/net/veth0\0ACTION=remove\0",
            b"remove@/module/nf_nat/holders\0",
            b"remove@/module/\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"",
        ] {
            assert_eq!(removed_module(message), None);
        }
    }

    proptest! {
        #[test]
        fn any_message_is_survived(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = removed_module(&tail);
            let message = [&b"remove@/module/"[..], &tail].concat();
            prop_assert!(removed_module(&message).is_none_or(|name| !name.contains(['/', '\0'])));
        }
    }

    #[test]
    fn mutated_messages_are_survived() {
        survives("uevent", &[b"remove@/module/nf_nat\0ACTION=remove\0DEVPATH=/module/nf_nat\0"], |bytes| {
            let _ = removed_module(bytes);
        });
    }
}
