//! The rounds: orders go out, arrivals and reports come in, and a round is over when every packet is accounted for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::{Doing, LabError};
use super::helper::{Helper, reason};
use super::log::Log;
use super::reuse::{self, Reuse};
use super::senders::{Senders, outer_tid};
use super::stat::Stat;
use super::table::{Table, turned};
use super::truth::{Cause, Truth};
use super::wire::{Order, hear_now, tell};
use super::{Control, Lab, Mode, Scenario, tunnel};
use crate::race::tuple::{Ends, OriginalTuple};

/// How long anything may take before it is an error.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for news before the counters and the stop flag are read again.
pub(super) const LOOK: Duration = Duration::from_millis(1);
/// How many connections may wait for their retransmission before no new round begins.
const MAX_WAITING: usize = 256;

/// How far a run has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Rounds that are over.
    pub rounds: u32,
    /// Packets lost in them.
    pub lost: usize,
}

impl Lab {
    /// Runs every round and returns what happened in them. Blocks; `stop` is looked at all the time.
    ///
    /// # Errors
    /// When something that must happen has not after ten seconds, a pod ends early, or `stop` was set.
    pub fn run(&mut self, stop: &AtomicBool, mut progress: impl FnMut(Progress)) -> Result<Truth, LabError> {
        let mut log = Log::new(self.setup);
        let before = Stat::read(self.node.tid())?;
        let mut refused = Vec::new();
        let mut room = None;
        let mut barrier = 0;
        let mut lost = 0;
        let paced = if self.setup.scenario.pours() { 0 } else { self.setup.rounds };
        if paced == 0 {
            let helper = self.setup.scenario.dies().then(Helper::start).transpose()?;
            self.storm(&mut log, stop, &mut progress)?;
            helper.map_or(Ok(()), Helper::end)?;
        }
        for round in 0..paced {
            if let (Some(table), Scenario::EarlyDrop) = (&mut self.table, self.setup.scenario) {
                table.top_up(&self.topology.node)?;
            }
            let round_before = Stat::read(self.node.tid())?;
            log.begin(round);
            let groups: Vec<Vec<usize>> = match self.setup.mode {
                _ if self.setup.scenario.in_turn() => (0..self.setup.pods).map(|pod| vec![pod]).collect(),
                Mode::Control(Control::Sequential) => (0..self.setup.pods).map(|pod| vec![pod]).collect(),
                _ => vec![(0..self.setup.pods).collect()],
            };
            let mut sent = 0;
            for group in groups {
                sent += group.len();
                barrier = self.order(round, &group, barrier)?;
                self.settle(&mut log, stop, round, sent, round_before)?;
            }
            if let (Some(table), Scenario::Ctnetlink) = (&self.table, self.setup.scenario) {
                refused.extend(self.insert_again(table, &log)?);
            }
            if let (Some(table), Scenario::AddressReuse) = (&self.table, self.setup.scenario) {
                room = room.max(reuse::room());
                table.clear()?;
            }
            lost += log.close(Stat::read(self.node.tid())?.since(round_before));
            progress(Progress { rounds: round + 1, lost });
            if self.setup.scenario.transport().retransmits() {
                self.wait_for_retransmissions(&mut log, stop, MAX_WAITING)?;
            }
        }
        if self.setup.scenario.transport().retransmits() {
            self.wait_for_retransmissions(&mut log, stop, 0)?;
        }
        // Nothing more may come, but what has come is heard.
        self.hear(&mut log, Duration::ZERO)?;
        let counted = Stat::read(self.node.tid())?.since(before);
        let reuse = room.map(|room| Reuse { connections: self.setup.connections(), room });
        let truth = Truth { refused, reuse, ..self.truth(&log, counted) };
        Ok(if self.setup.scenario.dies() { Truth { cause: Cause::Failure(reason()?), ..truth } } else { truth })
    }

