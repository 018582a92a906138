//! What became of the loser's packet: the return of `nf_ct_resolve_clash` (net/netfilter/nf_conntrack_core.c). As cold as
//! its entry.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::kretprobe,
    programs::RetProbeContext,
};
use snat_trace_common::{Deciding, RecordHeader, VerdictRecord, kind};

use crate::{
    frame,
    maps::{DECIDING, RING},
    read::{Address, NF_CONN_STATUS, Unreadable, entry_of},
};

/// Return of `nf_ct_resolve_clash(skb, h, reply_hash)`: the packet is still there, dropped or not. A record that cannot
/// be written needs no counter here: user space misses it at its clash.
#[kretprobe]
fn verdict(ctx: RetProbeContext) -> u32 {
    let frame = frame::at_return(&ctx);
    if let Some(deciding) = DECIDING.get_ptr(frame) {
        if let Some(mut entry) = RING.reserve_untyped::<VerdictRecord>(0) {
            // SAFETY: the pointer is into a map value, which only this call of the function is about.
            match fill(entry.as_mut_ptr(), unsafe { &*deciding }, ctx.ret()) {
                Ok(()) => entry.submit(0),
                Err(Unreadable) => entry.discard(0),
            }
        }
        // It may have been pushed out meanwhile.
        let _ = DECIDING.remove(frame);
    }
    0
}

/// Writes every byte of the record.
#[inline(always)]
fn fill(record: *mut VerdictRecord, deciding: &Deciding, returned: u32) -> Result<(), Unreadable> {
    // SAFETY: the ring entry is this hook's alone until it is submitted; the helpers take no argument.
    let (record, cpu, time_ns) = unsafe { (&mut *record, bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    const LEN: u16 = size_of::<VerdictRecord>() as u16;
    record.header = RecordHeader { kind: kind::VERDICT, len: LEN, cpu, time_ns };
    record.clash_ns = deciding.clash_ns;
    record.loser_entry = deciding.loser_entry;
    let entry = entry_of(Address::new(deciding.packet))?;
    record.entry = entry.as_key();
    record.status = entry.field(NF_CONN_STATUS).read()?;
    record.returned = returned;
    record.reserved = 0;
    Ok(())
}
