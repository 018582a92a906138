//! Scenarios whose packets lose for another reason than a race for a port, and what sets them apart.

use std::ops::RangeInclusive;

use super::error::LabError;
use super::helper::HELPER;
use super::pod::Role;
use super::scenario::Scenario;
use super::senders::Senders;
use super::setup::{Mode, Setup, refuse};
use super::table::Filling;
use super::truth::Cause;
use crate::race::event::Class;
use crate::race::failure::Reason;

impl Scenario {
    /// Why its packets lose.
    pub(super) fn cause(self) -> Cause {
        let class = match self {
            Self::SnatUdp
            | Self::SnatTcp
            | Self::SnatTcpAgain
            | Self::SnatIcmp
            | Self::SnatSctp
            | Self::AddressReuse
            | Self::Namespaces
            | Self::NatUnloaded => Class::SnatPortCollision,
            Self::Exhaustion => Class::PortExhaustion,
            Self::FixedPort | Self::Storm | Self::StalledReader => Class::FixedPort,
            Self::DuplicateFlow | Self::DuplicateFlowDnat | Self::DuplicateFlowTcp => Class::DuplicateFlow,
            Self::CrossedFlow | Self::CrossedFlowTcp => Class::CrossedFlow,
            Self::TableFull | Self::EarlyDrop => return Cause::Failure(Reason::TableFull),
            Self::ChainTooLong => return Cause::Failure(Reason::ChainTooLong),
            Self::Dying => return Cause::Failure(Reason::Dying),
            Self::Ctnetlink => return Cause::Failure(Reason::Ctnetlink),
        };
        let in_range = self.ports().map(|ports| u32::from(*ports.end()) - u32::from(*ports.start()) + 1);
        Cause::Clash { class, in_range }
    }

    /// Whether its packets race for a port, which can be forced, left to the CPUs, or prevented.
    pub(super) fn is_race(self) -> bool {
        self.cause().class() == Some(Class::SnatPortCollision)
    }

    /// Whether a packet is sent only when the one before has arrived or lost: then none races.
    pub(super) fn in_turn(self) -> bool {
        self.ports().is_some() || self.cause().class().is_none()
    }

    /// Whether the lab itself puts entries into the node's table or removes them.
    pub(super) fn changes_table(self) -> bool {
        self == Self::AddressReuse || self.cause().class().is_none() && !self.dies()
    }

    /// What the node's table is filled with before the first round.
    pub(super) fn filling(self) -> Option<Filling> {
        match self {
            Self::TableFull => Some(Filling::Kept),
            Self::EarlyDrop => Some(Filling::Evictable),
            Self::ChainTooLong => Some(Filling::Chains),
            _ => None,
        }
    }

    /// The ports its rule allows, where they are few. No pod sends from one of them.
    pub(super) fn ports(self) -> Option<RangeInclusive<u16>> {
        match self {
            Self::Exhaustion => Some(60_000..=60_015),
            Self::FixedPort | Self::Storm | Self::StalledReader => Some(60_000..=60_000),
            _ => None,
        }
    }

    /// Whether a lab is one of several, each gone when the next is made.
    pub(super) fn comes_and_goes(self) -> bool {
        self == Self::Namespaces
    }

