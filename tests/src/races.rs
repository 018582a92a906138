//! Races, and the controls that must give none. The lab compares each race with its own truth; here the numbers of four
//! independent places are compared: the races printed, the receiver's log, the kernel's counters as the lab reads them
//! from /proc, and as snat-trace reads them over netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::output::{Lines, verdicts_are_the_kernels};
use crate::scenario::{Row, Scenario, brief, whole};

/// The lab's. Every kernel has those that are forced: their numbers are known beforehand.
pub const SCENARIOS: &[Scenario] = &[
    brief("forced udp, full", || exactly(200, "full", &["--rounds", "200"])),
    brief("forced udp, minimal", || exactly(200, "minimal", &["--rounds", "200"])),
    brief("forced tcp, full", || exactly(100, "full", &["--scenario", "snat-tcp", "--rounds", "100"])),
    brief("forced tcp, minimal", || exactly(100, "minimal", &["--scenario", "snat-tcp", "--rounds", "100"])),
    brief("forced udp, 8 pods, full", || of(320, 280, &["--pods", "8", "--rounds", "40"])),
    brief("forced udp, 8 pods, minimal", || exactly(280, "minimal", &["--pods", "8", "--rounds", "40"])),
    brief("addresses reused in the lab, full", || reused("full", &[])),
    whole("addresses reused in the lab, minimal", || reused("minimal", &[])),
    whole("addresses reused in the lab, ipv6", || reused("full", &["--ipv6"])),
    whole("addresses reused in the lab, natural", || some("full", &["--scenario", "address-reuse", "--rounds", "200"])),
    whole("natural udp, full", || some("full", &["--rounds", "200"])),
    whole("natural udp, minimal", || some("minimal", &["--rounds", "200"])),
    whole("natural tcp, full", || some("full", &["--scenario", "snat-tcp", "--rounds", "60"])),
    whole("natural tcp, minimal", || some("minimal", &["--scenario", "snat-tcp", "--rounds", "60"])),
    whole("control: random-fully, forced", || exactly(0, "full", &["--random-fully", "--rounds", "50"])),
    whole("control: random-fully, natural tcp", || {
        exactly(0, "full", &["--random-fully", "--natural", "--scenario", "snat-tcp", "--rounds", "60"])
    }),
    whole("control: different ports", || of(200, 0, &["--control", "different-ports", "--rounds", "100"])),
    whole("control: one CPU", || exactly(0, "full", &["--control", "one-cpu", "--rounds", "100"])),
    whole("control: sequential", || exactly(0, "full", &["--control", "sequential", "--rounds", "100"])),
    whole("control: sequential tcp", || {
        exactly(0, "full", &["--control", "sequential", "--scenario", "snat-tcp", "--rounds", "60"])
    }),
];

/// How often a natural run is repeated until a race is seen.
const TRIES: usize = 10;

/// `snat-trace lab` at a level of detail, with just so many races.
///
/// # Errors
///
/// A number or a fact differs.
pub(crate) fn exactly(expected: u64, detail: &str, arguments: &[&str]) -> Result<Row> {
    judge_exactly(&Lines::of(&[&["lab", "--detail", detail], arguments].concat())?, detail, expected)
}

/// The same at full detail, where each datagram the pods send is a new connection, and is counted as one.
fn of(connections: u64, expected: u64, arguments: &[&str]) -> Result<Row> {
    let lines = Lines::of(&[&["lab"], arguments].concat())?;
    let counted = &lines.only("summary")?["connections"];
    ensure!(counted == connections, "{counted} new connections, sent {connections}");
    judge_exactly(&lines, "full", expected)
}

