//! Virtual machines: a Debian kernel, a small userland and one command, from boot to power-off in seconds.

mod base;
mod cpio;
mod guest;
mod kernel;
mod modules;
mod qemu;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use guest::{End, Outcome};
pub(crate) use kernel::{Kernel, Series};

use crate::progress::note;
use crate::project::Project;
use cpio::Archive;

/// A file for the guest's working folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Payload {
    /// On this machine.
    pub(crate) host: PathBuf,
    /// Its name in the guest, where it may be run.
    pub(crate) name: String,
}

impl Payload {
    /// A file that keeps its name.
    pub(crate) fn plain(host: PathBuf) -> Result<Self> {
        let name = host.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no plain file name", host.display()))?.to_owned();
        Ok(Self { host, name })
    }
}

/// One command in one guest.
#[derive(Clone, Debug)]
pub(crate) struct VmRun {
    /// The command and its arguments, not a shell's line.
    pub(crate) command: Vec<String>,
    /// Files in the command's working folder, which is in its `PATH` too.
    pub(crate) payload: Vec<Payload>,
    /// Guest processors.
    pub(crate) smp: u32,
    /// Guest memory, MiB.
    pub(crate) memory: u32,
    /// From start to power-off.
    pub(crate) timeout: Duration,
    /// Whether to load the netfilter modules; without, they lie in `/mods`, to be loaded in the order of `/mods/order`.
    pub(crate) load_modules: bool,
}

impl VmRun {
    /// Two processors, 1 GiB, modules loaded.
    pub(crate) fn new(command: Vec<String>, payload: Vec<Payload>, timeout: Duration) -> Self {
        Self { command, payload, smp: 2, memory: 1024, timeout, load_modules: true }
    }
}

/// Makes sure that guests can be booted here.
///
/// # Errors
/// Something is missing that cannot be installed.
pub(crate) fn setup(project: &Project) -> Result<()> {
    let _lock = lock(project)?;
    base::ensure_packages()?;
    qemu::ensure(project)
}

/// What guests run under, in words: `QEMU emulator version 7.2.22 (...), TCG`.
///
/// # Errors
/// The emulator does not run.
pub(crate) fn emulator() -> Result<String> {
    qemu::describe()
}

/// Whether guests are emulated here: their time is then no processor's.
pub(crate) fn emulates() -> bool {
    qemu::Accelerator::of_this_machine() == qemu::Accelerator::Tcg
}

/// The kernel of a series; see [`kernel::ensure`].
///
/// # Errors
/// As there.
pub(crate) fn ensure_kernel(project: &Project, series: &Series, refresh: bool) -> Result<Kernel> {
    let _lock = lock(project)?;
    kernel::ensure(project, series, refresh)
}

/// Boots `kernel` and runs a command there; what the command says goes to our stdout as it comes.
///
/// # Errors
/// The guest could not be made or started. How it ended otherwise is in the outcome.
pub(crate) fn run(project: &Project, kernel: &Kernel, run: &VmRun) -> Result<Outcome> {
    let mut initramfs = {
        let _lock = lock(project)?;
        base::archive(project)?
    };
    initramfs.extend(kernel.modules()?);
    initramfs.extend(pack_payload(run)?);
    guest::boot(kernel, &initramfs, run)
}

/// The command as a script, and its files.
fn pack_payload(run: &VmRun) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("t/.run", 0o755, guest::script(&run.command).as_bytes())?;
    for Payload { host, name } in &run.payload {
        let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        if content.is_empty() {
            note(&format!("{} is empty", host.display()));
        }
        archive.file(&format!("t/{name}"), 0o755, &content)?;
    }
    archive.finish()
}

/// Parses `HOST` or `HOST:GUESTNAME`.
///
/// # Errors
/// There is no such file, or it has no name.
pub(crate) fn parse_payload(text: &str) -> Result<Payload> {
    let payload = match text.rsplit_once(':') {
        Some((host, name)) => Payload { host: PathBuf::from(host), name: name.to_owned() },
        None => Payload::plain(PathBuf::from(text))?,
    };
    if !Path::new(&payload.host).is_file() {
        bail!("there is no file {}", payload.host.display());
    }
    Ok(payload)
}

/// One xtask at a time may change what is cached.
fn lock(project: &Project) -> Result<File> {
    let dir = project.vm();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = File::create(dir.join("lock"))?;
    if file.try_lock().is_err() {
        note("waiting for another xtask");
        file.lock()?;
    }
    Ok(file)
}
