//! The tracer's word against the truth. Pure.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::failed::{FailuresTold, compare_failures};
use super::judge::{Judged, Sides, Wrong, judge_ports, wrong_cgroup, wrong_class, wrong_pid, wrong_tuples};
use super::reuse::Reuse;
use super::truth::{Expected, Naming, Truth, Winner};
use crate::kernel::Detail;
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::tuple::OriginalTuple;

/// How many differences the text lists before it only counts them.
const LISTED: usize = 20;

/// One thing in which tracing and truth differ.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Difference {
    /// A packet was lost and no race says so.
    Missing {
        /// The round.
        round: u32,
        /// The pod that lost.
        loser: usize,
        /// The pod that won, where known.
        winner: Option<usize>,
    },
    /// A packet lost and was sent on all the same, and no race says so.
    Unnoticed {
        /// The round.
        round: u32,
    },
    /// A race nobody lost a packet in, or the second one about the same loss.
    Unexpected {
        /// Its contested source and the original sources of its loser and winner.
        race: String,
    },
    /// A connection did not come into the table, no race was to blame, and no failure says so.
    Untold {
        /// The flow.
        flow: String,
    },
    /// A failure of a flow that came in, or the second one about the same flow.
    Invented {
        /// The flow.
        flow: String,
        /// What the failure says.
        reason: &'static str,
    },
    /// A failure that is right about the flow, and wrong about something else.
    Misjudged {
        /// The flow.
        flow: String,
        /// What is wrong.
        what: What,
        /// The truth.
        expected: String,
        /// What the failure says.
        seen: String,
    },
    /// The account of a network namespace of several labs says what cannot be.
    Account {
        /// Its inode number.
        netns: u32,
        /// What is wrong.
        what: String,
    },
    /// Nothing happened that was to happen.
    NothingDied,
    /// A module went, and the watch does not say so, or has an account that closes.
    ModuleNotMissed {
        /// Its name.
        module: String,
    },
    /// Those of all labs do.
    Accounts {
        /// What is wrong.
        what: String,
    },
    /// A race that is right about who lost, and wrong about something else.
    Wrong {
        /// The round.
        round: u32,
        /// The pod that lost.
        loser: usize,
        /// What is wrong.
        what: What,
        /// The truth.
        expected: String,
        /// What the race says.
        seen: String,
    },
}

/// What a race can be wrong about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The protocol.
    Protocol,
    /// Why the packet lost.
    Class,
    /// Why the connection did not come in.
    Reason,
    /// What the kernel did with the packet.
    Verdict,
    /// How many ports there were, or how many were in use.
    Ports,
    /// The winner's original tuple or zone.
    Winner,
    /// The translated source both claimed.
    Contested,
    /// The loser's process or thread.
    LoserPid,
    /// The winner's process or thread.
    WinnerPid,
    /// The loser's cgroup.
    LoserCgroup,
    /// The winner's cgroup.
    WinnerCgroup,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Class => "class",
            Self::Reason => "reason",
            Self::Verdict => "verdict",
            Self::Ports => "ports in range and in use",
            Self::Winner => "winner",
            Self::Contested => "contested source",
            Self::LoserPid => "loser's process",
            Self::WinnerPid => "winner's process",
            Self::LoserCgroup => "loser's cgroup",
            Self::WinnerCgroup => "winner's cgroup",
        }
    }
}

