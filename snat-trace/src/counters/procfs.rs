//! Conntrack statistics from `/proc/net/stat/nf_conntrack`: for kernels without ctnetlink, and as a second opinion.

use std::fs;

use super::figures::{CpuCounters, Reading, Tally};

/// The calling thread's network namespace; `/proc/net` would be that of the process's main thread.
const PATH: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// Why the file gave no statistics.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProcfsError {
    /// It cannot be read.
    #[error("/proc/net/stat/nf_conntrack: {0} (the kernel needs CONFIG_NF_CONNTRACK_PROCFS and nf_conntrack loaded)")]
    Unreadable(String),
    /// Its columns do not say what it counts.
    #[error("/proc/net/stat/nf_conntrack could not be understood")]
    Malformed,
}

/// Reads the statistics of the calling thread's network namespace.
///
/// # Errors
/// See [`ProcfsError`].
pub fn read() -> Result<Reading, ProcfsError> {
    let text = fs::read_to_string(PATH).map_err(|error| ProcfsError::Unreadable(error.to_string()))?;
    parse(&text).ok_or(ProcfsError::Malformed)
}

/// A header of names, then one line of hexadecimal values for each possible CPU (net/netfilter/
/// `nf_conntrack_standalone.c`, `ct_cpu_seq_show`). What stands in a column has changed over time, its name with it:
/// `clashres` was `searched` before 5.10 and `chainlength` was `delete_list` before 5.15.
fn parse(text: &str) -> Option<Reading> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let column = |name| names.iter().position(|&column| column == name);
    let insert_failed = column("insert_failed")?;
    let [clash_resolve, chaintoolong, drop, early_drop, found, invalid, search_restart] =
        ["clashres", "chainlength", "drop", "early_drop", "found", "invalid", "search_restart"].map(column);
    let reading: Option<Reading> = (0u16..)
        .zip(lines)
        .map(|(cpu, line)| {
            let values: Vec<u32> = line
                .split_ascii_whitespace()
                .map(|value| u32::from_str_radix(value, 16).ok())
                .collect::<Option<_>>()?;
            let value = |column: Option<usize>| column.and_then(|column| values.get(column)).copied();
            let tally = Tally {
                insert_failed: Some(*values.get(insert_failed)?),
                drop: value(drop),
                clash_resolve: value(clash_resolve),
                chaintoolong: value(chaintoolong),
                early_drop: value(early_drop),
            };
            let (found, invalid, search_restart) = (value(found), value(invalid), value(search_restart));
            Some((cpu, CpuCounters { tally, found, invalid, search_restart }))
        })
        .collect();
    reading.filter(|reading| !reading.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    /// A 6.18 kernel's, after three failed inserts on the second CPU.
    const CAPTURED: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000001  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000  00000000 00000000 00000000 00000000
00000001  00000000 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000003 00000003 00000000 00000000  00000000 00000000 00000000 00000000
";

    #[test]
    fn a_captured_file_is_understood() {
        let reading = parse(CAPTURED).unwrap();
        assert_eq!(reading.keys().copied().collect::<Vec<_>>(), [0, 1]);
        let counters = reading[&1];
        assert_eq!(counters.found, Some(3));
        let of = |value| Some(value);
        let expected =
            Tally { insert_failed: of(3), drop: of(3), clash_resolve: of(0), chaintoolong: of(0), early_drop: of(0) };
        assert_eq!(counters.tally, expected);
    }

    #[test]
    fn values_are_hexadecimal_and_found_by_name() {
        let reading = parse("insert_failed clashres found\n10 0000000a ffffffff\n").unwrap();
        let counters = reading[&0];
        assert_eq!((counters.tally.insert_failed, counters.tally.clash_resolve), (Some(16), Some(10)));
        assert_eq!((counters.found, counters.tally.drop), (Some(u32::MAX), None));
    }

    #[test]
    fn older_columns_are_not_taken_for_newer_ones() {
        let old = CAPTURED.replace("clashres", "searched").replace("chainlength", "delete_list");
        let tally = parse(&old).unwrap()[&1].tally;
        assert_eq!((tally.clash_resolve, tally.chaintoolong, tally.insert_failed), (None, None, Some(3)));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        for text in ["", "entries found\n0 0\n", "insert_failed\n", "insert_failed\nzz\n", "drop insert_failed\n1\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(insert_failed|drop| |\n|[0-9a-f]{1,9}|\\PC){0,60}") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn mutated_files_are_survived() {
        survives("procfs", &[CAPTURED.as_bytes()], |bytes| drop(parse(&String::from_utf8_lossy(bytes))));
    }
}
