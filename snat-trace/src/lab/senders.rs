//! Who sends the packets of a lab, and what must be known of them then.

use std::fs::{self, File};
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::addresses::Family;
use super::error::{Doing, LabError};
use super::ring::Ring;
use super::scenario::Scenario;
use super::setup::{Mode, Setup, refuse};
use super::transport::Transport;
use super::truth::Naming;

/// Who sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Senders {
    /// A process per pod, from a thread of its own
    Processes,
    /// A process per packet, gone when it has sent it
    ShortLived,
    /// A process per pod, each in a pid namespace of its own
    PidNamespace,
    /// Processes of the node itself, each with an address of the node's
    Host,
    /// A thread of the kernel for each pod, which sends for its process (io_uring's poller)
    KernelThread,
    /// The kernel itself: a tunnel in each pod (vxlan), around what its process sends
    Tunnel,
    /// Nobody here: packets come in as from other machines, and the node forwards them
    Outside,
}

impl Setup {
    /// Whether these senders go with the rest.
    pub(super) fn check_senders(&self) -> Result<(), LabError> {
        let own_socket = !self.scenario.has_twins() && !self.scenario.is_crossed();
        match self.senders {
            Senders::Processes => Ok(()),
            _ if !own_socket => refuse("the senders of a duplicate or crossed flow are processes: leave out --senders"),
            Senders::Host if self.zones.is_some() || self.has_gateways() => {
                refuse("senders of the node itself are neither in zones nor behind a gateway")
            }
            Senders::Host if self.scenario.races_again() => {
                refuse("a SYN is lost on its way to the node, which it does not have from a process of the node itself")
            }
            Senders::Outside
                if self.transport() != Transport::Forwarded
                    || self.family == Family::V6
                    || self.zones.is_some()
                    || self.has_gateways() =>
            {
                refuse("packets from outside are datagrams of IPv4, neither in zones nor behind a gateway")
            }
            Senders::KernelThread if self.scenario.transport() != Transport::Udp => {
                refuse("what a thread of the kernel sends for a process are datagrams: take a scenario of UDP")
            }
            Senders::Tunnel
                if self.scenario != Scenario::SnatUdp
                    || self.mode != Mode::Forced
                    || self.random_fully
                    || self.family == Family::V6
                    || self.zones.is_some()
                    || self.has_gateways() =>
            {
                refuse(
                    "tunnels send datagrams of IPv4 (snat-udp) whose races are forced, neither in zones nor behind a gateway",
                )
            }
            _ => Ok(()),
        }
    }

    /// Whether there are such threads.
    pub(super) fn check_poller(&self) -> Result<(), LabError> {
        if self.senders != Senders::KernelThread {
            return Ok(());
        }
        Ring::new().map(drop).map_err(|reason| LabError::NoPoller { reason })
    }

    /// How many network namespaces there are besides node, external host and translators. Two that send from one address are
    /// one process, which the answers must find.
    pub(super) fn pod_namespaces(&self) -> usize {
        if self.senders == Senders::Host { 0 } else { self.processes() }
    }

    /// What the pods send by.
    pub(super) fn transport(&self) -> Transport {
        match (self.scenario.transport(), self.senders) {
            (Transport::Udp, Senders::Outside) => Transport::Forwarded,
            (Transport::Udp, Senders::Tunnel) => Transport::Tunnelled,
            (transport, _) => transport,
        }
    }

    /// Which senders the tracer must name.
    pub(super) fn naming(&self) -> Naming {
        match (self.scenario.transport(), self.senders) {
            (_, Senders::Outside | Senders::Tunnel) => Naming::Nobody,
            // One tuple of two pods has two senders.
            (Transport::Udp | Transport::Tcp, _) if self.zones.is_some() => Naming::Perhaps,
            // A datagram that a gateway has translated is followed back to its socket, in namespaces that must still be there.
            (Transport::Udp, Senders::ShortLived) if self.has_gateways() => Naming::Perhaps,
            _ if self.goes() && self.has_gateways() => Naming::Perhaps,
            // Who asked it to is known by its socket at best.
            (_, Senders::KernelThread) => Naming::Perhaps,
            // Of so many some are forgotten.
            _ if self.scenario.may_be_too_much() => Naming::Perhaps,
            (Transport::Udp | Transport::Tcp, _) if self.goes() || self.scenario.dies() => Naming::IfRecorded,
            (Transport::Udp | Transport::Tcp, Senders::ShortLived) => Naming::IfRecorded,
            (Transport::Udp | Transport::Tcp, _) => Naming::Always,
            _ => Naming::Perhaps,
        }
    }
}

