//! Connections that do not come into the table and that are no race: never told as one, and with `--failures` one by one,
//! with the reason. Truth is what the sender was refused, and the kernel's counters.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::io::Errno;
use serde_json::Value;

use crate::node::{Counters, Node, command};
use crate::output::{Lines, Running};
use crate::places::watching;
use crate::scenario::{Numbers, Row, Scenario, Skip, brief, whole};

/// On every kernel: which of them there are differs.
pub const SCENARIOS: &[Scenario] = &[
    brief("failures, table full", table_full),
    whole("failures, table full, untraced", table_full_untraced),
    brief("failures, early drop", early_drop),
    brief("failures, chain too long", chain_too_long),
    brief("failures, ctnetlink", ctnetlink),
    brief("failures, entry killed", killed),
];

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// Any rule that looks at connections has them tracked.
const TRACKING: &str = "table ip failures {
    chain out {
        type filter hook output priority 0;
        ct state new counter
    }
}
";

/// As many as a page of buckets holds, the least there can be.
pub(crate) const SMALLEST_TABLE: u64 = 512;

/// A node that is watched.
struct Watched {
    node: Node,
    before: Counters,
    watch: Running,
    socket: UdpSocket,
    /// Next port to send to: each makes a flow.
    port: u16,
}

impl Watched {
    fn new(rules: &str, arguments: &[&str]) -> Result<Self> {
        let node = Node::new("failures", &[&format!("{SENDER}/32"), &format!("{RECEIVER}/32")], rules)?;
        let socket = node.inside(|| Ok(UdpSocket::bind((SENDER, 0))?))?;
        let before = node.counters()?;
        let watch = watching(arguments, Path::new("/tmp/ready-failures"))?;
        Ok(Self { node, before, watch, socket, port: 1 })
    }

    /// Sends a datagram of each of `flows` new flows; the ports of those that were refused.
    fn send(&mut self, flows: u16) -> Result<BTreeSet<u64>> {
        let mut refused = BTreeSet::new();
        for _ in 0..flows {
            match self.socket.send_to(b"x", (RECEIVER, self.port)) {
                Ok(_) => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                    refused.insert(self.port.into());
                }
                Err(error) => return Err(error.into()),
            }
            self.port += 1;
        }
        Ok(refused)
    }

    fn counted(&self, column: &str) -> Result<u64> {
        Ok(self.node.counters()?.get(column) - self.before.get(column))
    }

    /// Has an entry made through ctnetlink; the error if it is refused.
    fn insert(&self, arguments: &[&str]) -> Result<Option<String>> {
        let common = ["-I", "-p", "udp", "-t", "600"];
        let result = self.node.inside(|| Ok(command("conntrack", &[&common, arguments].concat(), "")))?;
        Ok(result.err().map(|error| format!("{error:#}")))
    }

    /// Ends the watching: no races, and each failure in the node of the reason and the flows expected.
    fn end(self, reason: &str, refused: &BTreeSet<u64>) -> Result<(Lines, Row)> {
        let netns = self.node.inum()?;
        let sender = self.socket.local_addr()?.port();
        let lines = Lines::parse(&self.watch.interrupt()?)?;
        let summary = lines.only("summary")?;
        ensure!(lines.races() == 0, "{} races", lines.races());
        let sent: Vec<_> = lines.all("insert-failure").filter(|failure| !failure["flow"]["owner"].is_null()).collect();
        let mut ports = BTreeSet::new();
        for failure in &sent {
            let (original, owner) = (&failure["flow"]["original"], &failure["flow"]["owner"]);
            ensure!(failure["reason"] == reason && failure["netns"] == netns, "{failure}");
            ensure!(failure["protocol"] == "udp" && original["sport"] == sender, "{failure}");
            ensure!(owner["pid"] == std::process::id() && owner["source"] == "socket", "{failure}");
            ensure!(failure["flow"]["inserted"].is_null(), "{failure}");
            ports.extend(original["dport"].as_u64());
        }
        let differing: Vec<_> = ports.symmetric_difference(refused).take(10).collect();
        ensure!(
            sent.len() == refused.len() && differing.is_empty(),
            "{} refused, {} told, of one only {differing:?}; {summary}",
            refused.len(),
            sent.len()
        );
        let unexplained = unexplained(summary)?;
        let numbers = Numbers {
            expected: Some(refused.len() as u64),
            seen: Some(sent.len() as u64),
            pids_right: Some(sent.len() as u64),
            unexplained: Some(unexplained),
            lost: Some(lines.lost_in_all()?),
            ..Numbers::default()
        };
        let row = Row { text: String::new(), numbers };
        Ok((lines, row))
    }
}

