//! The tracer's word against the truth. Pure.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::truth::{Expected, FlowTruth, PodTruth, Truth};
use crate::owner::Owner;
use crate::race::event::{Flow, Race, Verdict};
use crate::race::tuple::{Ends, OriginalTuple, TranslatedTuple};

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
    /// A race nobody lost a packet in, or the second one about the same loss.
    Unexpected {
        /// Its contested source and the original sources of its loser and winner.
        race: String,
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
    /// The kernel dropped the packet.
    Verdict,
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
            Self::Verdict => "verdict",
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
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Comparison {
    /// Rounds run.
    pub rounds: usize,
    /// First packets that did not arrive: as many races must be seen.
    pub packets_lost: usize,
    /// What the kernel counted.
    pub insert_failed: u64,
    /// Races that name a packet that was lost.
    pub seen: usize,
    /// Those with both original tuples, the contested tuple, protocol and verdict right.
    pub tuples_right: usize,
    /// Whether both processes must be named in each; else they may be absent, and never wrong.
    pub named: bool,
    /// Those with both processes right.
    pub pids_right: usize,
    /// Those with both cgroups right; `None` when the pods had none of their own.
    pub cgroups_right: Option<usize>,
    /// Whatever differs.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Whether tracing told the truth, all of it and nothing else, and the counters agree.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.differences.is_empty()
            && self.seen == self.packets_lost
            && u64::try_from(self.packets_lost).is_ok_and(|lost| lost == self.insert_failed)
    }
}

/// Compares the races seen in the node's namespace during a run with what happened in it. Each lost packet takes one
/// race with its original tuple and zone as the loser's, if any the one with the right winner.
#[must_use]
pub fn compare(truth: &Truth, races: &[Race]) -> Comparison {
    let mut left = Left::new(races);
    let mut differences = Vec::new();
    let (mut packets_lost, mut seen, mut tuples_right, mut pids_right, mut cgroups_right) = (0, 0, 0, 0, 0);
    let cgroups_known = truth.pods.iter().all(|pod| pod.cgroup.is_some());
    for expected in truth.expected() {
        packets_lost += 1;
        let (round, loser) = (expected.round, expected.loser.0);
        let Some(race) = left.take(truth, &expected) else {
            let winner = expected.winner.map(|(pod, _)| pod);
            differences.push(Difference::Missing { round, loser, winner });
            continue;
        };
        seen += 1;
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
        check(wrong_tuples(truth, &expected, race).into(), &mut tuples_right);
        check(judge_owners(truth, &expected, race, [What::LoserPid, What::WinnerPid], wrong_pid), &mut pids_right);
        if cgroups_known {
            let whats = [What::LoserCgroup, What::WinnerCgroup];
            check(judge_owners(truth, &expected, race, whats, wrong_cgroup), &mut cgroups_right);
        }
    }
    differences.extend(left.rest().map(|race| Difference::Unexpected { race: describe(race) }));
    Comparison {
        rounds: truth.rounds.len(),
        packets_lost,
        insert_failed: truth.insert_failed,
        seen,
        tuples_right,
        named: truth.named,
        pids_right,
        cgroups_right: cgroups_known.then_some(cgroups_right),
        differences,
    }
}

/// The races no lost packet has taken yet.
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

    /// Takes the race about this loss.
    fn take(&mut self, truth: &Truth, expected: &Expected<'_>) -> Option<&'a Race> {
        let about = self.by_loser.get_mut(&(expected.loser.1.original, expected.loser.1.zone))?;
        let right = |index: &usize| {
            let race = self.races.get(*index).copied().flatten();
            race.is_some_and(|race| wrong_tuples(truth, expected, race).is_empty())
        };
        let best = about.iter().position(right).unwrap_or(0);
        if about.is_empty() {
            return None;
        }
        self.races.get_mut(about.remove(best))?.take()
    }

    fn rest(self) -> impl Iterator<Item = &'a Race> {
        self.races.into_iter().flatten()
    }
}

/// One thing a race is wrong about.
#[derive(Debug)]
struct Wrong {
    what: What,
    expected: String,
    seen: String,
}

/// What a race says of one matter.
#[derive(Debug)]
struct Judged {
    /// Nothing is wrong and nothing absent.
    all_right: bool,
    wrongs: Vec<Wrong>,
}

impl From<Vec<Wrong>> for Judged {
    fn from(wrongs: Vec<Wrong>) -> Self {
        Self { all_right: wrongs.is_empty(), wrongs }
    }
}

