//! Datagrams sent through io_uring by its poller: a thread of the kernel, or since it has been one of the process's
//! (io_uring/sqpoll.c, `io_sq_offload_create`), one that no code of the process runs on.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, IoringRegisterOp, IoringSetupFlags,
    IoringSqeFlags, io_cqring_offsets, io_sqring_offsets, io_uring_cqe, io_uring_enter, io_uring_files_update,
    io_uring_params, io_uring_ptr, io_uring_register, io_uring_setup, io_uring_sqe,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Entries of a ring. One is used at a time.
const ENTRIES: u32 = 2;
/// Milliseconds without work after which the poller sleeps.
const IDLE: u32 = 1000;

/// Memory shared with the kernel.
#[derive(Debug)]
struct Shared {
    address: *mut c_void,
    length: usize,
}

impl Shared {
    fn map(ring: &OwnedFd, length: usize, offset: u64) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in this process.
        let address = unsafe { mmap(ptr::null_mut(), length, protection, flags, ring, offset)? };
        Ok(Self { address, length })
    }

    /// A number that the kernel uses too.
    fn number(&self, offset: u32) -> io::Result<&AtomicU32> {
        let at = self.at(offset, size_of::<AtomicU32>())?;
        // SAFETY: inside the mapping, aligned as the kernel gave it, and only ever used as this atomic.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// A place with room for so many bytes.
    fn at(&self, offset: u32, bytes: usize) -> io::Result<*mut u8> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        if offset + bytes > self.length {
            return Err(io::Error::other("io_uring gave an offset beyond its memory"));
        }
        // SAFETY: inside the mapping.
        Ok(unsafe { self.address.cast::<u8>().add(offset) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is its own, and no reference to it outlives the borrow that made it.
        // An error would mean it was not mapped, and nothing is to be done about that.
        let _unmapped = unsafe { munmap(self.address, self.length) };
    }
}

/// A ring with a poller.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    queues: Shared,
    entries: Shared,
    submission: io_sqring_offsets,
    completion: io_cqring_offsets,
}

impl Ring {
    /// Makes one, and its poller with it.
    ///
    /// # Errors
    /// This kernel has no io_uring, or this process may not use it.
    pub fn new() -> io::Result<Self> {
        let mut params = io_uring_params::default();
        params.flags = IoringSetupFlags::SQPOLL;
        params.sq_thread_idle = IDLE;
        // SAFETY: `params` is valid, and the ring is not used but through the mappings below.
        let fd = unsafe { io_uring_setup(ENTRIES, &mut params)? };
        // Before Linux 5.11 a poller takes registered files only; there is none in this one yet.
        let files = [-1_i32];
        // SAFETY: `files` is one descriptor, and outlives the call.
        unsafe { io_uring_register(fd.as_fd(), IoringRegisterOp::RegisterFiles, files.as_ptr().cast(), 1)? };
        let (submission, completion) = (params.sq_off, params.cq_off);
        // One mapping has both queues wherever BPF has ring buffers (`IORING_FEAT_SINGLE_MMAP`).
        let bytes =
            |offset: u32, entries: u32, size: usize| Some(usize::try_from(offset).ok()? + entries as usize * size);
        let lengths = [
            bytes(submission.array, params.sq_entries, size_of::<u32>()),
            bytes(completion.cqes, params.cq_entries, size_of::<io_uring_cqe>()),
        ];
        let length = lengths.into_iter().flatten().max().unwrap_or(0);
        let queues = Shared::map(&fd, length, IORING_OFF_SQ_RING)?;
        let entries = Shared::map(&fd, params.sq_entries as usize * size_of::<io_uring_sqe>(), IORING_OFF_SQES)?;
        Ok(Self { fd, queues, entries, submission, completion })
    }

    /// Sends by a connected socket, and waits until it was sent.
    ///
    /// # Errors
    /// What `send` would have met.
    pub fn send(&mut self, socket: BorrowedFd<'_>, payload: &[u8]) -> io::Result<()> {
        let files = [socket.as_raw_fd()];
        let mut update = io_uring_files_update::default();
        update.fds = io_uring_ptr::new(files.as_ptr().cast_mut().cast());
        // SAFETY: `update` and what it points to outlive the call.
        let updated = unsafe {
            let update = ptr::from_ref(&update).cast();
            io_uring_register(self.fd.as_fd(), IoringRegisterOp::RegisterFilesUpdate, update, 1)?
        };
        if updated != 1 {
            return Err(io::Error::other("io_uring does not take the socket"));
        }

        // Of the registered files, the first.
        let mut entry = io_uring_sqe {
            opcode: IoringOp::Send,
            flags: IoringSqeFlags::FIXED_FILE,
            fd: 0,
            ..io_uring_sqe::default()
        };
        entry.addr_or_splice_off_in.addr = io_uring_ptr::new(payload.as_ptr().cast_mut().cast());
        entry.len.len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let tail = self.queues.number(self.submission.tail)?;
        let mask = self.queues.number(self.submission.ring_mask)?.load(Ordering::Relaxed);
        let now = tail.load(Ordering::Relaxed);
        let place = u32::try_from(size_of::<io_uring_sqe>()).map_err(io::Error::other)? * (now & mask);
        let slot = self.entries.at(place, size_of::<io_uring_sqe>())?.cast();
        // SAFETY: the place is the entry's own, aligned as the kernel gave it, and the kernel reads it when the tail moves.
        unsafe { ptr::write(slot, entry) };
        self.queues.number(self.submission.array + (now & mask) * 4)?.store(now & mask, Ordering::Relaxed);
        tail.store(now.wrapping_add(1), Ordering::Release);
        self.wait()
    }

    /// Takes the one completion there is to come.
    fn wait(&self) -> io::Result<()> {
        let (head, tail) = (self.queues.number(self.completion.head)?, self.queues.number(self.completion.tail)?);
        let done = head.load(Ordering::Relaxed);
        while tail.load(Ordering::Acquire) == done {
            let wait = IoringEnterFlags::GETEVENTS | IoringEnterFlags::SQ_WAKEUP;
            // SAFETY: no memory is passed.
            match unsafe { io_uring_enter(self.fd.as_fd(), 0, 1, wait) } {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mask = self.queues.number(self.completion.ring_mask)?.load(Ordering::Relaxed);
        let size = size_of::<io_uring_cqe>();
        let place = self.completion.cqes + (done & mask) * u32::try_from(size).map_err(io::Error::other)?;
        // SAFETY: the kernel has filled this one in, and leaves it alone until the head moves.
        let result = unsafe { self.queues.at(place, size)?.cast::<io_uring_cqe>().as_ref() }.map_or(0, |cqe| cqe.res);
        head.store(done.wrapping_add(1), Ordering::Release);
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

/// A ring, and the number of its poller among the threads of this process, which starts no other meanwhile; `None` where the
/// poller is the kernel's alone.
pub(super) fn with_poller() -> io::Result<(Ring, Option<u32>)> {
    let before = threads()?;
    let ring = Ring::new()?;
    let poller = threads()?.into_iter().find(|thread| !before.contains(thread));
    Ok((ring, poller))
}

fn threads() -> io::Result<Vec<u32>> {
    let numbers = fs::read_dir("/proc/self/task")?.map(|thread| Ok(thread?.file_name().to_str().and_then(number)));
    Ok(numbers.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn number(name: &str) -> Option<u32> {
    name.parse().ok()
}
