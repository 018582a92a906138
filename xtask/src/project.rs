//! Where things are, and how cargo is started.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The workspace this program belongs to.
#[derive(Debug)]
pub(crate) struct Project {
    root: PathBuf,
}

impl Project {
    /// The workspace above this crate; cargo says at run time where that is, so the sources may be moved.
    pub(crate) fn find() -> Result<Self> {
        let own = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
        let root = Path::new(&own).parent().context("the xtask crate has no folder above it")?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// A copy of the workspace.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything xtask makes is below here, and nowhere else.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// What is written for readers.
    pub(crate) fn docs(&self) -> PathBuf {
        self.root.join("docs")
    }

    /// Finished binaries.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target().join("dist")
    }

    /// Build tools of the project's own.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// Kernels, package lists and initramfs parts.
    pub(crate) fn vm(&self) -> PathBuf {
        self.target().join("vm")
    }

    /// A cargo of this workspace, without arguments yet.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        // Set for the cargo inside the build script alone; see .cargo/config.toml.
        command.current_dir(&self.root).env_remove("CARGO_TERM_QUIET");
        // Cargo set these for us; a cargo started by hand would not have them.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
                command.env_remove(name);
            }
        }
        command
    }
}
