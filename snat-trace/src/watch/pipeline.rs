//! From records to named races, in the order of kernel time.

use snat_trace_common::ClashRecord;
use tokio::task::{JoinHandle, spawn_blocking};

use super::writer::{Message, Writer};
use super::{Options, WatchError, joined};
use crate::counters::ports::PortCounts;
use crate::owner::{Owners, Query, recorded_sender};
use crate::race::class::{exhausted_range, set_in_use};
use crate::race::classify::classify;
use crate::race::decode::decode;
use crate::race::event::Race;
use crate::race::order::Reorder;
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::Totals;

/// Most records held back, and most races that wait for the output; more records are lost, and counted as such.
const PENDING: usize = 16_384;
/// Most races whose owners are looked for at once.
const BATCH: usize = 256;

/// Records on their way to the output.
pub(super) struct Pipeline<'a> {
    options: &'a Options<'a>,
    session: &'a Session,
    order: Reorder,
    /// `None` while a batch is being named.
    finder: Option<Finder>,
    pub(super) naming: Option<JoinHandle<Named>>,
    pub(super) totals: Totals,
    shown: u64,
}

/// Finds out what the records do not say.
#[derive(Default)]
pub(super) struct Finder {
    owners: Owners,
    ports: PortCounts,
}

/// A batch with everything known, and the finder for the next.
pub(super) type Named = (Finder, Vec<Race>);

impl<'a> Pipeline<'a> {
    pub(super) fn new(options: &'a Options<'a>, session: &'a Session) -> Self {
        Self {
            options,
            session,
            order: Reorder::default(),
            finder: Some(Finder::default()),
            naming: None,
            totals: Totals::default(),
            shown: 0,
        }
    }

    /// Whether as many races were shown as were asked for.
    pub(super) fn enough(&self) -> bool {
        self.options.count.is_some_and(|count| self.shown >= count)
    }

    /// Takes the bytes of one record.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        match decode(bytes) {
            Ok(_) if self.order.len() >= PENDING => self.totals.lose("queue-full"),
            Ok(record) => self.order.push(record),
            Err(undecodable) => self.totals.lose(undecodable.reason()),
        }
    }

    /// Whether there is something to name, and room for it.
    pub(super) fn can_name(&self, writer: &Writer) -> bool {
        self.naming.is_none() && !self.order.is_empty() && writer.waiting() < PENDING
    }

    /// Starts naming what no earlier record can precede any more at `now`.
    pub(super) fn name(&mut self, now: KernelTime) {
        let batch = self.next_batch(|order| order.pop(now));
        self.start_naming(batch);
    }

    /// The next records that `pop` gives, classified.
    fn next_batch(&mut self, pop: impl Fn(&mut Reorder) -> Option<ClashRecord>) -> Vec<(ClashRecord, Race)> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(record) = pop(&mut self.order)
        {
            match classify(&record, self.session.started) {
                Ok(race) => batch.push((record, race)),
                Err(undecodable) => self.totals.lose(undecodable.reason()),
            }
        }
        batch
    }

    fn start_naming(&mut self, batch: Vec<(ClashRecord, Race)>) {
        if batch.is_empty() {
            return;
        }
        if let Some(finder) = self.finder.take() {
            self.naming = Some(spawn_blocking(move || name_all(finder, batch)));
        }
    }

    /// Shows a named batch.
    pub(super) fn emit(&mut self, (finder, races): Named, writer: &mut Writer) {
        self.finder = Some(finder);
        for race in races {
            self.totals.add(&race, self.options.detail);
            if !self.enough() && self.options.filter.shows(&race) {
                writer.push(Message::Race(Box::new(race), self.session.clock));
                self.shown += 1;
            }
        }
    }

    /// Names and shows everything left: no record comes any more.
    pub(super) async fn drain(&mut self, writer: &mut Writer) -> Result<(), WatchError> {
        loop {
            if self.naming.is_some() {
                let batch = joined(&mut self.naming).await?;
                self.emit(batch, writer);
            }
            let batch = self.next_batch(Reorder::pop_last);
            if batch.is_empty() && self.order.is_empty() {
                return Ok(());
            }
            self.start_naming(batch);
        }
    }
}

/// Names the owners of a batch: as the kernel recorded them, and by their sockets where it did not. Counts the ports in
/// use where there seemed to be none left.
fn name_all(mut finder: Finder, batch: Vec<(ClashRecord, Race)>) -> Named {
    let mut races = Vec::with_capacity(batch.len());
    let Finder { owners, ports } = &mut finder;
    for (record, mut race) in batch {
        if let Some((netns, range)) = exhausted_range(&race, &record.loser)
            && let Some(in_use) = ports.count(netns, &range)
        {
            set_in_use(&mut race, in_use);
        }
        for (fact, flow) in [(&record.loser, &mut race.loser), (&record.winner, &mut race.winner)] {
            flow.owner = recorded_sender(fact, record.header.time_ns).map(|sender| owners.from_fact(sender));
        }
        races.push(race);
    }
    let unknown: Vec<_> = races
        .iter()
        .flat_map(|race| [&race.loser, &race.winner].map(|flow| (race, flow)))
        .filter(|(_, flow)| flow.owner.is_none())
        .map(|(race, flow)| Query { protocol: race.protocol, original: flow.original, time: race.time })
        .collect();
    if !unknown.is_empty() {
        let mut found = owners.look_up(&unknown).into_iter();
        for race in &mut races {
            for flow in [&mut race.loser, &mut race.winner] {
                if flow.owner.is_none() {
                    flow.owner = found.next().flatten();
                }
            }
        }
    }
    (finder, races)
}
