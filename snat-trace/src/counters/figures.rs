//! What the kernel counts per network namespace, and the arithmetic on it.

/// One value for each counter the account is about (include/linux/netfilter/nf_conntrack_common.h,
/// `struct ip_conntrack_stat`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally<T> {
    /// Entries that were not inserted: clashes, a chain too long, a dying entry.
    pub insert_failed: T,
    /// Packets dropped: unresolved clashes, the table full, a helper's or tracker's verdict.
    pub drop: T,
    /// Clashes in which the packet was sent on. Kernels before 5.10 do not count it.
    pub clash_resolve: T,
    /// Entries not inserted because their hash chain was too long. Kernels before 5.15 do not count it.
    pub chaintoolong: T,
    /// Entries evicted to make room in a full table.
    pub early_drop: T,
}

impl<T> Tally<T> {
    /// Every value with the kernel's name for it, in the order of a summary.
    #[must_use]
    pub fn named(self) -> [(&'static str, T); 5] {
        [
            ("insert_failed", self.insert_failed),
            ("drop", self.drop),
            ("clash_resolve", self.clash_resolve),
            ("chaintoolong", self.chaintoolong),
            ("early_drop", self.early_drop),
        ]
    }

    /// Each pair of values made one.
    pub(crate) fn zip<U, V>(self, other: Tally<U>, f: impl Fn(T, U) -> V) -> Tally<V> {
        Tally {
            insert_failed: f(self.insert_failed, other.insert_failed),
            drop: f(self.drop, other.drop),
            clash_resolve: f(self.clash_resolve, other.clash_resolve),
            chaintoolong: f(self.chaintoolong, other.chaintoolong),
            early_drop: f(self.early_drop, other.early_drop),
        }
    }
}

/// The counters of one CPU as the kernel keeps them: 32 bits that wrap. `None` is a counter this kernel does not have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuCounters {
    /// Those of the account.
    pub tally: Tally<Option<u32>>,
    /// Look-ups of a NAT port that found it busy.
    pub found: Option<u32>,
    /// Packets that belong to no flow.
    pub invalid: Option<u32>,
    /// Look-ups started again because the table changed under them.
    pub search_restart: Option<u32>,
}

/// One reading of a namespace: each possible CPU's counters, by CPU number.
pub type Reading = std::collections::BTreeMap<u16, CpuCounters>;

/// What was counted between two readings of one namespace, summed over its CPUs.
///
/// A CPU without an earlier reading started at zero. A counter missing in the later reading of every CPU is `None`.
#[must_use]
pub fn delta(earlier: &Reading, later: &Reading) -> Tally<Option<u64>> {
    later.iter().fold(Tally::default(), |sum, (cpu, now)| {
        let before = earlier.get(cpu).copied().unwrap_or_default();
        let counted = now.tally.zip(before.tally, |now, before| Some(now?.wrapping_sub(before.unwrap_or(0))));
        sum.zip(counted, add)
    })
}

/// Whether a counter went backwards, which one that counts events cannot have done: this is another namespace, or its
/// counters were zeroed. A step of half the 32 bits or more is taken for one backwards.
#[must_use]
pub fn went_back(earlier: &Reading, later: &Reading) -> bool {
    later.iter().any(|(cpu, now)| {
        let before = earlier.get(cpu).copied().unwrap_or_default();
        let steps =
            now.tally.zip(before.tally, |now, before| now.zip(before).map(|(now, before)| now.wrapping_sub(before)));
        steps.named().into_iter().any(|(_, step)| step.is_some_and(|step| step > u32::MAX / 2))
    })
}

/// A sum in which an absent counter adds nothing, and nothing but absent counters stays absent.
pub(crate) fn add<T: Into<u64>>(sum: Option<u64>, counted: Option<T>) -> Option<u64> {
    match counted {
        Some(counted) => Some(sum.unwrap_or(0) + counted.into()),
        None => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(values: &[(u16, u32, Option<u32>)]) -> Reading {
        let counters = |&(cpu, insert_failed, clash_resolve)| {
            let tally = Tally { insert_failed: Some(insert_failed), clash_resolve, ..Tally::default() };
            (cpu, CpuCounters { tally, ..CpuCounters::default() })
        };
        values.iter().map(counters).collect()
    }

    #[test]
    fn counters_wrap_on_each_cpu() {
        let (earlier, later) = (reading(&[(0, u32::MAX, None), (1, 7, None)]), reading(&[(0, 2, None), (1, 8, None)]));
        assert_eq!(delta(&earlier, &later).insert_failed, Some(3 + 1));
        assert!(!went_back(&earlier, &later));
    }

    #[test]
    fn without_an_earlier_reading_everything_counts() {
        assert_eq!(delta(&Reading::new(), &reading(&[(0, 5, Some(1)), (3, 6, None)])).insert_failed, Some(11));
    }

    #[test]
    fn an_absent_counter_is_absent_and_not_zero() {
        let (earlier, later) = (reading(&[(0, 1, None)]), reading(&[(0, 1, None)]));
        let counted = delta(&earlier, &later);
        assert_eq!((counted.insert_failed, counted.clash_resolve), (Some(0), None));
    }

    #[test]
    fn going_back_is_noticed() {
        assert!(went_back(&reading(&[(0, 5, Some(4))]), &reading(&[(0, 9, Some(3))])));
        assert!(!went_back(&reading(&[(0, 5, Some(4))]), &reading(&[(0, 5, Some(4))])));
    }
}
