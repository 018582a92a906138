//! What one race says, against what it must say.

use super::compare::What;
use super::truth::{Expected, PodTruth, RoundTruth, Sent, Truth, Winner};
use crate::kernel::Detail;
use crate::owner::Owner;
use crate::race::event::{Class, Flow, PortUse, Race, Verdict};
use crate::race::tuple::{Ends, OriginalTuple, TranslatedTuple};

/// One thing a race is wrong about.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) what: What,
    pub(super) expected: String,
    pub(super) seen: String,
}

/// What a race says of one matter.
#[derive(Debug)]
pub(super) struct Judged {
    /// Nothing is wrong and nothing absent.
    pub(super) all_right: bool,
    pub(super) wrongs: Vec<Wrong>,
}

impl From<Vec<Wrong>> for Judged {
    fn from(wrongs: Vec<Wrong>) -> Self {
        Self { all_right: wrongs.is_empty(), wrongs }
    }
}

/// At minimal detail no rule is known: whoever kept its port looks like one that found it free, and of any other nothing is told.
pub(super) fn wrong_class(class: Class, race: &Race, detail: Detail) -> Vec<Wrong> {
    let class = match class {
        Class::PortExhaustion | Class::FixedPort if detail == Detail::Minimal => {
            let kept = race.contested.keeps_port_of(race.loser.original);
            if kept { Class::SnatPortCollision } else { Class::Unclassified }
        }
        class => class,
    };
    let wrong = || Wrong { what: What::Class, expected: class.to_string(), seen: race.class.to_string() };
    (race.class != class).then(wrong).into_iter().collect()
}

/// The lab's range is full whenever a packet loses. That it was not counted is no lie: the kernel's table may be too large
/// or the machine too busy.
pub(super) fn judge_ports(in_range: u32, race: &Race) -> Judged {
    let right = PortUse { in_range, in_use: Some(in_range) };
    let unknown = PortUse { in_use: None, ..right };
    let text = |ports: Option<PortUse>| {
        ports.map_or_else(
            || "unknown".to_owned(),
            |ports| {
                let in_use = ports.in_use.map_or_else(|| "unknown".to_owned(), |in_use| in_use.to_string());
                format!("{} and {in_use}", ports.in_range)
            },
        )
    };
    let wrong = Wrong { what: What::Ports, expected: text(Some(right)), seen: text(race.port_use) };
    let known = race.port_use == Some(right);
    let wrongs = if known || race.port_use == Some(unknown) { Vec::new() } else { vec![wrong] };
    Judged { all_right: known, wrongs }
}

pub(super) fn wrong_tuples(truth: &Truth, expected: &Expected<'_>, race: &Race) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    let mut wrong = |what, expected: String, seen: String| wrongs.push(Wrong { what, expected, seen });
    if race.protocol != truth.protocol {
        wrong(What::Protocol, truth.protocol.to_string(), race.protocol.to_string());
    }
    if race.verdict != Some(expected.verdict) {
        let seen = race.verdict.map_or("unknown", Verdict::name);
        wrong(What::Verdict, expected.verdict.name().to_owned(), seen.to_owned());
    }
    let loser = race.loser.original;
    let text = |Ends { source, destination }: Ends| format!("{source} > {destination}");
    let mut wrong_winner = |expected: OriginalTuple, zone: u16| {
        let winner = (race.winner.original, race.winner_zone);
        let text = |(tuple, zone): (OriginalTuple, u16)| match zone {
            0 => text(tuple.ends()),
            zone => format!("{} in zone {zone}", text(tuple.ends())),
        };
        if winner != (expected, zone) {
            wrong(What::Winner, text((expected, zone)), text(winner));
        }
    };
    // The contested tuple, or what it must be.
    let arrived = |(_, flow): Sent<'_>| {
        let destination = flow.original.ends().destination;
        flow.arrived_as.map(|source| Ends { source, destination })
    };
    let contested = match expected.winner {
        Winner::Unknown => return wrongs,
        Winner::Is(sent) => {
            wrong_winner(sent.1.original, sent.1.zone);
            arrived(sent)
        }
        Winner::Holder => {
            let holder = truth.holder(race.contested.ends().source);
            holder.inspect(|(_, flow)| wrong_winner(flow.original, flow.zone)).and_then(arrived)
        }
        Winner::SameFlow => {
            wrong_winner(loser, race.zone);
            // Translated differently, they have the original tuple in common.
            let apart = match expected.verdict {
                Verdict::Resolved => false,
                Verdict::ResolvedReplyOnly => true,
                Verdict::Dropped => race.contested.ends() == loser.ends(),
            };
            let sent = expected.round.flows.iter().enumerate().find(|(_, flow)| flow.first_try);
            if apart { Some(loser.ends()) } else { sent.and_then(arrived) }
        }
        Winner::Other => {
            if let Some(other) = other(expected.round, loser) {
                wrong_winner(other.1.original, other.1.zone);
            }
            Some(loser.ends())
        }
    };
    if contested.map(TranslatedTuple::from_ends) != Some(race.contested) {
        let expected = contested.map_or_else(|| "that of a flow that arrived".to_owned(), text);
        wrong(What::Contested, expected, text(race.contested.ends()));
    }
    wrongs
}

