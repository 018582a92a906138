//! What a run comes to: totals, the account and the advice.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use snat_trace_common::Counter;

use crate::counters::account::{Account, RaceCounts, close_account};
use crate::counters::accounts::Closed;
use crate::counters::window::Windows;
use crate::kernel::{Detail, Role};
use crate::probe::KernelCounts;
use crate::race::event::{Class, NatRule, Race, Verdict};
use crate::race::failure::{Failure, Reason};
use crate::race::time::{KernelTime, WallClock};

/// What was seen and is neither an event nor lost for a known reason: at the end a loss, before that on its way.
pub const ON_THE_WAY: &str = "unaccounted";

/// Running totals. Their size does not grow with the number of races.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    races: RaceCounts,
    /// Which of them the counters can have in them.
    windows: Windows,
    /// Modules that went away with their hooks.
    hooks_gone: BTreeSet<String>,
    dropped: u64,
    resolved: u64,
    undecided: u64,
    classes: BTreeMap<Class, u64>,
    port_choice: PortChoice,
    /// Records that reached user space and did not become an event, by reason.
    lost: BTreeMap<&'static str, u64>,
    /// Flows of races whose allocation the hooks should have known: it was before they were attached, or was forgotten.
    without_allocation: u64,
    /// Flows of races whose sender is not known.
    without_owner: u64,
    /// Races on which the kernel's own word is not known.
    without_verdict: u64,
    /// Races on which the kernel's word is not what the tuples prove, so that one of the two was misread.
    contradicted: u64,
    /// Failures that are no clash; `None` when they are not traced.
    failures: Option<BTreeMap<Reason, u64>>,
    /// Whether new connections are counted.
    counts_connections: bool,
    /// As `lost`, of failures.
    failures_lost: BTreeMap<&'static str, u64>,
}

/// How races over a port chosen freely came by it: all of class `snat-port-collision`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortChoice {
    /// Those whose rule has a random flag.
    pub random: u64,
    /// Those whose rule has none and allows fewer than 256 ports.
    pub narrow: u64,
    /// Of the others, those whose loser kept its original source port.
    pub kept: u64,
    /// Those whose rule is not known and whose loser kept its original source port.
    pub kept_rule_unknown: u64,
}

impl PortChoice {
    /// A range of fewer ports is too narrow for a random choice to help alone.
    const NARROW: u16 = 256;

    fn add(&mut self, race: &Race) {
        let kept = race.contested.keeps_port_of(race.loser.original);
        match race.nat {
            Some(NatRule { random: true, ports: _ }) => self.random += 1,
            Some(NatRule { random: false, ports: Some((min, max)) }) if max.saturating_sub(min) < Self::NARROW - 1 => {
                self.narrow += 1;
            }
            Some(NatRule { random: false, ports: _ }) => self.kept += u64::from(kept),
            None => self.kept_rule_unknown += u64::from(kept),
        }
    }
}

impl Totals {
    /// Sets from when to when the counters were read: races at other times are not set against them. To be said before
    /// the first race, and again, with the ends, before those that were seen after the last reading.
    pub fn within(&mut self, windows: Windows) {
        self.windows = windows;
    }

    /// Remembers modules that were unloaded, and their hooks with them.
    pub fn miss_hooks_of(&mut self, modules: impl IntoIterator<Item = String>) {
        self.hooks_gone.extend(modules);
    }

    /// The verdict on a race: what the kernel told, else what the tuples prove. Counts where one is missing or both differ.
    pub fn verdict(&mut self, told: Option<Verdict>, proven: Option<Verdict>) -> Option<Verdict> {
        self.without_verdict += u64::from(told.is_none());
        self.contradicted += u64::from(told.is_some() && proven.is_some() && told != proven);
        told.or(proven)
    }

