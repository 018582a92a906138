//! The owner of a flow is right or absent, never wrong: traffic of many kinds, each sender of which says who it is.

mod churn;
mod gone;
mod link;
mod place;
mod pods;
mod rights;
mod sender;
mod stage;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

pub use sender::{handed, inherited, main as sender_main};

use crate::scenario::{Row, Scenario, Skip, brief, whole};
use stage::Expected::{Absent, Named, Right};
use stage::{Sender, Stage};

/// Those about owners.
pub const SCENARIOS: &[Scenario] = &[
    brief("owners: sockets, full", || sockets("full")),
    whole("owners: sockets, minimal", || sockets("minimal")),
    brief("owners: raw and ICMP, full", || other_sockets("full")),
    whole("owners: raw and ICMP, minimal", || other_sockets("minimal")),
    brief("owners: processes, full", || processes("full")),
    whole("owners: processes, minimal", || processes("minimal")),
    whole("owners: outsiders, full", || outsiders("full")),
    whole("owners: outsiders, minimal", || outsiders("minimal")),
    whole("owners: node in a node, full", || nested("full")),
    whole("owners: node in a node, minimal", || nested("minimal")),
    whole("owners: change of hands, full", || hands("full")),
    whole("owners: change of hands, minimal", || hands("minimal")),
    whole("owners: SYN sent again, full", || sent_again("full")),
    whole("owners: SYN sent again, minimal", || sent_again("minimal")),
    whole("owners: other CPUs, full", || other_cpus("full")),
    whole("owners: other CPUs, minimal", || other_cpus("minimal")),
    whole("owners: tunnel, full", || tunnel("full")),
    whole("owners: tunnel, minimal", || tunnel("minimal")),
    whole("owners: subflows, full", || subflows("full")),
    whole("owners: subflows, minimal", || subflows("minimal")),
    whole("owners: handed over, full", || handed_over("full")),
    whole("owners: handed over, minimal", || handed_over("minimal")),
    brief("owners: packet sockets, full", || packets("full")),
    whole("owners: packet sockets, minimal", || packets("minimal")),
    brief("owners: pods, full", || pods::pods("full")),
    whole("owners: pods, minimal", || pods::pods("minimal")),
    whole("owners: pods, from a container", pods::from_a_container),
    brief("owners: pods whose senders are gone", pods::gone),
    brief("owners: gone with their cgroups", gone::unified),
    whole("owners: gone with their cgroups, version 1", gone::legacy),
    whole("owners: churn", churn::churn),
];

/// Sockets that are looked up where they were not recorded.
fn sockets(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    for socket in ["udp", "udp-open", "tcp", "tcp-fast-open", "udp6", "udp-open6", "tcp6"] {
        stage.pair(("plain", socket, Named), ("plain", socket, Named))?;
    }
    stage.finish()
}

/// Sockets that are not, and raw ones, of which any can send with another's port.
fn other_sockets(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let named = stage.by_detail(Named, Absent);
    for socket in ["ping", "icmp", "ping6", "icmp6", "raw-udp", "raw-tcp", "raw-udp6", "raw-tcp6"] {
        stage.pair(("plain", socket, named), ("plain", socket, named))?;
    }
    stage.pair(("plain", "raw-header", Absent), ("plain", "raw-header", Absent))?;
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
            // A socket that goes on to the next program may have come from one before.
            ("exec", by_record),
            ("pid-namespace", Named),
            // Gone when it is looked for.
            ("exit", by_record),
            // Both hold the socket, one has sent.
            ("child", by_record),
        ] {
            stage.pair((way, socket, expected), (way, socket, expected))?;
        }
    }
    for way in ["two-threads", "many", "next"] {
        stage.pair((way, "udp", Named), ("plain", "udp", Named))?;
    }
    // Before Linux 5.12 the poller is a thread of the kernel, which is not named; the process that holds the socket may be.
    stage.pair(("uring", "udp", Right), ("plain", "udp", Named))?;
    stage.finish()
}

/// A socket made by one process and handed through a Unix socket to another, which sends: it is the sender's, not the maker's,
/// whether the maker has it still or not.
fn handed_over(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let by_record = stage.by_detail(Named, Right);
    for socket in ["udp", "udp-open", "tcp"] {
        for way in ["handed", "shared"] {
            stage.pair((way, socket, by_record), ("plain", socket, Named))?;
        }
    }
    stage.finish()
}

