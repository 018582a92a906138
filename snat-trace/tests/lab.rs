//! The lab itself, on this machine's kernel: are its races real, and does its truth agree with the kernel's counters?
//!
//! A program of its own rather than the usual harness, because a lab's pods are further processes of the same program.
//! Arguments that are no options select cases by a part of their name. Needs root, `ip` and `nft`.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use snat_trace::kernel::Detail;
use snat_trace::lab::{
    Control, DoubleNat, Family, Lab, LabError, Links, MAX_PODS, Mode, RuleTool, Scenario, Senders, Setup, Translation,
    Truth, Zones, compare, lab_cgroups, pod_main, run_lives,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("lab-pod", words)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match pod_main(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.iter().any(|argument| argument == "build-and-wait") {
        return exit(build_and_wait());
    }
    let wanted = |name: &str| {
        let mut filters = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
    };
    let mut failed = false;
    for (name, case) in CASES.iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        let outcome = case();
        let skipped = outcome.as_ref().err().and_then(|error| error.downcast_ref::<LabError>()).filter(|error| {
            matches!(
                error,
                LabError::NotPermitted { .. }
                    | LabError::MissingTool { .. }
                    | LabError::NoQueue { .. }
                    | LabError::NoIpv6
                    | LabError::NoSctp
                    | LabError::NoPoller { .. }
                    | LabError::Links(_)
                    | LabError::Table(_)
            )
        });
        let seconds = began.elapsed().as_secs_f64();
        match (skipped, &outcome) {
            (Some(reason), _) => println!("skipped {name}: {reason}"),
            (None, Ok(said)) => println!("ok      {name}: {said} ({seconds:.1} s)"),
            (None, Err(error)) => {
                failed = true;
                println!("FAILED  {name}: {error:#} ({seconds:.1} s)");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn exit(result: Result<()>) -> ExitCode {
    result.map_or_else(
        |error| {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

type Case = fn() -> Result<String>;

const CASES: &[(&str, Case)] = &[
    ("natural-udp", || natural(Scenario::SnatUdp, 2000)),
    ("natural-tcp", || natural(Scenario::SnatTcp, 500)),
    ("natural-address-reuse", || natural(Scenario::AddressReuse, 1000)),
    ("natural-udp-eight-pods", || quiet_or_not(MAX_PODS, 200, Mode::Natural, false).map(|truth| text(&truth))),
    ("natural-icmp", || natural_with(&Setup::new(Scenario::SnatIcmp))),
    ("natural-sctp", || natural_with(&Setup::new(Scenario::SnatSctp))),
    ("natural-ipv6", || in_each(|scenario| Setup { family: Family::V6, ..Setup::new(scenario) })),
    ("natural-snat", || in_each(|scenario| Setup { translation: Translation::Snat, ..Setup::new(scenario) })),
    ("natural-iptables-nft", || in_each(|scenario| Setup { rules: RuleTool::IptablesNft, ..Setup::new(scenario) })),
    ("natural-iptables-legacy", || {
        in_each(|scenario| Setup { rules: RuleTool::IptablesLegacy, ..Setup::new(scenario) })
    }),
    ("natural-zones", || natural_with(&Setup { zones: Some(Zones::Original), ..Setup::new(Scenario::SnatUdp) })),
    ("zones-for-both-directions", zones_for_both_directions),
    ("natural-double-nat-first", || {
        in_each(|scenario| Setup { double_nat: Some(DoubleNat::First), ..Setup::new(scenario) })
    }),
    ("natural-double-nat-second", || {
        in_each(|scenario| Setup { double_nat: Some(DoubleNat::Second), ..Setup::new(scenario) })
    }),
    ("different-ports", || control(Control::DifferentPorts)),
    ("one-cpu", || control(Control::OneCpu)),
    ("sequential", || control(Control::Sequential)),
    ("natural-random-fully", random_fully),
    ("forced-udp", || forced(Scenario::SnatUdp, 2, 200)),
    ("forced-tcp", || forced(Scenario::SnatTcp, 2, 100)),
    ("forced-udp-eight-pods", || forced(Scenario::SnatUdp, MAX_PODS, 50)),
    ("forced-tcp-eight-pods", || forced(Scenario::SnatTcp, MAX_PODS, 50)),
    ("forced-random-fully", forced_random_fully),
    ("exhaustion", || taken(Scenario::Exhaustion, 16)),
    ("fixed-port", || taken(Scenario::FixedPort, 1)),
    ("duplicate-flow", || sent_on(Scenario::DuplicateFlow)),
    ("duplicate-flow-dnat", || sent_on(Scenario::DuplicateFlowDnat)),
    ("duplicate-flow-tcp", syn_sent_again),
    ("crossed-flow", || sent_on(Scenario::CrossedFlow)),
    ("crossed-flow-tcp", || sent_on(Scenario::CrossedFlowTcp)),
    ("table-full", table_full),
    ("early-drop", early_drop),
    ("ctnetlink", ctnetlink),
    ("senders-short-lived", || sent_by(Senders::ShortLived)),
    ("senders-pid-namespace", || sent_by(Senders::PidNamespace)),
    ("senders-kernel-thread", || sent_by(Senders::KernelThread)),
    ("links-rps", || natural_with(&Setup { links: Links::Rps, ..Setup::new(Scenario::SnatUdp) })),
    ("links-gro", || natural_with(&Setup { links: Links::Gro, ..Setup::new(Scenario::SnatUdp) })),
    ("a-first-syn-that-is-lost", first_syn_lost),
    ("labs-that-come-and-go", lives),
    ("storm", storm),
    ("senders-host", || sent_by(Senders::Host)),
    ("senders-outside", || sent_by(Senders::Outside)),
    ("pods-are-where-the-truth-says", whereabouts),
    ("two-labs-at-once", two_labs),
    ("stop-flag", stop_flag),
    ("a-pod-that-dies", pod_dies),
    ("killed-in-the-middle", killed),
];

fn run(setup: &Setup) -> Result<Truth> {
    let mut lab = Lab::build(setup)?;
    let truth = lab.run(&AtomicBool::new(false), |_| {})?;
    ensure!(truth.rounds.len() == usize::try_from(setup.rounds)?, "{} rounds", truth.rounds.len());
    let lost = u64::try_from(truth.packets_lost())?;
    ensure!(lost == truth.insert_failed, "{lost} packets lost, insert_failed {}", truth.insert_failed);
    ensure!(lost == truth.drop, "{lost} packets lost, drop {}", truth.drop);
    // Nobody traced: every loss must be named as missing, and nothing else.
    let comparison = compare(&truth, &[], None, Detail::Full);
    let clashes = lost + truth.resolved();
    ensure!(u64::try_from(comparison.differences.len())? == clashes, "{comparison}");
    ensure!(comparison.ok() == (clashes == 0), "{comparison}");
    Ok(truth)
}

fn text(truth: &Truth) -> String {
    format!("{} rounds, {} packets lost, all of them counted", truth.rounds.len(), truth.packets_lost())
}

fn quiet_or_not(pods: usize, rounds: u32, mode: Mode, random_fully: bool) -> Result<Truth> {
    run(&Setup { pods, rounds, mode, random_fully, ..Setup::new(Scenario::SnatUdp) })
}

/// Over UDP and over TCP.
fn in_each(setup: fn(Scenario) -> Setup) -> Result<String> {
    let both = [Scenario::SnatUdp, Scenario::SnatTcp].map(|scenario| natural_with(&setup(scenario)));
    both.into_iter().collect::<Result<Vec<_>>>().map(|texts| texts.join("; "))
}

/// Some races, and what arrived bears the node's address.
fn natural_with(setup: &Setup) -> Result<String> {
    let setup = Setup { rounds: 500, mode: Mode::Natural, ..*setup };
    some(&setup, |truth| {
        let mut arrived = truth.rounds.iter().flat_map(|round| &round.flows).filter_map(|flow| flow.arrived_as);
        let translated = |seen: SocketAddr| seen.is_ipv6() == (setup.family == Family::V6) && seen.ip() == node(&setup);
        ensure!(arrived.all(translated), "a packet came with another source than the node's");
        Ok(())
    })
}

/// Some races, as two CPUs will have it: on one machine nearly all rounds had one or none had, by what else it did. A run
/// without any is judged as the others are, and repeated.
fn some(setup: &Setup, judge: impl Fn(&Truth) -> Result<()>) -> Result<String> {
    const TRIES: usize = 10;

    let cpus = std::thread::available_parallelism()?.get();
    for _ in 0..TRIES {
        let truth = run(setup)?;
        judge(&truth)?;
        if truth.packets_lost() > 0 || cpus == 1 {
            return Ok(text(&truth));
        }
    }
    bail!("no race in {TRIES} times {} rounds on {cpus} CPUs", setup.rounds)
}

fn node(setup: &Setup) -> IpAddr {
    match setup.family {
        Family::V4 => IpAddr::from([10, 99, 1, 1]),
        Family::V6 => IpAddr::from([0xfd99, 0, 0, 1, 0, 0, 0, 1]),
    }
}

fn zones_for_both_directions() -> Result<String> {
    let setup = Setup { zones: Some(Zones::Both), pods: 3, ..Setup::new(Scenario::SnatUdp) };
    let truth = run(&Setup { rounds: 500, mode: Mode::Natural, ..setup })?;
    ensure!(truth.packets_lost() == 0, "{}", text(&truth));
    Ok(text(&truth))
}

fn natural(scenario: Scenario, rounds: u32) -> Result<String> {
    some(&Setup { rounds, mode: Mode::Natural, ..Setup::new(scenario) }, |_| Ok(()))
}

fn control(control: Control) -> Result<String> {
    for scenario in [Scenario::SnatUdp, Scenario::SnatTcp] {
        let truth = run(&Setup { rounds: 300, mode: Mode::Control(control), ..Setup::new(scenario) })?;
        ensure!(truth.packets_lost() == 0, "{scenario:?}: {}", text(&truth));
    }
    Ok("no packet lost over UDP and TCP".to_owned())
}

/// Two flows choose one port of 64 512 now and then, so one loss is no failure.
fn random_fully() -> Result<String> {
    let truth = quiet_or_not(2, 1000, Mode::Natural, true)?;
    ensure!(truth.packets_lost() <= 1, "{}", text(&truth));
    let remapped = truth
        .rounds
        .iter()
        .flat_map(|round| &round.flows)
        .filter(|flow| flow.arrived_as.is_some_and(|seen| seen.port() != flow.original.ends().source.port()));
    ensure!(remapped.count() > 1900, "the rule is not random");
    Ok(text(&truth))
}

fn forced(scenario: Scenario, pods: usize, rounds: u32) -> Result<String> {
    let truth = run(&Setup { pods, rounds, ..Setup::new(scenario) })?;
    for round in &truth.rounds {
        let winners: Vec<usize> = (0..pods).filter(|pod| round.flows[*pod].first_try).collect();
        let expected = usize::try_from(round.number)? % pods;
        ensure!(winners == [expected], "round {}: winners {winners:?}, not {expected}", round.number);
    }
    if scenario == Scenario::SnatTcp {
        let arrived = truth.rounds.iter().flat_map(|round| &round.flows).all(|flow| flow.arrived_as.is_some());
        ensure!(arrived, "a connection never came up");
    }
    Ok(text(&truth))
}

fn forced_random_fully() -> Result<String> {
    let truth = quiet_or_not(2, 200, Mode::Forced, true)?;
    ensure!(truth.packets_lost() <= 1, "{}", text(&truth));
    Ok(text(&truth))
}

/// The rule's ports are taken by the first flows, and every other loses.
fn taken(scenario: Scenario, ports: usize) -> Result<String> {
    let truth = run(&Setup { rounds: 30, ..Setup::new(scenario) })?;
    let flows: Vec<_> = truth.rounds.iter().flat_map(|round| &round.flows).collect();
    let arrived: Vec<bool> = flows.iter().map(|flow| flow.first_try).collect();
    let expected: Vec<bool> = (0..60).map(|flow| flow < ports).collect();
    ensure!(arrived == expected, "{arrived:?}");
    Ok(text(&truth))
}

/// What two packets of one flow, or of a crossed one, come to is up to the CPUs and the kernel: counted it is.
fn sent_on(scenario: Scenario) -> Result<String> {
    let truth = run(&Setup { rounds: 300, ..Setup::new(scenario) })?;
    let clashes = truth.resolved() + truth.insert_failed;
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(clashes > 0 || cpus == 1, "no clash in 300 rounds on {cpus} CPUs");
    Ok(format!("{}, {} sent on", text(&truth), truth.resolved()))
}

/// Every packet is dropped for want of an entry.
fn table_full() -> Result<String> {
    let truth = Lab::build(&Setup::new(Scenario::TableFull))?.run(&AtomicBool::new(false), |_| {})?;
    ensure!(truth.packets_lost() == 40 && truth.drop == 40 && truth.insert_failed == 0, "{truth:?}");
    Ok(text(&truth))
}

fn early_drop() -> Result<String> {
    let truth = Lab::build(&Setup::new(Scenario::EarlyDrop))?.run(&AtomicBool::new(false), |_| {})?;
    ensure!(truth.evicted.is_some_and(|evicted| evicted > 0) && truth.insert_failed == 0, "{truth:?}");
    ensure!(u64::try_from(truth.packets_lost())? == truth.drop, "{truth:?}");
    Ok(format!("{}, {:?} evicted", text(&truth), truth.evicted))
}

fn ctnetlink() -> Result<String> {
    let truth = run(&Setup::new(Scenario::Ctnetlink))?;
    ensure!(truth.packets_lost() == 0 && truth.refused.len() == 40, "{truth:?}");
    Ok(format!("{} entries refused", truth.refused.len()))
}

/// Whoever sends, what is lost was counted.
fn sent_by(senders: Senders) -> Result<String> {
    let truth = run(&Setup { senders, mode: Mode::Natural, rounds: 300, ..Setup::new(Scenario::SnatUdp) })?;
    let by_itself = truth.rounds.iter().flat_map(|round| &round.flows).filter(|flow| flow.sender.is_some()).count();
    ensure!(by_itself == if senders == Senders::ShortLived { 600 } else { 0 }, "{by_itself} packets with a process");
    Ok(text(&truth))
}

/// Every connection comes up by a SYN that was sent again, once at least, which takes a second.
fn first_syn_lost() -> Result<String> {
    let setup = Setup { rounds: 2, mode: Mode::Natural, ..Setup::new(Scenario::SnatTcpAgain) };
    let began = Instant::now();
    let truth = run(&setup)?;
    ensure!(began.elapsed() >= Duration::from_secs(2), "two rounds in {:?}", began.elapsed());
    ensure!(truth.rounds.iter().flat_map(|round| &round.flows).all(|flow| flow.arrived_as.is_some()), "{truth:?}");
    Ok(text(&truth))
}

/// Each has rounds and ports of its own, and all but the last is gone.
fn lives() -> Result<String> {
    let setup = Setup { rounds: 10, mode: Mode::Natural, ..Setup::new(Scenario::Namespaces) };
    let mut lab = Some(Lab::build(&setup.first_life())?);
    let lives = run_lives(&mut lab, &setup, &AtomicBool::new(false), |_| {})?;
    let numbers: Vec<u32> = lives.iter().flat_map(|life| &life.truth.rounds).map(|round| round.number).collect();
    ensure!(lives.len() == 3 && numbers == (0..10).collect::<Vec<_>>(), "{numbers:?}");
    let ports = lives.iter().flat_map(|life| &life.truth.rounds).flat_map(|round| &round.flows);
    let ports: HashSet<u16> = ports.map(|flow| flow.original.ends().source.port()).collect();
    ensure!(ports.len() == 10, "{ports:?}");
    let last = lab.context("the last is gone")?;
    ensure!(lives.last().is_some_and(|life| life.netns == last.node_inum()), "the last is another");
    Ok(format!("{} labs", lives.len()))
}

/// One packet gets the port.
fn storm() -> Result<String> {
    let truth = run(&Setup { rounds: 2000, pods: 8, ..Setup::new(Scenario::Storm) })?;
    ensure!(truth.packets_lost() == 15_999, "{} lost", truth.packets_lost());
    Ok(text(&truth))
}

/// Every connection comes up, and of its two SYNs one met the other.
fn syn_sent_again() -> Result<String> {
    let truth = run(&Setup { rounds: 3, ..Setup::new(Scenario::DuplicateFlowTcp) })?;
    let clashes = truth.resolved() + truth.insert_failed;
    // None where the kernel looks for an entry again when a queue lets a packet go.
    ensure!(clashes == 3 || clashes == 0, "{clashes} clashes");
    Ok(format!("{}, {} sent on", text(&truth), truth.resolved()))
}

fn small() -> Setup {
    Setup { rounds: 50, mode: Mode::Natural, ..Setup::new(Scenario::SnatTcp) }
}

fn whereabouts() -> Result<String> {
    let lab = Lab::build(&small())?;
    let node = fs::metadata(format!("/proc/self/fd/{}", lab.node_netns().as_raw_fd()))?;
    let thread = fs::metadata(format!("/proc/self/task/{}/ns/net", lab.node_tid()))?;
    let inode = std::os::unix::fs::MetadataExt::ino;
    let node_inum = u64::from(lab.node_inum().0);
    ensure!(inode(&node) == node_inum && inode(&thread) == node_inum, "the node's namespace");
    let own = inode(&fs::metadata("/proc/self/ns/net")?);
    let mut seen = vec![own, node_inum];
    for pod in lab.pods() {
        let netns = inode(&fs::metadata(format!("/proc/{}/ns/net", pod.pid))?);
        ensure!(!seen.contains(&netns), "a pod shares its network namespace");
        seen.push(netns);
        ensure!(pod.tid != pod.pid, "a pod sends from its first thread");
        ensure!(fs::exists(format!("/proc/{}/task/{}", pod.pid, pod.tid))?, "thread {} is not the pod's", pod.tid);
        if let Some(cgroup) = &pod.cgroup {
            let own = fs::read_to_string(format!("/proc/{}/cgroup", pod.pid))?;
            ensure!(own.lines().any(|line| line == format!("0::{}", cgroup.path)), "{own}");
        }
    }
    let note = lab.without_cgroups().map_or_else(String::new, |reason| format!(", no cgroups: {reason}"));
    let pids: Vec<u32> = lab.pods().iter().map(|pod| pod.pid).collect();
    drop(lab);
    for pid in pids {
        ensure!(!fs::exists(format!("/proc/{pid}"))?, "pod {pid} outlived its lab");
    }
    ensure_no_cgroup_of(std::process::id())?;
    Ok(format!("namespaces, threads and cgroups{note}"))
}

fn ensure_no_cgroup_of(pid: u32) -> Result<()> {
    let mine = format!("snat-trace-lab-{pid}-");
    let left: Vec<_> = lab_cgroups()?.into_iter().filter(|path| path.to_string_lossy().contains(&mine)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn two_labs() -> Result<String> {
    let outcomes = std::thread::scope(|scope| {
        // In a process of its own, as two users would.
        let other = scope
            .spawn(|| Command::new("/proc/self/exe").args(["natural-udp-eight-pods"]).stdout(Stdio::piped()).output());
        (run(&small()), other.join())
    });
    let truth = outcomes.0?;
    let other = outcomes.1.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    ensure!(other.status.success(), "{}", String::from_utf8_lossy(&other.stdout));
    Ok(text(&truth))
}

fn stop_flag() -> Result<String> {
    let mut lab = Lab::build(&Setup { scenario: Scenario::SnatUdp, rounds: 20_000, ..small() })?;
    let stop = AtomicBool::new(false);
    let outcome = lab.run(&stop, |progress| stop.store(progress.rounds >= 10, Ordering::Relaxed));
    ensure!(matches!(outcome, Err(LabError::Stopped)), "{outcome:?}");
    Ok("ended by the flag".to_owned())
}

/// The other pod waits for it at the barrier: that must end too.
fn pod_dies() -> Result<String> {
    let mut lab = Lab::build(&Setup { scenario: Scenario::SnatUdp, rounds: 20_000, ..small() })?;
    let pids: Vec<u32> = lab.pods().iter().map(|pod| pod.pid).collect();
    let victim = Pid::from_raw(pids[1].cast_signed()).context("no process id")?;
    let outcome = lab.run(&AtomicBool::new(false), |progress| {
        if progress.rounds == 10 {
            // An error shows as a run that goes on to its end.
            let _sent = kill_process(victim, Signal::KILL);
        }
    });
    drop(lab);
    let Err(LabError::Pod { pod: 1, what }) = outcome else { bail!("{outcome:?}") };
    ensure!(!fs::exists(format!("/proc/{}", pids[0]))?, "the other pod outlived the lab");
    Ok(format!("pod 1 {what}"))
}

/// Prints the pods' process ids and waits to be killed.
fn build_and_wait() -> Result<()> {
    let mut lab = Lab::build(&Setup { scenario: Scenario::SnatUdp, rounds: 20_000, ..small() })?;
    for pod in lab.pods() {
        println!("{}", pod.pid);
    }
    println!("node {}", lab.node_inum().0);
    loop {
        lab.run(&AtomicBool::new(false), |_| {})?;
    }
}

fn killed() -> Result<String> {
    // Skips where no lab can be.
    drop(Lab::build(&small())?);
    let mut child = Command::new("/proc/self/exe").arg("build-and-wait").stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut pods = Vec::new();
    let node = loop {
        let line = lines.next().context("the child ended early")??;
        match line.strip_prefix("node ") {
            Some(node) => break node.to_owned(),
            None => pods.push(line.parse::<u32>()?),
        }
    };
    child.kill()?;
    child.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while pods.iter().any(|pid| is_alive(*pid)) {
        if Instant::now() > deadline {
            bail!("pods {pods:?} outlived their lab");
        }
        std::thread::yield_now();
    }
    ensure!(!netns_in_use(&node)?, "the node's namespace is still in use");
    // The next lab removes the cgroups.
    drop(Lab::build(&small())?);
    ensure_no_cgroup_of(child.id())?;
    Ok("its pods died with it and the next lab removed its cgroups".to_owned())
}

/// Neither gone nor a zombie nobody has reaped yet.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether any process lives in the namespace with this inode number.
fn netns_in_use(inum: &str) -> Result<bool> {
    let link = format!("net:[{inum}]");
    let mut processes = fs::read_dir("/proc")?.flatten();
    Ok(processes.any(|entry| fs::read_link(entry.path().join("ns/net")).is_ok_and(|own| *own == *link)))
}