/// Over all namespaces and counters.
fn unexplained(summary: &Value) -> Result<u64> {
    let accounts = summary["accounts"].as_array().context("no accounts")?;
    let figures = accounts.iter().filter_map(|account| account["unexplained"].as_object()).flat_map(|all| all.values());
    Ok(figures.filter_map(Value::as_i64).map(i64::unsigned_abs).sum())
}

/// The account closes, and nothing is amiss.
fn closes(lines: &Lines) -> Result<()> {
    let summary = lines.only("summary")?;
    ensure!(summary["closes"] == true && lines.lost_in_all()? == 0, "{summary}");
    ensure!(summary["incomplete"]["return-missed"].is_null(), "{summary}");
    Ok(())
}

/// A setting of the whole machine, put back when dropped.
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    fn set(path: &str, value: u64) -> Result<Self> {
        let path = PathBuf::from(path);
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())?;
        Ok(Self { path, before })
    }

    pub(crate) fn most_entries(entries: u64) -> Result<Self> {
        Self::set("/proc/sys/net/netfilter/nf_conntrack_max", entries)
    }

    fn buckets(buckets: u64) -> Result<Self> {
        Self::set("/sys/module/nf_conntrack/parameters/hashsize", buckets)
    }

    /// Room for many entries, in so few buckets that their chains get long.
    fn long_chains() -> Result<(Self, Self)> {
        Ok((Self::most_entries(100_000)?, Self::buckets(SMALLEST_TABLE)?))
    }

    /// The same where the kernel minds; a skip where it does not.
    pub(crate) fn where_chains_are_limited() -> Result<(Self, Self)> {
        if !limits_chains()? {
            return Err(Skip::because("this kernel admits hash chains of any length"));
        }
        Self::long_chains()
    }
}

/// Whether this kernel counts entries whose hash chain is too long, which it refuses then.
fn limits_chains() -> Result<bool> {
    Ok(fs::read_to_string("/proc/net/stat/nf_conntrack")?.contains("chainlength"))
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            println!("{} stays as it is: {error}", self.path.display());
        }
    }
}

/// Room for so many entries, all taken by ones that cannot be evicted.
const ROOM: u64 = 16;

/// Takes all of it, and has a few flows sent and an entry inserted in vain; the ports refused.
fn fill_up(watched: &mut Watched) -> Result<BTreeSet<u64>> {
    for port in 0..ROOM {
        let port = (1000 + port).to_string();
        let flow = ["-s", "10.78.0.8", "-d", "10.78.0.9", "--sport", &port, "--dport", "7"];
        let refused = watched.insert(&[&flow[..], &["-u", "ASSURED,SEEN_REPLY"]].concat())?;
        ensure!(refused.is_none(), "not inserted: {refused:?}");
    }
    let refused = watched.send(50)?;
    ensure!(refused.len() == 50, "of 50 sent into a full table {} were refused", refused.len());
    ensure!(watched.counted("drop")? == 50 && watched.counted("insert_failed")? == 0, "{:?}", watched.node.counters()?);
    let flow = ["-s", "10.78.0.8", "-d", "10.78.0.9", "--sport", "5", "--dport", "7"];
    ensure!(watched.insert(&flow)?.is_some(), "inserted into a full table");
    ensure!(watched.counted("drop")? == 50, "ctnetlink counted a drop");
    Ok(refused)
}

