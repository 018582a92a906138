//! What explains what, by tables; and whatever the kernel does while its counters are read, by chance.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::window::{Taken, Window, Windows};
use super::*;
use crate::race::event::{Class, Flow};
use crate::race::failure::Reason;
use crate::race::time::KernelTime;
use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};

const HERE: NetnsInum = NetnsInum(4_026_531_840);

fn race(netns: Option<NetnsInum>, verdict: Option<Verdict>) -> Race {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
    let ends = Ends { source: any, destination: any };
    let flow = Flow {
        original: OriginalTuple::from_ends(ends),
        allocated: None,
        inserted: None,
        cpu: None,
        owner: None,
        behind: None,
    };
    Race {
        time: KernelTime::from_record(1).unwrap(),
        class: Class::SnatPortCollision,
        verdict,
        protocol: Protocol::UDP,
        netns,
        zone: 0,
        winner_zone: 0,
        contested: TranslatedTuple::from_ends(ends),
        overlap: None,
        nat: None,
        port_use: None,
        winner: flow.clone(),
        loser: flow,
        packet: Bytes::new(),
    }
}

fn failure(netns: NetnsInum) -> Failure {
    let Race { time, protocol, zone, loser, .. } = race(None, None);
    Failure {
        time,
        reason: Reason::Unknown,
        errno: None,
        protocol,
        netns: Some(netns),
        zone,
        flow: loser,
        by_packet: true,
        counted: Tally::default(),
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
    races.iter().for_each(|race| counts.add(race, Place::Inside));
    counts
}

/// The accounts, where no race is outside.
fn close(deltas: &[Delta], races: &RaceCounts) -> Vec<Account> {
    let (accounts, outside) = close_account(deltas, races);
    assert_eq!(outside, 0);
    accounts
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
        let accounts = close(&[counted(counters)], &count(&races(dropped, resolved, unknown)));
        let [account] = accounts.as_slice() else { panic!("{accounts:?}") };
        assert_eq!(account.explained, tally(explained), "{counters:?}");
        assert_eq!(account.closes(), closes, "{account:?}");
    }
}

#[test]
fn failures_explain_what_they_counted() {
    let failures = |counted: &[[u64; 5]], place| {
        let mut counts = RaceCounts::default();
        for &each in counted {
            counts.add_failure(&Failure { counted: tally(each), ..failure(HERE) }, place);
        }
        counts
    };
    let (full, dying, chain, netlink_chain, nothing) =
        ([0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0; 5]);
    // What was counted, what each failure counted, what is explained, whether it closes.
    type Row<'a> = ([u64; 5], &'a [[u64; 5]], [u64; 5], bool);
    let table: [Row<'_>; 8] = [
        ([0, 2, 0, 0, 0], &[full, full], [0, 2, 0, 0, 0], true),
        ([0, 3, 0, 0, 0], &[full, full], [0, 2, 0, 0, 0], false),
        ([1, 0, 0, 0, 0], &[dying], [1, 0, 0, 0, 0], true),
        // Told of or not, a chain too long is one failed insert.
        ([2, 0, 0, 2, 0], &[chain], [2, 0, 0, 2, 0], true),
        ([2, 0, 0, 2, 0], &[chain, chain], [2, 0, 0, 2, 0], true),
        ([2, 0, 0, 2, 0], &[chain, netlink_chain], [1, 0, 0, 2, 0], false),
        // The kernel would have counted this one.
        ([1, 0, 0, 0, 0], &[chain], [1, 0, 0, 1, 0], false),
        ([1, 0, 0, 0, 0], &[nothing], [0, 0, 0, 0, 0], false),
    ];
    for (counters, each, explained, closes) in table {
        let accounts = close(&[counted(counters)], &failures(each, Place::Inside));
        let [account] = accounts.as_slice() else { panic!("{accounts:?}") };
        assert_eq!(account.explained, tally(explained), "{counters:?}");
        assert_eq!(account.closes(), closes, "{account:?}");
    }
    let during = failures(&[full, full, dying], Place::Edge);
    assert_eq!(close(&[counted([0, 1, 0, 0, 0])], &during)[0].explained, tally([0, 1, 0, 0, 0]));
    let accounts = close(&[counted([0, 1, 0, 0, 0])], &failures(&[full], Place::Outside));
    assert_eq!(accounts[0].unexplained.drop, Some(1));
}

#[test]
fn a_kernel_that_counts_no_resolutions_counts_them_as_failed_inserts() {
    let counters = Ok(tally([Some(3), Some(1), None, None, Some(0)]));
    let accounts = close(&[Delta { netns: HERE, counters, caveat: None }], &count(&races(1, 2, 0)));
    assert_eq!(accounts[0].explained, tally([3, 1, 0, 0, 0]));
    assert!(accounts[0].closes());
    assert_eq!(accounts[0].unexplained.clash_resolve, None);
}

