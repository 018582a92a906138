//! Processes that send one packet and say who they are: `scenarios sender WAY SOCKET SOURCE DESTINATION`.
//!
//! What they print is the truth the tracer is compared with: pids as `/proc` of the root pid namespace has them, whatever
//! pid namespace the sender itself is in.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RawProtocol, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, listen, send, sendto,
    socket_with,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use snat_trace::lab::Ring;

use super::{churn, link, rights};

/// How often a sender of many sends.
const MANY: usize = 40;

/// The port of a service that answers nothing (RFC 863).
const DISCARD: u16 = 9;

/// Runs `scenarios sender WAY SOCKET SOURCE DESTINATION`.
///
/// # Errors
///
/// The words are not understood, or a system call fails.
pub fn main(words: &[String]) -> Result<()> {
    let [way, socket, source, destination] = words else { bail!("sender: four words, not {words:?}") };
    let flow = Flow { kind: socket.parse()?, source: source.parse()?, destination: destination.parse()? };
    match way.as_str() {
        "plain" => {
            let _open = flow.send()?;
            flow.report()?;
            hold()
        }
        // Gone before anybody can look it up.
        "exit" => {
            flow.send()?;
            flow.report()
        }
        "thread" => std::thread::spawn(move || {
            let open = flow.send()?;
            flow.report()?;
            hold()?;
            drop(open);
            Ok(())
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the sender's thread"))?,
        // The same socket from a second thread: whose packet it was is not known.
        "two-threads" => {
            let open = flow.send()?;
            std::thread::scope(|scope| scope.spawn(|| flow.send_on(open.as_fd())).join())
                .map_err(|_| anyhow::anyhow!("the sender's thread"))??;
            flow.report_thread(false)?;
            hold()
        }
        // Made here, used by a child.
        "child" => {
            let socket = flow.open()?;
            fcntl_setfd(&socket, FdFlags::empty())?;
            let mut child = again(&["inherited", &socket.as_raw_fd().to_string()], words)?.spawn()?;
            ensure!(child.wait()?.success(), "the child");
            hold()
        }
        // A process without a name of its own in the root pid namespace.
        "pid-namespace" => {
            // SAFETY: only the pid namespace of children is unshared; nothing of this process changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID)? };
            let mut child = again(&["plain"], words)?.spawn()?;
            ensure!(child.wait()?.success(), "the child");
            Ok(())
        }
        // Another program in the same process; it holds the socket.
        "exec" => {
            let socket = flow.send()?;
            fcntl_setfd(&socket, FdFlags::empty())?;
            flow.report()?;
            Err(Command::new("cat").stdout(Stdio::null()).exec().into())
        }
        // One program sends elsewhere, and the next in the same process sends this.
        "next" => {
            let elsewhere = SocketAddr::new(flow.destination.ip(), DISCARD);
            drop(Flow { destination: elsewhere, ..flow }.send()?);
            Err(again(&["plain"], words)?.exec().into())
        }
        // Made here, handed to another, who sends; here it is closed, or kept.
        "handed" | "shared" => {
            let socket = flow.open()?;
            let (ours, theirs) = UnixStream::pair()?;
            fcntl_setfd(&theirs, FdFlags::empty())?;
            let mut child = again(&["handed", &theirs.as_raw_fd().to_string()], words)?.spawn()?;
            drop(theirs);
            rights::hand(&ours, socket.as_fd())?;
            let _kept = (way == "shared").then_some(socket);
            ensure!(child.wait()?.success(), "who took it");
            hold()
        }
        "uring" => {
            let socket = flow.open()?;
            Ring::new()?.send(socket.as_fd(), b"ring")?;
            flow.report_thread(false)?;
            hold()
        }
        "churn" => churn::send(flow.source, flow.destination),
        "many" => {
            let socket = flow.open()?;
            for _ in 0..MANY {
                flow.send_on(socket.as_fd())?;
            }
            flow.report()?;
            hold()
        }
        _ => bail!("sender: {way:?} is no way to send"),
    }
}

/// A child's part: `scenarios inherited FD SOCKET SOURCE DESTINATION`.
///
/// # Errors
///
/// The words are not understood, or a system call fails.
pub fn inherited(words: &[String]) -> Result<()> {
    let [number, socket, source, destination] = words else { bail!("inherited: four words, not {words:?}") };
    let flow = Flow { kind: socket.parse()?, source: source.parse()?, destination: destination.parse()? };
    // SAFETY: the parent left this descriptor open for us, and nothing else here knows of it.
    let socket = unsafe { OwnedFd::from_raw_fd(number.parse()?) };
    flow.send_on(socket.as_fd())?;
    flow.report()
}

/// The part of one who is handed a socket: `scenarios handed FD SOCKET SOURCE DESTINATION`.
///
/// # Errors
///
/// The words are not understood, or a system call fails.
pub fn handed(words: &[String]) -> Result<()> {
    let [number, socket, source, destination] = words else { bail!("handed: four words, not {words:?}") };
    let flow = Flow { kind: socket.parse()?, source: source.parse()?, destination: destination.parse()? };
    // SAFETY: who started us left this descriptor open for us, and nothing else here knows of it.
    let from = unsafe { OwnedFd::from_raw_fd(number.parse()?) };
    let socket = rights::take(&from)?;
    drop(from);
    flow.send_on(socket.as_fd())?;
    flow.report()?;
    hold()
}

/// This program again, with other first words.
fn again(first: &[&str], words: &[String]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    match first {
        [part, number] => command.args([part, number]),
        first => command.arg("sender").args(first),
    };
    command.args(words.get(1..).context("a flow")?);
    Ok(command)
}

/// Until standard input ends.
fn hold() -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Udp,
    /// Not connected: it could send to anybody.
    UdpOpen,
    Tcp,
    /// Connected when it has sent, so that it can open more connections.
    Mptcp,
    /// Accepts them.
    MptcpServer,
    /// The first data goes in the SYN.
    TcpFastOpen,
    /// A ping socket.
    Ping,
    /// A raw socket of ICMP.
    Icmp,
    /// A raw socket of UDP, whose header is made here.
    RawUdp,
    /// A raw socket of TCP: a SYN made here.
    RawTcp,
    /// A raw socket with an IP header made here.
    RawHeader,
    /// A packet socket, with all headers made here but that of the link.
    Packet,
}

impl std::str::FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "udp" => Self::Udp,
            "udp-open" => Self::UdpOpen,
            "tcp" => Self::Tcp,
            "mptcp" => Self::Mptcp,
            "mptcp-server" => Self::MptcpServer,
            "tcp-fast-open" => Self::TcpFastOpen,
            "ping" => Self::Ping,
            "icmp" => Self::Icmp,
            "raw-udp" => Self::RawUdp,
            "raw-tcp" => Self::RawTcp,
            "raw-header" => Self::RawHeader,
            "packet" => Self::Packet,
            _ => bail!("{word:?} is no kind of socket"),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    kind: Kind,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Flow {
    /// A socket that has sent.
    fn send(self) -> Result<OwnedFd> {
        let socket = self.open()?;
        self.send_on(socket.as_fd())?;
        Ok(socket)
    }

    /// A socket that is bound, and connected where that sends nothing.
    fn open(self) -> Result<OwnedFd> {
        if self.kind == Kind::Packet {
            return link::open();
        }
        let family = if self.source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let icmp = if self.source.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let raw = |protocol| (SocketType::RAW, Some(protocol));
        let (kind, protocol) = match self.kind {
            Kind::Udp | Kind::UdpOpen => (SocketType::DGRAM, None),
            Kind::Tcp | Kind::TcpFastOpen => (SocketType::STREAM, None),
            Kind::Mptcp | Kind::MptcpServer => (SocketType::STREAM, Some(ipproto::MPTCP)),
            Kind::Ping => (SocketType::DGRAM, Some(icmp)),
            Kind::Icmp => raw(icmp),
            Kind::RawUdp => raw(ipproto::UDP),
            Kind::RawTcp => raw(rustix::net::Protocol::from_raw(RawProtocol::new(6).context("TCP is 6")?)),
            Kind::RawHeader | Kind::Packet => raw(ipproto::RAW),
        };
        let waits = matches!(self.kind, Kind::Mptcp | Kind::MptcpServer);
        let flags = SocketFlags::CLOEXEC | if waits { SocketFlags::empty() } else { SocketFlags::NONBLOCK };
        let socket = socket_with(family, kind, flags, protocol).context("socket")?;
        // Whose packet it says to be is in its own header.
        if self.kind != Kind::RawHeader {
            let port = if kind == SocketType::RAW { 0 } else { self.source.port() };
            bind(&socket, &SocketAddr::new(self.source.ip(), port)).context("bind")?;
        }
        if self.kind == Kind::Udp {
            connect(&socket, &self.destination).context("connect")?;
        }
        Ok(socket)
    }

    /// Sends one packet.
    fn send_on(self, socket: std::os::fd::BorrowedFd<'_>) -> Result<()> {
        let to = SocketAddr::new(self.destination.ip(), 0);
        let none = SendFlags::empty();
        match self.kind {
            Kind::Udp => {
                // Refused by nobody: nobody answers. EPERM tells a sender on the node itself that its packet was dropped.
                match send(socket, b"one", none) {
                    Ok(_) | Err(Errno::PERM) => {}
                    Err(error) => return Err(error).context("send"),
                }
            }
            Kind::UdpOpen => {
                sendto(socket, b"one", none, &self.destination).context("sendto")?;
            }
            Kind::Tcp => match connect(socket, &self.destination) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(error) => return Err(error).context("connect"),
            },
            Kind::Mptcp => {
                connect(socket, &self.destination).context("connect")?;
                send(socket, b"one", none).context("send")?;
            }
            Kind::MptcpServer => listen(socket, 8).context("listen")?,
            Kind::TcpFastOpen => match sendto(socket, b"one", SendFlags::from_bits_retain(FASTOPEN), &self.destination)
            {
                Ok(_) | Err(Errno::INPROGRESS) => {}
                Err(error) => return Err(error).context("sendto"),
            },
            Kind::Ping | Kind::Icmp => {
                sendto(socket, &self.echo(), none, &to).context("sendto")?;
            }
            Kind::RawUdp => {
                sendto(socket, &self.udp(), none, &to).context("sendto")?;
            }
            Kind::RawTcp => {
                sendto(socket, &self.syn(), none, &to).context("sendto")?;
            }
            Kind::RawHeader => {
                sendto(socket, &self.packet()?, none, &to).context("sendto")?;
            }
            Kind::Packet => link::send(socket, self.packet()?)?,
        }
        Ok(())
    }

    /// An echo request; the checksum is the kernel's work but for raw sockets of IPv4.
    fn echo(self) -> [u8; 8] {
        let [high, low] = self.source.port().to_be_bytes();
        let kind = if self.source.is_ipv4() { 8 } else { 128 };
        let mut echo = [kind, 0, 0, 0, high, low, 0, 1];
        let sum = u32::from(u16::from_be_bytes([kind, 0])) + u32::from(self.source.port()) + 1;
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
        echo[2..4].copy_from_slice(&(!folded).to_be_bytes());
        echo
    }

    /// A datagram without checksum.
    fn udp(self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        [&ports[..], &11_u16.to_be_bytes(), &[0, 0], b"raw"].concat()
    }

    /// A SYN whose checksum is right.
    fn syn(self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let mut syn = [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
        };
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => words(&address.octets()),
            IpAddr::V6(address) => words(&address.octets()),
        };
        let mut sum = words(&syn) + address(self.source.ip()) + address(self.destination.ip()) + 6 + 20;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = u16::try_from(sum).unwrap_or(0);
        syn[16..18].copy_from_slice(&(!sum).to_be_bytes());
        syn
    }

    /// An IPv4 packet with that datagram; length, id and checksum of the header are filled in by the kernel.
    fn packet(self) -> Result<Vec<u8>> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source.ip(), self.destination.ip()) else {
            bail!("a header is made for IPv4 only");
        };
        let header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        Ok([&header[..], &source.octets(), &destination.octets(), &self.udp()].concat())
    }

    fn report(self) -> Result<()> {
        self.report_thread(true)
    }

    /// Says who has sent: this thread, or some thread of this process.
    fn report_thread(self, this: bool) -> Result<()> {
        // On the root's /proc these are the root's numbers: PID/task/TID.
        let thread = fs::read_link("/proc/thread-self")?;
        let numbers: Vec<u32> = thread.to_string_lossy().split('/').filter_map(|number| number.parse().ok()).collect();
        let [pid, tid] = numbers[..] else { bail!("/proc/thread-self is {}", thread.display()) };
        let netns = fs::read_link("/proc/thread-self/ns/net")?;
        let netns = netns.to_string_lossy().trim_matches(|letter: char| !letter.is_ascii_digit()).parse::<u32>()?;
        let comm = fs::read_to_string("/proc/thread-self/comm")?;
        let tid = this.then_some(tid);
        let mut report = json!({"pid": pid, "tid": tid, "comm": comm.trim_end(), "netns": netns});
        report["program"] = program()?;
        println!("{report}");
        io::stdout().flush()?;
        Ok(())
    }
}

