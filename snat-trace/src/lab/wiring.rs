//! What `ip` is told in each namespace: links, addresses and routes.
//!
//! Neighbours are permanent and nobody beyond a translator has a route to what is behind it, so nothing but test traffic
//! flows and only translated packets are answered.

use std::fmt::Write;
use std::net::IpAddr;

use super::addresses::{Family, mac, pod_mac, pod_network};
use super::netns::Netns;
use super::senders::Senders;
use super::setup::Setup;

/// The network outside the node: the node is its host 1, whatever comes next its host 2.
pub(super) const NODE_OUTSIDE: u8 = 1;
/// The network outside the second translator, where there is one.
pub(super) const OUTER_OUTSIDE: u8 = 3;
/// The link by which packets leave a translator.
pub(super) const OUTSIDE: &str = "x0";
/// The same link at its other end.
const INSIDE: &str = "x1";
/// The link of a pod, or of its gateway, to the node.
pub(super) const UPLINK: &str = "eth0";

/// The node: a bridge to everything behind it, in the order of the pods, and a link out.
pub(super) fn node(setup: &Setup, behind: &[Netns], next: &Netns) -> String {
    let family = setup.family;
    let mut script = format!(
        "link add br0 address {bridge} type bridge mcast_snooping 0\n{address}link set br0 up\n{out}",
        bridge = mac(0, 1),
        address = add_address(family.bridge(), family.prefix(), "br0"),
        out = way_out(family, NODE_OUTSIDE, next),
    );
    if setup.senders == Senders::Host {
        script.push_str("link set lo up\n");
        (0..setup.pods).for_each(|pod| script.push_str(&add_address(setup.own(pod), family.bits(), "lo")));
    }
    for (pod, netns) in behind.iter().enumerate() {
        // Pods in zones have one address; whoever comes last is answered. Writing to a String cannot fail.
        let _infallible = write!(
            script,
            "link add p{pod} type veth peer name {UPLINK} address {mac} netns {netns}\n\
             link set p{pod} master br0\n\
             link set p{pod} up\n\
             neigh replace {address} lladdr {mac} dev br0 nud permanent\n",
            address = setup.seen_by_node(pod),
            mac = pod_mac(pod),
            netns = netns.path(),
        );
    }
    script
}

/// A second translator between the node and the external host.
pub(super) fn outer(family: Family, external: &Netns) -> String {
    way_in(family, NODE_OUTSIDE) + &way_out(family, OUTER_OUTSIDE, external)
}

/// The external host, on the network outside the last translator.
pub(super) fn external(setup: &Setup) -> String {
    let portless = setup.family.portless(std::process::id());
    let network = if setup.has_outer() { OUTER_OUTSIDE } else { NODE_OUTSIDE };
    let to_pod = if setup.scenario.is_crossed() {
        format!("route add {} via {}\n", setup.family.pod(0), setup.family.node())
    } else {
        String::new()
    };
    add_address(portless, setup.family.bits(), "lo") + "link set lo up\n" + &way_in(setup.family, network) + &to_pod
}

/// A pod on the node's bridge, or its gateway.
pub(super) fn on_bridge(setup: &Setup, pod: usize) -> String {
    uplink(setup.family, setup.seen_by_node(pod), setup.family.bridge(), &mac(0, 1))
}

/// The other side of a gateway: a link to its pod alone.
pub(super) fn gateway(family: Family, pod: usize, netns: &Netns) -> String {
    let network = pod_network(pod);
    format!(
        "link add g0 address {here} type veth peer name {UPLINK} address {there} netns {netns}\n\
         {address}\
         link set g0 up\n\
         neigh add {pod} lladdr {there} dev g0 nud permanent\n",
        here = mac(network, 1),
        there = mac(network, 2),
        netns = netns.path(),
        address = add_address(family.address(network, 1), family.prefix(), "g0"),
        pod = family.address(network, 2),
    )
}

/// A pod behind a gateway.
pub(super) fn behind_gateway(family: Family, pod: usize) -> String {
    let network = pod_network(pod);
    uplink(family, family.address(network, 2), family.address(network, 1), &mac(network, 1))
}

fn uplink(family: Family, own: IpAddr, via: IpAddr, via_mac: &str) -> String {
    format!(
        "{address}link set {UPLINK} up\n\
         neigh add {via} lladdr {via_mac} dev {UPLINK} nud permanent\n\
         route add {everywhere} via {via}\n",
        address = add_address(own, family.prefix(), UPLINK),
        everywhere = family.default_route(),
    )
}

/// A new link to the next host, by which everything leaves.
fn way_out(family: Family, network: u8, next: &Netns) -> String {
    format!(
        "link add {OUTSIDE} address {here} type veth peer name {INSIDE} address {there} netns {netns}\n\
         {address}\
         link set {OUTSIDE} up\n\
         neigh add {next} lladdr {there} dev {OUTSIDE} nud permanent\n\
         route add {everywhere} via {next}\n",
        here = mac(network, 1),
        there = mac(network, 2),
        netns = next.path(),
        address = add_address(family.address(network, 1), family.prefix(), OUTSIDE),
        next = family.address(network, 2),
        everywhere = family.default_route(),
    )
}

/// The other end of such a link.
fn way_in(family: Family, network: u8) -> String {
    format!(
        "{address}link set {INSIDE} up\nneigh add {from} lladdr {mac} dev {INSIDE} nud permanent\n",
        address = add_address(family.address(network, 2), family.prefix(), INSIDE),
        from = family.address(network, 1),
        mac = mac(network, 1),
    )
}

/// A line that gives a link an address, at once usable: nobody is asked whether it is a duplicate.
fn add_address(address: IpAddr, prefix: u8, link: &str) -> String {
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {address}/{prefix} dev {link}{nodad}\n")
}
