//! Hand-made truths of every cause, and races that are right or wrong about one thing.

use super::super::compare::tests::{address, external, flow_truth, original, owner, race, tid, truth, whats};
use super::super::compare::{Comparison, Difference, compare};
use super::super::truth::{Cause, FlowTruth};
use super::*;

/// A truth of another cause: every flow that arrived did so from a port of the node's own choice.
fn caused(class: Class, in_range: Option<u32>, rounds: Vec<RoundTruth>) -> Truth {
    let lost = |round: &RoundTruth| round.flows.iter().filter(|flow| !flow.first_try).count();
    let insert_failed = u64::try_from(rounds.iter().map(lost).sum::<usize>()).unwrap();
    Truth { cause: Cause::Clash { class, in_range }, rounds, insert_failed, drop: insert_failed, ..truth() }
}

/// Two ports; pod 0 and pod 1 take them in round 0, and round 1 loses. What a race of pod 1 there must say.
fn exhausted() -> (Truth, Race) {
    let taken = |pod, port: u16| FlowTruth {
        arrived_as: Some(address(&format!("10.99.1.1:{port}"))),
        ..flow_truth(pod, 10_000, true)
    };
    let rounds = vec![
        RoundTruth { number: 0, flows: vec![taken(0, 60_001), taken(1, 60_000)], resolved: 0 },
        RoundTruth { number: 1, flows: vec![flow_truth(0, 10_001, true), flow_truth(1, 10_001, false)], resolved: 0 },
    ];
    let contested = Ends { source: address("10.99.1.1:60001"), destination: external() };
    let mut race = Race {
        class: Class::PortExhaustion,
        contested: TranslatedTuple::from_ends(contested),
        port_use: Some(PortUse { in_range: 2, in_use: Some(2) }),
        ..race(1, 1, 0)
    };
    race.winner.original = original(0, 10_000);
    (caused(Class::PortExhaustion, Some(2), rounds), race)
}

#[test]
fn whoever_arrived_with_the_contested_port_is_the_winner() {
    let (truth, right) = exhausted();
    let comparison = compare(&truth, std::slice::from_ref(&right), None, Detail::Full);
    assert!(comparison.ok(), "{comparison}");
    let Comparison { classes_right, tuples_right, ports_right, pids_right, .. } = comparison;
    assert_eq!((classes_right, tuples_right, ports_right, pids_right), (1, 1, Some(1), 1));

    let mut other = right.clone();
    other.winner.original = original(1, 10_000);
    assert_eq!(whats(&compare(&truth, &[other], None, Detail::Full)), [What::Winner]);
    let mut nobody = right;
    let contested = Ends { source: address("10.99.1.1:60007"), destination: external() };
    nobody.contested = TranslatedTuple::from_ends(contested);
    assert_eq!(whats(&compare(&truth, &[nobody], None, Detail::Full)), [What::Contested]);
}

#[test]
fn class_and_ports_are_judged_where_they_can_be_known() {
    let (truth, right) = exhausted();
    for port_use in [None, Some((3, None)), Some((2, Some(1))), Some((3, Some(2)))] {
        let port_use = port_use.map(|(in_range, in_use)| PortUse { in_range, in_use });
        let races = [Race { port_use, ..right.clone() }];
        assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)), [What::Ports], "{port_use:?}");
    }
    let races = [Race { class: Class::SnatPortCollision, port_use: None, ..right.clone() }];
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)), [What::Class, What::Ports]);
    let uncounted = [Race { port_use: Some(PortUse { in_range: 2, in_use: None }), ..right.clone() }];
    let comparison = compare(&truth, &uncounted, None, Detail::Full);
    assert!(comparison.ok() && comparison.ports_right == Some(0), "{comparison}");
    // Without times it is not known why another port than its own was taken.
    let untold = Race { class: Class::Unclassified, port_use: None, ..right.clone() };
    let minimal = compare(&truth, &[untold], None, Detail::Minimal);
    assert!(minimal.ok() && minimal.ports_right.is_none(), "{minimal}");
    for told in [&right, &races[0]] {
        assert_eq!(whats(&compare(&truth, std::slice::from_ref(told), None, Detail::Minimal)), [What::Class]);
    }
}

/// Two threads of one process send by one socket; `at` are the ports they arrived at.
fn duplicated(at: [u16; 2], resolved: u64) -> Truth {
    let flow = |at| FlowTruth { arrived_at: Some(at), ..flow_truth(0, 10_000, true) };
    let mut truth =
        caused(Class::DuplicateFlow, None, vec![RoundTruth { number: 0, flows: at.map(flow).to_vec(), resolved }]);
    truth.pods[1] = PodTruth { tid: tid(1), ..truth.pods[0].clone() };
    truth
}

