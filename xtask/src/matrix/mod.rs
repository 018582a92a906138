//! The scenarios on every kernel, and one table of what came of them.

mod rows;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::dist;
use crate::progress::capture;
use crate::project::Project;
use crate::stages::Stages;
use crate::toolchain::Toolchain;
use crate::vm::{self, Kernel, Payload, Series, VmRun};
pub(crate) use rows::{Ended, Report, Row};

/// Where the table goes: below `docs` when it is asked for, below `target` in every test.
pub(crate) const FILE: &str = "MATRIX.md";

/// The kernels, oldest first, and what runs on each: the cheap scenarios everywhere, the whole set on the oldest and the
/// newest.
const KERNELS: [(&str, &[Set]); 7] = [
    ("5.10", &[Set::Loaded, Set::Unloaded]),
    ("6.1", &[Set::Brief]),
    ("6.1-rt", &[Set::Brief]),
    ("6.12", &[Set::Brief]),
    ("6.12-full", &[Set::Brief]),
    ("6.18", &[Set::Brief]),
    ("7", &[Set::Loaded, Set::Unloaded]),
];

/// Where the observer's effect is measured: a quarter of an hour, and a question of time, which is none for a test.
const OBSERVED: &str = "6.12";

/// For one set on one kernel.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// A set of scenarios, by the word their binary knows it by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Set {
    /// All of a node that tracks connections.
    Loaded,
    /// The cheapest of them.
    Brief,
    /// Those of a node that does not track connections yet.
    Unloaded,
    /// What is measured on an idle machine.
    Observation,
}

impl Set {
    fn word(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Brief => "brief",
            Self::Unloaded => "unloaded",
            Self::Observation => "observation",
        }
    }
}

/// What came of every scenario on every kernel.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    /// Every scenario, in the order of their binary's lists.
    scenarios: Vec<String>,
    columns: Vec<Column>,
}

/// One kernel's.
#[derive(Debug, Default)]
struct Column {
    /// As `uname -r` says it.
    release: String,
    /// Debian's version of its package, from `/proc/version`; absent when no guest of it has said.
    package: Option<String>,
    /// Scenarios that were to run here.
    wanted: Vec<String>,
    rows: Vec<Row>,
    effects: Vec<rows::Effect>,
}

impl Matrix {
    /// Runs everything, a stage for each set on each kernel; with `observe` what is measured too, and
    /// the kernels are the newest there are, not those of the last time. One failure does not
    /// hide the next.
    ///
    /// # Errors
    /// The binary of the scenarios does not run on this machine.
    pub(crate) fn run(project: &Project, stages: &mut Stages, binaries: [&Path; 2], observe: bool) -> Result<Self> {
        let [_, scenarios] = binaries;
        let mut matrix = Self::default();
        for set in [Set::Loaded, Set::Unloaded] {
            matrix.scenarios.extend(names(scenarios, set)?);
        }
        for (series, sets) in KERNELS {
            let kernel = stages
                .run(&format!("kernel {series}"), || vm::ensure_kernel(project, &series.parse::<Series>()?, observe));
            let Some(kernel) = kernel else { continue };
            let mut column = Column { release: kernel.release.clone(), ..Column::default() };
            let observed = (observe && series == OBSERVED).then_some(Set::Observation);
            for set in sets.iter().copied().chain(observed) {
                let names = names(scenarios, set)?;
                column.wanted.extend_from_slice(&names);
                stages.run(&format!("scenarios on {series}, {}", set.word()), || {
                    run_set(project, &kernel, set, &binaries, &mut column)?;
                    let missing: Vec<&str> =
                        names.iter().map(String::as_str).filter(|name| column.row(name).is_none()).collect();
                    ensure!(missing.is_empty(), "not heard of: {}", missing.join(", "));
                    Ok(())
                });
            }
            matrix.columns.push(column);
        }
        Ok(matrix)
    }

    /// The document.
    ///
    /// # Errors
    /// The emulator does not say its version.
    pub(crate) fn to_markdown(&self) -> Result<String> {
        Ok(table::markdown(self, &vm::emulator()?))
    }
}

impl Column {
    /// What came of a scenario here.
    fn row(&self, scenario: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == scenario)
    }
}

/// Builds what is needed, runs everything and writes the document into `docs`, whatever came of it: the exit code says
/// whether all is well.
///
/// # Errors
/// The set-up or a build fails.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;
    let snat_trace = dist::build(project, &toolchain, dist::SNAT_TRACE)?;
    let scenarios = dist::build(project, &toolchain, dist::SCENARIOS)?;
    let mut stages = Stages::default();
    let matrix = Matrix::run(project, &mut stages, [&snat_trace, &scenarios], true)?;
    let path = project.docs().join(FILE);
    fs::create_dir_all(project.docs())?;
    fs::write(&path, matrix.to_markdown()?).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(stages.close())
}

/// The scenarios of a set, as their binary lists them. It is static, so it runs here too.
fn names(scenarios: &Path, set: Set) -> Result<Vec<String>> {
    let listed = capture(Command::new(scenarios).args(["--list", set.word()]))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Runs a set in a guest; what was heard of it goes into the column even when the guest did not live to its end.
fn run_set(project: &Project, kernel: &Kernel, set: Set, binaries: &[&Path], column: &mut Column) -> Result<()> {
    let payload = binaries.iter().map(|binary| Payload::plain(PathBuf::from(binary))).collect::<Result<_>>()?;
    let command = ["scenarios", "--rows", set.word()].map(str::to_owned).to_vec();
    let mut run = VmRun::new(command, payload, TIMEOUT);
    run.load_modules = set != Set::Unloaded;
    let outcome = vm::run(project, kernel, &run)?;
    let report = Report::parse(&outcome.output)?;
    column.package = report.package.or(column.package.take());
    column.rows.extend(report.rows);
    column.effects.extend(report.effects);
    match outcome.exit_code()? {
        0 => Ok(()),
        code => bail!("the scenarios ended with exit code {code} on {}", kernel.release),
    }
}
