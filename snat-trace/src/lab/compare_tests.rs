//! Hand-made truths, and every way to tell them wrong.

use std::net::SocketAddr;

use bytes::Bytes;

use super::super::truth::{Cause, CgroupTruth, FlowTruth, Naming, PodTruth, RoundTruth};
use super::*;
use crate::owner::{Owner, OwnerSource, Program};
use crate::race::event::{Class, Flow, Verdict};
use crate::race::time::KernelTime;
use crate::race::tuple::{Ends, Protocol, TranslatedTuple};

pub(in super::super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(in super::super) fn external() -> SocketAddr {
    address("10.99.1.2:7000")
}

pub(in super::super) fn original(pod: usize, port: u16) -> OriginalTuple {
    let source = address(&format!("10.99.0.{}:{port}", 10 + pod));
    OriginalTuple::from_ends(Ends { source, destination: external() })
}

pub(in super::super) fn flow_truth(pod: usize, port: u16, won: bool) -> FlowTruth {
    let arrived_as = won.then(|| address(&format!("10.99.1.1:{port}")));
    FlowTruth { original: original(pod, port), zone: 0, arrived_as, arrived_at: None, first_try: won, sender: None }
}

fn cgroup(pod: usize) -> CgroupTruth {
    CgroupTruth { path: format!("/lab/pod-{pod}"), id: 900 + pod as u64 }
}

fn pid(pod: usize) -> u32 {
    100 + u32::try_from(pod).unwrap()
}

pub(in super::super) fn tid(pod: usize) -> u32 {
    pid(pod) + 100
}

/// Two pods: pod 1 loses round 0, nobody round 1, pod 0 round 2.
pub(in super::super) fn truth() -> Truth {
    let pod = |pod: usize| PodTruth { pid: pid(pod), tid: tid(pod), cgroup: Some(cgroup(pod)) };
    let round = |number: u32, won: [bool; 2]| RoundTruth {
        number,
        flows: [0, 1].map(|pod| flow_truth(pod, 10_000 + u16::try_from(number).unwrap(), won[pod])).to_vec(),
        resolved: 0,
    };
    Truth {
        protocol: Protocol::UDP,
        cause: Cause::Clash { class: Class::SnatPortCollision, in_range: None },
        pods: vec![pod(0), pod(1)],
        naming: Naming::Always,
        rounds: vec![round(0, [true, false]), round(1, [true, true]), round(2, [false, true])],
        insert_failed: 2,
        drop: 2,
        evicted: None,
        refused: Vec::new(),
        reuse: None,
    }
}

pub(in super::super) fn owner(pod: usize) -> Owner {
    Owner {
        pid: pid(pod),
        tid: Some(tid(pod)),
        comm: "sender".to_owned(),
        netns: None,
        cgroup_id: Some(cgroup(pod).id),
        cgroup: Some(cgroup(pod).path),
        container: None,
        pod: None,
        program: Program::default(),
        source: OwnerSource::Socket,
    }
}

pub(in super::super) fn race(round: u16, loser: usize, winner: usize) -> Race {
    let port = 10_000 + round;
    let flow = |pod| Flow {
        original: original(pod, port),
        allocated: None,
        inserted: None,
        cpu: None,
        owner: Some(owner(pod)),
        behind: None,
    };
    let contested = Ends { source: address(&format!("10.99.1.1:{port}")), destination: external() };
    Race {
        time: KernelTime::from_record(1).unwrap(),
        class: Class::SnatPortCollision,
        verdict: Some(Verdict::Dropped),
        protocol: Protocol::UDP,
        netns: None,
        zone: 0,
        winner_zone: 0,
        contested: TranslatedTuple::from_ends(contested),
        overlap: None,
        nat: None,
        port_use: None,
        winner: flow(winner),
        loser: flow(loser),
        packet: Bytes::new(),
    }
}

fn right() -> Vec<Race> {
    vec![race(0, 1, 0), race(2, 0, 1)]
}

pub(in super::super) fn whats(comparison: &Comparison) -> Vec<What> {
    let what = |difference: &Difference| match difference {
        Difference::Wrong { what, .. } => *what,
        other => panic!("{other:?}"),
    };
    comparison.differences.iter().map(what).collect()
}

#[test]
fn the_truth_in_any_order_is_right() {
    let mut races = right();
    for _ in 0..2 {
        let comparison = compare(&truth(), &races, None, Detail::Full);
        assert!(comparison.ok(), "{comparison}");
        let Comparison { rounds, packets_lost, insert_failed, seen, tuples_right, pids_right, .. } = comparison;
        assert_eq!((rounds, packets_lost, insert_failed, seen, tuples_right, pids_right), (3, 2, 2, 2, 2, 2));
        assert_eq!(comparison.cgroups_right, Some(2));
        races.reverse();
    }
}

#[test]
fn a_missing_race_is_named() {
    let comparison = compare(&truth(), &right()[..1], None, Detail::Full);
    assert_eq!(comparison.differences, [Difference::Missing { round: 2, loser: 0, winner: Some(1) }]);
    assert!(!comparison.ok());
}

#[test]
fn a_race_told_twice_is_one_too_many() {
    let mut races = right();
    races.push(race(0, 1, 0));
    let comparison = compare(&truth(), &races, None, Detail::Full);
    let race = "10.99.1.1:10000: 10.99.0.11:10000 <- 10.99.0.10:10000".to_owned();
    assert_eq!(comparison.differences, [Difference::Unexpected { race }]);
    assert!(!comparison.ok());
}

#[test]
fn a_race_in_a_quiet_round_is_unexpected() {
    let mut races = right();
    races.push(race(1, 0, 1));
    let comparison = compare(&truth(), &races, None, Detail::Full);
    assert!(matches!(&comparison.differences[..], [Difference::Unexpected { .. }]) && !comparison.ok());
}

#[test]
fn loser_and_winner_swapped_is_both_missing_and_unexpected() {
    let comparison = compare(&truth(), &[race(0, 0, 1), race(2, 0, 1)], None, Detail::Full);
    let [Difference::Missing { round: 0, loser: 1, winner: Some(0) }, Difference::Unexpected { .. }] =
        &comparison.differences[..]
    else {
        panic!("{comparison}");
    };
    assert_eq!((comparison.seen, comparison.ok()), (1, false));
}

#[test]
fn of_two_races_about_one_loss_the_right_one_is_taken() {
    let mut wrong = race(0, 1, 0);
    wrong.winner.original = original(1, 9);
    let comparison = compare(&truth(), &[wrong, race(0, 1, 0), race(2, 0, 1)], None, Detail::Full);
    assert_eq!(comparison.tuples_right, 2, "{comparison}");
    assert!(matches!(&comparison.differences[..], [Difference::Unexpected { .. }]));
}

type Spoil = fn(&mut Race);

#[test]
fn whatever_is_wrong_in_a_race_is_named() {
    let cases: &[(&[What], [usize; 3], Spoil)] = &[
        (&[What::Winner], [1, 2, 2], |race| race.winner.original = original(5, 10_000)),
        (&[What::Contested], [1, 2, 2], |race| {
            let contested = Ends { source: address("10.99.1.1:9"), destination: external() };
            race.contested = TranslatedTuple::from_ends(contested);
        }),
        (&[What::Protocol], [1, 2, 2], |race| race.protocol = Protocol::TCP),
        (&[What::Verdict], [1, 2, 2], |race| race.verdict = Some(Verdict::Resolved)),
        (&[What::Verdict], [1, 2, 2], |race| race.verdict = None),
        (&[What::LoserPid], [2, 1, 2], |race| race.loser.owner = Some(Owner { pid: 1, ..owner(1) })),
        (&[What::LoserPid], [2, 1, 2], |race| race.loser.owner = Some(Owner { tid: Some(101), ..owner(1) })),
        (&[What::LoserPid, What::WinnerPid, What::LoserCgroup, What::WinnerCgroup], [2, 1, 1], |race| {
            std::mem::swap(&mut race.loser.owner, &mut race.winner.owner);
        }),
        (&[What::WinnerPid, What::WinnerCgroup], [2, 1, 1], |race| race.winner.owner = None),
        (&[What::LoserCgroup], [2, 2, 1], |race| race.loser.owner = Some(Owner { cgroup_id: None, ..owner(1) })),
        (&[What::WinnerCgroup], [2, 2, 1], |race| {
            race.winner.owner = Some(Owner { cgroup: Some("/x\u{1b}".to_owned()), ..owner(0) });
        }),
    ];
    for (expected, right_counts, spoil) in cases {
        let mut races = right();
        spoil(&mut races[0]);
        let comparison = compare(&truth(), &races, None, Detail::Full);
        assert_eq!(whats(&comparison), *expected, "{comparison}");
        let counts = [comparison.tuples_right, comparison.pids_right, comparison.cgroups_right.unwrap()];
        assert_eq!((comparison.seen, counts, comparison.ok()), (2, *right_counts, false), "{comparison}");
        assert!(!comparison.to_string().contains('\u{1b}'));
    }
}

#[test]
fn what_a_look_up_cannot_know_is_not_wrong() {
    let mut races = right();
    for race in &mut races {
        for flow in [&mut race.loser, &mut race.winner] {
            let owner = flow.owner.as_mut().unwrap();
            (owner.tid, owner.cgroup) = (None, None);
        }
    }
    assert!(compare(&truth(), &races, None, Detail::Full).ok());
}

#[test]
fn without_cgroups_of_their_own_none_is_compared() {
    let mut truth = truth();
    truth.pods[1].cgroup = None;
    let mut races = right();
    races[0].loser.owner.as_mut().unwrap().cgroup_id = None;
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(comparison.ok() && comparison.cgroups_right.is_none(), "{comparison}");
}

#[test]
fn a_counter_that_disagrees_is_not_ok() {
    let truth = Truth { insert_failed: 3, ..truth() };
    let comparison = compare(&truth, &right(), None, Detail::Full);
    assert!(comparison.differences.is_empty() && !comparison.ok());
}

#[test]
fn where_senders_need_not_be_named_absent_is_no_difference_and_wrong_is_one() {
    let truth = Truth { naming: Naming::Perhaps, ..truth() };
    let mut races = right();
    races[0].loser.owner = None;
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(comparison.ok() && comparison.pids_right == 1 && comparison.cgroups_right == Some(1), "{comparison}");
    races[0].winner.owner = Some(owner(1));
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert_eq!(whats(&comparison), [What::WinnerPid, What::WinnerCgroup], "{comparison}");
}

#[test]
fn pods_of_one_address_are_told_by_their_zones() {
    let mut truth = truth();
    for (pod, flow) in truth.rounds.iter_mut().flat_map(|round| round.flows.iter_mut().enumerate()) {
        flow.original = original(0, flow.original.ends().source.port());
        flow.zone = u16::try_from(pod).unwrap() + 1;
    }
    let mut races = right();
    for (race, (loser, winner)) in races.iter_mut().zip([(2, 1), (1, 2)]) {
        race.loser.original = original(0, race.loser.original.ends().source.port());
        race.winner.original = race.loser.original;
        (race.zone, race.winner_zone) = (loser, winner);
    }
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(comparison.ok(), "{comparison}");
    races[0].winner_zone = 3;
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)), [What::Winner]);
    races[0].zone = 1;
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(matches!(comparison.differences[..], [Difference::Missing { .. }, Difference::Unexpected { .. }]));
}

