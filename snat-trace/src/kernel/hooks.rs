//! The table of hooks: which function serves which purpose, and what is lost without it.

use std::fmt;

/// How much is asked of the kernel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, clap::ValueEnum)]
pub enum Detail {
    /// The clash alone, and what became of it: nothing runs until two flows clash.
    Minimal,
    /// Allocations, insertions and senders as well: a few times per new flow, and never for a packet of a flow that is there.
    /// Only what raw sockets and ping send is seen packet by packet.
    Full,
}

impl Detail {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Minimal, Self::Full];

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

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// Which hooks on races.
    pub detail: Detail,
    /// Whether those on failures that are no clash too.
    pub failures: bool,
    /// Whether executables and command lines of senders are noted.
    pub commands: bool,
}

impl From<Detail> for Request {
    /// Races alone, with all that is known of their senders.
    fn from(detail: Detail) -> Self {
        Self { detail, failures: false, commands: true }
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
    /// Who connected a socket for datagrams over IPv4.
    OwnerIpv4,
    /// Who connected one over IPv6.
    OwnerIpv6,
    /// Who sent an ICMP request over IPv4, or anything else from a raw socket.
    OwnerRaw,
    /// The same over IPv6.
    OwnerRaw6,
    /// Cgroups that are removed.
    CgroupRemoval,
    /// Entries refused when they should go into the table.
    FailureConfirm,
    /// Packets that are given no entry.
    FailureTable,
    /// Why: whether a full table could make room.
    FailureEviction,
    /// Entries refused that no packet made.
    FailureCtnetlink,
}

impl Role {
    /// Every role, in the order of a session.
    pub const ALL: [Self; 14] = [
        Self::Clash,
        Self::Verdict,
        Self::Allocation,
        Self::Insertion,
        Self::OwnerTcp,
        Self::OwnerIpv4,
        Self::OwnerIpv6,
        Self::OwnerRaw,
        Self::OwnerRaw6,
        Self::CgroupRemoval,
        Self::FailureConfirm,
        Self::FailureTable,
        Self::FailureEviction,
        Self::FailureCtnetlink,
    ];

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
            Self::OwnerIpv6 => "owner-ipv6",
            Self::OwnerRaw => "owner-raw",
            Self::OwnerRaw6 => "owner-raw6",
            Self::CgroupRemoval => "cgroup",
            Self::FailureConfirm => "fail-confirm",
            Self::FailureTable => "fail-table",
            Self::FailureEviction => "fail-eviction",
            Self::FailureCtnetlink => "fail-netlink",
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
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kprobe, Self::Kretprobe];

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

/// Which requests have a hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PartOf {
    /// All.
    Everything,
    /// Those for full detail.
    Full,
    /// Those for failures.
    Failures,
}

/// One role and how to fill it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) role: Role,
    /// What has it.
    pub(super) part_of: PartOf,
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

    /// At its return.
    const fn end(symbol: &'static str, program: &'static str) -> Self {
        Self { mechanism: Mechanism::Kretprobe, ..Self::entry(symbol, program) }
    }
}

impl Hook {
    /// In order of preference.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        [&self.preferred].into_iter().chain(&self.fallback)
    }

    /// Whether a request has this hook.
    pub(super) fn wanted(&self, request: Request) -> bool {
        match self.part_of {
            PartOf::Everything => true,
            PartOf::Full => request.detail == Detail::Full,
            PartOf::Failures => request.failures,
        }
    }

    const fn of_failures(role: Role, preferred: Candidate, cost: &'static str) -> Self {
        Self { role, part_of: PartOf::Failures, home: Home::Conntrack, preferred, fallback: None, cost }
    }
}

const NO_CONFIRM: &str = "failed inserts of packets are not told, but for clashes";
const NO_TABLE: &str = "packets that find the table full are not told";
const NO_CTNETLINK: &str = "failed inserts through ctnetlink are not told";

/// The module that tracks connections.
pub(super) const CONNTRACK_MODULE: &str = "nf_conntrack";
/// The module that translates them.
pub(super) const NAT_MODULE: &str = "nf_nat";

/// Where the programs of senders go on, with what the sender runs.
pub(crate) const PROCESS_PROGRAM: &str = "note_process";

/// The program of the clash hook.
pub(crate) const CLASH_PROGRAM: &str = "clash";

