//! A process for one packet.

use std::io;

use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, waitpid};

/// A process that has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Once {
    pub(super) pid: u32,
    /// The error it met, 0 for none.
    pub(super) errno: i32,
}

/// Runs `send` in a process of its own and waits for its end. `send` makes system calls and nothing else.
pub(super) fn in_own_process(send: impl FnOnce() -> io::Result<()>) -> io::Result<Once> {
    // SAFETY: the child has this thread alone. It makes system calls, takes no lock and no memory, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // It may wait for other pods, which end with the lab; so must it.
        let tied = set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
        let errno = tied.and_then(|()| send()).map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        // SAFETY: it ends the process without running anything of the parent's.
        unsafe { libc::_exit(errno) }
    }
    let pid = Pid::from_raw(child).ok_or_else(io::Error::last_os_error)?;
    let status = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
    let errno = status.and_then(|(_, status)| status.exit_status()).unwrap_or(libc::EIO);
    Ok(Once { pid: child.cast_unsigned(), errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_another_process_and_its_error_is_told() {
        let own = std::process::id();
        let other =
            move || if std::process::id() == own { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) };
        let once = in_own_process(other).unwrap();
        assert_eq!(once.errno, libc::EPERM);
        assert_ne!(once.pid, own);
        assert_eq!(in_own_process(|| Ok(())).unwrap().errno, 0);
    }
}
