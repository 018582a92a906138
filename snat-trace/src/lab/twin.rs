//! A pod's second thread, which sends by the same socket at the same instant.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use rustix::thread::gettid;

use super::barrier::Barrier;
use super::error::{Doing, LabError};
use super::pod::pin;
use super::transport::{First, Transport};

/// What it is to send: when so many have come to the barrier.
type Order = (OwnedFd, Transport, First, u32);

/// The thread. It ends with the process, or when this is dropped.
#[derive(Debug)]
pub(super) struct Twin {
    tid: u32,
    orders: mpsc::Sender<Order>,
    sent: mpsc::Receiver<io::Result<()>>,
}

impl Twin {
    /// Starts it on a CPU; `memory` is the barrier's.
    pub(super) fn start(name: String, cpu: Option<usize>, memory: BorrowedFd<'_>) -> Result<Self, LabError> {
        let barrier = Barrier::map(memory).doing("map a pod's barrier")?;
        let (orders, taken) = mpsc::channel::<Order>();
        let (done, sent) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let serve = move || {
            let pinned = cpu.map_or(Ok(()), pin);
            if ready.send(pinned.map(|()| gettid().as_raw_pid().cast_unsigned())).is_err() {
                return;
            }
            for (socket, transport, first, target) in taken {
                barrier.arrive(target);
                if done.send(transport.send(&socket, &first)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name(name).spawn(serve).doing("start a pod's second sender")?;
        let tid = started.recv().map_err(|_| LabError::Ended("second sender"))?;
        Ok(Self { tid: tid?, orders, sent })
    }

    /// Its thread id.
    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    /// Lets it send `first` when so many have come to the barrier.
    pub(super) fn order(&self, socket: OwnedFd, transport: Transport, first: First, target: u32) -> io::Result<()> {
        self.orders.send((socket, transport, first, target)).map_err(|_| gone())
    }

    /// What came of it.
    pub(super) fn sent(&self) -> io::Result<()> {
        self.sent.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> io::Error {
    io::Error::other("the second sender has ended")
}
