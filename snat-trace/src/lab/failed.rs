//! What was told of connections that did not come into the table without a race, against what happened. Pure.

use std::collections::HashMap;

use serde::Serialize;

use super::compare::{Difference, What};
use super::judge::{wrong_cgroup, wrong_pid};
use super::truth::{Cause, PodTruth, Truth};
use crate::race::failure::{Failure, Reason};
use crate::race::tuple::{Ends, OriginalTuple};

/// How many failures there were, and how they were told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct FailuresTold {
    /// Connections that did not come in.
    pub expected: usize,
    /// Those of which a failure tells.
    pub seen: usize,
    /// Those whose reason, protocol and sender are right.
    pub right: usize,
}

/// A failure that must have been seen.
struct Expected {
    original: OriginalTuple,
    zone: u16,
    reason: Reason,
    /// Who sent it; `None` where no packet was sent.
    sender: Option<PodTruth>,
}

/// Each connection that failed takes one failure of its flow.
pub(super) fn compare_failures(truth: &Truth, failures: &[Failure], named: bool) -> (FailuresTold, Vec<Difference>) {
    let mut left: HashMap<(OriginalTuple, u16), Vec<&Failure>> = HashMap::new();
    for failure in failures.iter().rev() {
        left.entry((failure.flow.original, failure.zone)).or_default().push(failure);
    }
    let mut told = FailuresTold::default();
    let mut differences = Vec::new();
    for expected in expected(truth) {
        told.expected += 1;
        let key = (expected.original, expected.zone);
        let Some(failure) = left.get_mut(&key).and_then(Vec::pop) else {
            differences.push(Difference::Untold { flow: describe(expected.original) });
            continue;
        };
        told.seen += 1;
        let wrongs = judge(truth, &expected, failure, named);
        told.right += usize::from(wrongs.is_empty());
        differences.extend(wrongs);
    }
    let mut rest: Vec<&Failure> = left.into_values().flatten().collect();
    rest.sort_by_key(|failure| failure.time);
    differences.extend(
        rest.into_iter().map(|failure| Difference::Invented {
            flow: describe(failure.flow.original),
            reason: failure.reason.name(),
        }),
    );
    (told, differences)
}

/// First the packets that lost, then what was refused through ctnetlink.
fn expected(truth: &Truth) -> Vec<Expected> {
    let mut expected = Vec::new();
    if let Cause::Failure(reason) = truth.cause {
        let flows = truth.rounds.iter().flat_map(|round| round.flows.iter().enumerate());
        expected.extend(flows.filter(|(_, flow)| !flow.first_try).map(|sent| Expected {
            original: sent.1.original,
            zone: sent.1.zone,
            reason,
            sender: truth.sender(sent),
        }));
    }
    let refused = |&original| Expected { original, zone: 0, reason: Reason::Ctnetlink, sender: None };
    expected.extend(truth.refused.iter().map(refused));
    expected
}

fn judge(truth: &Truth, expected: &Expected, failure: &Failure, named: bool) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut wrong = |what, expected_text: String, seen: String| {
        differences.push(Difference::Misjudged {
            flow: describe(expected.original),
            what,
            expected: expected_text,
            seen,
        });
    };
    if failure.reason != expected.reason {
        wrong(What::Reason, expected.reason.to_string(), failure.reason.to_string());
    }
    if failure.protocol != truth.protocol {
        wrong(What::Protocol, truth.protocol.to_string(), failure.protocol.to_string());
    }
    match (&expected.sender, &failure.flow.owner) {
        (Some(pod), Some(owner)) => {
            let both = [(What::LoserPid, wrong_pid(pod, owner)), (What::LoserCgroup, wrong_cgroup(pod, owner))];
            for (what, differing) in both {
                if let Some((is, seen)) = differing {
                    wrong(what, is, seen);
                }
            }
        }
        (Some(pod), None) if named => wrong(What::LoserPid, pod.pid.to_string(), "unknown".to_owned()),
        (None, Some(owner)) => wrong(What::LoserPid, "nobody".to_owned(), owner.pid.to_string()),
        (_, None) => {}
    }
    differences
}

