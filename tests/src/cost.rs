//! What watching takes of a node, counted and not timed: runs of BPF programs, and wake-ups where nothing happens.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use snat_trace::kernel::{Detail, Request, programs};

use crate::node::Node;
use crate::output::Running;
use crate::places::{until, watching};
use crate::process::field;
use crate::scenario::{Row, Scenario, brief};

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[brief("cost: traps", traps), brief("cost: idle", idle)];

/// How often each kind of traffic is sent.
const UNITS: u16 = 100;

/// Where it goes, to be translated, in a network namespace of its own.
const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 98, 0, 2), 7000);
/// Another address there.
const FROM: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const ADDRESSES: [&str; 3] = ["10.98.0.1/32", "10.98.0.2/32", "10.98.0.3/32"];
const RULES: &str = "table ip cost {
    chain nat { type nat hook postrouting priority 100; ip daddr 10.98.0.2 snat to 10.98.0.3; }
}";

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum Traffic {
    /// Each of a socket of its own, which is bound to an address.
    UdpFlows,
    /// The same, and the socket is connected.
    ConnectedFlows,
    TcpFlows,
    /// Of an established flow, as the next.
    UdpDatagrams,
    TcpSegments,
}

impl Traffic {
    const ALL: [Self; 5] =
        [Self::UdpFlows, Self::ConnectedFlows, Self::TcpFlows, Self::UdpDatagrams, Self::TcpSegments];
}