/// Every hook, in the order they are printed. The clash hook is the only one tracing cannot do without.
pub(super) const HOOKS: &[Hook] = &[
    Hook {
        role: Role::Clash,
        part_of: PartOf::Everything,
        home: Home::Conntrack,
        preferred: Candidate::entry("nf_ct_resolve_clash", CLASH_PROGRAM),
        fallback: None,
        cost: "clashes cannot be seen",
    },
    Hook {
        role: Role::Verdict,
        part_of: PartOf::Everything,
        home: Home::Conntrack,
        preferred: Candidate::end("nf_ct_resolve_clash", "verdict"),
        fallback: None,
        cost: "verdicts are what the tuples of both flows prove; where they prove none, it is unknown",
    },
    Hook {
        role: Role::Allocation,
        part_of: PartOf::Full,
        home: Home::Nat,
        preferred: Candidate::entry("nf_nat_setup_info", "allocation"),
        fallback: None,
        cost: "allocation times, port ranges, the overlap and who sent a datagram are absent, and a race cannot be told from an \
               exhausted range",
    },
    Hook {
        role: Role::Insertion,
        part_of: PartOf::Full,
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
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("tcp_connect", "owner_tcp"),
        fallback: None,
        cost: "owners of TCP flows are looked up after the clash, so a process that has ended is not named",
    },
    Hook {
        role: Role::OwnerIpv4,
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("reuseport_has_conns_set", "owner_ipv4"),
        // As good, but it runs when a socket is bound or set up too.
        fallback: Some(Candidate::entry("ip4_datagram_release_cb", "owner_ipv4")),
        cost: "the owner of a UDP flow over IPv4 is absent where its packet was put off or handed to another CPU, and the process \
               has ended",
    },
    Hook {
        role: Role::OwnerIpv6,
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip6_datagram_release_cb", "owner_ipv6"),
        fallback: None,
        cost: "the owner of a UDP flow over IPv6 is absent where its packet was put off or handed to another CPU, and the process \
               has ended",
    },
    Hook {
        role: Role::OwnerRaw,
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip_push_pending_frames", "owner_raw"),
        fallback: None,
        cost: "owners of ICMP flows over IPv4 are absent",
    },
    Hook {
        role: Role::OwnerRaw6,
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("ip6_push_pending_frames", "owner_raw6"),
        fallback: None,
        cost: "owners of ICMP flows over IPv6 are absent",
    },
    Hook {
        role: Role::CgroupRemoval,
        part_of: PartOf::Full,
        home: Home::Image,
        preferred: Candidate::entry("cgroup_rmdir", "cgroup_removed"),
        fallback: None,
        cost: "cgroups and containers that are gone when a race is named have no name",
    },
    // Ends before begins: they are attached in this order, so that no begin lacks its end.
    Hook::of_failures(Role::FailureConfirm, Candidate::end("__nf_conntrack_confirm", "confirm_ends"), NO_CONFIRM),
    Hook::of_failures(Role::FailureConfirm, Candidate::entry("__nf_conntrack_confirm", "confirm_begins"), NO_CONFIRM),
    Hook::of_failures(
        Role::FailureEviction,
        Candidate::end("early_drop", "early_drop_ends"),
        "a full table is told as a failure of unknown reason",
    ),
    Hook::of_failures(Role::FailureTable, Candidate::end("__nf_conntrack_alloc", "allocate_ends"), NO_TABLE),
    Hook::of_failures(Role::FailureTable, Candidate::entry("__nf_conntrack_alloc", "allocate_begins"), NO_TABLE),
    Hook::of_failures(
        Role::FailureCtnetlink,
        Candidate::end("nf_conntrack_hash_check_insert", "check_insert_ends"),
        NO_CTNETLINK,
    ),
    Hook::of_failures(
        Role::FailureCtnetlink,
        Candidate::entry("nf_conntrack_hash_check_insert", "check_insert_begins"),
        NO_CTNETLINK,
    ),
];

/// The BPF programs a request may load, fallbacks included; each once.
pub fn programs(request: Request) -> impl Iterator<Item = &'static str> {
    HOOKS
        .iter()
        .filter(move |hook| hook.wanted(request))
        .flat_map(|hook| {
            let preferred = hook.preferred.program;
            let fallback = hook.fallback.map(|fallback| fallback.program);
            [preferred].into_iter().chain(fallback.filter(|fallback| *fallback != preferred))
        })
        .chain((request.detail == Detail::Full).then_some(PROCESS_PROGRAM))
}