    /// Counts in a race that was seen at a level of detail.
    pub fn add(&mut self, race: &Race, detail: Detail) {
        self.races.add(race, self.windows.place(race.netns, race.time));
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
            self.port_choice.add(race);
        }
    }

    /// Says that failures are traced too.
    #[must_use]
    pub fn with_failures(self) -> Self {
        Self { failures: Some(BTreeMap::new()), ..self }
    }

    /// Says that the hook which counts new connections runs.
    #[must_use]
    pub fn with_connections(self) -> Self {
        Self { counts_connections: true, ..self }
    }

    /// Counts in a failure that is no clash.
    pub fn add_failure(&mut self, failure: &Failure) {
        self.races.add_failure(failure, self.windows.place(failure.netns, failure.time));
        *self.failures.get_or_insert_default().entry(failure.reason).or_default() += 1;
        self.without_owner += u64::from(failure.by_packet && failure.flow.owner.is_none());
    }

    /// Counts a record of a failure that does not become an event.
    pub fn lose_failure(&mut self, reason: &'static str) {
        *self.failures_lost.entry(reason).or_default() += 1;
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

    /// Closes the account.
    #[must_use]
    pub fn close(&self, span: Span, kernel: KernelCounts, closed: &Closed) -> Summary {
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
            lost.insert(ON_THE_WAY, missing);
        }
        // Nor was seen what the hook missed.
        if kernel.missed(Role::Clash) > 0 {
            lost.insert("hook-missed", kernel.missed(Role::Clash));
        }
        lost.extend(self.close_failures(&kernel));
        let others_missed =
            Role::ALL.into_iter().filter(|&role| role != Role::Clash).map(|role| kernel.missed(role)).sum();
        let incomplete = [
            ("flow-without-allocation", self.without_allocation),
            ("flow-without-owner", self.without_owner),
            ("clash-without-verdict", self.without_verdict),
            ("verdict-against-tuples", self.contradicted),
            ("hook-missed", others_missed),
            ("return-missed", kernel.get(Counter::ReturnMissed)),
            ("allocation-not-kept", kernel.get(Counter::AllocationNotKept)),
            ("owner-not-kept", kernel.get(Counter::OwnerNotKept)),
            ("owner-unreadable", kernel.get(Counter::OwnerUnreadable)),
        ]
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .map(|(kind, count)| (kind.into(), count))
        .collect();
        let (accounts, outside) = close_account(&closed.deltas, &self.races);
        Summary {
            span,
            connections: self.counts_connections.then(|| kernel.get(Counter::Connection)),
            dropped: self.dropped,
            resolved: self.resolved,
            undecided: self.undecided,
            classes: Class::ALL
                .into_iter()
                .filter_map(|class| self.classes.get(&class).map(|&count| (class, count)))
                .collect(),
            port_choice: self.port_choice,
            accounts,
            outside,
            ended: closed.ended,
            hooks_gone: self.hooks_gone.iter().cloned().collect(),
            failures: self.failures.as_ref().map(|reasons| reasons.iter().map(|(&reason, &n)| (reason, n)).collect()),
            lost: lost.into_iter().map(|(reason, count)| (reason.into(), count)).collect(),
            incomplete,
        }
    }

    /// Failures lost, by reason: for them too, seen = delivered + lost.
    fn close_failures(&self, kernel: &KernelCounts) -> BTreeMap<&'static str, u64> {
        let mut lost = self.failures_lost.clone();
        for (reason, counter) in
            [("failure-ring-full", Counter::FailureRingFull), ("failure-unreadable", Counter::FailureUnreadable)]
        {
            *lost.entry(reason).or_default() += kernel.get(counter);
        }
        let told: u64 = self.failures.iter().flat_map(BTreeMap::values).sum();
        let known = told + lost.values().sum::<u64>();
        lost.insert("failure-unaccounted", kernel.get(Counter::FailureSeen).saturating_sub(known));
        // Those are not in what was seen.
        lost.insert("failure-unpaired", kernel.get(Counter::FailureUnpaired));
        lost.retain(|_, count| *count > 0);
        lost
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
    /// New connections that came to source NAT meanwhile, translated or not, on the whole node (net/netfilter/nf_nat_core.c,
    /// `nf_nat_setup_info`); `None` where allocations are not traced.
    pub connections: Option<u64>,
    /// Races whose packet was dropped.
    pub dropped: u64,
    /// Races whose packet was sent on.
    pub resolved: u64,
    /// Races of which the tuples do not tell.
    pub undecided: u64,
    /// Races by class, those that occurred.
    pub classes: Vec<(Class, u64)>,
    /// What the advice stands on.
    pub port_choice: PortChoice,
    /// By network namespace.
    pub accounts: Vec<Account>,
    /// Races in no account: they came before the first or after the last reading of their namespace's counters.
    pub outside: u64,
    /// Network namespaces that went away while watched. Those that are known to have counted anything or had races have
    /// an account, which does not close.
    pub ended: u64,
    /// Modules that were unloaded while watched, and perhaps loaded again: their hooks are gone.
    pub hooks_gone: Vec<String>,
    /// Failures that are no clash, by reason, those that occurred; `None` when they were not traced.
    pub failures: Option<Vec<(Reason, u64)>>,
    /// Clashes and failures seen that did not become an event, by reason.
    pub lost: Vec<(Cow<'static, str>, u64)>,
    /// Facts that are absent from events, or may be because they could not be kept, by kind.
    pub incomplete: Vec<(Cow<'static, str>, u64)>,
}

impl Summary {
    /// All races.
    #[must_use]
    pub fn races(&self) -> u64 {
        self.dropped + self.resolved + self.undecided
    }

    /// All clashes and failures lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().map(|(_, count)| count).sum()
    }

    /// Whether every failed insert counted while we watched is explained, nothing was lost and no hook went away.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.lost() == 0 && self.hooks_gone.is_empty() && self.accounts.iter().all(Account::closes)
    }

    /// What to change, one sentence each.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let PortChoice { random, narrow, kept, kept_rule_unknown } = self.port_choice;
        let collisions: u64 =
            self.classes.iter().filter(|(class, _)| *class == Class::SnatPortCollision).map(|(_, count)| count).sum();
        let plural = if collisions == 1 { "" } else { "s" };
        let sentences = [
            (kept, "kept the original source port: add --random-fully to MASQUERADE or SNAT (nft: fully-random)."),
            (
                kept_rule_unknown,
                "kept the original source port: if its rule has no random flag, add --random-fully to MASQUERADE or \
                 SNAT (nft: fully-random).",
            ),
            (
                narrow,
                "met a rule that allows few ports: widen its range (--to-ports) and add --random-fully (nft: \
                 fully-random).",
            ),
            (
                random,
                "happened in spite of a random flag on the rule: its port range is narrow or nearly full toward that \
                 destination; widen it or add addresses.",
            ),
        ];
        for (count, sentence) in sentences {
            if count > 0 {
                advice.push(format!("{count} of {collisions} port collision{plural} {sentence}"));
            }
        }
        for &(class, count) in &self.classes {
            let flows = if count == 1 { "flow" } else { "flows" };
            let what = match class {
                Class::PortExhaustion => {
                    "found no free port in the rule's range: widen the range (--to-ports) or add addresses (--to-source)"
                }
                Class::FixedPort => {
                    "had no choice of a port: where the rule names one, give it a range, or no port at all"
                }
                Class::DuplicateFlow => {
                    "sent two packets at once before it had an entry: for DNS a node-local cache, or single-request-reopen \
                     in resolv.conf, avoids it"
                }
                Class::SnatPortCollision | Class::CrossedFlow | Class::Unclassified => continue,
            };
            advice.push(format!("{count} {flows} {what}."));
        }
        advice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::account::Delta;
    use crate::counters::figures::Tally;
    use crate::counters::window::{Taken, Window};
    use crate::race::classify::classify;
    use crate::race::classify::tests::{clash, since};

    fn at(nanoseconds: u64) -> KernelTime {
        KernelTime::from_record(nanoseconds).unwrap()
    }

    /// A dropped packet whose flow kept its port.
    fn race(time: KernelTime, nat: Option<NatRule>) -> Race {
        let race = Race { time, nat, ..classify(&clash(), since()).unwrap() };
        assert_eq!((race.class, race.verdict), (Class::SnatPortCollision, Some(Verdict::Dropped)));
        assert_eq!(race.contested.ends().source.port(), race.loser.original.ends().source.port());
        race
    }

    fn close(totals: &Totals, closed: &Closed) -> Summary {
        let span = Span { started: at(1), ended: at(2), clock: WallClock::from_offset(0) };
        totals.close(span, KernelCounts::default(), closed)
    }

    fn advice(rules: &[Option<NatRule>]) -> Vec<String> {
        let mut totals = Totals::default();
        rules.iter().for_each(|&nat| totals.add(&race(at(1), nat), Detail::Full));
        close(&totals, &Closed::default()).advice()
    }

    #[test]
    fn the_kernels_word_goes_before_what_the_tuples_prove() {
        use Verdict::{Dropped, Resolved};
        let mut totals = Totals::default();
        for (told, proven, verdict) in [
            (Some(Resolved), None, Some(Resolved)),
            (Some(Dropped), Some(Dropped), Some(Dropped)),
            (Some(Resolved), Some(Dropped), Some(Resolved)),
            (None, Some(Dropped), Some(Dropped)),
            (None, None, None),
        ] {
            assert_eq!(totals.verdict(told, proven), verdict, "{told:?} {proven:?}");
        }
        let summary = close(&totals, &Closed::default());
        assert_eq!(summary.incomplete, [("clash-without-verdict".into(), 2), ("verdict-against-tuples".into(), 1)]);
    }

    const FREE: NatRule = NatRule { random: false, ports: None };

    #[test]
    fn advice_is_what_the_rule_calls_for() {
        let rule = |random, ports| Some(NatRule { random, ports });
        let certain = ["kept the original source port: add --random-fully"];
        let conditional = ["if its rule has no random flag, add --random-fully"];
        let (narrow, random) = (["allows few ports: widen"], ["in spite of a random flag"]);
        for (nat, expected) in [
            (Some(FREE), certain),
            (rule(false, Some((1024, 65535))), certain),
            (rule(false, Some((1024, 1279))), certain),
            (rule(false, Some((1024, 1278))), narrow),
            (rule(true, None), random),
            (rule(true, Some((1024, 1030))), random),
            (None, conditional),
        ] {
            let advice = advice(&[nat]);
            assert_eq!(advice.len(), expected.len(), "{nat:?}: {advice:?}");
            assert!(advice.iter().zip(expected).all(|(is, has)| is.contains(has)), "{nat:?}: {advice:?}");
        }
        let mixed = advice(&[Some(FREE), Some(FREE), None]);
        assert!(mixed[0].starts_with("2 of 3 port collisions kept") && mixed[1].starts_with("1 of 3"), "{mixed:?}");
    }

    #[test]
    fn a_port_that_was_chosen_calls_for_nothing() {
        let mut totals = Totals::default();
        for nat in [Some(FREE), None] {
            let mut race = race(at(1), nat);
            let mut ends = race.loser.original.ends();
            ends.source.set_port(1);
            race.loser.original = crate::race::tuple::OriginalTuple::from_ends(ends);
            totals.add(&race, Detail::Full);
        }
        assert_eq!(close(&totals, &Closed::default()).advice(), [""; 0]);
    }

    #[test]
    fn exhaustion_and_a_single_port_have_advice_of_their_own() {
        for class in [Class::PortExhaustion, Class::FixedPort] {
            let mut totals = Totals::default();
            totals.add(&Race { class, ..race(at(1), Some(FREE)) }, Detail::Full);
            let advice = close(&totals, &Closed::default()).advice();
            assert_eq!(advice.len(), 1);
            assert!(!advice[0].contains("random"), "{advice:?}");
        }
    }

    /// As watching does it: races before the closing reading are judged by its beginning alone.
    #[test]
    fn only_races_between_the_readings_are_set_against_them() {
        let Some(netns) = race(at(1), None).netns else { panic!("the race has no namespace") };
        let taken = |began: u64| Some(Taken { began: at(began), ended: at(began + 10_000) });
        let windows = |to| [(netns, Window { from: taken(1_000_000), to })].into_iter().collect();
        let seen = |totals: &mut Totals, times: &[u64]| {
            times.iter().for_each(|&time| totals.add(&race(at(time), Some(FREE)), Detail::Full));
        };
        let mut totals = Totals::default();
        totals.within(windows(None));
        seen(&mut totals, &[100, 200_000, 1_500_000, 2_000_000]);
        let mut closed = Closed { windows: windows(taken(5_000_000)), ..Closed::default() };
        totals.within(closed.windows.clone());
        seen(&mut totals, &[4_000_000, 6_000_000, 7_000_000]);

        let counters =
            Tally { insert_failed: 3, drop: 3, ..Tally::default() }.zip(Tally::<()>::default(), |n, ()| Some(n));
        closed.deltas = vec![Delta { netns, counters: Ok(counters), caveat: None }];
        let summary = close(&totals, &closed);
        assert_eq!((summary.races(), summary.outside), (7, 4));
        assert_eq!(summary.accounts[0].explained.insert_failed, 3);
        assert!(summary.closes());
    }

    #[test]
    fn what_hooks_missed_is_lost_or_incomplete() {
        let mut missed = [0; Role::ALL.len()];
        for (role, count) in [(Role::Clash, 2), (Role::Verdict, 3), (Role::OwnerRaw, 4)] {
            missed[role as usize] = count;
        }
        let span = Span { started: at(1), ended: at(2), clock: WallClock::from_offset(0) };
        let mut counters = [0; Counter::ALL.len()];
        counters[Counter::ClashSeen as usize] = 1;
        counters[Counter::LostRingFull as usize] = 1;
        let summary = Totals::default().close(span, KernelCounts::new(counters, missed), &Closed::default());
        assert_eq!(summary.lost, [("hook-missed".into(), 2), ("ring-full".into(), 1)]);
        assert_eq!(summary.incomplete, [("hook-missed".into(), 7)]);
        assert!(!summary.closes());
    }

    #[test]
    fn hooks_that_are_gone_leave_the_account_open() {
        let mut totals = Totals::default();
        totals.miss_hooks_of([]);
        assert!(close(&totals, &Closed::default()).closes());
        totals.miss_hooks_of(["nf_nat".to_owned()]);
        totals.miss_hooks_of(["nf_conntrack".to_owned(), "nf_nat".to_owned()]);
        let summary = close(&totals, &Closed::default());
        assert_eq!(summary.hooks_gone, ["nf_conntrack", "nf_nat"]);
        assert!(!summary.closes());
    }
}
