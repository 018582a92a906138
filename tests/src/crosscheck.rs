//! snat-trace against witnesses that share nothing with it: `skb:kfree_skb` as tracefs counts it, and the counters as the
//! tool `conntrack` prints them. Who disagrees has failed.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use snat_trace::lab::{Lab, Mode, PodTruth, Scenario as Traffic, Setup};

use crate::kfree_skb::Drops;
use crate::output::{Lines, Running};
use crate::places::until;
use crate::scenario::{Numbers, Row, Scenario, brief, whole};
use crate::storm::Storm;

/// The witnesses'.
pub const SCENARIOS: &[Scenario] = &[
    brief("kfree_skb and conntrack -S, full", || storm("full")),
    brief("kfree_skb and conntrack -S, minimal", || storm("minimal")),
    whole("the same, natural udp, full", || natural(Traffic::SnatUdp, "full")),
    whole("the same, natural tcp, full", || natural(Traffic::SnatTcp, "full")),
];

/// To run after everything else: the kernel has not complained.
pub const LAST: &[Scenario] = &[brief("no kernel warning", no_kernel_warning)];

/// Clashes each of two senders has in a storm.
const CLASHES: u64 = 60;

/// The last number of the first pod's address.
const FIRST_POD: u8 = 10;

/// How often a natural run is repeated until there is a race.
const TRIES: usize = 10;

/// What the witnesses say of one run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Witnesses {
    /// Packets dropped in netfilter's hooks.
    dropped: u64,
    /// `insert_failed` and `drop` of `conntrack -S`.
    counted: Counted,
}

/// Sums over all CPUs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counted {
    insert_failed: u64,
    drop: u64,
}

/// Packets that clash without end with a rule that has one port.
fn storm(detail: &str) -> Result<Row> {
    let storm = Storm::new()?;
    // What arrives is not to be dropped by a rule: 5.10 does that in `nf_hook_slow` as well, later kernels in `nft_do_chain`
    // (net/netfilter/nf_tables_core.c).
    storm.run("nft", &["flush", "chain", "ip", "storm", "sink"])?;
    let watch = Watch::start(detail, storm.inum()?)?;
    let statistics = || storm.inside(|| statistics(Command::new("conntrack").arg("-S")));
    let (before, drops) = (statistics()?, Drops::count()?);
    let sent = storm.rage(2, |refused| refused >= CLASHES)?;
    let witnesses = Witnesses { dropped: drops.so_far()?, counted: statistics()?.since(before) };
    let row = watch.judge(witnesses, sent.refused, |_| Some(std::process::id()))?;
    Ok(Row { text: said(&drops), ..row })
}

/// A lab's natural races, between two CPUs in the midst of forwarding.
fn natural(traffic: Traffic, detail: &str) -> Result<Row> {
    let setup = Setup { rounds: 100, mode: Mode::Natural, ..Setup::new(traffic) };
    for _ in 0..TRIES {
        let mut lab = Lab::build(&setup)?;
        let watch = Watch::start(detail, lab.node_inum().0)?;
        let node = lab.node_tid().to_string();
        let statistics = || statistics(Command::new("nsenter").args(["-t", &node, "-n", "conntrack", "-S"]));
        let (before, drops) = (statistics()?, Drops::count()?);
        let truth = lab.run(&AtomicBool::new(false), |_| ())?;
        let witnesses = Witnesses { dropped: drops.so_far()?, counted: statistics()?.since(before) };
        let row = watch.judge(witnesses, u64::try_from(truth.packets_lost())?, |flow| pod(lab.pods(), flow))?;
        if witnesses.dropped > 0 {
            return Ok(Row { text: said(&drops), ..row });
        }
    }
    bail!("no race in {TRIES} runs")
}

/// The pod whose address a flow comes from.
fn pod(pods: &[PodTruth], flow: &Value) -> Option<u32> {
    let from: Ipv4Addr = flow["original"]["src"].as_str()?.parse().ok()?;
    let [.., host] = from.octets();
    pods.get(usize::from(host.checked_sub(FIRST_POD)?)).map(|pod| pod.pid)
}

/// Which of the tracepoint's words could be used.
fn said(drops: &Drops) -> String {
    if drops.has_reason() {
        "by reason and place".to_owned()
    } else {
        "by place: this kernel gives no reason".to_owned()
    }
}

/// A watch of one network namespace.
struct Watch {
    running: Running,
    netns: u32,
}

/// Where it prints to: a pipe would fill.
const PRINTED: &str = "/tmp/crosscheck.json";

/// In the line of a race.
const RACE: &str = r#""type":"race""#;

impl Watch {
    /// Attached when this returns.
    fn start(detail: &str, netns: u32) -> Result<Self> {
        let ready = Path::new("/tmp/ready-crosscheck");
        let _absent = fs::remove_file(ready);
        let path = ready.to_str().context("a path is text")?;
        let arguments = ["watch", "--detail", detail, "--format", "json", "--ready-file", path];
        let mut running = Running::into_file(&arguments, File::create(PRINTED)?)?;
        let child = running.child()?;
        until("the ready file", || ready.exists() || child.try_wait().is_ok_and(|status| status.is_some()))?;
        ensure!(ready.exists(), "watch ended early");
        Ok(Self { running, netns })
    }

