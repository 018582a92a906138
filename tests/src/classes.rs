//! Every class but the plain race for a port, as the lab makes it: how many clashes there were is known from its senders,
//! its receiver and the kernel's counters, each by itself.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::node::Node;
use crate::output::{Lines, verdicts_are_the_kernels};
use crate::places::{until, watching};
use crate::scenario::{Numbers, Row, Scenario, Skip, brief, whole};

/// Those of a full range are sure; of the others every run has some, as two CPUs will have it.
pub const SCENARIOS: &[Scenario] = &[
    brief("exhaustion, full", || full_range("full", "exhaustion", 16, &[])),
    brief("exhaustion, minimal", || full_range("minimal", "exhaustion", 16, &[])),
    brief("fixed port, full", || full_range("full", "fixed-port", 1, &[])),
    whole("fixed port, minimal", || full_range("minimal", "fixed-port", 1, &[])),
    whole("exhaustion, 5 pods, random-fully", || {
        full_range("full", "exhaustion", 16, &["--pods", "5", "--random-fully"])
    }),
    whole("exhaustion, ipv6 snat", || full_range("full", "exhaustion", 16, &["--ipv6", "--nat", "snat"])),
    whole("fixed port, iptables-nft", || full_range("full", "fixed-port", 1, &["--rules", "iptables-nft"])),
    brief("exhausted before the start", before_the_start),
    brief("duplicate flow, full", || clashes("full", "duplicate-flow", &[])),
    whole("duplicate flow, minimal", || clashes("minimal", "duplicate-flow", &[])),
    whole("duplicate flow, ipv6", || clashes("full", "duplicate-flow", &["--ipv6"])),
    brief("duplicate flow, two backends, full", || clashes("full", "duplicate-flow-dnat", &[])),
    whole("duplicate flow, two backends, minimal", || clashes("minimal", "duplicate-flow-dnat", &[])),
    whole("duplicate flow, tcp, full", || syn_sent_again("full")),
    whole("duplicate flow, tcp, minimal", || syn_sent_again("minimal")),
    brief("crossed flow, full", || clashes("full", "crossed-flow", &[])),
    whole("crossed flow, minimal", || clashes("minimal", "crossed-flow", &[])),
    brief("crossed flow, tcp, full", || clashes("full", "crossed-flow-tcp", &[])),
    whole("crossed flow, tcp, minimal", || clashes("minimal", "crossed-flow-tcp", &[])),
    whole("crossed flow, tcp, ipv6", || clashes("full", "crossed-flow-tcp", &["--ipv6"])),
];

/// Rounds of a lab whose range is full.
const ROUNDS: u64 = 30;
/// Rounds of a lab that leaves it to the CPUs, and how often it is repeated until a clash is seen.
const NATURAL_ROUNDS: &str = "60";
const TRIES: usize = 10;

/// The first flows take every port, and all the others lose.
fn full_range(detail: &str, scenario: &str, ports: u64, more: &[&str]) -> Result<Row> {
    let pods: u64 = match more {
        ["--pods", pods, ..] => pods.parse()?,
        _ => 2,
    };
    let rounds = ROUNDS.to_string();
    let lines = Lines::of(&[&["lab", "--detail", detail, "--scenario", scenario, "--rounds", &rounds], more].concat())?;
    let numbers = judge(&lines, detail, scenario)?;
    let expected = pods * ROUNDS - ports;
    ensure!(numbers.seen == Some(expected), "{:?} races, expected {expected}", numbers.seen);
    let mut counted = 0_u64;
    for race in lines.all("race") {
        let sport = race["contested"]["sport"].as_u64().unwrap_or(0);
        ensure!((60_000..60_000 + ports).contains(&sport), "port {sport}");
        ensure!(race["verdict"] == "dropped" && race["overlap_ns"].is_null(), "{race}");
        if detail == "full" {
            let (in_range, in_use) = (race["nat"]["in_range"].as_u64(), race["nat"]["in_use"].as_u64());
            ensure!(in_range == Some(ports) && in_use.is_none_or(|used| used == ports), "{in_use:?} of {in_range:?}");
            counted += u64::from(in_use.is_some());
        }
    }
    ensure!(counted > 0 || detail == "minimal", "the ports in use were never counted");
    Ok(Row { text: String::new(), numbers })
}

