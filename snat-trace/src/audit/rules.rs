//! Rules as a tool prints them: as much of them as has to do with translation. What a parser does not know it says it does
//! not know, so that nothing is concluded from it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::spans::{Span, without};
use crate::race::tuple::Protocol;

/// Which program's rule it is, and prints it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// nftables.
    Nft,
    /// iptables, kept by `nf_tables`.
    IptablesNft,
    /// iptables, kept by `ip_tables`.
    IptablesLegacy,
}

impl Tool {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }
}

/// The family of a table.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both, in one table of nftables.
    Inet,
}

impl Family {
    /// Its name in nftables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }
}

/// A table with its chains.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Table {
    pub tool: Tool,
    /// The command that changes it.
    pub program: &'static str,
    pub family: Family,
    pub name: String,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chain {
    pub name: String,
    /// Where in the kernel it begins, when it is a base chain that may translate.
    pub hook: Option<String>,
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    /// As its tool prints it; untrusted.
    pub text: String,
    /// By what nft knows it within its table.
    pub handle: Option<u64>,
    /// Packets it has matched, where it counts them.
    pub packets: Option<u64>,
    pub matches: Matches,
    pub action: Action,
}

/// What a rule takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Matches {
    /// Only these destinations; `None` is any.
    pub destinations: Option<Vec<Span>>,
    /// None of these.
    pub except: Vec<Span>,
    pub protocol: Option<Protocol>,
    /// Only these ports of the destination, if any is named.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Only these sources; `None` is any, or not known.
    pub sources: Option<Vec<Span>>,
    /// Only packets with a mark.
    pub marked: bool,
    /// Its addresses are those of a named set, which may have had others before.
    pub changing: bool,
    /// It asks for something else too that says where packets go, or for something not known here.
    pub unknown: bool,
}

impl Matches {
    /// Adds a condition on the destination; spans that could not be read make it unknown.
    pub(super) fn destination(&mut self, negated: bool, spans: Option<Vec<Span>>) {
        match (spans, negated, &self.destinations) {
            (Some(spans), true, _) => self.except.extend(spans),
            (Some(spans), false, None) => self.destinations = Some(spans),
            _ => self.unknown = true,
        }
    }

    /// The destinations it takes.
    pub(super) fn takes(&self) -> Vec<Span> {
        without(self.destinations.as_deref().unwrap_or(&[Span::ALL]), &self.except)
    }
}

/// What a rule does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Translate(Translation),
    /// Changes the destination, to this port if it names one.
    Dnat {
        port: Option<u16>,
    },
    /// Back to the chain that led here.
    Return,
    /// Nothing more is asked: `accept`, `drop`.
    End,
    /// To other chains, and with `goto` not back to this one.
    Jump {
        chains: Vec<String>,
        goto: bool,
    },
    /// None of these, and the next rule is next.
    Other,
}

/// How sources are translated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Translation {
    pub target: Target,
    /// First and last address the source gets, where the rule names them.
    pub addresses: Option<(IpAddr, IpAddr)>,
    pub ports: Ports,
    pub choice: Choice,
    /// Only the address changes, each to one of its own, as with `NETMAP`: nothing to race for.
    pub one_to_one: bool,
}

/// What translates.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// To the address of the interface.
    Masquerade,
    /// To addresses the rule names.
    Snat,
}

impl Target {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Snat => "snat",
        }
    }
}

/// The ports a source may get.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ports {
    /// The rule names none.
    Any,
    /// These.
    Range(RangeInclusive<u16>),
    /// The rule's tool does not tell, or not in a way known here.
    Unknown,
}

/// How a port is chosen.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The source's own, if it is free.
    Kept,
    /// At random, by a hash on old kernels.
    Random,
    /// At random.
    FullyRandom,
    /// Its tool does not tell.
    Unknown,
}