fn table_full() -> Result<Row> {
    let _room = Setting::most_entries(ROOM)?;
    let mut watched = Watched::new(TRACKING, &["--failures"])?;
    let refused = fill_up(&mut watched)?;
    let (lines, row) = watched.end("table-full", &refused)?;
    closes(&lines)?;
    let nobody: Vec<_> = lines.all("insert-failure").filter(|failure| failure["flow"]["owner"].is_null()).collect();
    let [through_ctnetlink] = nobody.as_slice() else { return Err(anyhow!("without an owner: {nobody:?}")) };
    ensure!(through_ctnetlink["reason"] == "table-full", "{through_ctnetlink}");
    ensure!(through_ctnetlink["flow"]["original"]["sport"] == 5, "{through_ctnetlink}");
    ensure!(lines.all("insert-failure").all(|failure| failure["errno"] == 12), "not ENOMEM");
    ensure!(lines.only("summary")?["failures"]["table-full"] == 51, "{lines:?}");
    Ok(row)
}

/// Without `--failures` the counters are all there is: no race, and the account says what it lacks.
fn table_full_untraced() -> Result<Row> {
    let _room = Setting::most_entries(ROOM)?;
    let mut watched = Watched::new(TRACKING, &[])?;
    let refused = fill_up(&mut watched)?;
    let (lines, row) = watched.end("none", &BTreeSet::new())?;
    let summary = lines.only("summary")?;
    ensure!(summary["closes"] == false && summary["failures"].is_null(), "{summary}");
    let unexplained = &summary["accounts"][0]["unexplained"];
    ensure!(unexplained["drop"] == refused.len() && unexplained["insert_failed"] == 0, "{summary}");
    Ok(row)
}

/// Entries that can be evicted are, and nothing fails.
fn early_drop() -> Result<Row> {
    let (_room, _buckets) = (Setting::most_entries(2 * SMALLEST_TABLE)?, Setting::buckets(SMALLEST_TABLE)?);
    let mut watched = Watched::new(TRACKING, &["--failures"])?;
    let refused = watched.send(3000)?;
    let (evicted, dropped) = (watched.counted("early_drop")?, watched.counted("drop")?);
    ensure!(evicted > 0 && refused.is_empty() && dropped == 0, "{evicted} evicted, {dropped} dropped");
    let (lines, row) = watched.end("none", &refused)?;
    closes(&lines)?;
    ensure!(lines.only("summary")?["accounts"][0]["explained"]["early_drop"] == evicted, "{lines:?}");
    Ok(Row { text: format!("{evicted} evicted"), ..row })
}

/// Chains of 50 entries and more, of which kernels since 5.15 refuse some.
fn chain_too_long() -> Result<Row> {
    let (_room, _buckets) = Setting::long_chains()?;
    let mut watched = Watched::new(TRACKING, &["--failures"])?;
    let mut refused = BTreeSet::new();
    while refused.len() < 50 && watched.port < 17_000 {
        refused.extend(watched.send(200)?);
    }
    ensure!(refused.is_empty() != limits_chains()?, "{} refused", refused.len());
    // Through ctnetlink: another counter moves.
    let mut through_ctnetlink = 0;
    for port in 1..=40_u16 {
        let port = port.to_string();
        let flow = ["-s", "10.78.0.8", "-d", "10.78.0.9", "--sport", &port, "--dport", "7"];
        through_ctnetlink += u64::from(watched.insert(&flow)?.is_some());
    }
    ensure!(watched.counted("insert_failed")? == refused.len() as u64 && watched.counted("drop")? == 0, "counters");
    ensure!(watched.counted("chainlength")? == refused.len() as u64 + through_ctnetlink, "chains");
    let (lines, row) = watched.end("chain-too-long", &refused)?;
    closes(&lines)?;
    let of_ctnetlink = lines.all("insert-failure").filter(|failure| failure["reason"] == "ctnetlink");
    let of_ctnetlink: Vec<_> = of_ctnetlink.collect();
    ensure!(of_ctnetlink.len() as u64 == through_ctnetlink, "{through_ctnetlink} refused, {}", of_ctnetlink.len());
    ensure!(of_ctnetlink.iter().all(|failure| failure["errno"] == 28), "not ENOSPC: {of_ctnetlink:?}");
    Ok(Row { text: format!("and {through_ctnetlink} through ctnetlink"), ..row })
}

