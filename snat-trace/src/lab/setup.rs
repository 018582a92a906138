//! What to build and run.

use std::net::{IpAddr, SocketAddr};

use rustix::thread::CpuSet;

use super::addresses::{Family, pod_network, stranger};
use super::error::LabError;
use super::links::Links;
use super::rules::RETRY_PORTS;
use super::scenario::Scenario;
use super::senders::Senders;
use super::transport::Transport;
use super::wiring::{NODE_OUTSIDE, OUTER_OUTSIDE};
use crate::race::tuple::Ends;

/// How many pods a lab may have.
pub const MAX_PODS: usize = 8;
/// First source port of the test traffic; each round takes the next.
pub(super) const FIRST_PORT: u16 = 10_000;

/// How races come about, if at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Packets are held between the choice of a port and its insertion until the round's last has come: one wins, all
    /// others lose, every round. Scenarios without a race for a port know this mode only, and nothing is held there.
    Forced,
    /// Pods on different CPUs send at one instant and nothing widens the window.
    Natural,
    /// As natural but for one thing, without which there is no race.
    Control(Control),
}

/// The one thing changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Control {
    /// Every pod has a source port of its own
    DifferentPorts,
    /// All pods send from one CPU
    OneCpu,
    /// Each pod sends after the one before has arrived
    Sequential,
}

/// By what the node translates.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Translation {
    /// To the address of the link it leaves by
    Masquerade,
    /// To an address the rule names
    Snat,
}

/// Whose rules translate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum RuleTool {
    /// nft, by a chain of nf_tables
    Nft,
    /// iptables over nf_tables
    IptablesNft,
    /// iptables with tables of its own
    IptablesLegacy,
}

/// Every pod has the same address and a conntrack zone of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Zones {
    /// In the original direction only: pods clash in the zone all answers share
    Original,
    /// In both directions: nothing clashes
    Both,
}

/// In which of two translations in a row the race is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum DoubleNat {
    /// The winner's packet is translated once more, further on
    First,
    /// Each pod's packets have been translated before, by a gateway of its own
    Second,
}

/// What to build and run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Setup {
    /// What the pods send.
    pub scenario: Scenario,
    /// Of every address.
    pub family: Family,
    /// From 2 to [`MAX_PODS`].
    pub pods: usize,
    /// How many rounds; at most [`Setup::max_rounds`].
    pub rounds: u32,
    /// The number of the first of them, of all labs of one run.
    pub first_round: u32,
    /// How races come about.
    pub mode: Mode,
    /// Whether the node's rule says `fully-random`.
    pub random_fully: bool,
    /// By what the node translates.
    pub translation: Translation,
    /// Whose rules do it.
    pub rules: RuleTool,
    /// Whether pods have zones instead of addresses of their own.
    pub zones: Option<Zones>,
    /// Whether packets are translated twice.
    pub double_nat: Option<DoubleNat>,
    /// Who sends.
    pub senders: Senders,
    /// How the node takes in what they send.
    pub links: Links,
    /// Whether the whole node may be changed for a while.
    pub change_node: bool,
}

