//! Lets the senders of all pods go at one instant: one counter in memory they share.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Looks between two yields. Enough that a pod on a CPU of its own hardly ever yields just when the last comes, few
/// enough that pods that share a CPU let each other come.
const LOOKS: u32 = 1 << 9;

const LENGTH: usize = size_of::<AtomicU32>();

/// How many times a pod has ever come to the barrier, mapped into this process.
#[derive(Debug)]
pub(super) struct Barrier(NonNull<AtomicU32>);

// SAFETY: what it points to is an atomic in a mapping that lives as long as the barrier.
unsafe impl Send for Barrier {}

impl Barrier {
    /// Memory for one barrier, to be given to every pod.
    pub(super) fn memory() -> io::Result<OwnedFd> {
        let memory = memfd_create("snat-trace-lab", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, LENGTH as u64)?;
        Ok(memory)
    }

    /// Maps it.
    pub(super) fn map(memory: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in this process.
        let address =
            unsafe { mmap(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory, 0)? };
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("the barrier was mapped at address 0"))
    }

    /// Comes to the barrier and waits until pods have come `target` times in all.
    pub(super) fn arrive(&self, target: u32) {
        // SAFETY: the mapping is LENGTH bytes, page-aligned, and only ever used as this atomic, in every process.
        let arrived = unsafe { self.0.as_ref() };
        arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks: u32 = 0;
        // The count wraps around after four thousand million.
        while target.wrapping_sub(arrived.load(Ordering::Acquire)).cast_signed() > 0 {
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) {
                rustix::thread::sched_yield();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        // SAFETY: the mapping is this barrier's own and no reference to it outlives `arrive`.
        // An error would mean it was not mapped, and nothing is to be done about that.
        let _unmapped = unsafe { munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn nobody_goes_before_all_have_come() {
        let memory = Barrier::memory().unwrap();
        let gone = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    Barrier::map(memory.as_fd()).unwrap().arrive(3);
                    gone.fetch_add(1, Ordering::SeqCst);
                });
            }
            let last = Barrier::map(memory.as_fd()).unwrap();
            // SAFETY: as in `arrive`.
            while unsafe { last.0.as_ref() }.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            assert_eq!(gone.load(Ordering::SeqCst), 0);
            last.arrive(3);
        });
        assert_eq!(gone.load(Ordering::SeqCst), 2);
    }
}
