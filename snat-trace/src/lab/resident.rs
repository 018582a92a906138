//! A thread that lives in a namespace, as somebody does in each that real pods have: who goes through those of all threads
//! finds it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::error::{Doing, LabError};
use super::netns::{Netns, enter};
use super::node::wait_for_close;
use super::wire::pair;

/// The thread.
#[derive(Debug)]
pub(super) struct Resident {
    /// Closing it ends the thread. `None` only while being dropped.
    life: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Resident {
    /// Starts it; returns when it is there.
    pub(super) fn of(netns: &Netns) -> Result<Self, LabError> {
        let (life, other_end) = pair().doing("make a socket pair")?;
        let netns = netns.as_fd().try_clone_to_owned().doing("duplicate a namespace's fd")?;
        let (report, ready) = mpsc::channel();
        let thread = thread::Builder::new().name("lab-gateway".to_owned()).spawn(move || {
            let entered = enter(netns.as_fd());
            let stays = entered.is_ok();
            // Should it not hear of the close, it ends early, and senders behind it have no names.
            let _ended = report.send(entered).is_ok() && stays && wait_for_close(&other_end).is_ok();
        });
        let thread = thread.doing("start a gateway's thread")?;
        ready.recv().map_err(|_| LabError::Ended("gateway's thread"))??;
        Ok(Self { life: Some(life), thread: Some(thread) })
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        drop(self.life.take());
        // A panic of the thread has been printed by then.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}