fn describe(original: OriginalTuple) -> String {
    let Ends { source, destination } = original.ends();
    format!("{source} > {destination}")
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{original, owner, truth};
    use super::super::compare::{Comparison, compare};
    use super::*;
    use crate::kernel::Detail;
    use crate::race::event::Flow;
    use crate::race::time::KernelTime;
    use crate::race::tuple::Protocol;

    /// Pod 1 loses round 0 and pod 0 round 2, for want of room.
    fn full() -> Truth {
        Truth { cause: Cause::Failure(Reason::TableFull), insert_failed: 0, ..truth() }
    }

    fn failure(pod: usize, port: u16) -> Failure {
        let owner = Some(owner(pod));
        Failure {
            time: KernelTime::from_record(1).unwrap(),
            reason: Reason::TableFull,
            errno: None,
            protocol: Protocol::UDP,
            netns: None,
            zone: 0,
            flow: Flow {
                original: original(pod, port),
                allocated: None,
                inserted: None,
                cpu: None,
                owner,
                behind: None,
            },
            by_packet: true,
            counted: crate::counters::figures::Tally::default(),
        }
    }

    fn right() -> Vec<Failure> {
        vec![failure(0, 10_002), failure(1, 10_000)]
    }

    fn compared(truth: &Truth, failures: &[Failure]) -> Comparison {
        compare(truth, &[], Some(failures), Detail::Full)
    }

    #[test]
    fn one_failure_for_each_packet_that_lost_is_right() {
        let comparison = compared(&full(), &right());
        assert!(comparison.ok(), "{comparison}");
        assert_eq!(comparison.failures, Some(FailuresTold { expected: 2, seen: 2, right: 2 }));
        // Where they are not traced the counters must do.
        let untraced = compare(&full(), &[], None, Detail::Full);
        assert!(untraced.ok() && untraced.failures.is_none(), "{untraced}");
        let miscounted = Truth { drop: 3, ..full() };
        assert!(!compare(&miscounted, &[], None, Detail::Full).ok());
    }

    #[test]
    fn what_is_missing_or_invented_is_named() {
        let differences = compared(&full(), &right()[..1]).differences;
        assert!(matches!(differences[..], [Difference::Untold { .. }]), "{differences:?}");
        let twice = [right(), right()].concat();
        let differences = compared(&full(), &twice).differences;
        assert!(
            matches!(differences[..], [Difference::Invented { .. }, Difference::Invented { .. }]),
            "{differences:?}"
        );
        // A race is never right where nothing clashed.
        let race = super::super::compare::tests::race(0, 1, 0);
        let differences = compare(&full(), &[race], Some(&right()), Detail::Full).differences;
        assert!(matches!(differences[..], [Difference::Unexpected { .. }]), "{differences:?}");
    }

    #[test]
    fn every_wrong_fact_is_named() {
        let what = |change: fn(&mut Failure)| {
            let mut failures = right();
            change(&mut failures[0]);
            let differences = compared(&full(), &failures).differences;
            let [Difference::Misjudged { what, .. }] = differences[..] else { panic!("{differences:?}") };
            what
        };
        assert_eq!(what(|failure| failure.reason = Reason::Dying), What::Reason);
        assert_eq!(what(|failure| failure.protocol = Protocol::TCP), What::Protocol);
        assert_eq!(what(|failure| failure.flow.owner = None), What::LoserPid);
        assert_eq!(what(|failure| failure.flow.owner.as_mut().unwrap().tid = Some(7)), What::LoserPid);
        assert_eq!(what(|failure| failure.flow.owner.as_mut().unwrap().cgroup_id = Some(7)), What::LoserCgroup);
    }

    #[test]
    fn what_ctnetlink_refused_has_no_sender() {
        let refused = original(5, 10_000);
        let mut truth = Truth { cause: Cause::Failure(Reason::Ctnetlink), refused: vec![refused], ..full() };
        truth.rounds.clear();
        truth.drop = 0;
        let mut told = Failure { reason: Reason::Ctnetlink, ..failure(5, 10_000) };
        told.flow.owner = None;
        assert!(compared(&truth, std::slice::from_ref(&told)).ok());
        told.flow.owner = Some(owner(0));
        let differences = compared(&truth, &[told]).differences;
        assert!(matches!(differences[..], [Difference::Misjudged { what: What::LoserPid, .. }]), "{differences:?}");
    }

    #[test]
    fn an_eviction_that_never_happened_is_no_success() {
        let mut truth = Truth { evicted: Some(3), ..full() };
        truth.rounds.truncate(2);
        truth.rounds.remove(0);
        truth.drop = 0;
        assert!(compared(&truth, &[]).ok());
        truth.evicted = Some(0);
        assert!(!compared(&truth, &[]).ok());
    }
}