impl Setup {
    /// Two pods that race in each of 20 forced rounds.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        Self {
            scenario,
            family: Family::V4,
            pods: 2,
            rounds: 20,
            first_round: 0,
            mode: Mode::Forced,
            random_fully: false,
            translation: Translation::Masquerade,
            rules: RuleTool::Nft,
            zones: None,
            double_nat: None,
            senders: Senders::Processes,
            links: Links::Plain,
            change_node: false,
        }
    }

    /// Every round takes a new source port (a port that was translated once keeps its translation), and they are finite.
    #[must_use]
    pub fn max_rounds(&self) -> u32 {
        let ports = u32::from(RETRY_PORTS - FIRST_PORT);
        ports / self.ports_per_round()
    }

    fn ports_per_round(&self) -> u32 {
        if self.ports_differ() {
            u32::try_from(self.pods.max(1)).unwrap_or(u32::MAX)
        } else {
            // Of a tunnel's two it is not known beforehand which.
            1 + u32::from(self.senders == Senders::Tunnel)
        }
    }

    /// Whether each pod has a port of its own in a round, as they would race else.
    fn ports_differ(&self) -> bool {
        self.scenario.dies() || self.mode == Mode::Control(Control::DifferentPorts)
    }

    /// Whether each pod has a translator between it and the node.
    pub(super) fn has_gateways(&self) -> bool {
        self.double_nat == Some(DoubleNat::Second)
    }

    /// Whether there is a translator between the node and the external host.
    pub(super) fn has_outer(&self) -> bool {
        self.double_nat == Some(DoubleNat::First)
    }

    /// How many times a pod's packet is forwarded before the node's hold chain sees it.
    pub(super) fn hops(&self) -> u8 {
        match self.senders {
            Senders::Host => 0,
            _ if self.has_gateways() => 2,
            _ => 1,
        }
    }

    /// A pod's own address.
    pub(super) fn own(&self, pod: usize) -> IpAddr {
        if self.is_external(pod) {
            self.listener().ip()
        } else if self.has_gateways() {
            self.family.address(pod_network(pod), 2)
        } else {
            self.seen_by_node(pod)
        }
    }

    /// The address a pod's packets have when they come to the node.
    pub(super) fn seen_by_node(&self, pod: usize) -> IpAddr {
        self.family.pod(if self.zones.is_some() || self.scenario.has_twins() { 0 } else { pod })
    }

    /// The conntrack zone of a pod's flows.
    pub(super) fn zone(&self, pod: usize) -> u16 {
        self.zones.and_then(|_| u16::try_from(pod + 1).ok()).unwrap_or(0)
    }

    /// Where the external host listens. Its port is by the lab's process id: two labs at once have the same addresses,
    /// and this tells their flows apart.
    pub(super) fn listener(&self) -> SocketAddr {
        const FIRST: u16 = 20_000;
        const PORTS: u32 = 40_000;
        let port = FIRST + u16::try_from(std::process::id() % PORTS).unwrap_or(0);
        let network = if self.has_outer() { OUTER_OUTSIDE } else { NODE_OUTSIDE };
        SocketAddr::new(self.family.address(network, 2), port)
    }

    /// A pod's flow in a round, as it reaches the node.
    pub(super) fn ends(&self, round: u32, pod: usize) -> Ends {
        let port = self.port(round, pod);
        let address = |pod| match self.senders {
            Senders::Outside => stranger(self.own(pod)),
            _ if self.is_external(pod) => self.own(pod),
            _ => self.seen_by_node(pod),
        };
        let source = |pod| SocketAddr::new(address(pod), port);
        let destination = if self.scenario.is_crossed() { source(1 - pod.min(1)) } else { self.destination() };
        Ends { source: source(pod), destination }
    }

    /// Where test traffic goes to, if it is to the external host's listener.
    pub(super) fn destination(&self) -> SocketAddr {
        match self.scenario.transport() {
            Transport::Icmp => SocketAddr::new(self.family.portless(std::process::id()), 0),
            Transport::Udp | Transport::Forwarded | Transport::Tunnelled | Transport::Tcp | Transport::Sctp => {
                self.listener()
            }
        }
    }

    /// The source the node gave a packet, by the source the external host sees: a second translator keeps the port.
    pub(super) fn translated(&self, arrived: SocketAddr) -> SocketAddr {
        let address = if self.has_outer() { self.family.node() } else { arrived.ip() };
        SocketAddr::new(address, arrived.port())
    }

    /// A pod's source port in a round.
    pub(super) fn port(&self, round: u32, pod: usize) -> u16 {
        let own = if self.ports_differ() { u32::try_from(pod).unwrap_or(0) } else { 0 };
        let offset = (self.first_round + round) * self.ports_per_round() + own;
        FIRST_PORT + u16::try_from(offset).unwrap_or(0)
    }

    /// Whether such a lab can be built.
    ///
    /// # Errors
    ///
    /// [`LabError::Setup`] says what is too few or too many.
    pub fn check(&self) -> Result<(), LabError> {
        if !(2..=MAX_PODS).contains(&self.pods) {
            return Err(LabError::Setup(format!("a lab has from 2 to {MAX_PODS} pods, not {}", self.pods)));
        }
        if !(1..=self.max_rounds()).contains(&self.rounds) {
            return Err(LabError::Setup(format!(
                "a lab of {} pods has from 1 to {} rounds of this kind, not {}",
                self.pods,
                self.max_rounds(),
                self.rounds
            )));
        }
        if self.zones.is_some() && self.scenario.transport().retransmits() {
            return refuse("pods in zones have one address, so no answer finds its pod and no connection comes up");
        }
        if self.zones.is_some() && self.double_nat.is_some() {
            return refuse("pods are in zones or translated twice, not both");
        }
        self.check_class()?;
        self.check_senders()?;
        self.check_links()?;
        self.check_node()
    }

    /// The CPU of each pod's sender.
    pub(super) fn cpus(&self, allowed: &CpuSet) -> Vec<Option<usize>> {
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let cpu = |pod: usize| match self.mode {
            Mode::Forced if self.holds() => None,
            Mode::Control(Control::OneCpu) => allowed.first().copied(),
            Mode::Forced | Mode::Natural | Mode::Control(_) => allowed.get(pod % allowed.len().max(1)).copied(),
        };
        (0..self.pods).map(cpu).collect()
    }
}

