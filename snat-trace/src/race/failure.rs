//! Connections that did not come into the table without a clash, and why: the rules, as a pure function of a record.

use std::fmt;

use snat_trace_common::{FailureRecord, FlowFact, failure_flags, function};

use super::classify::flow;
use super::decode::Undecodable;
use super::event::{Flow, NetnsInum};
use super::time::KernelTime;
use super::tuple::Protocol;
use crate::counters::figures::Tally;

/// Bits of `nf_conn.status` (include/uapi/linux/netfilter/nf_conntrack_common.h).
mod ips {
    /// `IPS_CONFIRMED`.
    pub(super) const CONFIRMED: u64 = 1 << 3;
    /// `IPS_DYING`.
    pub(super) const DYING: u64 = 1 << 9;
}

/// `ENOSPC` (include/uapi/asm-generic/errno-base.h).
const ENOSPC: i32 = 28;

/// Why a connection did not come into the table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The table was full, and no entry could be evicted.
    TableFull,
    /// Its hash chain was too long.
    ChainTooLong,
    /// The entry was killed before it went in.
    Dying,
    /// A module that its extensions may point to was unloaded since they were made.
    StaleExtension,
    /// It was to be made through ctnetlink, or by a BPF program, and was refused.
    Ctnetlink,
    /// None of these, or it is not known which.
    Unknown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::TableFull, Self::ChainTooLong, Self::Dying, Self::StaleExtension, Self::Ctnetlink, Self::Unknown];

    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TableFull => "table-full",
            Self::ChainTooLong => "chain-too-long",
            Self::Dying => "dying",
            Self::StaleExtension => "stale-extension",
            Self::Ctnetlink => "ctnetlink",
            Self::Unknown => "unknown",
        }
    }

    /// What happened, as a clause.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::TableFull => "the table was full and nothing could be evicted",
            Self::ChainTooLong => "its hash chain was too long",
            Self::Dying => "its entry was killed before it went in",
            Self::StaleExtension => "a module its entry may point to was unloaded meanwhile",
            Self::Ctnetlink => "it was not made by a packet, and refused",
            Self::Unknown => "the kernel does not show why",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One connection that did not come into the table, without a clash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// When it was to go in, or to be given an entry.
    pub time: KernelTime,
    /// Why it did not.
    pub reason: Reason,
    /// The error the kernel returned, where it did: a positive number of errno(3).
    pub errno: Option<i32>,
    /// Of the flow.
    pub protocol: Protocol,
    /// Whose table.
    pub netns: Option<NetnsInum>,
    /// Conntrack zone.
    pub zone: u16,
    /// The flow; never inserted.
    pub flow: Flow,
    /// Whether a packet was to make it. Who sent none has no socket to be known by.
    pub by_packet: bool,
    /// How the kernel counted it.
    pub counted: Tally<u64>,
}

/// The failure a record tells of, without its owner.
///
/// # Errors
///
/// [`Undecodable::Untimed`], and [`Undecodable::UnknownFamily`] when the flow is neither IPv4 nor IPv6.
pub fn judge(record: &FailureRecord) -> Result<Failure, Undecodable> {
    let fact: &FlowFact = &record.flow;
    let unknown = Undecodable::UnknownFamily { l3num: fact.original.l3num };
    let time = KernelTime::from_record(record.header.time_ns).ok_or(Undecodable::Untimed)?;
    let mut flow = flow(fact).ok_or(unknown)?;
    flow.inserted = None;
    flow.cpu = flow.cpu.or(Some(record.header.cpu));
    let errno = record.returned.checked_neg().and_then(|errno| i32::try_from(errno).ok()).filter(|&errno| errno > 0);
    let (reason, counted) = match record.function {
        function::CONFIRM => refused_at_confirm(record),
        function::ALLOCATE => not_allocated(record),
        function::CHECK_INSERT => (Reason::Ctnetlink, refused_through_ctnetlink(errno)),
        _ => (Reason::Unknown, Tally::default()),
    };
    Ok(Failure {
        time,
        reason,
        errno,
        protocol: Protocol(fact.original.protonum),
        netns: (record.netns != 0).then_some(NetnsInum(record.netns)),
        zone: fact.zone,
        flow,
        by_packet: record.flags & failure_flags::NO_PACKET == 0,
        counted,
    })
}

