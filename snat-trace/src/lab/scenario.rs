//! What the pods of a lab send.

use super::transport::Transport;

/// What the pods send.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Scenario {
    /// A datagram per pod and round
    SnatUdp,
    /// A connection per pod and round
    SnatTcp,
    /// The same, and each connection's first SYN is lost before the node looks at it: those race that are sent again
    SnatTcpAgain,
    /// An echo request per pod and round, its id in the place of a port
    SnatIcmp,
    /// An INIT chunk per pod and round
    SnatSctp,
    /// A datagram per pod and round, and each round's entries are removed: the next ones lie where they lay
    AddressReuse,
    /// A datagram per pod and round, and every fourth round the whole lab is gone, and another made
    Namespaces,
    /// A datagram per pod and round, one after the other, through a rule of 16 ports: when they are taken, all lose
    Exhaustion,
    /// The same through a rule of one port: all lose but the first
    FixedPort,
    /// The same as fast as pods can send: what tracing does not tell of it, it must count as lost
    Storm,
    /// A storm during which nobody reads for a second: what finds no room meanwhile must be counted as lost
    StalledReader,
    /// Two datagrams at once by one socket, from two threads
    DuplicateFlow,
    /// The same, and the node sends every other new flow to a second backend
    DuplicateFlowDnat,
    /// A connection per round whose SYN waits on the node until it is sent again, a second later
    DuplicateFlowTcp,
    /// A pod and the external host send to each other at once, and nothing is translated
    CrossedFlow,
    /// The same with a connection: both ends open it at once
    CrossedFlowTcp,
    /// A datagram per pod and round, and in the end nf_nat is unloaded on the whole node, and loaded again
    NatUnloaded,
    /// No race: a datagram per pod and round, and the node's table is full of entries that stay; all lose
    TableFull,
    /// No race: the same with entries that go when room is needed; hardly any loses
    EarlyDrop,
    /// No race: the same in a table with too few buckets, which are a setting of the whole node; many lose
    ChainTooLong,
    /// No race: datagrams as fast as pods can send, while a helper of connection tracking is unloaded and loaded on the whole
    /// node, which kills entries that are on their way into the table
    Dying,
    /// No race: what is there already is to be made once more through ctnetlink, and refused
    Ctnetlink,
}

impl Scenario {
    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SnatUdp => "snat-udp",
            Self::SnatTcp => "snat-tcp",
            Self::SnatTcpAgain => "snat-tcp-again",
            Self::SnatIcmp => "snat-icmp",
            Self::SnatSctp => "snat-sctp",
            Self::AddressReuse => "address-reuse",
            Self::Namespaces => "namespaces",
            Self::Exhaustion => "exhaustion",
            Self::FixedPort => "fixed-port",
            Self::Storm => "storm",
            Self::StalledReader => "stalled-reader",
            Self::DuplicateFlow => "duplicate-flow",
            Self::DuplicateFlowDnat => "duplicate-flow-dnat",
            Self::DuplicateFlowTcp => "duplicate-flow-tcp",
            Self::CrossedFlow => "crossed-flow",
            Self::CrossedFlowTcp => "crossed-flow-tcp",
            Self::NatUnloaded => "nat-unloaded",
            Self::TableFull => "table-full",
            Self::EarlyDrop => "early-drop",
            Self::ChainTooLong => "chain-too-long",
            Self::Dying => "dying",
            Self::Ctnetlink => "ctnetlink",
        }
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            Self::SnatUdp
            | Self::AddressReuse
            | Self::Namespaces
            | Self::Exhaustion
            | Self::FixedPort
            | Self::Storm
            | Self::StalledReader
            | Self::DuplicateFlow
            | Self::DuplicateFlowDnat
            | Self::CrossedFlow
            | Self::NatUnloaded
            | Self::TableFull
            | Self::EarlyDrop
            | Self::ChainTooLong
            | Self::Dying
            | Self::Ctnetlink => Transport::Udp,
            Self::SnatTcp | Self::SnatTcpAgain | Self::DuplicateFlowTcp | Self::CrossedFlowTcp => Transport::Tcp,
            Self::SnatIcmp => Transport::Icmp,
            Self::SnatSctp => Transport::Sctp,
        }
    }
}
