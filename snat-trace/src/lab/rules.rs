//! The node's rules: translation by the tool asked for, and by nft the chains that hold packets and put pods in zones.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::addresses::{Family, PLAIN_TTL, mark, pod_mac};
use super::error::LabError;
use super::netns::Netns;
use super::scenario::Scenario;
use super::setup::{FIRST_PORT, RuleTool, Setup, Translation, Zones};
use super::tools::Tools;
use super::wiring::OUTSIDE;

/// Rules a packet of a crossed flow must pass: some tens of microseconds' worth.
const SLOW_RULES: usize = 1000;
/// Those of a packet whose entry is to die on the way: it is to be on it most of the time.
const LONG_RULES: usize = 5000;

/// The hold chain's queue.
pub(super) const QUEUE: u16 = 0;

/// The external host's port to which every other new flow goes, in the scenario that has two backends.
pub(super) const SECOND_BACKEND: u16 = 61_000;

/// Test ports are below this one; a retransmitted SYN of a forced run gets one from here on, so that it never takes the
/// port of a later round.
pub(super) const RETRY_PORTS: u16 = 50_000;

/// Everything the node is to be told.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Rules {
    /// For `nft -f`; empty when it is not needed.
    nft: String,
    /// For `iptables` or its like, one command each.
    iptables: Vec<String>,
    tool: RuleTool,
    family: Family,
}

impl Rules {
    /// What a setup needs.
    pub(super) fn of(setup: &Setup) -> Self {
        let Setup { family, rules: tool, .. } = *setup;
        let mut chains = zone_chain(setup);
        let mut iptables = Vec::new();
        let translate = Translate::all_of(setup);
        if tool == RuleTool::Nft {
            chains.push_str("  chain nat {\n    type nat hook postrouting priority 100; policy accept;\n");
            translate.for_each(|rule| chains.push_str(&rule.nft(setup)));
            chains.push_str("  }\n");
        } else {
            iptables.extend(translate.map(|rule| rule.iptables(setup)));
        }
        if setup.scenario.races_again() {
            chains.push_str(&lose_first(setup));
        }
        if setup.holds() {
            chains.push_str(&hold_chain(setup));
        }
        if setup.scenario == Scenario::DuplicateFlowDnat {
            chains.push_str(&backend_chain(setup));
        }
        if setup.scenario.is_crossed() || setup.scenario.dies() {
            chains.push_str(&slow_chain(if setup.scenario.dies() { LONG_RULES } else { SLOW_RULES }));
        }
        if setup.scenario.opens_twice() {
            chains.push_str(LATE_CHAIN);
        }
        let nft = if chains.is_empty() { String::new() } else { table(family, &chains) };
        Self { nft, iptables, tool, family }
    }

    /// Tells them.
    pub(super) fn load(&self, tools: &Tools, node: &Netns) -> Result<(), LabError> {
        if !self.nft.is_empty() {
            tools.nft(node, "node", &self.nft)?;
        }
        self.iptables.iter().try_for_each(|rule| tools.iptables(self.tool, self.family, node, rule))
    }
}

/// The rules of a translator where nothing races.
pub(super) fn masquerade(family: Family, link: &str) -> String {
    let chain = "  chain nat {\n    type nat hook postrouting priority 100; policy accept;\n";
    table(family, &format!("{chain}    oifname {link} masquerade\n  }}\n"))
}

fn table(family: Family, chains: &str) -> String {
    let table = if family == Family::V4 { "ip" } else { "ip6" };
    format!("table {table} snat_trace_lab {{\n{chains}}}\n")
}

/// What nft calls the time to live.
fn ttl(family: Family) -> &'static str {
    if family == Family::V4 { "ip ttl" } else { "ip6 hoplimit" }
}

/// One rule that translates.
#[derive(Clone, Copy, Debug)]
enum Translate {
    /// Only what has not the mark of a first packet, to ports no round takes.
    Retried,
    /// Only test traffic, to few ports: no probe takes one of them.
    Few,
    Everything,
}

impl Translate {
    fn all_of(setup: &Setup) -> impl Iterator<Item = Self> {
        let retried = setup.holds() && setup.scenario.transport().retransmits();
        let rules = [
            (retried, Self::Retried),
            (setup.scenario.ports().is_some(), Self::Few),
            (!setup.scenario.is_crossed(), Self::Everything),
        ];
        rules.into_iter().filter_map(|(needed, rule)| needed.then_some(rule))
    }

    fn nft(self, setup: &Setup) -> String {
        let random = if setup.random_fully { " fully-random" } else { "" };
        let (only, ports) = match self {
            Self::Everything => (String::new(), String::new()),
            Self::Few => (format!(" {}", test_traffic()), format!(":{}", few(setup))),
            Self::Retried => (
                format!(" {} {} meta l4proto tcp", ttl(setup.family), retry_ttl(setup)),
                format!(":{RETRY_PORTS}-65535"),
            ),
        };
        let translation = match (setup.translation, ports.is_empty()) {
            (Translation::Masquerade, true) => "masquerade".to_owned(),
            (Translation::Masquerade, false) => format!("masquerade to {ports}"),
            (Translation::Snat, _) => format!("snat to {}{ports}", with_ports(setup.family.node(), &ports)),
        };
        format!("    oifname {OUTSIDE}{only} {translation}{random}\n")
    }

