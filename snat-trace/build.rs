//! Builds the BPF programs, or takes a prebuilt object. Downloads nothing.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result};
use aya_build::{Package, Toolchain};

/// File of the object in `OUT_DIR`; the name of the BPF crate's binary.
const OBJECT: &str = "snat-trace-ebpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=SNAT_TRACE_EBPF_OBJECT");
    println!("cargo:rerun-if-env-changed=SNAT_TRACE_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=build.rs");

    if let Some(object) = env::var_os("SNAT_TRACE_EBPF_OBJECT") {
        let object = Path::new(&object);
        println!("cargo:rerun-if-changed={}", object.display());
        let out = Path::new(&env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?).join(OBJECT);
        fs::copy(object, out).with_context(|| format!("SNAT_TRACE_EBPF_OBJECT: cannot copy {}", object.display()))?;
        return Ok(());
    }

    let toolchain = env::var("SNAT_TRACE_EBPF_TOOLCHAIN");
    let toolchain = toolchain.as_deref().map_or(Toolchain::Nightly, Toolchain::Custom);
    let features: &[&str] = if env::var_os("CARGO_FEATURE_LOG").is_some() { &["log"] } else { &[] };
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../snat-trace-ebpf");
    println!("cargo:rerun-if-changed={root_dir}/../snat-trace-common");
    let package = Package { name: OBJECT, root_dir, no_default_features: true, features };
    aya_build::build_ebpf([package], toolchain).context(
        "the BPF programs were not built; `cargo xtask build` sets up what that needs and says what is missing",
    )
}
