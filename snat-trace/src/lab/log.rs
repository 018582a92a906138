//! Everything heard in a run, from pods and receiver.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::error::LabError;
use super::senders::Senders;
use super::setup::Setup;
use super::stat::Stat;
use super::transport::Transport;
use super::truth::{FlowTruth, RoundTruth};
use super::wire::{Arrival, PROBE, Report};
use crate::race::tuple::{Ends, OriginalTuple};

/// What is sent is not permitted.
const EPERM: u32 = libc::EPERM.cast_unsigned();

/// What is known of one flow so far.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// As it reaches the node.
    original: OriginalTuple,
    zone: u16,
    sent: bool,
    /// The process that sent it, where that is not the pod's own.
    sender: Option<u32>,
    arrived_as: Option<SocketAddr>,
    arrived_at: Option<u16>,
    /// Crossed flows only: the other end has said so.
    heard: bool,
    /// TCP only: connected, after so many retransmits that were not to be.
    retransmits: Option<u32>,
    /// TCP only: dropped, though its connection came up by another packet.
    dropped: bool,
}

impl Flow {
    /// Arrived, as far as this transport can tell.
    fn arrived(&self, transport: Transport) -> bool {
        self.arrived_as.is_some() && (!transport.retransmits() || self.retransmits.is_some())
    }

    fn first_try(&self, transport: Transport) -> bool {
        self.arrived(transport) && self.retransmits.unwrap_or(0) == 0 && !self.dropped
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
    /// Of each round that is over, see [`RoundTruth::resolved`].
    resolved: Vec<u64>,
    /// How many rounds are over.
    closed: usize,
    /// Flows of closed rounds that have not arrived: lost for good (UDP), or waiting for a retransmission (TCP).
    pub(super) missing: usize,
    /// Flows whose pods have not said that they sent.
    pub(super) unsent: usize,
}

impl Log {
    pub(super) fn new(setup: Setup) -> Self {
        let pods = setup.pods;
        Self {
            setup,
            rounds: Vec::new(),
            probed: vec![false; setup.probing()],
            ready: vec![None; pods],
            resolved: Vec::new(),
            closed: 0,
            missing: 0,
            unsent: 0,
        }
    }

    pub(super) fn begin(&mut self, round: u32) {
        let flow = |pod| {
            let original = OriginalTuple::from_ends(self.setup.ends(round, pod));
            let zone = self.setup.zone(pod);
            Flow {
                original,
                zone,
                sent: false,
                sender: None,
                arrived_as: None,
                arrived_at: None,
                heard: false,
                retransmits: None,
                dropped: false,
            }
        };
        self.unsent += self.setup.pods;
        self.rounds.push((0..self.setup.pods).map(flow).collect());
    }

    fn flow(&mut self, round: u32, pod: usize) -> Option<&mut Flow> {
        self.rounds.get_mut(usize::try_from(round).ok()?)?.get_mut(pod)
    }

    pub(super) fn arrival(&mut self, Arrival { stamp, source, at }: Arrival) {
        let Ok(pod) = usize::try_from(stamp.pod) else { return };
        if stamp.round == PROBE {
            if let Some(probed) = self.probed.get_mut(pod) {
                *probed = true;
            }
        } else {
            let translated = self.setup.translated(source);
            if self.setup.senders == Senders::Tunnel {
                self.chose(stamp.round, source.port());
            }
            for pod in self.arriving(pod) {
                self.update(stamp.round, pod, |flow| {
                    flow.arrived_as = Some(translated);
                    flow.arrived_at = Some(at);
                });
            }
        }
    }

