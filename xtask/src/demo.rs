//! From nothing to real races, caught.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::dist;
use crate::project::Project;
use crate::toolchain::Toolchain;
use crate::vm::{self, Payload, Series, VmRun};

/// The kernel to show it on where this machine's own does not do.
const KERNEL: &str = "6.12";

const TIMEOUT: Duration = Duration::from_secs(600);

/// Sets up, builds, and runs `snat-trace lab` on this machine's kernel if it can be traced, else on one in a virtual
/// machine. The exit code is the lab's.
///
/// # Errors
/// Set-up, build or boot fails, or the guest does not say how the lab ended.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    let binary = dist::build(project, &toolchain, dist::SNAT_TRACE)?;
    let code = if traceable(&binary)? {
        eprintln!("this machine's own kernel can be traced: running `snat-trace lab` here");
        let status = Command::new(&binary).arg("lab").status().context("cannot start snat-trace")?;
        // A signal has no exit code.
        status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
    } else {
        eprintln!("running `snat-trace lab` in a virtual machine with a Debian kernel {KERNEL} instead");
        vm::setup(project)?;
        let kernel = vm::ensure_kernel(project, &KERNEL.parse::<Series>()?, false)?;
        let command = ["snat-trace", "lab"].map(str::to_owned).to_vec();
        vm::run(project, &kernel, &VmRun::new(command, vec![Payload::plain(binary)?], TIMEOUT))?.exit_code()?
    };
    Ok(ExitCode::from(code))
}

/// Whether the kernel we run on takes the probes, as snat-trace itself judges; says why not.
fn traceable(binary: &Path) -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: this machine's own kernel cannot be traced");
        return Ok(false);
    }
    let doctor = Command::new(binary).arg("doctor").stdin(Stdio::null()).output().context("cannot start snat-trace")?;
    if doctor.status.success() {
        return Ok(true);
    }
    eprintln!("this machine's own kernel cannot be traced (`snat-trace doctor`: {})", doctor.status);
    for line in String::from_utf8_lossy(&doctor.stderr).lines() {
        eprintln!("  {line}");
    }
    Ok(false)
}
