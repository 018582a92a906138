//! Kernel time is the order of events, though the ring delivers them in the order CPUs let go of them. And a clash waits
//! here for its verdict.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use snat_trace_common::{ClashRecord, FailureRecord, VerdictRecord};

use super::time::KernelTime;

/// How far apart in kernel time two records may lie and still come out of the ring in the wrong order. A hook takes the
/// time, fills its record and lets go of it without sleeping, so this covers a CPU that is interrupted meanwhile.
pub const REORDERING_BOUND: Duration = Duration::from_millis(100);

/// Holds records back until every earlier one must have come.
///
/// Records that come out of the ring within [`REORDERING_BOUND`] of their own time leave in the order of their times,
/// whatever the timing of the reads. A verdict comes within microseconds of its clash, and behind it, so the same wait
/// does for it.
#[derive(Debug, Default)]
pub struct Reorder {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Of every clash held back, and of no other.
    verdicts: HashMap<ClashName, Option<VerdictRecord>>,
    /// Records with equal times keep the order of the ring.
    pushed: u64,
}

impl Reorder {
    /// Takes a clash in.
    pub fn push(&mut self, clash: Box<ClashRecord>) {
        self.verdicts.insert(ClashName::of(&clash), None);
        self.wait(clash.header.time_ns, Held::Clash(clash));
    }

    /// Takes a failure in.
    pub fn push_failure(&mut self, failure: Box<FailureRecord>) {
        self.wait(failure.header.time_ns, Held::Failure(failure));
    }

    fn wait(&mut self, time: u64, record: Held) {
        self.pushed += 1;
        self.waiting.push(Reverse(Waiting { time, number: self.pushed, record }));
    }

    /// Puts a verdict to its clash. Where that is not held back, it was lost, or is out without a verdict and was counted
    /// as such.
    pub fn decide(&mut self, verdict: VerdictRecord) {
        if let Some(place) = self.verdicts.get_mut(&ClashName::named_by(&verdict)) {
            *place = Some(verdict);
        }
    }

    /// How many are held back.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none is held back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The earliest record, if at `now` no earlier one can come any more.
    pub fn pop(&mut self, now: KernelTime) -> Option<Next> {
        let bound = u64::try_from(REORDERING_BOUND.as_nanos()).unwrap_or(u64::MAX);
        let Reverse(earliest) = self.waiting.peek()?;
        if earliest.time.saturating_add(bound) > now.nanoseconds() {
            return None;
        }
        self.pop_last()
    }

    /// The earliest record, when the source has ended and none can come any more.
    pub fn pop_last(&mut self) -> Option<Next> {
        let Reverse(Waiting { record, .. }) = self.waiting.pop()?;
        Some(match record {
            Held::Clash(clash) => {
                let verdict = self.verdicts.remove(&ClashName::of(&clash)).flatten();
                Next::Clash { clash, verdict }
            }
            Held::Failure(failure) => Next::Failure(failure),
        })
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// A clash, and what the kernel decided.
    Clash {
        /// The clash.
        clash: Box<ClashRecord>,
        /// `None` when its record did not come.
        verdict: Option<VerdictRecord>,
    },
    /// A failure.
    Failure(Box<FailureRecord>),
}

/// A record held back.
#[derive(Debug)]
enum Held {
    Clash(Box<ClashRecord>),
    Failure(Box<FailureRecord>),
}

/// No entry can lose twice at one time.
#[derive(Debug, Eq, Hash, PartialEq)]
struct ClashName {
    time_ns: u64,
    loser_entry: u64,
}

impl ClashName {
    fn of(clash: &ClashRecord) -> Self {
        Self { time_ns: clash.header.time_ns, loser_entry: clash.loser_entry }
    }