/// The outcome.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Comparison {
    /// How many labs there were one after another, if more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labs: Option<usize>,
    /// Rounds run.
    pub rounds: usize,
    /// Whether packets lose to others, so that each is a race; else none may be seen.
    #[serde(skip)]
    races: bool,
    /// First packets that did not arrive: as many races must be seen.
    pub packets_lost: usize,
    /// What the kernel counted.
    pub insert_failed: u64,
    /// What it counted of packets that lost: `insert_failed`, or `drop` where the table was full.
    pub counted_lost: u64,
    /// Entries evicted for others, where that was to happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evicted: Option<u64>,
    /// How many entries there were, and how many there was room for, where they were to lie where others had lain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// Packets that lost and were sent on all the same: as many more races must be seen.
    pub resolved: u64,
    /// Races that name a packet that lost.
    pub seen: usize,
    /// Races that are not told and that the tracer counts as lost, where there may be such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_as_lost: Option<u64>,
    /// Rounds that were sent while nobody read, where that was to happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread_rounds: Option<u32>,
    /// Those whose class is right.
    pub classes_right: usize,
    /// Those with both original tuples, the contested tuple, protocol and verdict right.
    pub tuples_right: usize,
    /// Those that say how many ports there were and how many were in use, and are right; the others leave out how many were
    /// in use. `None` where ports are not to be told.
    pub ports_right: Option<usize>,
    /// Whether both processes must be named in each; else they may be absent, and never wrong.
    pub named: bool,
    /// Whether there are no processes to be named.
    #[serde(skip)]
    nobody: bool,
    /// Those with both processes right, or none named where none is here.
    pub pids_right: usize,
    /// Those with both cgroups right; `None` when the pods had none of their own.
    pub cgroups_right: Option<usize>,
    /// Of connections that were to fail without a race, where failures are traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<FailuresTold>,
    /// Whatever differs.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Whether tracing told the truth, all of it and nothing else, and the counters agree.
    #[must_use]
    pub fn ok(&self) -> bool {
        let raced = if self.races { self.insert_failed + self.resolved } else { 0 };
        self.differences.is_empty()
            && u64::try_from(self.packets_lost).is_ok_and(|lost| lost == self.counted_lost)
            && u64::try_from(self.seen).is_ok_and(|seen| seen + self.counted_as_lost.unwrap_or(0) == raced)
            // Else nothing of what was to happen did.
            && self.evicted != Some(0)
            && self.unread_rounds != Some(0)
    }

    /// Takes races that are not told for those the tracer says it lost, if it says so of all of them and of no more.
    #[must_use]
    pub fn with_lost(mut self, lost: u64) -> Self {
        let untold = |difference: &Difference| matches!(difference, Difference::Missing { .. });
        let missing = self.differences.iter().filter(|difference| untold(difference)).count();
        if u64::try_from(missing).is_ok_and(|missing| missing == lost) {
            self.differences.retain(|difference| !untold(difference));
        }
        self.counted_as_lost = Some(lost);
        self
    }

    /// Of a run in which so many rounds were sent while nobody read.
    #[must_use]
    pub fn with_unread(self, rounds: u32) -> Self {
        Self { unread_rounds: Some(rounds), ..self }
    }
}