#[test]
fn quiet_namespaces_are_left_out() {
    assert_eq!(close(&[counted([0; 5])], &RaceCounts::default()), []);
    let unreadable = Delta { netns: HERE, counters: Err("why".into()), caveat: None };
    assert_eq!(close(std::slice::from_ref(&unreadable), &RaceCounts::default()), []);
    let accounts = close(&[unreadable], &count(&races(1, 0, 0)));
    assert_eq!(accounts[0].counters, Err("why".into()));
    assert_eq!(accounts[0].explained.insert_failed, 1);
    assert!(!accounts[0].closes());
}

#[test]
fn races_without_a_known_namespace_stay_visible() {
    let elsewhere = NetnsInum(7);
    let races = [race(None, Some(Verdict::Dropped)), race(Some(elsewhere), Some(Verdict::Dropped))];
    let accounts = close(&[counted([1, 1, 0, 0, 0])], &count(&races));
    let of: Vec<_> = accounts.iter().map(|account| (account.netns, account.counters.is_ok())).collect();
    assert_eq!(of, [(None, false), (Some(elsewhere), false), (Some(HERE), true)]);
    assert_eq!(accounts[2].unexplained.insert_failed, Some(1));
}

#[test]
fn a_negative_difference_never_goes_without_a_note() {
    let accounts = close(&[counted([1, 1, 0, 0, 0])], &count(&races(2, 0, 0)));
    assert_eq!(accounts[0].unexplained.insert_failed, Some(-1));
    assert_eq!(accounts[0].note.as_deref(), Some(AHEAD));
    let ended = Delta { caveat: Some(Caveat::Ended), ..counted([1, 1, 0, 0, 0]) };
    assert_eq!(close(&[ended], &count(&races(2, 0, 0)))[0].note.as_deref(), Some(Caveat::Ended.text()));
    assert_eq!(close(&[counted([1, 1, 0, 0, 0])], &count(&races(1, 0, 0)))[0].note, None);
}

#[test]
fn what_is_known_only_in_part_never_closes() {
    for caveat in [Caveat::Ended, Caveat::Restarted] {
        let [quiet, moved] =
            [[0; 5], [1, 1, 0, 0, 0]].map(|figures| Delta { caveat: Some(caveat), ..counted(figures) });
        let accounts = close(std::slice::from_ref(&moved), &count(&races(1, 0, 0)));
        assert_eq!(accounts[0].unexplained.insert_failed, Some(0));
        assert!(!accounts[0].closes());
        assert_eq!(accounts[0].note.as_deref(), Some(caveat.text()));
        // With figures and no races, with races and no figures, and with neither.
        assert_eq!(close(&[moved], &RaceCounts::default()).len(), 1);
        assert_eq!(close(std::slice::from_ref(&quiet), &count(&races(1, 0, 0))).len(), 1);
        assert_eq!(close(std::slice::from_ref(&quiet), &RaceCounts::default()), []);
        let mut early = RaceCounts::default();
        early.add(&race(Some(HERE), Some(Verdict::Dropped)), Place::Outside);
        let (accounts, outside) = close_account(&[quiet], &early);
        assert_eq!((accounts.len(), outside), (1, 1));
    }
}

#[test]
fn races_beside_the_readings() {
    // What was counted, races inside, during a reading and outside (dropped, resolved, unknown), in no account.
    type Races = (usize, usize, usize);
    type Row = ([u64; 5], Races, Races, Races, u64);
    let table: [Row; 11] = [
        ([2, 2, 0, 0, 0], (2, 0, 0), (0, 0, 0), (3, 1, 1), 5),
        // A reading fell between the two counts of a race, the last one or the first.
        ([1, 2, 0, 0, 0], (1, 0, 0), (3, 0, 0), (0, 0, 0), 2),
        ([3, 2, 0, 0, 0], (1, 0, 0), (1, 0, 2), (0, 0, 0), 1),
        ([1, 3, 0, 0, 0], (1, 0, 0), (0, 0, 3), (0, 0, 0), 1),
        ([2, 2, 0, 0, 0], (1, 0, 0), (3, 0, 0), (0, 0, 0), 2),
        ([2, 2, 4, 0, 0], (1, 3, 0), (1, 2, 0), (1, 0, 0), 2),
        ([2, 2, 1, 0, 0], (1, 0, 0), (0, 0, 4), (0, 0, 0), 2),
        // Those inside come first, whatever their verdict.
        ([1, 1, 0, 0, 0], (0, 0, 1), (1, 0, 0), (0, 0, 0), 1),
        ([1, 0, 0, 1, 0], (0, 0, 0), (1, 0, 0), (0, 0, 0), 1),
        // Only outside: nothing to tell of the namespace.
        ([0, 0, 0, 0, 0], (0, 0, 0), (2, 1, 1), (1, 0, 0), 5),
        ([0, 0, 0, 0, 0], (0, 0, 0), (0, 0, 0), (0, 0, 0), 0),
    ];
    for (figures, inside, edge, beyond, expected) in table {
        let mut counts = RaceCounts::default();
        for ((dropped, resolved, unknown), place) in
            [(inside, Place::Inside), (edge, Place::Edge), (beyond, Place::Outside)]
        {
            races(dropped, resolved, unknown).iter().for_each(|race| counts.add(race, place));
        }
        let (accounts, outside) = close_account(&[counted(figures)], &counts);
        assert_eq!(outside, expected, "{accounts:?}");
        assert!(accounts.iter().all(Account::closes), "{accounts:?}");
        assert_eq!(accounts.len(), usize::from(figures != [0; 5]));
    }
}

