//! The account: what the kernel counted against what our events explain. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::figures::Tally;
use super::window::Place;
use crate::race::event::{NetnsInum, Race, Verdict};
use crate::race::failure::Failure;

/// What one network namespace counted while we watched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    /// Which.
    pub netns: NetnsInum,
    /// Its figures, `None` for a counter this kernel does not have; or why there are none.
    pub counters: Result<Tally<Option<u64>>, String>,
    /// What to know about the figures.
    pub caveat: Option<Caveat>,
}

/// Why figures may not cover exactly the time we watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caveat {
    /// The namespace could not be read at the end: its figures are those of the last reading.
    Ended,
    /// The counters were zeroed, or the number went to a new namespace that was first read some time into its life.
    Restarted,
}

impl Caveat {
    /// As a sentence.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Ended => {
                "the network namespace was gone at the end: its counters are those of the last reading before that"
            }
            Self::Restarted => "the counters began again at zero: what they counted just before is not in them",
        }
    }
}

/// Note of an account that explains more than was counted, when nothing better is known. That races during a reading may
/// or may not be in it is no reason: see [`close_account`].
const AHEAD: &str = "more was seen than counted: the kernel counted some of these races otherwise, or late";

/// So many races at most are taken to be in one of their two counters only: one in each of the two readings. More would
/// let races that were not counted explain what has nothing to do with them.
const HALF_COUNTED: u64 = 2;

/// What one network namespace counted and what our events explain of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Which; `None` gathers the races whose namespace could not be read.
    pub netns: Option<NetnsInum>,
    /// The kernel's figures, `None` for a counter this kernel does not have; or why there are none.
    pub counters: Result<Tally<Option<u64>>, String>,
    /// What our events account for.
    pub explained: Tally<u64>,
    /// Counted less explained, where counted. Negative only with a [`note`](Self::note).
    pub unexplained: Tally<Option<i64>>,
    /// Whether the figures are of the whole time. If not, the rest of what the kernel counted is not known, and the
    /// account never closes.
    pub complete: bool,
    /// What to know before reading anything into a difference.
    pub note: Option<Cow<'static, str>>,
}

impl Account {
    /// Whether everything counted is known and explained, and everything explained was counted.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.closes_but_for_drops(0)
    }

    /// Whether it closes when so many drops more are explained, which are known by other means.
    #[must_use]
    pub fn closes_but_for_drops(&self, drops: u64) -> bool {
        let missing = Tally { drop: i64::try_from(drops).unwrap_or(i64::MAX), ..Tally::default() };
        let unexplained = self.unexplained.zip(missing, |unexplained, known| unexplained.map(|rest| rest - known));
        let explained = self.explained.zip(unexplained, |explained, unexplained| match unexplained {
            Some(difference) => difference == 0,
            // A counter this kernel does not have cannot contradict, as long as nothing claims to explain it.
            None => explained == 0,
        });
        self.complete && self.counters.is_ok() && explained.named().into_iter().all(|(_, closes)| closes)
    }
}

