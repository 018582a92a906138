//! What became of every clash, where the tuples do not tell: two threads send two packets of one flow at once, and a rule
//! translates each to either of two backends. Held against the kernel's counters and, for UDP, where the packets arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::node::Node;
use crate::output::{Lines, verdicts_are_the_kernels};
use crate::places::{until, watching};
use crate::scenario::{Numbers, Row, Scenario, brief};

/// On every kernel: which clashes are resolved differs.
pub const SCENARIOS: &[Scenario] =
    &[brief("verdicts, udp", udp), brief("verdicts, icmp", icmp), brief("verdicts, tcp", tcp)];

/// Toward which everything is sent, and to which it is translated.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)];
const PORT: u16 = 53;

const RULES: &str = "table ip verdicts {
    chain out {
        type nat hook output priority -100;
        ip daddr 10.77.0.1 dnat to numgen random mod 2 map { 0 : 10.77.0.2, 1 : 10.77.0.3 }
    }
}";

/// Rounds between two looks at the counters: few enough that the backends' sockets hold their datagrams.
const BATCH: u16 = 64;
/// Enough clashes to have had every kind.
const ENOUGH: u64 = 40;
/// First port, or id.
const FIRST: u16 = 2000;

/// Two datagrams of one UDP socket. Translated alike they are merged, else the loser goes in for replies only: which of
/// both it was, the backends know.
///
/// # Errors
///
/// A verdict is missing, or not what was counted or received.
fn udp() -> Result<Row> {
    run(&Kind::Udp)
}

/// Two echo requests of one id: merged by kernels that allow it for ICMP, else dropped.
///
/// # Errors
///
/// As [`udp`].
fn icmp() -> Result<Row> {
    run(&Kind::Raw { protocol: 1, header: echo })
}

/// Two SYNs from one port: never resolved.
///
/// # Errors
///
/// As [`udp`], and when one is resolved.
fn tcp() -> Result<Row> {
    run(&Kind::Raw { protocol: 6, header: syn })
}

/// What is sent.
enum Kind {
    Udp,
    /// Through a raw socket: so many bytes behind the IP header.
    Raw {
        protocol: u8,
        header: fn(u16) -> Vec<u8>,
    },
}

/// ICMP echo request with `id` (RFC 792), its checksum right.
fn echo(id: u16) -> Vec<u8> {
    let sum = u32::from(0x0800_u16) + u32::from(id);
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded & 0xffff).unwrap_or(0);
    [&[8, 0], &checksum.to_be_bytes()[..], &id.to_be_bytes(), &[0, 0]].concat()
}

/// TCP SYN from `port` (RFC 9293), its checksum wrong: nobody needs to answer.
fn syn(port: u16) -> Vec<u8> {
    let sequence_and_acknowledgement = [0; 8];
    let (five_words, only_syn, window, checksum_and_urgent) = (0x50, 0x02, [0x10, 0], [0; 4]);
    [
        &port.to_be_bytes()[..],
        &PORT.to_be_bytes(),
        &sequence_and_acknowledgement,
        &[five_words, only_syn],
        &window,
        &checksum_and_urgent,
    ]
    .concat()
}

/// An IPv4 packet; source, checksum and length are the kernel's to fill in (raw(7)).
fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0], &SERVICE.octets()[..], payload].concat()
}