/// Packets made down to their IP header, from a packet socket, which no hook for senders sees. Another process has a socket of
/// UDP with the very port they say they come from.
fn packets(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    for pod in ["p0", "p1"] {
        let to = stage.outside();
        stage.first("udp", to)?;
        let from = SocketAddr::new(if pod == "p0" { P0 } else { P1 }, stage.port());
        let elsewhere = stage.outside();
        let open = |way, to| Sender { pod, way, socket: "udp-open", from, to, seen_as: from, expected: Named };
        stage.hold(&open("plain", elsewhere))?;
        stage.lose(&Sender { socket: "packet", expected: Absent, ..open("plain", to) })?;
    }
    stage.finish()
}

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 1, 1));
const P0: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 10));
const P1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 11));
/// A machine that is none of ours.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 77));
/// Of an inner node, and of a pod behind it.
const INNER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 12));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 97, 0, 10));
/// For how long a datagram may be on its way from its sender to the node's NAT.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// Senders that are no pods: a process of the node itself, and a machine outside whose packets are merely forwarded.
fn outsiders(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    for (pod, way, socket, from, expected) in [
        ("n", "plain", "udp", NODE, Named),
        ("n", "plain", "tcp", NODE, Named),
        ("n", "exit", "udp", NODE, stage.by_detail(Named, Right)),
        // Its source is nobody's here, whoever brings it in.
        ("p1", "plain", "raw-header", STRANGER, Absent),
    ] {
        let to = stage.outside();
        stage.first(if socket == "tcp" { "tcp" } else { "udp" }, to)?;
        let from = SocketAddr::new(from, stage.port());
        stage.lose(&Sender { pod, way, socket, from, to, seen_as: from, expected })?;
    }
    stage.finish()
}

/// A node behind the node: what its pods send has its address, and its own processes may hold that port.
fn nested(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    for (way, socket, expected) in [
        ("plain", "udp", Named),
        ("plain", "tcp", Named),
        ("thread", "udp-open", Named),
        ("exit", "udp", stage.by_detail(Named, Right)),
    ] {
        let to = stage.outside();
        stage.first(if socket == "tcp" { "tcp" } else { "udp" }, to)?;
        let port = stage.port();
        let from = SocketAddr::new(BEHIND, port);
        let seen_as = SocketAddr::new(INNER, port);
        // Open to send anywhere from that port, but to this destination it has sent nothing.
        let elsewhere = stage.outside();
        let open =
            Sender { pod: "i", way: "plain", socket: "udp-open", from: seen_as, to: elsewhere, seen_as, expected };
        stage.hold(&open)?;
        stage.lose(&Sender { pod: "q", way, socket, from, to, seen_as, expected })?;
    }
    stage.finish()
}

/// One tuple from several processes, one after another and in two pod networks with the same addresses.
fn hands(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let by_record = stage.by_detail(Named, Right);
    let exit = |from, to, expected| Sender { pod: "p0", way: "exit", socket: "udp", from, to, seen_as: from, expected };
    // A port used again by the next process, after a while and at once.
    let (from, to) = (SocketAddr::new(P0, stage.port()), stage.outside());
    stage.first("udp", to)?;
    stage.lose(&exit(from, to, by_record))?;
    pass(ON_THE_WAY);
    stage.lose(&exit(from, to, by_record))?;
    stage.lose(&exit(from, to, Right))?;
    stage.lose(&exit(from, to, Right))?;
    pass(ON_THE_WAY);
    stage.lose(&exit(from, to, by_record))?;
    stage.place.twin()?;
    // The same addresses elsewhere: of a datagram long ago, of a connection never. Both send at about one time, so that
    // either could be taken for the other.
    for socket in ["udp", "tcp"] {
        let to = stage.outside();
        stage.first(socket, to)?;
        let from = SocketAddr::new(P0, stage.port());
        let there = SocketAddr::new(P0, stage.port());
        let twin = |from, expected| Sender { pod: "t0", way: "exit", socket, from, to, seen_as: from, expected };
        stage.send(&twin(there, Right))?;
        stage.lose(&Sender { pod: "p0", ..twin(from, Right) })?;
        stage.lose(&twin(from, Right))?;
        if socket == "udp" {
            pass(ON_THE_WAY);
            stage.lose(&exit(from, to, by_record))?;
        }
    }
    stage.finish()
}

/// A SYN sent again by the kernel, in whoever's time: the first is dropped on the way to the NAT.
fn sent_again(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let ports = [stage.port(), stage.port(), stage.port()];
    let [one, other, winner] = ports;
    stage.place.nft(
        "n",
        &format!(
            "table ip early {{\nset seen {{\ntype ipv4_addr . inet_service\nflags dynamic\n}}\n\
             chain pre {{\ntype filter hook prerouting priority -300;\n\
             tcp sport {{ {one}, {other} }} ip saddr . tcp sport @seen accept\n\
             tcp sport {{ {one}, {other} }} add @seen {{ ip saddr . tcp sport }} drop\n}}\n}}\n"
        ),
    )?;
    let to = stage.outside();
    let from = |host, port| SocketAddr::new(host, port);
    let tcp = |pod, way, from, expected| Sender { pod, way, socket: "tcp", from, to, seen_as: from, expected };
    stage.send(&tcp("p1", "plain", from(P1, winner), Named))?;
    stage.lose(&tcp("p0", "thread", from(P0, one), Named))?;
    // A socket that goes on to the next program is not looked up.
    let by_record = stage.by_detail(Named, Right);
    stage.lose(&tcp("p1", "exec", from(P1, other), by_record))?;
    stage.finish()
}

