//! What to build and run.

use std::net::SocketAddr;

use rustix::thread::CpuSet;

use super::addresses::Family;
use super::error::LabError;
use super::rules::RETRY_PORTS;
use super::transport::Transport;

/// How many pods a lab may have.
pub const MAX_PODS: usize = 8;
/// First source port of the test traffic; each round takes the next.
const FIRST_PORT: u16 = 10_000;

/// What the pods send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scenario {
    /// One datagram per pod and round.
    SnatUdp,
    /// One connection per pod and round.
    SnatTcp,
    /// One echo request per pod and round: pods race for its id.
    SnatIcmp,
    /// One INIT chunk per pod and round.
    SnatSctp,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SnatUdp, Self::SnatTcp, Self::SnatIcmp, Self::SnatSctp];

    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SnatUdp => "snat-udp",
            Self::SnatTcp => "snat-tcp",
            Self::SnatIcmp => "snat-icmp",
            Self::SnatSctp => "snat-sctp",
        }
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            Self::SnatUdp => Transport::Udp,
            Self::SnatTcp => Transport::Tcp,
            Self::SnatIcmp => Transport::Icmp,
            Self::SnatSctp => Transport::Sctp,
        }
    }
}

/// How races come about, if at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Packets are held between the choice of a port and its insertion until the round's last has come: one wins, all
    /// others lose, every round.
    Forced,
    /// Pods on different CPUs send at one instant and nothing widens the window.
    Natural,
    /// As natural but for one thing, without which there is no race.
    Control(Control),
}

/// The one thing changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Control {
    /// Every pod has a source port of its own.
    DifferentPorts,
    /// All pods send from one CPU.
    OneCpu,
    /// Each pod sends after the one before has arrived.
    Sequential,
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
    /// How races come about.
    pub mode: Mode,
    /// Whether the node's rule says `fully-random`.
    pub random_fully: bool,
}

impl Setup {
    /// Two pods that race in each of 20 forced rounds.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        Self { scenario, family: Family::V4, pods: 2, rounds: 20, mode: Mode::Forced, random_fully: false }
    }

    /// Every round takes a new source port (a port that was translated once keeps its translation), and they are finite.
    #[must_use]
    pub fn max_rounds(&self) -> u32 {
        let ports = u32::from(RETRY_PORTS - FIRST_PORT);
        ports / self.ports_per_round()
    }

    fn ports_per_round(&self) -> u32 {
        match self.mode {
            Mode::Control(Control::DifferentPorts) => u32::try_from(self.pods.max(1)).unwrap_or(u32::MAX),
            _ => 1,
        }
    }

    /// Whether the tracer can name every sender, at either level of detail.
    pub(super) fn named(&self) -> bool {
        match self.scenario.transport() {
            Transport::Udp | Transport::Tcp => true,
            Transport::Icmp | Transport::Sctp => false,
        }
    }

    /// Where test traffic goes to.
    pub(super) fn destination(&self) -> SocketAddr {
        let lab = std::process::id();
        match self.scenario.transport() {
            Transport::Icmp => SocketAddr::new(self.family.portless(lab), 0),
            Transport::Udp | Transport::Tcp | Transport::Sctp => self.family.listener(lab),
        }
    }

    /// A pod's source port in a round.
    pub(super) fn port(&self, round: u32, pod: usize) -> u16 {
        let own = self.ports_per_round();
        let offset = round * own + if own > 1 { u32::try_from(pod).unwrap_or(0) } else { 0 };
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
        Ok(())
    }

    /// The CPU of each pod's sender.
    pub(super) fn cpus(&self, allowed: &CpuSet) -> Vec<Option<usize>> {
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let cpu = |pod: usize| match self.mode {
            Mode::Forced => None,
            Mode::Control(Control::OneCpu) => allowed.first().copied(),
            Mode::Natural | Mode::Control(_) => allowed.get(pod % allowed.len().max(1)).copied(),
        };
        (0..self.pods).map(cpu).collect()
    }
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
        ] {
            assert!(matches!(bad.check(), Err(LabError::Setup(_))), "{bad:?}");
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
