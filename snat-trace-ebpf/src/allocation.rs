//! When a new connection asks for its translated source: `nf_nat_setup_info` (net/netfilter/nf_nat_core.c).

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{Allocation, Counter, NatRange};

use crate::{
    maps::{ALLOCATIONS, count},
    owner, process,
    read::{Address, Unreadable, halves, tuple_address},
    sending,
};

/// `NF_NAT_MANIP_SRC`, the source side of `enum nf_nat_manip_type`.
const MANIP_SRC: u32 = 0;

/// Words of `struct nf_nat_range2` up to `min_proto` and `max_proto`, which share the last; `flags` is the first. It is
/// user-space API (include/uapi/linux/netfilter/nf_nat.h).
const RANGE_WORDS: usize = 10;

/// Entry of `nf_nat_setup_info(ct, range, maniptype)`: before a port is chosen, so nothing here widens the race. Once per new
/// connection that comes to source NAT: one that no rule takes is bound to its own source (`nf_nat_alloc_null_binding`).
#[kprobe]
fn allocation(ctx: ProbeContext) -> u32 {
    if ctx.arg::<u32>(2) != Some(MANIP_SRC) {
        return 0;
    }
    count(Counter::Connection);
    if let (Some(entry), Some(range)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        let mut is_new = false;
        if remember(Address::new(entry), Address::new(range), &mut is_new).is_err() {
            count(Counter::AllocationNotKept);
        }
        if is_new {
            process::note(&ctx);
        }
    }
    0
}

/// Keeps what asks, and who sends it where that is seen: a process of which it is to be noted what it runs, or not.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would be made word by word")]
#[inline(always)]
fn remember(entry: Address, range: Address, is_new: &mut bool) -> Result<(), Unreadable> {
    let [flags, .., ports] = range.read::<[u32; RANGE_WORDS]>()?;
    let [min_port_be, max_port_be] = halves(ports);
    let mut allocation = MaybeUninit::<Allocation>::uninit();
    // What the helper fills need not be filled before.
    // SAFETY: the place is there, and all of it is written before it is read: the tuple by the helper, zeros where it fails,
    // and each of the others here. The helpers besides take no argument and touch no memory.
    let allocation = unsafe {
        let to = allocation.as_mut_ptr();
        (*to).allocated_ns = bpf_ktime_get_ns();
        (*to).inserted_ns = 0;
        (*to).range = NatRange { flags, min_port_be, max_port_be };
        (*to).allocated_cpu = bpf_get_smp_processor_id();
        (*to).inserted_cpu = 0;
        (*to).sender = 0;
        tuple_address(entry, 0).read_to(&raw mut (*to).original)?;
        allocation.assume_init_mut()
    };
    if sending::is_seen(&allocation.original) {
        allocation.sender = owner::keep_sending(&allocation.original, allocation.allocated_ns, is_new);
    }
    ALLOCATIONS.insert(entry.as_key(), &*allocation, 0).map_err(|_| Unreadable)
}
