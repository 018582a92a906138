//! A place that is watched, the senders in it, and what must be said of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::place::{Place, external};
use crate::output::{Lines, Running};
use crate::scenario::{Numbers, Row};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// What must be said of a sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expected {
    /// Named.
    Named,
    /// Named as it is, or not at all.
    Right,
    /// Not named at all.
    Absent,
}
use Expected::{Absent, Named};

/// A sender to start, and how its flow looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    pub(super) pod: &'a str,
    pub(super) way: &'a str,
    pub(super) socket: &'a str,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// Source as the node sees it, where somebody translates on the way.
    pub(super) seen_as: SocketAddr,
    pub(super) expected: Expected,
}

/// A container that senders are in.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Directory of its cgroup.
    pub(super) cgroup: PathBuf,
    /// What must be said of it and of its pod.
    pub(super) container: Value,
    pub(super) pod: Value,
    /// Whether it was seen before. Names that come too late for the first event are known for the next.
    pub(super) seen: bool,
}

/// A sender that has sent.
#[derive(Clone, Debug)]
struct Sent {
    what: String,
    expected: Expected,
    /// What it said of itself; `None` of one that is no process.
    truth: Option<Value>,
}

/// A place that is being watched, and everything that was sent there.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped in this order: the watch, then the senders, then the namespaces.
    watch: Option<Running>,
    /// What it has printed so far.
    printed: Arc<Mutex<String>>,
    senders: Vec<Child>,
    pub(super) place: Place,
    full: bool,
    /// By node, protocol and original tuple, as a race has them. A tuple that loses several times has several senders, in
    /// the order in which they lose.
    sent: HashMap<String, VecDeque<Sent>>,
    next_port: u16,
    /// Where the next senders are, if they are in a container.
    pub(super) workload: Option<Workload>,
    /// How many flows without a known sender must at least be told to be of their pod.
    pub(super) placed: u64,
    /// How many clashes there must be, in all nodes together. There may be more: a SYN is sent again.
    pub(super) races: u64,
}

impl Stage {
    pub(super) fn new(detail: &str) -> Result<Self> {
        Self::watched_by(detail, Running::start)
    }

