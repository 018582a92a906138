//! Races of the lab whose packets come to the node on other CPUs than their senders', or in softirqs of its links.

use anyhow::{Result, ensure};

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
/// kernel runs no second one on that CPU (kernel/trace/bpf_trace.c, `trace_call_bpf`). Each that is absent is counted.
fn links(detail: &str, arguments: &[&str]) -> Result<Row> {
    const ROUNDS: u64 = 20;

    let lines = Lines::of(&[&["lab", "--detail", detail], arguments].concat())?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["ok"] == true && lab["packets_lost"] == ROUNDS && lines.races() == ROUNDS, "{lab}");
    ensure!(lab["pids_right"] == ROUNDS && lab["cgroups_right"] == ROUNDS, "{lab}");
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    verdicts_are_the_kernels(summary)?;
    let flows = lines.all("race").flat_map(|race| [&race["winner"], &race["loser"]]);
    let without = flows.filter(|flow| detail == "full" && flow["allocated"].is_null()).count();
    let counted = summary["incomplete"]["flow-without-allocation"].as_u64().unwrap_or(0);
    ensure!(counted == without as u64, "{without} flows without times: {summary}");
    Ok(Row { text: format!("{without} flows without times"), numbers: lines.numbers()? })
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
