//! Events as numbers to be drawn: over time, and by how long they took.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::case::{Case, Outcome};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// At most so many steps make a picture.
const STEPS: u64 = 60;
/// Lengths a step may have, seconds; beyond the last, multiples of it.
const LENGTHS: [u64; 14] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400];

/// What was in one step of time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Step {
    pub dropped: u64,
    /// Resolved, or of unknown outcome.
    pub other: u64,
    /// What the kernel had counted at its end, as far as it was read: `insert_failed` and `clash_resolve`. `None` before the
    /// first reading.
    pub counted: Option<u64>,
}

/// Steps of equal length, which begin at whole multiples of it.
#[derive(Debug)]
pub(super) struct Timeline {
    pub start: Timestamp,
    /// Seconds of one step.
    pub length: u64,
    pub steps: Vec<Step>,
}

impl Timeline {
    /// Of everything in a case; `None` when there is nothing in it.
    pub(super) fn new(case: &Case) -> Option<Self> {
        // Times of evidence are those since the epoch.
        let second = |time: KernelTime| time.nanoseconds() / 1_000_000_000;
        let first = second(case.recordings.first()?.session.started);
        let last = second(case.recordings.iter().map(|recording| recording.last).max()?).max(first);
        let count = |length: u64| last / length - first / length + 1;
        let [.., longest] = LENGTHS;
        let fitting = LENGTHS.into_iter().find(|&length| count(length) <= STEPS);
        let length = fitting.unwrap_or_else(|| ((last - first) / (STEPS - 1) + 1).next_multiple_of(longest));
        let mut steps = vec![Step::default(); usize::try_from(count(length)).unwrap_or(0)];
        let at = |time| usize::try_from((second(time) / length).saturating_sub(first / length)).unwrap_or(usize::MAX);
        for &(time, outcome) in &case.times {
            if let Some(step) = steps.get_mut(at(time)) {
                match outcome {
                    Outcome::Dropped => step.dropped += 1,
                    Outcome::Resolved | Outcome::Unknown => step.other += 1,
                }
            }
        }
        let mut so_far = 0;
        for (time, counted) in counted(case) {
            so_far += counted;
            if let Some(step) = steps.get_mut(at(time)) {
                step.counted = Some(so_far);
            }
        }
        let mut known = None;
        for step in &mut steps {
            known = step.counted.or(known);
            step.counted = known;
        }
        let start = Timestamp::from_second(i64::try_from(first - first % length).ok()?).ok()?;
        Some(Self { start, length, steps })
    }
}

/// What each reading of the counters found more than the one before it. The end of a recording is a reading too.
fn counted(case: &Case) -> Vec<(KernelTime, u64)> {
    let mut readings: Vec<(KernelTime, NetnsInum, u64)> = Vec::new();
    for sample in &case.samples {
        let counters = sample.counters;
        if let Some(failed) = counters.insert_failed {
            readings.push((sample.time, sample.netns, failed + counters.clash_resolve.unwrap_or(0)));
        }
    }
    for summary in case.summaries() {
        for account in &summary.accounts {
            if let (Some(netns), Ok(counters)) = (account.netns, &account.counters)
                && let Some(failed) = counters.insert_failed
            {
                readings.push((summary.span.ended, netns, failed + counters.clash_resolve.unwrap_or(0)));
            }
        }
    }
    readings.sort_unstable_by_key(|&(time, netns, _)| (time, netns));
    let mut starts = case.recordings.iter().map(|recording| recording.session.started).peekable();
    let mut before = BTreeMap::new();
    let mut steps = Vec::new();
    for (time, netns, now) in readings {
        // Each recording's figures begin at zero.
        while starts.next_if(|&start| start <= time).is_some() {
            before.clear();
        }
        let earlier = before.insert(netns, now).unwrap_or(0);
        steps.push((time, now.saturating_sub(earlier)));
    }
    steps
}

/// How many races had the port in common for how long: from 1, 2 and 5 of each power of ten nanoseconds on. Without empty
/// steps at either end.
pub(super) fn overlaps(overlaps: &[Duration]) -> Vec<(Duration, u64)> {
    let borders: Vec<u64> = (2..10).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power))).collect();
    let mut steps: Vec<(Duration, u64)> =
        [0].iter().chain(&borders).map(|&border| (Duration::from_nanos(border), 0)).collect();
    for overlap in overlaps {
        let at = steps.partition_point(|(border, _)| border <= overlap) - 1;
        steps[at].1 += 1;
    }
    let used = |(_, count): &(Duration, u64)| *count > 0;
    let (Some(first), Some(last)) = (steps.iter().position(used), steps.iter().rposition(used)) else {
        return Vec::new();
    };
    steps[first..=last].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_stand_where_they_belong() {
        let ns = Duration::from_nanos;
        let steps = overlaps(&[ns(0), ns(99), ns(100), ns(199), ns(500), ns(1_000_000_000_000)]);
        assert_eq!(steps[..4], [(ns(0), 2), (ns(100), 2), (ns(200), 0), (ns(500), 1)]);
        assert_eq!(steps.last(), Some(&(ns(5_000_000_000), 1)));
        assert_eq!(overlaps(&[ns(3_000)]), [(ns(2_000), 1)]);
        assert_eq!(overlaps(&[]), []);
    }
}