/// Some clashes of a kind that no lab can force.
fn clashes(detail: &str, scenario: &str, more: &[&str]) -> Result<Row> {
    let arguments = ["lab", "--detail", detail, "--scenario", scenario, "--rounds", NATURAL_ROUNDS];
    for _ in 0..TRIES {
        let lines = Lines::of(&[&arguments, more].concat())?;
        let numbers = judge(&lines, detail, scenario)?;
        if numbers.seen > Some(0) {
            let summary = lines.only("summary")?;
            let verdicts = format!("{} dropped, {} sent on", summary["races"]["dropped"], summary["races"]["resolved"]);
            return Ok(Row { text: verdicts, numbers });
        }
    }
    bail!("no clash in {TRIES} runs")
}

/// A clash in every round, of which there are few: each takes as long as TCP waits before it sends a SYN again.
fn syn_sent_again(detail: &str) -> Result<Row> {
    let arguments = ["lab", "--detail", detail, "--scenario", "duplicate-flow-tcp", "--rounds", "6"];
    let lines = Lines::of(&arguments)?;
    let numbers = judge(&lines, detail, "duplicate-flow-tcp")?;
    if numbers.seen == Some(0) {
        // As counters and receiver say too (net/netfilter/nf_conntrack_core.c, `__nf_conntrack_update`).
        return Err(Skip::because(
            "this kernel looks for an entry again when a queue lets a packet go, so nothing clashes",
        ));
    }
    ensure!(numbers.seen == Some(6), "{:?} clashes in 6 rounds", numbers.seen);
    ensure!(lines.all("race").all(|race| race["protocol"] == "tcp"), "not TCP");
    let races = &lines.only("summary")?["races"];
    Ok(Row { text: format!("{} dropped, {} sent on", races["dropped"], races["resolved"]), numbers })
}

/// Holds the numbers of one run together. The lab has compared each race with its truth.
fn judge(lines: &Lines, detail: &str, scenario: &str) -> Result<Numbers> {
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    let numbers = lines.numbers()?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("a number is missing: {lab} {summary}"));
    let races = lines.races();
    ensure!(lab["ok"] == true && lab["account_closes"] == true, "the lab is not content: {lab}");
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "the account does not close: {summary}");
    verdicts_are_the_kernels(summary)?;
    let (lost, resolved) = (number(&lab["packets_lost"])?, number(&lab["resolved"])?);
    ensure!(lost + resolved == races, "{lost} packets lost and {resolved} sent on, {races} races");
    ensure!(number(&lab["classes_right"])? == races, "{} classes right of {races}", lab["classes_right"]);
    ensure!(number(&lab["pids_right"])? == races, "{} processes right of {races}", lab["pids_right"]);
    ensure!(number(&summary["races"]["dropped"])? == lost, "the summary counts {}", summary["races"]);
    ensure!(number(&summary["races"]["resolved"])? == resolved, "the summary counts {}", summary["races"]);
    for account in summary["accounts"].as_array().context("no accounts")? {
        let counters = &account["counters"];
        ensure!(number(&counters["insert_failed"])? == lost, "{lost} packets lost, and netlink counted {account}");
        ensure!(number(&counters["clash_resolve"])? == resolved, "{resolved} sent on, and netlink counted {account}");
    }
    let class = match (scenario, detail) {
        // No times and no rule: why another port than its own was taken is not known.
        ("exhaustion" | "fixed-port", "minimal") => "unclassified",
        ("exhaustion", _) => "port-exhaustion",
        ("fixed-port", _) => "fixed-port",
        ("crossed-flow" | "crossed-flow-tcp", _) => "crossed-flow",
        _ => "duplicate-flow",
    };
    let other = lines.all("race").find(|race| race["class"] != class);
    ensure!(other.is_none(), "not {class}: {other:?}");
    Ok(numbers)
}