fn duplicate(verdict: Verdict) -> Race {
    Race { class: Class::DuplicateFlow, verdict: Some(verdict), ..race(0, 0, 0) }
}

#[test]
fn a_duplicate_that_was_sent_on_is_a_race_nobody_lost_a_packet_in() {
    let truth = duplicated([53, 53], 1);
    let comparison = compare(&truth, &[duplicate(Verdict::Resolved)], None, Detail::Full);
    assert!(comparison.ok(), "{comparison}");
    assert_eq!((comparison.packets_lost, comparison.resolved, comparison.seen, comparison.pids_right), (0, 1, 1, 1));
    // Either thread may have sent either packet, and no other.
    let mut races = [duplicate(Verdict::Resolved)];
    races[0].winner.owner = Some(Owner { tid: Some(tid(1)), ..owner(0) });
    assert!(compare(&truth, &races, None, Detail::Full).ok());
    races[0].winner.owner = Some(Owner { tid: Some(7), ..owner(0) });
    assert_eq!(whats(&compare(&truth, &races, None, Detail::Full)), [What::WinnerPid]);

    assert_eq!(compare(&truth, &[], None, Detail::Full).differences, [Difference::Unnoticed { round: 0 }]);
    for wrong in [Verdict::Dropped, Verdict::ResolvedReplyOnly] {
        assert_eq!(whats(&compare(&truth, &[duplicate(wrong)], None, Detail::Full))[0], What::Verdict, "{wrong:?}");
    }
    let twice = compare(&truth, &[duplicate(Verdict::Resolved), duplicate(Verdict::Resolved)], None, Detail::Full);
    assert!(matches!(twice.differences[..], [Difference::Unexpected { .. }]), "{twice}");
}

#[test]
fn two_backends_mean_an_entry_for_the_reply_only() {
    let truth = duplicated([53, 54], 1);
    let mut right = duplicate(Verdict::ResolvedReplyOnly);
    // What the two have in common is the tuple as it was sent.
    right.contested = TranslatedTuple::from_ends(original(0, 10_000).ends());
    let comparison = compare(&truth, std::slice::from_ref(&right), None, Detail::Full);
    assert!(comparison.ok(), "{comparison}");
    let merged = Race { verdict: Some(Verdict::Resolved), ..right };
    assert_eq!(whats(&compare(&truth, &[merged], None, Detail::Full)), [What::Verdict]);
}

#[test]
fn of_a_crossed_flow_either_may_lose() {
    let turned = |Ends { source, destination }: Ends| Ends { source: destination, destination: source };
    let there = original(0, 10_000);
    let back = OriginalTuple::from_ends(turned(there.ends()));
    let flow = |original, won| FlowTruth {
        original,
        zone: 0,
        arrived_as: Some(original.ends().source).filter(|_| won),
        arrived_at: None,
        sender: None,
        first_try: won,
    };
    let crossed = |loser: OriginalTuple, winner, verdict, pods: [usize; 2]| {
        let mut race = Race {
            class: Class::CrossedFlow,
            verdict: Some(verdict),
            contested: TranslatedTuple::from_ends(loser.ends()),
            ..race(0, pods[0], pods[1])
        };
        (race.loser.original, race.winner.original) = (loser, winner);
        race
    };
    let rounds =
        |won, resolved| vec![RoundTruth { number: 0, flows: vec![flow(there, true), flow(back, won)], resolved }];
    let resolved = caused(Class::CrossedFlow, None, rounds(true, 1));
    for race in [crossed(there, back, Verdict::Resolved, [0, 1]), crossed(back, there, Verdict::Resolved, [1, 0])] {
        let comparison = compare(&resolved, &[race], None, Detail::Full);
        assert!(comparison.ok(), "{comparison}");
    }
    // A kernel without `nf_nat_used_tuple_new` finds the port of the later one taken and gives it another.
    let mut moved = resolved.clone();
    moved.rounds[0].flows[1].arrived_as = Some(address("10.99.1.2:34567"));
    let race = crossed(back, there, Verdict::ResolvedReplyOnly, [1, 0]);
    assert!(compare(&moved, std::slice::from_ref(&race), None, Detail::Full).ok());
    let other = crossed(there, back, Verdict::ResolvedReplyOnly, [0, 1]);
    assert_eq!(compare(&moved, &[other], None, Detail::Full).differences.len(), 2);
    assert_eq!(whats(&compare(&resolved, &[race], None, Detail::Full)), [What::Verdict]);

    let dropped = caused(Class::CrossedFlow, None, rounds(false, 0));
    assert!(compare(&dropped, &[crossed(back, there, Verdict::Dropped, [1, 0])], None, Detail::Full).ok());
    let other = compare(&dropped, &[crossed(there, back, Verdict::Dropped, [0, 1])], None, Detail::Full);
    assert_eq!(other.differences.len(), 2, "{other}");
}
