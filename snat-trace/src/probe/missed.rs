//! Runs of the programs that the kernel left out: it runs no program of a probe on a CPU that is in the middle of another, or
//! of a map operation of anybody's (kernel/trace/bpf_trace.c, `trace_call_bpf`), and no probe within another
//! (kernel/kprobes.c, `kprobes_inc_nmissed_count`).

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

/// How many runs this process's programs missed, by their ids.
///
/// A program tells of itself since Linux 6.7, the link it is attached by since 6.17 (kernel/bpf/syscall.c,
/// `bpf_prog_show_fdinfo` and `bpf_perf_link_fdinfo_kprobe`); where neither does, none is told of.
pub(super) fn by_program(descriptors: &Path) -> io::Result<HashMap<u32, u64>> {
    let mut told = HashMap::new();
    for entry in fs::read_dir(descriptors)? {
        // One that is closed by now is none of ours.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        // Of one program or link there may be several.
        told.extend(of(&text));
    }
    let mut missed = HashMap::new();
    for ((program, _), count) in told {
        *missed.entry(program).or_default() += count;
    }
    Ok(missed)
}

/// What a descriptor is of, and what that says was missed.
type Told = ((u32, Option<u64>), u64);

/// A program by its id, or the link it is attached by, with that link's.
fn of(text: &str) -> Option<Told> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| *key == name)?.1.trim().parse::<u64>().ok())
    };
    let count = field("recursion_misses").or_else(|| field("missed"))?;
    Some(((u32::try_from(field("prog_id")?).ok()?, field("link_id")), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 7.3 prints them.
    const PROGRAM: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1060\nprog_type:\t2\nprog_jited:\t1\n\
                           prog_tag:\t5ee0d8ef43f2e2ac\nmemlock:\t12288\nprog_id:\t5\nrun_time_ns:\t0\nrun_cnt:\t0\n\
                           recursion_misses:\t3\nverified_insns:\t6285\n";
    const LINK: &str = "pos:\t0\nflags:\t02000000\nmnt_id:\t17\nino:\t1060\nlink_type:\tperf\nlink_id:\t12\n\
                        prog_tag:\t5ee0d8ef43f2e2ac\nprog_id:\t5\nname:\tnf_ct_resolve_clash\noffset:\t0x0\n\
                        missed:\t2\ntype:\tkprobe\ncookie:\t0\n";
    const MAP: &str = "pos:\t0\nmap_type:\t27\nmap_id:\t5\n";

    #[test]
    fn programs_and_links_are_told_from_other_descriptors() {
        assert_eq!(of(PROGRAM), Some(((5, None), 3)));
        assert_eq!(of(LINK), Some(((5, Some(12)), 2)));
        assert_eq!(of(MAP), None);
        assert_eq!(of("prog_id:\t5\nrecursion_misses:\t-1\n"), None);
    }

    #[test]
    fn both_count() {
        let place = tempfile::tempdir().unwrap();
        let idle = "prog_id:\t7\nrecursion_misses:\t0\n";
        for (name, text) in [("3", PROGRAM), ("4", LINK), ("5", MAP), ("6", idle), ("7", PROGRAM)] {
            fs::write(place.path().join(name), text).unwrap();
        }
        assert_eq!(by_program(place.path()).unwrap(), HashMap::from([(5, 5), (7, 0)]));
        assert!(by_program(&place.path().join("none")).is_err());
    }
}
