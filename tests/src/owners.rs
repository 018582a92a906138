//! The owner of a flow is right or absent, never wrong: traffic of many kinds, each sender of which says who it is.

mod place;
mod sender;
mod stage;
mod uring;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

pub use sender::{inherited, main as sender_main};

use crate::scenario::{Row, Scenario, brief, whole};
use stage::Expected::{Absent, Named, Right};
use stage::{Sender, Stage, until};

/// Those about owners.
pub const SCENARIOS: &[Scenario] = &[
    brief("owners: sockets, full", || sockets("full")),
    whole("owners: sockets, minimal", || sockets("minimal")),
    brief("owners: processes, full", || processes("full")),
    whole("owners: processes, minimal", || processes("minimal")),
    whole("owners: places, full", || places("full")),
    whole("owners: places, minimal", || places("minimal")),
];

/// Every kind of socket.
fn sockets(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    // Looked up are TCP and UDP; a raw socket in the namespace makes every look-up there doubtful, so they come last.
    for socket in ["udp", "udp-open", "tcp", "tcp-fast-open", "udp6", "udp-open6", "tcp6"] {
        stage.pair(("plain", socket, Named), ("plain", socket, Named))?;
    }
    let (named, absent) = (stage.by_detail(Named, Absent), Absent);
    for socket in
        ["ping", "icmp", "ping6", "icmp6", "udplite", "udplite6", "raw-udp", "raw-tcp", "raw-udp6", "raw-tcp6"]
    {
        if socket.starts_with("udplite") && !Path::new("/proc/net/udplite").exists() {
            // Gone by Linux 7.1.
            println!("skipped: {socket}, which this kernel does not have");
            continue;
        }
        stage.pair(("plain", socket, named), ("plain", socket, named))?;
    }
    stage.pair(("plain", "raw-header", absent), ("plain", "raw-header", absent))?;
    stage.finish()
}

/// Who of several processes, or threads, or programs.
fn processes(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let by_record = stage.by_detail(Named, Right);
    for socket in ["udp", "tcp"] {
        for (way, expected) in [
            ("plain", Named),
            ("thread", Named),
            ("exec", Named),
            ("pid-namespace", Named),
            // Gone when it is looked for.
            ("exit", by_record),
            // Both hold the socket, one has sent.
            ("child", by_record),
        ] {
            stage.pair((way, socket, expected), (way, socket, expected))?;
        }
    }
    for way in ["two-threads", "many"] {
        stage.pair((way, "udp", Named), ("plain", "udp", Named))?;
    }
    // Before Linux 5.12 the poller is a thread of the kernel, which is not named; the process that holds the socket may be.
    stage.pair(("uring", "udp", Right), ("plain", "udp", Named))?;
    stage.finish()
}

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 1, 1));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 1, 2));
const P0: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 10));
const P1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 11));
/// Of an inner node, and of a pod behind it.
const INNER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 12));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 97, 0, 10));

/// Senders that are no pods: processes of the node itself, machines outside, and a second pod network with the same
/// addresses.
fn places(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let udp = |stage: &mut Stage, pod, from: IpAddr, to, expected| {
        let from = SocketAddr::new(from, stage.port());
        stage.send(&Sender { pod, way: "plain", socket: "udp", from, to, seen_as: from, expected })
    };
    for socket in ["udp", "tcp"] {
        let to = SocketAddr::new(OUTSIDE, stage.port());
        udp(&mut stage, "p0", P0, to, Named).and_then(|()| {
            let from = SocketAddr::new(NODE, stage.port());
            stage.send(&Sender { pod: "n", way: "plain", socket, from, to, seen_as: from, expected: Named })
        })?;
        stage.races += u64::from(socket == "udp");
    }
    stage.finish()
}
