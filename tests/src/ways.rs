//! Ways to watch a node: nothing, snat-trace at each level, and what else there is. Each is started as its users start it.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use snat_trace::counters::netns::in_netns;

use crate::output::{Running, SNAT_TRACE};
use crate::places::{probed, until};

/// One of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Nothing attached.
    Nothing,
    /// `snat-trace watch --detail minimal`.
    Minimal,
    /// `snat-trace watch`.
    Full,
    /// `snat-trace watch --failures`, half of whose return probes lies in the window of the race.
    Failures,
    /// A bpftrace script that notes the same, and takes the current task for the sender: `measure/full.bt`.
    Bpftrace,
    /// One that notes nothing, at the functions at which `snat-trace watch` has a program that runs: `measure/empty.bt`. What
    /// it takes, no program there can do without.
    Empty,
    /// `conntrack -E`, in the node's network namespace.
    Conntrack,
    /// `tcpdump` on all links of the node's network namespace.
    Tcpdump,
}

/// What bpftrace is to run.
const FULL_SCRIPT: &str = include_str!("measure/full.bt");
const EMPTY_SCRIPT: &str = include_str!("measure/empty.bt");
/// Probes in either.
const SCRIPTS_PROBES: usize = 4;
/// More entries than there are while it watches, by far: it keeps each until it is gone. bpftrace itself gives room for 4096.
const SCRIPTS_KEYS: (&str, &str) = ("BPFTRACE_MAX_MAP_KEYS", "65536");

/// `NETLINK_NETFILTER` (include/uapi/linux/netlink.h).
const NETLINK_NETFILTER: &str = "12";

impl Way {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Minimal,
        Self::Full,
        Self::Failures,
        Self::Bpftrace,
        Self::Empty,
        Self::Conntrack,
        Self::Tcpdump,
    ];

    /// Its name in every figure.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Minimal => "snat-trace minimal",
            Self::Full => "snat-trace full",
            Self::Failures => "snat-trace full --failures",
            Self::Bpftrace => "bpftrace",
            Self::Empty => "bpftrace, empty",
            Self::Conntrack => "conntrack -E",
            Self::Tcpdump => "tcpdump",
        }
    }

    /// What it is a run of; `None` of nothing.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Minimal | Self::Full | Self::Failures => Some(SNAT_TRACE),
            Self::Bpftrace | Self::Empty => Some("bpftrace"),
            Self::Conntrack => Some("conntrack"),
            Self::Tcpdump => Some("tcpdump"),
        }
    }

    /// Whether its program is in `PATH`.
    #[must_use]
    pub fn is_here(self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.program().is_none_or(|program| std::env::split_paths(&path).any(|place| place.join(program).is_file()))
    }

    /// Starts it, and returns when it watches. What it prints goes nowhere.
    ///
    /// # Errors
    ///
    /// It cannot be started, or ends.
    pub fn attach(self, node: BorrowedFd<'_>) -> Result<Attached> {
        let nowhere = || File::options().write(true).open("/dev/null");
        let running = match self {
            Self::Nothing => None,
            Self::Minimal => Some(watching(&["--detail", "minimal"], nowhere()?)?),
            Self::Full => Some(watching(&[], nowhere()?)?),
            Self::Failures => Some(watching(&["--failures"], nowhere()?)?),
            Self::Bpftrace | Self::Empty | Self::Conntrack | Self::Tcpdump => {
                Some(in_netns(node, || self.peer(nowhere()?))??)
            }
        };
        Ok(Attached { way: self, running })
    }

    /// Starts another tool in the calling thread's network namespace.
    fn peer(self, nowhere: File) -> Result<Running> {
        let script = Path::new("/tmp/script.bt");
        let mut command = Command::new(self.program().context("nothing is no tool")?);
        match self {
            Self::Bpftrace | Self::Empty => {
                fs::write(script, if self == Self::Empty { EMPTY_SCRIPT } else { FULL_SCRIPT })?;
                command.env(SCRIPTS_KEYS.0, SCRIPTS_KEYS.1).arg(script)
            }
            Self::Conntrack => command.arg("-E"),
            // It would become a user that a guest has not.
            _ => command.args(["-i", "any", "-n", "-Z", "root", "-w", "/dev/null"]),
        };
        let said = Path::new("/tmp/said");
        let mut running = Running::with(command.stdin(Stdio::null()).stdout(nowhere).stderr(File::create(said)?))?;
        let child = running.child()?;
        let mut ended = false;
        until(&format!("{} watching", self.name()), || {
            ended = child.try_wait().is_ok_and(|status| status.is_some());
            ended || self.watches(said)
        })?;
        if ended {
            bail!("{} ended early: {}", self.name(), fs::read_to_string(said)?.trim());
        }
        Ok(running)
    }

    /// Whether it does, by what the kernel knows or, of tcpdump, by what it has said.
    fn watches(self, said: &Path) -> bool {
        match self {
            Self::Bpftrace | Self::Empty => probed().is_ok_and(|functions| functions.len() == SCRIPTS_PROBES),
            Self::Conntrack => fs::read_to_string("/proc/thread-self/net/netlink").is_ok_and(|sockets| {
                sockets.lines().filter_map(fields).any(|(protocol, groups)| protocol == NETLINK_NETFILTER && groups)
            }),
            _ => fs::read_to_string(said).is_ok_and(|said| said.contains("listening on")),
        }
    }
}

