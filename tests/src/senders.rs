//! Races of the lab whose senders are not processes that stay, each in a pod. Where any sender can be named at all, whoever is
//! must be the one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::output::{Lines, SNAT_TRACE, is_absence};
use crate::races::{exactly, judge_exactly, some};
use crate::scenario::{Numbers, Row, Scenario, Skip, brief, whole};

/// Forced, but for one.
pub const SCENARIOS: &[Scenario] = &[
    brief("senders: short-lived, full", || short_lived("full", "snat-udp", 20)),
    whole("senders: short-lived, minimal", || short_lived("minimal", "snat-udp", 20)),
    whole("senders: short-lived tcp, full", || short_lived("full", "snat-tcp", 20)),
    whole("senders: 10 000 short-lived", || short_lived("full", "snat-udp", 5000)),
    whole("senders: command lines left out, full", || without_commands("full")),
    whole("senders: command lines left out, minimal", || without_commands("minimal")),
    brief("senders: pid namespaces, full", || exactly(20, "full", &["--senders", "pid-namespace"])),
    whole("senders: pid namespaces, minimal", || exactly(20, "minimal", &["--senders", "pid-namespace"])),
    brief("senders: of the node, full", || exactly(20, "full", &["--senders", "host"])),
    whole("senders: of the node, minimal", || exactly(20, "minimal", &["--senders", "host"])),
    whole("senders: of the node, natural", || some("full", &["--senders", "host", "--rounds", "200"])),
    whole("senders: of the node, tcp ipv6", || {
        exactly(20, "full", &["--senders", "host", "--scenario", "snat-tcp", "--ipv6"])
    }),
    brief("senders: kernel threads, full", || kernel_threads("full", &[])),
    whole("senders: kernel threads, minimal", || kernel_threads("minimal", &[])),
    whole("senders: kernel threads, ipv6", || kernel_threads("full", &["--ipv6"])),
    whole("senders: SYN sent again, full", || sent_again("full", &[])),
    whole("senders: SYN sent again, minimal", || sent_again("minimal", &[])),
    whole("senders: SYN sent again, ipv6, rps", || sent_again("full", &["--ipv6", "--links", "rps"])),
    brief("senders: tunnels, full", || tunnels("full")),
    whole("senders: tunnels, minimal", || tunnels("minimal")),
    brief("senders: outside, full", || outside("full")),
    whole("senders: outside, minimal", || outside("minimal")),
];

/// Each packet has a process of its own.
fn short_lived(detail: &str, scenario: &str, rounds: u64) -> Result<Row> {
    let expected = rounds;
    let rounds = rounds.to_string();
    let arguments =
        ["lab", "--senders", "short-lived", "--detail", detail, "--scenario", scenario, "--rounds", &rounds];
    let lines = Lines::of_lab(&arguments)?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    // Probes are blind on a CPU where somebody reads a map.
    let (unseen, unnamed) = (count(&summary["lost"]["hook-missed"]), count(&summary["incomplete"]["hook-missed"]));
    for difference in lab["differences"].as_array().context("no differences")? {
        // What nobody saw is absent; whatever is told is right all the same.
        ensure!(unseen + unnamed > 0 && is_absence(difference), "{difference}: {summary}");
    }
    ensure!(lines.races() + unseen == expected && lines.lost_in_all()? == unseen, "{} races: {summary}", lines.races());
    ensure!(summary["closes"] == (unseen == 0), "{summary}");
    ensure!(unseen + unnamed <= expected / 250, "{unseen} not seen, {unnamed} other runs missed");
    let mut pids = HashSet::new();
    let mut nameless = 0;
    let mut pods = HashMap::new();
    for race in lines.all("race") {
        for side in ["loser", "winner"] {
            let owner = &race[side]["owner"];
            if detail == "minimal" && scenario == "snat-udp" {
                ensure!(owner.is_null(), "nobody has that socket: {race}");
                let behind = &race[side]["behind"];
                let netns = behind["netns"].as_u64().with_context(|| format!("the pod is still there: {race}"))?;
                let source = race[side]["original"]["src"].as_str().context("a source")?;
                let before = *pods.entry(source.to_owned()).or_insert(netns);
                ensure!(before == netns && race["netns"] != netns, "{source} is in {before}: {race}");
                continue;
            }
            // Each process was told by its command line from where to send.
            let source = race[side]["original"]["src"].as_str().context("a source")?;
            if owner.is_null() {
                nameless += 1;
                continue;
            }
            let told = owner["cmdline"].as_array().is_some_and(|words| words.iter().any(|word| word == source));
            ensure!(detail == "minimal" || told, "not what {source} runs: {race}");
            let pid = owner["pid"].as_u64().with_context(|| format!("{side} is not named: {race}"))?;
            // Of who connected alone it is not known by which thread it sent.
            let connected = owner["source"] == "socket-connect" && owner["tid"].is_null();
            ensure!(pids.insert(pid) && (connected || owner["tid"] == pid), "{pid} sent another packet too: {race}");
        }
    }
    let different: HashSet<u64> = pods.values().copied().collect();
    ensure!(different.len() == pods.len(), "pods in one namespace: {pods:?}");
    ensure!(nameless <= unnamed, "{nameless} senders without a name, {unnamed} runs missed");
    let missed = if unseen + unnamed > 0 { format!(", {unseen} + {unnamed} runs missed") } else { String::new() };
    Ok(Row { text: format!("{} processes{missed}", pids.len()), numbers: lines.numbers()? })
}

