//! Every test, in the order in which a mistake is cheapest to find.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dist;
use crate::progress::passthrough;
use crate::project::Project;
use crate::selftest;
use crate::toolchain::Toolchain;
use crate::vm::{self, Kernel, Payload, Series, VmRun};

/// The kernels scenarios run on, and how much of them: the whole set on two stable ones, the heart of it on the oldest
/// and the newest.
const KERNELS: [(&str, &[Scenarios]); 4] = [
    ("6.1", &[Scenarios::Loaded, Scenarios::Unloaded]),
    ("6.12", &[Scenarios::Loaded, Scenarios::Unloaded]),
    ("5.10", &[Scenarios::Brief]),
    ("7", &[Scenarios::Brief]),
];

/// For all scenarios on one kernel.
const TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The workspace without what cannot be built for this machine: the BPF programs have no standard library.
const WORKSPACE: [&str; 4] = ["--workspace", "--exclude", "snat-trace-ebpf", "--locked"];

/// Sets up and runs everything. One failure does not hide the next.
///
/// # Errors
/// The set-up fails; what else fails is in the table and the exit code.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;

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
    for (index, (series, sets)) in KERNELS.into_iter().enumerate() {
        let kernel =
            stages.run(&format!("kernel {series}"), || vm::ensure_kernel(project, &series.parse::<Series>()?, false));
        if index == 0 {
            stages.run(&format!("virtual machines ({series})"), || {
                selftest::run(project, kernel.as_ref().context("no kernel")?)
            });
        }
        for &set in sets {
            stages.run(&format!("scenarios on {series}, {}", set.word()), || {
                let (Some(kernel), Some(snat_trace), Some(scenarios)) = (&kernel, &snat_trace, &scenarios) else {
                    bail!("not run: an earlier stage failed");
                };
                run_scenarios(project, kernel, set, &[snat_trace, scenarios])
            });
        }
    }
    Ok(stages.close())
}

/// A set of scenarios, by the word its binary knows it by.
#[derive(Clone, Copy, Debug)]
enum Scenarios {
    /// All of a node that tracks connections.
    Loaded,
    /// The races that are forced.
    Brief,
    /// Those of a node that does not track connections yet.
    Unloaded,
}

impl Scenarios {
    fn word(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Brief => "brief",
            Self::Unloaded => "unloaded",
        }
    }
}

fn run_scenarios(project: &Project, kernel: &Kernel, set: Scenarios, binaries: &[&PathBuf]) -> Result<()> {
    let payload = binaries.iter().map(|binary| Payload::plain((*binary).clone())).collect::<Result<_>>()?;
    let command = ["scenarios", set.word()].map(str::to_owned).to_vec();
    let mut run = VmRun::new(command, payload, TIMEOUT);
    run.load_modules = !matches!(set, Scenarios::Unloaded);
    let outcome = vm::run(project, kernel, &run)?;
    match outcome.exit_code()? {
        0 => Ok(()),
        code => bail!("the scenarios ended with exit code {code} on {}", kernel.release),
    }
}

/// What was run and what came of it.
#[derive(Debug, Default)]
struct Stages(Vec<Stage>);

#[derive(Debug)]
struct Stage {
    name: String,
    duration: Duration,
    error: Option<String>,
}

impl Stages {
    /// Runs one stage; what it made, if it did not fail.
    fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            eprintln!("error: {error}");
        }
        self.0.push(Stage { name: name.to_owned(), duration: start.elapsed(), error });
        result.ok()
    }

    /// Prints the table.
    fn close(&self) -> ExitCode {
        eprint!("\n{}", self.table());
        if self.0.iter().any(|stage| stage.error.is_some()) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn table(&self) -> String {
        let width = self.0.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max("STAGE".len());
        let mut table = format!("{:width$}  RESULT  SECONDS\n", "STAGE");
        for stage in &self.0 {
            let result = if stage.error.is_some() { "FAILED" } else { "ok" };
            table.push_str(&format!("{:width$}  {result:6}  {:7.1}", stage.name, stage.duration.as_secs_f64()));
            if let Some(error) = &stage.error {
                table.push_str(&format!("  {}", error.lines().next().unwrap_or_default()));
            }
            table.push('\n');
        }
        let total: Duration = self.0.iter().map(|stage| stage.duration).sum();
        let failed = self.0.iter().filter(|stage| stage.error.is_some()).count();
        let verdict = if failed == 0 { "ok".to_owned() } else { format!("{failed} failed") };
        table.push_str(&format!("{} stages, {verdict}, {:.0} s\n", self.0.len(), total.as_secs_f64()));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_in_the_table_and_the_code_and_does_not_hide_the_next() {
        let mut stages = Stages::default();
        assert_eq!(stages.run("first", || Ok(5)), Some(5));
        assert_eq!(stages.close(), ExitCode::SUCCESS);
        assert_eq!(stages.run("the second", || -> Result<()> { bail!("broken\nin two lines") }), None);
        assert_eq!(stages.run("third", || Ok(7)), Some(7));
        assert_eq!(stages.close(), ExitCode::FAILURE);
        let table = stages.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "STAGE       RESULT  SECONDS");
        assert_eq!(lines[2], "the second  FAILED      0.0  broken");
        assert_eq!(lines[3], "third       ok          0.0");
        assert!(lines[4].starts_with("3 stages, 1 failed, "), "{table}");
    }
}