const FAILED: Tally<u64> = Tally { insert_failed: 1, drop: 0, clash_resolve: 0, chaintoolong: 0, early_drop: 0 };
const DROPPED: Tally<u64> = Tally { drop: 1, insert_failed: 0, ..FAILED };
const UNCOUNTED: Tally<u64> = Tally { insert_failed: 0, ..FAILED };

/// `__nf_conntrack_confirm` (net/netfilter/nf_conntrack_core.c) dropped a packet whose entry met no other, for the first of
/// these that holds.
fn refused_at_confirm(record: &FailureRecord) -> (Reason, Tally<u64>) {
    let has = |flag| record.flags & flag != 0;
    let (before, after) = (record.status_before, record.flow.status);
    if before & ips::DYING != 0 {
        return (Reason::Dying, FAILED);
    }
    if before & ips::CONFIRMED != 0 {
        // Another packet that shares the entry had it confirmed: neither a failed insert nor counted.
        return (Reason::Unknown, UNCOUNTED);
    }
    // An entry without extensions has none of another time; one that is in the table has generation 0.
    let stale =
        has(failure_flags::GENERATIONS) && record.entry_generation != 0 && record.entry_generation != record.generation;
    // Entries found stale once they are in are killed, and counted otherwise. What IPS_CONFIRMED says differs by kernel.
    let killed = after & ips::DYING != 0;
    if stale {
        return (Reason::StaleExtension, if killed { DROPPED } else { FAILED });
    }
    if has(failure_flags::HAS_GENERATIONS) && !has(failure_flags::GENERATIONS) {
        return (Reason::Unknown, FAILED);
    }
    if killed {
        // Between our look and the kernel's.
        return (Reason::Dying, FAILED);
    }
    if has(failure_flags::CHAIN_LIMITED) {
        return (Reason::ChainTooLong, Tally { chaintoolong: 1, ..FAILED });
    }
    (Reason::Unknown, FAILED)
}

/// `__nf_conntrack_alloc` (same file) gave no entry. `nf_conntrack_in` counts a drop for its packet whatever the error, and
/// ctnetlink counts nothing.
fn not_allocated(record: &FailureRecord) -> (Reason, Tally<u64>) {
    let full = record.flags & failure_flags::TABLE_FULL != 0;
    let by_packet = record.flags & failure_flags::NO_PACKET == 0;
    (if full { Reason::TableFull } else { Reason::Unknown }, if by_packet { DROPPED } else { UNCOUNTED })
}

/// `nf_conntrack_hash_check_insert` (same file) counts a chain that is too long, and nothing else.
fn refused_through_ctnetlink(errno: Option<i32>) -> Tally<u64> {
    if errno == Some(ENOSPC) { Tally { chaintoolong: 1, ..UNCOUNTED } } else { UNCOUNTED }
}

#[cfg(test)]
pub(crate) mod tests {
    use snat_trace_common::{RecordHeader, kind};

    use super::*;
    use crate::race::classify::tests::clash;

    /// A packet dropped by `__nf_conntrack_confirm` of a kernel that limits chains and knows no generations.
    pub(crate) fn refused() -> FailureRecord {
        FailureRecord {
            header: RecordHeader {
                kind: kind::FAILURE,
                len: u16::try_from(size_of::<FailureRecord>()).unwrap(),
                cpu: 1,
                time_ns: 2000,
            },
            netns: 4_026_531_840,
            flags: failure_flags::CHAIN_LIMITED,
            function: function::CONFIRM,
            entry_generation: 0,
            generation: 0,
            reserved: 0,
            returned: 0,
            status_before: 0,
            flow: FlowFact { status: 0, ..clash().loser },
        }
    }

