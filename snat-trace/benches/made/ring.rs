//! Records of clashes as the ring has them, made up: nothing but what the programs write is in them.

use snat_trace_common::{
    ClashRecord, FlowFact, OwnerFact, PACKET_LEN, ProcessKey, RecordHeader, Tuple, VerdictRecord, flow_flags, kind,
};

/// `IPS_SRC_NAT` and `IPS_SRC_NAT_DONE` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const TRANSLATED: u64 = 1 << 4 | 1 << 7;

/// Between pods, node and server, in the order of the kernel's tuple.
fn tuple([from, to]: [u8; 2], [source, destination]: [u16; 2], dir: u8) -> Tuple {
    let address = |last| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[10, 99, 0, last]);
        bytes
    };
    Tuple {
        src: address(from),
        src_port_be: source.to_be(),
        l3num: 2,
        dst: address(to),
        dst_port_be: destination.to_be(),
        protonum: 17,
        dir,
    }
}

/// A flow of a pod that the node masquerades, whose port stays, and whose sender was seen.
fn flow(pod: u8, port: u16, allocated_ns: u64, inserted_ns: u64) -> FlowFact {
    FlowFact {
        original: tuple([pod, 53], [port, 53], 0),
        reply: tuple([53, 1], [53, port], 1),
        status: TRANSLATED,
        allocated_ns,
        inserted_ns,
        flags: flow_flags::ALLOCATION | flow_flags::OWNER,
        owner: OwnerFact {
            sent_ns: allocated_ns - 5_000,
            sends: 1,
            process: ProcessKey { tgid: u32::from(pod), ..ProcessKey::default() },
            tid: u32::from(pod),
            netns: 4_026_532_000 + u32::from(pod),
            comm: *b"resolver\0\0\0\0\0\0\0\0",
            ..OwnerFact::default()
        },
        ..FlowFact::default()
    }
}

/// `clashes` of two pods, `apart_ns` after one another, each followed by its verdict.
pub(crate) fn records(first_ns: u64, apart_ns: u64, clashes: u32) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for number in 0..clashes {
        let time_ns = first_ns + apart_ns * u64::from(number);
        // Of flows that are new at one time no two have one port.
        let port = 10_000 + u16::try_from(number % 50_000).unwrap_or_default();
        let loser_entry = 0xffff_8880_0000_0000 + 0x100 * u64::from(number);
        let clash = ClashRecord {
            header: RecordHeader { kind: kind::CLASH, len: len_of::<ClashRecord>(), cpu: 1, time_ns },
            netns: 4_026_531_840,
            flags: 0,
            matched: 1,
            reserved: [0; 5],
            packet_len: 28,
            loser_entry,
            loser: flow(11, port, time_ns - 900, 0),
            winner: flow(10, port, time_ns - 950, time_ns - 400),
            packet: [0x45; PACKET_LEN],
        };
        let verdict = VerdictRecord {
            header: RecordHeader {
                kind: kind::VERDICT,
                len: len_of::<VerdictRecord>(),
                cpu: 1,
                time_ns: time_ns + 200,
            },
            clash_ns: time_ns,
            loser_entry,
            entry: loser_entry,
            status: TRANSLATED,
            returned: 0,
            reserved: 0,
        };
        // SAFETY: both are integers and bytes without padding, as `snat-trace-common` asserts, and live until they are copied.
        records.extend(unsafe { [bytes_of(&clash).to_vec(), bytes_of(&verdict).to_vec()] });
    }
    records
}

fn len_of<T>() -> u16 {
    u16::try_from(size_of::<T>()).unwrap_or(u16::MAX)
}

/// # Safety
///
/// `T` has no padding.
unsafe fn bytes_of<T>(record: &T) -> &[u8] {
    // SAFETY: the bytes are those of `record`, all initialised as there is no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}
