//! The clash itself: `nf_ct_resolve_clash` (net/netfilter/nf_conntrack_core.c), called once for every insert that fails
//! because a tuple is taken, with the bucket locks held. Cold: nothing here runs while nothing clashes.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{ClashRecord, Counter, Deciding, PACKET_LEN, RecordHeader, kind, record_flags};

use crate::{
    confirm,
    flow::{fill_flow, fill_sender},
    frame,
    maps::{DECIDING, RING, count},
    packet::network_header,
    read::{
        Address, NF_CONN_TUPLEHASH, SK_BUFF_HEAD, SK_BUFF_TAIL, TUPLE_HASH_SIZE, TUPLE_HASH_TUPLE, Unreadable,
        entry_of, netns_of,
    },
};

/// Offset of `dst.dir` in `struct nf_conntrack_tuple`.
const TUPLE_DIR: u64 = 39;

/// Entry of `nf_ct_resolve_clash(skb, h, reply_hash)`: the packet is the loser's, `h` a hash entry of the winner.
#[kprobe]
fn clash(ctx: ProbeContext) -> u32 {
    count(Counter::ClashSeen);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(&ctx, "a clash");
    let (Some(skb), Some(h)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else {
        count(Counter::LostUnreadable);
        return 0;
    };
    confirm::clashed(skb);
    let Some(mut entry) = RING.reserve(0) else {
        count(Counter::LostRingFull);
        return 0;
    };
    match fill(entry.as_mut_ptr(), Address::new(skb), Address::new(h)) {
        Ok(()) => {
            // SAFETY: `fill` has written all of the record, which is this hook's alone until it is submitted.
            let record = unsafe { &*entry.as_mut_ptr() };
            let deciding = Deciding { clash_ns: record.header.time_ns, loser_entry: record.loser_entry, packet: skb };
            entry.submit(0);
            count(Counter::ClashDelivered);
            // One that is not kept has no verdict, which user space notices and counts.
            let _ = DECIDING.insert(frame::at_entry(&ctx), deciding, 0);
        }
        Err(Unreadable) => {
            entry.discard(0);
            count(Counter::LostUnreadable);
        }
    }
    0
}

/// Writes every byte of the record.
#[inline(always)]
fn fill(record: *mut ClashRecord, skb: Address, h: Address) -> Result<(), Unreadable> {
    // SAFETY: the ring entry is this hook's alone until it is submitted; the helpers take no argument.
    let (record, cpu, time_ns) = unsafe { (&mut *record, bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    const LEN: u16 = size_of::<ClashRecord>() as u16;
    record.header = RecordHeader { kind: kind::CLASH, len: LEN, cpu, time_ns };
    record.flags = 0;
    record.reserved = [0; 5];

    let loser = entry_of(skb)?;
    record.loser_entry = loser.as_key();
    record.matched = h.field(TUPLE_HASH_TUPLE).plus(TUPLE_DIR).read::<u8>()? & 1;
    let before = u64::from(record.matched) * u64::from(TUPLE_HASH_SIZE.load()) + u64::from(NF_CONN_TUPLEHASH.load());
    let winner = h.plus(before.wrapping_neg());

    fill_flow(&mut record.loser, loser)?;
    fill_sender(&mut record.loser);
    fill_flow(&mut record.winner, winner)?;

    record.netns = 0;
    match netns_of(loser) {
        Ok(inum) => record.netns = inum,
        Err(Unreadable) => record.flags |= record_flags::NETNS_UNREADABLE,
    }
    record.packet = [0; PACKET_LEN];
    record.packet_len = 0;
    match fill_packet(&mut record.packet, skb) {
        Ok(len) => record.packet_len = len,
        Err(Unreadable) => record.flags |= record_flags::PACKET_UNREADABLE,
    }
    Ok(())
}

/// Copies the packet from its network header to the end of its linear part, and says how much that was.
#[inline(always)]
fn fill_packet(packet: &mut [u8; PACKET_LEN], skb: Address) -> Result<u16, Unreadable> {
    let head = skb.field(SK_BUFF_HEAD).follow()?;
    let start = network_header(skb)?;
    // `sk_buff.tail` is an offset from `head` on 64-bit kernels (include/linux/skbuff.h, NET_SKBUFF_DATA_USES_OFFSET).
    let end = head.plus(u64::from(skb.field(SK_BUFF_TAIL).read::<u32>()?));
    let len = end.as_key().wrapping_sub(start.as_key());
    if len == 0 || len > u64::from(u16::MAX) {
        return Err(Unreadable);
    }
    // At most 128 from here on.
    let len = if len > PACKET_LEN as u64 { PACKET_LEN as u32 } else { len as u32 };
    // SAFETY: the helper writes at most `len` bytes, which `packet` has, and checks the address it reads.
    let failed = unsafe { bpf_probe_read_kernel(packet.as_mut_ptr().cast(), len, start.as_ptr()) };
    if failed == 0 { Ok(len as u16) } else { Err(Unreadable) }
}
