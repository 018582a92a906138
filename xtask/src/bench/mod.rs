//! What snat-trace costs: measured in one guest and on this machine, and written down for readers.

mod figure;
mod markdown;
mod native;
mod peers;
mod plot;
mod targets;
mod words;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::dist;
use crate::project::Project;
use crate::stages::Stages;
use crate::toolchain::Toolchain;
use crate::vm::{self, Payload, Series, VmRun};
use figure::{Cost, Figure};
use peers::Peers;

/// The kernel everything is measured on.
const KERNEL: &str = "6.12";

/// The peers are a quarter of a gigabyte, which lies in the guest's memory.
const MEMORY_MIB: u32 = 4096;

/// For the whole guest.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// What is written, below `docs`.
const DOCUMENT: &str = "COST.md";
const DATA: &str = "cost.json";

/// Measures everything and writes the document, whatever came of it: the exit code says whether all is well.
///
/// # Errors
/// The set-up or a build fails.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;
    let snat_trace = dist::build(project, &toolchain, dist::SNAT_TRACE)?;
    let measure = dist::build(project, &toolchain, dist::MEASURE)?;
    let peers = Peers::ensure(project)?;
    let kernel = vm::ensure_kernel(project, &KERNEL.parse::<Series>()?, false)?;
    let emulator = vm::emulator()?;
    let built = dist::object(project).map(Toolchain::prebuilt).unwrap_or(toolchain);

    let mut stages = Stages::default();
    let mut figures = measured_natively(project, &built, &snat_trace, &mut stages)?;
    let mut payload = peers.payload;
    payload.extend([Payload::plain(snat_trace)?, Payload::plain(measure)?]);
    let mut run = VmRun::new(vec!["measure".to_owned()], payload, TIMEOUT);
    run.memory = MEMORY_MIB;
    stages.run("guest", || {
        let outcome = vm::run(project, &kernel, &run)?;
        // Even of a guest that did not live to its end.
        figures.extend(figure::parse(&outcome.output)?);
        match outcome.exit_code()? {
            0 => Ok(()),
            code => bail!("measure ended with exit code {code}"),
        }
    });
    let cost = Cost {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel.release.clone(),
        emulated: vm::emulates(),
        emulator,
        processors: run.smp,
        memory_mib: run.memory,
        machine: native::machine(),
        peers: peers.packages,
        figures,
    };
    stages.run("document", || keep(project, &cost));
    Ok(stages.close())
}

/// Measures anew what needs no guest, and writes the document with what the guest said last.
///
/// # Errors
/// A build fails, or nothing was measured before.
pub(crate) fn natively(project: &Project) -> Result<ExitCode> {
    let mut cost = read(&project.docs())?;
    let toolchain = Toolchain::ensure(project)?;
    let snat_trace = dist::build(project, &toolchain, dist::SNAT_TRACE)?;
    let built = dist::object(project).map(Toolchain::prebuilt).unwrap_or(toolchain);
    let mut stages = Stages::default();
    let mut figures = measured_natively(project, &built, &snat_trace, &mut stages)?;
    figures.extend(cost.figures.into_iter().filter(|figure| !figure.is_native()));
    cost.figures = figures;
    cost.machine = native::machine();
    stages.run("document", || keep(project, &cost));
    Ok(stages.close())
}

/// One thing after the other: each has the machine to itself.
fn measured_natively(
    project: &Project,
    built: &Toolchain,
    snat_trace: &Path,
    stages: &mut Stages,
) -> Result<Vec<Figure>> {
    let mut figures = vec![Figure::Size { bytes: fs::metadata(snat_trace)?.len() }];
    let measured = [
        stages.run("benchmarks", || native::benchmarks(project, built)),
        stages.run("allocations and instructions", || native::counted(project, built)),
        stages.run("bodies of hooks", || native::bodies(project, built)),
        stages.run("floods", || native::flood(project, built)),
        stages.run("doctor", || native::start(snat_trace)),
    ];
    figures.extend(measured.into_iter().flatten().flatten());
    Ok(figures)
}

/// Writes what was measured, and the document.
fn keep(project: &Project, cost: &Cost) -> Result<()> {
    let data = project.docs().join(DATA);
    let text = serde_json::to_string_pretty(cost)? + "\n";
    fs::write(&data, text).with_context(|| format!("cannot write {}", data.display()))?;
    write(&project.docs(), cost)
}

/// Writes the document anew from what was measured last.
///
/// # Errors
/// Nothing was, or the folder cannot be written.
pub(crate) fn again(project: &Project) -> Result<()> {
    write(&project.docs(), &read(&project.docs())?)
}

fn read(docs: &Path) -> Result<Cost> {
    let data = docs.join(DATA);
    let text = fs::read_to_string(&data).with_context(|| format!("cannot read {}", data.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what this command writes", data.display()))
}

fn write(docs: &Path, cost: &Cost) -> Result<()> {
    for (name, text) in documents(cost) {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// The document and its pictures.
fn documents(cost: &Cost) -> Vec<(String, String)> {
    let mut documents = vec![(DOCUMENT.to_owned(), markdown::markdown(cost))];
    documents.extend(markdown::pictures(cost));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_figures_make_it() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        if !docs.join(DATA).exists() {
            println!("skipped: nothing was measured yet");
            return;
        }
        for (name, text) in documents(&read(&docs).unwrap()) {
            let there = fs::read_to_string(docs.join(&name)).unwrap_or_default();
            assert!(there == text, "docs/{name} is another than `cargo xtask bench --again` writes");
        }
    }
}