#[test]
fn a_winner_that_took_a_random_port_is_not_judged() {
    let mut truth = truth();
    truth.rounds[0].flows[0].arrived_as = Some(address("10.99.1.1:44444"));
    let mut races = right();
    races[0].winner.original = original(7, 1);
    races[0].winner.owner = None;
    assert!(compare(&truth, &races, None, Detail::Full).ok());
}

#[test]
fn with_eight_pods_seven_lose_to_one() {
    let mut truth = truth();
    truth.pods = (0..8).map(|pod| PodTruth { pid: pid(pod), tid: tid(pod), cgroup: Some(cgroup(pod)) }).collect();
    let flows = (0..8).map(|pod| flow_truth(pod, 10_000, pod == 3)).collect();
    (truth.rounds, truth.insert_failed) = (vec![RoundTruth { number: 0, flows, resolved: 0 }], 7);
    let races: Vec<Race> = (0..8).filter(|pod| *pod != 3).map(|pod| race(0, pod, 3)).collect();
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(comparison.ok() && comparison.seen == 7, "{comparison}");
}

#[test]
fn the_text_is_aligned_and_bounded() {
    let mut races = right();
    races.extend((0..30).map(|_| race(1, 0, 1)));
    let text = compare(&truth(), &races, None, Detail::Full).to_string();
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    assert!(text.ends_with("  - and 10 more\n"), "{text}");
    assert!(
        text.starts_with("  rounds                             3\n  packets lost                       2\n"),
        "{text}"
    );
}

