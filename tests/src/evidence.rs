//! Evidence of real races: what was recorded is what was shown, whatever becomes of the recording, its disk and its file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use snat_trace::evidence::Item;

use crate::failures::Setting;
use crate::node::{Node, command};
use crate::output::{Lines, Running, SNAT_TRACE};
use crate::places::until;
use crate::scenario::{Numbers, Row, Scenario, once, whole};

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[
    whole("evidence: replay, json", || replay(&["--format", "json"], &ALL)),
    whole("evidence: replay, text", || replay(&["--verbose"], &SOME)),
    whole("evidence: replay, minimal", || replay(&["--format", "json", "--detail", "minimal"], &SOME)),
    whole("evidence: replay, early drop", early_drop),
    whole("evidence: replay, chain too long", chain_too_long),
    once("evidence: replay, storm", storm),
    once("evidence: nothing happens", idle),
    whole("evidence: report", report),
    once("evidence: killed and added to", killed),
    once("evidence: full disk", full_disk),
    once("evidence: disk full for a while", full_for_a_while),
    once("evidence: rotation", rotation),
];

/// Traffic of every kind that a lab can make on any kernel, as its arguments.
const TRAFFIC: [&str; 23] = [
    "--rounds 20 --pods 3",
    "--rounds 10 --ipv6",
    "--rounds 30 --natural",
    "--rounds 5 --scenario snat-tcp",
    "--rounds 5 --scenario snat-tcp --rules iptables-legacy --nat snat",
    "--rounds 10 --scenario snat-icmp",
    "--rounds 5 --scenario snat-icmp --ipv6",
    "--rounds 10 --scenario address-reuse",
    "--rounds 10 --scenario fixed-port",
    "--rounds 20 --scenario exhaustion",
    "--rounds 20 --scenario duplicate-flow",
    "--rounds 40 --scenario duplicate-flow-dnat",
    "--rounds 20 --scenario crossed-flow",
    "--rounds 5 --scenario ctnetlink --failures",
    "--rounds 10 --scenario table-full --failures",
    "--rounds 10 --zones original",
    "--rounds 10 --double-nat first",
    "--rounds 10 --double-nat second",
    "--rounds 10 --senders pid-namespace",
    "--rounds 10 --senders outside",
    "--rounds 5 --rules iptables-nft",
    "--rounds 5 --links rps",
    "--rounds 14 --scenario namespaces",
];

/// What not every kernel has, with what the lab says then.
const OF_SOME: [(&str, &str); 2] =
    [("--rounds 5 --scenario snat-sctp", "SCTP"), ("--rounds 5 --links gro", "merge nothing, whatever they are told")];

/// Rounds of a lab of which the number of races is known: more than fit the disk below, and several small files, however well
/// they are compressed.
const ROUNDS: u64 = 400;

