//! From records to named races, in the order of kernel time.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::pin::pin;

use snat_trace_common::{ClashRecord, FailureRecord, ProcessFact};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Interval;

use super::writer::{Message, Room, Writer};
use super::{Options, WatchError, joined};
use crate::counters::ports::PortCounts;
use crate::kernel::Role;
use crate::owner::{Behind, Owners, Wanted};
use crate::race::class::{exhausted_range, set_in_use};
use crate::race::classify::classify;
use crate::race::decode::{Record, decode};
use crate::race::event::{NetnsInum, Race};
use crate::race::failure::{Failure, judge};
use crate::race::order::{Next, Reorder};
use crate::race::time::KernelTime;
use crate::race::verdict::decided;
use crate::session::Session;
use crate::summary::Totals;

/// Most records held back; more are lost, and counted as such.
const PENDING: usize = 16_384;
/// Most events whose owners are looked for at once, and as many may wait for the output before the next are.
const BATCH: usize = 256;
/// Most processes that wait to be learned while a batch is named, of 1 KiB each. Both senders of every record that may wait
/// would be more.
const PROCESSES: usize = 8192;

/// Records on their way to the output.
pub(super) struct Pipeline<'a> {
    options: &'a Options<'a>,
    session: &'a Session,
    order: Reorder,
    /// `None` while a batch is being named.
    finder: Option<Finder>,
    naming: Option<JoinHandle<Named>>,
    /// Whether the last batch was as large as they may be: there may be more of what is due.
    full: bool,
    /// What senders of the next batch run.
    processes: Vec<ProcessFact>,
    /// Named, and on their way to the output.
    named: VecDeque<Event>,
    pub(super) totals: Totals,
    /// Network namespaces that had clashes or failures of late, for the counters to be read.
    involved: BTreeSet<NetnsInum>,
    shown: u64,
}

/// Finds out what the records do not say.
pub(super) struct Finder {
    owners: Owners,
    ports: PortCounts,
}

/// A batch with everything known, and the finder for the next.
pub(super) type Named = (Finder, Vec<Event>);

/// What is shown.
pub(super) enum Event {
    Race(Box<Race>),
    Failure(Box<Failure>),
}

/// An event with the record it was made of.
enum Judged {
    Race(Box<ClashRecord>, Box<Race>),
    Failure(Box<FailureRecord>, Box<Failure>),
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(options: &'a Options<'a>, session: &'a Session, owners: Owners) -> Self {
        let mut totals = Totals::default();
        if options.request.failures {
            totals = totals.with_failures();
        }
        if session.attached().any(|role| role == Role::Allocation) {
            totals = totals.with_connections();
        }
        Self {
            options,
            session,
            order: Reorder::default(),
            finder: Some(Finder { owners, ports: PortCounts::default() }),
            naming: None,
            full: false,
            processes: Vec::new(),
            named: VecDeque::new(),
            totals,
            involved: BTreeSet::new(),
            shown: 0,
        }
    }

    /// Whether as many races were shown as were asked for.
    pub(super) fn enough(&self) -> bool {
        self.options.count.is_some_and(|count| self.shown >= count)
    }

    /// How many more clashes can wait.
    #[cfg(test)]
    pub(super) fn room(&self) -> u64 {
        (PENDING - self.order.len()) as u64
    }