    fn iptables(self, setup: &Setup) -> String {
        let random = if setup.random_fully { " --random-fully" } else { "" };
        let (module, option) = if setup.family == Family::V4 { ("ttl", "--ttl-eq") } else { ("hl", "--hl-eq") };
        let (only, ports) = match self {
            Self::Everything => (String::new(), String::new()),
            Self::Few => (format!(" -p udp --sport {FIRST_PORT}:{}", RETRY_PORTS - 1), few(setup)),
            Self::Retried => {
                (format!(" -p tcp -m {module} {option} {}", retry_ttl(setup)), format!("{RETRY_PORTS}-65535"))
            }
        };
        let translation = match (setup.translation, ports.is_empty()) {
            (Translation::Masquerade, true) => "MASQUERADE".to_owned(),
            (Translation::Masquerade, false) => format!("MASQUERADE --to-ports {ports}"),
            (Translation::Snat, true) => format!("SNAT --to-source {}", setup.family.node()),
            (Translation::Snat, false) => {
                format!("SNAT --to-source {}:{ports}", with_ports(setup.family.node(), &ports))
            }
        };
        format!("-w -t nat -A POSTROUTING -o {OUTSIDE}{only} -j {translation}{random}")
    }
}

/// What nft matches test traffic by.
fn test_traffic() -> String {
    format!("udp sport {FIRST_PORT}-{}", RETRY_PORTS - 1)
}

/// The few ports of a scenario that has them.
fn few(setup: &Setup) -> String {
    match setup.scenario.ports().map(RangeInclusive::into_inner) {
        Some((first, last)) if first == last => first.to_string(),
        Some((first, last)) => format!("{first}-{last}"),
        None => String::new(),
    }
}

/// Sends every other new flow to a second backend.
fn backend_chain(setup: &Setup) -> String {
    let (first, test) = (setup.destination(), test_traffic());
    let second = SocketAddr::new(first.ip(), SECOND_BACKEND);
    format!(
        "  chain backends {{\n    type nat hook prerouting priority -100; policy accept;\n    \
         {test} numgen inc mod 2 0 dnat to {first}\n    {test} dnat to {second}\n  }}\n"
    )
}

/// Takes its time over packets whose flow is not in the table yet, so that two which come by ways of different length
/// meet there, or something happens meanwhile.
fn slow_chain(rules: usize) -> String {
    let rules = "    ct state new udp sport 1\n".repeat(rules);
    format!("  chain slow {{\n    type filter hook forward priority 0; policy accept;\n{rules}  }}\n")
}

/// Before connection tracking (priority -200), takes refusals away: of two ends that open a connection at once one may come
/// before the other is there, and must not be told so.
const LATE_CHAIN: &str = "  chain late {\n    type filter hook prerouting priority -300; policy accept;\n    \
                          tcp flags & rst == rst drop\n  }\n";

/// The time to live of a retransmitted SYN when it is translated.
fn retry_ttl(setup: &Setup) -> u8 {
    PLAIN_TTL - setup.hops()
}

/// An address as it stands before ports.
fn with_ports(address: IpAddr, ports: &str) -> String {
    if address.is_ipv6() && !ports.is_empty() { format!("[{address}]") } else { address.to_string() }
}

/// Between the choice of a port (priority 100) and its insertion (INT_MAX). Only first packets are held: a retransmitted
/// SYN must not wait for a round that is over.
fn hold_chain(setup: &Setup) -> String {
    let (first, last) = (mark(0), mark(setup.pods.saturating_sub(1)));
    format!(
        "  chain hold {{\n    type filter hook postrouting priority 200; policy accept;\n    \
         oifname {OUTSIDE} ct state new {ttl} {first}-{last} queue num {QUEUE}\n  }}\n",
        ttl = ttl(setup.family)
    )
}

/// Before connection tracking (priority -200), takes each flow's first SYN away, and the mark from every one that follows the
/// second: the flow has lost then.
fn lose_first(setup: &Setup) -> String {
    let (source, hops) = match setup.family {
        Family::V4 => ("ip saddr", "ip ttl"),
        Family::V6 => ("ip6 saddr", "ip6 hoplimit"),
    };
    let set = |name| format!("  set {name} {{\n    typeof {source} . tcp sport\n    flags dynamic\n  }}\n");
    let syn = "tcp flags & (syn | ack) == syn";
    let flow = format!("{{ {source} . tcp sport }}");
    format!(
        "{}{}  chain lost {{\n    type filter hook prerouting priority -300; policy accept;\n    \
         {syn} {source} . tcp sport @again {hops} set {} accept\n    \
         {syn} {source} . tcp sport @once add @again {flow} accept\n    \
         {syn} add @once {flow} drop\n  }}\n",
        set("once"),
        set("again"),
        retry_ttl(setup) + 1,
    )
}

