//! Real races in namespaces of our own, to prove tracing on.
//!
//! Pods, a node that masquerades and an external host are network namespaces without a name, held by this process and
//! its children only, so nothing remains of them after any exit. Pods send with one source port at one instant; the
//! receiver's log and the kernel's counters tell who lost ([`Truth`]), and [`compare()`] holds the tracer's word
//! against it.

mod addresses;
mod barrier;
mod cgroup;
mod classes;
mod compare;
mod error;
mod failed;
mod helper;
mod hold;
mod judge;
mod links;
mod lives;
mod log;
mod modules;
mod netns;
mod node;
mod once;
mod pod;
mod queue;
mod receiver;
mod resident;
mod reuse;
mod ring;
mod rules;
mod run;
mod scenario;
mod senders;
mod setup;
mod stat;
mod storm;
mod table;
mod tools;
mod topology;
mod transport;
mod truth;
mod tunnel;
mod twin;
mod wire;
mod wiring;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, sched_getaffinity};

pub use self::addresses::Family;
pub use self::cgroup::lab_cgroups;
pub use self::compare::{Comparison, Difference, What, compare};
pub use self::error::LabError;
pub use self::failed::FailuresTold;
pub use self::links::Links;
pub use self::lives::{Life, compare_lives, run_lives};
pub use self::pod::pod_main;
pub use self::reuse::Reuse;
pub use self::ring::Ring;
pub use self::run::Progress;
pub use self::scenario::Scenario;
pub use self::senders::Senders;
pub use self::setup::{Control, DoubleNat, MAX_PODS, Mode, RuleTool, Setup, Translation, Zones};
pub use self::truth::{Cause, CgroupTruth, FlowTruth, Naming, PodTruth, RoundTruth, Truth};

pub(crate) use self::tools::find_in;

use self::cgroup::Cgroups;
use self::error::Doing;
use self::node::{Node, Pod};
use self::receiver::Receiver;
use self::table::Table;
use self::topology::Topology;
use crate::race::event::NetnsInum;

/// For how many rounds at least a pod keeps a socket open, as a client does that waits for its answer.
const KEPT_ROUNDS: u32 = 256;

/// A built lab. Dropped, it leaves nothing behind; killed, only empty cgroups that the next lab removes.
#[derive(Debug)]
pub struct Lab {
    setup: Setup,
    // Dropped in this order: pods must be gone before their cgroups can go.
    pods: Vec<Pod>,
    truths: Vec<PodTruth>,
    receiver: Receiver,
    node: Node,
    topology: Topology,
    /// The node's, where something is done to it.
    table: Option<Table>,
    cgroups: Option<Cgroups>,
    without_cgroups: Option<String>,
}

impl Lab {
    /// Builds everything up to pods that are ready and a way that is open; no test traffic yet.
    ///
    /// # Errors
    /// One sentence each: missing privilege, `ip`, `nft` or nft queue; a system call or command that failed.
    pub fn build(setup: &Setup) -> Result<Self, LabError> {
        setup.check()?;
        check_capabilities()?;
        raise_file_limit();
        let allowed = sched_getaffinity(None).doing("read the CPUs it may use")?;
        setup.check_poller()?;
        setup.check_modules()?;
        let topology = Topology::build(setup)?;
        // Known before anything is started.
        let filling =
            setup.scenario.filling().map(|filling| Ok((filling, filling.entries(&topology.node)?))).transpose()?;
        let table = setup.scenario.changes_table().then(|| Table::of(&topology.node)).transpose()?;
        let receiver = Receiver::start(setup, &topology.external)?;
        let (node, pods) = Node::start(setup, &topology, &setup.cpus(&allowed))?;
        let (cgroups, without_cgroups) = match Cgroups::new(pods.len()) {
            Ok(cgroups) => (Some(cgroups), None),
            Err(reason) => (None, Some(reason)),
        };
        let truths = pods.iter().map(|pod| PodTruth { pid: pod.pid(), tid: 0, cgroup: None }).collect();
        let mut lab = Self { setup: *setup, pods, truths, receiver, node, topology, table, cgroups, without_cgroups };
        lab.join_cgroups();
        lab.wait_ready()?;
        lab.probe()?;
        if setup.senders == Senders::Tunnel {
            let no_vxlan = |error: LabError| LabError::NoTunnel { reason: error.to_string() };
            tunnel::build(&lab).map_err(no_vxlan)?;
        }
        if let (Some(table), Some((filling, entries))) = (&mut lab.table, filling) {
            table.fill(filling, entries)?;
        }
        Ok(lab)
    }

    /// The node's network namespace, where entries are made and lost.
    #[must_use]
    pub fn node_netns(&self) -> BorrowedFd<'_> {
        self.topology.node.as_fd()
    }

    /// Its inode number.
    #[must_use]
    pub fn node_inum(&self) -> NetnsInum {
        self.topology.node.inum()
    }

    /// The external host's network namespace.
    #[must_use]
    pub fn external_netns(&self) -> BorrowedFd<'_> {
        self.topology.external.as_fd()
    }

    /// The network namespace of a pod that has one of its own.
    #[must_use]
    pub fn pod_netns(&self, pod: usize) -> Option<BorrowedFd<'_>> {
        self.topology.pods.get(pod).map(AsFd::as_fd)
    }

    /// The thread of this process that lives in the node's.
    #[must_use]
    pub fn node_tid(&self) -> u32 {
        self.node.tid()
    }

    /// The pods, by number.
    #[must_use]
    pub fn pods(&self) -> &[PodTruth] {
        &self.truths
    }

    /// Why the pods have no cgroups of their own, in a clause; `None` when they have.
    #[must_use]
    pub fn without_cgroups(&self) -> Option<&str> {
        self.without_cgroups.as_deref()
    }

    /// Moves the pods into their cgroups: all of them, or the truth knows none. They wait for orders and have sent
    /// nothing, so every test socket will belong there.
    fn join_cgroups(&mut self) {
        let Some(cgroups) = &self.cgroups else { return };
        let join = |(number, pod): (usize, &PodTruth)| cgroups.join(number, pod.pid);
        match self.truths.iter().enumerate().map(join).collect::<Result<Vec<_>, _>>() {
            Ok(joined) => {
                for (pod, cgroup) in self.truths.iter_mut().zip(joined) {
                    pod.cgroup = Some(cgroup);
                }
            }
            Err(reason) => self.without_cgroups = Some(reason),
        }
    }
}

/// What the lab's own work needs; cgroups are asked for where they are made.
fn check_capabilities() -> Result<(), LabError> {
    let have = capabilities(None).doing("read its capabilities")?.effective;
    let missing: Vec<&str> = [(CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"), (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")]
        .into_iter()
        .filter(|(capability, _)| !have.contains(*capability))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(LabError::NotPermitted { missing: missing.join(" and ") }) }
}

/// A pod holds a socket per kept round and the receiver one per pod and round: more than many systems' soft limit.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it the default may still do; if not, opening a socket fails and says so.
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