    /// Takes the bytes of one record.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        match decode(bytes) {
            Ok(Record::Clash(clash)) => {
                self.involve(clash.netns);
                if self.order.len() < PENDING {
                    self.order.push(clash);
                } else {
                    self.totals.lose("queue-full");
                }
            }
            Ok(Record::Verdict(verdict)) => self.order.decide(verdict),
            Ok(Record::Failure(failure)) => {
                self.involve(failure.netns);
                if self.order.len() < PENDING {
                    self.order.push_failure(failure);
                } else {
                    self.totals.lose_failure("failure-queue-full");
                }
            }
            Ok(Record::Process(process)) => {
                // One that is not kept is in the kernel's map still.
                if self.processes.len() < PROCESSES {
                    self.processes.push(*process);
                }
            }
            Err(undecodable) => self.totals.lose(undecodable.reason()),
        }
    }

    fn involve(&mut self, netns: u32) {
        self.involved.extend((netns != 0).then_some(NetnsInum(netns)));
    }

    /// Whether network namespaces had clashes or failures since they were last taken.
    pub(super) fn involved(&self) -> bool {
        !self.involved.is_empty()
    }

    /// The network namespaces that had clashes or failures since this was last asked.
    pub(super) fn take_involved(&mut self) -> BTreeSet<NetnsInum> {
        std::mem::take(&mut self.involved)
    }

    /// Brings what was taken nearer to the output, by one step: takes a named batch in, hands one event over, or starts
    /// naming what is due when `release` ticks. Dropped before its end, it has done nothing.
    pub(super) async fn advance(&mut self, writer: &mut Writer, release: &mut Interval) -> Result<(), WatchError> {
        let (has_named, can_name, full) = (!self.named.is_empty(), self.can_name(), self.full);
        let due = async {
            if !full {
                release.tick().await;
            }
        };
        tokio::select! {
            named = joined(&mut self.naming), if self.naming.is_some() => self.take_named(named?),
            room = writer.room(has_named) => self.hand_over(room?),
            () = due, if can_name => self.name(KernelTime::now()),
        }
        Ok(())
    }

    /// Whether there is something to name, and room for it.
    fn can_name(&self) -> bool {
        self.naming.is_none() && !self.order.is_empty() && self.named.len() < BATCH
    }

    /// Starts naming what no earlier record can precede any more at `now`.
    fn name(&mut self, now: KernelTime) {
        let batch = self.next_batch(|order| order.pop(now));
        self.full = batch.len() == BATCH;
        self.start_naming(batch);
    }

    /// The next records that `pop` gives, classified.
    fn next_batch(&mut self, pop: impl Fn(&mut Reorder) -> Option<Next>) -> Vec<Judged> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(next) = pop(&mut self.order)
        {
            match next {
                Next::Clash { clash, verdict } => match classify(&clash, self.session.started) {
                    Ok(mut race) => {
                        race.verdict = self.totals.verdict(verdict.as_ref().and_then(decided), race.verdict);
                        batch.push(Judged::Race(clash, Box::new(race)));
                    }
                    Err(undecodable) => self.totals.lose(undecodable.reason()),
                },
                Next::Failure(record) => match judge(&record) {
                    Ok(failure) => batch.push(Judged::Failure(record, Box::new(failure))),
                    Err(_) => self.totals.lose_failure("failure-undecodable"),
                },
            }
        }
        batch
    }

    fn start_naming(&mut self, batch: Vec<Judged>) {
        if batch.is_empty() {
            return;
        }
        if let Some(finder) = self.finder.take() {
            let processes = std::mem::take(&mut self.processes);
            self.naming = Some(spawn_blocking(move || name_all(finder, processes, batch)));
        }
    }

    /// Takes a named batch in.
    fn take_named(&mut self, (finder, events): Named) {
        self.finder = Some(finder);
        self.named.extend(events);
    }

    /// Counts the first event that waits, and hands it over if it is to be shown.
    fn hand_over(&mut self, room: Room<'_>) {
        let enough = self.enough();
        match self.named.pop_front() {
            Some(Event::Race(race)) => {
                self.totals.add(&race, self.options.request.detail);
                if !enough && self.options.filter.shows(&race) {
                    room.send(Message::Race(race, self.session.clock));
                    self.shown += 1;
                }
            }
            Some(Event::Failure(failure)) => {
                self.totals.add_failure(&failure);
                if !enough && self.options.filter.shows_failure(&failure) {
                    room.send(Message::Failure(failure, self.session.clock));
                }
            }
            None => {}
        }
    }

    /// Names and shows everything left: no record comes any more. What is not shown when `enough` is, is lost.
    pub(super) async fn drain(
        &mut self,
        writer: &mut Writer,
        enough: impl Future<Output = ()>,
    ) -> Result<(), WatchError> {
        let mut enough = pin!(enough);
        loop {
            while self.can_name() {
                let batch = self.next_batch(Reorder::pop_last);
                self.start_naming(batch);
            }
            if self.naming.is_none() && self.named.is_empty() && self.order.is_empty() {
                return Ok(());
            }
            tokio::select! {
                () = &mut enough => return self.give_up().await,
                named = joined(&mut self.naming), if self.naming.is_some() => self.take_named(named?),
                room = writer.room_at_last(), if !self.named.is_empty() => self.hand_over(room?),
            }
        }
    }

    /// Counts as lost what is not shown yet.
    async fn give_up(&mut self) -> Result<(), WatchError> {
        if self.naming.is_some() {
            let named = joined(&mut self.naming).await?;
            self.take_named(named);
        }
        for event in self.named.drain(..) {
            match event {
                Event::Race(_) => self.totals.lose("not-shown"),
                Event::Failure(_) => self.totals.lose_failure("failure-not-shown"),
            }
        }
        while let Some(next) = self.order.pop_last() {
            match next {
                Next::Clash { .. } => self.totals.lose("not-shown"),
                Next::Failure(_) => self.totals.lose_failure("failure-not-shown"),
            }
        }
        Ok(())
    }
}

