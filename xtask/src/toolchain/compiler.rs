//! The compiler for `bpfel-unknown-none`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::linker;
use crate::debian::{install, version};
use crate::progress;

/// The oldest compiler that takes this workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The distribution's compiler.
const DISTRIBUTION: &str = "/usr/bin/rustc";

/// Debian's compilers with a prebuilt BPF core, best first: on older releases only the one for browsers is new enough.
const DEBIAN: [[&str; 2]; 2] = [["rustc-web", "libstd-rust-web-dev-bpf"], ["rustc", "libstd-rust-dev-bpf"]];

/// A compiler that can make BPF objects.
#[derive(Debug)]
pub(super) struct Compiler {
    /// As rustup takes it: a toolchain's name, or the path of one.
    pub(super) toolchain: String,
    /// Major version of its LLVM.
    pub(super) llvm: u32,
}

/// The first that will do, in order of preference, and why the others will not.
pub(super) fn find() -> (Option<Compiler>, Vec<String>) {
    let mut unusable = Vec::new();
    for candidate in [nightly, distribution] {
        match candidate() {
            Ok(compiler) => return (Some(compiler), unusable),
            Err(reason) => unusable.push(format!("{reason:#}")),
        }
    }
    (None, unusable)
}

fn nightly() -> Result<Compiler> {
    let Ok(toolchains) = progress::capture(Command::new("rustup").args(["toolchain", "list"])) else {
        bail!("no rustup");
    };
    if !toolchains.lines().any(|toolchain| toolchain == "nightly" || toolchain.starts_with("nightly-x86_64")) {
        bail!("no nightly toolchain of rustup");
    }
    let rustc = |arguments: &[&str]| {
        progress::capture(Command::new("rustup").args(["run", "nightly", "rustc"]).args(arguments))
    };
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        bail!("rustup's nightly has no rust-src (`rustup component add rust-src --toolchain nightly` would add it)");
    }
    checked("rustup's nightly", "nightly", &rustc(&["-vV"])?)
}

fn distribution() -> Result<Compiler> {
    if !Path::new(DISTRIBUTION).exists() {
        bail!("no {DISTRIBUTION}");
    }
    let rustc = |arguments: &[&str]| progress::capture(Command::new(DISTRIBUTION).args(arguments));
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/bpfel-unknown-none/lib").exists() {
        bail!("{DISTRIBUTION} has no prebuilt core for bpfel-unknown-none");
    }
    checked(DISTRIBUTION, &sysroot.to_string_lossy(), &rustc(&["-vV"])?)
}

/// Whether a compiler that says this of itself is new enough and has an LLVM there is a linker for.
fn checked(name: &str, toolchain: &str, verbose_version: &str) -> Result<Compiler> {
    let Some((release, llvm)) = parse_version(verbose_version) else {
        bail!("{name} does not tell its version");
    };
    // A nightly's `-nightly` would read as a Debian revision; neither matters here.
    let number = release.split('-').next().unwrap_or(release);
    if version::compare(number, OLDEST).is_lt() {
        bail!("{name} is {release}, older than {OLDEST}");
    }
    linker::supported(llvm)?;
    Ok(Compiler { toolchain: toolchain.to_owned(), llvm })
}

/// Release and LLVM major version in the output of `rustc -vV`.
fn parse_version(text: &str) -> Option<(&str, u32)> {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?, llvm))
}

/// The Debian packages to install for a compiler.
///
/// # Errors
/// This release has none that is new enough.
pub(super) fn packages() -> Result<Vec<&'static str>> {
    let usable = || -> Result<Option<Vec<&'static str>>> {
        for packages in DEBIAN {
            let mut all = true;
            for package in packages {
                let candidate = install::candidate(package)?;
                all &= candidate.is_some_and(|candidate| version::compare(&candidate, OLDEST).is_gt());
            }
            if all {
                return Ok(Some(packages.to_vec()));
            }
        }
        Ok(None)
    };
    if let Some(packages) = usable()? {
        return Ok(packages);
    }
    install::update_lists()?;
    if let Some(packages) = usable()? {
        return Ok(packages);
    }
    bail!(
        "this machine's package sources have neither {} nor {} in version {OLDEST} or newer (on Debian 12 they come \
         from bookworm-security). `rustup toolchain install nightly --component rust-src` is the other way.",
        DEBIAN[0].join(" and "),
        DEBIAN[1].join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_WEB: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
    const NIGHTLY: &str = "rustc 1.99.0-nightly (abc 2026-09-01)\nrelease: 1.99.0-nightly\nLLVM version: 23.1.0\n";

    #[test]
    fn versions_of_compilers() {
        assert_eq!(parse_version(DEBIAN_WEB), Some(("1.96.0", 22)));
        assert_eq!(parse_version(NIGHTLY), Some(("1.99.0-nightly", 23)));
        assert_eq!(parse_version("rustc 1.96.0\nrelease: 1.96.0\n"), None);
        assert_eq!(parse_version("release: 1.96.0\nLLVM version: unknown\n"), None);
    }

    #[test]
    fn an_old_compiler_is_refused_by_name_and_version() {
        let old = DEBIAN_WEB.replace("release: 1.96.0", "release: 1.85.0");
        let error = checked(DISTRIBUTION, "/usr", &old).unwrap_err().to_string();
        assert_eq!(error, format!("/usr/bin/rustc is 1.85.0, older than {OLDEST}"));
    }

    #[test]
    fn an_llvm_without_a_linker_is_refused() {
        let error = checked("x", "x", &NIGHTLY.replace("23.1.0", "31.0.0")).unwrap_err().to_string();
        assert!(error.contains("LLVM 31"), "{error}");
    }
}
