//! What became of the loser's packet, by the kernel's own word.

use snat_trace_common::VerdictRecord;

use super::event::Verdict;

/// `NF_DROP` and `NF_ACCEPT` (include/uapi/linux/netfilter.h).
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// `IPS_NAT_CLASH` of `nf_conn.status` (include/uapi/linux/netfilter/nf_conntrack_common.h): set where the entry goes in,
/// which `IPS_CONFIRMED` is not: some kernels set that before they look for a clash.
const NAT_CLASH: u64 = 1 << 12;

/// What `nf_ct_resolve_clash` decided (net/netfilter/nf_conntrack_core.c): a packet that goes on belongs to the winner's
/// entry now (`__nf_ct_resolve_clash`), or still to its own, which is in the table in the reply direction only
/// (`nf_ct_resolve_clash_harder`). `None` for what no kernel tried does.
#[must_use]
pub fn decided(record: &VerdictRecord) -> Option<Verdict> {
    match record.returned {
        NF_DROP => Some(Verdict::Dropped),
        NF_ACCEPT if record.entry != record.loser_entry => Some(Verdict::Resolved),
        NF_ACCEPT if record.status & NAT_CLASH != 0 => Some(Verdict::ResolvedReplyOnly),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use snat_trace_common::{ClashRecord, RecordHeader, kind};

    use super::*;

    /// The kernel drops the packet of a clash, 50 ns after it.
    pub(crate) fn verdict_on(clash: &ClashRecord) -> VerdictRecord {
        VerdictRecord {
            header: RecordHeader {
                kind: kind::VERDICT,
                len: u16::try_from(size_of::<VerdictRecord>()).unwrap(),
                cpu: clash.header.cpu,
                time_ns: clash.header.time_ns + 50,
            },
            clash_ns: clash.header.time_ns,
            loser_entry: clash.loser_entry,
            entry: clash.loser_entry,
            status: 0,
            returned: NF_DROP,
            reserved: 0,
        }
    }

    #[test]
    fn every_way_a_clash_ends() {
        const CONFIRMED: u64 = 1 << 3;
        const OWN: u64 = 0xffff_8880_0000_1000;
        const OTHER: u64 = 0xffff_8880_0000_2000;
        for (returned, entry, status, expected) in [
            (NF_DROP, OWN, 0, Some(Verdict::Dropped)),
            // Kernels from 5.19 to 6.15 confirm an entry before they know whether it goes in.
            (NF_DROP, OWN, CONFIRMED, Some(Verdict::Dropped)),
            (NF_ACCEPT, OTHER, CONFIRMED, Some(Verdict::Resolved)),
            (NF_ACCEPT, OTHER, CONFIRMED | NAT_CLASH, Some(Verdict::Resolved)),
            (NF_ACCEPT, OWN, CONFIRMED | NAT_CLASH, Some(Verdict::ResolvedReplyOnly)),
            (NF_ACCEPT, OWN, NAT_CLASH, Some(Verdict::ResolvedReplyOnly)),
            (NF_ACCEPT, OWN, CONFIRMED, None),
            (2, OWN, NAT_CLASH, None),
        ] {
            let record = VerdictRecord { returned, loser_entry: OWN, entry, status, ..VerdictRecord::default() };
            assert_eq!(decided(&record), expected, "returned {returned}, entry {entry:x}, status {status:x}");
        }
    }
}
