//! The namespaces of a lab and how they are made.
//!
//! ```text
//! pod 0  10.99.0.10 --+
//! pod 1  10.99.0.11 --+-- br0 10.99.0.1 [node] 10.99.1.1 ---- 10.99.1.2 [external]
//!
//! twice, racing in the first translation:
//! pods --+-- [node] 10.99.1.1 ---- 10.99.1.2 [outer] 10.99.3.1 ---- 10.99.3.2 [external]
//!
//! twice, racing in the second:
//! pod 0  10.99.100.2 ---- [gateway 0] 10.99.0.10 --+
//! pod 1  10.99.101.2 ---- [gateway 1] 10.99.0.11 --+-- [node] ---- [external]
//! ```
//!
//! Senders of the node itself are in its namespace, each with an address of its own on its loopback.
//!
//! The node is always where the race is.

use std::path::Path;
use std::thread;

use super::addresses::Family;
use super::error::{Doing, LabError};
use super::links;
use super::netns::Netns;
use super::resident::Resident;
use super::rules::{Rules, masquerade};
use super::setup::Setup;
use super::tools::Tools;
use super::transport::Transport;
use super::wiring::{self, OUTSIDE, UPLINK};

/// Every namespace of one lab.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) node: Netns,
    pub(super) external: Netns,
    pub(super) pods: Vec<Netns>,
    /// A second translator after the node.
    outer: Option<Netns>,
    /// Translators before the node, one per pod or none.
    gateways: Vec<Netns>,
    /// In each of those.
    _residents: Vec<Resident>,
}

impl Topology {
    /// Makes and wires the namespaces and loads the translators' rules.
    pub(super) fn build(setup: &Setup) -> Result<Self, LabError> {
        let tools = Tools::find()?;
        if setup.family == Family::V6 && !Path::new("/proc/sys/net/ipv6/conf").exists() {
            return Err(LabError::NoIpv6);
        }
        let host = |_| Netns::new(setup.family, false);
        let router = |_| Netns::new(setup.family, true);
        let gateways = if setup.has_gateways() { setup.pods } else { 0 };
        let gateways: Vec<Netns> = vec![(); gateways].into_iter().map(router).collect::<Result<_, _>>()?;
        let topology = Self {
            _residents: gateways.iter().map(Resident::of).collect::<Result<_, _>>()?,
            node: router(())?,
            external: host(())?,
            pods: vec![(); setup.pod_namespaces()].into_iter().map(host).collect::<Result<_, _>>()?,
            outer: setup.has_outer().then_some(()).map(router).transpose()?,
            gateways,
        };
        // First, so that a kernel that cannot do it is told at once.
        Rules::of(setup).load(&tools, &topology.node)?;
        if setup.scenario.transport() == Transport::Sctp {
            // Made with its tracker (net/netfilter/nf_conntrack_standalone.c).
            let setting = Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established");
            topology.node.inside(|| if setting.exists() { Ok(()) } else { Err(LabError::NoSctp) })?;
        }
        if setup.scenario.in_turn() {
            // Not one entry ends before the run does. Where it cannot be set, that is 30 seconds.
            let setting = Path::new("/proc/sys/net/netfilter/nf_conntrack_udp_timeout");
            topology.node.inside(|| {
                let _default = std::fs::write(setting, "3600");
                Ok(())
            })?;
        }
        if setup.scenario.dies() {
            // So that each entry has an extension from the start, for kernels that outdate those.
            let setting = Path::new("/proc/sys/net/netfilter/nf_conntrack_acct");
            topology.node.inside(|| std::fs::write(setting, "1").doing("have the node count packets"))?;
        }
        topology.wire(setup, &tools)?;
        links::set(setup, &topology.node)?;
        Ok(topology)
    }

    /// Each step makes the links of the next.
    fn wire(&self, setup: &Setup, tools: &Tools) -> Result<(), LabError> {
        let family = setup.family;
        let behind = if self.gateways.is_empty() { &self.pods } else { &self.gateways };
        let next = self.outer.as_ref().unwrap_or(&self.external);
        tools.ip(&self.node, "node", &wiring::node(setup, behind, next))?;

        let mut translators = Vec::new();
        if let Some(outer) = &self.outer {
            tools.nft(outer, "outer", &masquerade(family, OUTSIDE))?;
            translators.push(("outer".to_owned(), outer, wiring::outer(family, &self.external)));
        }
        for (pod, (gateway, netns)) in self.gateways.iter().zip(&self.pods).enumerate() {
            let place = format!("gateway {pod}");
            tools.nft(gateway, &place, &masquerade(family, UPLINK))?;
            let script = wiring::on_bridge(setup, pod) + &wiring::gateway(family, pod, netns);
            translators.push((place, gateway, script));
        }
        side_by_side(tools, &translators)?;

        let mut hosts = vec![("external".to_owned(), &self.external, wiring::external(setup))];
        for (pod, netns) in self.pods.iter().enumerate() {
            let script = if self.gateways.is_empty() {
                wiring::on_bridge(setup, pod)
            } else {
                wiring::behind_gateway(family, pod)
            };
            hosts.push((format!("pod {pod}"), netns, script));
        }
        side_by_side(tools, &hosts)
    }
}

/// Runs scripts of `ip` in their namespaces, all at once: process starts are slow under emulation.
pub(super) fn side_by_side(tools: &Tools, scripts: &[(String, &Netns, String)]) -> Result<(), LabError> {
    thread::scope(|scope| {
        let run = |(place, netns, script): &(String, &Netns, String)| tools.ip(netns, place, script);
        let started: Vec<_> = scripts.iter().map(|script| scope.spawn(move || run(script))).collect();
        started.into_iter().try_for_each(|handle| handle.join().map_err(|_| LabError::Ended("set-up thread"))?)
    })
}
