//! What really happened in a run, known from the senders, the receiver and the kernel's counters.

use std::net::SocketAddr;

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

/// One pod's flow in one round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowTruth {
    /// As it came to the node.
    pub original: OriginalTuple,
    /// The conntrack zone of its entry.
    pub zone: u16,
    /// Its source as the node translated it, told by the receiver; `None` when it never arrived.
    pub arrived_as: Option<SocketAddr>,
    /// Whether its first packet arrived; for TCP, whether it connected without a retransmission.
    pub first_try: bool,
}

/// One round: every pod's flow, by the pod's number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoundTruth {
    /// Counted from 0.
    pub number: u32,
    /// As many as there are pods.
    pub flows: Vec<FlowTruth>,
}

/// One whole run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Truth {
    /// Of every flow.
    pub protocol: Protocol,
    /// By number.
    pub pods: Vec<PodTruth>,
    /// Whether the senders must be named. Else they may also be absent; in no case may they be wrong.
    pub named: bool,
    /// In order.
    pub rounds: Vec<RoundTruth>,
    /// What the node's namespace counted as `insert_failed` meanwhile.
    pub insert_failed: u64,
    /// The same of `drop`.
    pub drop: u64,
}

/// A race that must have been seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) round: u32,
    /// The pod that lost, and its flow.
    pub(super) loser: (usize, &'a FlowTruth),
    /// Whose entry held the port; `None` when no flow of the round arrived with it (ports chosen at random).
    pub(super) winner: Option<(usize, &'a FlowTruth)>,
}

impl Truth {
    /// First packets that did not arrive.
    #[must_use]
    pub fn packets_lost(&self) -> usize {
        self.expected().count()
    }

    /// One race for each lost packet, by round and pod.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected<'_>> {
        self.rounds.iter().flat_map(|round| {
            let flows = || round.flows.iter().enumerate();
            flows().filter(|(_, flow)| !flow.first_try).map(move |loser| {
                let port = loser.1.original.ends().source.port();
                let holds =
                    |flow: &FlowTruth| flow.first_try && flow.arrived_as.is_some_and(|arrived| arrived.port() == port);
                Expected { round: round.number, loser, winner: flows().find(|(_, flow)| holds(flow)) }
            })
        })
    }
}
