//! From records to named races, in the order of kernel time.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;

use snat_trace_common::ClashRecord;
use tokio::task::{JoinHandle, spawn_blocking};

use super::writer::{Message, Room, Writer};
use super::{Options, WatchError, joined};
use crate::counters::ports::PortCounts;
use crate::owner::Owners;
use crate::race::class::{exhausted_range, set_in_use};
use crate::race::classify::classify;
use crate::race::decode::{Record, decode};
use crate::race::event::{NetnsInum, Race};
use crate::race::order::{Decided, Reorder};
use crate::race::time::KernelTime;
use crate::race::verdict::decided;
use crate::session::Session;
use crate::summary::Totals;

/// Most records held back; more are lost, and counted as such.
const PENDING: usize = 16_384;
/// Most races whose owners are looked for at once, and as many may wait for the output before the next are.
const BATCH: usize = 256;

/// Records on their way to the output.
pub(super) struct Pipeline<'a> {
    options: &'a Options<'a>,
    session: &'a Session,
    order: Reorder,
    /// `None` while a batch is being named.
    finder: Option<Finder>,
    pub(super) naming: Option<JoinHandle<Named>>,
    /// Named, and on their way to the output.
    named: VecDeque<Race>,
    pub(super) totals: Totals,
    /// Network namespaces that had clashes of late, for the counters to be read.
    involved: BTreeSet<NetnsInum>,
    shown: u64,
}

/// Finds out what the records do not say.
pub(super) struct Finder {
    owners: Owners,
    ports: PortCounts,
}

/// A batch with everything known, and the finder for the next.
pub(super) type Named = (Finder, Vec<Race>);

impl<'a> Pipeline<'a> {
    pub(super) fn new(options: &'a Options<'a>, session: &'a Session, owners: Owners) -> Self {
        Self {
            options,
            session,
            order: Reorder::default(),
            finder: Some(Finder { owners, ports: PortCounts::default() }),
            naming: None,
            named: VecDeque::new(),
            totals: Totals::default(),
            involved: BTreeSet::new(),
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
            Ok(Record::Clash(clash)) => {
                self.involved.extend((clash.netns != 0).then_some(NetnsInum(clash.netns)));
                if self.order.len() < PENDING {
                    self.order.push(clash);
                } else {
                    self.totals.lose("queue-full");
                }
            }
            Ok(Record::Verdict(verdict)) => self.order.decide(verdict),
            Err(undecodable) => self.totals.lose(undecodable.reason()),
        }
    }

    /// Whether network namespaces had clashes since they were last taken.
    pub(super) fn involved(&self) -> bool {
        !self.involved.is_empty()
    }

    /// The network namespaces that had clashes since this was last asked.
    pub(super) fn take_involved(&mut self) -> BTreeSet<NetnsInum> {
        std::mem::take(&mut self.involved)
    }

    /// Whether there is something to name, and room for it.
    pub(super) fn can_name(&self) -> bool {
        self.naming.is_none() && !self.order.is_empty() && self.named.len() < BATCH
    }

    /// Whether a race waits for the output.
    pub(super) fn has_named(&self) -> bool {
        !self.named.is_empty()
    }

    /// Starts naming what no earlier record can precede any more at `now`.
    pub(super) fn name(&mut self, now: KernelTime) {
        let batch = self.next_batch(|order| order.pop(now));
        self.start_naming(batch);
    }

    /// The next records that `pop` gives, classified.
    fn next_batch(&mut self, pop: impl Fn(&mut Reorder) -> Option<Decided>) -> Vec<(Box<ClashRecord>, Race)> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(Decided { clash, verdict }) = pop(&mut self.order)
        {
            match classify(&clash, self.session.started) {
                Ok(mut race) => {
                    race.verdict = self.totals.verdict(verdict.as_ref().and_then(decided), race.verdict);
                    batch.push((clash, race));
                }
                Err(undecodable) => self.totals.lose(undecodable.reason()),
            }
        }
        batch
    }

    fn start_naming(&mut self, batch: Vec<(Box<ClashRecord>, Race)>) {
        if batch.is_empty() {
            return;
        }
        if let Some(finder) = self.finder.take() {
            self.naming = Some(spawn_blocking(move || name_all(finder, batch)));
        }
    }

    /// Takes a named batch in.
    pub(super) fn take_named(&mut self, (finder, races): Named) {
        self.finder = Some(finder);
        self.named.extend(races);
    }

    /// Counts the first race that waits, and hands it over if it is to be shown.
    pub(super) fn hand_over(&mut self, room: Room<'_>) {
        let Some(race) = self.named.pop_front() else { return };
        self.totals.add(&race, self.options.detail);
        if !self.enough() && self.options.filter.shows(&race) {
            room.send(Message::Race(Box::new(race), self.session.clock));
            self.shown += 1;
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
                room = writer.room_at_last(), if self.has_named() => self.hand_over(room?),
            }
        }
    }

    /// Counts as lost what is not shown yet.
    async fn give_up(&mut self) -> Result<(), WatchError> {
        if self.naming.is_some() {
            let named = joined(&mut self.naming).await?;
            self.take_named(named);
        }
        let left = self.named.drain(..).count() + self.order.len();
        self.order = Reorder::default();
        (0..left).for_each(|_| self.totals.lose("not-shown"));
        Ok(())
    }
}

/// Names the owners of a batch, and counts the ports in use where there seemed to be none left.
fn name_all(mut finder: Finder, batch: Vec<(Box<ClashRecord>, Race)>) -> Named {
    let Finder { owners, ports } = &mut finder;
    let flows: Vec<_> =
        batch.iter().flat_map(|(record, race)| [record.loser, record.winner].map(|flow| (flow, race.time))).collect();
    let mut names = owners.name(&flows).into_iter();
    let mut races = Vec::with_capacity(batch.len());
    for (record, mut race) in batch {
        if let Some((netns, range)) = exhausted_range(&race, &record.loser)
            && let Some(in_use) = ports.count(netns, &range)
        {
            set_in_use(&mut race, in_use);
        }
        for flow in [&mut race.loser, &mut race.winner] {
            flow.owner = names.next().flatten();
        }
        races.push(race);
    }
    (finder, races)
}