    pub(super) fn report(&mut self, pod: usize, report: Report) -> Result<(), LabError> {
        let failed = |what: String| Err(LabError::Pod { pod, what });
        match report {
            Report::Ready { tid, twin } => {
                // What is sent again is the same thread's.
                for (pod, tid) in self.setup.pods_of(pod).zip([tid, if twin == 0 { tid } else { twin }]) {
                    if let Some(slot) = self.ready.get_mut(pod) {
                        *slot = Some(tid);
                    }
                }
            }
            // A process of the node itself is refused what is dropped.
            Report::Sent { round, errno, sender }
                if errno == 0 || self.setup.senders == Senders::Host && errno == EPERM =>
            {
                for pod in self.setup.pods_of(pod) {
                    self.update(round, pod, |flow| {
                        flow.sent = true;
                        flow.sender = (sender != 0).then_some(sender);
                    });
                }
            }
            // From the only other pod.
            Report::Heard { round, port } => self.update(round, 1 - pod.min(1), |flow| {
                flow.heard = true;
                flow.arrived_as = Some(SocketAddr::new(flow.original.ends().source.ip(), port));
            }),
            Report::Sent { round, errno, sender: _ } => {
                return failed(format!("could not send in round {round}: {}", os_error(errno)));
            }
            // Whichever SYN made it one, both ends have a connection, and what they send again tells nothing of that.
            Report::Connected { round, retransmits: _ } if self.setup.scenario.opens_twice() => {
                self.update(round, pod, |flow| {
                    flow.arrived_as = Some(flow.original.ends().source);
                    flow.retransmits = Some(0);
                });
            }
            Report::Connected { round, retransmits } => {
                let meant = self.setup.scenario.meant_again();
                for pod in self.arriving(pod) {
                    self.update(round, pod, |flow| flow.retransmits = Some(retransmits.saturating_sub(meant)));
                }
            }
            Report::Refused { round, errno } => {
                return failed(format!("could not connect in round {round}: {}", os_error(errno)));
            }
        }
        Ok(())
    }

    /// The port that all tunnels of a round have chosen of their two: the node keeps it for the first, and drops the others.
    fn chose(&mut self, round: u32, port: u16) {
        let flows = usize::try_from(round).ok().and_then(|round| self.rounds.get_mut(round));
        for flow in flows.into_iter().flatten() {
            let Ends { source, destination } = flow.original.ends();
            let source = SocketAddr::new(source.ip(), port);
            flow.original = OriginalTuple::from_ends(Ends { source, destination });
        }
    }

    /// The flows of which an arrival of a pod's tells: both, where the second is the first sent again.
    fn arriving(&self, pod: usize) -> RangeInclusive<usize> {
        if self.setup.scenario.repeats() { self.setup.pods_of(pod) } else { pod..=pod }
    }

    /// Closes the latest round, in which this was counted; how many packets were lost.
    pub(super) fn close(&mut self, Stat { clash_resolve: resolved, insert_failed, .. }: Stat) -> usize {
        // Its connection came up all the same, so that only the kernel knows.
        if self.setup.scenario.repeats()
            && let Some(second) = self.rounds.last_mut().and_then(|flows| flows.last_mut())
        {
            second.dropped = insert_failed > 0;
        }
        // As of the SYN which the other end has not heard. One that came before that end was there is not heard either.
        if self.setup.scenario.opens_twice() && insert_failed > 0 {
            for flow in self.rounds.last_mut().into_iter().flatten() {
                flow.dropped = !flow.heard;
            }
        }
        self.closed = self.rounds.len();
        self.resolved.push(resolved);
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
        let (before, sent) = (flow.arrived(transport), flow.sent);
        change(flow);
        let sent = flow.sent && !sent;
        if closed && !before && flow.arrived(transport) {
            self.missing = self.missing.saturating_sub(1);
        }
        self.unsent = self.unsent.saturating_sub(usize::from(sent));
    }

    /// Sent and first-try arrivals of the latest round.
    pub(super) fn latest(&self) -> (usize, usize) {
        let flows = self.rounds.last().map(Vec::as_slice).unwrap_or_default();
        let transport = self.setup.scenario.transport();
        let arrived = flows.iter().filter(|flow| flow.first_try(transport)).count();
        (flows.iter().filter(|flow| flow.sent).count(), arrived)
    }

