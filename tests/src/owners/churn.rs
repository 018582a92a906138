//! Fifty thousand short flows of four processes with the same ports, some of which clash, through a table too small for
//! them: conntrack entries and tuples live again within microseconds, and every owner must be that of the present life.
//!
//! Each packet carries its sender's pid, so a loser tells by itself who sent it; a winner must have been sent by its
//! owner when it asked for its port.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::place::Place;
use crate::output::{Lines, Running};
use crate::scenario::{Numbers, Row};

/// Flows of each process.
const FLOWS: u32 = 12_500;
/// One in so many goes where there is one port for all.
const CLASHING: u32 = 25;
/// Source ports, shared by the processes of a pod.
const PORTS: u32 = 64;
/// Destination ports that are clashed for, from 30 000 on.
const CONTESTED: u32 = 8;
/// Nanoseconds for which a packet may be on its way.
const ON_THE_WAY: u128 = 250_000_000;
/// Entries the table may have.
const TABLE: &str = "2000";
/// What the table may have.
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// One packet that was sent: by whom, between which moments (nanoseconds since 1970).
#[derive(Clone, Copy, Debug)]
struct Sending {
    pid: u64,
    from: u128,
    to: u128,
}

/// What a process of the churn does; it says what it sent when it has sent everything.
///
/// # Errors
///
/// A system call fails.
pub(super) fn send(source: SocketAddr, destination: SocketAddr) -> Result<()> {
    let pid: u32 = fs::read_link("/proc/self")?.to_string_lossy().parse()?;
    let mut said = String::new();
    let mut sent = 0;
    for turn in 0..u32::MAX {
        if sent == FLOWS {
            break;
        }
        let port = u16::try_from(10_000 + turn.wrapping_mul(7) % PORTS)?;
        // The other process of the pod may have it now.
        let Ok(socket) = UdpSocket::bind((source.ip(), port)) else { continue };
        let clashing = sent % CLASHING == 0;
        let to = if clashing { 30_000 + sent / CLASHING % CONTESTED } else { 40_000 + sent % 20_000 };
        let to = SocketAddr::new(destination.ip(), u16::try_from(to)?);
        let before = now()?;
        socket.connect(to)?;
        socket.send(&pid.to_be_bytes())?;
        said += &format!("{} {} {before} {}\n", port, to.port(), now()?);
        sent += 1;
    }
    print!("{pid}\n{said}");
    Ok(io::stdout().flush()?)
}

fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// A smaller table while it lives.
struct SmallTable(String);

impl SmallTable {
    fn new() -> Result<Self> {
        let before = fs::read_to_string(MAX)?;
        fs::write(MAX, TABLE)?;
        Ok(Self(before))
    }
}

impl Drop for SmallTable {
    fn drop(&mut self) {
        // What it was before cannot be refused.
        let _refused = fs::write(MAX, &self.0);
    }
}

/// Runs it.
pub(super) fn churn() -> Result<Row> {
    let place = Place::new()?;
    place.nft(
        "n",
        "flush ruleset\ntable ip nat {\nchain post {\ntype nat hook postrouting priority 100;\n\
         oifname x0 udp dport 30000-30999 masquerade to :7777\noifname x0 masquerade\n}\n}\n",
    )?;
    let _table = SmallTable::new()?;
    let ready = Path::new("/tmp/ready-churn");
    let _absent = fs::remove_file(ready);
    let mut watch = Running::start(&["watch", "--format", "json", "--ready-file", "/tmp/ready-churn"])?;
    let child = watch.child()?;
    super::stage::until("the ready file", || Ok(ready.exists() || child.try_wait()?.is_some()))?;

    // Read along with the traffic, so that the pipe never fills.
    let stdout = watch.child()?.stdout.take().context("stdout is a pipe")?;
    let reader = std::thread::spawn(move || io::read_to_string(stdout));
    let processes = [("p0", "10.98.0.10:0"), ("p0", "10.98.0.10:0"), ("p1", "10.98.0.11:0"), ("p1", "10.98.0.11:0")]
        .map(|(pod, source)| start(pod, source));
    let mut sendings: HashMap<(String, u64, u64), Vec<Sending>> = HashMap::new();
    for (process, pod) in processes.into_iter().zip(["10.98.0.10", "10.98.0.10", "10.98.0.11", "10.98.0.11"]) {
        let output = process?.wait_with_output()?;
        ensure!(output.status.success(), "a sender: {}", String::from_utf8_lossy(&output.stderr));
        hear(&String::from_utf8(output.stdout)?, pod, &mut sendings)?;
    }
    let ended = watch.interrupt()?;
    let printed = reader.join().map_err(|_| anyhow::anyhow!("the reader"))??;
    let lines = Lines::parse_bytes(printed.as_bytes()).with_context(|| format!("{ended:?}"))?;

    let (mut named, mut both, mut sides) = (0, 0, 0);
    for race in lines.all("race") {
        let before = named;
        for side in ["loser", "winner"] {
            sides += 1;
            named += u64::from(judge(race, side, &sendings).with_context(|| format!("{side} of {race}"))?);
        }
        both += u64::from(named == before + 2);
    }
    let summary = lines.only("summary")?;
    ensure!(lines.races() > 100 && named * 2 > sides, "{named} of {sides} named in {} races", lines.races());
    // Every insert that failed is told, or counted as lost.
    let (counted, lost) = (place.insert_failed("n")?, lines.lost_in_all()?);
    ensure!(lines.races() + lost == counted, "{} races and {lost} lost of {counted}: {summary}", lines.races());
    // Packets that find the table full are dropped without a race.
    ensure!(lines.unexplained()? == lost, "{summary}");
    let evicted = &summary["accounts"][0]["counters"]["early_drop"];
    let numbers = Numbers {
        expected: Some(counted),
        seen: Some(lines.races()),
        pids_right: Some(both),
        cgroups_right: None,
        unexplained: Some(lines.unexplained()?),
        lost: Some(lost),
    };
    let text = format!("{} flows, {named} of {sides} senders named and right, {evicted} evicted", 4 * FLOWS);
    Ok(Row { text, numbers })
}

