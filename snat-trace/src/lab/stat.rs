//! The lab's own reading of conntrack statistics, from /proc and so by another way than the tracer's.

use std::fs;
use std::io;

use super::error::LabError;
use super::truth::Cause;

/// Failed inserts, drops, resolved clashes and evicted entries of one namespace, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Stat {
    pub(super) insert_failed: u64,
    pub(super) drop: u64,
    pub(super) clash_resolve: u64,
    pub(super) early_drop: u64,
}

impl Stat {
    /// Those of the namespace thread `tid` of this process lives in.
    pub(super) fn read(tid: u32) -> Result<Self, LabError> {
        let path = format!("/proc/self/task/{tid}/net/stat/nf_conntrack");
        match fs::read_to_string(&path) {
            Ok(text) => {
                Self::parse(&text).ok_or(LabError::Counters { path, reason: "their form is unknown".to_owned() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LabError::Counters {
                path,
                reason: "this kernel has no such file: CONFIG_NF_CONNTRACK_PROCFS is not set".to_owned(),
            }),
            Err(error) => Err(LabError::Counters { path, reason: error.to_string() }),
        }
    }

    /// One line of names, then one of hexadecimal numbers per CPU (net/netfilter/nf_conntrack_standalone.c,
    /// `ct_cpu_seq_show`).
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next()?.split_whitespace().collect();
        let column = |name| names.iter().position(|other| *other == name);
        let (insert_failed, drop, early_drop) = (column("insert_failed")?, column("drop")?, column("early_drop")?);
        // Kernels before 5.10 do not count it.
        let clash_resolve = column("clashres");
        let mut sum = Self::default();
        for line in lines {
            let numbers: Vec<&str> = line.split_whitespace().collect();
            let number = |column: usize| u64::from_str_radix(numbers.get(column)?, 16).ok();
            // The kernel's counters are 32 bits wide.
            sum.insert_failed = (sum.insert_failed + number(insert_failed)?) & u64::from(u32::MAX);
            sum.drop = (sum.drop + number(drop)?) & u64::from(u32::MAX);
            sum.early_drop = (sum.early_drop + number(early_drop)?) & u64::from(u32::MAX);
            sum.clash_resolve = (sum.clash_resolve + clash_resolve.map_or(Some(0), number)?) & u64::from(u32::MAX);
        }
        Some(sum)
    }

    /// What was counted from `earlier` to now.
    pub(super) fn since(self, earlier: Self) -> Self {
        let delta = |now: u64, then: u64| now.wrapping_sub(then) & u64::from(u32::MAX);
        Self {
            insert_failed: delta(self.insert_failed, earlier.insert_failed),
            drop: delta(self.drop, earlier.drop),
            clash_resolve: delta(self.clash_resolve, earlier.clash_resolve),
            early_drop: delta(self.early_drop, earlier.early_drop),
        }
    }

    /// Packets lost for this cause.
    pub(super) fn lost(self, cause: Cause) -> u64 {
        cause.counted(self.insert_failed, self.drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_CPUS: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000004  00000002 00000000 00000000 00000001 00000000 00000000 00000000 00000000 0000000a 00000002 00000004 00000000  00000000 00000000 00000000 00000000
00000004  00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000010 00000001 00000005 00000000  00000000 00000000 00000000 00000000
";

    #[test]
    fn columns_are_found_by_name_and_summed() {
        assert_eq!(Stat::parse(TWO_CPUS), Some(Stat { insert_failed: 26, drop: 3, clash_resolve: 3, early_drop: 9 }));
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        for text in
            ["", "a b c\n1 2 3\n", "insert_failed drop early_drop\n1 2\n", "insert_failed drop early_drop\nx y z\n"]
        {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_counter_that_wrapped_still_gives_its_delta() {
        let before = Stat { insert_failed: 0xffff_ffff, drop: 1, clash_resolve: 0, early_drop: 0 };
        let after = Stat { insert_failed: 2, drop: 4, clash_resolve: 5, early_drop: 7 };
        assert_eq!(after.since(before), Stat { insert_failed: 3, drop: 3, clash_resolve: 5, early_drop: 7 });
    }
}
