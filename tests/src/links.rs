//! Races of the lab whose packets come to the node on other CPUs than their senders', or in softirqs of its links.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::output::{Lines, verdicts_are_the_kernels};
use crate::scenario::{Row, Scenario, Skip, brief, whole};

/// All forced.
pub const SCENARIOS: &[Scenario] = &[
    brief("links: rps, full", || links("full", &["--links", "rps"])),
    whole("links: rps, minimal", || links("minimal", &["--links", "rps"])),
    whole("links: rps, tcp ipv6", || links("full", &["--links", "rps", "--scenario", "snat-tcp", "--ipv6"])),
    whole("links: rps, short-lived senders", || links("full", &["--links", "rps", "--senders", "short-lived"])),
    brief("links: gro, full", || gro("full", &[])),
    whole("links: gro, minimal", || gro("minimal", &[])),
    whole("links: gro, tcp", || gro("full", &["--scenario", "snat-tcp"])),
];

/// Each race is told, and its senders. Times may be absent: a packet can come in an interrupt of a hook's own program, and the
/// kernel runs no second one on that CPU (kernel/trace/bpf_trace.c, `trace_call_bpf`). Each that is absent is counted, and where
/// it would have told the class that is not told either.
fn links(detail: &str, arguments: &[&str]) -> Result<Row> {
    const ROUNDS: u64 = 20;

    let lines = Lines::of_lab(&[&["lab", "--detail", detail], arguments].concat())?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["packets_lost"] == ROUNDS && lines.races() == ROUNDS, "{lab}");
    let differences = lab["differences"].as_array().context("no differences")?;
    let is_untold = |difference: &Value| difference["what"] == "class" && difference["seen"] == "unclassified";
    ensure!(differences.iter().all(is_untold), "{lab}");
    let untold: Vec<&Value> = lines.all("race").filter(|race| race["class"] == "unclassified").collect();
    let lacks = |race: &&Value| race["winner"]["allocated"].is_null() || race["loser"]["allocated"].is_null();
    ensure!(untold.len() == differences.len() && untold.iter().all(lacks), "{untold:?}: {lab}");
    ensure!(lab["pids_right"] == ROUNDS && lab["cgroups_right"] == ROUNDS, "{lab}");
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    verdicts_are_the_kernels(summary)?;
    let flows = lines.all("race").flat_map(|race| [&race["winner"], &race["loser"]]);
    let without = flows.filter(|flow| detail == "full" && flow["allocated"].is_null()).count();
    let counted = summary["incomplete"]["flow-without-allocation"].as_u64().unwrap_or(0);
    ensure!(counted == without as u64, "{without} flows without times: {summary}");
    let untold = if untold.is_empty() { String::new() } else { format!(", {} classes not told", untold.len()) };
    Ok(Row { text: format!("{without} flows without times{untold}"), numbers: lines.numbers()? })
}

/// Links that merge, which older kernels do not have: there the lab says so in one sentence, and does nothing.
fn gro(detail: &str, more: &[&str]) -> Result<Row> {
    const REFUSED: &str = "exit status: 1: snat-trace: the lab cannot have packets taken in that way: the links of this \
                           kernel (veth) merge nothing, whatever they are told\n";

    let row = links(detail, &[&["--links", "gro"], more].concat());
    row.map_err(|error| match error.to_string().contains(REFUSED) {
        true => Skip::because("the links of this kernel merge nothing"),
        false => error,
    })
}
