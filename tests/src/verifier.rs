//! Every program through the verifier of the running kernel, within its budget.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use snat_trace::kernel::{Detail, KernelFacts};
use snat_trace::probe::verified_instructions;

/// Most instructions the verifier may walk for a program at full detail, on any kernel of the matrix. Each is the largest
/// count seen, with a tenth added; the gate prints the counts to take a new one from.
const BUDGETS: &[(&str, u32)] = &[
    ("clash", 4000),
    ("allocation", 4000),
    ("insertion", 4000),
    ("insertion_at_confirm", 4000),
    ("owner_tcp", 4000),
    ("owner_ipv4", 4000),
    ("owner_ipv6", 4000),
];

/// Loads every program at both levels of detail, prints the verified instructions, and holds them against the budgets.
///
/// # Errors
///
/// A program the kernel refuses, one without a budget, or one above it.
pub fn gate() -> Result<String> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let offsets = facts.offsets.context("the offsets of this kernel")?;
    for detail in [Detail::Minimal, Detail::Full] {
        for (program, count) in verified_instructions(&offsets, detail)? {
            let &(_, budget) = BUDGETS
                .iter()
                .find(|(name, _)| *name == program)
                .with_context(|| format!("{program} has no budget"))?;
            let count_text = count.map_or_else(|| "not told".to_owned(), |count| count.to_string());
            println!("verifier {} {detail} {program}: {count_text} instructions, budget {budget}", facts.release);
            ensure!(
                count.is_none_or(|count| count <= budget),
                "{program} has grown past its budget of {budget} verified instructions: {count_text}"
            );
        }
    }
    Ok("every program within its budget".to_owned())
}
