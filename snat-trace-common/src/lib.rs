//! What the BPF programs and the loader of snat-trace agree on: record layouts, loss counters and the
//! kernel structure offsets that are patched into the programs before they are loaded.
//!
//! Everything here is `#[repr(C)]`, made of integers only and free of implicit padding, so that a record
//! is the same bytes on both sides. Multi-byte fields are in host byte order unless their name says
//! `_be` (big endian, as on the wire).
#![no_std]

mod counters;
mod offsets;
mod record;

pub use counters::Counter;
pub use offsets::{ABSENT, Need, OFFSETS, Offset, SocketHead};
pub use record::{
    ARGUMENTS_LEN, Allocation, COMM_LEN, COMPONENT_LEN, Call, CgroupKey, ClashRecord, Deciding, FailureRecord,
    FlowFact, Frame, NatRange, OwnerFact, PACKET_LEN, PathFact, ProcessFact, ProcessKey, RecordHeader, Tuple,
    TupleDirection, VerdictRecord, failure_flags, flow_flags, function, kind, owner_flags, record_flags,
};