/// An entry with an original tuple of its own, and the answers of another's.
fn ctnetlink() -> Result<Row> {
    let watched = Watched::new(TRACKING, &["--failures"])?;
    let replies = ["-r", "10.78.0.9", "-q", "10.78.0.7", "--reply-port-src", "7", "--reply-port-dst", "2000"];
    let flow = |source| [&["-s", source, "-d", "10.78.0.9", "--sport", "1000", "--dport", "7"][..], &replies].concat();
    ensure!(watched.insert(&flow("10.78.0.8"))?.is_none(), "the first was refused");
    // Found before anything is inserted: neither counted nor a failed insert.
    ensure!(watched.insert(&flow("10.78.0.8"))?.is_some(), "the same was inserted twice");
    ensure!(watched.insert(&flow("10.78.0.6"))?.is_some(), "answers of another's were inserted");
    ensure!(watched.counted("insert")? == 1 && watched.counted("insert_failed")? == 0, "{:?}", watched.node.counters());
    let netns = watched.node.inum()?;
    let (lines, row) = watched.end("none", &BTreeSet::new())?;
    closes(&lines)?;
    let failure = lines.only("insert-failure")?;
    ensure!(failure["reason"] == "ctnetlink" && failure["errno"] == 17 && failure["netns"] == netns, "{failure}");
    ensure!(failure["flow"]["original"]["src"] == "10.78.0.6", "{failure}");
    Ok(Row { numbers: Numbers { expected: Some(1), seen: Some(1), ..row.numbers }, ..row })
}

/// A helper that is unloaded has the entries that are on their way killed, or their extensions outdated, as kernels were
/// from 5.19 until that was taken back. Their way is made long by many rules between choice and check.
fn killed() -> Result<Row> {
    const HELPER: &str = "nf_conntrack_ftp";
    const ENOUGH: usize = 3;

    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let has = |name: &str| symbols.split_ascii_whitespace().any(|word| word == name);
    let reason = match (has("nf_ct_unconfirmed_destroy"), has("nf_conntrack_ext_genid")) {
        (true, _) => "dying",
        (false, true) => "stale-extension",
        (false, false) => return Err(Skip::because("this kernel leaves alone what is not in the table")),
    };
    let many = "udp dport 0 drop\n".repeat(2000);
    let rules =
        format!("{TRACKING}table ip long {{\nchain way {{\ntype filter hook postrouting priority 300;\n{many}}}\n}}\n");
    let mut watched = Watched::new(&rules, &["--failures"])?;
    // So that each entry has an extension.
    watched.node.inside(|| Ok(fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1")?))?;
    let over = AtomicBool::new(false);
    let refused = thread::scope(|scope| {
        let unloading = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                command("rmmod", &[HELPER], "")?;
                command("insmod", &[&format!("/mods/{HELPER}.ko")], "")?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let mut refused = BTreeSet::new();
        let sent = (0..300).try_for_each(|_| {
            if refused.len() < ENOUGH && !unloading.is_finished() {
                refused.extend(watched.send(100)?);
            }
            Ok::<_, anyhow::Error>(())
        });
        over.store(true, Ordering::Release);
        unloading.join().map_err(|_panic| anyhow!("a thread of the scenario panicked"))??;
        sent.map(|()| refused)
    })?;
    ensure!(refused.len() >= ENOUGH, "{} of {} refused", refused.len(), watched.port);
    let counted = watched.counted("insert_failed")? + watched.counted("drop")?;
    ensure!(counted == refused.len() as u64, "{} refused, {counted} counted", refused.len());
    let (lines, row) = watched.end(reason, &refused)?;
    closes(&lines)?;
    Ok(Row { text: reason.to_owned(), ..row })
}
