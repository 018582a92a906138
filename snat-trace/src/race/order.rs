//! Kernel time is the order of events, though the ring delivers them in the order CPUs let go of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use snat_trace_common::ClashRecord;

use super::time::KernelTime;

/// How far apart in kernel time two records may lie and still come out of the ring in the wrong order. A hook takes the
/// time, fills its record and lets go of it without sleeping, so this covers a CPU that is interrupted meanwhile.
pub const REORDERING_BOUND: Duration = Duration::from_millis(100);

/// Holds records back until every earlier one must have come.
///
/// Records that come out of the ring within [`REORDERING_BOUND`] of their own time leave in the order of their times,
/// whatever the timing of the reads.
#[derive(Debug, Default)]
pub struct Reorder {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Records with equal times keep the order of the ring.
    pushed: u64,
}

impl Reorder {
    /// Takes a record in.
    pub fn push(&mut self, record: ClashRecord) {
        self.pushed += 1;
        self.waiting.push(Reverse(Waiting { time: record.header.time_ns, number: self.pushed, record }));
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
    pub fn pop(&mut self, now: KernelTime) -> Option<ClashRecord> {
        let bound = u64::try_from(REORDERING_BOUND.as_nanos()).unwrap_or(u64::MAX);
        let Reverse(earliest) = self.waiting.peek()?;
        if earliest.time.saturating_add(bound) > now.nanoseconds() {
            return None;
        }
        self.pop_last()
    }

    /// The earliest record, when the source has ended and none can come any more.
    pub fn pop_last(&mut self) -> Option<ClashRecord> {
        self.waiting.pop().map(|Reverse(waiting)| waiting.record)
    }
}

/// Compared by time, then by number.
#[derive(Debug)]
struct Waiting {
    time: u64,
    number: u64,
    record: ClashRecord,
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

    fn at(time_ns: u64) -> ClashRecord {
        let mut record = clash();
        record.header.time_ns = time_ns;
        record
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
        assert_eq!(order.pop(now(1000 + bound)).map(|record| record.header.time_ns), Some(1000));
        assert!(order.is_empty());
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
            for (read, time) in reads {
                order.push(at(time));
                while let Some(record) = order.pop(now(read)) {
                    out.push(record.header.time_ns);
                }
            }
            while let Some(record) = order.pop_last() {
                out.push(record.header.time_ns);
            }
            let mut expected: Vec<u64> = records.iter().map(|&(time, _)| time).collect();
            expected.sort_unstable();
            prop_assert_eq!(out, expected);
        }
    }
}
