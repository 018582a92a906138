//! The table of hooks: which function serves which purpose, and what is lost without it.

use std::fmt;

/// How much is asked of the kernel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, clap::ValueEnum)]
pub enum Detail {
    /// The clash alone, and what became of it: nothing runs until two flows clash.
    Minimal,
    /// Allocations, insertions and senders as well: once or twice per new flow, and once per datagram sent on this node.
    Full,
}

impl Detail {
    /// Its name in options and in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a hook is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// Both sides of a failed insert.
    Clash,
    /// What the kernel decided on a clash.
    Verdict,
    /// When an entry asked for a port, and what the rule allowed.
    Allocation,
    /// When an entry went into the table.
    Insertion,
    /// Who opened a TCP connection.
    OwnerTcp,
    /// Who sent a datagram over IPv4.
    OwnerIpv4,
    /// Who sent an ICMP request over IPv4, or anything else from a raw socket.
    OwnerRaw,
    /// Who sent a datagram or an ICMP request over IPv6, or anything else from a raw socket.
    OwnerIpv6,
}

impl Role {
    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clash => "clash",
            Self::Verdict => "verdict",
            Self::Allocation => "allocation",
            Self::Insertion => "insertion",
            Self::OwnerTcp => "owner-tcp",
            Self::OwnerIpv4 => "owner-ipv4",
            Self::OwnerRaw => "owner-raw",
            Self::OwnerIpv6 => "owner-ipv6",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A kernel module whose functions are hooked or whose data is read.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Home {
    /// `nf_conntrack`.
    Conntrack,
    /// `nf_nat`.
    Nat,
    /// Always in the kernel image.
    Image,
}

/// Where in a function a hook runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mechanism {
    /// At its entry.
    Kprobe,
    /// At its return.
    Kretprobe,
}

impl Mechanism {
    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }
}

/// One BPF program on one function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Function, by its exact name in `/proc/kallsyms`.
    pub(super) symbol: &'static str,
    /// Program of the BPF object.
    pub(super) program: &'static str,
    /// Where in the function it runs.
    pub(super) mechanism: Mechanism,
    /// What is worse than with the preferred one.
    pub(super) drawback: Option<&'static str>,
}

/// One role and how to fill it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) role: Role,
    /// Least detail that has it.
    pub(super) from: Detail,
    pub(super) home: Home,
    pub(super) preferred: Candidate,
    /// Where the preferred function is not to be had.
    pub(super) fallback: Option<Candidate>,
    /// What is not known without it.
    pub(super) cost: &'static str,
}

impl Candidate {
    /// At the entry of a function, and as good as any.
    const fn entry(symbol: &'static str, program: &'static str) -> Self {
        Self { symbol, program, mechanism: Mechanism::Kprobe, drawback: None }
    }
}

impl Hook {
    /// In order of preference.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        [&self.preferred].into_iter().chain(&self.fallback)
    }

    /// Whether tracing at `detail` has this hook.
    pub(super) fn wanted(&self, detail: Detail) -> bool {
        self.from == Detail::Minimal || detail == Detail::Full
    }
}

/// The module that tracks connections.
pub(super) const CONNTRACK_MODULE: &str = "nf_conntrack";
/// The module that translates them.
pub(super) const NAT_MODULE: &str = "nf_nat";

/// The program of the clash hook.
pub(crate) const CLASH_PROGRAM: &str = "clash";

/// Every hook, in the order they are printed. The clash hook is the only one tracing cannot do without.
pub(super) const HOOKS: &[Hook] = &[
    Hook {
        role: Role::Clash,
        from: Detail::Minimal,
        home: Home::Conntrack,
        preferred: Candidate::entry("nf_ct_resolve_clash", CLASH_PROGRAM),
        fallback: None,
        cost: "clashes cannot be seen",
    },
    Hook {
        role: Role::Verdict,
        from: Detail::Minimal,
        home: Home::Conntrack,
        preferred: Candidate { mechanism: Mechanism::Kretprobe, ..Candidate::entry("nf_ct_resolve_clash", "verdict") },
        fallback: None,
        cost: "verdicts are what the tuples of both flows prove; where they prove none, it is unknown",
    },
    Hook {
        role: Role::Allocation,
        from: Detail::Full,
        home: Home::Nat,
        preferred: Candidate::entry("nf_nat_setup_info", "allocation"),
        fallback: None,
        cost: "allocation times, port ranges and the overlap are absent, and a race cannot be told from an exhausted range",
    },
    Hook {
        role: Role::Insertion,
        from: Detail::Full,
        home: Home::Conntrack,
        preferred: Candidate::entry("__nf_conntrack_hash_insert", "insertion"),
        fallback: Some(Candidate {
            drawback: Some("insertion times are taken before the check for a clash, so they are a little early"),
            ..Candidate::entry("__nf_conntrack_confirm", "insertion_at_confirm")
        }),
        cost: "insertion times and the overlap are absent, and a race cannot be told from an exhausted range",
    },
    Hook {
        role: Role::OwnerTcp,
        from: Detail::Full,
        home: Home::Image,
        preferred: Candidate::entry("tcp_connect", "owner_tcp"),
        fallback: None,
        cost: "owners of TCP flows are looked up after the clash, so a process that has ended is not named",
    },
    Hook {
        role: Role::OwnerIpv4,
        from: Detail::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip_send_skb", "owner_ipv4"),
        fallback: None,
        cost: "owners of UDP flows over IPv4 are looked up after the clash, so a process that has ended is not named",
    },
    Hook {
        role: Role::OwnerRaw,
        from: Detail::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip_push_pending_frames", "owner_raw"),
        fallback: None,
        cost: "owners of ICMP flows over IPv4 are absent",
    },
    Hook {
        role: Role::OwnerIpv6,
        from: Detail::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip6_send_skb", "owner_ipv6"),
        fallback: None,
        cost: "owners of UDP and ICMP flows over IPv6 are looked up after the clash, so a process that has ended is not named",
    },
];

/// The BPF programs tracing at `detail` may load, fallbacks included.
pub fn programs(detail: Detail) -> impl Iterator<Item = &'static str> {
    HOOKS
        .iter()
        .filter(move |hook| hook.wanted(detail))
        .flat_map(|hook| hook.candidates().map(|candidate| candidate.program))
}