/// `record`, attached. What it prints goes into a file.
pub(crate) fn recording(evidence: &Path, arguments: &[&str]) -> Result<(Running, PathBuf)> {
    let (ready, shown) = (Path::new("/tmp/ready-evidence"), PathBuf::from("/tmp/shown"));
    let _absent = fs::remove_file(ready);
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is text");
    let (file, ready_file) = (text(evidence)?, text(ready)?);
    let first = ["record", "--output", &file, "--ready-file", &ready_file];
    let mut record = Running::into_file(&[&first, arguments].concat(), fs::File::create(&shown)?)?;
    let child = record.child()?;
    until("the ready file", || ready.exists() || child.try_wait().is_ok_and(|status| status.is_some()))?;
    if !ready.exists() {
        let output = record.wait()?;
        anyhow::bail!("record ended early: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((record, shown))
}

pub(crate) fn replayed(evidence: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(SNAT_TRACE).arg("replay").arg(evidence).args(arguments).output()?)
}

/// Where [`place`] has it.
const FILE: &str = "/tmp/evidence/file";
/// Words that `replay` takes as `record` does.
const SHOWS: [&str; 3] = ["--format", "json", "--verbose"];

/// A place for evidence without that of earlier scenarios.
pub(crate) fn place() -> Result<PathBuf> {
    let file = PathBuf::from(FILE);
    let place = file.parent().context("a file is in a folder")?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::create_dir_all(place)?;
    Ok(file)
}

/// How much of the traffic is made: every so manieth kind, and the races that are forced in it at least, one for each loser of a
/// forced round, and for each packet too many for the rules of few ports. How many come by themselves nobody knows.
struct Amount {
    every: usize,
    forced: u64,
}

const ALL: Amount = Amount { every: 1, forced: 202 };
/// Each kind takes seconds, and another form of the same events shows what is said of any.
const SOME: Amount = Amount { every: 4, forced: 70 };

/// Races of many kinds, recorded: byte for byte what was shown.
fn replay(arguments: &[&str], amount: &Amount) -> Result<Row> {
    let mut without = Vec::new();
    let lines = replay_of(&[arguments, &["--failures"]].concat(), || {
        TRAFFIC.iter().step_by(amount.every).try_for_each(|traffic| lab(traffic).map(drop))?;
        for (traffic, refusal) in OF_SOME.into_iter().step_by(amount.every) {
            match lab(traffic) {
                Err(error) if error.to_string().contains(refusal) => without.push(traffic),
                made => drop(made?),
            }
        }
        Ok(())
    })?;
    let (races, bytes) = (lines.races(), fs::metadata(FILE)?.len());
    ensure!(races >= amount.forced, "{races} races");
    let without = if without.is_empty() { String::new() } else { format!("; not here: {}", without.join(", ")) };
    Ok(Row::said(format!("{races} races in {bytes} bytes{without}")))
}

/// Traffic of a lab, which may find fault with its own watch: here it is only to be there.
fn lab(traffic: &str) -> Result<Lines> {
    Lines::of_lab(&["lab"].into_iter().chain(traffic.split(' ')).collect::<Vec<_>>())
}

/// Records while something goes on; what was recorded, which byte for byte is what was shown.
fn replay_of(arguments: &[&str], traffic: impl FnOnce() -> Result<()>) -> Result<Lines> {
    let file = place()?;
    let (record, shown) = recording(&file, arguments)?;
    traffic()?;
    record.interrupt()?;
    let shown = fs::read(shown)?;
    let format: Vec<&str> = arguments.iter().copied().filter(|word| SHOWS.contains(word)).collect();
    let again = replayed(&file, &format)?;
    ensure!(again.status.success() && again.stderr.is_empty(), "replay: {}", String::from_utf8_lossy(&again.stderr));
    ensure!(again.stdout == shown, "what is replayed is not what was shown:\n{}", differing(&shown, &again.stdout));
    Lines::parse(&replayed(&file, &["--format", "json"])?)
}

/// A table in which others make room.
fn early_drop() -> Result<Row> {
    let buckets = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets")?;
    let _room = Setting::most_entries(buckets.trim().parse()?)?;
    let mut evicted = None;
    // Nothing races there, and it is gone before the end: who records knows of no namespace to count in.
    let lines = replay_of(&["--format", "json"], || {
        evicted = lab("--rounds 5 --scenario early-drop")?.only("lab")?["evicted"].as_u64();
        Ok(())
    })?;
    ensure!(evicted > Some(0) && lines.races() == 0, "{evicted:?} evicted: {}", lines.only("summary")?);
    Ok(Row::said(format!("{} evicted", evicted.unwrap_or_default())))
}

/// A table with too few buckets, where the kernel minds.
fn chain_too_long() -> Result<Row> {
    let (_room, _buckets) = Setting::where_chains_are_limited()?;
    let lines = replay_of(&["--format", "json", "--failures"], || {
        lab("--rounds 60 --scenario chain-too-long --failures").map(drop)
    })?;
    let refused = lines.all("insert-failure").filter(|failure| failure["reason"] == "chain-too-long").count();
    ensure!(refused > 0, "{}", lines.only("summary")?);
    Ok(Row::said(format!("{refused} refused")))
}

/// More than there is room for: what was lost is told again too.
fn storm() -> Result<Row> {
    let arguments = ["--format", "json", "--ring-bytes", "4096"];
    let lines = replay_of(&arguments, || lab("--rounds 200 --pods 8 --scenario storm").map(drop))?;
    let (races, lost) = (lines.races(), lines.lost_in_all()?);
    ensure!(races > 0 && lost > 0, "{races} races, {lost} lost");
    Ok(Row::said(format!("{races} races, {lost} lost")))
}

/// Where nothing happens, a sample of each namespace is there for each second, and the machine as it was at both ends.
fn idle() -> Result<Row> {
    const SECONDS: usize = 5;

    let file = place()?;
    let node = Node::new("evidence-idle", &[], "")?;
    let duration = format!("{SECONDS}s");
    let (record, _) = recording(&file, &["--format", "json", "--duration", &duration])?;
    record.wait()?;
    let (mut samples, mut machines) = (0, 0);
    for item in snat_trace::evidence::read(fs::File::open(&file)?) {
        match item? {
            Item::Sample(sample) if u64::from(sample.netns.0) == node.inum()? => {
                ensure!(sample.counters.insert_failed == Some(0) && sample.left_out == 0, "{sample:?}");
                samples += 1;
            }
            Item::Node(node) => {
                machines += 1;
                ensure!(node.conntrack.iter().any(|cpu| cpu.counters.contains_key("insert_failed")), "{node:?}");
            }
            _ => {}
        }
    }
    ensure!((SECONDS - 1..=SECONDS + 1).contains(&samples), "{samples} samples in {SECONDS} s");
    ensure!(machines == 2, "the machine is there {machines} times");
    Ok(Row::said(format!("{samples} samples in {SECONDS} s")))
}

/// What a lab's races come to while it still runs: all of them, by the one rule it has, and as many as the counters say.
fn report() -> Result<Row> {
    let file = place()?;
    let seen_by_lab = Path::new("/tmp/shown-by-lab");
    let words = ["lab", "--pods", "3", "--rounds", "10000", "--format", "json"];
    let mut lab = Running::into_file(&words, fs::File::create(seen_by_lab)?)?;
    let races = || Ok::<_, anyhow::Error>(Lines::parse_bytes(&fs::read(seen_by_lab)?)?.races());
    until("the lab's first race", || races().is_ok_and(|races| races > 0))?;
    // One that ends by itself shows everything it saw, however long that takes.
    let (record, shown) = recording(&file, &["--format", "json", "--duration", "5s"])?;
    record.wait()?;
    lab.signal(Signal::INT)?;
    lab.wait()?;
    let shown = Lines::parse_bytes(&fs::read(&shown)?)?;
    ensure!(shown.races() > 10, "{} races", shown.races());
    let (races, counted) = (shown.races(), &shown.only("summary")?["accounts"][0]["counters"]["insert_failed"]);

    let made = |arguments: &[&str]| {
        let made = Command::new(SNAT_TRACE).arg("report").args(arguments).arg(&file).output()?;
        ensure!(made.status.success() && made.stderr.is_empty(), "report: {}", String::from_utf8_lossy(&made.stderr));
        Ok(String::from_utf8(made.stdout)?)
    };
    let json = Lines::parse_bytes(made(&["--format", "json"])?.as_bytes())?;
    let report = json.only("report")?;
    ensure!(report["classes"]["snat-port-collision"]["dropped"] == races, "{} of {races}", report["classes"]);
    // Races in the very moments of the two readings are in no account.
    let outside = shown.only("summary")?["outside"].as_u64().context("no number outside")?;
    ensure!(
        counted.as_u64().is_some_and(|counted| (races - outside..=races).contains(&counted)),
        "counted {counted} of {races}"
    );
    let verdict = report["verdict"].to_string();
    ensure!(verdict.contains("all are explained"), "{verdict}");
    ensure!(
        verdict.contains(&format!("{races} of {races} port collisions came by one masquerade rule without")),
        "{verdict}"
    );
    let [rule] = report["rules"].as_array().context("no rules")?.as_slice() else {
        bail!("rules: {}", report["rules"])
    };
    ensure!(rule["text"] == "oifname \"x0\" masquerade", "{rule}");
    let change = &report["changes"][0];
    ensure!(change["change"].to_string().contains("add fully-random to the rule"), "{change}");
    for format in ["json", "text", "markdown", "html"] {
        for (arguments, named) in [(vec!["--format", format], true), (vec!["--format", format, "--redact"], false)] {
            let made = made(&arguments)?;
            // A whole address: of redacted ones one in 256 begins as the lab's by right.
            for word in ["10.99.1.2", "snat-trace-lab", "pod-1"] {
                ensure!(made.contains(word) == named, "{word} {arguments:?}");
            }
        }
    }
    Ok(Row::said(format!("{races} races")))
}

/// The first line that differs.
fn differing(shown: &[u8], again: &[u8]) -> String {
    let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>();
    let (shown, again) = (lines(shown), lines(again));
    let at = shown.iter().zip(&again).take_while(|(shown, again)| shown == again).count();
    format!("line {at}:\n{:?}\n{:?}", shown.get(at), again.get(at))
}

/// Killed, a recording has all that it had shown, and another can be added.
fn killed() -> Result<Row> {
    let file = place()?;
    let (mut record, shown) = recording(&file, &["--format", "json"])?;
    Lines::of(&["lab", "--rounds", "20"])?;
    let races = |path: &Path| Ok::<_, anyhow::Error>(Lines::parse_bytes(&fs::read(path)?)?.races());
    until("the races", || races(&shown).is_ok_and(|races| races == 20))?;
    // The evidence of the last one is written when nothing more is at hand, which is at once.
    until("the evidence", || {
        replayed(&file, &["--format", "json"])
            .and_then(|output| Ok(Lines::parse(&output)?.races()))
            .is_ok_and(|n| n == 20)
    })?;
    record.signal(Signal::KILL)?;
    record.wait()?;
    let again = replayed(&file, &["--format", "json"])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(again.status.success() && said.contains("without a summary"), "said: {said}");
    ensure!(again.stdout == fs::read(&shown)?, "what is replayed is not what was shown");

    let refused = Command::new(SNAT_TRACE).args(["record", "--output"]).arg(&file).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && said.contains("--append"), "{}: {said}", refused.status);
    let (record, _) = recording(&file, &["--format", "json", "--append"])?;
    Lines::of(&["lab", "--rounds", "10"])?;
    record.interrupt()?;
    let lines = Lines::parse(&replayed(&file, &["--format", "json"])?)?;
    let sessions = lines.all("session").count();
    ensure!(sessions == 2 && lines.races() == 30, "{sessions} sessions, {} races", lines.races());
    Ok(Row::said("20 races before, 10 after"))
}

