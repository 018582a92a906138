//! Entries that no packet makes: `nf_conntrack_hash_check_insert` (net/netfilter/nf_conntrack_core.c), for ctnetlink and BPF.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use snat_trace_common::{Call, FailureRecord, failure_flags, function};

use crate::{
    failure::{begin, failed, fill_netns, now, record, succeeded},
    flow::fill_flow,
    read::{Address, Unreadable, netns_of},
};

/// Entry of `nf_conntrack_hash_check_insert(ct)`.
#[kprobe]
fn check_insert_begins(ctx: ProbeContext) -> u32 {
    if let Some(entry) = ctx.arg::<u64>(0) {
        let call = Call {
            began_ns: now(),
            subject: entry,
            before: 0,
            zone: 0,
            function: function::CHECK_INSERT,
            flags: failure_flags::NO_PACKET,
        };
        begin(&ctx, &call);
    }
    0
}

/// Its return: 0 or a negative error. The entry is still the caller's.
#[kretprobe]
fn check_insert_ends(ctx: RetProbeContext) -> u32 {
    let returned = ctx.ret::<i32>();
    if returned >= 0 {
        succeeded(&ctx);
        return 0;
    }
    failed(&ctx, function::CHECK_INSERT, |call| record(call, i64::from(returned), fill));
    0
}

#[inline(always)]
fn fill(record: &mut FailureRecord, call: &Call) -> Result<(), Unreadable> {
    let entry = Address::new(call.subject);
    fill_flow(&mut record.flow, entry)?;
    fill_netns(record, netns_of(entry));
    Ok(())
}
