//! Owners as events need them, from either level of detail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use snat_trace_common::{FlowFact, OwnerFact, ProcessFact, owner_flags};

use super::behind::{self, Behind, Source};
use super::cgroup::{CgroupPaths, ProcessCgroups, UNIFIED, telling};
use super::container::container;
use super::lookup::{Found, Looks, Query, look_up};
use super::process::{self, StartTime};
use super::program::{self, Program, StartClock};
use super::recorded::{self, Sender, sender};
use super::runtime::{Names, PATIENCE};
use super::{Owner, OwnerSource, Place};
use crate::kernel::Hierarchies;
use crate::probe::Senders;
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;
use crate::race::tuple::{OriginalTuple, Protocol};

/// How long what is behind an address is taken to be as it was.
const FRESH: Duration = Duration::from_secs(1);

/// Through how many translations a flow is followed back to its sender.
const DEEPEST: usize = 3;

/// What owners are named by.
#[derive(Debug, Default)]
pub struct Sources {
    /// What is recorded of senders, by tuple, and of what they run.
    pub senders: Option<Senders>,
    /// Where cgroups are.
    pub cgroups: Hierarchies,
    /// Whether executables and command lines may be read.
    pub commands: bool,
}

/// Names owners, and remembers the paths of cgroups. Calls read `/proc` and may block for a while.
#[derive(Debug)]
pub struct Owners {
    paths: CgroupPaths,
    names: Names,
    /// How long the batch at hand may still wait for names.
    patience: Duration,
    senders: Option<Senders>,
    commands: bool,
    clock: StartClock,
    /// What was looked for last, and when that was.
    behind: (Option<Instant>, BTreeMap<Source, Option<Behind>>),
}

/// A flow whose owner is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// As it was recorded.
    pub flow: FlowFact,
    /// When it clashed or failed.
    pub time: KernelTime,
    /// The network namespace where it did, if that is known.
    pub netns: Option<NetnsInum>,
}

/// A flow that is still without its owner.
#[derive(Clone, Copy, Debug)]
struct Nameless {
    /// Its place in the answer.
    index: usize,
    wanted: Wanted,
    /// The process that must hold its socket, if only one can.
    by: Option<u32>,
    /// Whether it is the recorded one, should the socket be gone.
    otherwise: bool,
}

