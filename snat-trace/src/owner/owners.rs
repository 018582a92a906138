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

#[cfg(test)]
mod tests {
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
            OwnerFact { sent_ns, cgroup_id, tgid: self.child.id(), tid: 7, netns: 9, reserved: 0, comm }
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
