//! Which call of a function a hook stands in, so that its return is set beside its own entry and no other.
//!
//! Not by the CPU, as a task may be moved or preempted, nor by the process alone, as every idle task is process 0 and a
//! softirq that interrupts a task has the same current task: by where on which stack the call returns to.

use aya_ebpf::{
    helpers::generated::bpf_get_current_task,
    programs::{ProbeContext, RetProbeContext},
};
use snat_trace_common::Frame;

/// Bytes the return address takes, gone from the stack when the function has returned.
const RETURN_ADDRESS: u64 = 8;

/// The call whose entry this is: nothing is on the stack yet but the return address.
#[inline(always)]
pub(crate) fn at_entry(ctx: &ProbeContext) -> Frame {
    // SAFETY: the kernel hands a kprobe a `pt_regs`.
    frame(unsafe { (*ctx.regs).rsp })
}

/// The call whose return this is.
#[inline(always)]
pub(crate) fn at_return(ctx: &RetProbeContext) -> Frame {
    // SAFETY: as above.
    frame(unsafe { (*ctx.regs).rsp }.wrapping_sub(RETURN_ADDRESS))
}

/// Address of the current `task_struct`.
#[inline(always)]
pub(crate) fn task() -> u64 {
    // SAFETY: the helper takes no argument and touches no memory.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
fn frame(stack: u64) -> Frame {
    Frame { task: task(), stack }
}