/// Where everything is sent to, and from.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Sixteen ports toward it.
const SIXTEEN_PORTS: &str = "table ip exhausted {
    chain out {
        type nat hook postrouting priority 100;
        udp dport 53 masquerade to :60000-60015
    }
}";

/// Flows sent at once after the start, and again when what was there before can be told.
const FLOWS: u16 = 20;

/// Watching begins when the range is full: no winner has times. What is told of them is told from a second on, and nothing
/// wrong before. Who lost is known from the senders, of this host all: their kernel refuses (EPERM).
fn before_the_start() -> Result<Row> {
    let node = Node::new("exhausted", &["10.77.0.1/32"], SIXTEEN_PORTS)?;
    let _receiver = node.inside(|| {
        // So that not one entry ends meanwhile.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "3600")?;
        Ok(UdpSocket::bind((SERVER, 53))?)
    })?;
    let mut port = 2000;
    let mut refused = |flows: u16| {
        let ports = port..port + flows;
        port += flows;
        node.inside(|| ports.map(is_refused).sum::<Result<u64>>())
    };
    ensure!(refused(16)? == 0 && refused(1)? == 1, "16 flows do not fill the range");

    let watch = watching(&[], Path::new("/tmp/ready-exhausted"))?;
    let ready = Instant::now();
    let early = refused(FLOWS)?;
    until("a second and a half", || ready.elapsed() > Duration::from_millis(1500))?;
    let expected = early + refused(FLOWS)?;
    let lines = Lines::parse(&watch.interrupt()?)?;
    let summary = lines.only("summary")?;
    ensure!(expected == 2 * u64::from(FLOWS) && lines.races() == expected, "{} races of {expected}", lines.races());
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "the account does not close: {summary}");

    let began = time(&lines.only("session")?["time"])?;
    let (mut told, mut counted, mut pids_right) = (0_u64, 0_u64, 0_u64);
    for race in lines.all("race") {
        ensure!(race["winner"]["allocated"].is_null() && race["winner"]["inserted"].is_null(), "{race}");
        let asked = time(&race["loser"]["allocated"]).with_context(|| race.to_string())?;
        if asked > began + Duration::from_secs(1) {
            ensure!(race["class"] == "port-exhaustion" && race["nat"]["in_range"] == 16, "{race}");
            let in_use = &race["nat"]["in_use"];
            ensure!(in_use.is_null() || *in_use == 16, "{race}");
            (told, counted) = (told + 1, counted + u64::from(!in_use.is_null()));
        } else {
            ensure!(race["class"] == "unclassified", "{race}");
        }
        let pid = &race["loser"]["owner"]["pid"];
        ensure!(*pid == std::process::id(), "{race}");
        pids_right += 1;
    }
    ensure!(told >= u64::from(FLOWS) && counted > 0, "{told} told, {counted} of them with the ports in use");
    let numbers = Numbers {
        expected: Some(expected),
        seen: Some(lines.races()),
        pids_right: Some(pids_right),
        unexplained: Some(lines.unexplained()?),
        lost: Some(lines.lost_in_all()?),
        ..Numbers::default()
    };
    Ok(Row { text: format!("{told} told, {counted} with ports in use"), numbers })
}

/// Sends one datagram from a port; 1 when the kernel drops it.
fn is_refused(port: u16) -> Result<u64> {
    let socket = UdpSocket::bind((SERVER, port))?;
    match socket.send_to(b"x", (SERVER, 53)) {
        Ok(_) => Ok(0),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(1),
        Err(error) => Err(error.into()),
    }
}

/// A time in JSON.
fn time(value: &Value) -> Result<jiff::Timestamp> {
    value.as_str().context("a time is missing")?.parse().context("no time")
}
