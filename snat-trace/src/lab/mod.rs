//! Real races in namespaces of our own, to prove tracing on.
//!
//! Pods, a node that masquerades and an external host are network namespaces without a name, held by this process and
//! its children only, so nothing remains of them after any exit. Pods send with one source port at one instant; the
//! receiver's log and the kernel's counters tell who lost ([`Truth`]), and [`compare()`] holds the tracer's word
//! against it.

mod barrier;
mod cgroup;
mod compare;
mod error;
mod hold;
mod netns;
mod node;
mod pod;
mod queue;
mod receiver;
mod run;
mod stat;
mod tools;
mod topology;
mod truth;
mod wire;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_getaffinity};

pub use self::cgroup::lab_cgroups;
pub use self::compare::{Comparison, Difference, What, compare};
pub use self::error::LabError;
pub use self::pod::pod_main;
pub use self::run::Progress;
pub use self::truth::{CgroupTruth, FlowTruth, PodTruth, RoundTruth, Truth};

use self::cgroup::Cgroups;
use self::error::Doing;
use self::node::{Node, Pod};
use self::receiver::Receiver;
use self::topology::Topology;
use crate::race::event::NetnsInum;

/// How many pods a lab may have.
pub const MAX_PODS: usize = 8;
/// First source port of the test traffic; each round takes the next.
const FIRST_PORT: u16 = 10_000;
/// For how many rounds at least a pod keeps a socket open, as a client does that waits for its answer.
const KEPT_ROUNDS: u32 = 256;

/// What the pods send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scenario {
    /// One datagram per pod and round.
    SnatUdp,
    /// One connection per pod and round.
    SnatTcp,
}

impl Scenario {
    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SnatUdp => "snat-udp",
            Self::SnatTcp => "snat-tcp",
        }
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SnatUdp, Self::SnatTcp].into_iter().find(|scenario| scenario.name() == name)
    }
}

/// How races come about, if at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Packets are held between the choice of a port and its insertion until the round's last has come: one wins, all
    /// others lose, every round.
    Forced,
    /// Pods on different CPUs send at one instant and nothing widens the window.
    Natural,
    /// As natural but for one thing, without which there is no race.
    Control(Control),
}

/// The one thing changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Control {
    /// Every pod has a source port of its own.
    DifferentPorts,
    /// All pods send from one CPU.
    OneCpu,
    /// Each pod sends after the one before has arrived.
    Sequential,
}

/// What to build and run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Setup {
    /// What the pods send.
    pub scenario: Scenario,
    /// From 2 to [`MAX_PODS`].
    pub pods: usize,
    /// How many rounds; at most [`Setup::max_rounds`].
    pub rounds: u32,
    /// How races come about.
    pub mode: Mode,
    /// Whether the node's rule says `fully-random`.
    pub random_fully: bool,
}

impl Setup {
    /// Every round takes a new source port (a port that was translated once keeps its translation), and they are finite.
    #[must_use]
    pub fn max_rounds(&self) -> u32 {
        let ports = u32::from(topology::RETRY_PORTS - FIRST_PORT);
        ports / self.ports_per_round()
    }

    fn ports_per_round(&self) -> u32 {
        match self.mode {
            Mode::Control(Control::DifferentPorts) => u32::try_from(self.pods.max(1)).unwrap_or(u32::MAX),
            _ => 1,
        }
    }

    /// A pod's source port in a round.
    fn port(&self, round: u32, pod: usize) -> u16 {
        let own = self.ports_per_round();
        let offset = round * own + if own > 1 { u32::try_from(pod).unwrap_or(0) } else { 0 };
        FIRST_PORT + u16::try_from(offset).unwrap_or(0)
    }

    /// Whether such a lab can be built.
    ///
    /// # Errors
    ///
    /// [`LabError::Setup`] says what is too few or too many.
    pub fn check(&self) -> Result<(), LabError> {
        if !(2..=MAX_PODS).contains(&self.pods) {
            return Err(LabError::Setup(format!("a lab has from 2 to {MAX_PODS} pods, not {}", self.pods)));
        }
        if !(1..=self.max_rounds()).contains(&self.rounds) {
            return Err(LabError::Setup(format!(
                "a lab of {} pods has from 1 to {} rounds of this kind, not {}",
                self.pods,
                self.max_rounds(),
                self.rounds
            )));
        }
        Ok(())
    }

    /// The CPU of each pod's sender.
    fn cpus(&self, allowed: &CpuSet) -> Vec<Option<usize>> {
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let cpu = |pod: usize| match self.mode {
            Mode::Forced => None,
            Mode::Control(Control::OneCpu) => allowed.first().copied(),
            Mode::Natural | Mode::Control(_) => allowed.get(pod % allowed.len().max(1)).copied(),
        };
        (0..self.pods).map(cpu).collect()
    }
}

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
        let topology = Topology::build(setup)?;
        let receiver = Receiver::start(&topology.external)?;
        let (node, pods) = Node::start(setup, &topology, &setup.cpus(&allowed))?;
        let (cgroups, without_cgroups) = match Cgroups::new(pods.len()) {
            Ok(cgroups) => (Some(cgroups), None),
            Err(reason) => (None, Some(reason)),
        };
        let truths = pods.iter().map(|pod| PodTruth { pid: pod.pid(), tid: 0, cgroup: None }).collect();
        let mut lab = Self { setup: *setup, pods, truths, receiver, node, topology, cgroups, without_cgroups };
        lab.join_cgroups();
        lab.wait_ready()?;
        lab.probe()?;
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

    /// The thread of this process that lives there.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(mode: Mode) -> Setup {
        Setup { scenario: Scenario::SnatUdp, pods: 2, rounds: 10, mode, random_fully: false }
    }

    #[test]
    fn ports_are_new_every_round_and_stay_below_those_of_retries() {
        for mode in [Mode::Forced, Mode::Control(Control::DifferentPorts)] {
            let setup = setup(mode);
            let last = setup.max_rounds() - 1;
            assert!(setup.port(last, setup.pods - 1) < topology::RETRY_PORTS);
            assert!(setup.port(1, 0) > setup.port(0, setup.pods - 1));
            let different = setup.port(5, 0) != setup.port(5, 1);
            assert_eq!(different, mode == Mode::Control(Control::DifferentPorts));
        }
    }

    #[test]
    fn impossible_setups_are_refused_in_a_sentence() {
        let good = setup(Mode::Natural);
        good.check().unwrap();
        for bad in [
            Setup { pods: 1, ..good },
            Setup { pods: MAX_PODS + 1, ..good },
            Setup { rounds: 0, ..good },
            Setup { rounds: good.max_rounds() + 1, ..good },
        ] {
            assert!(matches!(bad.check(), Err(LabError::Setup(_))), "{bad:?}");
        }
    }

    #[test]
    fn senders_are_pinned_as_the_mode_wants() {
        let mut allowed = CpuSet::new();
        allowed.set(3);
        allowed.set(5);
        for (mode, expected) in [
            (Mode::Forced, [None, None]),
            (Mode::Natural, [Some(3), Some(5)]),
            (Mode::Control(Control::OneCpu), [Some(3), Some(3)]),
        ] {
            assert_eq!(setup(mode).cpus(&allowed), expected, "{mode:?}");
        }
    }
}