/// Before connection tracking (priority -200), a zone for each pod, told by its link-layer address.
fn zone_chain(setup: &Setup) -> String {
    let direction = match setup.zones {
        None => return String::new(),
        Some(Zones::Original) => "original ",
        Some(Zones::Both) => "",
    };
    let mut chain = "  chain zones {\n    type filter hook prerouting priority -300; policy accept;\n".to_owned();
    for pod in 0..setup.pods {
        // Writing to a String cannot fail.
        let _infallible =
            writeln!(chain, "    ether saddr {} ct {direction}zone set {}", pod_mac(pod), setup.zone(pod));
    }
    chain + "  }\n"
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::super::{Control, Mode};
    use super::*;

    fn tcp() -> Setup {
        Setup::new(Scenario::SnatTcp)
    }

    #[test]
    fn only_a_forced_run_holds_packets() {
        let mut setup = Setup { pods: 8, random_fully: true, ..tcp() };
        let forced = Rules::of(&setup).nft;
        assert!(forced.contains("ip ttl 200-207 queue num 0"), "{forced}");
        assert!(forced.contains("oifname x0 masquerade fully-random"), "{forced}");
        assert!(forced.contains("ip ttl 63 meta l4proto tcp masquerade to :50000-65535"), "{forced}");
        setup.family = Family::V6;
        let forced = Rules::of(&setup).nft;
        assert!(forced.contains("ip6 hoplimit 200-207 queue num 0") && !forced.contains("ip ttl"), "{forced}");
        for mode in [Mode::Natural, Mode::Control(Control::OneCpu)] {
            setup.mode = mode;
            let natural = Rules::of(&setup).nft;
            assert!(!natural.contains("queue") && !natural.contains("hoplimit"), "{natural}");
        }
    }

    #[test]
    fn iptables_translates_and_nft_holds() {
        let setup = Setup { rules: RuleTool::IptablesLegacy, translation: Translation::Snat, ..tcp() };
        let Rules { nft, iptables, .. } = Rules::of(&setup);
        assert!(nft.contains("queue num 0") && !nft.contains("type nat"), "{nft}");
        assert_eq!(
            iptables,
            [
                "-w -t nat -A POSTROUTING -o x0 -p tcp -m ttl --ttl-eq 63 -j SNAT --to-source 10.99.1.1:50000-65535",
                "-w -t nat -A POSTROUTING -o x0 -j SNAT --to-source 10.99.1.1",
            ]
        );
        let natural = Setup { family: Family::V6, mode: Mode::Natural, random_fully: true, ..setup };
        let Rules { nft, iptables, .. } = Rules::of(&natural);
        let rule = "-w -t nat -A POSTROUTING -o x0 -j SNAT --to-source fd99:0:0:1::1 --random-fully";
        assert_eq!((nft.as_str(), iptables), ("", vec![rule.to_owned()]));
        let forced = Setup { family: Family::V6, ..setup };
        assert!(Rules::of(&forced).iptables[0].ends_with("--to-source [fd99:0:0:1::1]:50000-65535"));
    }

    #[test]
    fn where_nothing_races_for_a_port_nothing_is_held() {
        let of = |scenario| Rules::of(&Setup { random_fully: true, ..Setup::new(scenario) }).nft;
        let others = Scenario::value_variants().iter().filter(|scenario| !scenario.is_race() && !scenario.repeats());
        for scenario in others {
            assert!(!of(*scenario).contains("queue"), "{scenario:?}");
        }
        assert!(of(Scenario::Exhaustion).contains("udp sport 10000-49999 masquerade to :60000-60015 fully-random\n"));
        assert!(of(Scenario::FixedPort).contains("masquerade to :60000 fully-random\n"));
        assert!(
            of(Scenario::DuplicateFlow).contains("masquerade") && !of(Scenario::CrossedFlow).contains("masquerade")
        );
        assert!(of(Scenario::DuplicateFlowDnat).contains("dnat to 10.99.1.2:61000\n"));
        for (scenario, late) in [(Scenario::CrossedFlow, false), (Scenario::CrossedFlowTcp, true)] {
            assert_eq!(of(scenario).contains("tcp flags & rst == rst drop"), late, "{scenario:?}");
        }
        let legacy = Setup { rules: RuleTool::IptablesLegacy, ..Setup::new(Scenario::Exhaustion) };
        let rule = "-w -t nat -A POSTROUTING -o x0 -p udp --sport 10000:49999 -j MASQUERADE --to-ports 60000-60015";
        assert_eq!(Rules::of(&legacy).iptables[0], rule);
    }

    #[test]
    fn every_pod_has_a_zone() {
        let setup = Setup { zones: Some(Zones::Original), ..Setup::new(Scenario::SnatUdp) };
        let rules = Rules::of(&setup).nft;
        assert!(rules.contains("ether saddr 02:00:0a:63:00:0b ct original zone set 2"), "{rules}");
        let rules = Rules::of(&Setup { zones: Some(Zones::Both), ..setup }).nft;
        assert!(rules.contains("ether saddr 02:00:0a:63:00:0b ct zone set 2"), "{rules}");
    }
}