fn wrong_tuples(truth: &Truth, expected: &Expected<'_>, race: &Race) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    let mut wrong = |what, expected: String, seen: String| wrongs.push(Wrong { what, expected, seen });
    if race.protocol != truth.protocol {
        wrong(What::Protocol, truth.protocol.to_string(), race.protocol.to_string());
    }
    if race.verdict != Some(Verdict::Dropped) {
        let seen = race.verdict.map_or("unknown", Verdict::name);
        wrong(What::Verdict, Verdict::Dropped.name().to_owned(), seen.to_owned());
    }
    let Some((_, winner)) = expected.winner else { return wrongs };
    if (race.winner.original, race.winner_zone) != (winner.original, winner.zone) {
        let text = |tuple: OriginalTuple, zone| match zone {
            0 => tuple.ends().source.to_string(),
            zone => format!("{} in zone {zone}", tuple.ends().source),
        };
        wrong(What::Winner, text(winner.original, winner.zone), text(race.winner.original, race.winner_zone));
    }
    let destination = winner.original.ends().destination;
    let contested = winner.arrived_as.map(|source| TranslatedTuple::from_ends(Ends { source, destination }));
    if contested != Some(race.contested) {
        let text = |tuple: TranslatedTuple| format!("{} > {}", tuple.ends().source, tuple.ends().destination);
        wrong(What::Contested, contested.map_or_else(String::new, text), text(race.contested));
    }
    wrongs
}

/// The truth and what was seen, if an owner is not this pod.
type WrongOwner = fn(&PodTruth, &Owner) -> Option<(String, String)>;

/// Judges the loser's and the winner's owner. A winner that is not known is not judged, and an owner that is absent is
/// wrong only where senders must be named.
fn judge_owners(truth: &Truth, expected: &Expected<'_>, race: &Race, whats: [What; 2], wrong: WrongOwner) -> Judged {
    let mut all_right = true;
    let mut judge = |what, pod: Option<(usize, &FlowTruth)>, flow: &Flow| {
        let pod = truth.pods.get(pod?.0)?;
        all_right &= flow.owner.is_some();
        let (expected, seen) = match &flow.owner {
            Some(owner) => wrong(pod, owner)?,
            None if truth.named => (pod.pid.to_string(), "unknown".to_owned()),
            None => return None,
        };
        Some(Wrong { what, expected, seen })
    };
    let [loser, winner] = whats;
    let both = [judge(loser, Some(expected.loser), &race.loser), judge(winner, expected.winner, &race.winner)];
    let wrongs: Vec<Wrong> = both.into_iter().flatten().collect();
    Judged { all_right: all_right && wrongs.is_empty(), wrongs }
}

/// A socket look-up does not know the thread.
fn wrong_pid(pod: &PodTruth, owner: &Owner) -> Option<(String, String)> {
    let right = owner.pid == pod.pid && owner.tid.is_none_or(|tid| tid == pod.tid);
    let ids = |pid, tid: Option<u32>| tid.map_or_else(|| format!("{pid}"), |tid| format!("{pid}/{tid}"));
    (!right).then(|| (ids(pod.pid, Some(pod.tid)), ids(owner.pid, owner.tid)))
}

/// The id must be right; the path, when it could be read.
fn wrong_cgroup(pod: &PodTruth, owner: &Owner) -> Option<(String, String)> {
    let cgroup = pod.cgroup.as_ref()?;
    let right = owner.cgroup_id == Some(cgroup.id) && owner.cgroup.as_ref().is_none_or(|path| *path == cgroup.path);
    let seen = || {
        let id = owner.cgroup_id.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        format!("{id} {}", owner.cgroup.as_deref().unwrap_or("").escape_debug())
    };
    (!right).then(|| (format!("{} {}", cgroup.id, cgroup.path), seen()))
}

fn describe(race: &Race) -> String {
    let [loser, winner] = [&race.loser, &race.winner].map(|flow| flow.original.ends().source);
    format!("{}: {loser} <- {winner}", race.contested.ends().source)
}

/// Aligned lines, the differences last.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absent = self.seen.saturating_sub(self.pids_right);
        let absent = if self.named || absent == 0 { "" } else { "  (of the others a sender is not known)" };
        let cgroups_right = self.cgroups_right.map_or_else(|| "-".to_owned(), |right| right.to_string());
        for (what, number) in [
            ("rounds", self.rounds.to_string()),
            ("packets lost", self.packets_lost.to_string()),
            ("insert_failed", self.insert_failed.to_string()),
            ("races seen", self.seen.to_string()),
            ("  both tuples right", self.tuples_right.to_string()),
            ("  both processes right", format!("{:>8}{absent}", self.pids_right)),
            ("  both cgroups right", cgroups_right),
            ("differences", self.differences.len().to_string()),
        ] {
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
            Self::Unexpected { race } => write!(f, "a race that was none: {race}"),
            Self::Wrong { round, loser, what, expected, seen } => {
                write!(f, "round {round}, pod {loser} lost: {} is {expected}, not {seen}", what.name())
            }
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