/// A race in each of 200 rounds, between 50 000 connections, in memory for far fewer: whatever is told of a winner or a sender
/// must be of this round's, and not of one that lay there before.
fn reused(detail: &str, more: &[&str]) -> Result<Row> {
    const CONNECTIONS: u64 = 200 * 2 * 126;

    let arguments = ["lab", "--detail", detail, "--scenario", "address-reuse", "--rounds", "200"];
    let lines = Lines::of(&[&arguments, more].concat())?;
    let (reuse, counted) = (&lines.only("lab")?["reuse"], &lines.only("summary")?["connections"]);
    let room = reuse["room"].as_u64().context("how many entries there was room for is not known")?;
    ensure!(reuse["connections"] == CONNECTIONS && (1..CONNECTIONS / 10).contains(&room), "{reuse}");
    ensure!(detail == "minimal" || *counted == CONNECTIONS, "{counted} new connections, sent {CONNECTIONS}");
    let row = judge_exactly(&lines, detail, 200)?;
    Ok(Row { text: format!("{CONNECTIONS} connections, room for {room}"), ..row })
}

/// The same of a run that has been.
pub(crate) fn judge_exactly(lines: &Lines, detail: &str, expected: u64) -> Result<Row> {
    somebody_was_seen(lines, detail)?;
    judge_followed(lines, detail, expected)
}

/// The same where a datagram's sender is followed back through a translation, so that nobody need have been seen sending.
pub(crate) fn judge_followed(lines: &Lines, detail: &str, expected: u64) -> Result<Row> {
    let races = judge(lines, detail, false)?;
    ensure!(races == expected, "{races} races, expected {expected}");
    Ok(Row { text: String::new(), numbers: lines.numbers()? })
}

/// The same with nothing widened: some races, as two CPUs will have it. A run without any is repeated.
///
/// # Errors
///
/// A number or a fact differs, or no run had a race.
pub(crate) fn some(detail: &str, arguments: &[&str]) -> Result<Row> {
    for _ in 0..TRIES {
        let lines = Lines::of(&[&["lab", "--natural", "--detail", detail], arguments].concat())?;
        if judge(&lines, detail, true)? > 0 {
            somebody_was_seen(&lines, detail)?;
            return Ok(Row { text: String::new(), numbers: lines.numbers()? });
        }
    }
    bail!("no race in {TRIES} runs")
}

/// Holds one run's numbers and facts together; the number of races.
fn judge(lines: &Lines, detail: &str, natural: bool) -> Result<u64> {
    let (races, lab, summary) = (lines.races(), lines.only("lab")?, lines.only("summary")?);
    let number = |value: &Value| value.as_u64().context("a number is missing");
    ensure!(number(&lab["packets_lost"])? == races, "the receiver missed {}, races {races}", lab["packets_lost"]);
    ensure!(number(&lab["insert_failed"])? == races, "/proc counted {}, races {races}", lab["insert_failed"]);
    // Where senders need not be named, the lab still finds fault with a wrong one.
    let named = lab["named"] == true;
    if named {
        ensure!(number(&lab["pids_right"])? == races, "both processes right in {} of {races}", lab["pids_right"]);
        ensure!(number(&lab["cgroups_right"])? == races, "both cgroups right in {} of {races}", lab["cgroups_right"]);
    }
    ensure!(lab["ok"] == true && lab["account_closes"] == true, "the lab is not content: {lab}");
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "the account does not close: {summary}");
    verdicts_are_the_kernels(summary)?;
    ensure!(number(&summary["races"]["dropped"])? == races, "the summary counts {}", summary["races"]);

    let accounts = summary["accounts"].as_array().context("no accounts")?;
    ensure!(accounts.len() == usize::from(races > 0), "{} accounts for {races} races", accounts.len());
    for account in accounts {
        ensure!(number(&account["counters"]["insert_failed"])? == races, "netlink counted {account}");
        ensure!(number(&account["explained"]["insert_failed"])? == races, "explained {account}");
        let unexplained = account["unexplained"].as_object().context("no unexplained")?;
        ensure!(unexplained.values().all(|value| value == 0), "unexplained {account}");
    }
    lines
        .all("race")
        .try_for_each(|race| judge_race(race, detail, natural, named).with_context(|| race.to_string()))?;
    Ok(races)
}