    /// Orders a group of pods to send; `before` counts how often pods have come to the barrier so far.
    fn order(&self, round: u32, group: &[usize], before: u32) -> Result<u32, LabError> {
        // What is sent again does not come to the barrier.
        let coming = if self.setup.scenario.repeats() { self.setup.processes() } else { group.len() };
        let after = before.wrapping_add(u32::try_from(coming).unwrap_or(0));
        // Where packets are held anyway, pods need not wait for each other: a barrier long reached.
        let barrier = if self.setup.holds() { before } else { after };
        if self.setup.senders == Senders::Tunnel {
            tunnel::renew(self, round, group)?;
        }
        for pod in group.iter().filter(|pod| **pod < self.setup.processes()) {
            let (port, background) = (self.setup.port(round, *pod), self.setup.background());
            self.tell(*pod, Order::Round { round, port, barrier, background })?;
        }
        Ok(after)
    }

    /// Has each flow of the latest round made again through ctnetlink, as it is and as another's with its answers. Both are
    /// refused. The latter, of which it gives the original tuples, fail to be inserted; the former are found before.
    fn insert_again(&self, table: &Table, log: &Log) -> Result<Vec<OriginalTuple>, LabError> {
        let again = |(original, translated): (Ends, SocketAddr)| {
            let reply = turned(Ends { source: translated, ..original });
            table.refused(original, reply)?;
            // Of two pods in a round, who have one source port.
            let other = Ends { source: SocketAddr::new(self.setup.family.nobody(), translated.port()), ..original };
            table.refused(other, reply).map(|()| OriginalTuple::from_ends(other))
        };
        log.latest_arrived().map(again).collect()
    }

    pub(super) fn tell(&self, pod: usize, order: Order) -> Result<(), LabError> {
        let ended = |error: io::Error| LabError::Pod { pod, what: format!("takes no orders: {error}") };
        self.pods.get(pod).map_or(Ok(()), |process| tell(&process.control, order).map_err(ended))
    }

    /// Waits until `sent` packets of the round have been sent and each has arrived or been counted as a failed insert.
    fn settle(&self, log: &mut Log, stop: &AtomicBool, round: u32, sent: usize, before: Stat) -> Result<(), LabError> {
        let began = Instant::now();
        loop {
            let (sent_now, arrived) = log.latest();
            let mut failed = 0;
            if sent_now == sent {
                let repeats = self.setup.scenario.repeats();
                if arrived == sent && !repeats {
                    return Ok(());
                }
                // The connection can come up before what was sent again is let go.
                let gone = !repeats || usize::try_from(round).is_ok_and(|round| self.node.released() > round);
                failed = Stat::read(self.node.tid())?.since(before).lost(self.setup.scenario.cause());
                // One that loses comes up by the other's.
                let lost = if self.setup.scenario.opens_twice() { 0 } else { failed };
                if gone && usize::try_from(lost).is_ok_and(|lost| arrived + lost >= sent) {
                    return Ok(());
                }
            }
            check(stop)?;
            if began.elapsed() > DEADLINE {
                let missing = format!(
                    "of round {round}'s {sent} packets {sent_now} were sent, {arrived} arrived and {failed} were counted as failed inserts"
                );
                return Err(LabError::Deadline { after: DEADLINE, missing });
            }
            self.hear(log, LOOK)?;
        }
    }

    /// Waits until at most `most` connections of closed rounds have not come up.
    fn wait_for_retransmissions(&self, log: &mut Log, stop: &AtomicBool, most: usize) -> Result<(), LabError> {
        let mut seen = log.missing;
        let mut began = Instant::now();
        while log.missing > most {
            check(stop)?;
            self.hear(log, LOOK)?;
            if log.missing < seen {
                (seen, began) = (log.missing, Instant::now());
            }
            if began.elapsed() > DEADLINE {
                let missing = format!("{} connections whose first SYN was lost have not come up", log.missing);
                return Err(LabError::Deadline { after: DEADLINE, missing });
            }
        }
        Ok(())
    }

