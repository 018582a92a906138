//! The account: what the kernel counted against what our events explain. Pure.

use std::collections::BTreeMap;

use super::figures::Tally;
use crate::race::event::{NetnsInum, Race, Verdict};

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

/// Note of an account that explains more than was counted, when nothing better is known.
const AHEAD: &str = "more was seen than counted: the counters are read per CPU while traffic goes on";

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
    /// What to know before reading anything into a difference.
    pub note: Option<&'static str>,
}

impl Account {
    /// Whether everything counted is explained and everything explained was counted.
    #[must_use]
    pub fn closes(&self) -> bool {
        let explained = self.explained.zip(self.unexplained, |explained, unexplained| match unexplained {
            Some(difference) => difference == 0,
            // A counter this kernel does not have cannot contradict, as long as nothing claims to explain it.
            None => explained == 0,
        });
        self.counters.is_ok() && explained.named().into_iter().all(|(_, closes)| closes)
    }
}

/// Closes the account of every namespace that counted anything or had a race, ordered by number.
///
/// What explains what (net/netfilter/nf_conntrack_core.c, `__nf_conntrack_confirm` and `nf_ct_resolve_clash`):
/// * A dropped race explains one `insert_failed` and one `drop`; a resolved one explains one `clash_resolve`, or one
///   `insert_failed` on a kernel that does not count resolutions (before 5.10).
/// * `chaintoolong` and `early_drop` name their own reason and explain themselves. Each `chaintoolong` also explains
///   one `insert_failed`, as far as races left any: an entry refused through ctnetlink counts the former only.
/// * A race whose verdict is not known explains one `insert_failed` and one `drop` while both lack explanation, then
///   one `clash_resolve` while that does, and else an `insert_failed` and a `drop` after all, so that it never vanishes.
/// * What is left is unexplained, a `drop` for a full table included: no event of ours tells of it.
#[must_use]
pub fn close_account(deltas: &[Delta], races: &RaceCounts) -> Vec<Account> {
    let mut seen = races.0.clone();
    let mut accounts = Vec::new();
    for delta in deltas {
        let seen = seen.remove(&Some(delta.netns));
        let counted = delta.counters.as_ref().is_ok_and(|counters| {
            counters.named().into_iter().any(|(_, counted)| counted.is_some_and(|counted| counted != 0))
        });
        if counted || seen.is_some() {
            accounts.push(account(Some(delta.netns), delta.counters.clone(), delta.caveat, seen.unwrap_or_default()));
        }
    }
    for (netns, seen) in seen {
        let why = match netns {
            Some(_) => "this network namespace was not found, so its counters could not be read",
            None => "the network namespace of these races could not be read",
        };
        accounts.push(account(netns, Err(why.into()), None, seen));
    }
    accounts.sort_by_key(|account| account.netns);
    accounts
}

/// How many races there were, by namespace and verdict.
#[derive(Clone, Debug, Default)]
pub struct RaceCounts(BTreeMap<Option<NetnsInum>, Seen>);

impl RaceCounts {
    /// Counts one in.
    pub fn add(&mut self, race: &Race) {
        let seen = self.0.entry(race.netns).or_default();
        match race.verdict {
            Some(Verdict::Dropped) => seen.dropped += 1,
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => seen.resolved += 1,
            None => seen.unknown += 1,
        }
    }

    /// The namespaces that had any.
    pub fn involved(&self) -> impl Iterator<Item = NetnsInum> {
        self.0.keys().copied().flatten()
    }
}

/// Races of one namespace by verdict.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    dropped: u64,
    resolved: u64,
    unknown: u64,
}

fn account(
    netns: Option<NetnsInum>,
    counters: Result<Tally<Option<u64>>, String>,
    caveat: Option<Caveat>,
    seen: Seen,
) -> Account {
    let counted = counters.as_ref().ok().copied().unwrap_or_default();
    let explained = explain(counted, seen);
    let unexplained = counted.zip(explained, |counted, explained| {
        // Counters of a kernel up for centuries stay below 2^63.
        Some(i64::try_from(counted?).ok()?.saturating_sub_unsigned(explained))
    });
    let ahead = unexplained.named().into_iter().any(|(_, difference)| difference.is_some_and(i64::is_negative));
    let note = caveat.map(Caveat::text).or(ahead.then_some(AHEAD));
    Account { netns, counters, explained, unexplained, note }
}