impl Owners {
    /// Opens what is needed.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let Sources { senders, cgroups, commands } = sources;
        let (paths, names) = (CgroupPaths::new(cgroups), Names::new());
        let (clock, patience) = (StartClock::now(), PATIENCE);
        Self { paths, names, patience, senders, commands, clock, behind: Default::default() }
    }

    /// Keeps what the kernel told of processes.
    pub fn learn(&mut self, processes: Vec<ProcessFact>) {
        if let Some(senders) = &mut self.senders {
            processes.into_iter().for_each(|process| senders.learn(process));
        }
    }

    /// The owner of each flow: as the kernel recorded it, else by its socket, else through
    /// the translations of other namespaces. Nothing is said of a flow whose sender can be one of several.
    ///
    /// The kernel loads its socket diagnostics (`inet_diag`, `tcp_diag`, `udp_diag`) when they are modules; without
    /// them no socket is found.
    #[must_use]
    pub fn name(&mut self, flows: &[Wanted]) -> Vec<Option<Owner>> {
        self.patience = PATIENCE;
        let mut owners = vec![None; flows.len()];
        let mut nameless = Vec::new();
        for (index, &wanted) in flows.iter().enumerate() {
            nameless.extend(self.by_record(Nameless { index, wanted, by: None, otherwise: false }, &mut owners));
        }
        for _ in 0..DEEPEST {
            if nameless.is_empty() {
                break;
            }
            let asked: Vec<(Nameless, Query)> =
                nameless.drain(..).filter_map(|nameless| Some((nameless, query(&nameless.wanted)?))).collect();
            let queries: Vec<Query> = asked.iter().map(|&(_, query)| query).collect();
            for (found, (outer, _)) in look_up(&queries, &self.looks()).into_iter().zip(asked) {
                match found {
                    Found::Owner(owner) if outer.by.is_none_or(|pid| pid == owner.pid) => {
                        put(&mut owners, outer.index, *owner);
                    }
                    Found::Translated(netns, inner) => {
                        let inner = self.behind(outer, netns, inner);
                        nameless.extend(self.by_record(inner, &mut owners));
                    }
                    Found::NoSocket if outer.otherwise && had_it_alone(&outer.wanted.flow.owner) => {
                        let (tid, source) = (None, OwnerSource::SocketConnect);
                        put(&mut owners, outer.index, Owner { tid, source, ..self.describe(&outer.wanted.flow.owner) });
                    }
                    Found::Owner(_) | Found::NoSocket | Found::Nothing => {}
                }
            }
        }
        self.name_owners(&mut owners);
        owners
    }

    fn name_owners(&mut self, owners: &mut [Option<Owner>]) {
        self.names.complete(owners.iter_mut().flatten().filter_map(Owner::place), &mut self.patience);
    }

    /// Where answers to each source go, and which pod's or container's processes are there. For names it waits no longer than
    /// [`name`](Self::name) left over.
    ///
    /// What was found is taken to stay as it was for a second: flows whose senders are not known can come by the thousand.
    #[must_use]
    pub fn where_answers_go(&mut self, sources: &BTreeSet<Source>) -> &BTreeMap<Source, Option<Behind>> {
        let (asked, known) = &self.behind;
        let fresh = asked.is_some_and(|asked| asked.elapsed() < FRESH);
        if !fresh || !sources.iter().all(|source| known.contains_key(source)) {
            let mut found = behind::look_up(sources);
            let namespaces = found.values().filter_map(|behind| behind.netns).collect();
            self.name_behind(&mut found, &behind::cgroups_in(&namespaces));
            let all = sources.iter().map(|source| (*source, found.remove(source))).collect();
            self.behind = (Some(Instant::now()), all);
        }
        &self.behind.1
    }

    /// Names what all processes of a network namespace are in, by the cgroups of those in each.
    fn name_behind(&mut self, found: &mut BTreeMap<Source, Behind>, cgroups: &BTreeMap<NetnsInum, BTreeSet<String>>) {
        let all = cgroups.iter().flat_map(|(&netns, paths)| paths.iter().map(move |path| (netns, path)));
        let mut inside: Vec<_> = all.map(|(netns, path)| (netns, path, container(path), None)).collect();
        // All at once, so that they are asked for at once and waited for once.
        let places = inside.iter_mut().map(|(_, cgroup, container, pod)| Place { cgroup, container, pod });
        self.names.complete(places, &mut self.patience);
        for behind in found.values_mut() {
            let there = || inside.iter().filter(|(netns, ..)| behind.netns == Some(*netns));
            let pod = the_same(there().map(|(.., pod)| pod.as_ref())).cloned();
            let container = the_same(there().map(|(_, _, container, _)| container.as_ref())).cloned();
            (behind.pod, behind.container) = (pod, container);
        }
    }

    /// Names it as it was recorded; gives it back if it is worth looking further.
    fn by_record(&mut self, nameless: Nameless, owners: &mut [Option<Owner>]) -> Option<Nameless> {
        match sender(&nameless.wanted.flow, nameless.wanted.time.nanoseconds()) {
            Sender::Recorded(fact) => {
                put(owners, nameless.index, self.describe(fact));
                None
            }
            Sender::LookUp { by } => Some(Nameless { by, otherwise: false, ..nameless }),
            Sender::LookUpElse(fact) => Some(Nameless { by: Some(fact.process.tgid), otherwise: true, ..nameless }),
            Sender::Unknown => None,
        }
    }

    /// The flow that another namespace made into this one.
    fn behind(&self, outer: Nameless, netns: NetnsInum, inner: OriginalTuple) -> Nameless {
        let Wanted { flow, time, .. } = outer.wanted;
        let inner = inner.to_tuple(Protocol(flow.original.protonum));
        let recorded = self.senders.as_ref().and_then(|senders| senders.of(&inner));
        let wanted = Wanted { flow: recorded::behind(flow, inner, recorded), time, netns: Some(netns) };
        Nameless { wanted, ..outer }
    }

    fn looks(&self) -> Looks<'_> {
        Looks { paths: &self.paths, commands: self.commands, clock: self.clock }
    }

    /// The path of a cgroup, also of one that is gone.
    fn path(&mut self, hierarchy: u32, id: u64) -> Option<String> {
        let removed = |key| program::path(&self.senders.as_ref()?.removed_cgroup(&key)?);
        if id == 0 { None } else { self.paths.path(hierarchy, id, removed) }
    }

    /// The path in a hierarchy of version 1, but for its root: by the id that was recorded, else from `/proc`, if the
    /// process is still there.
    fn legacy_path(&mut self, fact: &OwnerFact) -> Option<String> {
        let recorded = self.paths.legacy().and_then(|hierarchy| self.path(hierarchy, fact.legacy_cgroup_id));
        recorded.or_else(|| legacy_cgroup(fact)).filter(|path| path != "/")
    }

    /// An owner that the kernel recorded, with the path of its cgroup and its container where they can be told.
    fn describe(&mut self, fact: &OwnerFact) -> Owner {
        let cgroup_id = (fact.cgroup_id != 0).then_some(fact.cgroup_id);
        let cgroup = match self.path(UNIFIED, fact.cgroup_id) {
            // Where there is no version 1, that is all.
            Some(path) if path != "/" && self.paths.legacy().is_none() => Some(path),
            unified => telling(unified, || self.legacy_path(fact)),
        };
        let noted = self.senders.as_mut().and_then(|senders| senders.process(&fact.process));
        let container = cgroup.as_deref().and_then(container);
        Owner {
            pid: fact.process.tgid,
            tid: (fact.flags & owner_flags::SEVERAL_THREADS == 0).then_some(fact.tid),
            comm: process::comm_from_record(&fact.comm),
            netns: (fact.netns != 0).then_some(NetnsInum(fact.netns)),
            cgroup_id,
            cgroup,
            container,
            pod: None,
            program: Program::recorded(fact, noted, self.clock),
            source: OwnerSource::Socket,
        }
    }
}

