//! What is read of evidence afterwards: whether a change helped, and the packets that lost.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::evidence::{place, recording, replayed};
use crate::output::{Lines, Running, SNAT_TRACE};
use crate::places::{lab_with_races, pods, until};
use crate::scenario::{Row, Scenario, once, whole};

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[once("evidence: compare", compare), whole("evidence: export", export)];

/// How long a side of a comparison is recorded: a verdict needs slices of time to see whether races come in bursts.
const SIDE: &str = "20s";
/// A lab that does not end before it is told to.
const ENDLESS: [&str; 2] = ["--rounds", "40000"];

/// A recording in the midst of a lab, and what it tells.
fn side(file: &Path, mut lab: Running) -> Result<Lines> {
    let (record, _) = recording(file, &["--format", "json", "--duration", SIDE])?;
    let output = record.wait()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    lab.signal(Signal::INT)?;
    lab.wait()?;
    Lines::parse(&replayed(file, &["--format", "json"])?)
}

/// What `compare` says, as JSON and in its first words.
fn compared(before: &Path, after: &Path) -> Result<(Value, String)> {
    let run = |format: &str| {
        let output =
            Command::new(SNAT_TRACE).arg("compare").args([before, after]).args(["--format", format]).output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    Ok((serde_json::from_slice(&run("json")?)?, String::from_utf8(run("text")?)?))
}

/// The fix is seen to be one, taken back it is worse, and two equal labs are equal.
fn compare() -> Result<Row> {
    let file = place()?;
    let [first, second, fixed] = ["first", "second", "fixed"].map(|name| file.with_file_name(name));
    let races = side(&first, lab_with_races(&ENDLESS)?)?.races();
    side(&second, lab_with_races(&ENDLESS)?)?;
    let lab = Running::start(&[&["lab", "--random-fully"], &ENDLESS[..]].concat())?;
    until("the pods", || pods() >= 2)?;
    // Two random ports may be the same, once in 64512 rounds.
    let left = side(&fixed, lab)?.races();
    let expected = if left == 0 { "fixed" } else { "better" };
    let mut said = Vec::new();
    for (before, after, verdict) in [
        (&first, &fixed, expected),
        (&fixed, &first, "worse"),
        (&first, &second, "no-change"),
        (&first, &first, "no-change"),
    ] {
        let (record, text) = compared(before, after)?;
        ensure!(record["verdict"] == verdict, "{verdict} expected: {record}\n{text}");
        ensure!(record["per"] == "1000-connections", "{record}");
        let words = verdict.replace('-', " ");
        ensure!(text.starts_with(&format!("{words}: ")), "{verdict} expected: {text}");
        said.push(text.lines().take(2).collect::<Vec<_>>().join(" "));
    }
    // Each round is two flows, one of which loses; the first and the last may be seen in part.
    let (record, _) = compared(&first, &fixed)?;
    ensure!(record["before"]["dropped"] == races, "{races} races: {record}");
    ensure!(
        record["before"]["connections"].as_u64().map(|count| count + 2) >= Some(2 * races),
        "{races} races: {record}"
    );
    Ok(Row::said(said.swap_remove(0)))
}

/// As many packets as losers, each of which is the datagram of its round; of redacted evidence nothing names anybody.
fn export() -> Result<Row> {
    const PACKETS: usize = 20;

    let file = place()?;
    let (record, _) = recording(&file, &["--format", "json"])?;
    Lines::of(&["lab", "--rounds", &PACKETS.to_string()])?;
    record.interrupt()?;
    let out = |name: &str| file.with_file_name(name);
    let exported = |name: &str, more: &[&str]| {
        let output =
            Command::new(SNAT_TRACE).arg("export").arg(&file).arg("--pcapng").arg(out(name)).args(more).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(out(name)).context("cannot read what was exported")
    };
    let (open, redacted) = (exported("open", &[])?, exported("redacted", &["--redact"])?);
    let count = |file: &[u8], text: &[u8]| file.windows(text.len()).filter(|window| *window == text).count();
    let lines = Lines::parse(&replayed(&file, &["--format", "json"])?)?;
    for race in lines.all("race") {
        let hex = race["packet"].as_str().context("a race without a packet")?;
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16)).collect::<Result<_, _>>()?;
        ensure!(count(&open, &bytes) == 1 && count(&redacted, &bytes) == 0, "packet {hex}");
    }
    ensure!(
        count(&open, b"\nloser: ") == PACKETS && count(&redacted, b"\nloser: ") == PACKETS,
        "not {PACKETS} packets"
    );
    // A whole address: of redacted ones one in 256 begins as the lab's by right.
    for secret in ["10.99.1.2", "pod-"] {
        let secret = secret.as_bytes();
        ensure!(
            count(&open, secret) >= PACKETS && count(&redacted, secret) == 0,
            "{:?}",
            String::from_utf8_lossy(secret)
        );
    }
    Ok(Row::said(format!("{PACKETS} packets in {} bytes", open.len())))
}
