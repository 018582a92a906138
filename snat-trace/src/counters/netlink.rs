//! Conntrack statistics over ctnetlink, what `conntrack -S` shows.

use bytes::Buf;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::figures::{CpuCounters, Reading};
use super::wire::{Attributes, DumpError, Socket};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU` (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const GET_STATS_CPU: u16 = (1 << 8) | 4;

// enum ctattr_stats_cpu
const CTA_STATS_FOUND: u16 = 2;
const CTA_STATS_INVALID: u16 = 4;
const CTA_STATS_INSERT_FAILED: u16 = 9;
const CTA_STATS_DROP: u16 = 10;
const CTA_STATS_EARLY_DROP: u16 = 11;
const CTA_STATS_SEARCH_RESTART: u16 = 13;
const CTA_STATS_CLASH_RESOLVE: u16 = 14;
const CTA_STATS_CHAIN_TOOLONG: u16 = 15;

/// Why ctnetlink gave no statistics.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CtnetlinkError {
    /// No privilege.
    #[error("reading conntrack statistics over netlink needs CAP_NET_ADMIN in the network namespace")]
    NotPermitted,
    /// The module is neither loaded nor loadable.
    #[error("this kernel answers no conntrack statistics over netlink (is the module nf_conntrack_netlink there?)")]
    Missing,
    /// The kernel answered what no kernel should.
    #[error("conntrack statistics over netlink could not be understood")]
    Malformed,
    /// Something else.
    #[error("conntrack statistics over netlink: {0}")]
    Failed(String),
}

impl From<DumpError> for CtnetlinkError {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Socket(Errno::PERM | Errno::ACCESS) | DumpError::Refused(Errno::PERM | Errno::ACCESS) => {
                Self::NotPermitted
            }
            // No NETLINK_NETFILTER, or no such subsystem (net/netfilter/nfnetlink.c, `nfnetlink_rcv_msg`).
            DumpError::Socket(Errno::PROTONOSUPPORT) | DumpError::Refused(Errno::INVAL | Errno::OPNOTSUPP) => {
                Self::Missing
            }
            DumpError::Malformed => Self::Malformed,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Reads the statistics of the calling thread's network namespace. A read loads `nf_conntrack_netlink` when it is a
/// module that is not loaded yet, as `conntrack -S` does.
///
/// # Errors
/// See [`CtnetlinkError`].
pub fn read() -> Result<Reading, CtnetlinkError> {
    let cpus = Socket::open(Some(NETFILTER))?.dump(GET_STATS_CPU, &[0; 4], Vec::new, |cpus, _, payload| {
        cpus.push(parse(payload));
    })?;
    let reading: Option<Reading> = cpus.into_iter().collect();
    reading.filter(|reading| !reading.is_empty()).ok_or(CtnetlinkError::Malformed)
}

/// One message of the dump without its netlink header: `struct nfgenmsg`, whose `res_id` is the CPU in network byte
/// order, then attributes in network byte order. `None` when it is cut short.
fn parse(mut payload: &[u8]) -> Option<(u16, CpuCounters)> {
    let _family_and_version = payload.try_get_u16().ok()?;
    let cpu = payload.try_get_u16().ok()?;
    let mut counters = CpuCounters::default();
    for (kind, mut value) in Attributes(payload) {
        let counter = match kind {
            CTA_STATS_FOUND => &mut counters.found,
            CTA_STATS_INVALID => &mut counters.invalid,
            CTA_STATS_INSERT_FAILED => &mut counters.tally.insert_failed,
            CTA_STATS_DROP => &mut counters.tally.drop,
            CTA_STATS_EARLY_DROP => &mut counters.tally.early_drop,
            CTA_STATS_SEARCH_RESTART => &mut counters.search_restart,
            CTA_STATS_CLASH_RESOLVE => &mut counters.tally.clash_resolve,
            CTA_STATS_CHAIN_TOOLONG => &mut counters.tally.chaintoolong,
            _ => continue,
        };
        *counter = Some(value.try_get_u32().ok()?);
    }
    Some((cpu, counters))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counters::figures::Tally;
    use crate::mutate::survives;

    /// The second CPU's message of a 6.18 kernel, netlink header cut off, after three flows on that CPU had failed to
    /// get the one port their rule allowed.
    const CAPTURED: [&str; 2] = [
        "00000001080002000000000308000400000000000800080000000000080009000000000308000a000000000308000b00",
        "0000000008000c000000000008000d000000000008000e000000000008000f0000000000",
    ];

    fn captured() -> Vec<u8> {
        let hex = CAPTURED.concat();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_captured_message_is_understood() {
        // As `conntrack -S` showed it.
        let tally = Tally {
            insert_failed: Some(3),
            drop: Some(3),
            clash_resolve: Some(0),
            chaintoolong: Some(0),
            early_drop: Some(0),
        };
        let counters = CpuCounters { tally, found: Some(3), invalid: Some(0), search_restart: Some(0) };
        assert_eq!(parse(&captured()), Some((1, counters)));
    }

    #[test]
    fn a_kernel_without_the_newer_counters_gives_none_for_them() {
        // Kernels before 5.10 send neither of the last two attributes.
        let message = captured();
        let (_, counters) = parse(&message[..message.len() - 16]).unwrap();
        assert_eq!((counters.tally.clash_resolve, counters.tally.chaintoolong), (None, None));
        assert_eq!(counters.tally.drop, Some(3));
    }

    #[test]
    fn a_short_value_is_no_value() {
        assert_eq!(parse(&[0, 0, 0, 1, 6, 0, 9, 0, 0, 0, 0, 0]), None);
        assert_eq!(parse(&[0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_cut_never_invents_a_counter(cut in 0..100usize) {
            let message = captured();
            let cut = cut.min(message.len());
            if let Some((cpu, counters)) = parse(&message[..cut]) {
                prop_assert_eq!(cpu, 1);
                prop_assert!(counters.tally.insert_failed.is_none_or(|count| count == 3));
            }
        }
    }

    #[test]
    fn lack_of_privilege_and_of_the_module_are_told_apart() {
        assert_eq!(CtnetlinkError::from(DumpError::Refused(Errno::PERM)), CtnetlinkError::NotPermitted);
        assert_eq!(CtnetlinkError::from(DumpError::Refused(Errno::INVAL)), CtnetlinkError::Missing);
        assert_eq!(CtnetlinkError::from(DumpError::Socket(Errno::PROTONOSUPPORT)), CtnetlinkError::Missing);
    }

    #[test]
    fn mutated_messages_are_survived() {
        survives("netlink", &[&captured()], |bytes| {
            for payload in [Some(bytes), bytes.get(16..)].into_iter().flatten() {
                let _ = parse(payload);
            }
        });
    }
}
