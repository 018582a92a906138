//! What the BPF programs are built with: a compiler for `bpfel-unknown-none` and a linker of the same LLVM.

mod compiler;
mod linker;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::install;
use crate::progress::{announce, note};
use crate::project::Project;
use compiler::Compiler;

/// Names a BPF object built elsewhere; with it no BPF toolchain is needed.
pub(crate) const OBJECT: &str = "SNAT_TRACE_EBPF_OBJECT";

/// Tells snat-trace's build script the toolchain: a rustup name, or the prefix a distribution's compiler is under.
const TOOLCHAIN: &str = "SNAT_TRACE_EBPF_TOOLCHAIN";

/// Everything a cargo that builds the BPF programs needs in its environment.
#[derive(Debug)]
pub(crate) struct Toolchain {
    environment: Vec<(&'static str, OsString)>,
}

impl Toolchain {
    /// Makes sure that the BPF programs can be built, installing what is missing.
    ///
    /// # Errors
    /// Something is missing that we may not or cannot install; the message says what to do.
    pub(crate) fn ensure(project: &Project) -> Result<Self> {
        if let Some(object) = env::var_os(OBJECT) {
            let object = PathBuf::from(object);
            let object = object.canonicalize().with_context(|| format!("{OBJECT} names {}", object.display()))?;
            return Ok(Self::prebuilt(object));
        }
        let compiler = ensure_compiler()?;
        let bin = linker::ensure(project, &compiler)?;
        let path = env::join_paths([bin].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())))
            .context("the project's path cannot stand in PATH")?;
        Ok(Self { environment: vec![(TOOLCHAIN, OsString::from(compiler.toolchain)), ("PATH", path)] })
    }

    /// No toolchain, but the object it would make.
    pub(crate) fn prebuilt(object: PathBuf) -> Self {
        Self { environment: vec![(OBJECT, object.into_os_string())] }
    }

    /// Puts it into the environment of `cargo`.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        cargo.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }
}

fn ensure_compiler() -> Result<Compiler> {
    let (found, unusable) = compiler::find();
    if let Some(compiler) = found {
        return Ok(compiler);
    }
    announce("no compiler for BPF here");
    for reason in &unusable {
        note(reason);
    }
    if install::is_debian() {
        install::install(&compiler::packages()?, "compiling the BPF programs")?;
        let (found, unusable) = compiler::find();
        return found.with_context(|| format!("still no compiler for BPF: {}", unusable.join("; ")));
    }
    bail!(
        "no Rust compiler for the target bpfel-unknown-none. Either of these gives one:\n  \
         rustup toolchain install nightly --component rust-src\n  \
         a distribution's rustc with its prebuilt core for bpfel-unknown-none (Debian: rustc-web and \
         libstd-rust-web-dev-bpf)\n\
         or give a prebuilt object: {OBJECT}=/path/to/object"
    )
}
