//! Everything heard in a run, from pods and receiver.

use std::io;
use std::net::SocketAddr;

use super::error::LabError;
use super::setup::Setup;
use super::transport::Transport;
use super::truth::{FlowTruth, RoundTruth};
use super::wire::{Arrival, PROBE, Report};
use crate::race::tuple::{Ends, OriginalTuple};

/// What is known of one flow so far.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// As it reaches the node.
    original: OriginalTuple,
    zone: u16,
    sent: bool,
    arrived_as: Option<SocketAddr>,
    /// TCP only: connected, after so many retransmits.
    retransmits: Option<u32>,
}

impl Flow {
    /// Arrived, as far as this transport can tell.
    fn arrived(&self, transport: Transport) -> bool {
        self.arrived_as.is_some() && (!transport.retransmits() || self.retransmits.is_some())
    }

    fn first_try(&self, transport: Transport) -> bool {
        self.arrived(transport) && self.retransmits.unwrap_or(0) == 0
    }
}

/// Everything heard in a run.
#[derive(Debug)]
pub(super) struct Log {
    setup: Setup,
    rounds: Vec<Vec<Flow>>,
    /// Pods whose probe has arrived.
    pub(super) probed: Vec<bool>,
    /// Thread ids of pods that are ready.
    pub(super) ready: Vec<Option<u32>>,
    /// How many rounds are over.
    closed: usize,
    /// Flows of closed rounds that have not arrived: lost for good (UDP), or waiting for a retransmission (TCP).
    pub(super) missing: usize,
}

impl Log {
    pub(super) fn new(setup: Setup) -> Self {
        let pods = setup.pods;
        Self { setup, rounds: Vec::new(), probed: vec![false; pods], ready: vec![None; pods], closed: 0, missing: 0 }
    }

    pub(super) fn begin(&mut self, round: u32) {
        let flow = |pod| {
            let source = SocketAddr::new(self.setup.seen_by_node(pod), self.setup.port(round, pod));
            let destination = self.setup.destination();
            let original = OriginalTuple::from_ends(Ends { source, destination });
            Flow { original, zone: self.setup.zone(pod), sent: false, arrived_as: None, retransmits: None }
        };
        self.rounds.push((0..self.setup.pods).map(flow).collect());
    }

    fn flow(&mut self, round: u32, pod: usize) -> Option<&mut Flow> {
        self.rounds.get_mut(usize::try_from(round).ok()?)?.get_mut(pod)
    }

    pub(super) fn arrival(&mut self, Arrival { stamp, source }: Arrival) {
        let Ok(pod) = usize::try_from(stamp.pod) else { return };
        if stamp.round == PROBE {
            if let Some(probed) = self.probed.get_mut(pod) {
                *probed = true;
            }
        } else {
            let translated = self.setup.translated(source);
            self.update(stamp.round, pod, |flow| flow.arrived_as = Some(translated));
        }
    }

    pub(super) fn report(&mut self, pod: usize, report: Report) -> Result<(), LabError> {
        let failed = |what: String| Err(LabError::Pod { pod, what });
        match report {
            Report::Ready { tid } => {
                if let Some(slot) = self.ready.get_mut(pod) {
                    *slot = Some(tid);
                }
            }
            Report::Sent { round, errno: 0 } => self.update(round, pod, |flow| flow.sent = true),
            Report::Sent { round, errno } => {
                return failed(format!("could not send in round {round}: {}", os_error(errno)));
            }
            Report::Connected { round, retransmits } => {
                self.update(round, pod, |flow| flow.retransmits = Some(retransmits));
            }
            Report::Refused { round, errno } => {
                return failed(format!("could not connect in round {round}: {}", os_error(errno)));
            }
        }
        Ok(())
    }

    /// Closes the latest round; how many of its packets were lost.
    pub(super) fn close(&mut self) -> usize {
        self.closed = self.rounds.len();
        let transport = self.setup.scenario.transport();
        let flows = self.rounds.last().map(Vec::as_slice).unwrap_or_default();
        self.missing += flows.iter().filter(|flow| !flow.arrived(transport)).count();
        flows.iter().filter(|flow| !flow.first_try(transport)).count()
    }

    /// Changes a flow; a flow of a closed round that arrives thereby is no longer missing.
    fn update(&mut self, round: u32, pod: usize, change: impl FnOnce(&mut Flow)) {
        let transport = self.setup.scenario.transport();
        let closed = usize::try_from(round).is_ok_and(|round| round < self.closed);
        let Some(flow) = self.flow(round, pod) else { return };
        let before = flow.arrived(transport);
        change(flow);
        if closed && !before && flow.arrived(transport) {
            self.missing = self.missing.saturating_sub(1);
        }
    }

    /// Sent and first-try arrivals of the latest round.
    pub(super) fn latest(&self) -> (usize, usize) {
        let flows = self.rounds.last().map(Vec::as_slice).unwrap_or_default();
        let transport = self.setup.scenario.transport();
        let arrived = flows.iter().filter(|flow| flow.first_try(transport)).count();
        (flows.iter().filter(|flow| flow.sent).count(), arrived)
    }

    /// What each flow of each round came to.
    pub(super) fn rounds(&self) -> Vec<RoundTruth> {
        let transport = self.setup.scenario.transport();
        let flow = |flow: &Flow| FlowTruth {
            original: flow.original,
            zone: flow.zone,
            arrived_as: flow.arrived_as,
            first_try: flow.first_try(transport),
        };
        let rounds = (0..).zip(&self.rounds);
        rounds.map(|(number, flows)| RoundTruth { number, flows: flows.iter().map(flow).collect() }).collect()
    }
}

fn os_error(errno: u32) -> io::Error {
    io::Error::from_raw_os_error(errno.cast_signed())
}