/// Packets that other CPUs take over from the sender's, in whatever task they interrupt, and that are merged on the way.
fn other_cpus(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let by_record = stage.by_detail(Named, Right);
    stage.place.sh(
        "n",
        "for queue in /sys/class/net/v*/queues/rx-*; do echo 3 > $queue/rps_cpus; done; \
         for queue in /sys/class/net/v*/queues/rx-*; do [ \"$(cat $queue/rps_cpus)\" = 3 ]; done",
    )?;
    for round in 0..20 {
        let (way, expected) = if round % 2 == 0 { ("plain", Named) } else { ("exit", by_record) };
        stage.pair((way, "udp", expected), ("thread", "udp", Named))?;
    }
    // The driver hands packets on in softirqs of its own then; one that does not know a word leaves it.
    stage.place.sh(
        "n",
        "for link in v0 v1; do ethtool -K $link gro on; ethtool -K $link rx-udp-gro-forwarding on || true; done",
    )?;
    for socket in ["udp", "tcp"] {
        stage.pair(("plain", socket, Named), ("plain", socket, Named))?;
    }
    for _ in 0..4 {
        stage.pair(("plain", "udp", Named), ("many", "udp", Named))?;
    }
    stage.finish()
}

/// What the kernel sends by itself: a tunnel, whose source port a process has too.
fn tunnel(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let port = stage.port();
    // The next one is the tunnel's too.
    stage.port();
    let to = stage.outside();
    let made = stage.place.sh(
        "p1",
        &format!(
            "ip link add vx type vxlan id 7 dstport {} srcport {port} {} local {P1} remote {}; \
             echo 1 > /proc/sys/net/ipv6/conf/vx/disable_ipv6; ip addr add 10.96.0.1/24 dev vx; ip link set vx up; \
             ip neigh replace 10.96.0.2 lladdr 02:00:00:00:00:02 dev vx",
            to.port(),
            port + 1,
            to.ip(),
        ),
    );
    if let Err(error) = made {
        return Err(Skip::because(format!("no vxlan here: {error}")));
    }
    // The upper end of the range belongs to it from Linux 7.x on.
    for port in [port, port + 1] {
        let outer = SocketAddr::new(P1, port);
        let elsewhere = stage.outside();
        // Looked up without a thought, this one would be found.
        stage.hold(&Sender {
            pod: "p1",
            way: "plain",
            socket: "udp-open",
            from: outer,
            to: elsewhere,
            seen_as: outer,
            expected: Absent,
        })?;
        stage.note_unsent("a tunnel", outer, to);
    }
    let from = SocketAddr::new(P0, stage.port());
    stage.send(&Sender { pod: "p0", way: "plain", socket: "udp", from, to, seen_as: from, expected: Named })?;
    let (inner, peer) = (SocketAddr::new([10, 96, 0, 1].into(), port), SocketAddr::new([10, 96, 0, 2].into(), 9));
    stage.hold(&Sender {
        pod: "p1",
        way: "thread",
        socket: "udp-open",
        from: inner,
        to: peer,
        seen_as: inner,
        expected: Absent,
    })?;
    stage.races += 1;
    stage.finish()
}

/// MPTCP opens its further connections from a thread of the kernel.
fn subflows(detail: &str) -> Result<Row> {
    let mut stage = Stage::new(detail)?;
    let to = SocketAddr::new(place::external(P1, place::SERVER), stage.port());
    let other = IpAddr::from([10, 98, 0, 21]);
    let limits = "ip mptcp limits set subflow 4 add_addr_accepted 4";
    let made = stage.place.sh("x", limits).and_then(|()| {
        stage
            .place
            .sh("p1", &format!("{limits}; ip addr add {other}/24 dev e0; ip mptcp endpoint add {other} dev e0 subflow"))
    });
    if let Err(error) = made {
        return Err(Skip::because(format!("no MPTCP here: {error}")));
    }
    let server = Sender { pod: "x", way: "plain", socket: "mptcp-server", from: to, to, seen_as: to, expected: Absent };
    stage.hold(&server)?;
    let from = SocketAddr::new(P1, stage.port());
    stage.send(&Sender { pod: "p1", way: "plain", socket: "mptcp", from, to, seen_as: from, expected: Named })?;
    stage.note_also(from, to, other)?;
    stage.races += 1;
    stage.finish()
}

/// Lets time pass: it is what the scenario is about.
fn pass(time: Duration) {
    std::thread::sleep(time + Duration::from_millis(50));
}
