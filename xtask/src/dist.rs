//! Static, stripped binaries in `target/dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::elf;
use crate::progress::capture_stdout;
use crate::project::Project;
use crate::toolchain::Toolchain;

/// What is built for, named so that `RUSTFLAGS` below reach the binaries and not the build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A binary of the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binary {
    package: &'static str,
    name: &'static str,
}

/// The product.
pub(crate) const SNAT_TRACE: Binary = Binary { package: "snat-trace", name: "snat-trace" };

/// Runs in a guest and judges snat-trace there.
pub(crate) const SCENARIOS: Binary = Binary { package: "snat-trace-tests", name: "scenarios" };

/// Runs in a guest and measures what snat-trace and others cost there.
pub(crate) const MEASURE: Binary = Binary { package: "snat-trace-tests", name: "measure" };

/// The BPF object in `target/dist`, for builds that shall not make it again.
const OBJECT: &str = "snat-trace.bpf.o";

/// What snat-trace's build script calls it, in its `OUT_DIR`.
const BUILT_OBJECT: &str = "snat-trace-ebpf";

/// Builds `binary`; where it is.
///
/// # Errors
/// It does not build, or is not static.
pub(crate) fn build(project: &Project, toolchain: &Toolchain, binary: Binary) -> Result<PathBuf> {
    eprintln!("building {} (static, {TARGET})", binary.name);
    let mut cargo = project.cargo();
    cargo.args(["build", "--profile", "dist", "--locked", "--target", TARGET, "--package", binary.package]);
    cargo.args(["--bin", binary.name, "--message-format", "json-render-diagnostics"]);
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    toolchain.apply(&mut cargo);
    let built = parse_messages(&capture_stdout(&mut cargo)?, binary.name);
    let executable = built.executable.with_context(|| format!("cargo built no {}", binary.name))?;

    let bytes = fs::read(&executable).with_context(|| format!("cannot read {}", executable.display()))?;
    if elf::needs_interpreter(&bytes).with_context(|| executable.display().to_string())? {
        bail!("{} is not static", executable.display());
    }
    let dist = project.dist();
    fs::create_dir_all(&dist)?;
    if let Some(object) = built.out_dir.map(|dir| dir.join(BUILT_OBJECT)).filter(|object| object.exists()) {
        place(&fs::read(&object)?, &object, &dist.join(OBJECT))?;
    }
    let finished = dist.join(binary.name);
    place(&bytes, &executable, &finished)?;
    Ok(finished)
}

/// What a package of the product has beside it, printed by itself: man pages, and completions where shells look for them.
///
/// # Errors
/// It does not run, or the files cannot be written.
pub(crate) fn companions(project: &Project, binary: &Path) -> Result<()> {
    let (man, completions) = (project.dist().join("man"), project.dist().join("completions"));
    for folder in [&man, &completions] {
        // None of an earlier build.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    capture_stdout(Command::new(binary).arg("man").arg(&man))?;
    for (shell, file) in [("bash", "snat-trace"), ("zsh", "_snat-trace"), ("fish", "snat-trace.fish")] {
        let script = capture_stdout(Command::new(binary).args(["completions", shell]))?;
        let path = completions.join(file);
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The BPF object of the last build of [`SNAT_TRACE`].
pub(crate) fn object(project: &Project) -> Option<PathBuf> {
    Some(project.dist().join(OBJECT)).filter(|object| object.exists())
}

/// Copies `source`, whose content is `bytes`, unless that is there already: cargo judges the object by its time.
/// A program that runs is replaced, not written over.
fn place(bytes: &[u8], source: &Path, destination: &Path) -> Result<()> {
    if fs::read(destination).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let new = destination.with_extension("new");
    fs::copy(source, &new)
        .and_then(|_| fs::rename(&new, destination))
        .with_context(|| format!("cannot copy {} to {}", source.display(), destination.display()))
}

/// What one cargo build made.
#[derive(Debug, Default)]
struct Built {
    executable: Option<PathBuf>,
    /// Where the build script of snat-trace put its files.
    out_dir: Option<PathBuf>,
}

/// Reads cargo's messages (The Cargo Book, "External tools", "JSON messages").
fn parse_messages(text: &str, binary: &str) -> Built {
    let mut built = Built::default();
    for line in text.lines() {
        // A build script may print what it likes among them.
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let field = |name: &str| message[name].as_str();
        match field("reason") {
            Some("compiler-artifact") if message["target"]["name"] == binary => {
                built.executable = field("executable").map(PathBuf::from).or(built.executable);
            }
            Some("build-script-executed") if field("package_id").is_some_and(is_snat_trace) => {
                built.out_dir = field("out_dir").map(PathBuf::from);
            }
            _ => {}
        }
    }
    built
}

/// A package id is `path+file:///…/snat-trace#0.1.0`.
fn is_snat_trace(package_id: &str) -> bool {
    package_id.starts_with("path+") && package_id.contains("/snat-trace#")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_and_out_dir_from_cargos_messages() {
        let text = r#"
{"reason":"compiler-artifact","target":{"name":"snat-trace"},"executable":null}
{"reason":"build-script-executed","package_id":"registry+https://r.test#serde@1.0.0","out_dir":"/t/serde"}
{"reason":"build-script-executed","package_id":"path+file:///w/snat-trace#0.1.0","out_dir":"/t/out"}
something a build script printed
{"reason":"compiler-artifact","target":{"name":"snat-trace"},"executable":"/t/release/snat-trace"}
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/release/other"}
{"reason":"build-finished","success":true}
"#;
        let built = parse_messages(text, "snat-trace");
        assert_eq!(built.executable, Some(PathBuf::from("/t/release/snat-trace")));
        assert_eq!(built.out_dir, Some(PathBuf::from("/t/out")));
    }
}