/// Compares the races seen in the node's namespace during a run, and the failures where they are traced, with what happened
/// in it, as far as a level of detail tells.
/// Each packet that lost takes one race with its original tuple and zone as the loser's, if any one that is right.
#[must_use]
pub fn compare(truth: &Truth, races: &[Race], failures: Option<&[Failure]>, detail: Detail) -> Comparison {
    let mut left = Left::new(races);
    let ports = truth.cause.in_range().filter(|_| detail == Detail::Full);
    let cgroups_known = truth.pods.iter().all(|pod| pod.cgroup.is_some());
    let mut comparison = Comparison {
        labs: None,
        counted_as_lost: None,
        unread_rounds: None,
        rounds: truth.rounds.len(),
        packets_lost: truth.packets_lost(),
        insert_failed: truth.insert_failed,
        counted_lost: truth.counted_lost(),
        evicted: truth.evicted,
        reuse: truth.reuse,
        races: truth.cause.class().is_some(),
        resolved: truth.resolved(),
        seen: 0,
        classes_right: 0,
        tuples_right: 0,
        ports_right: ports.map(|_| 0),
        named: truth.naming.needed(detail),
        nobody: truth.naming == Naming::Nobody,
        pids_right: 0,
        cgroups_right: cgroups_known.then_some(0),
        failures: None,
        differences: Vec::new(),
    };
    let named = comparison.named;
    for expected in truth.expected() {
        let round = expected.round.number;
        let Some(race) = left.take(truth, &expected) else {
            let winner = if let Winner::Is((pod, _)) = expected.winner { Some(pod) } else { None };
            comparison.differences.push(match expected.loser {
                Some((loser, _)) => Difference::Missing { round, loser, winner },
                None => Difference::Unnoticed { round },
            });
            continue;
        };
        comparison.seen += 1;
        let sides = Sides::of(truth, &expected, race);
        let loser = sides.loser.first().map_or(0, |(pod, _)| *pod);
        let differences = &mut comparison.differences;
        let mut check = |Judged { all_right, wrongs }: Judged, right: &mut usize| {
            *right += usize::from(all_right);
            differences.extend(wrongs.into_iter().map(|Wrong { what, expected, seen }| Difference::Wrong {
                round,
                loser,
                what,
                expected,
                seen,
            }));
        };
        let class = truth.cause.class();
        check(
            class.map_or_else(Vec::new, |class| wrong_class(class, race, detail)).into(),
            &mut comparison.classes_right,
        );
        check(wrong_tuples(truth, &expected, race).into(), &mut comparison.tuples_right);
        if let (Some(ports), Some(right)) = (ports, &mut comparison.ports_right) {
            check(judge_ports(ports, race), right);
        }
        check(
            sides.judge_owners(truth, named, race, [What::LoserPid, What::WinnerPid], wrong_pid),
            &mut comparison.pids_right,
        );
        if let Some(right) = &mut comparison.cgroups_right {
            check(sides.judge_owners(truth, named, race, [What::LoserCgroup, What::WinnerCgroup], wrong_cgroup), right);
        }
    }
    if truth.cause.is_rare() && comparison.packets_lost == 0 {
        comparison.differences.push(Difference::NothingDied);
    }
    comparison.differences.extend(left.rest().map(|race| Difference::Unexpected { race: describe(race) }));
    if let Some(failures) = failures {
        let (told, differences) = compare_failures(truth, failures, named);
        comparison.failures = (told.expected > 0).then_some(told);
        comparison.differences.extend(differences);
    }
    comparison
}

/// The races no packet that lost has taken yet.
#[derive(Debug)]
struct Left<'a> {
    races: Vec<Option<&'a Race>>,
    /// By the loser's original tuple and zone.
    by_loser: HashMap<(OriginalTuple, u16), Vec<usize>>,
}

impl<'a> Left<'a> {
    fn new(races: &'a [Race]) -> Self {
        let mut by_loser: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, race) in races.iter().enumerate() {
            by_loser.entry((race.loser.original, race.zone)).or_default().push(index);
        }
        Self { races: races.iter().map(Some).collect(), by_loser }
    }

    /// Takes the race about this packet.
    fn take(&mut self, truth: &Truth, expected: &Expected<'_>) -> Option<&'a Race> {
        let losers: Vec<_> = match expected.loser {
            Some((_, flow)) => vec![(flow.original, flow.zone)],
            None => expected.round.flows.iter().map(|flow| (flow.original, flow.zone)).collect(),
        };
        let about = || losers.iter().filter_map(|loser| self.by_loser.get(loser)).flatten().copied();
        let right = |index: &usize| {
            let race = self.races.get(*index).copied().flatten();
            race.is_some_and(|race| wrong_tuples(truth, expected, race).is_empty())
        };
        let best = about().find(right).or_else(|| about().next())?;
        for loser in &losers {
            self.by_loser.entry(*loser).or_default().retain(|index| *index != best);
        }
        self.races.get_mut(best)?.take()
    }

    fn rest(self) -> impl Iterator<Item = &'a Race> {
        self.races.into_iter().flatten()
    }
}