/// How often a program runs.
type Runs = (&'static str, u64);

/// The runs for each flow, or for each datagram of an established one; of programs that do not stand here there is none.
type Table = fn(Traffic) -> Vec<Runs>;

/// Nothing runs as long as no two flows clash.
fn at_minimal(_: Traffic) -> Vec<Runs> {
    Vec::new()
}

/// A connection is bound in either direction, each of which asks for a port (net/netfilter/nf_nat_core.c,
/// `nf_nat_inet_fn`).
fn at_full(traffic: Traffic) -> Vec<Runs> {
    match traffic {
        Traffic::UdpFlows => vec![("allocation", 2), (INSERTION, 1)],
        Traffic::ConnectedFlows => vec![("owner_ipv4", 1), ("allocation", 2), (INSERTION, 1)],
        Traffic::TcpFlows => vec![("owner_tcp", 1), ("allocation", 2), (INSERTION, 1)],
        Traffic::UdpDatagrams | Traffic::TcpSegments => Vec::new(),
    }
}

/// The same hooks, and those on failures at either end of two functions, once for each entry that is made.
fn with_failures(traffic: Traffic) -> Vec<Runs> {
    let on_top: &[Runs] = match traffic {
        Traffic::UdpFlows | Traffic::ConnectedFlows | Traffic::TcpFlows => {
            &[("allocate_begins", 1), ("allocate_ends", 1), ("confirm_begins", 1), ("confirm_ends", 1)]
        }
        Traffic::UdpDatagrams | Traffic::TcpSegments => &[],
    };
    [at_full(traffic).as_slice(), on_top].concat()
}

/// Each way to watch, and what it runs.
const WAYS: [(&[&str], Table); 3] = [
    (&["--detail", "minimal"], at_minimal),
    (&["--detail", "full"], at_full),
    (&["--detail", "full", "--failures"], with_failures),
];

/// The program that notes insertions, in either of the two places it is to be had.
const INSERTION: &str = "insertion";
const INSERTION_TOO: &str = "insertion_at_confirm";

/// Programs run as often as the tables say, and no more, by the kernel's own count.
fn traps() -> Result<Row> {
    let _counted = enable_stats(Stats::RunTime).context("cannot have the kernel count runs")?;
    let mut said = Vec::new();
    for (arguments, table) in WAYS {
        // Its table of connections is empty, and goes with it.
        let node = Node::new("cost", &ADDRESSES, RULES)?;
        let watch = watching(arguments, Path::new("/tmp/ready-cost"))?;
        for traffic in Traffic::ALL {
            let runs = node.inside(|| send(traffic))?;
            let table = table(traffic);
            let expected: BTreeMap<&str, u64> =
                table.iter().map(|(program, runs)| (*program, runs * u64::from(UNITS))).collect();
            ensure!(
                runs == expected,
                "{}: {UNITS} {traffic:?} made programs run {runs:?}, and the table says {expected:?}",
                arguments.join(" ")
            );
            let sum: u64 = table.iter().map(|(_, runs)| runs).sum();
            said.push(sum.to_string());
        }
        watch.interrupt()?;
    }
    let [minimal, full, failures] =
        [0, 1, 2].map(|way| said[way * Traffic::ALL.len()..][..Traffic::ALL.len()].join("/"));
    Ok(Row::said(format!(
        "runs for each UDP flow, connected UDP flow, TCP flow, UDP datagram, TCP segment: minimal {minimal}, full {full}, --failures {failures}"
    )))
}

/// Sends, sees all of it arrive, and tells how often programs ran meanwhile.
fn send(traffic: Traffic) -> Result<BTreeMap<&'static str, u64>> {
    match traffic {
        Traffic::UdpFlows => {
            let sink = UdpSocket::bind(TO)?;
            counted(|number| {
                UdpSocket::bind((FROM, 20_000 + number))?.send_to(&number.to_be_bytes(), TO)?;
                arrives(&sink, number).map(drop)
            })
        }
        Traffic::ConnectedFlows => {
            let sink = UdpSocket::bind(TO)?;
            counted(|number| {
                let socket = UdpSocket::bind((FROM, 25_000 + number))?;
                socket.connect(TO)?;
                socket.send(&number.to_be_bytes())?;
                arrives(&sink, number).map(drop)
            })
        }
        Traffic::UdpDatagrams => {
            let (sink, socket) = (UdpSocket::bind(TO)?, UdpSocket::bind((FROM, 30_000))?);
            socket.send_to(&[0, 0], TO)?;
            // An answer makes it an established one.
            sink.send_to(&[0, 0], arrives(&sink, 0)?)?;
            arrives(&socket, 0)?;
            counted(|number| {
                socket.send_to(&number.to_be_bytes(), TO)?;
                arrives(&sink, number).map(drop)
            })
        }
        Traffic::TcpFlows => {
            let listener = TcpListener::bind(TO)?;
            let mut open = Vec::new();
            // They stay open: how they end is not of interest.
            counted(|_| {
                open.push((TcpStream::connect(TO)?, listener.accept()?));
                Ok(())
            })
        }
        Traffic::TcpSegments => {
            let listener = TcpListener::bind(TO)?;
            let mut socket = TcpStream::connect(TO)?;
            socket.set_nodelay(true)?;
            let (mut accepted, _) = listener.accept()?;
            counted(|number| {
                socket.write_all(&number.to_be_bytes())?;
                let mut arrived = [0; 2];
                accepted.read_exact(&mut arrived)?;
                ensure!(arrived == number.to_be_bytes(), "segment {number}");
                Ok(())
            })
        }
    }
}

/// Waits for a datagram, and says where from.
fn arrives(sink: &UdpSocket, number: u16) -> Result<std::net::SocketAddr> {
    let mut arrived = [0; 2];
    let (_, from) = sink.recv_from(&mut arrived)?;
    ensure!(arrived == number.to_be_bytes(), "datagram {number}");
    Ok(from)
}

/// Does something for each unit, and tells which of snat-trace's programs ran meanwhile.
fn counted(mut unit: impl FnMut(u16) -> Result<()>) -> Result<BTreeMap<&'static str, u64>> {
    let before = runs()?;
    (0..UNITS).try_for_each(&mut unit)?;
    let mut runs = runs()?;
    for (program, count) in &mut runs {
        *count -= before.get(program).copied().unwrap_or(0);
    }
    runs.retain(|_, count| *count > 0);
    Ok(runs)
}