    fn named_by(verdict: &VerdictRecord) -> Self {
        Self { time_ns: verdict.clash_ns, loser_entry: verdict.loser_entry }
    }
}

/// Compared by time, then by number.
#[derive(Debug)]
struct Waiting {
    time: u64,
    number: u64,
    record: Held,
}

impl Waiting {
    fn key(&self) -> (u64, u64) {
        (self.time, self.number)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::race::classify::tests::clash;
    use crate::race::failure::tests::refused;
    use crate::race::verdict::tests::verdict_on;

    fn time(next: &Next) -> u64 {
        match next {
            Next::Clash { clash, .. } => clash.header.time_ns,
            Next::Failure(failure) => failure.header.time_ns,
        }
    }

    fn at(time_ns: u64) -> Box<ClashRecord> {
        let mut record = clash();
        record.header.time_ns = time_ns;
        Box::new(record)
    }

    /// A clash at `time_ns` of the entry at `loser_entry`.
    fn of(loser_entry: u64, time_ns: u64) -> Box<ClashRecord> {
        Box::new(ClashRecord { loser_entry, ..*at(time_ns) })
    }

    fn now(nanoseconds: u64) -> KernelTime {
        KernelTime::from_record(nanoseconds).expect("not 0")
    }

    #[test]
    fn a_record_waits_for_the_bound_and_no_longer() {
        let bound = u64::try_from(REORDERING_BOUND.as_nanos()).unwrap();
        let mut order = Reorder::default();
        order.push(at(1000));
        assert!(order.pop(now(1000 + bound - 1)).is_none());
        assert_eq!(order.pop(now(1000 + bound)).map(|next| time(&next)), Some(1000));
        assert!(order.is_empty());
    }

    #[test]
    fn a_verdict_is_that_of_its_clash_and_of_no_other() {
        // Two at one time, and one entry at two times.
        let clashes = [of(0x10, 1000), of(0x20, 1000), of(0x10, 2000)];
        let mut order = Reorder::default();
        clashes.iter().for_each(|clash| order.push(clash.clone()));
        for (clash, returned) in [(&clashes[2], 1), (&clashes[0], 0)] {
            order.decide(VerdictRecord { returned, ..verdict_on(clash) });
        }
        let popped = std::iter::from_fn(|| order.pop_last());
        let verdicts: Vec<_> = popped
            .map(|next| match next {
                Next::Clash { clash, verdict } => {
                    (clash.loser_entry, clash.header.time_ns, verdict.map(|verdict| verdict.returned))
                }
                Next::Failure(failure) => panic!("{failure:?}"),
            })
            .collect();
        assert_eq!(verdicts, [(0x10, 1000, Some(0)), (0x20, 1000, None), (0x10, 2000, Some(1))]);
    }

    #[test]
    fn a_verdict_without_its_clash_takes_no_room() {
        let mut order = Reorder::default();
        order.decide(verdict_on(&at(1000)));
        order.push(at(1000));
        order.decide(verdict_on(&of(0x10, 1000)));
        assert!(matches!(order.pop_last(), Some(Next::Clash { verdict: None, .. })), "it came before its clash");
        order.decide(verdict_on(&at(1000)));
        assert!(order.verdicts.is_empty(), "{:?}", order.verdicts);
    }

    proptest! {
        /// Each record is read up to the bound after its own time; between reads, whatever is ready is taken.
        #[test]
        fn the_timing_of_reads_does_not_change_the_order(
            records in proptest::collection::vec((1_u64..1_000_000_000, 0_u64..100_000_000), 0..60),
        ) {
            let mut reads: Vec<(u64, u64)> = records.iter().map(|&(time, delay)| (time + delay, time)).collect();
            reads.sort_unstable();
            let mut order = Reorder::default();
            let mut out = Vec::new();
            for (read, time_ns) in reads {
                if time_ns % 3 == 0 {
                    let mut failure = refused();
                    failure.header.time_ns = time_ns;
                    order.push_failure(Box::new(failure));
                } else {
                    order.push(at(time_ns));
                }
                while let Some(next) = order.pop(now(read)) {
                    out.push(time(&next));
                }
            }
            while let Some(next) = order.pop_last() {
                out.push(time(&next));
            }
            let mut expected: Vec<u64> = records.iter().map(|&(time, _)| time).collect();
            expected.sort_unstable();
            prop_assert_eq!(out, expected);
        }
    }
}