/// A disk of a few pages; gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new() -> Result<Self> {
        let path = place()?.with_file_name("disk");
        fs::create_dir(&path)?;
        let disk = Self(path);
        command("mount", &["-t", "tmpfs", "-o", "size=8k", "tmpfs", disk.text()?], "")?;
        Ok(disk)
    }

    fn text(&self) -> Result<&str> {
        self.0.to_str().context("a path is text")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever cannot unmount it has failed already.
        let _left = Command::new("umount").arg(&self.0).status();
    }
}

/// What cannot be written is shown all the same, and its number told.
fn full_disk() -> Result<Row> {
    let disk = Disk::new()?;
    let file = disk.0.join("file");
    let (mut record, shown) = recording(&file, &["--format", "json"])?;
    Lines::of(&["lab", "--rounds", &ROUNDS.to_string()])?;
    record.signal(Signal::INT)?;
    let ended = record.wait()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(1), "{}: {said}", ended.status);
    ensure!(said.matches("wait in memory").count() == 1 && said.contains("is incomplete"), "said: {said}");
    let shown = fs::read(shown)?;
    let lines = Lines::parse_bytes(&shown)?;
    lines.only("summary")?;
    ensure!(lines.races() == ROUNDS, "{} races shown", lines.races());
    let again = replayed(&file, &["--format", "json"])?;
    ensure!(shown.starts_with(&again.stdout), "what is replayed was not shown");
    let kept = Lines::parse(&again)?.races();
    ensure!(kept > 0 && kept < ROUNDS, "{kept} races on the disk");
    Ok(Row::said(format!("{kept} of {ROUNDS} races on the disk")))
}