#[test]
fn races_during_a_reading_do_not_explain_every_drop() {
    let mut counts = RaceCounts::default();
    races(5, 0, 0).iter().for_each(|race| counts.add(race, Place::Edge));
    // A full table dropped packets too.
    let (accounts, outside) = close_account(&[counted([0, 4, 0, 0, 0])], &counts);
    assert_eq!((accounts[0].unexplained.drop, accounts[0].closes(), outside), (Some(2), false, 3));
}

/// What a kernel does: a race is seen, counted on its CPU a little later, and each reading looks at one CPU after
/// the other.
#[derive(Clone, Copy, Debug)]
struct Happened {
    seen: u64,
    counted: u64,
    cpu: usize,
    verdict: Option<Verdict>,
}

const CPUS: usize = 3;

fn happened() -> impl Strategy<Value = Happened> {
    let verdicts = [Some(Verdict::Dropped), Some(Verdict::ResolvedReplyOnly)];
    (1_u64..1_000_000_000, 0_u64..10_000_000, 0..CPUS, proptest::sample::select(verdicts.to_vec()))
        .prop_map(|(seen, late, cpu, verdict)| Happened { seen, counted: seen + late, cpu, verdict })
}

/// When each CPU was looked at; the first and the last are the bounds of the reading.
fn reading(range: std::ops::Range<u64>) -> impl Strategy<Value = [u64; CPUS + 2]> {
    (range, proptest::array::uniform4(0_u64..20_000)).prop_map(|(began, steps)| {
        let mut times = [began; CPUS + 2];
        for (i, step) in steps.into_iter().enumerate() {
            times[i + 1] = times[i] + step;
        }
        times
    })
}

proptest! {
    /// Wherever races fall, the account closes, explains only those that can have been counted, and loses none.
    #[test]
    fn races_around_the_readings_leave_it_closed(
        happened in proptest::collection::vec(happened(), 0..80),
        first in reading(1..400_000_000),
        last in reading(500_000_000..900_000_000),
        made_later: bool,
    ) {
        let taken = |reading: [u64; CPUS + 2]| {
            let [began, ended] = [reading[0], reading[CPUS + 1]].map(|time| KernelTime::from_record(time).unwrap());
            Taken { began, ended }
        };
        let window = Window { from: (!made_later).then(|| taken(first)), to: Some(taken(last)) };
        let windows: Windows = [(HERE, window)].into_iter().collect();
        let figure = |of: fn(Verdict) -> bool| {
            let had = |reading: [u64; CPUS + 2]| {
                let has = |race: &&Happened| race.verdict.is_some_and(of) && race.counted <= reading[race.cpu + 1];
                happened.iter().filter(has).count() as u64
            };
            had(last) - if made_later { 0 } else { had(first) }
        };
        let dropped = figure(|verdict| verdict == Verdict::Dropped);
        let resolved = figure(|verdict| verdict != Verdict::Dropped);

        let mut counts = RaceCounts::default();
        let mut surely_outside = 0;
        for of in &happened {
            let race = Race { time: KernelTime::from_record(of.seen).unwrap(), ..race(Some(HERE), of.verdict) };
            counts.add(&race, windows.place(race.netns, race.time));
            let beyond = of.seen > last[CPUS + 1] || (!made_later && of.counted < first[0]);
            surely_outside += u64::from(beyond);
        }
        let (accounts, outside) = close_account(&[counted([dropped, dropped, resolved, 0, 0])], &counts);
        prop_assert!(accounts.iter().all(Account::closes), "{:?} {:?}", window, accounts);
        let explained: u64 =
            accounts.iter().map(|account| account.explained.insert_failed + account.explained.clash_resolve).sum();
        prop_assert_eq!(explained + outside, happened.len() as u64);
        prop_assert_eq!(explained, dropped + resolved);
        prop_assert!(outside >= surely_outside);
    }

    #[test]
    fn the_sums_always_hold(
        figures in proptest::array::uniform5(proptest::option::of(0..12u64)),
        verdicts in proptest::collection::vec(0..4usize, 0..20),
        rotation in 0..20usize,
    ) {
        let known = [Some(Verdict::Dropped), Some(Verdict::Resolved), Some(Verdict::ResolvedReplyOnly), None];
        let mut races: Vec<_> = verdicts.iter().map(|&verdict| race(Some(HERE), known[verdict])).collect();
        let delta = Delta { netns: HERE, counters: Ok(tally(figures)), caveat: None };
        let accounts = close(std::slice::from_ref(&delta), &count(&races));
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
        prop_assert_eq!(close(&[delta], &count(&races)), accounts);
    }
}
