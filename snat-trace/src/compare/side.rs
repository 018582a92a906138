//! What one file of evidence tells, over all of its recordings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use crate::evidence::node::NodeRecord;
use crate::evidence::{Cut, Evidence, Item, ReadError};
use crate::output::text::why_open;
use crate::probe::HookState;
use crate::race::event::{Class, Race, Verdict};
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::Summary;

/// Slices at most that a recording is cut into to see how evenly races come.
const SLICES: u64 = 30;
/// Slices at least, of a second each: of less time nobody knows.
const FEWEST_SLICES: u64 = 10;

/// Which races are counted together.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Those that dropped a packet.
    Dropped,
    /// All.
    All,
    /// Those of a class.
    Of(Class),
}

impl Kind {
    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::All => "all",
            Self::Of(class) => class.name(),
        }
    }
}

/// Races of a kind.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Series {
    /// As the summaries count them, or as they are told where there is none.
    count: u64,
    /// How many are told, in each second watched that has any.
    seconds: BTreeMap<u64, u64>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Side {
    series: BTreeMap<Kind, Series>,
    /// How many recordings it has.
    pub recordings: u64,
    /// Those of them that end without a summary.
    pub unfinished: u64,
    /// How long they watched together; one without a summary up to its last line.
    pub watched: Duration,
    /// New connections meanwhile, if every recording says how many.
    pub connections: Option<u64>,
    /// Races whose packet's fate is not known.
    pub undecided: u64,
    /// Clashes that were seen and are no race here, by whatever reason.
    pub lost: u64,
    /// Why the account does not close, if it does not.
    pub open: Vec<String>,
    /// Kernels, as `uname -r`.
    pub kernels: BTreeSet<String>,
    /// Levels of detail.
    pub details: BTreeSet<&'static str>,
    /// Hooks that were attached, each by role and symbol.
    pub hooks: BTreeSet<String>,
    /// The machine, as the last recording has it.
    pub node: Option<Box<NodeRecord>>,
    /// How the file ends.
    pub cut: Cut,
    /// The head of the last recording.
    session: Option<Session>,
    /// The recording at hand.
    current: Option<Current>,
}

/// A recording that has not ended yet.
#[derive(Clone, Debug)]
struct Current {
    started: KernelTime,
    last: KernelTime,
    /// Races that it tells of.
    told: BTreeMap<Kind, u64>,
    undecided: u64,
}

impl Side {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read<R: Read>(mut evidence: Evidence<R>) -> Result<Self, ReadError> {
        let mut side = Self::nothing();
        for item in &mut evidence {
            side.add(item?);
        }
        side.end_unfinished();
        side.cut = evidence.cut();
        Ok(side)
    }

    fn nothing() -> Self {
        Self {
            series: BTreeMap::new(),
            recordings: 0,
            unfinished: 0,
            watched: Duration::ZERO,
            connections: Some(0),
            undecided: 0,
            lost: 0,
            open: Vec::new(),
            kernels: BTreeSet::new(),
            details: BTreeSet::new(),
            hooks: BTreeSet::new(),
            node: None,
            cut: Cut::No,
            session: None,
            current: None,
        }
    }

    fn add(&mut self, item: Item) {
        let seen = match &item {
            Item::Race(race) => Some(race.time),
            Item::Failure(failure) => Some(failure.time),
            Item::Sample(sample) => Some(sample.time),
            Item::Rules(rules) => Some(rules.time),
            Item::Session(_) | Item::Node(_) | Item::Summary(_) => None,
        };
        if let (Some(time), Some(current)) = (seen, &mut self.current) {
            current.last = current.last.max(time);
        }
        match item {
            Item::Session(session) => self.begin(*session),
            Item::Node(node) => self.node = Some(node),
            Item::Race(race) => self.race(&race),
            Item::Summary(summary) => self.end(&summary),
            Item::Failure(_) | Item::Rules(_) | Item::Sample(_) => {}
        }
    }

    fn begin(&mut self, session: Session) {
        if self.session.as_ref().is_some_and(|before| before.is_same_run(&session)) {
            return;
        }
        self.end_unfinished();
        self.recordings += 1;
        self.kernels.insert(session.kernel.clone());
        self.details.insert(session.request.detail.name());
        let attached = session.hooks.iter().filter(|hook| matches!(hook.state, HookState::Attached));
        self.hooks.extend(attached.map(|hook| format!("{} {}", hook.role.name(), hook.symbol)));
        let started = session.started;
        self.current = Some(Current { started, last: started, told: BTreeMap::new(), undecided: 0 });
        self.session = Some(session);
    }