    /// The module of the node that goes in the end, where one does.
    pub(super) fn unloads(self) -> Option<&'static str> {
        (self == Self::NatUnloaded).then_some("nf_nat")
    }

    /// Whether entries are to die on their way into the table.
    #[must_use]
    pub fn dies(self) -> bool {
        self == Self::Dying
    }

    /// The module of the whole node that is unloaded and loaded again.
    pub(super) fn changes_node(self) -> Option<&'static str> {
        if self.dies() { Some(HELPER) } else { self.unloads() }
    }

    /// Whether nobody waits for a round to end before the next begins.
    pub(super) fn pours(self) -> bool {
        self.may_be_too_much() || self.dies()
    }

    /// Whether more may happen than can be told, as long as what is not told is counted as lost.
    #[must_use]
    pub fn may_be_too_much(self) -> bool {
        self == Self::Storm || self.stalls()
    }

    /// Whether whoever reads is to stand still for a while.
    #[must_use]
    pub fn stalls(self) -> bool {
        self == Self::StalledReader
    }

    /// Whether the second packet of a round is the first, sent again.
    pub(super) fn repeats(self) -> bool {
        self == Self::DuplicateFlowTcp
    }

    /// Whether first packets never come to the node, so that those race which the kernel sends again.
    pub(super) fn races_again(self) -> bool {
        self == Self::SnatTcpAgain
    }

    /// How often the kernel is to send a packet of each pod again.
    pub(super) fn meant_again(self) -> u32 {
        u32::from(self.repeats() || self.races_again())
    }

    /// Whether both packets of a round leave by one socket: from two threads of one process, or one after the other.
    pub(super) fn has_twins(self) -> bool {
        self.cause().class() == Some(Class::DuplicateFlow)
    }

    /// Whether both ends open one connection, which comes up whichever SYN is lost.
    pub(super) fn opens_twice(self) -> bool {
        self.is_crossed() && self.transport().retransmits()
    }

    /// Whether the second pod is the external host, and both send to each other.
    pub(super) fn is_crossed(self) -> bool {
        self.cause().class() == Some(Class::CrossedFlow)
    }
}

/// How many other flows each pod sends before a round's packet, where memory is to be used again: with 200 rounds of two pods
/// there are 50 000 connections.
const BACKGROUND: u32 = 125;

impl Setup {
    /// How many flows each pod sends before a round's packet, of which none is in the way of another.
    pub(super) fn background(&self) -> u32 {
        if self.scenario == Scenario::AddressReuse { BACKGROUND } else { 0 }
    }

    /// How many connections there are in all rounds.
    pub(super) fn connections(&self) -> u64 {
        let pods = u64::try_from(self.pods).unwrap_or(0);
        u64::from(self.rounds) * pods * (1 + u64::from(self.background()))
    }

    /// Whether packets are held until the round's last has come.
    pub(super) fn holds(&self) -> bool {
        (self.scenario.is_race() || self.scenario.repeats()) && self.mode == Mode::Forced
    }

    /// Whether a pod is the external host.
    pub(super) fn is_external(&self, pod: usize) -> bool {
        self.scenario.is_crossed() && pod == 1
    }

    /// Whether what is asked for beside the scenario goes with it.
    pub(super) fn check_class(&self) -> Result<(), LabError> {
        if self.scenario.is_race() {
            return Ok(());
        }
        if self.mode != Mode::Forced || self.zones.is_some() || self.double_nat.is_some() {
            return refuse("this scenario is made in one way: without --natural, --control, --zones and --double-nat");
        }
        if self.pods != 2 && !self.scenario.in_turn() {
            return refuse("this scenario has two senders, no more");
        }
        Ok(())
    }

    /// How many processes there are to send. Each is the pod of its number; one of two threads is two pods.
    pub(super) fn processes(&self) -> usize {
        if self.scenario.has_twins() { 1 } else { self.pods }
    }

    /// How many of them find the way to the external host by a probe.
    pub(super) fn probing(&self) -> usize {
        if self.scenario.is_crossed() { 1 } else { self.processes() }
    }

    /// What a process does besides sending; `cpus` are those of all pods.
    pub(super) fn role(&self, cpus: &[Option<usize>]) -> Role {
        if self.scenario.repeats() {
            Role::Repeats
        } else if self.scenario.has_twins() {
            Role::Twins { cpu: cpus.get(1).copied().flatten() }
        } else if self.scenario.is_crossed() {
            Role::Crossed
        } else if self.senders == Senders::ShortLived {
            Role::ShortLived
        } else if self.senders == Senders::KernelThread {
            Role::Ring
        } else if self.scenario.races_again() {
            Role::Persistent
        } else {
            Role::Plain
        }
    }

    /// The pods that a process sends for.
    pub(super) fn pods_of(&self, process: usize) -> RangeInclusive<usize> {
        if self.scenario.has_twins() { 0..=1 } else { process..=process }
    }
}
