//! What a run comes to: totals, the account and the advice.

use std::collections::BTreeMap;
use std::time::Duration;

use snat_trace_common::Counter;

use crate::counters::account::{Account, Delta, RaceCounts, close_account};
use crate::kernel::Detail;
use crate::probe::KernelCounts;
use crate::race::event::{Class, NetnsInum, Race, Verdict};
use crate::race::time::{KernelTime, WallClock};

/// Running totals. Their size does not grow with the number of races.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    races: RaceCounts,
    dropped: u64,
    resolved: u64,
    undecided: u64,
    classes: BTreeMap<Class, u64>,
    kept_port: KeptPort,
    /// Records that reached user space and did not become an event, by reason.
    lost: BTreeMap<&'static str, u64>,
    /// Flows of races whose allocation the hooks should have known: it was before they were attached, or was forgotten.
    without_allocation: u64,
    /// Flows of races whose sender is not known.
    without_owner: u64,
}

/// How races over a port chosen freely came by it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KeptPort {
    /// All of class `snat-port-collision`.
    pub collisions: u64,
    /// Those whose loser kept its original source port.
    pub kept: u64,
    /// Those whose rule has a random flag.
    pub random: u64,
}

impl Totals {
    /// Counts in a race that was seen at a level of detail.
    pub fn add(&mut self, race: &Race, detail: Detail) {
        self.races.add(race);
        for flow in [&race.loser, &race.winner] {
            self.without_allocation += u64::from(detail == Detail::Full && flow.allocated.is_none());
            self.without_owner += u64::from(flow.owner.is_none());
        }
        match race.verdict {
            Some(Verdict::Dropped) => self.dropped += 1,
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => self.resolved += 1,
            None => self.undecided += 1,
        }
        *self.classes.entry(race.class).or_default() += 1;
        if race.class == Class::SnatPortCollision {
            let random = race.nat.is_some_and(|rule| rule.random);
            let kept = race.contested.ends().source.port() == race.loser.original.ends().source.port();
            self.kept_port.collisions += 1;
            self.kept_port.kept += u64::from(kept && !random);
            self.kept_port.random += u64::from(random);
        }
    }

    /// Counts a record that does not become an event.
    pub fn lose(&mut self, reason: &'static str) {
        *self.lost.entry(reason).or_default() += 1;
    }

    /// How many races were counted in.
    #[must_use]
    pub fn races(&self) -> u64 {
        self.dropped + self.resolved + self.undecided
    }

    /// The network namespaces that had races.
    pub fn involved(&self) -> impl Iterator<Item = NetnsInum> {
        self.races.involved()
    }

    /// Closes the account.
    #[must_use]
    pub fn close(&self, span: Span, kernel: KernelCounts, deltas: &[Delta]) -> Summary {
        let mut lost = self.lost.clone();
        let mut lose = |reason, count: u64| {
            if count > 0 {
                *lost.entry(reason).or_default() += count;
            }
        };
        lose("ring-full", kernel.get(Counter::LostRingFull));
        lose("unreadable", kernel.get(Counter::LostUnreadable));
        // seen = delivered + lost must hold in the kernel, and delivered = races + lost here.
        let known: u64 = lost.values().sum::<u64>() + self.races();
        let missing = kernel.get(Counter::ClashSeen).saturating_sub(known);
        if missing > 0 {
            lost.insert("unaccounted", missing);
        }
        let incomplete = [
            ("flow-without-allocation", self.without_allocation),
            ("flow-without-owner", self.without_owner),
            ("allocation-not-kept", kernel.get(Counter::AllocationNotKept)),
            ("owner-not-kept", kernel.get(Counter::OwnerNotKept)),
            ("owner-unreadable", kernel.get(Counter::OwnerUnreadable)),
        ]
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .collect();
        Summary {
            span,
            dropped: self.dropped,
            resolved: self.resolved,
            undecided: self.undecided,
            classes: Class::ALL
                .into_iter()
                .filter_map(|class| self.classes.get(&class).map(|&count| (class, count)))
                .collect(),
            kept_port: self.kept_port,
            accounts: close_account(deltas, &self.races),
            lost: lost.into_iter().collect(),
            incomplete,
        }
    }
}

/// From when to when a run watched.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When the last hook was attached.
    pub started: KernelTime,
    /// When the first was detached.
    pub ended: KernelTime,
    /// Turns both into wall times.
    pub clock: WallClock,
}

impl Span {
    /// How long that was.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.ended.since(self.started)
    }
}

/// The end of every output.
#[derive(Clone, Debug)]
pub struct Summary {
    /// When.
    pub span: Span,
    /// Races whose packet was dropped.
    pub dropped: u64,
    /// Races whose packet was sent on.
    pub resolved: u64,
    /// Races of which the tuples do not tell.
    pub undecided: u64,
    /// Races by class, those that occurred.
    pub classes: Vec<(Class, u64)>,
    /// What the advice stands on.
    pub kept_port: KeptPort,
    /// By network namespace.
    pub accounts: Vec<Account>,
    /// Clashes seen that did not become an event, by reason.
    pub lost: Vec<(&'static str, u64)>,
    /// Facts that are absent from events, or may be because they could not be kept, by kind.
    pub incomplete: Vec<(&'static str, u64)>,
}

impl Summary {
    /// All races.
    #[must_use]
    pub fn races(&self) -> u64 {
        self.dropped + self.resolved + self.undecided
    }

    /// All clashes lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().map(|(_, count)| count).sum()
    }

    /// Whether every failed insert counted while we watched is explained, and nothing was lost.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.lost() == 0 && self.accounts.iter().all(Account::closes)
    }

    /// What to change, one sentence each.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let KeptPort { collisions, kept, random } = self.kept_port;
        let of_all =
            |count| format!("{count} of {collisions} port collision{}", if collisions == 1 { "" } else { "s" });
        if kept > 0 {
            advice.push(format!(
                "{} kept the original source port: add --random-fully to MASQUERADE or SNAT (nft: fully-random).",
                of_all(kept)
            ));
        }
        if random > 0 {
            advice.push(format!(
                "{} happened in spite of a random flag on the rule: its port range is narrow or nearly full toward that \
                 destination; widen it or add addresses.",
                of_all(random)
            ));
        }
        for &(class, count) in &self.classes {
            let flows = if count == 1 { "flow" } else { "flows" };
            let what = match class {
                Class::PortExhaustion => {
                    "found no free port in the rule's range: widen the range (--to-ports) or add addresses (--to-source)"
                }
                Class::FixedPort => "met a rule that allows one port only: give it a range, or no port at all",
                Class::SnatPortCollision | Class::DuplicateFlow | Class::CrossedFlow | Class::Unclassified => continue,
            };
            advice.push(format!("{count} {flows} {what}."));
        }
        advice
    }
}