    fn race(&mut self, race: &Race) {
        // Before any recording, nothing says since when it was watched.
        let Some(current) = &mut self.current else { return };
        let second = self.watched.saturating_add(race.time.since(current.started)).as_secs();
        let dropped = (race.verdict == Some(Verdict::Dropped)).then_some(Kind::Dropped);
        for kind in [Kind::All, Kind::Of(race.class)].into_iter().chain(dropped) {
            *current.told.entry(kind).or_default() += 1;
            *self.series.entry(kind).or_default().seconds.entry(second).or_default() += 1;
        }
        current.undecided += u64::from(race.verdict.is_none());
    }

    fn end(&mut self, summary: &Summary) {
        let classes = summary.classes.iter().map(|&(class, count)| (Kind::Of(class), count));
        for (kind, count) in [(Kind::Dropped, summary.dropped), (Kind::All, summary.races())].into_iter().chain(classes)
        {
            self.count(kind, count);
        }
        self.undecided = self.undecided.saturating_add(summary.undecided);
        self.watched = self.watched.saturating_add(summary.span.duration());
        self.connections = self.connections.zip(summary.connections).map(|(before, more)| before.saturating_add(more));
        self.lost = summary.lost.iter().fold(self.lost, |sum, (_, count)| sum.saturating_add(*count));
        if !summary.closes() {
            self.open.extend(why_open(summary));
        }
        self.current = None;
    }

    /// Counts what a recording without a summary tells.
    fn end_unfinished(&mut self) {
        let Some(Current { started, last, told, undecided }) = self.current.take() else { return };
        told.into_iter().for_each(|(kind, count)| self.count(kind, count));
        self.undecided = self.undecided.saturating_add(undecided);
        self.watched = self.watched.saturating_add(last.since(started));
        self.connections = None;
        self.unfinished += 1;
    }

    fn count(&mut self, kind: Kind, count: u64) {
        let series = self.series.entry(kind).or_default();
        series.count = series.count.saturating_add(count);
    }

    /// Kinds that there are races of.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.series.iter().filter(|(_, series)| series.count > 0).map(|(&kind, _)| kind)
    }

    /// How many races of a kind there were.
    #[must_use]
    pub fn races(&self, kind: Kind) -> u64 {
        self.series.get(&kind).map_or(0, |series| series.count)
    }

    /// How many of them the file tells of.
    #[must_use]
    pub fn told(&self, kind: Kind) -> u64 {
        self.series.get(&kind).map_or(0, |series| series.seconds.values().sum())
    }

    /// Of how many races that come together each race is one, on average: the variance of their number in slices of the time
    /// watched by its mean, which is 1 where each comes by itself (a Poisson process), and never taken for less. `None` where
    /// nobody can tell: watched for too short a time, or races that are counted and not told.
    #[must_use]
    pub fn burst(&self, kind: Kind) -> Option<f64> {
        let seconds = self.watched.as_secs();
        if seconds < FEWEST_SLICES {
            return None;
        }
        let (count, told) = (self.races(kind), self.told(kind));
        if count == 0 {
            return Some(1.0);
        }
        let width = seconds.div_ceil(SLICES);
        let slices = seconds / width;
        let mut races = BTreeMap::<u64, u64>::new();
        for (second, count) in self.series.get(&kind).into_iter().flat_map(|series| &series.seconds) {
            // What is left of a slice at the end goes into the one before.
            *races.entry((second / width).min(slices - 1)).or_default() += count;
        }
        if told == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (mean, empty, slices, share) = (
            told as f64 / slices as f64,
            (slices - races.len() as u64) as f64,
            slices as f64,
            count as f64 / told as f64,
        );
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let squares: f64 = races.values().map(|&races| (races as f64 - mean).powi(2)).sum();
        let variance = (squares + empty * mean * mean) / (slices - 1.0);
        // Of bursts of which only some races are told the others are missing in each.
        Some(1.0 + ((variance / mean - 1.0) * share.max(1.0)).max(0.0))
    }
}