    /// One that is watched by what `start` makes of snat-trace's arguments.
    pub(super) fn watched_by(detail: &str, start: impl FnOnce(&[&str]) -> Result<Running>) -> Result<Self> {
        let place = Place::new()?;
        let ready = Path::new("/tmp/ready-owners");
        let _absent = fs::remove_file(ready);
        let arguments = ["watch", "--detail", detail, "--format", "json", "--ready-file", "/tmp/ready-owners"];
        let mut watch = start(&arguments)?;
        let child = watch.child()?;
        until("the ready file", || Ok(ready.exists() || child.try_wait()?.is_some()))?;
        ensure!(ready.exists(), "watch ended early: {:?}", watch.wait()?);
        let mut stdout = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        let printed = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&printed);
        std::thread::spawn(move || {
            let mut line = String::new();
            while stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
                to.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
                line.clear();
            }
        });
        let (senders, sent) = (Vec::new(), HashMap::new());
        Ok(Self {
            watch: Some(watch),
            printed,
            senders,
            place,
            full: detail == "full",
            sent,
            next_port: 20_000,
            workload: None,
            placed: 0,
            races: 0,
        })
    }

    /// A port that no other flow of this stage has.
    pub(super) fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// A destination outside that nobody else has sent to.
    pub(super) fn outside(&mut self) -> SocketAddr {
        SocketAddr::new(external(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 2), self.port())
    }

    /// What is expected of a sender at this level of detail.
    pub(super) fn by_detail(&self, full: Expected, minimal: Expected) -> Expected {
        if self.full { full } else { minimal }
    }

    /// Starts a sender and waits until it has sent.
    pub(super) fn send(&mut self, sender: &Sender<'_>) -> Result<()> {
        let truth = self.hold(sender)?;
        let Sender { pod, way, socket, from, to, seen_as, expected } = *sender;
        let what = format!("{way} {socket} from {pod} ({from} > {to})");
        let key = key(node_of(pod), protocol(socket, from.ip()), seen_as, to);
        self.sent.entry(key).or_default().push_back(Sent { what, expected, truth: Some(truth) });
        Ok(())
    }

    /// A sender whose flow must clash with one that is there.
    pub(super) fn lose(&mut self, sender: &Sender<'_>) -> Result<()> {
        self.send(sender)?;
        self.races += 1;
        Ok(())
    }

    /// A flow of a pod's toward `to` that is there before all others.
    pub(super) fn first(&mut self, socket: &str, to: SocketAddr) -> Result<()> {
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 98, 0, 11)), self.port());
        let expected = Expected::Right;
        self.send(&Sender { pod: "p1", way: "plain", socket, from, to, seen_as: from, expected })
    }

    /// Starts a sender of a flow that meets no other, and waits until it has sent. What it says of itself.
    pub(super) fn hold(&mut self, sender: &Sender<'_>) -> Result<Value> {
        let Sender { pod, way, socket, from, to, .. } = *sender;
        let mut command = match &self.workload {
            Some(Workload { cgroup, .. }) => {
                let mut shell = Command::new("sh");
                shell.args(["-ec", "echo $$ > $0/cgroup.procs; exec \"$@\""]).arg(cgroup).arg("ip");
                shell
            }
            None => Command::new("ip"),
        };
        let mut child = command
            .args(["netns", "exec", pod])
            .arg(std::env::current_exe()?)
            .args(["sender", way, socket, &from.to_string(), &to.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        self.senders.push(child);
        let mut truth: Value = serde_json::from_str(&line)
            .with_context(|| format!("{way} {socket} from {pod} ({from} > {to}) said {line:?}"))?;
        if let Some(Workload { cgroup, container, pod, seen }) = &self.workload {
            truth["cgroup"] = below_its_mount(cgroup)?.into();
            truth["container"].clone_from(container);
            truth["pod"].clone_from(pod);
            truth["seen"] = (*seen).into();
        }
        Ok(truth)
    }

    /// Notes a flow of UDP through the node `n` that no process sends.
    pub(super) fn note_unsent(&mut self, what: &str, from: SocketAddr, to: SocketAddr) {
        let sent = Sent { what: what.to_owned(), expected: Absent, truth: None };
        self.sent.entry(key("n", "udp", from, to)).or_default().push_back(sent);
    }

    /// Notes that whoever sent `from` sends from any port of the address `other` too.
    pub(super) fn note_also(&mut self, from: SocketAddr, to: SocketAddr, other: IpAddr) -> Result<()> {
        let sent = self.sent.get(&key("n", "tcp", from, to)).context("nobody sent that")?.clone();
        let right = sent.into_iter().map(|sent| Sent { expected: Expected::Right, ..sent }).collect();
        self.sent.insert(key("n", "tcp", SocketAddr::new(other, 0), to), right);
        Ok(())
    }

    /// Two senders toward one destination, the first of which wins. Each is alone in its pod with its port.
    pub(super) fn pair(&mut self, first: (&str, &str, Expected), second: (&str, &str, Expected)) -> Result<()> {
        let hosts: [IpAddr; 2] = if first.1.ends_with('6') {
            ["fd98::10".parse()?, "fd98::11".parse()?]
        } else {
            ["10.98.0.10".parse()?, "10.98.0.11".parse()?]
        };
        let icmp = matches!(first.1.trim_end_matches('6'), "ping" | "icmp");
        let port = self.port();
        // Where there are no ports, every pair has a destination of its own.
        let last = if icmp { u8::try_from(2 + self.races % 7)? } else { 2 };
        let to = SocketAddr::new(external(hosts[0], last), if icmp { 0 } else { port });
        for ((way, socket, expected), (pod, host)) in
            [first, second].into_iter().zip(["p0", "p1"].into_iter().zip(hosts))
        {
            let from = SocketAddr::new(host, self.port());
            let socket = socket.trim_end_matches('6');
            self.send(&Sender { pod, way, socket, from, to, seen_as: from, expected })?;
        }
        self.races += 1;
        Ok(())
    }

    /// Keeps the watch from reading on until [`Self::resume`].
    pub(super) fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(super) fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let child = self.watch.as_mut().context("it is watched")?.child()?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Waits until the last of all senders have ended by themselves.
    pub(super) fn bury(&mut self, last: usize) -> Result<()> {
        for mut child in self.senders.drain(self.senders.len().saturating_sub(last)..) {
            ensure!(child.wait()?.success(), "a sender");
        }
        Ok(())
    }

    /// Waits until every race was shown, which is when its senders were looked for.
    pub(super) fn settle(&self) -> Result<()> {
        let (mut counted, mut shown) = (0, 0);
        let waited = until("the races", || {
            counted = self.place.insert_failed("n")? + self.place.insert_failed("m")?;
            shown = self.printed(|printed| printed.matches("\"type\":\"race\"").count() as u64);
            Ok(counted >= self.races && shown >= counted)
        });
        waited.with_context(|| format!("{counted} inserts failed, not {}, and {shown} races", self.races))
    }

    /// Waits for the kernel's count of clashes, ends the watch and holds what it said against what the senders said.
    pub(super) fn finish(mut self) -> Result<Row> {
        self.settle()?;
        self.watch.take().context("it is watched")?.interrupt()?;
        until("the summary", || Ok(self.printed(|printed| printed.contains("\"type\":\"summary\""))))?;
        let lines = self.printed(|printed| Lines::parse_bytes(printed.as_bytes()))?;
        let summary = lines.only("summary")?;
        // A SYN that is sent again at the end may come too late to be shown.
        let closes = summary["closes"] == true || summary["lost"]["not-shown"].as_u64() > Some(0);
        ensure!(closes && lines.races() >= self.races, "{} races: {summary}", lines.races());
        let (mut named, mut both, mut placed, mut seen) = (0_u64, 0, 0_u64, HashSet::new());
        for race in lines.all("race") {
            let before = named;
            for side in ["loser", "winner"] {
                let (key, is_named) = self.judge(race, side).with_context(|| format!("{side} of {race}"))?;
                named += u64::from(is_named);
                placed += u64::from(!race[side]["behind"]["pod"].is_null());
                seen.insert(key);
            }
            both += u64::from(named == before + 2);
        }
        let by_process = |sent: &VecDeque<Sent>| sent.iter().any(|sent| sent.truth.is_some());
        let unseen: Vec<_> = self.sent.iter().filter(|(key, sent)| !seen.contains(*key) && by_process(sent)).collect();
        ensure!(unseen.is_empty(), "no race has {unseen:?}");
        ensure!(placed >= self.placed, "{placed} of {} without a sender are of a pod", self.placed);
        let placed = if placed > 0 { format!(", {placed} known by their pod") } else { String::new() };
        let accounts = summary["accounts"].as_array().context("no accounts")?;
        let numbers = Numbers {
            expected: Some(accounts.iter().filter_map(|account| account["counters"]["insert_failed"].as_u64()).sum()),
            seen: Some(lines.races()),
            pids_right: Some(both),
            cgroups_right: None,
            unexplained: Some(lines.unexplained()?),
            lost: Some(lines.lost_in_all()?),
        };
        Ok(Row { text: format!("{named} senders named and right{placed}"), numbers })
    }

    /// Looks at what was printed so far, whole lines.
    fn printed<T>(&self, look: impl FnOnce(&str) -> T) -> T {
        look(&self.printed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Under which key one side of a race was found, and whether it is named; wrong is an error.
    fn judge(&mut self, race: &Value, side: &str) -> Result<(String, bool)> {
        let flow = &race[side];
        let end = |address: &str, port: &str| -> Result<SocketAddr> {
            let address = flow["original"][address].as_str().context("an address")?.parse()?;
            Ok(SocketAddr::new(address, u16::try_from(flow["original"][port].as_u64().unwrap_or(0))?))
        };
        let (from, to) = (end("src", "sport")?, end("dst", "dport")?);
        let node = if race["netns"] == inum("m")? { "m" } else { "n" };
        let protocol = race["protocol"].as_str().context("a protocol")?;
        let keys = [from, SocketAddr::new(from.ip(), 0)].map(|from| key(node, protocol, from, to));
        let found =
            keys.iter().find(|key| self.sent.contains_key(*key)).with_context(|| format!("nobody sent {}", keys[0]))?;
        let sent = self.sent.get_mut(found).context("just found")?;
        let last = sent.len() == 1;
        let Sent { what, expected, truth } = sent.front().context("somebody sent it")?.clone();
        if !last && side == "loser" {
            sent.pop_front();
        }
        let owner = &flow["owner"];
        if owner.is_null() {
            ensure!(expected != Named, "{what} is not named");
            if node == "n" {
                judge_behind(&flow["behind"], from.ip(), truth.as_ref()).with_context(|| format!("behind {what}"))?;
            }
            return Ok((found.clone(), false));
        }
        ensure!(flow["behind"].is_null(), "{what} is named, and yet looked for");
        ensure!(expected != Absent, "{what} is named {owner}");
        let truth = truth.with_context(|| format!("{what} is no process, yet {owner}"))?;
        ensure!(owner["pid"] == truth["pid"] && owner["netns"] == truth["netns"], "{what}: {owner} is not {truth}");
        if !owner["tid"].is_null() && !truth["tid"].is_null() {
            ensure!(owner["tid"] == truth["tid"], "{what}: the thread of {owner} is not that of {truth}");
        }
        judge_program(owner, &truth["program"]).with_context(|| format!("{what}: {owner} is not {truth}"))?;
        if let Some(cgroup) = truth.get("cgroup") {
            ensure!(owner["cgroup"] == *cgroup, "{what}: {owner} is not in {cgroup}");
        }
        if truth.get("container").is_some() {
            let says = [&owner["container"], &owner["pod"]];
            let by_cgroup = json!({"runtime": truth["container"]["runtime"], "id": truth["container"]["id"]});
            let late = truth["seen"] == false && says == [&by_cgroup, &Value::Null];
            ensure!(late || says == [&truth["container"], &truth["pod"]], "{what}: {owner} is not in {truth}");
        }
        Ok((found.clone(), true))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.senders {
            // The end of its standard input ends a sender; one that does not heed it is killed.
            drop(child.stdin.take());
            let _ended = (child.kill(), child.wait());
        }
    }
}

/// Where answers go is known of the wires of the place. The bridge may not have seen the neighbour, or the look may have come
/// to its end; then less is said, and nothing else.
fn judge_behind(behind: &Value, source: IpAddr, truth: Option<&Value>) -> Result<()> {
    let inside = [("10.98.0.10", "v0", "p0"), ("10.98.0.11", "v1", "p1"), ("10.98.0.12", "v2", "i")];
    let inside = inside.into_iter().find(|(address, ..)| source.to_string() == *address);
    let (interface, port, netns) = match inside {
        Some((_, port, netns)) => ("br0", Some(port), Some(netns)),
        None => (if source.to_string().starts_with("10.98.1.") { "x0" } else { "br0" }, None, None),
    };
    if behind.is_null() {
        return Ok(());
    }
    ensure!(behind["interface"] == interface, "{behind} is not {interface}");
    if let Some((port, netns)) = port.zip(netns) {
        ensure!(behind["port"].is_null() || behind["port"] == port, "{behind} is not {port}");
        ensure!(behind["netns"].is_null() || behind["netns"] == inum(netns)?, "{behind} is not {netns}");
    }
    for fact in ["container", "pod"] {
        let right = truth.is_some_and(|truth| behind[fact] == truth[fact]);
        ensure!(behind[fact].is_null() || right, "{behind} is not {truth:?}");
    }
    Ok(())
}

/// What is said of the program must be what the sender said; of a look-up after the clash, too. The sender counts its start in
/// ticks of a hundredth of a second, by clocks read one after the other.
fn judge_program(owner: &Value, truth: &Value) -> Result<()> {
    const TICK: f64 = 0.01;

    for fact in ["uid", "own_pid", "exe", "cmdline"] {
        ensure!(owner[fact] == truth[fact], "{fact}");
    }
    let time =
        |value: &Value| -> Result<jiff::Timestamp> { Ok(value["started"].as_str().context("a start")?.parse()?) };
    let later = time(owner)?.duration_since(time(truth)?).as_secs_f64();
    ensure!((-TICK..2.0 * TICK).contains(&later), "started {later} s later");
    Ok(())
}

/// Where a hierarchy of version 1 is mounted, for a scenario of it.
pub(super) const LEGACY: &str = "/tmp/snat-trace-legacy";

/// The path of a cgroup in its hierarchy.
fn below_its_mount(directory: &Path) -> Result<String> {
    let below = ["/sys/fs/cgroup", LEGACY].into_iter().find_map(|mount| directory.strip_prefix(mount).ok());
    Ok(format!("/{}", below.context("no cgroup")?.display()))
}

/// The node through which a pod sends.
fn node_of(pod: &str) -> &'static str {
    if pod == "t0" { "m" } else { "n" }
}

/// Inode number of a namespace of the place.
fn inum(netns: &str) -> Result<u64> {
    Ok(fs::metadata(Path::new("/run/netns").join(netns))?.ino())
}

/// Looks again and again until it holds: what is waited for leaves no event to wait for.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > PATIENCE {
            bail!("waited in vain: {what}");
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn key(node: &str, protocol: &str, from: SocketAddr, to: SocketAddr) -> String {
    format!("{node} {protocol} {from} > {to}")
}

/// What a race calls what a kind of socket sends.
fn protocol(socket: &str, address: IpAddr) -> &'static str {
    match socket {
        "tcp" | "tcp-fast-open" | "raw-tcp" | "mptcp" => "tcp",
        "ping" | "icmp" if address.is_ipv4() => "icmp",
        "ping" | "icmp" => "icmpv6",
        _ => "udp",
    }
}
