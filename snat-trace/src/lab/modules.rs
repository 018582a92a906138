//! A kernel module of the whole node, which goes while it is watched, and is put back.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use rustix::system::delete_module;

use super::Family;
use super::compare::{Comparison, Difference};
use super::error::{Doing, LabError};
use super::helper::reason;
use super::run::{DEADLINE, LOOK};
use super::setup::{Setup, refuse};
use super::tools::find_in;
use crate::counters::netns::{Depth, Netns, enumerate, in_netns};
use crate::summary::Summary;

/// How long a watch may take to notice: where nobody tells it, it looks every ten seconds.
const NOTICED: Duration = Duration::from_secs(15);

impl Setup {
    /// The module that is to go, where one is.
    #[must_use]
    pub fn unloads(&self) -> Option<&'static str> {
        self.scenario.unloads()
    }

    /// Whether the node may be changed, where the scenario does that.
    pub(super) fn check_node(&self) -> Result<(), LabError> {
        match (self.scenario.changes_node(), self.change_node) {
            (Some(module), false) => Err(LabError::Setup(format!(
                "this scenario unloads {module}, which is the whole node's, and loads it again: it does with --change-node, \
                 if nobody else uses it"
            ))),
            (None, true) => refuse("this scenario leaves the node as it is: leave out --change-node"),
            _ => Ok(()),
        }
    }

    /// Whether anything stands against it, before anything is done.
    pub(super) fn check_modules(&self) -> Result<(), LabError> {
        let Some(module) = self.scenario.changes_node() else { return Ok(()) };
        if self.scenario.dies() {
            reason()?;
        }
        modprobe()?;
        nobody_uses(module)
    }
}

/// Below sysfs; absent of what is in the kernel's image, which stays.
fn directory(module: &str) -> PathBuf {
    Path::new("/sys/module").join(module)
}

pub(super) fn is_loaded(module: &str) -> bool {
    directory(module).join("initstate").exists()
}

pub(super) fn modprobe() -> Result<PathBuf, LabError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(&path, "modprobe").ok_or(LabError::MissingTool { tool: "modprobe", package: "kmod" })
}

/// A module and all that need it, those first which nobody needs.
fn with_dependents(module: &str) -> io::Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for holder in fs::read_dir(directory(module).join("holders"))? {
        if let Some(holder) = holder?.file_name().to_str() {
            let more = with_dependents(holder)?.into_iter().filter(|other| !all.contains(other)).collect::<Vec<_>>();
            all.extend(more);
        }
    }
    all.push(module.to_owned());
    Ok(all)
}

/// Rules of others hold the modules they need; connections of others would lose their translation, and a table of iptables
/// goes with its module, whatever is in it.
fn nobody_uses(module: &str) -> Result<(), LabError> {
    let refuse = |what: String| Err(LabError::NodeInUse(what));
    if is_loaded(module) {
        for name in with_dependents(module).doing("read which modules need another")? {
            let references = fs::read_to_string(directory(&name).join("refcnt")).doing("read a module's references")?;
            let holders = fs::read_dir(directory(&name).join("holders")).doing("read which modules need another")?;
            // Each module that needs it refers to it once; what else does is a rule.
            if references.trim().parse::<usize>().ok() != Some(holders.count()) {
                return refuse(format!("rules of others need the module {name}"));
            }
        }
    }
    for netns in enumerate(Depth::Descriptors).doing("look for network namespaces")? {
        if let Some(what) = used_in(&netns) {
            return refuse(format!("network namespace {} {what}", netns.inum.0));
        }
    }
    Ok(())
}

/// What a namespace has that would be lost, in a clause; a namespace that cannot be looked into may have anything.
fn used_in(netns: &Netns) -> Option<String> {
    let fd = match netns.open() {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("cannot be opened: {error}")),
    };
    let read = |path: &str| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    };
    let looked = in_netns(fd.as_fd(), || -> io::Result<Option<String>> {
        let count = read("/proc/sys/net/netfilter/nf_conntrack_count")?;
        if !matches!(count.trim(), "" | "0") {
            return Ok(Some(format!("tracks {} connections", count.trim())));
        }
        for (file, family) in [("ip_tables_names", Family::V4), ("ip6_tables_names", Family::V6)] {
            let names = read(&format!("/proc/thread-self/net/{file}"))?;
            // Asked for, a table that is not there would be made.
            if names.lines().any(|name| name == "nat") && legacy_entries(family)? > EMPTY_TABLE {
                return Ok(Some("has rules of iptables in its table nat".to_owned()));
            }
        }
        Ok(None)
    });
    match looked {
        Ok(Ok(what)) => what,
        Ok(Err(error)) | Err(error) => Some(format!("cannot be looked into: {error}")),
    }
}