    #[test]
    fn a_failure_is_its_flows() {
        let failure = judge(&refused()).unwrap();
        assert_eq!(failure.flow.original.ends().source.to_string(), "10.99.0.11:40000");
        assert_eq!(
            (failure.time.nanoseconds(), failure.flow.allocated.map(KernelTime::nanoseconds)),
            (2000, Some(1100))
        );
        assert_eq!((failure.netns, failure.errno), (Some(NetnsInum(4_026_531_840)), None));
        let nowhere = FailureRecord { netns: 0, ..refused() };
        assert_eq!(judge(&nowhere).unwrap().netns, None);
    }

    #[test]
    fn reasons() {
        use failure_flags::{CHAIN_LIMITED, GENERATIONS, HAS_GENERATIONS, NO_PACKET, TABLE_FULL};
        const CHAIN: Tally<u64> = Tally { chaintoolong: 1, ..FAILED };
        const KNOWN: u32 = CHAIN_LIMITED | HAS_GENERATIONS | GENERATIONS;
        let confirm = |flags, generations: (u32, u32), statuses: (u64, u64)| {
            let mut record = refused();
            record.flags = flags;
            (record.entry_generation, record.generation) = generations;
            (record.status_before, record.flow.status) = statuses;
            record
        };
        let other = |function, flags, returned| FailureRecord { function, flags, returned, ..refused() };
        let (confirmed, dying) = (ips::CONFIRMED, ips::DYING);
        for (name, record, expected) in [
            ("chain", confirm(CHAIN_LIMITED, (0, 0), (0, 0)), (Reason::ChainTooLong, CHAIN)),
            ("chain, confirmed first", confirm(CHAIN_LIMITED, (0, 0), (0, confirmed)), (Reason::ChainTooLong, CHAIN)),
            ("no limit", confirm(0, (0, 0), (0, 0)), (Reason::Unknown, FAILED)),
            ("dying", confirm(CHAIN_LIMITED, (0, 0), (dying, dying)), (Reason::Dying, FAILED)),
            ("dying, confirmed first", confirm(KNOWN, (1, 2), (dying, confirmed | dying)), (Reason::Dying, FAILED)),
            ("killed meanwhile", confirm(CHAIN_LIMITED, (0, 0), (0, dying)), (Reason::Dying, FAILED)),
            ("shared", confirm(CHAIN_LIMITED, (0, 0), (confirmed, confirmed)), (Reason::Unknown, UNCOUNTED)),
            ("stale", confirm(KNOWN, (1, 2), (0, 0)), (Reason::StaleExtension, FAILED)),
            ("stale, confirmed first", confirm(KNOWN, (1, 2), (0, confirmed)), (Reason::StaleExtension, FAILED)),
            ("stale once in", confirm(KNOWN, (1, 2), (0, confirmed | dying)), (Reason::StaleExtension, DROPPED)),
            ("not stale", confirm(KNOWN, (2, 2), (0, 0)), (Reason::ChainTooLong, CHAIN)),
            ("no extensions", confirm(KNOWN, (0, 2), (0, 0)), (Reason::ChainTooLong, CHAIN)),
            ("generation hidden", confirm(CHAIN_LIMITED | HAS_GENERATIONS, (0, 0), (0, 0)), (Reason::Unknown, FAILED)),
            ("full", other(function::ALLOCATE, TABLE_FULL, -12), (Reason::TableFull, DROPPED)),
            (
                "full for ctnetlink",
                other(function::ALLOCATE, TABLE_FULL | NO_PACKET, -12),
                (Reason::TableFull, UNCOUNTED),
            ),
            ("no memory", other(function::ALLOCATE, 0, -12), (Reason::Unknown, DROPPED)),
            ("exists", other(function::CHECK_INSERT, NO_PACKET, -17), (Reason::Ctnetlink, UNCOUNTED)),
            (
                "chain, ctnetlink",
                other(function::CHECK_INSERT, NO_PACKET, -28),
                (Reason::Ctnetlink, Tally { chaintoolong: 1, ..UNCOUNTED }),
            ),
            ("a function of another time", other(9, 0, -1), (Reason::Unknown, UNCOUNTED)),
        ] {
            let failure = judge(&record).unwrap();
            assert_eq!((failure.reason, failure.counted), expected, "{name}");
        }
        assert_eq!(judge(&other(function::CHECK_INSERT, 0, -17)).unwrap().errno, Some(17));
    }
}
