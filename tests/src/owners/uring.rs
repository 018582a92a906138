//! One send through io_uring with a poller: a thread of the kernel's, or of ours, that is not the one who asked.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, IoringRegisterOp, IoringSetupFlags,
    IoringSqeFlags, io_uring_enter, io_uring_params, io_uring_register, io_uring_setup, io_uring_sqe,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Entries of the ring.
const ENTRIES: u32 = 2;
/// How long the poller may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends, and waits until it was sent.
///
/// # Errors
///
/// This kernel has no io_uring, or the send fails.
pub(super) fn send(socket: BorrowedFd<'_>, payload: &[u8]) -> Result<()> {
    let mut params = io_uring_params::default();
    params.flags = IoringSetupFlags::SQPOLL;
    params.sq_thread_idle = 1000;
    // SAFETY: `params` is valid, and the ring is not used but through the mappings below.
    let ring = unsafe { io_uring_setup(ENTRIES, &mut params) }.context("io_uring_setup")?;
    // Before Linux 5.11 a poller takes registered files only.
    let files = [socket.as_raw_fd()];
    // SAFETY: `files` is one descriptor, and outlives the call.
    unsafe { io_uring_register(ring.as_fd(), IoringRegisterOp::RegisterFiles, files.as_ptr().cast(), 1) }
        .context("io_uring_register")?;

    let offsets = params.sq_off;
    let index_bytes = usize::try_from(offsets.array + params.sq_entries * 4)?;
    let entry_bytes = usize::try_from(params.sq_entries)? * size_of::<io_uring_sqe>();
    let map = |length, offset| {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address the kernel chooses, of a length the kernel gave.
        unsafe { mmap(std::ptr::null_mut(), length, protection, flags, ring.as_fd(), offset) }
    };
    let queue = map(index_bytes, IORING_OFF_SQ_RING).context("mmap")?.cast::<u8>();
    let entries = map(entry_bytes, IORING_OFF_SQES).context("mmap")?.cast::<io_uring_sqe>();

    // Of the registered files, the first.
    let mut entry =
        io_uring_sqe { opcode: IoringOp::Send, flags: IoringSqeFlags::FIXED_FILE, fd: 0, ..io_uring_sqe::default() };
    entry.addr_or_splice_off_in.addr = rustix::io_uring::io_uring_ptr::new(payload.as_ptr().cast_mut().cast());
    entry.len.len = u32::try_from(payload.len())?;
    // SAFETY: both pointers are into the mappings above, at offsets the kernel gave; nothing is submitted yet, so the
    // kernel reads none of it before the tail moves.
    unsafe {
        entries.write(entry);
        queue.add(usize::try_from(offsets.array)?).cast::<u32>().write(0);
        AtomicU32::from_ptr(queue.add(usize::try_from(offsets.tail)?).cast()).store(1, Ordering::Release);
    }
    let wait = IoringEnterFlags::GETEVENTS | IoringEnterFlags::SQ_WAKEUP;
    // SAFETY: no memory is passed; what the entry points to outlives the wait for its completion.
    let _submitted = unsafe { io_uring_enter(ring.as_fd(), 0, 1, wait) }.context("io_uring_enter")?;
    // The poller says so after it has sent, and the wait above may have ended before.
    let start = Instant::now();
    // SAFETY: as above.
    while unsafe { AtomicU32::from_ptr(queue.add(usize::try_from(offsets.head)?).cast()).load(Ordering::Acquire) } == 0
    {
        ensure!(start.elapsed() < PATIENCE, "io_uring does not take the entry");
        std::thread::yield_now();
    }
    Ok(())
}