/// Names the owners of a batch, and counts the ports in use where there seemed to be none left.
fn name_all(mut finder: Finder, processes: Vec<ProcessFact>, batch: Vec<Judged>) -> Named {
    let Finder { owners, ports } = &mut finder;
    owners.learn(processes);
    let flows: Vec<_> = batch.iter().flat_map(Judged::flows).collect();
    let mut names = owners.name(&flows).into_iter();
    let mut events = Vec::with_capacity(batch.len());
    for judged in batch {
        events.push(match judged {
            Judged::Race(record, mut race) => {
                if let Some((netns, range)) = exhausted_range(&race, &record.loser)
                    && let Some(in_use) = ports.count(netns, &range)
                {
                    set_in_use(&mut race, in_use);
                }
                for flow in [&mut race.loser, &mut race.winner] {
                    flow.owner = names.next().flatten();
                }
                Event::Race(race)
            }
            Judged::Failure(_, mut failure) => {
                if failure.by_packet {
                    failure.flow.owner = names.next().flatten();
                }
                Event::Failure(failure)
            }
        });
    }
    look_behind(owners, &mut events);
    (finder, events)
}

/// Finds out where answers to flows go that nobody here is known to have sent.
fn look_behind(owners: &mut Owners, events: &mut [Event]) {
    fn nameless(event: &mut Event) -> impl Iterator<Item = ((NetnsInum, IpAddr), &mut Option<Behind>)> {
        let (netns, flows) = match event {
            Event::Race(race) => (race.netns, vec![&mut race.loser, &mut race.winner]),
            Event::Failure(failure) => (failure.netns.filter(|_| failure.by_packet), vec![&mut failure.flow]),
        };
        flows.into_iter().filter(|flow| flow.owner.is_none()).filter_map(move |flow| {
            let source = flow.original.ends().source.ip().to_canonical();
            Some(((netns?, source), &mut flow.behind))
        })
    }
    let sources = events.iter_mut().flat_map(nameless).map(|(source, _)| source).collect::<BTreeSet<_>>();
    if sources.is_empty() {
        return;
    }
    let found = owners.where_answers_go(&sources);
    for (source, behind) in events.iter_mut().flat_map(nameless) {
        *behind = found.get(&source).cloned().flatten();
    }
}

impl Judged {
    /// The flows that somebody sent.
    fn flows(&self) -> Vec<Wanted> {
        match self {
            Self::Race(record, race) => {
                [record.loser, record.winner].map(|flow| Wanted { flow, time: race.time, netns: race.netns }).to_vec()
            }
            Self::Failure(record, failure) if failure.by_packet => {
                vec![Wanted { flow: record.flow, time: failure.time, netns: failure.netns }]
            }
            Self::Failure(..) => Vec::new(),
        }
    }
}
