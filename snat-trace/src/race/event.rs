//! What snat-trace says of one clash.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::time::KernelTime;
use super::tuple::{OriginalTuple, Protocol, TranslatedTuple};
use crate::owner::{Behind, Container, Owner, Pod};

/// Inode number of a network namespace, as in `/proc/PID/ns/net`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetnsInum(pub u32);

/// Why two entries claimed one tuple.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// Two flows were given the same translated tuple because neither could see the other's choice: the race.
    SnatPortCollision,
    /// The winner was in the table before the loser asked: the allocator found no free port in the rule's range.
    PortExhaustion,
    /// The rule allows one port only, or the protocol has none, so the kernel had nothing to choose.
    FixedPort,
    /// Two packets of one flow made an entry each.
    DuplicateFlow,
    /// Both ends opened the flow towards each other at once.
    CrossedFlow,
    /// None of these.
    Unclassified,
}

impl Class {
    /// Every class, in the order of a summary.
    pub const ALL: [Self; 6] = [
        Self::SnatPortCollision,
        Self::PortExhaustion,
        Self::FixedPort,
        Self::DuplicateFlow,
        Self::CrossedFlow,
        Self::Unclassified,
    ];

    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SnatPortCollision => "snat-port-collision",
            Self::PortExhaustion => "port-exhaustion",
            Self::FixedPort => "fixed-port",
            Self::DuplicateFlow => "duplicate-flow",
            Self::CrossedFlow => "crossed-flow",
            Self::Unclassified => "unclassified",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the kernel did with the loser's packet.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// Dropped; the kernel counted one `insert_failed` and one `drop`.
    Dropped,
    /// Sent on as a packet of the winner's entry; counted in `clash_resolve`.
    Resolved,
    /// Sent on, with an entry in the reply direction only; counted in `clash_resolve`.
    ResolvedReplyOnly,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 3] = [Self::Dropped, Self::Resolved, Self::ResolvedReplyOnly];

    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Resolved => "resolved",
            Self::ResolvedReplyOnly => "resolved-reply-only",
        }
    }
}

/// What the NAT rule allowed the loser.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NatRule {
    /// `random` or `fully-random` was asked for.
    pub random: bool,
    /// Lowest and highest port in host byte order, when the rule names them.
    pub ports: Option<(u16, u16)>,
}

/// The range a port was chosen from, and how full it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortUse {
    /// How many ports, or ids of an echo, the loser could have been given.
    pub in_range: u32,
    /// How many of them entries held toward the same destination, counted within a second of the clash; `None` when they
    /// could not be counted.
    pub in_use: Option<u32>,
}

/// One side of a clash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// As the sender made it.
    pub original: OriginalTuple,
    /// When it asked for a port.
    pub allocated: Option<KernelTime>,
    /// When it went into the table.
    pub inserted: Option<KernelTime>,
    /// CPU on which it asked for a port; for a loser without an allocation, the CPU of the clash.
    pub cpu: Option<u32>,
    /// Who sent it.
    pub owner: Option<Owner>,
    /// Where answers to it go, if nobody here is known to have sent it.
    pub behind: Option<Behind>,
}

impl Flow {
    /// The container and the pod it is of: its sender's, or where that is not known what is behind its source.
    #[must_use]
    pub fn place(&self) -> (Option<&Container>, Option<&Pod>) {
        match (&self.owner, &self.behind) {
            (Some(owner), _) => (owner.container.as_ref(), owner.pod.as_ref()),
            (None, Some(behind)) => (behind.container.as_ref(), behind.pod.as_ref()),
            (None, None) => (None, None),
        }
    }
}

/// One clash, classified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Race {
    /// When the loser's insert failed.
    pub time: KernelTime,
    /// Why.
    pub class: Class,
    /// What became of the packet; `None` where the tuples do not prove it.
    pub verdict: Option<Verdict>,
    /// Of both flows.
    pub protocol: Protocol,
    /// Where the entries live.
    pub netns: Option<NetnsInum>,
    /// Conntrack zone of the loser.
    pub zone: u16,
    /// Conntrack zone of the winner: with zones for one direction, two flows of one tuple may clash in the other.
    pub winner_zone: u16,
    /// The tuple both claimed.
    pub contested: TranslatedTuple,
    /// How long both held the tuple without either being in the table: from the later allocation to the winner's insert.
    pub overlap: Option<Duration>,
    /// What the rule allowed the loser.
    pub nat: Option<NatRule>,
    /// How full that was, where the class is about it.
    pub port_use: Option<PortUse>,
    /// The flow that was there.
    pub winner: Flow,
    /// The flow that was too late.
    pub loser: Flow,
    /// The loser's packet from its network header on, translated, cut at 128 bytes; empty when it could not be read.
    pub packet: Bytes,
}
