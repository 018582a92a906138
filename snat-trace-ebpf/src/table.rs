//! Connections that are given no entry: `__nf_conntrack_alloc` (net/netfilter/nf_conntrack_core.c) when the table is full.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use snat_trace_common::{Call, FailureRecord, failure_flags, function};

use crate::{
    failure::{begin, failed, fill_netns, now, record, succeeded},
    flow::fill_flow_without_entry,
    frame,
    maps::FOUND_FULL,
    read::{Address, NET_NS_INUM, Unreadable},
};

/// Negative errors stand at the end of the address space (include/linux/err.h, `MAX_ERRNO`).
const MAX_ERRNO: i64 = 4095;

/// Entry of `__nf_conntrack_alloc(net, zone, orig, repl, gfp, hash)`: before any port is chosen, so outside the window of
/// the race. The hash is that of a packet's tuple; who has no packet passes 0 (`nf_conntrack_alloc`).
#[kprobe]
fn allocate_begins(ctx: ProbeContext) -> u32 {
    if let (Some(net), Some(zone), Some(original), Some(hash)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2), ctx.arg::<u32>(5))
    {
        let flags = if hash == 0 { failure_flags::NO_PACKET } else { 0 };
        let call = Call { began_ns: now(), subject: original, before: net, zone, function: function::ALLOCATE, flags };
        begin(&ctx, &call);
    }
    0
}

/// Return of `early_drop(net, hash)`, which is called only when the table is full: whether it made room.
#[kretprobe]
fn early_drop_ends(ctx: RetProbeContext) -> u32 {
    // Its type is int up to 5.x and bool since, of which the other bits mean nothing.
    if ctx.ret::<u8>() == 0 {
        // Not kept, the failure is one of unknown reason.
        let _ = FOUND_FULL.insert(frame::task(), now(), 0);
    }
    0
}

/// Return of `__nf_conntrack_alloc`: an entry, or an error as a pointer.
#[kretprobe]
fn allocate_ends(ctx: RetProbeContext) -> u32 {
    let returned = ctx.ret::<u64>().cast_signed();
    if !(-MAX_ERRNO..0).contains(&returned) {
        succeeded(&ctx);
        return 0;
    }
    failed(&ctx, function::ALLOCATE, |call| record(call, returned, fill));
    0
}

/// What was asked for stands on the stacks of the callers, who go on only after this.
#[inline(always)]
fn fill(record: &mut FailureRecord, call: &Call) -> Result<(), Unreadable> {
    fill_flow_without_entry(&mut record.flow, Address::new(call.subject), Address::new(call.zone))?;
    fill_netns(record, Address::new(call.before).field(NET_NS_INUM).read());
    if let Some(full_ns) = FOUND_FULL.get_ptr(frame::task()) {
        // SAFETY: the pointer is into a map value.
        if unsafe { *full_ns } >= call.began_ns {
            record.flags |= failure_flags::TABLE_FULL;
        }
    }
    Ok(())
}
