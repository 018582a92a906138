//! Connections that do not come into the table, without a clash: what the hooks on functions that can fail share.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    programs::{ProbeContext, RetProbeContext},
};
use snat_trace_common::{Call, Counter, FailureRecord, RecordHeader, failure_flags, kind};

use crate::{
    frame,
    maps::{CALLS, RING, count},
    read::Unreadable,
};

const EEXIST: i32 = 17;

/// The time now, in nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes no argument and touches no memory.
    unsafe { bpf_ktime_get_ns() }
}

/// Remembers a call until it returns. One that is not kept counts only if it fails.
#[inline(always)]
pub(crate) fn begin(ctx: &ProbeContext, call: &Call) {
    let frame = frame::at_entry(ctx);
    if CALLS.insert(frame, call, BPF_NOEXIST.into()) == Err(-EEXIST) {
        // The return of an earlier call was missed.
        count(Counter::ReturnMissed);
        let _ = CALLS.insert(frame, call, BPF_ANY.into());
    }
}

/// Forgets a call that has not failed. It may have begun before this hook ran.
#[inline(always)]
pub(crate) fn succeeded(ctx: &RetProbeContext) {
    let _ = CALLS.remove(frame::at_return(ctx));
}

/// Hands on the call of `function` that returns now and has failed, and forgets it. One whose begin was missed is counted.
#[inline(always)]
pub(crate) fn failed(ctx: &RetProbeContext, function: u32, tell: impl FnOnce(&Call)) {
    let frame = frame::at_return(ctx);
    if let Some(call) = CALLS.get_ptr(frame) {
        // SAFETY: the pointer is into a map value, which only this call of the function is about.
        let call = unsafe { &*call };
        if call.function == function {
            tell(call);
            let _ = CALLS.remove(frame);
            return;
        }
    }
    count(Counter::FailureUnpaired);
}

/// Writes a record of a failure: `fill` adds what the function knows to what every record has.
#[inline(always)]
pub(crate) fn record(
    call: &Call,
    returned: i64,
    fill: impl FnOnce(&mut FailureRecord, &Call) -> Result<(), Unreadable>,
) {
    count(Counter::FailureSeen);
    let Some(mut entry) = RING.reserve_untyped::<FailureRecord>(0) else {
        count(Counter::FailureRingFull);
        return;
    };
    const LEN: u16 = size_of::<FailureRecord>() as u16;
    // SAFETY: the ring entry is this hook's alone until it is submitted; the helper takes no argument.
    let (record, cpu) = unsafe { (&mut *entry.as_mut_ptr(), bpf_get_smp_processor_id()) };
    record.header = RecordHeader { kind: kind::FAILURE, len: LEN, cpu, time_ns: call.began_ns };
    record.netns = 0;
    record.flags = call.flags;
    record.function = call.function;
    record.entry_generation = 0;
    record.generation = 0;
    record.reserved = 0;
    record.returned = returned;
    record.status_before = 0;
    match fill(record, call) {
        Ok(()) => entry.submit(0),
        Err(Unreadable) => {
            entry.discard(0);
            count(Counter::FailureUnreadable);
        }
    }
}

/// The network namespace of the record, as it was read.
#[inline(always)]
pub(crate) fn fill_netns(record: &mut FailureRecord, inum: Result<u32, Unreadable>) {
    match inum {
        Ok(inum) => record.netns = inum,
        Err(Unreadable) => record.flags |= failure_flags::NETNS_UNREADABLE,
    }
}