    /// Ends it, the namespace still being there, and holds what it said against the witnesses and the senders, who lost so
    /// many packets and each of whose flows `sender` knows.
    fn judge(self, witnesses: Witnesses, senders: u64, sender: impl Fn(&Value) -> Option<u32>) -> Result<Row> {
        // All printed: what waits for the output longer than a second after Ctrl-C is lost.
        let printed = || fs::read_to_string(PRINTED).is_ok_and(|text| text.matches(RACE).count() as u64 >= senders);
        until("every race printed", printed)?;
        self.running.interrupt()?;
        let lines = Lines::parse_bytes(&fs::read(PRINTED)?)?;
        let dropped = lines.all("race").filter(|race| race["verdict"] == "dropped" && race["netns"] == self.netns);
        let seen = dropped.count() as u64;
        let Witnesses { dropped, counted: Counted { insert_failed, drop } } = witnesses;
        ensure!(
            [dropped, insert_failed, drop, senders].iter().all(|&witness| witness == seen),
            "{seen} races dropped a packet; kfree_skb says {dropped}, conntrack -S insert_failed {insert_failed} and drop \
             {drop}, the senders {senders}"
        );
        ensure!(lines.races() == seen, "{} races, {seen} of them here and dropped", lines.races());
        let summary = lines.only("summary")?;
        ensure!(seen == 0 || summary["closes"] == true, "the account does not close: {summary}");
        let numbers = Numbers {
            expected: Some(dropped),
            seen: Some(seen),
            pids_right: Some(lines.sent_by(sender)?),
            unexplained: Some(lines.unexplained()?),
            lost: Some(lines.lost_in_all()?),
            ..Numbers::default()
        };
        Ok(Row { text: String::new(), numbers })
    }
}

/// What `conntrack -S` says where `command` runs it.
fn statistics(command: &mut Command) -> Result<Counted> {
    let output = command.output().context("cannot run conntrack")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "conntrack -S: {}", error.trim());
    Counted::parse(&String::from_utf8_lossy(&output.stdout))
}

impl Counted {
    /// One line per CPU: `cpu=0 found=0 invalid=1 insert=0 insert_failed=2 drop=2 …`.
    fn parse(text: &str) -> Result<Self> {
        let mut sum = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let number = |name: &str| -> Result<u64> {
                let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                Ok(word.with_context(|| format!("no {name} in {line:?}"))?.parse()?)
            };
            sum.insert_failed += number("insert_failed")?;
            sum.drop += number("drop")?;
        }
        Ok(sum)
    }

    fn since(self, before: Self) -> Self {
        Self { insert_failed: self.insert_failed - before.insert_failed, drop: self.drop - before.drop }
    }
}

/// Where a kernel with PREEMPT_RT warns of itself: of a softirq that an interrupt from another CPU raises, be it the
/// scheduler's own (kernel/softirq.c; kernel/sched/core.c, `nohz_csd_func`).
const OF_ITSELF: &str = "do_softirq_post_smp_call_flush";

/// Neither a warning nor an oops since the guest booted: what was attached, and how, was to the kernel's liking.
fn no_kernel_warning() -> Result<Row> {
    /// `TAINT_DIE`, `TAINT_WARN` and `TAINT_SOFTLOCKUP` (include/linux/panic.h).
    const COMPLAINTS: u64 = 1 << 7 | 1 << 9 | 1 << 14;

    let tainted: u64 = fs::read_to_string("/proc/sys/kernel/tainted")?.trim().parse()?;
    if tainted & COMPLAINTS == 0 {
        return Ok(Row::said(format!("tainted {tainted}")));
    }
    let said = Command::new("dmesg").output()?.stdout;
    let said = String::from_utf8_lossy(&said);
    let complaint = |line: &&str| line.contains("WARNING:") || line.contains("BUG:") || line.contains("Oops");
    let complaints: Vec<_> = said.lines().filter(complaint).collect();
    let all = complaints.join("; ");
    ensure!(!all.is_empty() && complaints.iter().all(|line| line.contains(OF_ITSELF)), "tainted {tainted}: {all}");
    Ok(Row::said(format!("tainted {tainted}, by the kernel's own {OF_ITSELF}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conntracks_own_lines() {
        let text = "cpu=0   \tfound=0 invalid=1 insert=0 insert_failed=12 drop=10 early_drop=0 error=0 search_restart=3 \n\
                    cpu=1   \tfound=7 invalid=0 insert=0 insert_failed=5 drop=4 early_drop=0 error=0 search_restart=0 (null)=2\n";
        assert_eq!(Counted::parse(text).unwrap(), Counted { insert_failed: 17, drop: 14 });
        assert!(Counted::parse("cpu=0 found=1\n").is_err());
    }
}
