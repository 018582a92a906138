//! A pod: a process of its own in a namespace and cgroup of its own, sending when it is told to.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recvfrom, send};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

use super::addresses::{Family, PLAIN_TTL};
use super::barrier::Barrier;
use super::error::{Doing, LabError};
use super::once::{Once, in_own_process};
use super::ring::{Ring, with_poller};
use super::transport::{First, Transport, tcp, tcp::Up};
use super::twin::Twin;
use super::wire::{Order, PROBE, Report, Stamp, hear, tell};
use super::{KEPT_ROUNDS, MAX_PODS};

/// For how long a pod keeps a socket open at least.
const KEPT_TIME: Duration = Duration::from_secs(5);
/// At most so many, within the hard limit of open files that kernels give by default (4096).
const KEPT_SOCKETS: usize = 3000;

/// Source port of pod 0's probes, below every test port.
const PROBE_PORT: u16 = 9000;
/// The first port that flows besides those of the rounds go to.
const NOBODYS_PORT: u16 = 40_000;

/// What a pod is told at its start, as arguments; its standard input is the control socket, its standard output the
/// barrier's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PodArguments {
    pub(super) pod: usize,
    pub(super) transport: Transport,
    pub(super) role: Role,
    /// Its address.
    pub(super) source: IpAddr,
    /// Where probes go to.
    pub(super) listener: SocketAddr,
    /// Where test traffic goes to.
    pub(super) destination: SocketAddr,
    /// Time to live of its first packets.
    pub(super) ttl: u8,
    /// The CPU to send from; any when `None`.
    pub(super) cpu: Option<usize>,
    /// The lab's process id as the pod sees it, 0 where it cannot.
    pub(super) lab: u32,
}

/// What a pod does besides sending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Nothing.
    Plain,
    /// Sends each round's packet a second time, from a thread on this CPU.
    Twins { cpu: Option<usize> },
    /// Sends to the port it sends from, and hears what comes back.
    Crossed,
    /// Marks what the kernel sends again as the packet of a second pod.
    Repeats,
    /// Marks what the kernel sends again as it marks the first packet.
    Persistent,
    /// Has each packet sent by a process that ends with it.
    ShortLived,
    /// Has each packet sent by a thread of the kernel.
    Ring,
}

impl Role {
    fn to_word(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Twins { cpu } => format!("twins-{}", cpu_word(cpu)),
            Self::Crossed => "crossed".to_owned(),
            Self::Repeats => "repeats".to_owned(),
            Self::Persistent => "persistent".to_owned(),
            Self::ShortLived => "short-lived".to_owned(),
            Self::Ring => "ring".to_owned(),
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        match word {
            "plain" => Some(Self::Plain),
            "crossed" => Some(Self::Crossed),
            "repeats" => Some(Self::Repeats),
            "persistent" => Some(Self::Persistent),
            "short-lived" => Some(Self::ShortLived),
            "ring" => Some(Self::Ring),
            word => Some(Self::Twins { cpu: cpu_from_word(word.strip_prefix("twins-")?)? }),
        }
    }
}

fn cpu_word(cpu: Option<usize>) -> String {
    cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string())
}

fn cpu_from_word(word: &str) -> Option<Option<usize>> {
    if word == "any" { Some(None) } else { word.parse().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU).map(Some) }
}

/// Pins the calling thread to a CPU.
pub(super) fn pin(cpu: usize) -> Result<(), LabError> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).doing("pin a pod's sender to its CPU")
}

impl PodArguments {
    /// As words of a command line.
    pub(super) fn to_words(self) -> [String; 9] {
        [
            self.pod.to_string(),
            self.transport.name().to_owned(),
            self.role.to_word(),
            self.source.to_string(),
            self.listener.to_string(),
            self.destination.to_string(),
            self.ttl.to_string(),
            cpu_word(self.cpu),
            self.lab.to_string(),
        ]
    }

