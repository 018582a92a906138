//! When a new connection asks for its translated source: `nf_nat_setup_info` (net/netfilter/nf_nat_core.c).

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{Allocation, Counter, NatRange, Tuple};

use crate::{
    maps::{ALLOCATIONS, count},
    read::{Address, Unreadable, tuple_address},
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
    if let (Some(entry), Some(range)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1))
        && remember(Address::new(entry), Address::new(range)).is_err()
    {
        count(Counter::AllocationNotKept);
    }
    0
}

#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would be made word by word")]
#[inline(always)]
fn remember(entry: Address, range: Address) -> Result<(), Unreadable> {
    let [flags, .., ports] = range.read::<[u32; RANGE_WORDS]>()?;
    let [min_port_be, max_port_be] = halves(ports);
    let allocation = &mut Allocation {
        original: Tuple::default(),
        // SAFETY: the helpers take no argument and touch no memory.
        allocated_ns: unsafe { bpf_ktime_get_ns() },
        inserted_ns: 0,
        range: NatRange { flags, min_port_be, max_port_be },
        // SAFETY: as above.
        allocated_cpu: unsafe { bpf_get_smp_processor_id() },
        inserted_cpu: 0,
    };
    tuple_address(entry, 0).read_into(&mut allocation.original)?;
    ALLOCATIONS.insert(entry.as_key(), &*allocation, 0).map_err(|_| Unreadable)
}

/// The two numbers of 16 bits that a word in memory has, in their order.
#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
