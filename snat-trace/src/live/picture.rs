//! What is known so far, as much of it as is kept: the last races and the running figures.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::race::event::{Flow, Race};
use crate::race::time::{KernelTime, WallClock};
use crate::summary::{ON_THE_WAY, Summary};

/// So many races are kept; of those before only the number is known.
pub const KEPT: usize = 1000;

/// How long figures are kept for the rates.
const MINUTE: Duration = Duration::from_secs(60);

/// The bars of the overlaps: each with its name and the end of its range.
const OVERLAPS: [(&str, Duration); 6] = [
    ("  <1 us", Duration::from_micros(1)),
    ("  1 us+", Duration::from_micros(10)),
    (" 10 us+", Duration::from_micros(100)),
    ("100 us+", Duration::from_millis(1)),
    ("  1 ms+", Duration::from_millis(10)),
    (" 10 ms+", Duration::MAX),
];

/// The running totals at one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time: KernelTime,
    races: u64,
    connections: Option<u64>,
}

/// Races, figures and times. Cheap to clone: races are shared.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The last races, the youngest first.
    races: VecDeque<Arc<Race>>,
    /// How many there were, those not kept too.
    come: u64,
    /// Races that came while the view stood still, which it does not have.
    missed: u64,
    /// Failures that are no race, where they are traced.
    failures: u64,
    /// Figures of the last minute, the youngest last.
    moments: VecDeque<Moment>,
    /// The totals, as last told.
    summary: Option<Arc<Summary>>,
    started: KernelTime,
    now: KernelTime,
    clock: WallClock,
}

/// How many happen in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Races, of the last second and the last minute.
    pub(super) races: Option<(f64, f64)>,
    /// New connections, of the last second.
    pub(super) connections: Option<f64>,
}

/// `insert_failed` in namespaces that had races.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Failed {
    pub(super) counted: u64,
    pub(super) explained: u64,
    pub(super) unexplained: u64,
}

impl Picture {
    /// Before anything has happened.
    #[must_use]
    pub fn new(started: KernelTime, clock: WallClock) -> Self {
        Self {
            races: VecDeque::new(),
            come: 0,
            missed: 0,
            failures: 0,
            moments: VecDeque::new(),
            summary: None,
            started,
            now: started,
            clock,
        }
    }

    /// Takes a race in, and lets the oldest go when there are too many.
    pub fn race(&mut self, race: Arc<Race>) {
        self.races.push_front(race);
        self.races.truncate(KEPT);
        self.come += 1;
    }

    /// Counts a failure that is no race.
    pub fn failure(&mut self) {
        self.failures += 1;
    }

    /// How many races the view was too slow for, so far.
    pub fn missed(&mut self, missed: u64) {
        self.missed = missed;
    }

    /// The totals so far.
    pub fn so_far(&mut self, summary: Summary) {
        let time = summary.span.ended;
        self.moments.push_back(Moment { time, races: summary.races(), connections: summary.connections });
        while self.moments.front().is_some_and(|moment| time.since(moment.time) > MINUTE) {
            self.moments.pop_front();
        }
        self.summary = Some(Arc::new(summary));
        self.at(time);
    }

    /// Time goes on.
    pub fn at(&mut self, now: KernelTime) {
        self.now = self.now.max(now);
    }

    /// The races kept, the youngest first, each with its number: the first one that came has 1.
    pub(super) fn races(&self) -> impl Iterator<Item = (u64, &Arc<Race>)> {
        self.races.iter().enumerate().map(|(index, race)| (self.come - index as u64, race))
    }

    /// How many races came, those not kept too.
    pub(super) fn come(&self) -> u64 {
        self.come
    }

    /// How many of them are not kept, and how many never came.
    pub(super) fn not_kept(&self) -> (u64, u64) {
        (self.come - self.races.len() as u64, self.missed)
    }

    pub(super) fn failures(&self) -> Option<u64> {
        let traced = self.summary.as_ref().is_some_and(|summary| summary.failures.is_some());
        (traced || self.failures > 0).then_some(self.failures)
    }

    pub(super) fn clock(&self) -> WallClock {
        self.clock
    }

    pub(super) fn started(&self) -> KernelTime {
        self.started
    }