/// Runs `work`; the processes it starts, and they alone, are in a new pid namespace.
pub(super) fn in_new_pid_namespace<T>(work: impl FnOnce() -> Result<T, LabError>) -> Result<T, LabError> {
    let own = File::open("/proc/thread-self/ns/pid").doing("open its pid namespace")?;
    // SAFETY: only the pid namespace of children is unshared, never the table of file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.doing("make a pid namespace")?;
    let result = work();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID)).doing("leave a pid namespace")?;
    result
}

/// The thread of a process, here, that is `inner` in the process's own pid namespace.
pub(super) fn outer_tid(pid: u32, inner: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let is_it = |status: &str| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok()) == Some(inner)
    };
    tasks
        .flatten()
        .find(|task| fs::read_to_string(task.path().join("status")).is_ok_and(|status| is_it(&status)))
        .and_then(|task| task.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::{DoubleNat, Zones};
    use super::*;

    fn check(scenario: Scenario, senders: Senders, change: fn(&mut Setup)) -> bool {
        let mut setup = Setup { senders, ..Setup::new(scenario) };
        change(&mut setup);
        setup.check().is_ok()
    }

    #[test]
    fn only_what_can_be_is_built() {
        for senders in [Senders::ShortLived, Senders::PidNamespace, Senders::Host] {
            assert!(check(Scenario::SnatUdp, senders, |_| {}) && check(Scenario::SnatTcp, senders, |_| {}));
            assert!(!check(Scenario::DuplicateFlow, senders, |_| {}) && !check(Scenario::CrossedFlow, senders, |_| {}));
        }
        assert!(!check(Scenario::SnatUdp, Senders::Host, |setup| setup.zones = Some(Zones::Original)));
        assert!(!check(Scenario::SnatUdp, Senders::Host, |setup| setup.double_nat = Some(DoubleNat::Second)));
        assert!(check(Scenario::Exhaustion, Senders::Outside, |_| {}));
        assert!(!check(Scenario::SnatUdp, Senders::Outside, |setup| setup.family = Family::V6));
        assert!(!check(Scenario::SnatTcp, Senders::Outside, |_| {}));
        assert!(check(Scenario::SnatUdp, Senders::Tunnel, |setup| setup.pods = 3));
        assert!(!check(Scenario::SnatTcp, Senders::Tunnel, |_| {}));
        assert!(!check(Scenario::SnatUdp, Senders::Tunnel, |setup| setup.mode = Mode::Natural));
    }

    #[test]
    fn behind_a_gateway_there_is_a_name_for_whoever_is_still_there() {
        let naming =
            |scenario, senders| Setup { senders, double_nat: Some(DoubleNat::Second), ..Setup::new(scenario) }.naming();
        for scenario in [Scenario::SnatUdp, Scenario::SnatTcp] {
            assert_eq!(naming(scenario, Senders::Processes), Naming::Always);
            assert_eq!(naming(scenario, Senders::PidNamespace), Naming::Always);
        }
        assert_eq!(naming(Scenario::SnatUdp, Senders::ShortLived), Naming::Perhaps);
        assert_eq!(naming(Scenario::SnatTcp, Senders::ShortLived), Naming::IfRecorded);
        assert_eq!(naming(Scenario::Namespaces, Senders::Processes), Naming::Perhaps);
        assert_eq!(naming(Scenario::SnatIcmp, Senders::Processes), Naming::Perhaps);
    }

    #[test]
    fn a_thread_is_found_by_its_number_inside() {
        // Where both numbers are one.
        let tid = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        assert_eq!(outer_tid(std::process::id(), tid), Some(tid));
        assert_eq!(outer_tid(std::process::id(), u32::MAX), None);
    }
}
