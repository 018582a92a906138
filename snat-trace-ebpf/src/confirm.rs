//! Entries that are refused at `__nf_conntrack_confirm` (net/netfilter/nf_conntrack_core.c) for another reason than a
//! clash: dying, with extensions of another time, or in a chain that is too long.

use aya_ebpf::{
    Global,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use snat_trace_common::{ABSENT, Call, FailureRecord, failure_flags, function};

use crate::{
    failure::{begin, failed, fill_netns, now, record, succeeded},
    flow::{fill_flow, fill_sender},
    maps::{CLASHED, EXT_GENID},
    read::{Address, NF_CONN_EXT, NF_CONN_STATUS, NF_CT_EXT_GEN_ID, STAT_CHAINTOOLONG, Unreadable, entry_of, netns_of},
};

/// Whether these hooks are attached.
#[unsafe(no_mangle)]
static FAILURES: Global<u8> = Global::new(0);

/// `NF_DROP`.
const NF_DROP: u32 = 0;

/// Notes a clash, so that the packet's return from `__nf_conntrack_confirm` is not taken for another failure.
#[inline(always)]
pub(crate) fn clashed(packet: u64) {
    if FAILURES.load() != 0 {
        // One that is not kept becomes a failure of unknown reason besides, and the account says so.
        let _ = CLASHED.insert(packet, now(), 0);
    }
}

/// Entry of `__nf_conntrack_confirm(skb)`, between the choice of a port and the check: as little as can be.
#[kprobe]
fn confirm_begins(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(0)
        && let Ok(entry) = entry_of(Address::new(skb))
        && let Ok(status) = entry.field(NF_CONN_STATUS).read()
    {
        let call =
            Call { began_ns: now(), subject: skb, before: status, zone: 0, function: function::CONFIRM, flags: 0 };
        begin(&ctx, &call);
    }
    0
}

/// Its return.
#[kretprobe]
fn confirm_ends(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u32>() != NF_DROP {
        succeeded(&ctx);
        return 0;
    }
    failed(&ctx, function::CONFIRM, |call| {
        if !has_clashed(call) {
            record(call, i64::from(NF_DROP), fill);
        }
    });
    0
}

/// Whether it did so since this call began.
#[inline(always)]
fn has_clashed(call: &Call) -> bool {
    match CLASHED.get_ptr(call.subject) {
        // SAFETY: the pointer is into a map value.
        Some(clashed_ns) => unsafe { *clashed_ns >= call.began_ns },
        None => false,
    }
}

/// The packet is still there, and its entry with it.
#[inline(always)]
fn fill(record: &mut FailureRecord, call: &Call) -> Result<(), Unreadable> {
    let entry = entry_of(Address::new(call.subject))?;
    fill_flow(&mut record.flow, entry)?;
    fill_sender(&mut record.flow);
    fill_netns(record, netns_of(entry));
    record.status_before = call.before;
    if STAT_CHAINTOOLONG.load() != ABSENT {
        record.flags |= failure_flags::CHAIN_LIMITED;
    }
    if NF_CT_EXT_GEN_ID.load() != ABSENT && NF_CONN_EXT.load() != ABSENT {
        record.flags |= failure_flags::HAS_GENERATIONS;
        // At 0 nothing can be read.
        if let Some(&address) = EXT_GENID.get(0)
            && let (Ok(generation), Ok(extensions)) = (Address::new(address).read(), entry.field(NF_CONN_EXT).follow())
        {
            record.generation = generation;
            if extensions.as_key() == 0 {
                record.flags |= failure_flags::GENERATIONS;
            } else if let Ok(generation) = extensions.field(NF_CT_EXT_GEN_ID).read() {
                record.entry_generation = generation;
                record.flags |= failure_flags::GENERATIONS;
            }
        }
    }
    Ok(())
}