/// Whether a process that connected a socket, which is closed now, can have given it to no child that is still there.
fn had_it_alone(fact: &OwnerFact) -> bool {
    StartTime::from_record(fact.process.start_ns).is_some_and(|start| {
        StartTime::of_running(fact.process.tgid) != Some(start)
            || process::has_had_children(fact.process.tgid) == Some(false)
    })
}

/// What to ask for a flow; `None` for one of neither IPv4 nor IPv6.
fn query(&Wanted { flow, time, netns }: &Wanted) -> Option<Query> {
    let (protocol, original) = (Protocol(flow.original.protonum), OriginalTuple::new(&flow.original)?);
    Some(Query { protocol, original, came_to: netns, time })
}

/// What all have, if there are any.
fn the_same<'a, T: Eq>(mut all: impl Iterator<Item = Option<&'a T>>) -> Option<&'a T> {
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

fn put(owners: &mut [Option<Owner>], index: usize, owner: Owner) {
    if let Some(place) = owners.get_mut(index) {
        *place = Some(owner);
    }
}

/// The path in a hierarchy of version 1, provided that the pid is still that of the process which sent.
fn legacy_cgroup(fact: &OwnerFact) -> Option<String> {
    if !process::proc_has_root_pids() {
        return None;
    }
    let sent = KernelTime::from_record(fact.sent_ns)?;
    let recorded = StartTime::from_record(fact.process.start_ns);
    let same = |start: &StartTime| recorded.map_or_else(|| start.was_there_at(sent), |recorded| *start == recorded);
    let start = StartTime::of(fact.process.tgid).filter(same)?;
    let cgroups = ProcessCgroups::of(fact.process.tgid)?;
    (StartTime::of(fact.process.tgid) == Some(start)).then_some(cgroups.legacy).flatten()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use snat_trace_common::ProcessKey;

    use super::*;
    use crate::owner::Container;
    use crate::owner::groups::{Group, ID};
    use crate::skipped::skipped;

    /// A cgroup `/snat-trace-test-PID-NAME/docker/ID` with a process in it.
    struct Contained {
        child: Child,
        group: Group,
    }

    impl Contained {
        fn new(hierarchy: &str, name: &str) -> Option<Self> {
            let group = Group::new(hierarchy, &format!("{name}/docker/{ID}"))?;
            let child = cat();
            group.put(child.id());
            Some(Self { child, group })
        }

        fn fact(&self, cgroup_id: u64, sent_ns: u64) -> OwnerFact {
            fact(&self.child, cgroup_id, sent_ns)
        }
    }

    impl Drop for Contained {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// A process that waits for its standard input to end.
    fn cat() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// What a process runs whose start is not known.
    fn running(tgid: u32) -> ProcessKey {
        ProcessKey { tgid, ..ProcessKey::default() }
    }

    fn fact(process: &Child, cgroup_id: u64, sent_ns: u64) -> OwnerFact {
        let mut comm = [0; snat_trace_common::COMM_LEN];
        comm[..4].copy_from_slice(b"curl");
        OwnerFact { sent_ns, cgroup_id, process: running(process.id()), tid: 7, netns: 9, comm, ..OwnerFact::default() }
    }

    fn owners() -> Owners {
        let cgroups = Hierarchies::gather(Path::new("/"));
        Owners::new(Sources { cgroups, ..Sources::default() })
    }

    fn now() -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let part = |value: i64| u64::try_from(value).unwrap();
        part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
    }

    fn docker() -> Option<Container> {
        Some(Container::of("docker", ID))
    }

    #[test]
    fn a_fact_gets_its_path_and_container() {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(mount) = mounts.into_iter().find(|mount| Path::new(mount).join("cgroup.controllers").exists()) else {
            skipped("cgroup2 is not mounted");
            return;
        };
        let Some(contained) = Contained::new(mount, "unified") else { return };
        let id = contained.group.id();
        let owner = owners().describe(&contained.fact(id, now()));
        let expected = Owner {
            pid: contained.child.id(),
            tid: Some(7),
            comm: "curl".to_owned(),
            netns: Some(NetnsInum(9)),
            cgroup_id: Some(id),
            cgroup: Some(contained.group.path.clone()),
            container: docker(),
            pod: None,
            program: Program { uid: Some(0), ..Program::default() },
            source: OwnerSource::Socket,
        };
        assert_eq!(owner, expected);
    }

    #[test]
    fn a_container_of_version_1_is_found_while_its_process_is_there() {
        let root = Path::new("/sys/fs/cgroup/pids");
        if !root.join("cgroup.procs").exists() {
            skipped("there is no version 1 hierarchy for pids");
            return;
        }
        let Some(contained) = Contained::new("/sys/fs/cgroup/pids", "legacy") else { return };
        let mut owners = owners();
        let owner = owners.describe(&contained.fact(1, now()));
        assert_eq!((owner.cgroup_id, owner.cgroup), (Some(1), Some(contained.group.path.clone())));
        assert_eq!(owner.container, docker());
        // Sent before this process was there: its pid was another's then.
        let owner = owners.describe(&contained.fact(1, 1));
        assert_ne!(owner.cgroup, Some(contained.group.path.clone()));
        assert_eq!(owner.container, None);
    }

    #[test]
    fn a_container_of_version_1_is_found_where_its_runtime_is_a_unit_of_the_unified_hierarchy() {
        let Some([unit, docker_s]) = Group::hybrid("owners") else { return };
        let mut child = cat();
        docker_s.put(child.id());
        let recorded = OwnerFact { legacy_cgroup_id: docker_s.id(), ..fact(&child, unit.id(), now()) };
        let by_process = OwnerFact { legacy_cgroup_id: 0, ..recorded };
        let in_none = OwnerFact { legacy_cgroup_id: 0, sent_ns: 1, ..recorded };
        let mut owners = owners();
        let found = [recorded, by_process, in_none].map(|fact| owners.describe(&fact));
        child.kill().unwrap();
        child.wait().unwrap();
        for owner in &found[..2] {
            assert_eq!((owner.cgroup.as_ref(), owner.container.as_ref()), (Some(&docker_s.path), docker().as_ref()));
        }
        assert_eq!(found[2].cgroup.as_ref(), Some(&unit.path), "the unit, where nothing says more");
    }

    #[test]
    fn a_batch_waits_once_for_owners_and_for_what_is_behind_ten_namespaces() {
        let mut owners = Owners { names: Names::slow(Duration::from_millis(200)), ..owners() };
        let path = |number: usize| format!("/docker/{number:064x}");
        let place = |number: usize| (NetnsInum(1), std::net::IpAddr::from([192, 0, 2, u8::try_from(number).unwrap()]));
        let behind = |number| Behind { netns: Some(NetnsInum(u32::try_from(number).unwrap())), ..Behind::default() };
        let mut found: BTreeMap<Source, Behind> = (10..20).map(|number| (place(number), behind(number))).collect();
        let cgroups = (10..20).map(|number| (behind(number).netns.unwrap(), BTreeSet::from([path(number)]))).collect();
        let start = Instant::now();
        let _nobody = owners.name(&[]);
        let fact = OwnerFact { process: running(u32::MAX), ..OwnerFact::default() };
        let sender = Owner { cgroup: Some(path(1)), container: container(&path(1)), ..owners.describe(&fact) };
        owners.name_owners(&mut [Some(sender)]);
        owners.name_behind(&mut found, &cgroups);
        // The first is answered in time; eleven one after the other would take more than two seconds.
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(200) && waited < Duration::from_secs(1), "{waited:?}");
        assert_eq!(owners.patience, Duration::ZERO, "what was behind had what the owner left over, and no more");
        for number in 10..20 {
            assert_eq!(found[&place(number)].container, container(&path(number)), "known without its name");
        }
    }

    #[test]
    fn what_was_not_recorded_is_absent() {
        let owner = owners().describe(&OwnerFact { process: running(u32::MAX), ..OwnerFact::default() });
        assert_eq!((owner.netns, owner.cgroup_id, owner.cgroup, owner.container), (None, None, None, None));
    }
}