/// Closes the account of every namespace that counted anything or had a race, ordered by number. The other figure is
/// how many races are in no account, because they were before the first or after the last reading.
///
/// What explains what (net/netfilter/nf_conntrack_core.c, `__nf_conntrack_confirm` and `nf_ct_resolve_clash`):
/// * A dropped race explains one `insert_failed` and one `drop`; a resolved one explains one `clash_resolve`, or one
///   `insert_failed` on a kernel that does not count resolutions (before 5.10).
/// * A failure that is no clash explains what its function counted; see [`Failure::counted`].
/// * `chaintoolong` and `early_drop` name their own reason and explain themselves. Each `chaintoolong` of which no failure
///   tells also explains one `insert_failed`, as far as races and failures left any: an entry refused through ctnetlink
///   counts the former only.
/// * A race whose verdict is not known explains one `insert_failed` and one `drop` while both lack explanation, then
///   one `clash_resolve` while that does, and else an `insert_failed` and a `drop` after all, so that it never vanishes.
/// * A race during the first or the last reading ([`Place::Edge`]) explains what then still lacks explanation, and is
///   else in no account. One in each of the two readings may explain a `drop` or an `insert_failed` alone: the kernel
///   counts one after the other, and a reading can fall between.
/// * What is left is unexplained. An account with an unexplained `drop` does not close even when every `insert_failed` is
///   explained: it is a packet lost, of which only a failure tells, and they are not traced unless asked for.
#[must_use]
pub fn close_account(deltas: &[Delta], races: &RaceCounts) -> (Vec<Account>, u64) {
    let mut seen = races.0.clone();
    let mut accounts = Vec::new();
    for delta in deltas {
        let seen = seen.remove(&Some(delta.netns)).unwrap_or_default();
        accounts.push(account(Some(delta.netns), delta.counters.clone(), delta.caveat, seen));
    }
    for (netns, seen) in seen {
        let why = match netns {
            Some(_) => "this network namespace was not found, so its counters could not be read",
            None => "the network namespace of these races could not be read",
        };
        accounts.push(account(netns, Err(why.into()), None, seen));
    }
    accounts.sort_by_key(|(account, _)| account.netns);
    let outside = accounts.iter().map(|(_, outside)| outside).sum();
    let worth_telling = |account: &Account, outside| {
        let counted = |counters: &Tally<Option<u64>>| {
            counters.named().into_iter().any(|(_, counted)| counted.is_some_and(|counted| counted != 0))
        };
        let explained = account.explained.named().into_iter().any(|(_, explained)| explained != 0);
        // One that is gone and had a race before the first reading may have counted others since the last.
        explained || account.counters.as_ref().is_ok_and(counted) || (!account.complete && outside > 0)
    };
    let accounts = accounts
        .into_iter()
        .filter_map(|(account, outside)| worth_telling(&account, outside).then_some(account))
        .collect();
    (accounts, outside)
}

/// How many races there were, by namespace, verdict and place.
#[derive(Clone, Debug, Default)]
pub struct RaceCounts(BTreeMap<Option<NetnsInum>, Seen>);

impl RaceCounts {
    /// Counts one in.
    pub fn add(&mut self, race: &Race, place: Place) {
        let seen = self.0.entry(race.netns).or_default();
        let verdicts = match place {
            Place::Inside => &mut seen.inside,
            Place::Edge => &mut seen.edge,
            Place::Outside => {
                seen.outside += 1;
                return;
            }
        };
        match race.verdict {
            Some(Verdict::Dropped) => verdicts.dropped += 1,
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => verdicts.resolved += 1,
            None => verdicts.unknown += 1,
        }
    }

    /// Counts in a failure that is no clash.
    pub fn add_failure(&mut self, failure: &Failure, place: Place) {
        let seen = self.0.entry(failure.netns).or_default();
        let failures = match place {
            Place::Inside => &mut seen.inside.failures,
            Place::Edge => &mut seen.edge.failures,
            // It is in no account, and the kernel's figures have it neither.
            Place::Outside => return,
        };
        *failures = failures.zip(failure.counted, |sum, counted| sum + counted);
    }
}

/// Races of one namespace by place.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    inside: Verdicts,
    edge: Verdicts,
    outside: u64,
}

/// Races by verdict, and what other failures counted.
#[derive(Clone, Copy, Debug, Default)]
struct Verdicts {
    dropped: u64,
    resolved: u64,
    unknown: u64,
    failures: Tally<u64>,
}

impl Verdicts {
    fn races(self) -> u64 {
        self.dropped + self.resolved + self.unknown
    }
}

/// The account of one namespace, and how many of its races are not in it.
fn account(
    netns: Option<NetnsInum>,
    counters: Result<Tally<Option<u64>>, String>,
    caveat: Option<Caveat>,
    seen: Seen,
) -> (Account, u64) {
    let counted = counters.as_ref().ok().copied().unwrap_or_default();
    let mut explanation = Explanation::of(counted);
    explanation.races(seen.inside);
    let at_edges = explanation.races_as_far_as_counted(seen.edge);
    let explained = explanation.explained;
    let unexplained = counted.zip(explained, |counted, explained| {
        // Counters of a kernel up for centuries stay below 2^63.
        Some(i64::try_from(counted?).ok()?.saturating_sub_unsigned(explained))
    });
    let ahead = unexplained.named().into_iter().any(|(_, difference)| difference.is_some_and(i64::is_negative));
    let note = caveat.map(Caveat::text).or(ahead.then_some(AHEAD)).map(Cow::Borrowed);
    let outside = seen.outside + seen.edge.races() - at_edges;
    (Account { netns, counters, explained, unexplained, complete: caveat.is_none(), note }, outside)
}