    /// Those of the latest round that have arrived: the flow, and the source the node gave it.
    pub(super) fn latest_arrived(&self) -> impl Iterator<Item = (Ends, SocketAddr)> {
        let flows = self.rounds.last().map(Vec::as_slice).unwrap_or_default();
        flows.iter().filter_map(|flow| Some((flow.original.ends(), flow.arrived_as?)))
    }

    /// What each flow of each round came to.
    pub(super) fn rounds(&self) -> Vec<RoundTruth> {
        let transport = self.setup.scenario.transport();
        let flow = |flow: &Flow| FlowTruth {
            original: flow.original,
            zone: flow.zone,
            arrived_as: flow.arrived_as,
            arrived_at: flow.arrived_at,
            first_try: flow.first_try(transport),
            sender: flow.sender,
        };
        let rounds = (self.setup.first_round..).zip(&self.rounds).zip(&self.resolved);
        let round = |((number, flows), &resolved): ((u32, &Vec<Flow>), &u64)| RoundTruth {
            number,
            flows: flows.iter().map(flow).collect(),
            resolved,
        };
        rounds.map(round).collect()
    }
}

fn os_error(errno: u32) -> io::Error {
    io::Error::from_raw_os_error(errno.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::super::Scenario;
    use super::*;

    #[test]
    fn which_of_two_ports_tunnels_have_is_known_when_one_arrives() {
        let setup = Setup { senders: Senders::Tunnel, ..Setup::new(Scenario::SnatUdp) };
        let mut log = Log::new(setup);
        log.begin(0);
        let stamp = super::super::wire::Stamp { round: 0, pod: 1 };
        log.arrival(Arrival { stamp, source: "10.99.1.1:10001".parse().unwrap(), at: 20_000 });
        log.close(Stat { insert_failed: 1, ..Stat::default() });
        let [lost, won] = &log.rounds().remove(0).flows[..] else { panic!("two flows") };
        assert!(!lost.first_try && won.first_try);
        for (flow, source) in [(lost, "10.99.0.10:10001"), (won, "10.99.0.11:10001")] {
            assert_eq!(flow.original.ends().source, source.parse().unwrap());
        }
    }

    /// A round in which both ends have a connection, and end 1 alone has heard the other's SYN.
    fn crossed(insert_failed: u64) -> Vec<FlowTruth> {
        let mut log = Log::new(Setup::new(Scenario::CrossedFlowTcp));
        log.begin(0);
        for (pod, arrived) in [(0, 0), (1, 1)] {
            log.report(pod, Report::Sent { round: 0, errno: 0, sender: 0 }).unwrap();
            assert_eq!(log.latest(), (pod + 1, arrived));
            if pod == 1 {
                log.report(pod, Report::Heard { round: 0, port: 10_000 }).unwrap();
            }
            log.report(pod, Report::Connected { round: 0, retransmits: 1 }).unwrap();
        }
        assert_eq!(log.latest(), (2, 2));
        let lost = log.close(Stat { insert_failed, ..Stat::default() });
        assert_eq!((lost, log.missing), (usize::from(insert_failed > 0), 0));
        log.rounds().remove(0).flows
    }

    #[test]
    fn of_a_connection_opened_twice_the_syn_is_lost_that_the_other_end_has_not_heard() {
        let [first, second] = &crossed(1)[..] else { panic!("two flows") };
        assert!(first.first_try && !second.first_try);
        for flow in [first, second] {
            assert_eq!(flow.arrived_as, Some(flow.original.ends().source), "nothing is translated");
        }
    }

    #[test]
    fn a_syn_that_nobody_heard_is_not_lost_where_none_failed() {
        assert!(crossed(0).iter().all(|flow| flow.first_try));
    }
}
