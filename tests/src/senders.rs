//! Races of the lab whose senders are not processes that stay, each in a pod. Where any sender can be named at all, whoever is
//! must be the one.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};

use crate::output::Lines;
use crate::races::{exactly, some};
use crate::scenario::{Numbers, Row, Scenario, brief, whole};

/// Forced, but for one.
pub const SCENARIOS: &[Scenario] = &[
    brief("senders: short-lived, full", || short_lived("full", "snat-udp")),
    whole("senders: short-lived, minimal", || short_lived("minimal", "snat-udp")),
    whole("senders: short-lived tcp, full", || short_lived("full", "snat-tcp")),
    brief("senders: pid namespaces, full", || exactly(20, "full", &["--senders", "pid-namespace"])),
    whole("senders: pid namespaces, minimal", || exactly(20, "minimal", &["--senders", "pid-namespace"])),
    brief("senders: of the node, full", || exactly(20, "full", &["--senders", "host"])),
    whole("senders: of the node, minimal", || exactly(20, "minimal", &["--senders", "host"])),
    whole("senders: of the node, natural", || some("full", &["--senders", "host", "--rounds", "200"])),
    whole("senders: of the node, tcp ipv6", || {
        exactly(20, "full", &["--senders", "host", "--scenario", "snat-tcp", "--ipv6"])
    }),
    brief("senders: outside, full", || outside("full")),
    whole("senders: outside, minimal", || outside("minimal")),
];

/// Each packet has a process of its own.
fn short_lived(detail: &str, scenario: &str) -> Result<Row> {
    const ROUNDS: u64 = 20;

    let rounds = ROUNDS.to_string();
    let arguments =
        ["lab", "--senders", "short-lived", "--detail", detail, "--scenario", scenario, "--rounds", &rounds];
    let lines = Lines::of(&arguments)?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["ok"] == true && lines.races() == ROUNDS, "{} races: {lab}", lines.races());
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    let mut pids = HashSet::new();
    for race in lines.all("race") {
        for side in ["loser", "winner"] {
            let owner = &race[side]["owner"];
            if detail == "minimal" && scenario == "snat-udp" {
                ensure!(owner.is_null(), "nobody has that socket: {race}");
                continue;
            }
            let pid = owner["pid"].as_u64().with_context(|| format!("{side} is not named: {race}"))?;
            ensure!(pids.insert(pid) && owner["tid"] == pid, "{pid} sent another packet too: {race}");
        }
    }
    Ok(Row { text: format!("{} processes", pids.len()), numbers: lines.numbers()? })
}

/// Nobody here has sent it, though the packets come from processes of this machine.
fn outside(detail: &str) -> Result<Row> {
    let row = exactly(20, detail, &["--senders", "outside"])?;
    // The lab finds fault with any name.
    let numbers = Numbers { pids_right: None, cgroups_right: None, ..row.numbers };
    Ok(Row { text: "nobody named".to_owned(), numbers })
}