/// Protocol of a netlink socket, and whether it hears any group (net/netlink/af_netlink.c, `netlink_native_seq_show`).
fn fields(socket: &str) -> Option<(&str, bool)> {
    let mut fields = socket.split_ascii_whitespace().skip(1);
    let protocol = fields.next()?;
    let groups = fields.nth(1)?;
    Some((protocol, groups.chars().any(|digit| digit != '0')))
}

/// A way that watches; ended when dropped.
#[derive(Debug)]
pub struct Attached {
    way: Way,
    running: Option<Running>,
}

impl Attached {
    /// Its process.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn pid(&mut self) -> Result<u32> {
        Ok(self.running.as_mut().context("nothing is no process")?.child()?.id())
    }

    /// Ctrl-C, and returns when it is gone.
    ///
    /// # Errors
    ///
    /// It cannot be ended, or snat-trace ends badly.
    pub fn end(mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        if self.way.program() == Some(SNAT_TRACE) {
            running.interrupt().map(drop)
        } else {
            // How other tools end is theirs to choose.
            running.signal(Signal::INT)?;
            running.wait().map(drop)
        }
    }
}

/// `snat-trace watch` in JSON, attached. Its starts are measured, so nobody takes a CPU to look for the ready file.
fn watching(arguments: &[&str], output: File) -> Result<Running> {
    let (folder, name) = ("/tmp", "ready-way");
    let ready = Path::new(folder).join(name);
    let _absent = fs::remove_file(&ready);
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&changes, folder, inotify::WatchFlags::CREATE)?;
    let path = ready.to_str().context("a path is text")?;
    let mut watch =
        Running::into_file(&[&["watch", "--format", "json", "--ready-file", path], arguments].concat(), output)?;
    let pid = Pid::from_child(watch.child()?);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    while !ready.exists() {
        let mut news = [PollFd::new(&changes, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        retry_on_intr(|| poll(&mut news, None))?;
        if !news[1].revents().is_empty() {
            bail!("watch ended early: {}", String::from_utf8_lossy(&watch.wait()?.stderr));
        }
        // What is created is not told of again, whatever it is.
        retry_on_intr(|| rustix::io::read(&changes, &mut [0; 4096]))?;
    }
    Ok(watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_events_is_told_from_other_netlink_sockets() {
        let heading = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode";
        let routes = "0000000000000000 0   719        00000111 0        0        0     2        0        20042";
        let events = "0000000000000000 12  1021       00000007 0        0        0     2        0        21873";
        assert_eq!(fields(heading), Some(("Eth", true)));
        assert_eq!(fields(routes), Some(("0", true)));
        assert_eq!(fields(events), Some((NETLINK_NETFILTER, true)));
        assert_eq!(fields(&events.replace("00000007", "00000000")), Some((NETLINK_NETFILTER, false)));
    }

    #[test]
    fn each_script_has_as_many_probes_as_are_waited_for() {
        let probe = |line: &&str| line.starts_with("kprobe:") || line.starts_with("kretprobe:");
        for script in [FULL_SCRIPT, EMPTY_SCRIPT] {
            assert_eq!(script.lines().filter(probe).count(), SCRIPTS_PROBES, "{script}");
        }
    }
}
