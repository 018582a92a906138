//! Every test, in the order in which a mistake is cheapest to find.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::debian::install;
use crate::dist;
use crate::matrix::{self, Extent, Matrix};
use crate::progress::passthrough;
use crate::project::Project;
use crate::selftest;
use crate::stages::Stages;
use crate::toolchain::Toolchain;
use crate::vm::{self, Series};

/// The kernel to test virtual machines with.
const SELFTEST_KERNEL: &str = "6.1";

/// What tests need beyond the compiler: without them they say that they are skipped.
const NEEDED: [(&str, &str); 6] = [
    ("tshark", "reading what export writes"),
    ("tmux", "driving the live view"),
    ("man-db", "reading the man pages"),
    ("podman", "containers of a real runtime"),
    ("runc", "containers of a real runtime"),
    ("chromium", "looking at reports in html"),
];

/// The workspace without what cannot be built for this machine: the BPF programs have no standard library.
const WORKSPACE: [&str; 4] = ["--workspace", "--exclude", "snat-trace-ebpf", "--locked"];

/// Sets up and runs everything. One failure does not hide the next.
///
/// # Errors
/// The set-up fails; what else fails is in the table and the exit code.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;
    for (package, what_for) in NEEDED {
        install::ensure(&[package], what_for)?;
    }

    let mut stages = Stages::default();
    stages.run("format", || passthrough(project.cargo().args(["fmt", "--all", "--check"])));
    let snat_trace = stages.run("build", || dist::build(project, &toolchain, dist::SNAT_TRACE));

    // What was just built need not be built again for each of the profiles below.
    let built = snat_trace.as_ref().and_then(|_| dist::object(project)).map(Toolchain::prebuilt);
    let toolchain_here = built.as_ref().unwrap_or(&toolchain);
    let cargo = |arguments: &[&[&str]]| {
        let mut cargo = project.cargo();
        toolchain_here.apply(cargo.args(arguments.concat()));
        passthrough(&mut cargo)
    };
    stages.run("clippy", || cargo(&[&["clippy"], &WORKSPACE, &["--all-targets", "--", "-D", "warnings"]]));
    stages.run("clippy of the BPF programs", || {
        // For this machine's target, where a panic would unwind, which without the standard library it cannot.
        let arguments =
            ["--package", "snat-trace-ebpf", "--bins", "--locked", "--", "-D", "warnings", "-C", "panic=abort"];
        cargo(&[&["clippy"], &arguments])
    });
    stages.run("tests", || cargo(&[&["test"], &WORKSPACE]));

    let scenarios = stages.run("build of the scenarios", || dist::build(project, &toolchain, dist::SCENARIOS));
    stages.run(&format!("virtual machines ({SELFTEST_KERNEL})"), || {
        let series = SELFTEST_KERNEL.parse::<Series>()?;
        selftest::run(project, &vm::ensure_kernel(project, &series, false)?)
    });
    if let (Some(snat_trace), Some(scenarios)) = (&snat_trace, &scenarios) {
        let matrix = Matrix::run(project, &mut stages, [snat_trace, scenarios], Extent::Tested);
        stages.run("table of the matrix", || {
            let path = project.target().join(matrix::FILE);
            fs::write(&path, matrix?.to_markdown()?).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("  {}", path.display());
            Ok(())
        });
    }
    Ok(stages.close())
}
