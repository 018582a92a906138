//! Owners as events need them, from either level of detail.

use snat_trace_common::{FlowFact, OwnerFact, flow_flags};

use super::cgroup::{CgroupPaths, ProcessCgroups};
use super::container::container;
use super::lookup::{Query, look_up};
use super::process::{self, StartTime};
use super::{Owner, OwnerSource};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;
use crate::race::tuple::Protocol;

/// How long before an entry asks for its port its packet can have been sent: the way from the sender's socket to the node's
/// NAT, without a queue that holds packets back longer.
const ON_THE_WAY: u64 = 250_000_000;
/// The same for TCP, whose SYN is sent again for up to 127 s (net.ipv4.tcp_syn_retries) by a socket that keeps its port.
const ON_THE_WAY_TCP: u64 = 130_000_000_000;

/// The sender the kernel recorded for a flow, if it can be no other: it sent shortly before the entry asked for its port
/// (`clash_ns` where that is not known) or since, and the tuple did not change hands about then or later.
///
/// A tuple changes hands where network namespaces have the same addresses. A sender is missed by the hooks where it
/// sends by a way they do not cover; whoever sent the same tuple long before must not be taken for it.
#[must_use]
pub fn recorded_sender(flow: &FlowFact, clash_ns: u64) -> Option<&OwnerFact> {
    let OwnerFact { sent_ns, contested_ns, .. } = flow.owner;
    let asked = if flow.flags & flow_flags::ALLOCATION != 0 { flow.allocated_ns } else { clash_ns };
    let tcp = Protocol(flow.original.protonum) == Protocol::TCP;
    let earliest = asked.saturating_sub(if tcp { ON_THE_WAY_TCP } else { ON_THE_WAY });
    let known = flow.flags & flow_flags::OWNER != 0 && sent_ns >= earliest && contested_ns < earliest.max(1);
    known.then_some(&flow.owner)
}

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

#[cfg(test)]
mod tests {
    use crate::race::classify::tests::clash;

    #[test]
    fn a_recorded_sender_is_named_only_when_it_can_be_no_other() {
        const ASKED: u64 = 500_000_000_000;
        const MS: u64 = 1_000_000;
        // Protocol, sent before the ask (negative: after), changed hands before the ask (None: never), named.
        let cases: [(Protocol, i64, Option<i64>, bool); 13] = [
            (Protocol::UDP, 0, None, true),
            (Protocol::UDP, 249, None, true),
            (Protocol::UDP, 251, None, false),
            (Protocol::UDP, -10_000, None, true),
            (Protocol::UDP, 1, Some(251), true),
            (Protocol::UDP, 1, Some(249), false),
            (Protocol::UDP, 1, Some(1), false),
            (Protocol::UDP, -1, Some(-1), false),
            (Protocol::TCP, 7_000, None, true),
            (Protocol::TCP, 129_000, None, true),
            (Protocol::TCP, 131_000, None, false),
            (Protocol::TCP, 1, Some(100_000), false),
            (Protocol::TCP, 1, Some(131_000), true),
        ];
        for (protocol, sent, contested, named) in cases {
            let before = |ms: i64| ASKED.saturating_add_signed(-ms * MS.cast_signed());
            let mut flow = clash().loser;
            flow.original.protonum = protocol.0;
            flow.allocated_ns = ASKED;
            flow.owner.sent_ns = before(sent);
            flow.owner.contested_ns = contested.map_or(0, before);
            let case = (protocol, sent, contested);
            assert_eq!(recorded_sender(&flow, u64::MAX).is_some(), named, "{case:?}");

            flow.flags &= !flow_flags::ALLOCATION;
            assert_eq!(recorded_sender(&flow, ASKED).is_some(), named, "by the clash: {case:?}");
            flow.flags &= !flow_flags::OWNER;
            assert_eq!(recorded_sender(&flow, ASKED), None);
        }
    }

    use std::fs;
    use std::os::linux::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::owner::Container;

    const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";

    /// A cgroup `/snat-trace-test-PID-NAME/docker/ID` with a process in it; both are removed with this value.
    struct Contained {
        outermost: PathBuf,
        innermost: PathBuf,
        path: String,
        child: Child,
    }

    impl Contained {
        fn new(hierarchy: &str, name: &str) -> Option<Self> {
            let top = format!("snat-trace-test-{}-{name}", std::process::id());
            let outermost = Path::new(hierarchy).join(&top);
            let path = format!("/{top}/docker/{ID}");
            let innermost = outermost.join("docker").join(ID);
            if let Err(error) = fs::create_dir_all(&innermost) {
                eprintln!("skipped: no cgroup can be made in {hierarchy}: {error}");
                return None;
            }
            let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            fs::write(innermost.join("cgroup.procs"), child.id().to_string()).unwrap();
            Some(Self { outermost, innermost, path, child })
        }

        fn fact(&self, cgroup_id: u64, sent_ns: u64) -> OwnerFact {
            let mut comm = [0; snat_trace_common::COMM_LEN];
            comm[..4].copy_from_slice(b"curl");
            OwnerFact {
                sent_ns,
                contested_ns: 0,
                cgroup_id,
                tgid: self.child.id(),
                tid: 7,
                netns: 9,
                reserved: 0,
                comm,
            }
        }
    }

    impl Drop for Contained {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            for directory in [&self.innermost, &self.outermost.join("docker"), &self.outermost] {
                let _ = fs::remove_dir(directory);
            }
        }
    }

    fn now() -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let part = |value: i64| u64::try_from(value).unwrap();
        part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
    }

    fn docker() -> Option<Container> {
        Some(Container { runtime: "docker", id: ID.to_owned() })
    }

    #[test]
    fn a_fact_gets_its_path_and_container() {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(mount) = mounts.into_iter().find(|mount| Path::new(mount).join("cgroup.controllers").exists()) else {
            eprintln!("skipped: cgroup2 is not mounted");
            return;
        };
        let Some(contained) = Contained::new(mount, "unified") else { return };
        let id = fs::metadata(&contained.innermost).unwrap().st_ino();
        let owner = Owners::new().from_fact(&contained.fact(id, now()));
        let expected = Owner {
            pid: contained.child.id(),
            tid: Some(7),
            comm: "curl".to_owned(),
            netns: Some(NetnsInum(9)),
            cgroup_id: Some(id),
            cgroup: Some(contained.path.clone()),
            container: docker(),
            source: OwnerSource::Socket,
        };
        assert_eq!(owner, expected);
    }

    #[test]
    fn a_container_of_version_1_is_found_while_its_process_is_there() {
        let root = Path::new("/sys/fs/cgroup/pids");
        if !root.join("cgroup.procs").exists() {
            eprintln!("skipped: there is no version 1 hierarchy for pids");
            return;
        }
        let Some(contained) = Contained::new("/sys/fs/cgroup/pids", "legacy") else { return };
        let mut owners = Owners::new();
        let owner = owners.from_fact(&contained.fact(1, now()));
        assert_eq!((owner.cgroup_id, owner.cgroup), (Some(1), Some(contained.path.clone())));
        assert_eq!(owner.container, docker());
        // Sent before this process was there: its pid was another's then.
        let owner = owners.from_fact(&contained.fact(1, 1));
        assert_ne!(owner.cgroup, Some(contained.path.clone()));
        assert_eq!(owner.container, None);
    }

    #[test]
    fn what_was_not_recorded_is_absent() {
        let owner = Owners::new().from_fact(&OwnerFact { tgid: u32::MAX, ..OwnerFact::default() });
        assert_eq!((owner.netns, owner.cgroup_id, owner.cgroup, owner.container), (None, None, None, None));
    }
}