    pub(super) fn watched(&self) -> Duration {
        self.now.since(self.started)
    }

    /// All races, those that the filters of the command line hide too.
    pub(super) fn seen(&self) -> u64 {
        self.summary.as_ref().map_or(0, |summary| summary.races()).max(self.come + self.missed)
    }

    pub(super) fn connections(&self) -> Option<u64> {
        self.summary.as_ref()?.connections
    }

    /// From the totals of the last minute.
    pub(super) fn rates(&self) -> Rates {
        let per_second = |from: Option<&Moment>, of: &dyn Fn(&Moment) -> Option<u64>| {
            let (from, to) = (from?, self.moments.back()?);
            let seconds = to.time.since(from.time).as_secs_f64();
            let count = of(to)?.saturating_sub(of(from)?);
            // Counts of a minute are far below 2^52.
            (seconds > 0.0).then(|| count as f64 / seconds)
        };
        let before = self.moments.len().checked_sub(2).and_then(|index| self.moments.get(index));
        let races = |moment: &Moment| Some(moment.races);
        Rates {
            races: per_second(before, &races).zip(per_second(self.moments.front(), &races)),
            connections: per_second(before, &|moment: &Moment| moment.connections),
        }
    }

    /// The account of failed inserts so far; `None` as long as no counters were read since the first race.
    pub(super) fn failed(&self) -> Option<Failed> {
        let accounts = &self.summary.as_ref()?.accounts;
        let mut read = accounts.iter().filter_map(|account| {
            let counted = account.counters.as_ref().ok()?.insert_failed?;
            // What came since the reading is explained already and not counted yet.
            let explained = account.explained.insert_failed.min(counted);
            Some(Failed { counted, explained, unexplained: counted - explained })
        });
        let first = read.next()?;
        Some(read.fold(first, |sum, next| Failed {
            counted: sum.counted + next.counted,
            explained: sum.explained + next.explained,
            unexplained: sum.unexplained + next.unexplained,
        }))
    }

    /// How many clashes were lost, and how many are on their way to the view.
    pub(super) fn lost(&self) -> (u64, u64) {
        let Some(summary) = &self.summary else { return (0, 0) };
        let on_the_way: u64 =
            summary.lost.iter().filter(|(reason, _)| reason == ON_THE_WAY).map(|(_, count)| count).sum();
        (summary.lost() - on_the_way, on_the_way)
    }
}

/// What is contested most, the most first.
pub(super) fn destinations<'a>(races: impl Iterator<Item = &'a Race>) -> Vec<(String, usize)> {
    ranked(races.map(|race| {
        let destination = race.contested.ends().destination;
        if race.protocol.is_icmp() { destination.ip().to_string() } else { destination.to_string() }
    }))
}

/// Who loses most, the most first. A sender that is not known has a question mark, as in the list of races, before the pod or
/// container behind its address, else before the interface and that.
pub(super) fn losers<'a>(races: impl Iterator<Item = &'a Race>) -> Vec<(String, usize)> {
    ranked(races.map(|race| {
        let Flow { original, owner, behind, .. } = &race.loser;
        let address = original.ends().source.ip();
        match (owner, behind) {
            (Some(owner), _) => owner.workload().into_owned(),
            (None, Some(behind)) if behind.workload().is_some() => format!("? {}", behind.words()),
            (None, Some(behind)) => format!("? {} {address}", behind.words()),
            (None, None) => format!("? {address}"),
        }
    }))
}

fn ranked(names: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut counts = HashMap::<_, usize>::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_by(|(one, ones), (other, others)| others.cmp(ones).then_with(|| one.cmp(other)));
    ranked
}

/// How many overlaps are in each range, from short to long.
pub(super) fn overlaps<'a>(races: impl Iterator<Item = &'a Race>) -> [(&'static str, usize); OVERLAPS.len()] {
    let mut bars = OVERLAPS.map(|(name, _)| (name, 0));
    for overlap in races.filter_map(|race| race.overlap) {
        let bar = OVERLAPS.iter().position(|&(_, end)| overlap < end).unwrap_or(OVERLAPS.len() - 1);
        bars[bar].1 += 1;
    }
    bars
}
