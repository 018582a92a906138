//! What is known of a connection that has an entry.

use aya_ebpf::Global;
use snat_trace_common::{ABSENT, FlowFact, OwnerFact, Tuple, flow_flags};

use crate::{
    failure::now,
    maps::{ALLOCATIONS, OWNERS},
    owner, process,
    read::{Address, NF_CONN_STATUS, NF_CONN_ZONE, Unreadable, same_tuple, tuple_address},
    sending,
};

/// Whether the allocation, insertion and owner hooks are attached too.
#[unsafe(no_mangle)]
static FULL: Global<u8> = Global::new(0);

/// Bit of `nf_conn.status` that `nf_nat_setup_info` sets for the source side, whatever it chose
/// (include/uapi/linux/netfilter/nf_conntrack_common.h).
const IPS_SRC_NAT_DONE: u64 = 1 << 7;

/// Writes every byte of the fact, from the entry and from what the other hooks noted of it.
#[inline(always)]
pub(crate) fn fill_flow(flow: &mut FlowFact, entry: Address) -> Result<(), Unreadable> {
    let original = fill_original(flow, tuple_address(entry, 0))?;
    flow.reply = tuple_address(entry, 1).read()?;
    flow.status = entry.field(NF_CONN_STATUS).read()?;
    if NF_CONN_ZONE.load() != ABSENT {
        fill_zone(flow, entry.field(NF_CONN_ZONE))?;
    }
    if FULL.load() == 0 {
        return Ok(());
    }
    if let Some(allocation) = ALLOCATIONS.get_ptr(entry.as_key()) {
        // SAFETY: the pointer is into a map value; a value recycled meanwhile has another tuple.
        let allocation = unsafe { &*allocation };
        // The address may have been another entry's before: then the tuple differs, or, where the same flow lives again or
        // in another namespace, this one has not asked for a port.
        let asked = flow.status & IPS_SRC_NAT_DONE != 0;
        if asked && same_tuple(&allocation.original, &original) {
            flow.flags |= flow_flags::ALLOCATION;
            flow.allocated_ns = allocation.allocated_ns;
            flow.inserted_ns = allocation.inserted_ns;
            flow.range = allocation.range;
            flow.allocated_cpu = allocation.allocated_cpu;
            flow.inserted_cpu = allocation.inserted_cpu;
            flow.sender = allocation.sender;
        } else {
            flow.flags |= flow_flags::STALE_ALLOCATION;
        }
    }
    fill_owner(flow, &original);
    Ok(())
}

/// The same of a connection that was given no entry: its tuple, its zone, and who sent its first packet.
#[inline(always)]
pub(crate) fn fill_flow_without_entry(flow: &mut FlowFact, original: Address, zone: Address) -> Result<(), Unreadable> {
    let original = fill_original(flow, original)?;
    flow.reply = Tuple::default();
    flow.status = 0;
    fill_zone(flow, zone)?;
    fill_owner(flow, &original);
    fill_sender(flow);
    Ok(())
}

/// Who sends a flow that has not asked for a port here, while its packet is on its way.
#[inline(always)]
pub(crate) fn fill_sender(flow: &mut FlowFact) {
    // A key is taken from the stack: from the ring's memory the verifier of 5.10 takes none.
    let original = flow.original;
    if FULL.load() != 0 && flow.flags & flow_flags::ALLOCATION == 0 && sending::is_seen(&original) {
        flow.sender = owner::keep_sending(&original, now(), &mut false);
        if flow.sender != 0 {
            fill_owner(flow, &original);
        }
    }
}

/// Writes every byte but the reply and the status: the tuple, and that nothing else is known.
#[inline(always)]
fn fill_original(flow: &mut FlowFact, original: Address) -> Result<Tuple, Unreadable> {
    let original: Tuple = original.read()?;
    flow.original = original;
    flow.allocated_ns = 0;
    flow.inserted_ns = 0;
    flow.range = Default::default();
    flow.allocated_cpu = 0;
    flow.inserted_cpu = 0;
    flow.flags = 0;
    flow.zone = 0;
    flow.zone_dir = 0;
    flow.reserved = 0;
    flow.sender = 0;
    flow.owner = OwnerFact::default();
    Ok(original)
}

/// `struct nf_conntrack_zone` (include/net/netfilter/nf_conntrack_zones.h): u16 id, u8 flags, u8 dir.
#[inline(always)]
fn fill_zone(flow: &mut FlowFact, zone: Address) -> Result<(), Unreadable> {
    flow.zone = zone.read()?;
    flow.zone_dir = zone.plus(3).read()?;
    Ok(())
}

#[inline(always)]
fn fill_owner(flow: &mut FlowFact, original: &Tuple) {
    if let Some(owner) = OWNERS.get_ptr(original) {
        flow.flags |= flow_flags::OWNER;
        // SAFETY: the pointer is into a map value.
        flow.owner = unsafe { *owner };
        process::tell(&flow.owner);
    }
}