/// `struct ipt_getinfo`, and that of IPv6 (include/uapi/linux/netfilter_ipv4/ip_tables.h).
#[derive(Debug)]
#[repr(C)]
struct TableInfo {
    name: [u8; 32],
    hooks: u32,
    entries_and_underflows: [[u32; 5]; 2],
    entries: u32,
    size: u32,
}

/// Entries of a table nat without rules: the policies of four chains, and its end.
const EMPTY_TABLE: u32 = 5;

/// How many entries the table nat of iptables has in the calling thread's network namespace.
fn legacy_entries(family: Family) -> io::Result<u32> {
    // `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
    const GET_INFO: i32 = 64;

    let (domain, level) = match family {
        Family::V4 => (AddressFamily::INET, libc::SOL_IP),
        Family::V6 => (AddressFamily::INET6, libc::SOL_IPV6),
    };
    let socket = socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
    let mut info = TableInfo { name: [0; 32], hooks: 0, entries_and_underflows: [[0; 5]; 2], entries: 0, size: 0 };
    info.name[..3].copy_from_slice(b"nat");
    let mut length = libc::socklen_t::try_from(size_of::<TableInfo>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes so many bytes of `info`, and `length`.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length) };
    if got == 0 { Ok(info.entries) } else { Err(io::Error::last_os_error()) }
}

/// Unloads a module with those that need it, and loads all of them again, whatever happened; then waits until `noticed`. The
/// lab must be gone.
pub(super) fn unload_and_load(module: &str, noticed: &AtomicBool) -> Result<(), LabError> {
    let modprobe = modprobe()?;
    nobody_uses_any_more(module)?;
    let mut gone = Vec::new();
    let unloaded = unload(module, &mut gone);
    for name in gone.iter().rev() {
        let loading = Command::new(&modprobe).arg(name).stdin(Stdio::null()).output();
        if !loading.is_ok_and(|output| output.status.success()) || !is_loaded(name) {
            return Err(LabError::NotPutBack { module: name.clone() });
        }
    }
    unloaded?;
    let began = Instant::now();
    // That a watch has ended is told by this flag alone.
    while !noticed.load(Ordering::Relaxed) && began.elapsed() < NOTICED {
        thread::park_timeout(LOOK);
    }
    Ok(())
}

/// The kernel takes namespaces down, and frees what their rules needed, in its own time.
fn nobody_uses_any_more(module: &str) -> Result<(), LabError> {
    let began = Instant::now();
    loop {
        match nobody_uses(module) {
            Err(LabError::NodeInUse(_)) if began.elapsed() < DEADLINE => thread::park_timeout(LOOK),
            other => return other,
        }
    }
}

/// Adds each that is unloaded to `gone`. The kernel refuses to unload what is in use.
fn unload(module: &str, gone: &mut Vec<String>) -> Result<(), LabError> {
    let began = Instant::now();
    while is_loaded(module) {
        for name in with_dependents(module).doing("read which modules need another")? {
            let c_name = CString::new(name.as_str()).map_err(io::Error::other).doing("name a module")?;
            // O_NONBLOCK: with references left it is refused, and nobody new is kept from it meanwhile.
            match delete_module(&c_name, libc::O_NONBLOCK) {
                Ok(()) => gone.push(name),
                Err(Errno::AGAIN | Errno::BUSY | Errno::NOENT) => break,
                Err(error) => return Err(error).doing("unload a module"),
            }
        }
        if !is_loaded(module) {
            break;
        }
        thread::park_timeout(LOOK);
        if began.elapsed() > DEADLINE {
            return Err(LabError::NodeInUse(format!("somebody has begun to use {module}")));
        }
    }
    Ok(())
}

impl Comparison {
    /// Of a watch that was to end because a module went: it says which, and that its account cannot close.
    #[must_use]
    pub fn without_module(mut self, module: &str, summary: &Summary) -> Self {
        if !summary.hooks_gone.iter().any(|gone| gone == module) || summary.closes() {
            self.differences.push(Difference::ModuleNotMissed { module: module.to_owned() });
        }
        self
    }
}