/// Neither executables nor command lines are anywhere in what is printed; the rest is.
fn without_commands(detail: &str) -> Result<Row> {
    /// The second word of a pod's command line.
    const WORD: &str = "lab-pod";

    let arguments = ["lab", "--detail", detail, "--no-cmdline"];
    let lines = Lines::of(&arguments)?;
    ensure!(lines.only("session")?["options"]["no_cmdline"] == true, "the session does not say so");
    for race in lines.all("race") {
        for side in ["loser", "winner"] {
            let owner = &race[side]["owner"];
            ensure!(owner["uid"] == 0 && owner["started"].is_string(), "as whom, since when: {race}");
            ensure!(owner["exe"].is_null() && owner["cmdline"].is_null(), "left out: {race}");
        }
        ensure!(!race.to_string().contains(WORD), "{WORD}: {race}");
    }
    judge_exactly(&lines, detail, 20)
}

/// A figure that is left out where it is nought.
fn count(figure: &Value) -> u64 {
    figure.as_u64().unwrap_or_default()
}

/// A thread of the kernel's, or one of the pod's that it did not start, sends each packet. Whoever is named has the socket; a
/// kernel that was told to do without such threads says so.
fn kernel_threads(detail: &str, more: &[&str]) -> Result<Row> {
    const ROUNDS: u64 = 20;

    let arguments = [&["lab", "--senders", "kernel-thread", "--detail", detail], more].concat();
    let lines = Lines::of(&arguments)?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["ok"] == true && lines.races() == ROUNDS, "{} races: {lab}", lines.races());
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    let disabled = "/proc/sys/kernel/io_uring_disabled";
    if fs::exists(disabled)? {
        fs::write(disabled, "2")?;
        let refused = Command::new(SNAT_TRACE).args(&arguments).output();
        fs::write(disabled, "0")?;
        let refused = refused?;
        let error = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(1) && error.lines().count() == 1, "{}: {error}", refused.status);
        ensure!(error.contains("no thread of this kernel sends"), "said: {error}");
    }
    Ok(Row { text: String::new(), numbers: lines.numbers()? })
}

/// Whatever races was sent by a timer of the kernel's, a second after its process asked for it.
fn sent_again(detail: &str, more: &[&str]) -> Result<Row> {
    exactly(5, detail, &[&["--scenario", "snat-tcp-again", "--rounds", "5"], more].concat())
}

/// The kernel has sent it, around what a process sent with the same ports.
fn tunnels(detail: &str) -> Result<Row> {
    let arguments = ["lab", "--senders", "tunnel", "--detail", detail];
    let lines = Lines::of(&arguments).map_err(|error| match error.to_string().contains("has no tunnels") {
        true => Skip::because("this kernel has no vxlan"),
        false => error,
    })?;
    let row = judge_exactly(&lines, detail, 20)?;
    let numbers = Numbers { pids_right: None, cgroups_right: None, ..row.numbers };
    Ok(Row { text: "nobody named".to_owned(), numbers })
}

/// Nobody here has sent it, though the packets come from processes of this machine.
fn outside(detail: &str) -> Result<Row> {
    let arguments = ["lab", "--senders", "outside", "--detail", detail];
    let lines = Lines::of(&arguments)?;
    for race in lines.all("race") {
        for side in ["loser", "winner"] {
            let behind = &race[side]["behind"];
            ensure!(behind["interface"] == "x0" && behind["port"].is_null(), "answers go to x0: {race}");
        }
    }
    let row = judge_exactly(&lines, detail, 20)?;
    // The lab finds fault with any name.
    let numbers = Numbers { pids_right: None, cgroups_right: None, ..row.numbers };
    Ok(Row { text: "nobody named".to_owned(), numbers })
}
