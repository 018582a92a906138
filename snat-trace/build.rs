//! Builds the BPF programs, or takes a prebuilt object. Downloads nothing.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result};
use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// File of the object in `OUT_DIR`; the name of the BPF crate's binary.
const OBJECT: &str = "snat-trace-ebpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=SNAT_TRACE_EBPF_OBJECT");
    println!("cargo:rerun-if-env-changed=SNAT_TRACE_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=build.rs");

    // Where the binary is put in memory is written small: of ours, which is static and needs nobody's help with it.
    if env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.split(',').any(|one| one == "crt-static")) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }

    let out = Path::new(&env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?).join(OBJECT);
    if let Some(object) = env::var_os("SNAT_TRACE_EBPF_OBJECT") {
        let object = Path::new(&object);
        println!("cargo:rerun-if-changed={}", object.display());
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
    )?;
    strip(&out).with_context(|| format!("cannot strip {}", out.display()))
}

/// Removes what debuggers read, nine tenths of the object: the linker has made BTF of it. And what would move that, which nobody
/// does.
fn strip(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let mut elf = Builder::read(bytes.as_slice())?;
    for section in &mut elf.sections {
        section.delete =
            [b".debug_".as_slice(), b".rel.debug_", b".rel.BTF"].iter().any(|prefix| section.name.starts_with(prefix));
    }
    // LLVM has one table of strings for symbols and sections.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    elf.delete_orphans();
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(fs::write(path, stripped)?)
}