    fn from_words(words: &[String]) -> Option<Self> {
        let [pod, transport, role, source, listener, destination, ttl, cpu, lab] = words else { return None };
        Some(Self {
            pod: pod.parse().ok().filter(|pod| *pod < MAX_PODS)?,
            transport: Transport::from_name(transport)?,
            role: Role::from_word(role)?,
            source: source.parse().ok()?,
            listener: listener.parse().ok()?,
            destination: destination.parse().ok()?,
            ttl: ttl.parse().ok()?,
            cpu: cpu_from_word(cpu)?,
            lab: lab.parse().ok()?,
        })
    }
}

/// The hidden subcommand `lab-pod`; `words` is what follows it. Returns when the lab closes the control socket.
///
/// # Errors
/// When it was not started by a lab, or a system call fails.
pub fn pod_main(words: &[String]) -> Result<(), LabError> {
    let arguments = PodArguments::from_words(words)
        .ok_or_else(|| LabError::Setup("lab-pod is started by `snat-trace lab` and by nothing else".to_owned()))?;
    set_parent_process_death_signal(Some(Signal::KILL)).doing("tie a pod to the lab's life")?;
    // The lab may have died before the line above.
    if getppid().map_or(0, Pid::as_raw_pid).cast_unsigned() != arguments.lab {
        return Err(LabError::Stopped);
    }
    super::raise_file_limit();
    // Started as /proc/self/exe, its name would be "exe".
    let name = format!("pod-{}", arguments.pod);
    let c_name = CString::new(name.clone()).map_err(io::Error::other).doing("name a pod")?;
    rustix::thread::set_name(&c_name).doing("name a pod")?;
    // On a thread of its own, so that the thread id of a send is not the process id.
    let sender = thread::Builder::new().name(name).spawn(move || Sender::new(arguments)?.serve());
    sender.doing("start a pod's sender")?.join().map_err(|_| LabError::Ended("sender"))?
}

/// A socket that stays open, so that a look-up after the clash still finds it.
#[derive(Debug)]
struct Open {
    round: u32,
    socket: OwnedFd,
    since: Instant,
}

#[derive(Debug)]
struct Sender {
    arguments: PodArguments,
    control: OwnedFd,
    barrier: Barrier,
    probe: UdpSocket,
    twin: Option<Twin>,
    /// And the thread that sends by it, where it is one of this process's.
    ring: Option<(Ring, Option<u32>)>,
    /// TCP sockets that are not connected yet.
    connecting: Vec<Open>,
    open: VecDeque<Open>,
}

impl Sender {
    fn new(arguments: PodArguments) -> Result<Self, LabError> {
        if let Some(cpu) = arguments.cpu {
            pin(cpu)?;
        }
        let duplicate = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let port = PROBE_PORT + u16::try_from(arguments.pod).unwrap_or(0);
        let twin = match arguments.role {
            Role::Twins { cpu } => Some(Twin::start(format!("pod-{}", arguments.pod), cpu, io::stdout().as_fd())?),
            _ => None,
        };
        let ring =
            (arguments.role == Role::Ring).then(with_poller).transpose().doing("have a thread of the kernel send")?;
        Ok(Self {
            arguments,
            twin,
            ring,
            control: duplicate(io::stdin().as_fd()).doing("use a pod's control socket")?,
            barrier: Barrier::map(io::stdout().as_fd()).doing("map a pod's barrier")?,
            probe: UdpSocket::bind((arguments.source, port)).doing("open a pod's probe socket")?,
            connecting: Vec::new(),
            open: VecDeque::new(),
        })
    }

    fn serve(mut self) -> Result<(), LabError> {
        let tid = match self.ring {
            Some((_, poller)) => poller,
            None => Some(gettid().as_raw_pid().cast_unsigned()),
        };
        // No thread here has the number 0.
        let tid = tid.unwrap_or(0);
        self.report(Report::Ready { tid, twin: self.twin.as_ref().map_or(0, Twin::tid) })?;
        loop {
            if self.wait()? {
                match hear(&self.control).doing("read a pod's orders")? {
                    None => return Ok(()),
                    Some(Order::Probe) => self.send_probe(),
                    Some(Order::Round { round, port, barrier, background }) => {
                        self.close_old(round);
                        let sent = self.send_background(background);
                        let sent = sent.and_then(|()| self.send_first(round, port, barrier));
                        let (errno, sender) = match sent {
                            Ok(once) => once.map_or((0, 0), |once| (once.errno, once.pid)),
                            Err(error) => (error.raw_os_error().unwrap_or(-1), 0),
                        };
                        self.report(Report::Sent { round, errno: errno.cast_unsigned(), sender })?;
                    }
                }
            }
            self.finish_connects()?;
            self.hear_other()?;
        }
    }