fn describe(race: &Race) -> String {
    let [loser, winner] = [&race.loser, &race.winner].map(|flow| flow.original.ends().source);
    format!("{}: {loser} <- {winner}", race.contested.ends().source)
}

/// Aligned lines, the differences last.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raced = self.races;
        let processes = if self.nobody { "  no process named" } else { "  both processes right" };
        let absent = self.seen.saturating_sub(self.pids_right);
        let absent = if self.named || absent == 0 { "" } else { "  (of the others a sender is not known)" };
        let cgroups_right = self.cgroups_right.map_or_else(|| "-".to_owned(), |right| right.to_string());
        let lines = [
            ("labs", self.labs.map(|labs| labs.to_string())),
            ("rounds", Some(self.rounds.to_string())),
            ("  while nobody read", self.unread_rounds.map(|rounds| rounds.to_string())),
            ("connections", self.reuse.map(|reuse| reuse.connections.to_string())),
            ("  with room for", self.reuse.map(|reuse| reuse.room.to_string())),
            ("packets lost", Some(self.packets_lost.to_string())),
            ("insert_failed", Some(self.insert_failed.to_string())),
            ("drop", (self.counted_lost != self.insert_failed).then(|| self.counted_lost.to_string())),
            ("early_drop", self.evicted.map(|evicted| evicted.to_string())),
            ("clash_resolve", (self.resolved > 0).then(|| self.resolved.to_string())),
            ("races seen", Some(self.seen.to_string())),
            ("  class right", raced.then(|| self.classes_right.to_string())),
            ("  both tuples right", raced.then(|| self.tuples_right.to_string())),
            ("  ports in use right", self.ports_right.map(|right| right.to_string())),
            (processes, raced.then(|| format!("{:>8}{absent}", self.pids_right))),
            ("  both cgroups right", (raced && !self.nobody).then_some(cgroups_right)),
            ("counted as lost", self.counted_as_lost.map(|lost| lost.to_string())),
            ("failures seen", self.failures.map(|failures| failures.seen.to_string())),
            ("  reason and sender right", self.failures.map(|failures| failures.right.to_string())),
            ("differences", Some(self.differences.len().to_string())),
        ];
        for (what, number) in lines.into_iter().filter_map(|(what, number)| Some((what, number?))) {
            writeln!(f, "  {what:<28}{number:>8}")?;
        }
        for difference in self.differences.iter().take(LISTED) {
            writeln!(f, "  - {difference}")?;
        }
        if let Some(more) = self.differences.len().checked_sub(LISTED).filter(|more| *more > 0) {
            writeln!(f, "  - and {more} more")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { round, loser, winner: Some(winner) } => {
                write!(f, "round {round}: pod {loser} lost to pod {winner}, and no race says so")
            }
            Self::Missing { round, loser, winner: None } => {
                write!(f, "round {round}: pod {loser} lost, and no race says so")
            }
            Self::Unnoticed { round } => {
                write!(f, "round {round}: a packet lost and was sent on all the same, and no race says so")
            }
            Self::Untold { flow } => write!(f, "{flow} did not come into the table, and no failure says so"),
            Self::Invented { flow, reason } => write!(f, "a failure that was none: {flow}, {reason}"),
            Self::Misjudged { flow, what, expected, seen } => {
                write!(f, "{flow}: {} is {expected}, not {seen}", what.name())
            }
            Self::Account { netns, what } => write!(f, "the account of network namespace {netns} {what}"),
            Self::ModuleNotMissed { module } => write!(f, "{module} was unloaded, and the summary makes nothing of it"),
            Self::NothingDied => f.write_str("no entry died on its way into the table: try it with more --rounds"),
            Self::Accounts { what } => write!(f, "the accounts {what}"),
            Self::Unexpected { race } => write!(f, "a race that was none: {race}"),
            Self::Wrong { round, loser, what, expected, seen } => {
                write!(f, "round {round}, pod {loser} lost: {} is {expected}, not {seen}", what.name())
            }
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
pub(super) mod tests;
