//! The maps, and the counting of everything that does not reach user space.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use snat_trace_common::{
    Allocation, Call, CgroupKey, ClashRecord, Counter, Deciding, Frame, OwnerFact, PathFact, ProcessFact, ProcessKey,
    Tuple,
};

/// Sizes here are least sizes: the loader sets those the user asked for.
const RING_BYTES: usize = 4096;
const ENTRIES: usize = 1024;

/// Records on their way to user space.
#[btf_map]
pub(crate) static RING: RingBuf<ClashRecord, RING_BYTES> = RingBuf::new();

/// Allocations by the address of their conntrack entry. The least recently used goes first: an entry matters only
/// between its allocation and the clashes it loses or wins, which is microseconds.
#[btf_map]
pub(crate) static ALLOCATIONS: LruHashMap<u64, Allocation, ENTRIES> = LruHashMap::new();

/// Senders by original tuple.
#[btf_map]
pub(crate) static OWNERS: LruHashMap<Tuple, OwnerFact, ENTRIES> = LruHashMap::new();

/// What the senders run.
#[btf_map]
pub(crate) static PROCESSES: LruHashMap<ProcessKey, ProcessFact, ENTRIES> = LruHashMap::new();

/// Where one is put together: a kprobe program is neither preempted nor does it nest, so it has its CPU's for itself.
#[btf_map]
pub(crate) static PROCESS: PerCpuArray<ProcessFact, 1> = PerCpuArray::new();

/// Paths of cgroups that were removed, or that somebody tried to remove.
#[btf_map]
pub(crate) static REMOVED_CGROUPS: LruHashMap<CgroupKey, PathFact, ENTRIES> = LruHashMap::new();

/// Where the programs of senders go on: 0 notes what they run.
#[btf_map]
pub(crate) static CONTINUATIONS: ProgramArray<1> = ProgramArray::new();

/// As [`PROCESS`].
#[btf_map]
pub(crate) static REMOVED_CGROUP: PerCpuArray<PathFact, 1> = PerCpuArray::new();

/// Clashes between the entry and the return of `nf_ct_resolve_clash`: seldom more than one per CPU. One whose return was
/// missed stays until it is the least recently used.
#[btf_map]
pub(crate) static DECIDING: LruHashMap<Frame, Deciding, ENTRIES> = LruHashMap::new();

/// Calls in flight that may fail. As [`DECIDING`], at the rate of new connections.
#[btf_map]
pub(crate) static CALLS: LruHashMap<Frame, Call, ENTRIES> = LruHashMap::new();

/// When a packet last clashed, by the address of its `struct sk_buff`.
#[btf_map]
pub(crate) static CLASHED: LruHashMap<u64, u64, ENTRIES> = LruHashMap::new();

/// When a task last found the table full and nothing to evict, by the address of its `task_struct`.
#[btf_map]
pub(crate) static FOUND_FULL: LruHashMap<u64, u64, ENTRIES> = LruHashMap::new();

/// Address of `nf_conntrack_ext_genid`; 0 where it is not known.
#[btf_map]
pub(crate) static EXT_GENID: Array<u64, 1> = Array::new();

/// One slot per [`Counter`].
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own and a BPF program is not preempted by itself; kprobe programs do not nest.
        unsafe { *slot += 1 };
    }
}