fn start(pod: &str, source: &str) -> Result<Child> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", pod]).arg(std::env::current_exe()?);
    command.args(["sender", "churn", "udp", source, "10.98.1.2:0"]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// What a process says it sent, by source address, source port and destination port.
fn hear(said: &str, source: &str, sendings: &mut HashMap<(String, u64, u64), Vec<Sending>>) -> Result<()> {
    let mut lines = said.lines();
    let pid = lines.next().context("a sender without a pid")?.parse()?;
    for line in lines {
        let numbers: Vec<u128> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [port, to_port, from, to] = numbers[..] else { bail!("a sender said {line:?}") };
        let key = (source.to_owned(), u64::try_from(port)?, u64::try_from(to_port)?);
        sendings.entry(key).or_default().push(Sending { pid, from, to });
    }
    Ok(())
}

/// Whether one side is named. Wrong is an error, and so is not at all where one process only has sent it of late.
fn judge(race: &Value, side: &str, sendings: &HashMap<(String, u64, u64), Vec<Sending>>) -> Result<bool> {
    let flow = &race[side];
    let original = &flow["original"];
    let source = original["src"].as_str().context("a source")?.to_owned();
    let flow_key =
        (source, original["sport"].as_u64().context("a port")?, original["dport"].as_u64().context("a port")?);
    let sent = sendings.get(&flow_key).with_context(|| format!("nobody sent {flow_key:?}"))?;
    let Some(pid) = flow["owner"]["pid"].as_u64() else {
        let clash = nanoseconds(race["time"].as_str().context("a race without a time")?)?;
        let asked = flow["allocated"].as_str().map_or(Ok(clash), nanoseconds)?;
        let lately = |sending: &&Sending| sending.to + ON_THE_WAY >= asked && sending.from <= clash;
        let senders: HashSet<u64> = sent.iter().filter(lately).map(|sending| sending.pid).collect();
        // Of a packet that was put off it is not seen who sent it. Its socket is gone by then, and a new one of another process
        // with its port can be in the way.
        let put_off = sent.iter().filter(lately).all(|sending| sending.to < asked);
        let another = |sending: &Sending| !senders.contains(&sending.pid) && sending.to > clash;
        let same_port = |key: &(String, u64, u64)| (&key.0, key.1) == (&flow_key.0, flow_key.1);
        let in_the_way = || sendings.iter().any(|(key, sent)| same_port(key) && sent.iter().any(another));
        ensure!(
            senders.len() > 1 || put_off && in_the_way(),
            "not named, and nobody else has sent it of late: {sent:?}"
        );
        return Ok(false);
    };
    if side == "loser" {
        // Behind 20 bytes of IP and 8 of UDP.
        let packet = race["packet"].as_str().context("no packet")?;
        let sender = u64::from_str_radix(packet.get(56..64).context("a short packet")?, 16)?;
        ensure!(pid == sender, "{sender} sent it");
        return Ok(true);
    }
    // When a winner asked is known but for those of before, of which this one's life was not seen.
    let allocated = flow["allocated"].as_str().context("a winner without times")?;
    let allocated = nanoseconds(allocated)?;
    // It asks a while after it was sent, where the CPU is busy.
    let sender =
        |sending: &Sending| pid == sending.pid && (sending.from..=sending.to + ON_THE_WAY).contains(&allocated);
    ensure!(sent.iter().any(sender), "it did not send it at {allocated}: {sent:?}");
    Ok(true)
}

/// Nanoseconds since 1970 of an RFC 3339 time in UTC.
fn nanoseconds(time: &str) -> Result<u128> {
    let time: jiff::Timestamp = time.parse()?;
    Ok(u128::try_from(time.as_nanosecond())?)
}