/// At full detail not all senders are looked up.
fn somebody_was_seen(lines: &Lines, detail: &str) -> Result<()> {
    let needed = detail == "full" && lines.only("lab")?["named"] == true && lines.races() > 0;
    let seen = |race: &Value| ["loser", "winner"].iter().any(|side| race[side]["owner"]["source"] == "socket");
    ensure!(!needed || lines.all("race").any(seen), "nobody was seen sending");
    Ok(())
}

/// What every race of the lab must say at a level of detail.
fn judge_race(race: &Value, detail: &str, natural: bool, named: bool) -> Result<()> {
    ensure!(race["class"] == "snat-port-collision", "class {}", race["class"]);
    ensure!(race["verdict"] == "dropped", "verdict {}", race["verdict"]);
    let flow = |side: &str| (race[side]["original"].clone(), race[side]["zone"].clone());
    ensure!(flow("loser") != flow("winner"), "loser and winner are one flow");
    ensure!(race["loser"]["original"]["sport"] == race["contested"]["sport"], "the port was not kept");
    let (loser, winner) = (&race["loser"], &race["winner"]);
    let pid = |flow: &Value| flow["owner"]["pid"].as_u64();
    ensure!(pid(loser) != pid(winner) || !named && pid(loser).is_none(), "one process sent both");
    ensure!(loser["inserted"].is_null(), "a loser never goes in");
    // The packet is the loser's after translation: its source address is the contested one.
    let packet = race["packet"].as_str().context("no packet")?;
    ensure!(source_of(packet)?.to_string() == race["contested"]["src"].as_str().unwrap_or(""), "packet");

    let time = |value: &Value| value.as_str().map(str::to_owned);
    match detail {
        "full" => {
            let order = [time(&loser["allocated"]), time(&winner["inserted"]), time(&race["time"])]
                .map(Option::unwrap_or_default);
            // RFC 3339 of one zone and one number of digits sorts as text. Two natural flows can be so close that the
            // stamps do not tell; then there is no overlap to tell either.
            let told = order[0] < order[1] && order[1] < order[2] && !order[0].is_empty();
            ensure!(told || natural, "not a race by its times: {order:?}");
            ensure!(
                told == race["overlap_ns"].as_u64().is_some_and(|overlap| overlap > 0),
                "overlap {}",
                race["overlap_ns"]
            );
            ensure!(race["nat"]["random"] == false, "the rule has no random flag");
            for flow in [loser, winner].into_iter().filter(|flow| named || pid(flow).is_some()) {
                // A datagram that was put off was in nobody's hands when it asked.
                let put_off = race["protocol"] == "udp"
                    && (flow["owner"]["source"] == "socket-lookup" || flow["owner"]["source"] == "socket-connect");
                let seen = flow["owner"]["source"] == "socket" && flow["owner"]["tid"] != flow["owner"]["pid"];
                ensure!(seen || put_off, "owner");
            }
        }
        _ => {
            ensure!(race["overlap_ns"].is_null() && race["nat"].is_null(), "known without a hook");
            for flow in [loser, winner] {
                ensure!(flow["allocated"].is_null(), "known without a hook");
                let looked_up = flow["owner"]["source"] == "socket-lookup";
                ensure!(looked_up || !named && pid(flow).is_none(), "owner");
            }
        }
    }
    Ok(())
}

/// Source address in the header of a packet in hexadecimal.
fn source_of(packet: &str) -> Result<IpAddr> {
    let field = |range| packet.get(range).context("a short packet");
    match packet.get(..1) {
        Some("4") => Ok(Ipv4Addr::from(u32::from_str_radix(field(24..32)?, 16)?).into()),
        Some("6") => Ok(Ipv6Addr::from(u128::from_str_radix(field(16..48)?, 16)?).into()),
        _ => bail!("no IP packet: {packet}"),
    }
}
