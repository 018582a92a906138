//! Entries that die on their way into the table: a helper of connection tracking that is unloaded has all of them killed, in
//! every network namespace, or their extensions outdated, as kernels do since 5.19; 6.12 leaves them alone.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::system::delete_module;

use super::error::{Doing, LabError};
use super::modules::{is_loaded, modprobe};
use crate::race::failure::Reason;

/// A helper that hardly anybody has.
pub(super) const HELPER: &str = "nf_conntrack_ftp";

/// Why an entry cannot go in then: by what the kernel has (net/netfilter/nf_conntrack_core.c, `nf_ct_iterate_destroy`).
pub(super) fn reason() -> Result<Reason, LabError> {
    let symbols = fs::read_to_string("/proc/kallsyms").doing("read the kernel's symbols")?;
    let has = |name: &str| symbols.split_ascii_whitespace().any(|word| word == name);
    if has("nf_ct_unconfirmed_destroy") {
        Ok(Reason::Dying)
    } else if has("nf_conntrack_ext_genid") {
        Ok(Reason::StaleExtension)
    } else {
        Err(LabError::NothingDies)
    }
}

/// A thread that loads and unloads the helper until this is dropped, and leaves it as it was.
#[derive(Debug)]
pub(super) struct Helper {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Helper {
    /// Starts it. The helper must be nobody's.
    pub(super) fn start() -> Result<Self, LabError> {
        let modprobe = modprobe()?;
        let was_there = is_loaded(HELPER);
        // So that a kernel without it is known at once.
        load(&modprobe)?;
        let over = Arc::new(AtomicBool::new(false));
        let halt = Arc::clone(&over);
        let come_and_go = move || {
            let mut done = Ok(());
            while done.is_ok() && !halt.load(Ordering::Relaxed) {
                done = unload().and_then(|()| load(&modprobe));
            }
            let back = if was_there { load(&modprobe) } else { unload() };
            done.and(back)
        };
        let thread = thread::Builder::new().name("lab-helper".to_owned()).spawn(come_and_go);
        Ok(Self { over, thread: Some(thread.doing("start a thread")?) })
    }

    /// Ends it, when the helper is as it was.
    pub(super) fn end(mut self) -> Result<(), LabError> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| LabError::Ended("helper"))?)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Why it failed matters to nobody who drops it: something has failed before.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn load(modprobe: &PathBuf) -> Result<(), LabError> {
    if is_loaded(HELPER) {
        return Ok(());
    }
    let loading = Command::new(modprobe).arg(HELPER).stdin(Stdio::null()).output().doing("start modprobe")?;
    let loaded = loading.status.success() && is_loaded(HELPER);
    if loaded { Ok(()) } else { Err(LabError::NotPutBack { module: HELPER.to_owned() }) }
}

/// The kernel refuses while somebody uses it.
fn unload() -> Result<(), LabError> {
    let name = CString::new(HELPER).map_err(io::Error::other).doing("name a module")?;
    match delete_module(&name, libc::O_NONBLOCK) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).doing("unload a module"),
    }
}