/// What this process runs, as whom, since when, in the words of a race.
fn program() -> Result<Value> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned());
    let own_pid: u32 = field("NSpid:")?.split_whitespace().next_back().context("a pid")?.parse()?;
    let arguments = fs::read_to_string("/proc/self/cmdline")?;
    let arguments: Vec<&str> = arguments.trim_end_matches('\0').split('\0').collect();
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
    // Field 22 of proc_pid_stat(5), in ticks from boot.
    let ticks: u64 = fields.split_whitespace().nth(19).context("a start")?.parse()?;
    Ok(json!({
        "uid": rustix::process::getuid().as_raw(),
        "own_pid": own_pid,
        "exe": fs::read_link("/proc/self/exe")?,
        "cmdline": arguments,
        "started": wall(ticks)?.to_string(),
    }))
}

/// The wall time of so many ticks after boot.
fn wall(ticks: u64) -> Result<jiff::Timestamp> {
    let clock = |clock| {
        let time = rustix::time::clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let since_boot = i128::from(ticks) * 1_000_000_000 / i128::from(rustix::param::clock_ticks_per_second());
    let boot = clock(rustix::time::ClockId::Realtime) - clock(rustix::time::ClockId::Boottime);
    Ok(jiff::Timestamp::from_nanosecond(boot + since_boot)?)
}

/// `MSG_FASTOPEN` (include/linux/socket.h).
const FASTOPEN: u32 = 0x2000_0000;