pub(super) fn refuse(why: &str) -> Result<(), LabError> {
    Err(LabError::Setup(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(mode: Mode) -> Setup {
        Setup { mode, ..Setup::new(Scenario::SnatUdp) }
    }

    #[test]
    fn ports_are_new_every_round_and_stay_below_those_of_retries() {
        for mode in [Mode::Forced, Mode::Control(Control::DifferentPorts)] {
            let setup = setup(mode);
            let last = setup.max_rounds() - 1;
            assert!(setup.port(last, setup.pods - 1) < RETRY_PORTS);
            assert!(setup.port(1, 0) > setup.port(0, setup.pods - 1));
            let different = setup.port(5, 0) != setup.port(5, 1);
            assert_eq!(different, mode == Mode::Control(Control::DifferentPorts));
        }
    }

    #[test]
    fn impossible_setups_are_refused_in_a_sentence() {
        let good = setup(Mode::Natural);
        good.check().unwrap();
        for bad in [
            Setup { pods: 1, ..good },
            Setup { pods: MAX_PODS + 1, ..good },
            Setup { rounds: 0, ..good },
            Setup { rounds: good.max_rounds() + 1, ..good },
            Setup { zones: Some(Zones::Both), scenario: Scenario::SnatTcp, ..good },
            Setup { zones: Some(Zones::Original), double_nat: Some(DoubleNat::First), ..good },
        ] {
            assert!(matches!(bad.check(), Err(LabError::Setup(_))), "{bad:?}");
        }
        for scenario in [Scenario::Exhaustion, Scenario::DuplicateFlow, Scenario::CrossedFlow] {
            let good = Setup::new(scenario);
            good.check().unwrap();
            for bad in [
                Setup { mode: Mode::Natural, ..good },
                Setup { zones: Some(Zones::Both), ..good },
                Setup { double_nat: Some(DoubleNat::First), ..good },
            ] {
                assert!(matches!(bad.check(), Err(LabError::Setup(_))), "{bad:?}");
            }
            assert_eq!(Setup { pods: 3, ..good }.check().is_ok(), scenario == Scenario::Exhaustion);
        }
    }

    #[test]
    fn senders_are_pinned_as_the_mode_wants() {
        let mut allowed = CpuSet::new();
        allowed.set(3);
        allowed.set(5);
        for (mode, expected) in [
            (Mode::Forced, [None, None]),
            (Mode::Natural, [Some(3), Some(5)]),
            (Mode::Control(Control::OneCpu), [Some(3), Some(3)]),
        ] {
            assert_eq!(setup(mode).cpus(&allowed), expected, "{mode:?}");
        }
    }
}
