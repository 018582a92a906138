//! Pods, a node that gives every flow one port, and an external host, as network namespaces.
//!
//! With one port for all, the second flow to a destination always fails to go in: a clash without any timing, which names
//! both senders as a race would. Every destination is a clash of its own.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The namespaces' names.
const ALL: [&str; 8] = ["n", "x", "p0", "p1", "t0", "m", "i", "q"];
/// The last byte of the address at which `x` answers; the others outside are nobody's.
pub(crate) const SERVER: u8 = 6;
/// The source port of every translated flow.
pub(crate) const PORT: u16 = 7777;

/// The namespaces; removed when dropped.
///
/// ```text
/// p0 10.98.0.10 --+
/// p1 10.98.0.11 --+-- br0 10.98.0.1 [n] x0 10.98.1.1 ---- x1 10.98.1.2 [x]
/// ```
/// `t0` has the addresses of `p0` and a node `m` of its own, which is as `n`. `i` 10.98.0.12 is a node behind the node `n`, and
/// `q` 10.97.0.10 a pod behind that; `i` translates, but any port goes.
#[derive(Debug)]
pub(crate) struct Place(());

impl Place {
    /// Makes and wires them.
    pub(crate) fn new() -> Result<Self> {
        let place = Self(());
        let mut script = String::new();
        for netns in ALL {
            script += &format!(
                "ip netns add {netns}; ip -n {netns} link set lo up; \
                 ip netns exec {netns} sysctl -qw net.ipv4.ping_group_range='0 2147483647' net.ipv4.conf.all.rp_filter=0 \
                 net.ipv6.conf.default.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n"
            );
        }
        for (node, pods) in [("n", &["p0", "p1"][..]), ("m", &["t0"])] {
            script += &format!("ip -n {node} link add br0 type bridge; ip -n {node} link set br0 up\n");
            for (index, pod) in pods.iter().enumerate() {
                script += &format!(
                    "ip -n {node} link add v{index} type veth peer name e0 netns {pod}; \
                     ip -n {node} link set v{index} master br0 up; ip -n {pod} link set e0 up; \
                     ip -n {pod} addr add 10.98.0.1{index}/24 dev e0; ip -n {pod} -6 addr add fd98::1{index}/64 dev e0 nodad\n"
                );
            }
            let outside = if node == "n" { "x1" } else { "x2" };
            script += &format!(
                "ip -n {node} addr add 10.98.0.1/24 dev br0; ip -n {node} -6 addr add fd98::1/64 dev br0 nodad; \
                 ip -n {node} link add x0 type veth peer name {outside} netns x; ip -n {node} link set x0 up; \
                 ip -n x link set {outside} up; ip -n {node} addr add 10.98.1.1/24 dev x0; \
                 ip -n {node} -6 addr add fd98:1::1/64 dev x0 nodad\n"
            );
            for pod in pods {
                script += &format!(
                    "ip -n {pod} route add default via 10.98.0.1; ip -n {pod} -6 route add default via fd98::1\n"
                );
            }
        }
        script += "ip -n n link add v2 type veth peer name e0 netns i; ip -n n link set v2 master br0 up; \
                   ip -n i link set e0 up; ip -n i addr add 10.98.0.12/24 dev e0; \
                   ip -n i route add default via 10.98.0.1; \
                   ip -n i link add w0 type veth peer name e0 netns q; ip -n i link set w0 up; \
                   ip -n i addr add 10.97.0.1/24 dev w0; ip -n q link set e0 up; \
                   ip -n q addr add 10.97.0.10/24 dev e0; ip -n q route add default via 10.97.0.1\n";
        script += &format!("ip -n x addr add 10.98.1.{SERVER}/24 dev x1\n");
        // Nobody else answers, so no neighbour is asked for: each way out leads to an address that is not there.
        for node in ["n", "m"] {
            for last in (2..9).filter(|last| *last != SERVER) {
                script += &format!(
                    "ip -n {node} neigh replace 10.98.1.{last} lladdr 02:00:00:00:00:02 dev x0; \
                     ip -n {node} -6 neigh replace fd98:1::{last} lladdr 02:00:00:00:00:02 dev x0\n"
                );
            }
        }
        run("sh", &["-e"], &script)?;
        for node in ["n", "m"] {
            place.nft(node, &one_port("x0"))?;
        }
        place.nft(
            "i",
            "table ip nat {\nchain post {\ntype nat hook postrouting priority 100;\noifname e0 masquerade\n}\n}\n",
        )?;
        Ok(place)
    }

    /// Loads rules in a namespace.
    pub(crate) fn nft(&self, netns: &str, rules: &str) -> Result<()> {
        run("ip", &["netns", "exec", netns, "nft", "-f", "-"], rules)
    }

    /// Runs a script in a namespace.
    pub(crate) fn sh(&self, netns: &str, script: &str) -> Result<()> {
        run("ip", &["netns", "exec", netns, "sh", "-e"], script)
    }

    /// Sum over CPUs of `insert_failed` in a namespace.
    pub(crate) fn insert_failed(&self, netns: &str) -> Result<u64> {
        let output =
            Command::new("ip").args(["netns", "exec", netns, "cat", "/proc/net/stat/nf_conntrack"]).output()?;
        let table = String::from_utf8(output.stdout)?;
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let header = lines.next().context("no conntrack statistics")?;
        let column = header.iter().position(|name| *name == "insert_failed").context("no column insert_failed")?;
        lines
            .map(|line| Ok(u64::from_str_radix(line.get(column).context("a short line")?, 16)?))
            .try_fold(0, |sum, value: Result<u64>| Ok(sum + value?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for netns in ALL {
            // It may never have been made.
            let _absent = Command::new("ip").args(["netns", "del", netns]).stderr(Stdio::null()).status();
        }
    }
}

/// Rules that give every flow out of `device` one port, or one id.
pub(crate) fn one_port(device: &str) -> String {
    let rule = |of: &str| format!("oifname {device} {of} masquerade to :{PORT}\n");
    let kinds = ["meta l4proto tcp", "meta l4proto udp"].map(rule).concat();
    let four = rule("icmp type echo-request");
    let six = rule("icmpv6 type echo-request");
    format!(
        "table ip nat {{ chain post {{ type nat hook postrouting priority 100;\n{kinds}{four}}}\n}}\n\
         table ip6 nat {{ chain post {{ type nat hook postrouting priority 100;\n{kinds}{six}}}\n}}\n"
    )
}

/// The external host's address number `last`, of the family of `like`.
pub(crate) fn external(like: IpAddr, last: u8) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([10, 98, 1, last]),
        IpAddr::V6(_) => IpAddr::from([0xfd98, 1, 0, 0, 0, 0, 0, u16::from(last)]),
    }
}

/// Runs a program with `input`; what it says when it fails is the error.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    child.stdin.take().context("stdin is a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{program} {}: {} {}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
}