/// See [`close_account`].
struct Explanation {
    counted: Tally<Option<u64>>,
    explained: Tally<u64>,
}

impl Explanation {
    fn of(counted: Tally<Option<u64>>) -> Self {
        let explained = Tally {
            chaintoolong: counted.chaintoolong.unwrap_or(0),
            early_drop: counted.early_drop.unwrap_or(0),
            ..Tally::default()
        };
        Self { counted, explained }
    }

    /// Races and failures that were counted, and the failed inserts that `chaintoolong` names.
    fn races(&mut self, Verdicts { dropped, resolved, unknown, failures }: Verdicts) {
        self.drop(dropped);
        self.resolve(resolved);
        self.explained.insert_failed += failures.insert_failed;
        self.explained.drop += failures.drop;
        let untold = self.explained.chaintoolong.saturating_sub(failures.chaintoolong);
        self.explained.chaintoolong = self.explained.chaintoolong.max(failures.chaintoolong);
        self.explained.insert_failed += untold.min(self.failed_lacking());

        let as_dropped = unknown.min(self.dropped_lacking());
        self.drop(as_dropped);
        let left = unknown - as_dropped;
        let as_resolved = left.min(self.clash_resolve_lacking());
        self.explained.clash_resolve += as_resolved;
        self.drop(left - as_resolved);
    }

    /// Races that may have been counted; how many of them are explained to be.
    fn races_as_far_as_counted(&mut self, Verdicts { dropped, resolved, unknown, failures }: Verdicts) -> u64 {
        self.explained.insert_failed += failures.insert_failed.min(self.failed_lacking());
        self.explained.drop += failures.drop.min(self.drop_lacking());
        let may_be_dropped = dropped + unknown;
        let dropped = dropped.min(self.dropped_lacking());
        self.drop(dropped);
        let room = if self.counts_resolutions() { self.clash_resolve_lacking() } else { self.failed_lacking() };
        let resolved = resolved.min(room);
        self.resolve(resolved);
        let as_dropped = unknown.min(self.dropped_lacking());
        self.drop(as_dropped);
        let as_resolved = (unknown - as_dropped).min(self.clash_resolve_lacking());
        self.explained.clash_resolve += as_resolved;
        let told = dropped + as_dropped + as_resolved;
        told + resolved + self.half_counted(may_be_dropped - told)
    }

    /// As many of these races as can explain the one counter that still lacks explanation where the other does not.
    fn half_counted(&mut self, races: u64) -> u64 {
        let races = races.min(HALF_COUNTED);
        let (failed, drop) = (races.min(self.failed_lacking()), races.min(self.drop_lacking()));
        self.explained.insert_failed += failed;
        self.explained.drop += drop;
        failed.max(drop)
    }

    fn drop(&mut self, races: u64) {
        self.explained.insert_failed += races;
        self.explained.drop += races;
    }

    fn resolve(&mut self, races: u64) {
        if self.counts_resolutions() {
            self.explained.clash_resolve += races;
        } else {
            self.explained.insert_failed += races;
        }
    }

    /// Whether this kernel does; where nothing could be read, it is taken to.
    fn counts_resolutions(&self) -> bool {
        self.counted.clash_resolve.is_some() || self.counted.insert_failed.is_none()
    }

    fn failed_lacking(&self) -> u64 {
        self.counted.insert_failed.unwrap_or(0).saturating_sub(self.explained.insert_failed)
    }

    fn drop_lacking(&self) -> u64 {
        self.counted.drop.unwrap_or(0).saturating_sub(self.explained.drop)
    }

    fn dropped_lacking(&self) -> u64 {
        self.failed_lacking().min(self.drop_lacking())
    }

    fn clash_resolve_lacking(&self) -> u64 {
        self.counted.clash_resolve.unwrap_or(0).saturating_sub(self.explained.clash_resolve)
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
