//! What BPF programs cost, by the kernel's run-time statistics (kernel/bpf/trampoline.c and include/linux/filter.h,
//! `bpf_prog_run`: two clock readings around each run, which are in the time).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use snat_trace::kernel::{Detail, Request, programs};

/// Characters the kernel keeps of a name (include/uapi/linux/bpf.h, `BPF_OBJ_NAME_LEN`, less its end).
const NAME: usize = 15;

/// Runs of a program since it was loaded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Runs {
    /// How many.
    pub(super) count: u64,
    /// Time of all of them together, in nanoseconds.
    pub(super) nanoseconds: u64,
}

/// Of each program, by name. One that another calls in its place has no runs of its own.
pub(super) type Programs = BTreeMap<&'static str, Runs>;

/// Has the kernel count, on all CPUs, until this is dropped.
///
/// # Errors
///
/// The kernel does not let us.
pub(super) fn counted() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("cannot have the kernel count the runs of BPF programs")
}

/// The programs a snat-trace holds.
///
/// # Errors
///
/// It is gone, or the kernel does not tell of its programs.
pub(super) fn of(pid: u32) -> Result<Programs> {
    let ids = ids(pid)?;
    let request = Request { failures: true, ..Detail::Full.into() };
    let mut all = Programs::new();
    for info in loaded_programs() {
        // Others come and go.
        let Ok(info) = info else { continue };
        let name = info.name_as_str().unwrap_or_default();
        let Some(full) = programs(request).find(|full| full.get(..NAME).unwrap_or(full) == name) else { continue };
        if ids.contains(&info.id()) {
            let nanoseconds = u64::try_from(info.run_time().as_nanos())?;
            all.insert(full, Runs { count: info.run_count(), nanoseconds });
        }
    }
    Ok(all)
}

/// What came on top of an earlier look.
#[must_use]
pub(super) fn since(later: &Programs, earlier: &Programs) -> Programs {
    let less = |(name, runs): (&&'static str, &Runs)| {
        let before = earlier.get(name).copied().unwrap_or_default();
        let count = runs.count.saturating_sub(before.count);
        (*name, Runs { count, nanoseconds: runs.nanoseconds.saturating_sub(before.nanoseconds) })
    };
    later.iter().map(less).collect()
}

/// Numbers of the programs a process has descriptors of (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
fn ids(pid: u32) -> Result<HashSet<u32>> {
    let mut ids = HashSet::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that is closed by now is none.
        let Ok(text) = fs::read_to_string(descriptor?.path()) else { continue };
        ids.extend(text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
