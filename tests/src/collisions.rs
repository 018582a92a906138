//! Races for a translated source in every form: transports, families, rules, zones, two translations in a row. Judged as
//! in [`races`](crate::races); three pods, so that each round has two losers and one winner.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::output::Lines;
use crate::races::{exactly, judge_followed, some};
use crate::scenario::{Row, Scenario, Skip, brief, whole};

/// The lab's, by what differs from UDP over IPv4 through an nft masquerade.
pub const SCENARIOS: &[Scenario] = &[
    brief("ipv6 udp, full", || forced(20, "--ipv6 --pods 3 --rounds 10")),
    brief("ipv6 udp, minimal", || minimal(20, "--ipv6 --pods 3 --rounds 10")),
    brief("ipv6 tcp, full", || forced(20, "--ipv6 --scenario snat-tcp --pods 3 --rounds 10")),
    whole("ipv6 tcp, minimal", || minimal(20, "--ipv6 --scenario snat-tcp --pods 3 --rounds 10")),
    whole("tcp, 8 pods, full", || forced(70, "--scenario snat-tcp --pods 8 --rounds 10")),
    whole("ipv6 tcp, 8 pods, minimal", || minimal(70, "--ipv6 --scenario snat-tcp --pods 8 --rounds 10")),
    whole("natural tcp, 3 pods", || natural("--scenario snat-tcp --pods 3 --rounds 60")),
    whole("natural ipv6 udp", || natural("--ipv6 --rounds 100")),
    whole("natural ipv6 tcp, 3 pods", || natural("--ipv6 --scenario snat-tcp --pods 3 --rounds 60")),
    // Senders of echo requests are recorded, though the lab does not ask for them.
    brief("icmp, full", || all_named(forced(20, "--scenario snat-icmp --pods 3 --rounds 10")?)),
    whole("icmp, minimal", || minimal(20, "--scenario snat-icmp --pods 3 --rounds 10")),
    brief("icmpv6, full", || all_named(forced(20, "--ipv6 --scenario snat-icmp --pods 3 --rounds 10")?)),
    whole("icmpv6, minimal", || minimal(20, "--ipv6 --scenario snat-icmp --pods 3 --rounds 10")),
    whole("natural icmp", || natural("--scenario snat-icmp --rounds 100")),
    whole("natural icmpv6", || natural("--ipv6 --scenario snat-icmp --rounds 100")),
    whole("control: random-fully icmp", || forced(0, "--scenario snat-icmp --random-fully --rounds 30")),
    whole("control: sequential icmp", || forced(0, "--scenario snat-icmp --control sequential --rounds 60")),
    brief("sctp, full", || sctp(|| forced(20, "--scenario snat-sctp --pods 3 --rounds 10"))),
    whole("sctp, minimal", || sctp(|| minimal(20, "--scenario snat-sctp --pods 3 --rounds 10"))),
    whole("ipv6 sctp, full", || sctp(|| forced(20, "--ipv6 --scenario snat-sctp --pods 3 --rounds 10"))),
    whole("natural sctp", || sctp(|| natural("--scenario snat-sctp --rounds 100"))),
    brief("iptables-nft", || forced(20, "--rules iptables-nft --pods 3 --rounds 10")),
    whole("iptables-nft, ipv6 tcp snat", || {
        forced(10, "--rules iptables-nft --nat snat --ipv6 --scenario snat-tcp --rounds 10")
    }),
    whole("natural iptables-nft", || natural("--rules iptables-nft --rounds 200")),
    whole("control: iptables-nft random-fully", || forced(0, "--rules iptables-nft --random-fully --rounds 30")),
    brief("iptables-legacy", || legacy(|| forced(20, "--rules iptables-legacy --pods 3 --rounds 10"))),
    whole("iptables-legacy, tcp snat", || {
        legacy(|| forced(10, "--rules iptables-legacy --nat snat --scenario snat-tcp --rounds 10"))
    }),
    whole("iptables-legacy, ipv6 tcp", || {
        legacy(|| forced(10, "--rules iptables-legacy --ipv6 --scenario snat-tcp --rounds 10"))
    }),
    whole("natural iptables-legacy", || legacy(|| natural("--rules iptables-legacy --rounds 200"))),
    whole("control: iptables-legacy random-fully", || {
        legacy(|| forced(0, "--rules iptables-legacy --nat snat --random-fully --rounds 30"))
    }),
    whole("snat", || forced(20, "--nat snat --pods 3 --rounds 10")),
    whole("ipv6 tcp snat", || forced(20, "--nat snat --ipv6 --scenario snat-tcp --pods 3 --rounds 10")),
    whole("control: snat random-fully", || forced(0, "--nat snat --random-fully --rounds 30")),
    brief("zones for one direction, full", || forced(20, "--zones original --pods 3 --rounds 10")),
    whole("zones for one direction, minimal", || minimal(20, "--zones original --pods 3 --rounds 10")),
    whole("zones for one direction, icmpv6", || {
        forced(20, "--zones original --ipv6 --scenario snat-icmp --pods 3 --rounds 10")
    }),
    whole("natural zones for one direction", || natural("--zones original --rounds 100")),
    whole("control: zones for both directions", || forced(0, "--zones both --pods 3 --rounds 30")),
    brief("double NAT, first, full", || forced(20, "--double-nat first --pods 3 --rounds 10")),
    whole("double NAT, first, tcp, minimal", || {
        minimal(20, "--double-nat first --scenario snat-tcp --pods 3 --rounds 10")
    }),
    whole("double NAT, first, natural", || natural("--double-nat first --rounds 200")),
    brief("double NAT, second, full", || followed(20, "--double-nat second --pods 3 --rounds 10")),
    whole("double NAT, second, minimal", || minimal(20, "--double-nat second --pods 3 --rounds 10")),
    whole("double NAT, second, ipv6 tcp", || {
        forced(20, "--double-nat second --ipv6 --scenario snat-tcp --pods 3 --rounds 10")
    }),
];