    fn report(&self, report: Report) -> Result<(), LabError> {
        tell(&self.control, report).doing("report from a pod")
    }

    /// Waits for an order or for any connect to end; whether there is an order (or the lab is gone).
    fn wait(&self) -> Result<bool, LabError> {
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
        fds.extend(self.connecting.iter().map(|open| PollFd::new(&open.socket, PollFlags::OUT)));
        if self.arguments.role == Role::Crossed {
            fds.extend(self.open.back().map(|open| PollFd::new(&open.socket, PollFlags::IN)));
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).doing("wait for a pod's orders")?;
        Ok(!fds[0].revents().is_empty())
    }

    /// The way may not be open yet; the lab asks again until a probe arrives.
    fn send_probe(&self) {
        let _unanswered = self.probe.send_to(&self.stamp(PROBE).encode(), self.arguments.listener);
    }

    fn stamp(&self, round: u32) -> Stamp {
        Stamp { round, pod: u32::try_from(self.arguments.pod).unwrap_or(u32::MAX) }
    }

    /// Sends datagrams to where nobody is, each of a flow of its own.
    fn send_background(&self, flows: u32) -> io::Result<()> {
        let family = if self.arguments.source.is_ipv4() { Family::V4 } else { Family::V6 };
        (NOBODYS_PORT..)
            .zip(0..flows)
            .try_for_each(|(port, _)| self.probe.send_to(&[], (family.nobody(), port)).map(drop))
    }

    /// Sends a round's packet; by a process of its own, where there is one.
    fn send_first(&mut self, round: u32, port: u16, barrier: u32) -> io::Result<Option<Once>> {
        let PodArguments { transport, role, source, mut destination, ttl, .. } = self.arguments;
        let source = SocketAddr::new(source, port);
        if role == Role::Crossed {
            destination.set_port(port);
        }
        let open = role == Role::Crossed;
        let ttl_again = match role {
            Role::Repeats => ttl + 1,
            Role::Persistent => ttl,
            _ => PLAIN_TTL,
        };
        let first = First { source, destination, ttl, ttl_again, open, stamp: self.stamp(round) };
        if role == Role::ShortLived && !transport.retransmits() {
            // Its socket is its own, and ends with it. The other pods wait for it even after an error.
            let once = in_own_process(|| {
                let socket = transport.prepare(&first);
                self.barrier.arrive(barrier);
                transport.send(&socket?, &first)
            })?;
            return Ok(Some(once));
        }
        let mut prepared = transport.prepare(&first);
        if let Some(twin) = &self.twin {
            // Nobody but the twin waits for this one.
            let socket = prepared?;
            let second = First { stamp: Stamp { pod: first.stamp.pod + 1, ..first.stamp }, ..first };
            twin.order(socket.try_clone()?, transport, second, barrier)?;
            prepared = Ok(socket);
        }
        if let (Role::ShortLived, Ok(socket)) = (role, &prepared) {
            let once = in_own_process(|| {
                self.barrier.arrive(barrier);
                transport.send(socket, &first)
            })?;
            // What is sent again must come up yet.
            self.keep(round, prepared?);
            return Ok(Some(once));
        }
        // Also after an error: the other pods wait for this one.
        self.barrier.arrive(barrier);
        let socket = prepared?;
        let sent = match &mut self.ring {
            Some((ring, _)) => ring.send(socket.as_fd(), &first.stamp.encode()),
            None => transport.send(&socket, &first),
        };
        self.twin.as_ref().map_or(Ok(()), Twin::sent)?;
        // Whatever became of the packet: whoever looks for its sender finds the socket.
        self.keep(round, socket);
        sent.map(|()| None)
    }