fn run(kind: &Kind) -> Result<Row> {
    let addresses = [SERVICE, BACKENDS[0], BACKENDS[1]].map(|address| format!("{address}/32"));
    let node = Node::new("verdicts", &addresses.each_ref().map(String::as_str), RULES)?;
    let before = node.counters()?;
    // Where a clash could be taken for another failure: every packet of TCP that loses is dropped.
    let arguments: &[&str] = if matches!(kind, Kind::Raw { protocol: 6, .. }) { &["--failures"] } else { &[] };
    let watch = watching(arguments, Path::new("/tmp/ready-verdicts"))?;
    let counted = |column| Ok::<_, anyhow::Error>(node.counters()?.get(column) - before.get(column));

    let mut arrivals = Arrivals::new();
    let backends = node.inside(|| {
        let bind = |address| {
            let backend = UdpSocket::bind((address, PORT))?;
            backend.set_nonblocking(true)?;
            Ok(backend)
        };
        BACKENDS.into_iter().map(bind).collect::<Result<Vec<_>>>()
    })?;
    let mut next = FIRST;
    while counted("clashres")? + counted("insert_failed")? < ENOUGH {
        ensure!(next < u16::MAX - BATCH, "too few clashes in {next} rounds");
        let lost_before = counted("insert_failed")?;
        node.inside(|| send(kind, next..next + BATCH))?;
        if matches!(kind, Kind::Udp) {
            let lost = counted("insert_failed")? - lost_before;
            receive(&backends, 2 * u64::from(BATCH) - lost, &mut arrivals)?;
        }
        next += BATCH;
    }

    let (resolved, dropped) = (counted("clashres")?, counted("insert_failed")?);
    let lines = Lines::parse(&watch.interrupt()?)?;
    let mut verdicts = BTreeMap::<&str, u64>::new();
    for race in lines.all("race") {
        let verdict = race["verdict"].as_str().with_context(|| format!("no verdict: {race}"))?;
        *verdicts.entry(verdict).or_default() += 1;
        ensure!(race["class"] == "duplicate-flow" && race["netns"] == node.inum()?, "{race}");
        if matches!(kind, Kind::Udp) {
            judge(race, verdict, &arrivals)?;
        }
    }
    let of = |verdict| verdicts.get(verdict).copied().unwrap_or(0);
    ensure!(of("dropped") == dropped, "{verdicts:?}, and {dropped} were counted as failed");
    ensure!(of("resolved") + of("resolved-reply-only") == resolved, "{verdicts:?}, and {resolved} were resolved");
    match kind {
        Kind::Udp => ensure!(of("resolved") > 0 && of("resolved-reply-only") > 0, "not both ways: {verdicts:?}"),
        Kind::Raw { protocol: 6, .. } => ensure!(resolved == 0, "TCP is never resolved: {verdicts:?}"),
        Kind::Raw { .. } => {}
    }
    let summary = lines.only("summary")?;
    ensure!(summary["closes"] == true && summary["races"]["undecided"] == 0, "{summary}");
    verdicts_are_the_kernels(summary)?;
    ensure!(lines.all("insert-failure").next().is_none(), "a clash is told as another failure: {summary}");
    let outcomes: Vec<_> = verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let numbers = Numbers {
        expected: Some(resolved + dropped),
        seen: Some(lines.races()),
        pids_right: Some(lines.sent_by_us()?),
        unexplained: Some(0),
        lost: Some(lines.lost_in_all()?),
        ..Numbers::default()
    };
    Ok(Row { text: outcomes.join(", "), numbers })
}

/// By source port, the backends that received its datagrams.
type Arrivals = BTreeMap<u16, BTreeSet<usize>>;

/// Has two threads send one packet of each flow at once, on a CPU each. In the namespace of the calling thread.
fn send(kind: &Kind, flows: std::ops::Range<u16>) -> Result<()> {
    let raw: OwnedFd = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    let socket_of = |port| match kind {
        Kind::Udp => Ok(Some(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?)),
        Kind::Raw { .. } => Ok(None),
    };
    let sockets = flows.clone().map(socket_of).collect::<Result<Vec<_>>>()?;
    let arrived = AtomicU64::new(0);
    let one = |cpu: usize| -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        sched_setaffinity(None, &cpus)?;
        for ((flow, udp), round) in flows.clone().zip(&sockets).zip(1..) {
            let bytes = match kind {
                Kind::Udp => Vec::new(),
                Kind::Raw { protocol, header } => packet(*protocol, &header(flow)),
            };
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * round {
                std::hint::spin_loop();
            }
            match udp {
                // A dropped packet of this host is an error of its sender (EPERM).
                Some(udp) => drop(udp.send_to(b"x", (SERVICE, PORT))),
                None => drop(sendto(raw.as_fd(), &bytes, SendFlags::empty(), &SocketAddrV4::new(SERVICE, 0))),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let senders = [0, 1].map(|cpu| scope.spawn(move || one(cpu)));
        senders
            .into_iter()
            .try_for_each(|sender| sender.join().map_err(|_panic| anyhow!("a sender panicked")).and_then(|sent| sent))
    })
}

/// Takes `expected` datagrams from the backends.
fn receive(backends: &[UdpSocket], expected: u64, arrivals: &mut Arrivals) -> Result<()> {
    let mut received = 0;
    until("every datagram that was not dropped", || {
        for (number, backend) in backends.iter().enumerate() {
            while let Ok((_, from)) = backend.recv_from(&mut [0; 16]) {
                received += 1;
                arrivals.entry(from.port()).or_default().insert(number);
            }
        }
        received >= expected
    })?;
    ensure!(received == expected, "{received} datagrams arrived, and {expected} were not dropped");
    Ok(())
}

/// A race that was resolved by merging has both datagrams at one backend, one for replies only has one at each.
fn judge(race: &Value, verdict: &str, arrivals: &Arrivals) -> Result<()> {
    let port = race["contested"]["sport"].as_u64().and_then(|port| u16::try_from(port).ok()).context("no port")?;
    let backends = arrivals.get(&port).map_or(0, BTreeSet::len);
    let expected = if backends == 2 { "resolved-reply-only" } else { "resolved" };
    ensure!(verdict == expected, "datagrams at {backends} backends: {race}");
    Ok(())
}
