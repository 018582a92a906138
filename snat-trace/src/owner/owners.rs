//! Owners as events need them, from either level of detail.

use snat_trace_common::OwnerFact;

use super::cgroup::{CgroupPaths, ProcessCgroups};
use super::container::container;
use super::lookup::{Query, look_up};
use super::process::{self, StartTime};
use super::{Owner, OwnerSource};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// Names owners, and remembers the paths of cgroups. Calls read `/proc` and may block for a while.
#[derive(Debug)]
pub struct Owners {
    paths: CgroupPaths,
}

impl Owners {
    /// Finds out where cgroups are mounted.
    #[must_use]
    pub fn new() -> Self {
        Self { paths: CgroupPaths::new() }
    }

    /// An owner that the kernel recorded, with the path of its cgroup and its container where they can be told.
    ///
    /// A container that is in hierarchies of version 1 only has the root's id in the unified one; its path comes from
    /// `/proc` then, if the process is still there.
    pub fn from_fact(&mut self, fact: &OwnerFact) -> Owner {
        let cgroup_id = (fact.cgroup_id != 0).then_some(fact.cgroup_id);
        let cgroup = match cgroup_id.and_then(|id| self.paths.path(id)) {
            Some(path) if path == "/" => legacy_cgroup(fact).or(Some(path)),
            None if !self.paths.is_mounted() => legacy_cgroup(fact),
            path => path,
        };
        let container = cgroup.as_deref().and_then(container);
        Owner {
            pid: fact.tgid,
            tid: Some(fact.tid),
            comm: process::comm_from_record(&fact.comm),
            netns: (fact.netns != 0).then_some(NetnsInum(fact.netns)),
            cgroup_id,
            cgroup,
            container,
            source: OwnerSource::Socket,
        }
    }

    /// Looks for the owner of each flow among the sockets there are now, in one pass, in the order of the queries.
    /// Nothing is said of a flow whose socket has gone, or could be another's.
    ///
    /// The kernel loads its socket diagnostics (`inet_diag`, `tcp_diag`, `udp_diag`) when they are modules; without
    /// them nothing is found.
    #[must_use]
    pub fn look_up(&self, queries: &[Query]) -> Vec<Option<Owner>> {
        look_up(queries, &self.paths)
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self::new()
    }
}

/// The path in a hierarchy of version 1, provided that the pid is still that of the process which sent.
fn legacy_cgroup(fact: &OwnerFact) -> Option<String> {
    if !process::proc_has_root_pids() {
        return None;
    }
    let sent = KernelTime::from_record(fact.sent_ns)?;
    let start = StartTime::of(fact.tgid).filter(|start| start.was_there_at(sent))?;
    let cgroups = ProcessCgroups::of(fact.tgid)?;
    (StartTime::of(fact.tgid) == Some(start)).then_some(cgroups.legacy).flatten()
}
