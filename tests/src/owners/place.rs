//! Pods, a node that gives every flow one port, and an external host, as network namespaces.
//!
//! With one port for all, the second flow to a destination always fails to go in: a clash without any timing, which names
//! both senders as a race would. Every destination is a clash of its own.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::node::{Counters, command};

/// The namespaces' names.
const ALL: [&str; 8] = ["n", "x", "p0", "p1", "t0", "m", "i", "q"];
/// The last byte of the address at which `x` answers; the others outside are nobody's.
pub(crate) const SERVER: u8 = 6;
/// The source port of every translated flow.
pub(crate) const PORT: u16 = 7777;
/// A pod's link.
pub(crate) const UPLINK: &str = "e0";
/// The link-layer address of a node's bridge, to which a pod sends everything.
pub(crate) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The namespaces; removed when dropped.
///
/// ```text
/// p0 10.98.0.10 --+
/// p1 10.98.0.11 --+-- br0 10.98.0.1 [n] x0 10.98.1.1 ---- x1 10.98.1.2 [x]
/// ```
/// `t0` can be given the address of `p0` and has a node `m` of its own, 10.98.1.9 outside. `i` 10.98.0.12 is a node behind the node `n`, and
/// `q` 10.97.0.10 a pod behind that; `i` translates, but any port goes.
#[derive(Debug)]
pub(crate) struct Place(());

impl Place {
    /// Makes and wires them.
    pub(crate) fn new() -> Result<Self> {
        let place = Self(());
        command("ip", &["-batch", "-"], &ALL.map(|netns| format!("netns add {netns}\n")).concat())?;
        for netns in ALL {
            place.sh(netns, SYSCTLS)?;
        }
        // Whoever makes a link comes before those at its other end.
        ip("n", &format!("{}{}link set v2 master br0\n", node("x1", 1, &["p0", "p1"]), link(2, "i")))?;
        ip("m", &node("x2", 9, &["t0"]))?;
        let above = "route add default via 10.98.0.1\n";
        ip("i", &format!("{}{above}{}addr add 10.97.0.1/24 dev v0\n", pod(2), link(0, "q")))?;
        ip("q", "link set e0 up\naddr add 10.97.0.10/24 dev e0\nroute add default via 10.97.0.1\n")?;
        for (netns, index) in [("p0", 0), ("p1", 1)] {
            ip(netns, &format!("{}{above}route add default via fd98::1\n", pod(index)))?;
        }
        ip("x", &format!("link set x1 up\nlink set x2 up\naddr add 10.98.1.{SERVER}/24 dev x1\n"))?;
        for node in ["n", "m"] {
            place.nft(node, &one_port("x0"))?;
        }
        place.nft(
            "i",
            "table ip nat {\nchain post {\ntype nat hook postrouting priority 100;\noifname e0 masquerade\n}\n}\n",
        )?;
        Ok(place)
    }

    /// Gives `t0` its address, which `p0` has too: from then on no look-up tells one from the other.
    pub(crate) fn twin(&self) -> Result<()> {
        ip("t0", &format!("{}route add default via 10.98.0.1\n", pod(0)))
    }

    /// Loads rules in a namespace.
    pub(crate) fn nft(&self, netns: &str, rules: &str) -> Result<()> {
        command("ip", &["netns", "exec", netns, "nft", "-f", "-"], rules).map(drop)
    }

    /// Runs a script in a namespace.
    pub(crate) fn sh(&self, netns: &str, script: &str) -> Result<()> {
        command("ip", &["netns", "exec", netns, "sh", "-e"], script).map(drop)
    }

    /// Sum over CPUs of `insert_failed` in a namespace.
    pub(crate) fn insert_failed(&self, netns: &str) -> Result<u64> {
        let table = command("ip", &["netns", "exec", netns, "cat", "/proc/net/stat/nf_conntrack"], "")?;
        Counters::parse(&table)?.column("insert_failed").context("no column insert_failed")
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

/// What is not as in a new namespace.
const SYSCTLS: &str = "ip link set lo up; cd /proc/sys/net; echo 0 2147483647 > ipv4/ping_group_range; \
                       echo 0 > ipv4/conf/all/rp_filter; echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding";

/// Scripts for `ip -batch`. A link to a pod, on the node's side:
fn link(index: usize, pod: &str) -> String {
    format!("link add v{index} type veth peer name e0 netns {pod}\nlink set v{index} up\n")
}

/// Its other end.
fn pod(index: usize) -> String {
    format!("link set e0 up\naddr add 10.98.0.1{index}/24 dev e0\naddr add fd98::1{index}/64 dev e0 nodad\n")
}

/// A node with its pods and its way out. Nobody answers outside but one, and so that nobody is asked for either, each
/// address is known to be somebody's.
fn node(outside: &str, own: u8, pods: &[&str]) -> String {
    let mut script =
        "link add br0 address 02:00:00:00:00:01 type bridge\nlink set br0 up\naddr add 10.98.0.1/24 dev br0\n\
                      addr add fd98::1/64 dev br0 nodad\n"
            .to_owned();
    for (index, pod) in pods.iter().enumerate() {
        script += &format!("{}link set v{index} master br0\n", link(index, pod));
    }
    script += &format!(
        "link add x0 type veth peer name {outside} netns x\nlink set x0 up\naddr add 10.98.1.{own}/24 dev x0\n\
         addr add fd98:1::{own}/64 dev x0 nodad\n"
    );
    for last in (2..9).filter(|last| *last != SERVER) {
        for address in ["10.98.1.", "fd98:1::"] {
            script += &format!("neigh replace {address}{last} lladdr 02:00:00:00:00:02 dev x0\n");
        }
    }
    script
}

/// `ip -batch` in a namespace.
fn ip(netns: &str, script: &str) -> Result<()> {
    command("ip", &["-n", netns, "-batch", "-"], script).map(drop)
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
