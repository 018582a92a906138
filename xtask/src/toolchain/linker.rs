//! bpf-linker, of the compiler's own LLVM, in the project's own target folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::compiler::Compiler;
use crate::debian::install;
use crate::progress::{announce, capture, passthrough};
use crate::project::Project;

const VERSION: &str = "0.13.0";

/// LLVM versions [`VERSION`] can be built with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Where an LLVM is, for those who have it elsewhere.
const PREFIX: &str = "LLVM_PREFIX";

/// Whether a linker of this LLVM can be had here.
///
/// # Errors
/// bpf-linker does not know the version, or its libraries are neither here nor to be installed.
pub(super) fn supported(llvm: u32) -> Result<()> {
    if !LLVM.contains(&llvm) {
        bail!("its LLVM {llvm} is not one bpf-linker {VERSION} builds with ({} to {})", LLVM.start(), LLVM.end());
    }
    // Only Debian can be asked; elsewhere the user is told when it comes to building.
    if prefix(llvm).is_none() && install::is_debian() && install::candidate(&development_package(llvm))?.is_none() {
        bail!("there is no {} for its LLVM {llvm}", development_package(llvm));
    }
    Ok(())
}

/// Makes sure that it is there; the folder to put into `PATH`.
///
/// # Errors
/// LLVM's libraries are missing and cannot be installed, or it does not build.
pub(super) fn ensure(project: &Project, compiler: &Compiler) -> Result<PathBuf> {
    let root = project.tools();
    let bin = root.join("bin");
    let stamp = root.join("bpf-linker.stamp");
    let wanted = format!("bpf-linker {VERSION} with LLVM {}\n", compiler.llvm);
    // Its LLVM is a shared library: that it is there does not mean that it runs.
    let runs = || capture(Command::new(bin.join("bpf-linker")).arg("--version")).is_ok();
    if fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) && runs() {
        return Ok(bin);
    }
    let prefix = ensure_llvm(compiler.llvm)?;
    announce(&format!(
        "building bpf-linker {VERSION} with LLVM {} into {} (1-2 minutes)",
        compiler.llvm,
        bin.display()
    ));
    let mut cargo = project.cargo();
    cargo.args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"]);
    cargo.arg("--features").arg(format!("llvm-{}", compiler.llvm));
    cargo.arg("--root").arg(&root).env(PREFIX, prefix).env_remove("CARGO_TARGET_DIR");
    // Its own folder in PATH is our business: cargo need not warn that it is not there.
    let path = env::var_os("PATH").unwrap_or_default();
    cargo.env("PATH", env::join_paths(env::split_paths(&path).chain([bin.clone()]))?);
    passthrough(&mut cargo).context("bpf-linker does not build")?;
    fs::write(stamp, wanted)?;
    Ok(bin)
}

/// Where LLVM's headers and libraries are.
fn prefix(llvm: u32) -> Option<PathBuf> {
    let given = env::var_os(PREFIX).map(PathBuf::from);
    let usual = Path::new("/usr/lib").join(format!("llvm-{llvm}"));
    given.into_iter().chain([usual]).find(|prefix| prefix.join("include/llvm-c/Core.h").exists())
}

fn ensure_llvm(llvm: u32) -> Result<PathBuf> {
    let package = development_package(llvm);
    let mut packages = Vec::new();
    if prefix(llvm).is_none() {
        packages.push(package.as_str());
    }
    // bpf-linker links the C++ library, which comes with the C++ compiler.
    if Command::new("c++").arg("--version").output().is_err() {
        packages.push("g++");
    }
    if !packages.is_empty() {
        install::install(&packages, "building bpf-linker")?;
    }
    prefix(llvm).with_context(|| format!("LLVM {llvm} is not under /usr/lib/llvm-{llvm}: set {PREFIX} to where it is"))
}

fn development_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}
