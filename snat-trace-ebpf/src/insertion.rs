//! When a connection goes into the table.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::kprobe,
    programs::ProbeContext,
};

use crate::{
    maps::ALLOCATIONS,
    read::{Address, entry_of},
};

/// Entry of `__nf_conntrack_hash_insert(ct, hash, reply_hash)` (net/netfilter/nf_conntrack_core.c): after the clash
/// check, under the bucket locks, so nothing here widens the race.
#[kprobe]
fn insertion(ctx: ProbeContext) -> u32 {
    if let Some(entry) = ctx.arg::<u64>(0) {
        mark(Address::new(entry));
    }
    0
}

/// Entry of `__nf_conntrack_confirm(skb)`, for kernels in which the insertion is inlined. It lies between the choice of
/// a port and the check, so it does as little as it can.
#[kprobe]
fn insertion_at_confirm(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(0)
        && let Ok(entry) = entry_of(Address::new(skb))
    {
        mark(entry);
    }
    0
}

/// An entry without an allocation is not translated here, and of no interest. One of an earlier life of the address is
/// marked in vain: its tuple tells at the clash.
#[inline(always)]
fn mark(entry: Address) {
    if let Some(allocation) = ALLOCATIONS.get_ptr_mut(entry.as_key()) {
        // SAFETY: the pointer is into a map value; two CPUs never insert the same entry.
        unsafe {
            (*allocation).inserted_ns = bpf_ktime_get_ns();
            (*allocation).inserted_cpu = bpf_get_smp_processor_id();
        }
    }
}
