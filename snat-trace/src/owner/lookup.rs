//! Finding the sender of a flow after the fact: the socket in its network namespace, then the process that holds it.
//!
//! Right or not at all. Two pods can have the same port, so a socket counts only in a namespace that has the flow's
//! source address; and every doubt (two namespaces, two processes, a look that could not be completed) gives nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::cgroup::{CgroupPaths, ProcessCgroups};
use super::container::container;
use super::diag::{addresses, sockets};
use super::process::{self, StartTime};
use super::{Owner, OwnerSource};
use crate::counters::netns::{self, Depth, in_netns};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;
use crate::race::tuple::{OriginalTuple, Protocol};

/// A look that takes longer is given up: the sockets of a short flow are gone by then.
const BUDGET: Duration = Duration::from_secs(5);

/// A flow whose sender is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Query {
    /// TCP or UDP; no other can be looked up.
    pub protocol: Protocol,
    /// As the sender made it.
    pub original: OriginalTuple,
    /// When its packet was seen: a process that started later is not its sender.
    pub time: KernelTime,
}

/// A socket that can have sent a flow.
type Candidate = (NetnsInum, u32);

/// The owner of each flow, in the order of the queries.
pub(super) fn look_up(queries: &[Query], paths: &CgroupPaths) -> Vec<Option<Owner>> {
    let deadline = Instant::now() + BUDGET;
    let nothing = || vec![None; queries.len()];
    if queries.is_empty() || !process::proc_has_root_pids() {
        return nothing();
    }
    let Some(candidates) = find_sockets(queries, deadline) else { return nothing() };
    let inodes = candidates.iter().flatten().map(|&(_, inode)| inode).collect();
    let Some(holders) = find_holders(&inodes, deadline) else { return nothing() };
    let owner = |(query, candidates): (&Query, &Vec<Candidate>)| {
        let (netns, inode, pid) = only_holder(candidates, &holders)?;
        describe(pid, netns, inode, query.time, paths)
    };
    queries.iter().zip(&candidates).map(owner).collect()
}

/// The candidates of each query, over all namespaces; `None` when not every namespace could be asked.
fn find_sockets(queries: &[Query], deadline: Instant) -> Option<Vec<Vec<Candidate>>> {
    let mut candidates = vec![Vec::new(); queries.len()];
    for netns in netns::enumerate(Depth::Threads).ok()? {
        if Instant::now() >= deadline {
            return None;
        }
        let fd = match netns.open() {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return None,
        };
        let found = in_netns(fd.as_fd(), || find_here(queries)).ok()??;
        for (query, inode) in found {
            candidates.get_mut(query)?.push((netns.inum, inode));
        }
    }
    Some(candidates)
}

/// Sockets of the calling thread's namespace that can have sent one of the flows, by the flow's place in `queries`.
fn find_here(queries: &[Query]) -> Option<Vec<(usize, u32)>> {
    let addresses = addresses().ok()?;
    let mut found = Vec::new();
    for (index, query) in queries.iter().enumerate() {
        let ends = query.original.ends();
        if !matches!(query.protocol, Protocol::TCP | Protocol::UDP) || !addresses.contains(&ends.source.ip()) {
            continue;
        }
        let sockets = sockets(query.protocol, ends.source.port()).ok()?;
        let carrying = sockets.iter().filter(|socket| socket.inode != 0 && socket.carries(query.protocol, ends));
        found.extend(carrying.map(|socket| (index, socket.inode)));
    }
    Some(found)
}

/// The processes that hold each socket; `None` when not every process could be looked at.
fn find_holders(inodes: &BTreeSet<u32>, deadline: Instant) -> Option<BTreeMap<u32, BTreeSet<u32>>> {
    let mut holders: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    if inodes.is_empty() {
        return Some(holders);
    }
    for entry in fs::read_dir("/proc").ok()? {
        let Some(pid) = entry.ok()?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if Instant::now() >= deadline {
            return None;
        }
        match sockets_of(pid) {
            Ok(held) => {
                for inode in held.intersection(inodes) {
                    holders.entry(*inode).or_default().insert(pid);
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => return None,
        }
    }
    Some(holders)
}

/// Inode numbers of the sockets that a process holds.
fn sockets_of(pid: u32) -> io::Result<BTreeSet<u32>> {
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(inode).collect())
}

/// Whether an error says that the process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Namespace, socket and pid, when all candidates are of one namespace and held by one and the same process.
fn only_holder(candidates: &[Candidate], holders: &BTreeMap<u32, BTreeSet<u32>>) -> Option<(NetnsInum, u32, u32)> {
    let &(netns, inode) = candidates.first()?;
    let mut pids = holders.get(&inode)?.iter();
    let (Some(&pid), None) = (pids.next(), pids.next()) else { return None };
    let agrees = |&(other, inode): &Candidate| {
        other == netns && holders.get(&inode).is_some_and(|pids| pids.len() == 1 && pids.contains(&pid))
    };
    candidates.iter().all(agrees).then_some((netns, inode, pid))
}

/// What is known of a process, provided that it holds the socket and was there at `time`. The start is read before and
/// after, so that all of it is of one process.
fn describe(pid: u32, netns: NetnsInum, inode: u32, time: KernelTime, paths: &CgroupPaths) -> Option<Owner> {
    let start = StartTime::of(pid)?;
    if !start.was_there_at(time) || !sockets_of(pid).ok()?.contains(&inode) {
        return None;
    }
    let comm = process::comm(pid)?;
    let ProcessCgroups { unified, legacy } = ProcessCgroups::of(pid)?;
    if StartTime::of(pid) != Some(start) {
        return None;
    }
    let cgroup_id = unified.as_deref().and_then(|path| paths.id(path));
    let cgroup = match unified {
        Some(path) if path != "/" => Some(path),
        root => legacy.or(root),
    };
    let container = cgroup.as_deref().and_then(container);
    let source = OwnerSource::SocketLookup;
    Some(Owner { pid, tid: None, comm, netns: Some(netns), cgroup_id, cgroup, container, source })
}