    /// Takes in everything that was said, waiting for the first of it at most `wait`.
    pub(super) fn hear(&self, log: &mut Log, wait: Duration) -> Result<(), LabError> {
        let arrivals = self.receiver.arrivals()?;
        let mut fds =
            vec![PollFd::new(self.node.life()?, PollFlags::empty()), PollFd::from_borrowed_fd(arrivals, PollFlags::IN)];
        fds.extend(self.pods.iter().map(|pod| PollFd::new(&pod.control, PollFlags::IN)));
        let wait = Timespec::try_from(wait).map_err(io::Error::other).doing("wait for the pods")?;
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&wait))).doing("wait for the pods")?;
        if !fds[0].revents().is_empty() {
            return Err(LabError::Ended("node's thread"));
        }
        let spoke: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        if spoke[0] {
            while let Some(arrival) = next(arrivals, || LabError::Ended("receiver"))? {
                log.arrival(arrival);
            }
        }
        for ((pod, process), spoke) in self.pods.iter().enumerate().zip(&spoke[1..]) {
            if *spoke {
                let ended = || LabError::Pod { pod, what: "ended early".to_owned() };
                while let Some(report) = next(&process.control, ended)? {
                    log.report(pod, report)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until every pod takes orders.
    pub(super) fn wait_ready(&mut self) -> Result<(), LabError> {
        let mut log = Log::new(self.setup);
        let began = Instant::now();
        while let Some(pod) = log.ready.iter().position(Option::is_none) {
            if began.elapsed() > DEADLINE {
                return Err(LabError::Deadline { after: DEADLINE, missing: format!("pod {pod} is not ready") });
            }
            self.hear(&mut log, LOOK)?;
        }
        // Of two threads that are two pods, the second is known from now on.
        if let Some(first) = self.truths.first().cloned() {
            self.truths.resize(self.setup.pods, first);
        }
        for (truth, tid) in self.truths.iter_mut().zip(log.ready) {
            let tid = tid.unwrap_or(0);
            let inside = self.setup.senders == Senders::PidNamespace;
            truth.tid = if inside { outer_tid(truth.pid, tid).ok_or(LabError::Ended("sender"))? } else { tid };
        }
        Ok(())
    }

    /// Sends probes until one of every pod has arrived: links come up in their own time.
    pub(super) fn probe(&self) -> Result<(), LabError> {
        let mut log = Log::new(self.setup);
        let began = Instant::now();
        while let Some(pod) = log.probed.iter().position(|probed| !probed) {
            if began.elapsed() > DEADLINE {
                let missing = format!("nothing from pod {pod} reaches the external host");
                return Err(LabError::Deadline { after: DEADLINE, missing });
            }
            self.tell(pod, Order::Probe)?;
            self.hear(&mut log, 10 * LOOK)?;
        }
        Ok(())
    }

    fn truth(&self, log: &Log, counted: Stat) -> Truth {
        Truth {
            cause: self.setup.scenario.cause(),
            protocol: self.setup.scenario.transport().protocol(self.setup.family),
            pods: self.truths.clone(),
            naming: self.setup.naming(),
            rounds: log.rounds(),
            insert_failed: counted.insert_failed,
            drop: counted.drop,
            evicted: (self.setup.scenario == Scenario::EarlyDrop).then_some(counted.early_drop),
            refused: Vec::new(),
            reuse: None,
        }
    }
}

pub(super) fn check(stop: &AtomicBool) -> Result<(), LabError> {
    if stop.load(Ordering::Relaxed) { Err(LabError::Stopped) } else { Ok(()) }
}

/// The next message that is already there.
fn next<W: super::wire::Wire>(from: impl AsFd, ended: impl FnOnce() -> LabError) -> Result<Option<W>, LabError> {
    match hear_now(from) {
        Ok(Some(message)) => Ok(Some(message)),
        Ok(None) => Err(ended()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(ended()),
    }
}