#[test]
fn a_loser_that_arrived_later_is_still_the_loser() {
    let mut truth = truth();
    // Pod 0 lost round 2 and its retransmitted SYN got through, by whatever port.
    for port in [50_001, 10_002] {
        truth.rounds[2].flows[0].arrived_as = Some(address(&format!("10.99.1.1:{port}")));
        assert!(compare(&truth, &right(), None, Detail::Full).ok(), "{port}");
    }
}

#[test]
fn whoever_is_named_where_nobody_sent_is_wrong() {
    let truth = Truth { naming: Naming::Nobody, ..truth() };
    let mut races = right();
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)).len(), 8);
    for race in &mut races {
        (race.loser.owner, race.winner.owner) = (None, None);
    }
    let comparison = compare(&truth, &races, None, Detail::Full);
    assert!(comparison.ok() && !comparison.named && comparison.pids_right == 2, "{comparison}");
}

#[test]
fn a_packet_can_have_a_process_of_its_own() {
    let mut truth = Truth { naming: Naming::IfRecorded, ..truth() };
    truth.rounds[0].flows[1].sender = Some(77);
    let mut races = right();
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)), [What::LoserPid]);
    let own = Owner { pid: 77, tid: Some(77), ..owner(1) };
    races[0].loser.owner = Some(own);
    assert!(compare(&truth, &races, None, Detail::Full).ok());
    races[0].loser.owner = None;
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full))[0], What::LoserPid);
    assert!(compare(&truth, &races, None, Detail::Minimal).ok());
}

#[test]
fn races_counted_as_lost_are_not_missing_and_no_more_than_those() {
    let one_missing = || compare(&truth(), &[race(0, 1, 0)], None, Detail::Full);
    assert!(!one_missing().ok() && one_missing().with_lost(1).ok());
    for lost in [0, 2] {
        assert!(!one_missing().with_lost(lost).ok());
    }
    let all = compare(&truth(), &[race(0, 1, 0), race(2, 0, 1)], None, Detail::Full);
    assert!(all.clone().with_lost(0).ok() && !all.with_lost(1).ok());
}

#[test]
fn a_reader_that_was_to_stand_still_must_have_missed_something() {
    let all = compare(&truth(), &right(), None, Detail::Full);
    assert!(all.clone().with_unread(1).ok() && !all.with_unread(0).ok());
}
