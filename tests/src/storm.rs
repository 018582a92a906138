//! Clashes without end: a network namespace whose rule has one port to give. The first flow to a destination has it, and
//! every packet of any other is a clash, of which the sender is told (`EPERM`): that is the truth.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use snat_trace::counters::netns::{Netns, in_netns};

use crate::node::command;

/// Senders are here.
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
/// Everything is sent here, and dropped on arrival.
const SINK: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
/// The first port of destinations.
pub const PORT: u16 = 7000;
const ADDRESSES: &str = "link set lo up
address add 10.98.0.1/32 dev lo
address add 10.98.0.2/32 dev lo
address add 10.98.0.3/32 dev lo
";
/// The one translated source there is.
const NAT: &str = "type nat hook postrouting priority 100; ip daddr 10.98.0.2 meta l4proto udp snat to 10.98.0.3:5000";
/// What tracks connections and translates none.
const TRACK: &str = "type filter hook output priority 0; ct state new accept";

/// Such a namespace, held by a descriptor only; gone when dropped, with every socket in it.
#[derive(Debug)]
pub struct Storm(OwnedFd);

/// What the senders know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sent {
    /// Packets that went out.
    pub passed: u64,
    /// Packets that were refused: clashes.
    pub refused: u64,
}

impl Storm {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// `ip` or `nft` fails.
    pub fn new() -> Result<Self> {
        Self::with_chain(NAT)
    }

    /// One that tracks connections and translates none.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn without_nat() -> Result<Self> {
        Self::with_chain(TRACK)
    }

    /// One with nothing in it.
    ///
    /// # Errors
    ///
    /// There cannot be another.
    pub fn empty() -> Result<Self> {
        Self::make(|| Ok(()))
    }

    fn with_chain(chain: &str) -> Result<Self> {
        let sink = "type filter hook input priority 0; ip daddr 10.98.0.2 drop";
        let rules = format!("table ip storm {{\n chain first {{ {chain}; }}\n chain sink {{ {sink}; }}\n}}\n");
        Self::make(|| {
            command("ip", &["-batch", "-"], ADDRESSES)?;
            command("nft", &["-f", "-"], &rules).map(drop)
        })
    }

    fn make(furnish: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        let netns = thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<_> {
                // SAFETY: CLONE_NEWNET changes this thread's network namespace only; no descriptor table is unshared.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                furnish()?;
                Ok(File::open("/proc/thread-self/ns/net")?)
            });
            made.join().unwrap_or_else(|_| bail!("a thread panicked"))
        })?;
        Ok(Self(netns.into()))
    }

    /// Runs a command inside.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        self.inside(|| command(program, arguments, "").map(drop))
    }

    /// Does something inside.
    ///
    /// # Errors
    ///
    /// It fails, or the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_netns(self.0.as_fd(), work)?
    }

    /// Its number.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn inum(&self) -> Result<u32> {
        Ok(Netns::of(self.0.as_fd())?.inum.0)
    }

    /// A socket inside, bound to `port`.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn socket(&self, port: u16) -> Result<UdpSocket> {
        let bound = in_netns(self.0.as_fd(), || UdpSocket::bind(SocketAddrV4::new(SENDER, port)))?;
        bound.with_context(|| format!("port {port}"))
    }

    /// Sends from `senders` sockets at once to one destination, that another has before, until `enough` says so of the
    /// number of clashes of each sender.
    ///
    /// # Errors
    ///
    /// A packet is neither sent nor refused.
    pub fn rage(&self, senders: u16, enough: impl Fn(u64) -> bool + Sync) -> Result<Sent> {
        let keeper = self.socket(1000)?;
        let mut all = Sent::default();
        ensure!(send(&keeper, 0, &mut all)?, "the port was taken before");
        let results = thread::scope(|scope| {
            let enough = &enough;
            let senders: Vec<_> = (0..senders)
                .map(|number| {
                    scope.spawn(move || {
                        let socket = self.socket(2000 + number)?;
                        let mut sent = Sent::default();
                        while !enough(sent.refused) {
                            send(&socket, 0, &mut sent)?;
                        }
                        Ok(sent)
                    })
                })
                .collect();
            senders
                .into_iter()
                .map(|sender| sender.join().unwrap_or_else(|_| bail!("a sender panicked")))
                .collect::<Vec<_>>()
        });
        for sent in results {
            let sent: Sent = sent?;
            all.passed += sent.passed;
            all.refused += sent.refused;
        }
        Ok(all)
    }

    /// As [`rage`](Self::rage), for a time, with so many clashes a second as are wanted, or as many as go.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn rage_at(&self, per_second: f64, time: Duration) -> Result<Sent> {
        let start = Instant::now();
        let senders = if per_second.is_finite() { 1 } else { 2 };
        self.rage(senders, |refused| {
            // The pace is the point here, not a time to wait for anything.
            thread::sleep(due(refused, per_second).min(time).saturating_sub(start.elapsed()));
            start.elapsed() >= time
        })
    }

    /// As [`rage`](Self::rage), until `halt`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn rage_until(&self, senders: u16, halt: &AtomicBool) -> Result<Sent> {
        self.rage(senders, |_| halt.load(Ordering::Relaxed))
    }
}

/// When the next of so many is due, at so many a second.
#[expect(clippy::cast_precision_loss, reason = "a few million")]
pub(crate) fn due(number: u64, per_second: f64) -> Duration {
    // None is due in all time.
    Duration::try_from_secs_f64(number as f64 / per_second).unwrap_or(Duration::MAX)
}

/// Sends one packet to the destination `number`; whether it went out.
///
/// # Errors
///
/// It was neither sent nor refused.
pub fn send(socket: &UdpSocket, number: u16, sent: &mut Sent) -> Result<bool> {
    match socket.send_to(b"storm", SocketAddrV4::new(SINK, PORT + number)) {
        Ok(_) => sent.passed += 1,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            sent.refused += 1;
            return Ok(false);
        }
        Err(error) => return Err(error).context("cannot send"),
    }
    Ok(true)
}