/// With room again in time nothing is missing.
fn full_for_a_while() -> Result<Row> {
    let disk = Disk::new()?;
    let file = disk.0.join("file");
    let (record, shown) = recording(&file, &["--format", "json"])?;
    Lines::of(&["lab", "--rounds", &ROUNDS.to_string()])?;
    until("the races", || {
        Lines::parse_bytes(&fs::read(&shown).unwrap_or_default()).is_ok_and(|l| l.races() == ROUNDS)
    })?;
    command("mount", &["-o", "remount,size=1m", disk.text()?], "")?;
    let ended = record.interrupt()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(said.contains("wait in memory") && said.contains("nothing of it was lost"), "said: {said}");
    let again = replayed(&file, &["--format", "json"])?;
    ensure!(again.stdout == fs::read(shown)?, "what is replayed is not what was shown");
    let numbers = Numbers { expected: Some(ROUNDS), seen: Some(Lines::parse(&again)?.races()), ..Numbers::default() };
    Ok(Row { numbers, ..Row::default() })
}

/// Several files instead of one, bounded in number, each with a head of its own; together they have the end of what was shown.
fn rotation() -> Result<Row> {
    const KEPT: &str = "2";

    let file = place()?;
    let (record, shown) = recording(&file, &["--format", "json", "--rotate-size", "4096", "--keep", KEPT])?;
    Lines::of(&["lab", "--rounds", &ROUNDS.to_string()])?;
    record.interrupt()?;
    let mut names: Vec<_> =
        fs::read_dir(file.with_file_name(""))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    names.sort();
    ensure!(names == ["file", "file.1", "file.2"], "{names:?}");
    let shown = Lines::parse_bytes(&fs::read(shown)?)?;
    let mut before: Vec<_> = shown.all("race").collect();
    for name in &names {
        let lines = Lines::parse(&replayed(&file.with_file_name(name), &["--format", "json"])?)?;
        ensure!(lines.only("session")? == shown.only("session")?, "{name:?} has another head");
        let races: Vec<_> = lines.all("race").collect();
        ensure!(before.ends_with(&races), "{name:?} does not have what came before the next");
        before.truncate(before.len() - races.len());
    }
    let kept = ROUNDS - before.len() as u64;
    ensure!(kept > 0, "no races in {names:?}");
    Ok(Row::said(format!("the last {kept} of {ROUNDS} races in {} files", names.len())))
}