/// Runs of each program of snat-trace in this kernel, by the role it has where there are two for one.
fn runs() -> Result<BTreeMap<&'static str, u64>> {
    /// Characters the kernel keeps of a name (include/uapi/linux/bpf.h, `BPF_OBJ_NAME_LEN`, less its end).
    const NAME: usize = 15;

    let request = Request { failures: true, ..Detail::Full.into() };
    let mut all = BTreeMap::new();
    for info in loaded_programs() {
        let info = info?;
        let name = info.name_as_str().unwrap_or_default();
        if let Some(program) = programs(request).find(|full| full.get(..NAME).unwrap_or(full) == name) {
            *all.entry(if program == INSERTION_TOO { INSERTION } else { program }).or_default() += info.run_count();
        }
    }
    Ok(all)
}

/// How long nothing happens: longer than any period in snat-trace.
const QUIET: Duration = Duration::from_secs(11);
/// In which time, at most so often, a start is over.
const START: (Duration, usize) = (Duration::from_millis(500), 10);

/// Where nothing happens nobody wakes up, so nobody makes a system call either: no thread is given a CPU, none comes and
/// none goes. Not so where evidence is recorded, which has a sample each second.
fn idle() -> Result<Row> {
    // Where output goes to does not depend on the hooks.
    let ways: [(&str, &[&str], bool); 3] = [
        ("minimal", &["watch", "--detail", "minimal"], false),
        ("full, --failures", &["watch", "--detail", "full", "--failures"], false),
        ("full, JSON in a file", &["watch", "--detail", "full", "--format", "json"], true),
    ];
    let mut watchers = Vec::new();
    for (number, (way, arguments, file)) in ways.into_iter().enumerate() {
        let ready = format!("/tmp/ready-idle-{number}");
        let _absent = fs::remove_file(&ready);
        let arguments = [arguments, &["--ready-file", &ready]].concat();
        let watch = if file {
            Running::into_file(&arguments, File::create("/tmp/idle.json")?)?
        } else {
            Running::start(&arguments)?
        };
        watchers.push((way, ready, watch));
    }
    let mut pids = Vec::new();
    for (way, ready, watch) in &mut watchers {
        let child = watch.child()?;
        let is_there = || Path::new(ready.as_str()).exists();
        until("the ready file", || is_there() || child.try_wait().is_ok_and(|status| status.is_some()))?;
        ensure!(is_there(), "{way} ended early");
        pids.push((*way, child.id()));
    }
    let threads =
        || pids.iter().map(|(way, pid)| Ok((*way, switches(*pid)?))).collect::<Result<Vec<(&str, Threads)>>>();
    let mut before = threads()?;
    for _ in 0..START.1 {
        sleep(START.0);
        let now = threads()?;
        if now == before {
            break;
        }
        before = now;
    }
    // The time is what is measured.
    sleep(QUIET);
    for ((way, before), (_, after)) in before.iter().zip(threads()?) {
        ensure!(*before == after, "{way}: in {QUIET:?} without any event {before:?} became {after:?}");
    }
    // Or memory that was given back would come back in huge pages while nothing happens.
    for (way, pid) in &pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(field(&status, "THP_enabled")? == 0, "{way} lets huge pages be made of its memory");
    }
    let number = watchers.len();
    for (_, _, watch) in watchers {
        watch.interrupt()?;
    }
    Ok(Row::said(format!("{number} ways to watch, no wake-up in {} s", QUIET.as_secs())))
}

/// Threads by number, each with its name and how often it was given a CPU.
type Threads = BTreeMap<u32, (String, u64)>;

/// The threads of a process.
fn switches(pid: u32) -> Result<Threads> {
    let mut threads = Threads::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        let status = fs::read_to_string(thread.join("status"))?;
        let name = fs::read_to_string(thread.join("comm"))?.trim_end().to_owned();
        let switches = field(&status, "voluntary_ctxt_switches")? + field(&status, "nonvoluntary_ctxt_switches")?;
        threads.insert(u32::try_from(field(&status, "Pid")?)?, (name, switches));
    }
    Ok(threads)
}
