//! What was measured: what the guest's `measure`, tests and benchmarks say to us, and all of it as `docs/cost.json` keeps it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::targets::DOCTOR;

/// One thing measured. `way` is how a node is watched: `nothing`, one of snat-trace's, or another tool.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Figure {
    /// How much traffic passes beside a way of watching.
    Rate {
        traffic: String,
        way: String,
        /// Runs, each compared with those right before and after it with nothing attached.
        pairs: u32,
        per_second: f64,
        /// To nothing attached: mean, and bounds of its 95 % interval.
        ratio: [f64; 3],
    },
    /// A BPF program, by the kernel's own statistics. The unit is a flow, or a datagram of an established one.
    Hook {
        /// The way it is part of.
        way: String,
        traffic: String,
        program: String,
        runs_per_unit: f64,
        ns_per_run: f64,
    },
    /// The body of a BPF program on this machine's own kernel.
    Body { program: String, runs: u32, ns_per_run: f64 },
    /// BPF instructions of the longest path through a program.
    Instructions { program: String, longest: u64 },
    /// BPF instructions that a new connection executes at full detail, all programs together.
    Executed { connection: String, instructions: u64 },
    /// The same when a socket for datagrams over IPv6 is bound.
    Bound { instructions: u64 },
    /// How many of the pairs of flows that could collide did.
    Collisions { way: String, turns: u32, share: f64, ratio: Option<[f64; 3]> },
    /// From the start of a process to its last hook: median, least and most.
    Start { way: String, runs: u32, milliseconds: [f64; 3] },
    /// The largest burst of collisions a ring keeps while nobody reads it.
    Storm { ring_bytes: u64, sent: u64, kept: u64 },
    /// Memory of the process.
    Memory { when: String, collisions_per_second: f64, resident_kib: u64, peak_kib: u64 },
    /// What the process does when nothing happens.
    Idle { way: String, seconds: f64, wakeups: u64, cpu_milliseconds: f64 },
    /// Cost against something that grows.
    Growth {
        axis: String,
        value: f64,
        ns_per_connection: f64,
        ns_of_a_flow: f64,
        ns_of_a_flow_alone: f64,
        cpu_milliseconds_of_user_side_per_second: f64,
    },
    /// Of the static binary.
    Size { bytes: u64 },
    /// What user space gets done on one core.
    User { what: String, per_second: f64 },
    /// Allocations from the heap.
    Allocations { what: String, per_event: f64 },
}

impl Figure {
    /// Whether it is measured on this machine itself and not in the guest.
    pub(super) fn is_native(&self) -> bool {
        match self {
            Self::Body { .. }
            | Self::Instructions { .. }
            | Self::Executed { .. }
            | Self::Bound { .. }
            | Self::Size { .. }
            | Self::User { .. }
            | Self::Allocations { .. } => true,
            Self::Start { way, .. } => way == DOCTOR,
            Self::Memory { when, .. } => when.starts_with(NO_KERNEL),
            Self::Rate { .. }
            | Self::Hook { .. }
            | Self::Collisions { .. }
            | Self::Storm { .. }
            | Self::Idle { .. }
            | Self::Growth { .. } => false,
        }
    }
}

/// How the user side calls its memory where there is no kernel (`snat_trace::watch`, its flood).
const NO_KERNEL: &str = "user side without a kernel";

/// Lines that begin with `figure ` (then JSON), among others. Whoever dies may cut the last line.
///
/// # Errors
/// A whole line is not what it should be.
pub(super) fn parse(output: &[u8]) -> Result<Vec<Figure>> {
    let text = String::from_utf8_lossy(output);
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let figures = lines.filter_map(|line| line.strip_prefix("figure "));
    figures.map(|line| serde_json::from_str(line).with_context(|| format!("no figure: {line}"))).collect()
}

/// Everything measured in one run of the command, and where.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Cost {
    /// Version of snat-trace.
    pub(super) version: String,
    /// The guest's, as `uname -r` says it.
    pub(super) kernel: String,
    /// And how its instructions are run, in words.
    pub(super) emulator: String,
    /// Whether they are translated: times are then no processor's.
    pub(super) emulated: bool,
    /// Of the guest.
    pub(super) processors: u32,
    /// Of the guest.
    pub(super) memory_mib: u32,
    /// This machine's, as it calls itself.
    pub(super) machine: String,
    /// The other tools, with the versions of their packages.
    pub(super) peers: Vec<String>,
    pub(super) figures: Vec<Figure>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One figure of each kind, and more where a table needs them; all targets but some are met.
    pub(in super::super) const LINES: &str = include_str!("figures.txt");

    /// A whole run.
    pub(in super::super) fn cost() -> Cost {
        Cost {
            version: "0.1.0".to_owned(),
            kernel: "6.12.117+deb13-cloud-amd64".to_owned(),
            emulator: "QEMU emulator version 7.2.22, TCG".to_owned(),
            emulated: true,
            processors: 2,
            memory_mib: 4096,
            machine: "Some CPU @ 2.00GHz, 2 processors".to_owned(),
            peers: vec!["bpftrace 0.23.2-1".to_owned()],
            figures: parse(LINES.as_bytes()).unwrap(),
        }
    }

    #[test]
    fn figures_among_other_lines() {
        let output =
            b"attached\nfigure {\"kind\":\"size\",\"bytes\":5}\nfigure {\"kind\":\"collisions\",\"way\":\"nothing\",\
                       \"turns\":3,\"share\":0.25,\"ratio\":null}\nfigure {\"kind\":\"si";
        let share = Figure::Collisions { way: "nothing".to_owned(), turns: 3, share: 0.25, ratio: None };
        assert_eq!(parse(output).unwrap(), [Figure::Size { bytes: 5 }, share]);
        assert!(parse(b"figure {}\n").is_err());
    }

    #[test]
    fn what_is_kept_is_what_was_measured() {
        let cost = cost();
        let kept = serde_json::to_string_pretty(&cost).unwrap();
        assert_eq!(serde_json::from_str::<Cost>(&kept).unwrap(), cost);
    }
}
