//! Pods - bridge - node - external host, as namespaces and the scripts that wire them.
//!
//! ```text
//! pod 0  10.99.0.10 --+
//! pod 1  10.99.0.11 --+-- br0 10.99.0.1 [node] x0 10.99.1.1 ---- x1 10.99.1.2 [external]
//! ```
//! Neighbours are permanent and the external host has no route to the pods, so nothing but test traffic flows and only
//! translated packets are answered.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::thread;

use super::error::LabError;
use super::netns::Netns;
use super::tools::Tools;
use super::{MAX_PODS, Mode, Scenario, Setup};

/// The node's address towards the external host: the source of every translated packet.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
/// The external host.
pub(super) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
/// Where it listens, by the lab's process id: two labs at once have the same addresses, and this tells their flows apart.
pub(super) fn external_port(lab: u32) -> u16 {
    const FIRST: u16 = 20_000;
    const PORTS: u32 = 40_000;
    FIRST + u16::try_from(lab % PORTS).unwrap_or(0)
}

/// The hold chain's queue.
pub(super) const QUEUE: u16 = 0;

/// Time to live of a first packet of pod 0; pod N has N more. Whatever else is sent has [`PLAIN_TTL`], so a
/// retransmitted SYN is told from the first without a clock.
pub(super) const MARK_TTL: u8 = 200;
/// Linux's own default.
pub(super) const PLAIN_TTL: u8 = 64;

/// Test ports are below this one; a retransmitted SYN of a forced run gets one from here on, so that it never takes the
/// port of a later round.
pub(super) const RETRY_PORTS: u16 = 50_000;

/// A pod's address.
pub(super) fn pod_address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + low_byte(pod))
}

/// The time to live of a pod's first packets.
pub(super) fn mark_ttl(pod: usize) -> u8 {
    MARK_TTL + low_byte(pod)
}

/// The pod whose first packet left the node with this time to live, forwarding having taken one off.
pub(super) fn marked_pod(ttl: u8) -> Option<usize> {
    let pod = usize::from((ttl + 1).checked_sub(MARK_TTL)?);
    (pod < MAX_PODS).then_some(pod)
}

fn low_byte(pod: usize) -> u8 {
    // `Setup` admits MAX_PODS at most.
    u8::try_from(pod % MAX_PODS).unwrap_or(0)
}

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
            node: Netns::new(true)?,
            external: Netns::new(false)?,
            pods: (0..setup.pods).map(|_| Netns::new(false)).collect::<Result<_, _>>()?,
        };
        // First, so that a kernel that cannot do it is told at once.
        tools.nft(&topology.node, "node", &rules(setup))?;
        tools.ip(&topology.node, "node", &topology.node_script())?;
        // Process starts are slow under emulation: the rest side by side.
        thread::scope(|scope| {
            let external = scope.spawn(|| tools.ip(&topology.external, "external", &external_script()));
            let pods: Vec<_> = (topology.pods.iter().enumerate())
                .map(|(pod, netns)| (pod, netns, &tools))
                .map(|(pod, netns, tools)| {
                    scope.spawn(move || tools.ip(netns, &format!("pod {pod}"), &pod_script(pod)))
                })
                .collect();
            pods.into_iter()
                .chain([external])
                .try_for_each(|handle| handle.join().map_err(|_| LabError::Ended("set-up thread"))?)
        })?;
        Ok(topology)
    }

    fn node_script(&self) -> String {
        let mut script = format!(
            "link add br0 address {bridge} type bridge mcast_snooping 0\n\
             addr add 10.99.0.1/24 dev br0\n\
             link set br0 up\n\
             link add x0 address {node} type veth peer name x1 address {external} netns {external_netns}\n\
             addr add {NODE}/24 dev x0\n\
             link set x0 up\n\
             neigh add {EXTERNAL} lladdr {external} dev x0 nud permanent\n",
            bridge = mac(0, 1),
            node = mac(1, 1),
            external = mac(1, 2),
            external_netns = self.external.path(),
        );
        for (pod, netns) in self.pods.iter().enumerate() {
            let address = pod_address(pod);
            let mac = mac(0, 10 + low_byte(pod));
            // Writing to a String cannot fail.
            let _infallible = write!(
                script,
                "link add p{pod} type veth peer name eth0 address {mac} netns {netns}\n\
                 link set p{pod} master br0\n\
                 link set p{pod} up\n\
                 neigh add {address} lladdr {mac} dev br0 nud permanent\n",
                netns = netns.path(),
            );
        }
        script
    }
}

fn pod_script(pod: usize) -> String {
    format!(
        "addr add {address}/24 dev eth0\n\
         link set eth0 up\n\
         neigh add 10.99.0.1 lladdr {bridge} dev eth0 nud permanent\n\
         route add default via 10.99.0.1\n",
        address = pod_address(pod),
        bridge = mac(0, 1),
    )
}

fn external_script() -> String {
    format!(
        "addr add {EXTERNAL}/24 dev x1\nlink set x1 up\nneigh add {NODE} lladdr {node} dev x1 nud permanent\n",
        node = mac(1, 1),
    )
}

/// A locally administered address.
fn mac(network: u8, host: u8) -> String {
    format!("02:00:0a:63:{network:02x}:{host:02x}")
}

/// The node's nft rules.
fn rules(setup: &Setup) -> String {
    let random = if setup.random_fully { " fully-random" } else { "" };
    let mut nat = String::new();
    let mut hold = String::new();
    if setup.mode == Mode::Forced {
        if setup.scenario == Scenario::SnatTcp {
            nat = format!(
                "    oifname x0 ip ttl {} ip protocol tcp masquerade to :{RETRY_PORTS}-65535{random}\n",
                PLAIN_TTL - 1
            );
        }
        // Between the choice of a port (priority 100) and its insertion (INT_MAX). Only first packets are held: a
        // retransmitted SYN must not wait for a round that is over.
        let first = MARK_TTL - 1;
        let last = mark_ttl(setup.pods.saturating_sub(1)) - 1;
        hold = format!(
            "  chain hold {{\n    type filter hook postrouting priority 200; policy accept;\n    \
             oifname x0 ct state new ip ttl {first}-{last} queue num {QUEUE}\n  }}\n"
        );
    }
    format!(
        "table ip snat_trace_lab {{\n  chain nat {{\n    type nat hook postrouting priority 100; policy accept;\n{nat}    \
         oifname x0 masquerade{random}\n  }}\n{hold}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::Control;
    use super::*;

    #[test]
    fn marks_survive_one_hop_and_are_no_plain_packets() {
        for pod in 0..MAX_PODS {
            assert_eq!(marked_pod(mark_ttl(pod) - 1), Some(pod));
        }
        assert_eq!(marked_pod(PLAIN_TTL - 1), None);
        assert_eq!(marked_pod(mark_ttl(MAX_PODS - 1)), None);
    }

    #[test]
    fn only_a_forced_run_holds_packets() {
        let mut setup =
            Setup { scenario: Scenario::SnatTcp, pods: 8, rounds: 1, mode: Mode::Forced, random_fully: true };
        let forced = rules(&setup);
        assert!(forced.contains("ip ttl 199-206 queue num 0"), "{forced}");
        assert!(forced.contains("oifname x0 masquerade fully-random"), "{forced}");
        assert!(forced.contains("ip ttl 63 ip protocol tcp masquerade to :50000-65535"), "{forced}");
        for mode in [Mode::Natural, Mode::Control(Control::OneCpu)] {
            setup.mode = mode;
            let natural = rules(&setup);
            assert!(!natural.contains("queue") && !natural.contains("ttl"), "{natural}");
        }
    }
}