    fn keep(&mut self, round: u32, socket: OwnedFd) {
        let open = Open { round, socket, since: Instant::now() };
        if self.arguments.transport.retransmits() {
            self.connecting.push(open);
        } else {
            self.open.push_back(open);
        }
    }

    /// Reports every connect that has ended.
    fn finish_connects(&mut self) -> Result<(), LabError> {
        let mut still = Vec::with_capacity(self.connecting.len());
        for open in std::mem::take(&mut self.connecting) {
            let round = open.round;
            match tcp::connected(&open.socket).doing("look at a connect")? {
                None => still.push(open),
                Some(Ok(Up { retransmits, received })) => {
                    if self.arguments.role != Role::Crossed {
                        let hello = self.stamp(round).encode();
                        send(&open.socket, &hello, SendFlags::NOSIGNAL).doing("send a pod's hello")?;
                    } else if received > 1 {
                        // The other end's SYN before what made it a connection; else that came as the answer, and alone.
                        let port = tcp::peer(&open.socket).doing("read who a connection is with")?.port();
                        self.report(Report::Heard { round, port })?;
                    }
                    self.report(Report::Connected { round, retransmits })?;
                    self.open.push_back(open);
                }
                Some(Err(error)) => {
                    self.report(Report::Refused { round, errno: error.raw_os_error().cast_unsigned() })?;
                }
            }
        }
        self.connecting = still;
        Ok(())
    }

    /// Reports the other pod's packet of this round, once it has come.
    fn hear_other(&mut self) -> Result<(), LabError> {
        let Some(open) = self.open.back().filter(|_| self.arguments.role == Role::Crossed) else { return Ok(()) };
        let mut bytes = [0; Stamp::LENGTH];
        let heard = recvfrom(&open.socket, bytes.as_mut_slice(), RecvFlags::DONTWAIT);
        let Ok((_, _, Some(source))) = heard else { return Ok(()) };
        let source = SocketAddr::try_from(source).map_err(io::Error::from).doing("read who sent a packet")?;
        self.report(Report::Heard { round: open.round, port: source.port() })
    }

    /// A socket that connected late may stand behind younger ones and live a little longer.
    fn close_old(&mut self, round: u32) {
        let old = |open: &Open| open.round + KEPT_ROUNDS < round && open.since.elapsed() > KEPT_TIME;
        while self.open.len() > KEPT_SOCKETS || self.open.front().is_some_and(old) {
            self.open.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_command_line() {
        for (cpu, role, family) in [
            (None, Role::Plain, Family::V4),
            (Some(1), Role::Twins { cpu: Some(3) }, Family::V6),
            (None, Role::Twins { cpu: None }, Family::V4),
            (None, Role::Crossed, Family::V4),
            (None, Role::ShortLived, Family::V4),
            (None, Role::Repeats, Family::V4),
            (None, Role::Persistent, Family::V4),
            (None, Role::Ring, Family::V4),
        ] {
            let arguments = PodArguments {
                pod: 7,
                transport: Transport::Tcp,
                role,
                source: family.pod(7),
                listener: SocketAddr::new(family.node(), 20_000),
                destination: SocketAddr::new(family.portless(4711), 0),
                ttl: 208,
                cpu,
                lab: 4711,
            };
            assert_eq!(PodArguments::from_words(&arguments.to_words()), Some(arguments));
        }
    }

    #[test]
    fn a_command_line_of_others_is_refused() {
        let good = "0 udp plain 10.99.0.10 10.99.1.2:20000 10.99.1.2:20000 200 any 1";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(PodArguments::from_words(&words(good)).is_some());
        for (from, to) in [("0 udp", "8 udp"), ("udp", "x"), (" any", ""), ("10.99.0.10", "here"), (" 200 ", " 256 ")] {
            let bad = words(&good.replacen(from, to, 1));
            assert!(matches!(pod_main(&bad), Err(LabError::Setup(_))), "{bad:?}");
        }
        assert!(matches!(pod_main(&[]), Err(LabError::Setup(_))));
    }
}
