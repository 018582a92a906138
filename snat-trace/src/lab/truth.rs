//! What really happened in a run, known from the senders, the receiver and the kernel's counters.

use std::net::SocketAddr;

use super::reuse::Reuse;
use crate::kernel::Detail;
use crate::race::event::{Class, Verdict};
use crate::race::failure::Reason;
use crate::race::tuple::{OriginalTuple, Protocol};

/// A cgroup the lab made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupTruth {
    /// Below the unified hierarchy's root, beginning with `/`.
    pub path: String,
    /// Its id.
    pub id: u64,
}

/// One pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodTruth {
    /// Its process.
    pub pid: u32,
    /// The thread it sends from.
    pub tid: u32,
    /// Its cgroup; `None` when the lab could make none.
    pub cgroup: Option<CgroupTruth>,
}

/// Which senders the tracer must name. Whom it names may not be wrong in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Naming {
    /// All of them.
    Always,
    /// All of them where senders are recorded: they are gone before anybody can look for them.
    IfRecorded,
    /// None; any may be absent.
    Perhaps,
    /// None, and whoever is named is wrong: they are not on this machine, or no process.
    Nobody,
}

impl Naming {
    /// Whether each must be named at a level of detail.
    #[must_use]
    pub fn needed(self, detail: Detail) -> bool {
        self == Self::Always || self == Self::IfRecorded && detail == Detail::Full
    }
}

/// One pod's flow in one round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowTruth {
    /// As it came to the node.
    pub original: OriginalTuple,
    /// The conntrack zone of its entry.
    pub zone: u16,
    /// Its source as the node translated it, told by the receiver; `None` when it never arrived.
    pub arrived_as: Option<SocketAddr>,
    /// The port it arrived at: not always the one it was sent to.
    pub arrived_at: Option<u16>,
    /// Whether its first packet arrived; for TCP, whether it connected without a retransmission.
    pub first_try: bool,
    /// The process that sent it, where that is not the pod's own.
    pub sender: Option<u32>,
}

/// One round: every pod's flow, by the pod's number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoundTruth {
    /// Counted from 0.
    pub number: u32,
    /// As many as there are pods.
    pub flows: Vec<FlowTruth>,
    /// How often the kernel sent a packet on that had lost: `clash_resolve` of the node's namespace.
    pub resolved: u64,
}

/// Why packets of a run lose, if they do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Another flow's entry is in the way, and each is a race.
    Clash {
        /// The class of every race.
        class: Class,
        /// How many ports the rule leaves to choose from, where the class is about that.
        in_range: Option<u32>,
    },
    /// No entry is in the way, and none is a race.
    Failure(Reason),
}

impl Cause {
    /// The class of every race, where there are races.
    #[must_use]
    pub fn class(self) -> Option<Class> {
        match self {
            Self::Clash { class, .. } => Some(class),
            Self::Failure(_) => None,
        }
    }

    /// How many ports the rule leaves to choose from, where losing is about that.
    pub(super) fn in_range(self) -> Option<u32> {
        match self {
            Self::Clash { in_range, .. } => in_range,
            Self::Failure(_) => None,
        }
    }

    /// Whether it takes a moment that may never come.
    pub(super) fn is_rare(self) -> bool {
        matches!(self, Self::Failure(Reason::Dying | Reason::StaleExtension))
    }

    /// What is counted of packets that lose, each once. Of an entry that outlived its extensions it is `drop` where that is
    /// seen when it is in the table (net/netfilter/nf_conntrack_core.c, `__nf_conntrack_confirm`).
    pub(super) fn counted(self, insert_failed: u64, drop: u64) -> u64 {
        match self {
            Self::Failure(Reason::TableFull) => drop,
            Self::Failure(Reason::Dying | Reason::StaleExtension) => insert_failed + drop,
            _ => insert_failed,
        }
    }

    /// Whether packets that lose are counted as `drop` alone: no entry was to be had for them
    /// (net/netfilter/nf_conntrack_core.c, `nf_conntrack_in`). Those of all other causes are `insert_failed` at least.
    pub(super) fn drops_only(self) -> bool {
        self == Self::Failure(Reason::TableFull)
    }
}

/// One whole run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Truth {
    /// Of every flow.
    pub protocol: Protocol,
    /// Of every race.
    pub cause: Cause,
    /// By number.
    pub pods: Vec<PodTruth>,
    /// Which senders must be named.
    pub naming: Naming,
    /// In order.
    pub rounds: Vec<RoundTruth>,
    /// What the node's namespace counted as `insert_failed` meanwhile.
    pub insert_failed: u64,
    /// The same of `drop`.
    pub drop: u64,
    /// The same of `early_drop`, where entries are to be evicted.
    pub evicted: Option<u64>,
    /// Entries that could not be made through ctnetlink because another's answers were in the way.
    pub refused: Vec<OriginalTuple>,
    /// Where entries were to lie where others had lain, if it is known how many there was room for.
    pub reuse: Option<Reuse>,
}

