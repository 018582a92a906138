//! Traffic through a lab's node: from a pod, translated by the node, to the external host, by one thread on one CPU that
//! sees each flow and datagram arrive.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::ops::AddAssign;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{CpuSet, sched_setaffinity};
use snat_trace::counters::netns::in_netns;
use snat_trace::lab::{Lab, Mode, Scenario, Setup};

use super::figure::Traffic;
use crate::node::command;
use crate::storm::due;

/// The CPU of whoever sends. Whoever watches is not told where to run.
const CPU: usize = 0;
/// The external host has all of it.
const SINKS: &str = "10.98.0.0/16";
/// Its own address.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
/// The port of every destination.
const PORT: u16 = 7000;
/// Source ports of flows. When all have been used toward one address the next has its turn.
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..60_000;
/// Datagrams sent before they are received.
const BATCH: u64 = 32;
/// Threads that wait while one sends, fewer than so many.
const BESIDES: u8 = 20;
/// How long anything may take to arrive. Everything has before it is looked for, as the same CPU carries it there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Entries the node may have, and buckets of their table: no window comes near.
const ENTRIES: u32 = 1 << 20;
const BUCKETS: u32 = 1 << 18;

/// A lab of which only the way from its first pod is used.
#[derive(Debug)]
pub(super) struct Generator {
    lab: Lab,
    sink: UdpSocket,
    listener: TcpListener,
    /// How many flows there have been.
    flows: u32,
}

/// How much to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Amount {
    /// As much as goes in this time.
    For(Duration),
    /// So many, and at most a batch more.
    Units(u64),
    /// So many a second, or as many as go, for this time.
    Paced(f64, Duration),
}

/// What was sent and has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sent {
    /// Flows, or datagrams.
    pub(super) units: u64,
    /// In which time.
    pub(super) time: Duration,
    /// The same without what was waited for the pace.
    pub(super) busy: Duration,
}

impl AddAssign for Sent {
    fn add_assign(&mut self, more: Self) {
        self.units += more.units;
        self.time += more.time;
        self.busy += more.busy;
    }
}

impl Sent {
    /// How many a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a few million")]
    pub(super) fn per_second(self) -> f64 {
        self.units as f64 / self.time.as_secs_f64()
    }
}

impl Generator {
    /// Builds it, and makes room in the node's table.
    ///
    /// # Errors
    ///
    /// The lab cannot be built, or the machine does not let its settings be changed.
    pub(super) fn new() -> Result<Self> {
        fs::write("/sys/module/nf_conntrack/parameters/hashsize", BUCKETS.to_string())?;
        fs::write("/proc/sys/net/netfilter/nf_conntrack_max", ENTRIES.to_string())?;
        let lab = Lab::build(&Setup { mode: Mode::Natural, ..Setup::new(Scenario::SnatUdp) })?;
        let (sink, listener) = in_netns(lab.external_netns(), || -> Result<_> {
            command("ip", &["route", "add", "local", SINKS, "dev", "lo"], "")?;
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
            Ok((UdpSocket::bind(any)?, TcpListener::bind(any)?))
        })??;
        sink.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { lab, sink, listener, flows: 0 })
    }

    /// The node's network namespace.
    #[must_use]
    pub(super) fn node(&self) -> BorrowedFd<'_> {
        self.lab.node_netns()
    }

    /// Removes all entries from the node's table.
    ///
    /// # Errors
    ///
    /// It cannot be done.
    pub(super) fn flush(&self) -> Result<()> {
        in_netns(self.node(), || command("conntrack", &["-F"], "").map(drop))?
    }

    /// Sends, and sees all of it arrive.
    ///
    /// # Errors
    ///
    /// Something does not.
    pub(super) fn run(&mut self, traffic: Traffic, amount: Amount) -> Result<Sent> {
        self.run_after(|| Ok(()), traffic, amount).map(|((), sent)| sent)
    }

    /// The same, after something that is done when a flow that is to be there is there.
    ///
    /// # Errors
    ///
    /// That fails, or as before.
    pub(super) fn run_after<T: Send>(
        &mut self,
        first: impl FnOnce() -> Result<T> + Send,
        traffic: Traffic,
        amount: Amount,
    ) -> Result<(T, Sent)> {
        let Self { lab, sink, listener, flows } = self;
        let pod = lab.pod_netns(0).context("the lab has a pod")?;
        let send = || {
            let mut cpu = CpuSet::new();
            cpu.set(CPU);
            sched_setaffinity(None, &cpu)?;
            let mut some: Box<dyn FnMut() -> Result<u64>> = match traffic {
                Traffic::UdpFlows => Box::new(|| udp_flow(sink, next(flows)).map(|()| 1)),
                Traffic::TcpFlows => Box::new(|| tcp_flow(listener, next(flows)).map(|()| 1)),
                Traffic::UdpDatagrams => {
                    let socket = established(sink, next(flows))?;
                    Box::new(move || datagrams(&socket, sink).map(|()| BATCH))
                }
            };
            let done = first()?;
            let sent = amount.of(&mut some)?;
            Ok((done, sent))
        };
        elsewhere(|| in_netns(pod, send))??
    }
}

/// Does it while a random number of threads wait, so that the next thread's stack in the kernel stands somewhere else each time.
///
/// It would stand where the last one's stood until somebody starts or ends a process, as tools do. An emulator is slower there by
/// up to a seventh than elsewhere, presumably as pages share places in its table of them.
fn elsewhere<T>(work: impl FnOnce() -> T) -> Result<T> {
    let mut number = [0];
    getrandom(&mut number, GetRandomFlags::empty())?;
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        for _ in 0..number[0] % BESIDES {
            thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()))?;
        }
        let done = work();
        drop(closed);
        Ok(done)
    })
}