/// See [`close_account`].
fn explain(counted: Tally<Option<u64>>, seen: Seen) -> Tally<u64> {
    let mut explained = Tally {
        insert_failed: seen.dropped,
        drop: seen.dropped,
        clash_resolve: 0,
        chaintoolong: counted.chaintoolong.unwrap_or(0),
        early_drop: counted.early_drop.unwrap_or(0),
    };
    let resolutions_counted = counted.clash_resolve.is_some() || counted.insert_failed.is_none();
    *if resolutions_counted { &mut explained.clash_resolve } else { &mut explained.insert_failed } += seen.resolved;

    let lacking = |counted: Option<u64>, explained| counted.unwrap_or(0).saturating_sub(explained);
    explained.insert_failed += explained.chaintoolong.min(lacking(counted.insert_failed, explained.insert_failed));

    let failed = lacking(counted.insert_failed, explained.insert_failed).min(lacking(counted.drop, explained.drop));
    let as_dropped = seen.unknown.min(failed);
    let left = seen.unknown - as_dropped;
    let as_resolved = left.min(lacking(counted.clash_resolve, explained.clash_resolve));
    let as_dropped = as_dropped + (left - as_resolved);
    explained.insert_failed += as_dropped;
    explained.drop += as_dropped;
    explained.clash_resolve += as_resolved;
    explained
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::race::event::{Class, Flow};
    use crate::race::time::KernelTime;
    use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};

    const HERE: NetnsInum = NetnsInum(4_026_531_840);

    fn race(netns: Option<NetnsInum>, verdict: Option<Verdict>) -> Race {
        let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let ends = Ends { source: any, destination: any };
        let flow =
            Flow { original: OriginalTuple::from_ends(ends), allocated: None, inserted: None, cpu: None, owner: None };
        Race {
            time: KernelTime::from_record(1).unwrap(),
            class: Class::SnatPortCollision,
            verdict,
            protocol: Protocol::UDP,
            netns,
            zone: 0,
            contested: TranslatedTuple::from_ends(ends),
            overlap: None,
            nat: None,
            winner: flow.clone(),
            loser: flow,
            packet: Bytes::new(),
        }
    }

    fn races(dropped: usize, resolved: usize, unknown: usize) -> Vec<Race> {
        let of = |verdict, count| std::iter::repeat_n(race(Some(HERE), verdict), count);
        of(Some(Verdict::Dropped), dropped)
            .chain(of(Some(Verdict::ResolvedReplyOnly), resolved))
            .chain(of(None, unknown))
            .collect()
    }

    fn count(races: &[Race]) -> RaceCounts {
        let mut counts = RaceCounts::default();
        races.iter().for_each(|race| counts.add(race));
        counts
    }

    /// In the order of [`Tally::named`].
    fn tally<T>([insert_failed, drop, clash_resolve, chaintoolong, early_drop]: [T; 5]) -> Tally<T> {
        Tally { insert_failed, drop, clash_resolve, chaintoolong, early_drop }
    }

    fn counted(figures: [u64; 5]) -> Delta {
        Delta { netns: HERE, counters: Ok(tally(figures.map(Some))), caveat: None }
    }

    #[test]
    fn what_explains_what() {
        // What was counted, races (dropped, resolved, unknown), what is explained, whether it closes.
        type Row = ([u64; 5], (usize, usize, usize), [u64; 5], bool);
        let table: [Row; 11] = [
            ([2, 2, 3, 0, 0], (2, 3, 0), [2, 2, 3, 0, 0], true),
            ([3, 2, 0, 0, 0], (2, 0, 0), [2, 2, 0, 0, 0], false),
            // A chain too long counts in insert_failed and not in drop.
            ([5, 2, 0, 3, 0], (2, 0, 0), [5, 2, 0, 3, 0], true),
            // Refused through ctnetlink: chaintoolong alone.
            ([2, 2, 0, 1, 0], (2, 0, 0), [2, 2, 0, 1, 0], true),
            // The table was full.
            ([0, 4, 0, 0, 0], (0, 0, 0), [0, 0, 0, 0, 0], false),
            ([0, 0, 0, 0, 7], (0, 0, 0), [0, 0, 0, 0, 7], true),
            // Unknown verdicts fill what lacks.
            ([2, 2, 0, 0, 0], (1, 0, 1), [2, 2, 0, 0, 0], true),
            ([1, 1, 1, 0, 0], (1, 0, 1), [1, 1, 1, 0, 0], true),
            ([1, 1, 1, 0, 0], (0, 0, 2), [1, 1, 1, 0, 0], true),
            // A drop without a failed insert is no clash.
            ([0, 1, 1, 0, 0], (0, 0, 1), [0, 0, 1, 0, 0], false),
            ([0, 0, 0, 0, 0], (0, 0, 1), [1, 1, 0, 0, 0], false),
        ];
        for (counters, (dropped, resolved, unknown), explained, closes) in table {
            let accounts = close_account(&[counted(counters)], &count(&races(dropped, resolved, unknown)));
            let [account] = accounts.as_slice() else { panic!("{accounts:?}") };
            assert_eq!(account.explained, tally(explained), "{counters:?}");
            assert_eq!(account.closes(), closes, "{account:?}");
        }
    }

    #[test]
    fn a_kernel_that_counts_no_resolutions_counts_them_as_failed_inserts() {
        let counters = Ok(tally([Some(3), Some(1), None, None, Some(0)]));
        let accounts = close_account(&[Delta { netns: HERE, counters, caveat: None }], &count(&races(1, 2, 0)));
        assert_eq!(accounts[0].explained, tally([3, 1, 0, 0, 0]));
        assert!(accounts[0].closes());
        assert_eq!(accounts[0].unexplained.clash_resolve, None);
    }

    #[test]
    fn quiet_namespaces_are_left_out() {
        assert_eq!(close_account(&[counted([0; 5])], &RaceCounts::default()), []);
        let unreadable = Delta { netns: HERE, counters: Err("why".into()), caveat: None };
        assert_eq!(close_account(std::slice::from_ref(&unreadable), &RaceCounts::default()), []);
        let accounts = close_account(&[unreadable], &count(&races(1, 0, 0)));
        assert_eq!(accounts[0].counters, Err("why".into()));
        assert_eq!(accounts[0].explained.insert_failed, 1);
        assert!(!accounts[0].closes());
    }

    #[test]
    fn races_without_a_known_namespace_stay_visible() {
        let elsewhere = NetnsInum(7);
        let races = [race(None, Some(Verdict::Dropped)), race(Some(elsewhere), Some(Verdict::Dropped))];
        let accounts = close_account(&[counted([1, 1, 0, 0, 0])], &count(&races));
        let of: Vec<_> = accounts.iter().map(|account| (account.netns, account.counters.is_ok())).collect();
        assert_eq!(of, [(None, false), (Some(elsewhere), false), (Some(HERE), true)]);
        assert_eq!(accounts[2].unexplained.insert_failed, Some(1));
    }

    #[test]
    fn a_negative_difference_never_goes_without_a_note() {
        let accounts = close_account(&[counted([1, 1, 0, 0, 0])], &count(&races(2, 0, 0)));
        assert_eq!(accounts[0].unexplained.insert_failed, Some(-1));
        assert_eq!(accounts[0].note, Some(AHEAD));
        let ended = Delta { caveat: Some(Caveat::Ended), ..counted([1, 1, 0, 0, 0]) };
        assert_eq!(close_account(&[ended], &count(&races(2, 0, 0)))[0].note, Some(Caveat::Ended.text()));
        assert_eq!(close_account(&[counted([1, 1, 0, 0, 0])], &count(&races(1, 0, 0)))[0].note, None);
    }

    proptest! {
        #[test]
        fn the_sums_always_hold(
            figures in proptest::array::uniform5(proptest::option::of(0..12u64)),
            verdicts in proptest::collection::vec(0..4usize, 0..20),
            rotation in 0..20usize,
        ) {
            let known = [Some(Verdict::Dropped), Some(Verdict::Resolved), Some(Verdict::ResolvedReplyOnly), None];
            let mut races: Vec<_> = verdicts.iter().map(|&verdict| race(Some(HERE), known[verdict])).collect();
            let delta = Delta { netns: HERE, counters: Ok(tally(figures)), caveat: None };
            let accounts = close_account(std::slice::from_ref(&delta), &count(&races));
            for account in &accounts {
                let explained = account.explained.named();
                let unexplained = account.unexplained.named();
                for ((figure, (_, explained)), (name, unexplained)) in figures.into_iter().zip(explained).zip(unexplained) {
                    let sum = unexplained.map(|unexplained| i64::try_from(explained).unwrap() + unexplained);
                    prop_assert_eq!(sum, figure.map(|figure| i64::try_from(figure).unwrap()), "{}", name);
                    prop_assert!(unexplained.is_none_or(|unexplained| unexplained >= 0) || account.note.is_some());
                }
                // Every race stands in the account exactly once.
                let named_itself = account.explained.chaintoolong.min(account.explained.insert_failed);
                let clashes = account.explained.insert_failed + account.explained.clash_resolve;
                let races = u64::try_from(races.len()).unwrap();
                prop_assert!(clashes >= races && clashes - races <= named_itself);
            }
            let turn = rotation.min(races.len());
            races.rotate_left(turn);
            prop_assert_eq!(close_account(&[delta], &count(&races)), accounts);
        }
    }
}
