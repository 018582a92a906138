//! Connections of a lab that do not come into the table and are no race. The lab compares what is told with what its senders,
//! its receiver and the counters know; here their numbers are held against what is known beforehand.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::failures::{SMALLEST_TABLE, Setting};
use crate::modules::{loaded, with_modprobe};
use crate::output::{Lines, SNAT_TRACE};
use crate::scenario::{Numbers, Row, Scenario, Skip, brief, whole};

/// All but chains too long need nothing of the node.
pub const SCENARIOS: &[Scenario] = &[
    brief("lab, table full", || table_full(&["--failures"])),
    whole("lab, table full, untraced", || table_full(&[])),
    whole("lab, table full, minimal, ipv6", || table_full(&["--failures", "--detail", "minimal", "--ipv6"])),
    whole("lab, early drop", early_drop),
    whole("lab, chain too long", chain_too_long),
    whole("lab, ctnetlink", ctnetlink),
    brief("lab, dying entries, full", || dying("full")),
    whole("lab, dying entries, minimal", || dying("minimal")),
];

/// Two pods, and twenty rounds.
const SENT: u64 = 40;

/// A lab of a scenario, with what it says judged as far as it is the same for all: no races, nothing lost, and the lab
/// content.
fn lab(scenario: &str, more: &[&str]) -> Result<Lines> {
    let lines = Lines::of(&[&["lab", "--scenario", scenario], more].concat())?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["ok"] == true && lab["seen"] == 0 && lines.races() == 0, "{lab}");
    ensure!(lines.lost_in_all()? == 0 && summary["races"]["dropped"] == 0, "{summary}");
    Ok(lines)
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("a number is missing: {value}"))
}

/// What netlink counted in the node's namespace; 0 where there is no account of it.
fn counted(lines: &Lines, counter: &str) -> Result<u64> {
    let accounts = lines.only("summary")?["accounts"].as_array().context("no accounts")?;
    Ok(accounts.iter().filter_map(|account| account["counters"][counter].as_u64()).sum())
}

/// The failures told, each of a reason.
fn failures(lines: &Lines, reason: &str) -> Result<u64> {
    let other = lines.all("insert-failure").find(|failure| failure["reason"] != reason);
    ensure!(other.is_none(), "not {reason}: {other:?}");
    Ok(lines.all("insert-failure").count() as u64)
}

fn row(lines: &Lines, expected: u64, seen: u64, text: String) -> Result<Row> {
    let lab = lines.only("lab")?;
    let right = &lab["failures"]["right"];
    ensure!(right.as_u64().unwrap_or(0) == seen, "{seen} failures told, {right} right");
    let numbers = Numbers {
        expected: Some(expected),
        seen: Some(seen),
        unexplained: Some(lines.unexplained()?),
        lost: Some(lines.lost_in_all()?),
        ..Numbers::default()
    };
    Ok(Row { text, numbers })
}

/// Every packet loses; which of them is only known by failures.
fn table_full(more: &[&str]) -> Result<Row> {
    let _room = Setting::most_entries(SMALLEST_TABLE)?;
    let lines = lab("table-full", more)?;
    let traced = more.contains(&"--failures");
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(number(&lab["packets_lost"])? == SENT && lab["insert_failed"] == 0, "{lab}");
    ensure!(counted(&lines, "drop")? == SENT && counted(&lines, "insert_failed")? == 0, "{summary}");
    ensure!(summary["closes"] == traced && lab["account_closes"] == traced, "{summary}");
    let told = failures(&lines, "table-full")?;
    ensure!(told == if traced { SENT } else { 0 }, "{told} failures");
    row(&lines, told, told, String::new())
}

/// Nothing loses, as there is an entry per bucket: what can be evicted is looked for in eight of them.
fn early_drop() -> Result<Row> {
    let buckets = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets")?;
    let _room = Setting::most_entries(buckets.trim().parse()?)?;
    let lines = lab("early-drop", &["--failures"])?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    let evicted = counted(&lines, "early_drop")?;
    ensure!(lab["packets_lost"] == 0 && summary["closes"] == true && evicted > 0, "{summary}");
    ensure!(number(&lab["evicted"])? == evicted, "netlink counted {evicted}: {lab}");
    row(&lines, 0, failures(&lines, "table-full")?, format!("{evicted} evicted"))
}

/// Some packets lose, where the kernel limits chains.
fn chain_too_long() -> Result<Row> {
    let (_room, _buckets) = Setting::where_chains_are_limited()?;
    let lines = lab("chain-too-long", &["--failures", "--rounds", "100"])?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    let lost = number(&lab["packets_lost"])?;
    ensure!(lost >= 3 && summary["closes"] == true && counted(&lines, "drop")? == 0, "{summary}");
    ensure!(counted(&lines, "insert_failed")? == lost && counted(&lines, "chaintoolong")? == lost, "{summary}");
    let told = failures(&lines, "chain-too-long")?;
    ensure!(told == lost, "{told} failures of {lost}");
    row(&lines, lost, told, String::new())
}

/// Two entries a round are refused. One of them is found before anything is inserted, and is none that failed.
fn ctnetlink() -> Result<Row> {
    let lines = lab("ctnetlink", &["--failures"])?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["packets_lost"] == 0 && summary["closes"] == true, "{summary}");
    ensure!(counted(&lines, "insert_failed")? == 0 && counted(&lines, "drop")? == 0, "{summary}");
    let told = failures(&lines, "ctnetlink")?;
    ensure!(told == SENT, "{told} failures");
    ensure!(lines.all("insert-failure").all(|failure| failure["errno"] == 17), "not EEXIST");
    row(&lines, SENT, told, String::new())
}

/// A helper that comes and goes kills what is on its way, on kernels that do that; others say so. It is left as it was.
fn dying(detail: &str) -> Result<Row> {
    let path = with_modprobe()?;
    let before = loaded()?;
    let lab = |more: &[&str]| {
        let arguments = ["lab", "--scenario", "dying", "--detail", detail, "--rounds", "10000", "--format", "json"];
        Command::new(SNAT_TRACE).env("PATH", &path).args(arguments).args(more).output()
    };
    for (more, missing) in [(["--failures"], "--change-node"), (["--change-node"], "--failures")] {
        let output = lab(&more)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && error.contains(missing), "{}: {error}", output.status);
    }
    let output = lab(&["--failures", "--change-node"])?;
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("nothing dies on its way") {
        ensure!(output.status.code() == Some(1) && error.lines().count() == 1, "{}: {error}", output.status);
        return Err(Skip::because("this kernel leaves alone what is not in the table"));
    }
    let lines = Lines::parse(&output)?;
    // Before its last word stands how far it came.
    let ended = || format!("{}: {}", output.status, error.lines().last().unwrap_or_default());
    let lab = lines.only("lab").with_context(ended)?;
    let summary = lines.only("summary")?;
    ensure!(output.status.success() && lab["ok"] == true && lines.races() == 0, "{lab}");
    let lost = number(&lab["packets_lost"])?;
    ensure!(lost > 0 && summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    ensure!(counted(&lines, "insert_failed")? + counted(&lines, "drop")? == lost, "{summary}");
    let reason = lines.all("insert-failure").next().context("no failure")?["reason"].as_str().context("a reason")?;
    ensure!(matches!(reason, "dying" | "stale-extension"), "{reason}");
    let told = failures(&lines, reason)?;
    ensure!(told == lost && before == loaded()?, "{told} failures of {lost}");
    row(&lines, lost, told, reason.to_owned())
}