impl Amount {
    /// Does that much. `some` says how much it has done.
    fn of(self, mut some: impl FnMut() -> Result<u64>) -> Result<Sent> {
        let mut units = 0;
        let start = Instant::now();
        let mut waited = self.wait(units, start);
        while self.is_not_done(units, start) {
            units += some()?;
            waited += self.wait(units, start);
        }
        let time = start.elapsed();
        Ok(Sent { units, time, busy: time.saturating_sub(waited) })
    }

    /// Waits for the next one's time, if they have one, and says how long that took.
    fn wait(self, units: u64, start: Instant) -> Duration {
        let Self::Paced(per_second, time) = self else { return Duration::ZERO };
        let begun = Instant::now();
        // The pace is the point here, not a time to wait for anything.
        thread::sleep(due(units, per_second).min(time).saturating_sub(start.elapsed()));
        begun.elapsed()
    }

    fn is_not_done(self, units: u64, start: Instant) -> bool {
        match self {
            Self::For(time) | Self::Paced(_, time) => start.elapsed() < time,
            Self::Units(wanted) => units < wanted,
        }
    }
}

/// A flow's ends.
#[derive(Clone, Copy, Debug)]
struct Flow {
    port: u16,
    to: SocketAddrV4,
    number: u32,
}

/// The next flow, which has a source port or a destination that those of the last minutes had not.
fn next(flows: &mut u32) -> Flow {
    let number = *flows;
    *flows = flows.wrapping_add(1);
    let ports = u32::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
    let port = SOURCE_PORTS.start + u16::try_from(number % ports).unwrap_or(0);
    // Neither the first address of the network nor, before 2^31 flows, the last.
    let [_, _, high, low] = (number / ports + 1).to_be_bytes();
    Flow { port, to: SocketAddrV4::new(Ipv4Addr::new(10, 98, high, low), PORT), number }
}

fn bound(flow: Flow) -> Result<UdpSocket> {
    let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, flow.port);
    UdpSocket::bind(source).with_context(|| format!("cannot bind to {source}"))
}

fn udp_flow(sink: &UdpSocket, flow: Flow) -> Result<()> {
    let socket = bound(flow)?;
    let number = flow.number.to_be_bytes();
    socket.send_to(&number, flow.to)?;
    let mut arrived = [0; 4];
    let length = sink.recv(&mut arrived).map_err(lost).with_context(|| format!("{flow:?}"))?;
    ensure!(length == arrived.len() && arrived == number, "{arrived:?} has arrived in place of {flow:?}");
    Ok(())
}

fn tcp_flow(listener: &TcpListener, flow: Flow) -> Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, flow.port))?;
    connect(&socket, &flow.to).with_context(|| format!("{flow:?}"))?;
    let (_accepted, peer) = listener.accept()?;
    ensure!(peer.port() == flow.port, "{peer} has arrived in place of {flow:?}");
    // Closed by a reset, so that nothing waits for late packets.
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(())
}

/// The socket of a flow that has had answers. It goes to the host's own address, from which that answers.
fn established(sink: &UdpSocket, flow: Flow) -> Result<UdpSocket> {
    let socket = bound(flow)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(SocketAddrV4::new(HOST, PORT))?;
    for _ in 0..2 {
        socket.send(&[])?;
        let (_, from) = sink.recv_from(&mut []).map_err(lost)?;
        sink.send_to(&[], from)?;
        socket.recv(&mut []).map_err(lost)?;
    }
    Ok(socket)
}

/// A batch of them.
fn datagrams(socket: &UdpSocket, sink: &UdpSocket) -> Result<()> {
    for number in 0..BATCH {
        socket.send(&number.to_be_bytes())?;
    }
    for number in 0..BATCH {
        let mut arrived = [0; 8];
        sink.recv(&mut arrived).map_err(lost)?;
        ensure!(arrived == number.to_be_bytes(), "{arrived:?} has arrived in place of datagram {number}");
    }
    Ok(())
}

/// What it means that nothing came.
fn lost(error: std::io::Error) -> anyhow::Error {
    let waited = error.kind() == ErrorKind::WouldBlock;
    let error = anyhow::Error::new(error);
    if waited { error.context("a packet was lost") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_differ_and_stay_where_they_arrive() {
        let mut flows = 0;
        let first: Vec<Flow> = (0..60_000).map(|_| next(&mut flows)).collect();
        assert!(first.iter().all(|flow| SOURCE_PORTS.contains(&flow.port)));
        let ends: std::collections::HashSet<_> = first.iter().map(|flow| (flow.port, flow.to)).collect();
        assert_eq!(ends.len(), first.len());
        assert_eq!(*first[0].to.ip(), Ipv4Addr::new(10, 98, 0, 1));
        assert_eq!(*first[50_000].to.ip(), Ipv4Addr::new(10, 98, 0, 2));
    }

    #[test]
    fn an_amount_is_done_when_it_is() {
        assert_eq!(Amount::Units(70).of(|| Ok(32)).unwrap().units, 96);
        let time = Duration::from_millis(20);
        assert!(Amount::For(time).of(|| Ok(1)).unwrap().time >= time);
        // Never faster than told, however slow this machine is, and waiting is no work.
        let paced = Amount::Paced(1000.0, time).of(|| Ok(1)).unwrap();
        assert!(paced.units <= 21 && paced.busy < paced.time / 2, "{paced:?}");
    }
}