/// A race that must have been seen.
#[derive(Clone, Debug)]
pub(super) struct Expected<'a> {
    pub(super) round: &'a RoundTruth,
    /// Who lost, and its flow; `None` where the packet was sent on all the same, so that nobody but the kernel knows.
    pub(super) loser: Option<Sent<'a>>,
    pub(super) winner: Winner<'a>,
    pub(super) verdict: Verdict,
}

/// A pod's number and its flow.
pub(super) type Sent<'a> = (usize, &'a FlowTruth);

/// Whose entry was there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Winner<'a> {
    /// This one's.
    Is(Sent<'a>),
    /// That of the flow that arrived with the contested source, in whatever round.
    Holder,
    /// That of the same flow: both packets are of one socket.
    SameFlow,
    /// That of the round's other flow.
    Other,
    /// No flow of the round arrived with the port (ports chosen at random).
    Unknown,
}

impl Truth {
    /// First packets that did not arrive.
    #[must_use]
    pub fn packets_lost(&self) -> usize {
        self.rounds.iter().flat_map(|round| &round.flows).filter(|flow| !flow.first_try).count()
    }

    /// Packets that lost and were sent on all the same.
    #[must_use]
    pub fn resolved(&self) -> u64 {
        self.rounds.iter().map(|round| round.resolved).sum()
    }

    /// What the kernel counted of packets that lost.
    #[must_use]
    pub fn counted_lost(&self) -> u64 {
        self.cause.counted(self.insert_failed, self.drop)
    }

    /// Drops that no race explains: only failures tell of them, where they are traced.
    #[must_use]
    pub fn untold_drops(&self, failures: bool) -> u64 {
        if failures || !self.cause.drops_only() { 0 } else { self.drop }
    }

    /// One race for each packet that lost: those that did not arrive by round and pod, then those that were sent on.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected<'_>> {
        let rounds: &[RoundTruth] = if self.cause.class().is_some() { &self.rounds } else { &[] };
        rounds.iter().flat_map(move |round| {
            let lost = round.flows.iter().enumerate().filter(|(_, flow)| !flow.first_try).map(move |loser| {
                let winner = self.winner(round, Some(loser));
                Expected { round, loser: Some(loser), winner, verdict: Verdict::Dropped }
            });
            let resolved = (0..round.resolved).map(move |_| {
                let loser = if self.cause.class() == Some(Class::CrossedFlow) { round.moved() } else { None };
                let verdict = if loser.is_some() { Verdict::ResolvedReplyOnly } else { round.resolution() };
                Expected { round, loser, winner: self.winner(round, loser), verdict }
            });
            lost.chain(resolved)
        })
    }

    fn winner<'a>(&self, round: &'a RoundTruth, loser: Option<Sent<'a>>) -> Winner<'a> {
        match self.cause.class() {
            Some(Class::PortExhaustion | Class::FixedPort) => Winner::Holder,
            Some(Class::DuplicateFlow) => Winner::SameFlow,
            Some(Class::CrossedFlow) => Winner::Other,
            Some(Class::SnatPortCollision | Class::Unclassified) | None => {
                let port = loser.map(|(_, flow)| flow.original.ends().source.port());
                let holds = |flow: &FlowTruth| flow.first_try && flow.arrived_as.map(|arrived| arrived.port()) == port;
                let winner = round.flows.iter().enumerate().find(|(_, flow)| port.is_some() && holds(flow));
                winner.map_or(Winner::Unknown, Winner::Is)
            }
        }
    }

    /// Who sent a flow of a pod; `None` when nobody here did.
    pub(super) fn sender(&self, (pod, flow): Sent<'_>) -> Option<PodTruth> {
        let pod = self.pods.get(pod).filter(|_| self.naming != Naming::Nobody)?;
        Some(match flow.sender {
            Some(pid) => PodTruth { pid, tid: pid, cgroup: pod.cgroup.clone() },
            None => pod.clone(),
        })
    }

    /// The flow that arrived as from `source`, if one did.
    pub(super) fn holder(&self, source: SocketAddr) -> Option<Sent<'_>> {
        let mut sent = self.rounds.iter().flat_map(|round| round.flows.iter().enumerate());
        sent.find(|(_, flow)| flow.first_try && flow.arrived_as == Some(source))
    }
}

impl RoundTruth {
    /// The flow whose packet arrived from another port, though the node translates nothing. A kernel that finds the answer
    /// of such a flow taken gives it another; what clashes then is its original tuple alone.
    fn moved(&self) -> Option<Sent<'_>> {
        let moved = |flow: &FlowTruth| flow.arrived_as.is_some_and(|arrived| arrived != flow.original.ends().source);
        self.flows.iter().enumerate().find(|(_, flow)| moved(flow))
    }

    /// How a packet of this round was sent on. One that is merged into the winner's connection goes where that goes; with
    /// an entry of its own, in the reply direction only, it goes where it was sent.
    fn resolution(&self) -> Verdict {
        let mut places = self.flows.iter().map(|flow| (flow.original, flow.arrived_at));
        let first = places.next();
        let apart = places
            .any(|place| first.is_some_and(|(original, arrived_at)| place.0 == original && place.1 != arrived_at));
        if apart { Verdict::ResolvedReplyOnly } else { Verdict::Resolved }
    }
}