/// The flow of a round that is not `loser`.
fn other(round: &RoundTruth, loser: OriginalTuple) -> Option<Sent<'_>> {
    round.flows.iter().enumerate().find(|(_, flow)| flow.original != loser)
}

/// The flows that either packet of a race can be of, each with its pod's number. A side that is not known is empty, and not
/// judged.
#[derive(Debug)]
pub(super) struct Sides<'a> {
    pub(super) loser: Vec<Sent<'a>>,
    pub(super) winner: Vec<Sent<'a>>,
}

impl<'a> Sides<'a> {
    pub(super) fn of(truth: &'a Truth, expected: &Expected<'a>, race: &Race) -> Self {
        let flows = expected.round.flows.iter().enumerate();
        let sent = flows.filter(|(_, flow)| (flow.original, flow.zone) == (race.loser.original, race.zone));
        let loser: Vec<Sent<'a>> = sent.collect();
        let winner = match expected.winner {
            Winner::Is(sent) => vec![sent],
            Winner::Holder => truth.holder(race.contested.ends().source).into_iter().collect(),
            // Which of its threads sent which packet, nobody knows.
            Winner::SameFlow => loser.clone(),
            Winner::Other => other(expected.round, race.loser.original).into_iter().collect(),
            Winner::Unknown => Vec::new(),
        };
        Self { loser, winner }
    }

    /// Judges the loser's and the winner's owner. A side that is not known is not judged, and an owner that is absent is
    /// wrong only where senders must be named.
    pub(super) fn judge_owners(
        &self,
        truth: &Truth,
        named: bool,
        race: &Race,
        whats: [What; 2],
        wrong: WrongOwner,
    ) -> Judged {
        let mut all_right = true;
        let mut judge = |what, sent: &[Sent<'_>], flow: &Flow| {
            let senders: Vec<Option<PodTruth>> = sent.iter().map(|sent| truth.sender(*sent)).collect();
            let (first, is_somebody) = (senders.first()?.as_ref(), flow.owner.is_some());
            all_right &= is_somebody == first.is_some();
            let (expected, seen) = match (&flow.owner, first) {
                (Some(owner), None) => ("nobody".to_owned(), owner.pid.to_string()),
                (None, None) => return None,
                // Right if it is any of them.
                (Some(owner), Some(_)) => {
                    let wrongs = senders.iter().flatten().map(|pod| wrong(pod, owner));
                    wrongs.collect::<Option<Vec<_>>>()?.into_iter().next()?
                }
                (None, Some(pod)) if named => (pod.pid.to_string(), "unknown".to_owned()),
                (None, Some(_)) => return None,
            };
            Some(Wrong { what, expected, seen })
        };
        let [loser, winner] = whats;
        let both = [judge(loser, &self.loser, &race.loser), judge(winner, &self.winner, &race.winner)];
        let wrongs: Vec<Wrong> = both.into_iter().flatten().collect();
        Judged { all_right: all_right && wrongs.is_empty(), wrongs }
    }
}

/// The truth and what was seen, if an owner is not this pod.
type WrongOwner = fn(&PodTruth, &Owner) -> Option<(String, String)>;

/// A socket look-up does not know the thread.
pub(super) fn wrong_pid(pod: &PodTruth, owner: &Owner) -> Option<(String, String)> {
    let right = owner.pid == pod.pid && owner.tid.is_none_or(|tid| tid == pod.tid);
    let ids = |pid, tid: Option<u32>| tid.map_or_else(|| format!("{pid}"), |tid| format!("{pid}/{tid}"));
    (!right).then(|| (ids(pod.pid, Some(pod.tid)), ids(owner.pid, owner.tid)))
}

/// The id must be right; the path, when it could be read.
pub(super) fn wrong_cgroup(pod: &PodTruth, owner: &Owner) -> Option<(String, String)> {
    let cgroup = pod.cgroup.as_ref()?;
    let right = owner.cgroup_id == Some(cgroup.id) && owner.cgroup.as_ref().is_none_or(|path| *path == cgroup.path);
    let seen = || {
        let id = owner.cgroup_id.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        format!("{id} {}", owner.cgroup.as_deref().unwrap_or("").escape_debug())
    };
    (!right).then(|| (format!("{} {}", cgroup.id, cgroup.path), seen()))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