fn forced(races: u64, words: &str) -> Result<Row> {
    exactly(races, "full", &words.split(' ').collect::<Vec<_>>())
}

/// The same, and at full detail too each datagram's sender is found by its socket, behind the gateway that translates.
fn followed(races: u64, words: &str) -> Result<Row> {
    let lines = Lines::of(&[&["lab", "--detail", "full"], words.split(' ').collect::<Vec<_>>().as_slice()].concat())?;
    ensure!(lines.only("lab")?["named"] == true, "senders behind a gateway are to be named");
    judge_followed(&lines, "full", races)
}

fn minimal(races: u64, words: &str) -> Result<Row> {
    exactly(races, "minimal", &words.split(' ').collect::<Vec<_>>())
}

fn natural(words: &str) -> Result<Row> {
    some("full", &words.split(' ').collect::<Vec<_>>())
}

/// Demands both senders of every race.
fn all_named(row: Row) -> Result<Row> {
    ensure!(row.numbers.pids_right == row.numbers.expected, "senders are missing: {row}");
    Ok(row)
}

/// On a kernel whose connection tracking knows SCTP.
fn sctp(run: fn() -> Result<Row>) -> Result<Row> {
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established").exists() {
        return Err(Skip::because("this kernel's connection tracking knows no SCTP"));
    }
    run()
}

/// On a kernel that has iptables' own tables, which is tried where nothing else is.
fn legacy(run: fn() -> Result<Row>) -> Result<Row> {
    let list = Command::new("unshare").args(["-n", "iptables-legacy", "-w", "-t", "nat", "-L", "-n"]).output();
    let list = list.context("cannot run iptables-legacy")?;
    if !list.status.success() {
        let said = String::from_utf8_lossy(&list.stderr);
        return Err(Skip::because(said.lines().next().unwrap_or("iptables-legacy has no nat table").to_owned()));
    }
    run()
}
