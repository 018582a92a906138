//! Pods - bridge - node - external host, as namespaces and the scripts that wire them.
//!
//! ```text
//! pod 0  10.99.0.10 --+
//! pod 1  10.99.0.11 --+-- br0 10.99.0.1 [node] x0 10.99.1.1 ---- x1 10.99.1.2 [external]
//! ```
//! Neighbours are permanent and the external host has no route to the pods, so nothing but test traffic flows and only
//! translated packets are answered.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use super::addresses::{mac, pod_mac};
use super::error::LabError;
use super::netns::Netns;
use super::rules::rules;
use super::tools::Tools;
use super::transport::Transport;
use super::{Family, Setup};

/// Every namespace of one lab.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) node: Netns,
    pub(super) external: Netns,
    pub(super) pods: Vec<Netns>,
}

impl Topology {
    /// Makes and wires the namespaces and loads the node's rules.
    pub(super) fn build(setup: &Setup) -> Result<Self, LabError> {
        let tools = Tools::find()?;
        let topology = Self {
            node: Netns::new(setup.family, true)?,
            external: Netns::new(setup.family, false)?,
            pods: (0..setup.pods).map(|_| Netns::new(setup.family, false)).collect::<Result<_, _>>()?,
        };
        // First, so that a kernel that cannot do it is told at once.
        tools.nft(&topology.node, "node", &rules(setup))?;
        if setup.scenario.transport() == Transport::Sctp {
            // Made with its tracker (net/netfilter/nf_conntrack_standalone.c).
            let setting = Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established");
            topology.node.inside(|| if setting.exists() { Ok(()) } else { Err(LabError::NoSctp) })?;
        }
        tools.ip(&topology.node, "node", &topology.node_script(setup.family))?;
        // Process starts are slow under emulation: the rest side by side.
        thread::scope(|scope| {
            let external = scope.spawn(|| tools.ip(&topology.external, "external", &external_script(setup.family)));
            let pods: Vec<_> = (topology.pods.iter().enumerate())
                .map(|(pod, netns)| (pod, netns, &tools))
                .map(|(pod, netns, tools)| {
                    scope.spawn(move || tools.ip(netns, &format!("pod {pod}"), &pod_script(setup.family, pod)))
                })
                .collect();
            pods.into_iter()
                .chain([external])
                .try_for_each(|handle| handle.join().map_err(|_| LabError::Ended("set-up thread"))?)
        })?;
        Ok(topology)
    }

    fn node_script(&self, family: Family) -> String {
        let prefix = family.prefix();
        let mut script = format!(
            "link add br0 address {bridge_mac} type bridge mcast_snooping 0\n\
             {bridge_address}\
             link set br0 up\n\
             link add x0 address {node_mac} type veth peer name x1 address {external_mac} netns {external_netns}\n\
             {node_address}\
             link set x0 up\n\
             neigh add {external} lladdr {external_mac} dev x0 nud permanent\n\
             route add {portless} via {external}\n",
            bridge_mac = mac(0, 1),
            bridge_address = add_address(family.bridge(), prefix, "br0"),
            node_mac = mac(1, 1),
            node_address = add_address(family.node(), prefix, "x0"),
            external = family.external(),
            portless = family.portless_network(),
            external_mac = mac(1, 2),
            external_netns = self.external.path(),
        );
        for (pod, netns) in self.pods.iter().enumerate() {
            // Writing to a String cannot fail.
            let _infallible = write!(
                script,
                "link add p{pod} type veth peer name eth0 address {mac} netns {netns}\n\
                 link set p{pod} master br0\n\
                 link set p{pod} up\n\
                 neigh add {address} lladdr {mac} dev br0 nud permanent\n",
                address = family.pod(pod),
                mac = pod_mac(pod),
                netns = netns.path(),
            );
        }
        script
    }
}

fn pod_script(family: Family, pod: usize) -> String {
    format!(
        "{address}link set eth0 up\n\
         neigh add {bridge} lladdr {bridge_mac} dev eth0 nud permanent\n\
         route add {everywhere} via {bridge}\n",
        address = add_address(family.pod(pod), family.prefix(), "eth0"),
        bridge = family.bridge(),
        bridge_mac = mac(0, 1),
        everywhere = family.default_route(),
    )
}

fn external_script(family: Family) -> String {
    format!(
        "{address}{portless}link set x1 up\nneigh add {node} lladdr {node_mac} dev x1 nud permanent\n",
        address = add_address(family.external(), family.prefix(), "x1"),
        portless = add_address(family.portless(std::process::id()), family.bits(), "x1"),
        node = family.node(),
        node_mac = mac(1, 1),
    )
}

/// A line of `ip` that gives a link an address, at once usable: nobody is asked whether it is a duplicate.
fn add_address(address: IpAddr, prefix: u8, link: &str) -> String {
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {address}/{prefix} dev {link}{nodad}\n")
}
