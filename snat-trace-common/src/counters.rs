//! What the BPF programs count: one per-CPU slot each, so that seen = delivered + lost holds by reason.

/// Slot of the per-CPU counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Counter {
    /// Clashes the clash hook was called for.
    ClashSeen,
    /// Clashes whose record is in the ring.
    ClashDelivered,
    /// Clashes lost because the ring was full.
    LostRingFull,
    /// Clashes lost because the loser's or the winner's entry could not be read.
    LostUnreadable,
    /// Allocations that could not be remembered: the times of such a flow are absent from its record.
    AllocationNotKept,
    /// Senders that could not be remembered: the owner of such a flow is absent from its record.
    OwnerNotKept,
    /// Sent packets that could not be read for their tuple.
    OwnerUnreadable,
    /// Failures that are no clash, seen at the return of a function.
    FailureSeen,
    /// Failures lost because the ring was full.
    FailureRingFull,
    /// Failures lost because the entry or the tuple could not be read.
    FailureUnreadable,
    /// Failures, or clashes, whose call's begin was missed, so that it is not known whose they are. Not in
    /// [`Self::FailureSeen`].
    FailureUnpaired,
    /// Calls whose return was missed: one of them may have failed.
    ReturnMissed,
    /// New connections that came to source NAT, whether a rule there translates them or not.
    Connection,
}

impl Counter {
    /// Every counter, in slot order.
    pub const ALL: [Self; 13] = [
        Self::ClashSeen,
        Self::ClashDelivered,
        Self::LostRingFull,
        Self::LostUnreadable,
        Self::AllocationNotKept,
        Self::OwnerNotKept,
        Self::OwnerUnreadable,
        Self::FailureSeen,
        Self::FailureRingFull,
        Self::FailureUnreadable,
        Self::FailureUnpaired,
        Self::ReturnMissed,
        Self::Connection,
    ];

    /// Number of slots.
    #[expect(clippy::cast_possible_truncation, reason = "a dozen fits; usize::try_from is not const")]
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

const _: () = {
    let mut slot = 0;
    while slot < Counter::ALL.len() {
        assert!(Counter::ALL[slot] as usize == slot);
        slot += 1;
    }
};
