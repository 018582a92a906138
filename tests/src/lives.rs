//! Labs that come and go while one watch goes on, and one with more clashes than anybody can read. The lab compares what is told
//! with what its senders, its receivers and the counters know; here the numbers are held against what is known beforehand.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::output::{Lines, verdicts_are_the_kernels};
use crate::scenario::{Row, Scenario, brief, whole};

/// A storm is in no hurry to end on machines without a CPU of their own.
pub const SCENARIOS: &[Scenario] = &[
    brief("lab, namespaces, full", || namespaces("full", &[])),
    whole("lab, namespaces, minimal", || namespaces("minimal", &[])),
    whole("lab, namespaces, ipv6, 3 pods", || namespaces("full", &["--ipv6", "--pods", "3"])),
    whole("lab, storm, full", || storm("storm", &["--rounds", "200"], Some(false))),
    brief("lab, storm, ring of a page, full", || {
        storm("storm", &["--rounds", "400", "--ring-bytes", "4096"], Some(true))
    }),
    whole("lab, stalled reader, full", || storm("stalled-reader", &["--rounds", "400"], None)),
    brief("lab, stalled reader, ring of 64 KiB, full", || {
        storm("stalled-reader", &["--rounds", "400", "--ring-bytes", "65536"], Some(true))
    }),
    whole("lab, stalled reader, ring of 64 KiB, minimal", || {
        storm("stalled-reader", &["--rounds", "200", "--ring-bytes", "65536", "--detail", "minimal"], Some(true))
    }),
    whole("lab, storm, ring of a page, minimal", || {
        storm("storm", &["--rounds", "200", "--ring-bytes", "4096", "--detail", "minimal"], Some(true))
    }),
];

/// Four labs, of which the last is there to the end. Every race is told.
fn namespaces(detail: &str, more: &[&str]) -> Result<Row> {
    let arguments = ["lab", "--scenario", "namespaces", "--rounds", "14", "--detail", detail];
    let lines = Lines::of(&[&arguments, more].concat())?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    let losers = if more.contains(&"3") { 2 } else { 1 };
    ensure!(lab["ok"] == true && lab["labs"] == 4 && lab["packets_lost"] == 14 * losers, "{lab}");
    ensure!(lines.races() == 14 * losers && lines.lost_in_all()? == 0, "{} races: {summary}", lines.races());
    verdicts_are_the_kernels(summary)?;
    let numbers: BTreeSet<_> = lines.all("race").filter_map(|race| race["netns"].as_u64()).collect();
    // Numbers are used again, but not while somebody has them.
    ensure!((2..=4).contains(&numbers.len()), "{numbers:?}");
    ensure!(summary["closes"] == false, "what went away unread is in an account that closes: {summary}");
    let ended = summary["ended"].as_u64().context("how many went away is not said")?;
    ensure!(ended > 0, "none went away: {summary}");
    Ok(Row { text: format!("{} numbers, {ended} known to be gone", numbers.len()), numbers: lines.numbers()? })
}

/// One packet gets the port there is, the first; every other loses. Whether some are not told is known of a ring that is much
/// too small for them, or large enough.
fn storm(scenario: &str, arguments: &[&str], loses: Option<bool>) -> Result<Row> {
    let lines = Lines::of(&[&["lab", "--scenario", scenario, "--pods", "8"], arguments].concat())?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    let rounds: u64 = arguments.get(1).context("rounds")?.parse()?;
    let (expected, lost) = (8 * rounds - 1, lines.lost_in_all()?);
    ensure!(lab["ok"] == true && lab["packets_lost"] == expected && lab["insert_failed"] == expected, "{lab}");
    ensure!(lines.races() + lost == expected && lab["counted_as_lost"] == lost, "{} races, {summary}", lines.races());
    let ring_full = lines.lost("ring-full")? > 0;
    ensure!(loses.is_none_or(|loses| loses == ring_full) && summary["closes"] == (lost == 0), "{summary}");
    ensure!(lines.unexplained()? == lost, "{summary}");
    let unread = lab["unread_rounds"].as_u64();
    ensure!(unread.is_some_and(|rounds| rounds > 0) == (scenario == "stalled-reader"), "{lab}");
    let text = unread.map(|rounds| format!("{rounds} rounds while nobody read")).unwrap_or_default();
    Ok(Row { text, numbers: lines.numbers()? })
}
