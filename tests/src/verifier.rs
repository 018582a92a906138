//! Every program through the verifier of the running kernel, within its budget.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use snat_trace::kernel::{Detail, KernelFacts, Request};
use snat_trace::probe::verified_instructions;

use crate::scenario::{Row, Scenario, brief};

/// The verifier's.
pub const SCENARIOS: &[Scenario] = &[brief("verifier", gate)];

/// Most instructions the verifier may walk for a program, on any kernel of the matrix. Each is the largest count seen
/// (6.1 or 7.3 walks most), with a tenth added; the gate prints the counts to take a new one from.
const BUDGETS: [(Detail, &str, u32); 28] = [
    (Detail::Minimal, "clash", 720),
    (Detail::Minimal, "verdict", 107),
    (Detail::Full, "clash", 3277),
    (Detail::Full, "verdict", 107),
    (Detail::Full, "allocation", 2204),
    (Detail::Full, "insertion", 18),
    (Detail::Full, "insertion_at_confirm", 30),
    (Detail::Full, "owner_tcp", 557),
    (Detail::Full, "owner_ipv4", 535),
    (Detail::Full, "owner_ipv6", 613),
    (Detail::Full, "owner_raw", 749),
    (Detail::Full, "owner_raw6", 790),
    (Detail::Full, "note_process", 7219),
    (Detail::Full, "cgroup_removed", 2448),
    (Detail::Full, "confirm_ends", 5221),
    (Detail::Minimal, "confirm_ends", 968),
    (Detail::Full, "confirm_begins", 91),
    (Detail::Minimal, "confirm_begins", 91),
    (Detail::Full, "early_drop_ends", 20),
    (Detail::Minimal, "early_drop_ends", 20),
    (Detail::Full, "allocate_ends", 4707),
    (Detail::Minimal, "allocate_ends", 728),
    (Detail::Full, "allocate_begins", 119),
    (Detail::Minimal, "allocate_begins", 119),
    (Detail::Full, "check_insert_ends", 968),
    (Detail::Minimal, "check_insert_ends", 592),
    (Detail::Full, "check_insert_begins", 64),
    (Detail::Minimal, "check_insert_begins", 64),
];

/// Loads every program at both levels of detail, prints the verified instructions, and holds them against the budgets.
///
/// # Errors
///
/// A program the kernel refuses, one without a budget, or one above it.
pub fn gate() -> Result<Row> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let offsets = facts.offsets.context("the offsets of this kernel")?;
    // All are told before the first is complained of.
    let mut grown = Vec::new();
    for detail in [Detail::Minimal, Detail::Full] {
        // With those on failures, as the clash hook has more to do then.
        for (program, count) in verified_instructions(&offsets, Request { failures: true, ..detail.into() })? {
            let &(_, _, budget) = BUDGETS
                .iter()
                .find(|(level, name, _)| *level == detail && *name == program)
                .with_context(|| format!("{program} has no budget at {detail}"))?;
            let count_text = count.map_or_else(|| "not told".to_owned(), |count| count.to_string());
            println!("verifier {} {detail} {program}: {count_text} instructions, budget {budget}", facts.release);
            if count.is_some_and(|count| count > budget) {
                grown.push(format!("{program} at {detail} past its budget of {budget} to {count_text}"));
            }
        }
    }
    ensure!(grown.is_empty(), "verified instructions have grown: {}", grown.join("; "));
    Ok(Row::said("every program within its budget"))
}
