//! The scenarios on every kernel, and one table of what came of them.

mod rows;
mod table;

use std::fs::{self, File};
use std::io::Write as _;
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

/// Where it is kept what the guests said, below `target`: a file for each set on each kernel.
const SAID: &str = "matrix";

/// The kernels, oldest first, and what runs on each: the cheap scenarios everywhere, the whole set on the oldest and the
/// newest, and on that what no kernel changes.
const KERNELS: [(&str, &[Set]); 7] = [
    ("5.10", &[Set::Loaded, Set::Unloaded]),
    ("6.1", &[Set::Brief]),
    ("6.1-rt", &[Set::Brief]),
    ("6.12", &[Set::Brief]),
    ("6.12-full", &[Set::Brief]),
    ("6.18", &[Set::Brief]),
    ("7", &[Set::Loaded, Set::Once, Set::Unloaded]),
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
    /// Those of files and user space.
    Once,
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
            Self::Once => "once",
            Self::Unloaded => "unloaded",
            Self::Observation => "observation",
        }
    }
}

/// What of it is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent<'a> {
    /// Every kernel as it is here, and nothing is measured: a test.
    Tested,
    /// For the document, each kernel being the newest there is, and what is measured too.
    Told(Part<'a>),
}

/// Only some of it: what everything else said the last time stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Kernels; all where none are named.
    pub(crate) kernels: &'a [String],
    /// Scenarios, by parts of their names; all where none are named.
    pub(crate) scenarios: &'a [String],
}

impl Extent<'_> {
    fn observes(self) -> bool {
        matches!(self, Self::Told(_))
    }

    fn runs(self, series: &str) -> bool {
        match self {
            Self::Told(Part { kernels, .. }) => kernels.is_empty() || kernels.iter().any(|kernel| kernel == series),
            Self::Tested => true,
        }
    }

    /// Parts of the names of scenarios; none for all.
    fn scenarios(&self) -> &[String] {
        match self {
            Self::Told(part) => part.scenarios,
            Self::Tested => &[],
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
    /// Runs it, a stage for each set on each kernel. One failure does not hide the next.
    ///
    /// # Errors
    /// The binary of the scenarios does not run on this machine.
    pub(crate) fn run(
        project: &Project,
        stages: &mut Stages,
        binaries: [&Path; 2],
        extent: Extent<'_>,
    ) -> Result<Self> {
        let [_, scenarios] = binaries;
        let mut matrix = Self::default();
        for set in [Set::Loaded, Set::Once, Set::Unloaded] {
            matrix.scenarios.extend(names(scenarios, set)?);
        }
        for (series, sets) in KERNELS {
            let runs = extent.runs(series);
            let newest = extent.observes() && runs;
            let kernel = stages
                .run(&format!("kernel {series}"), || vm::ensure_kernel(project, &series.parse::<Series>()?, newest));
            let Some(kernel) = kernel else { continue };
            let mut column = Column { release: kernel.release.clone(), ..Column::default() };
            let observed = (extent.observes() && series == OBSERVED).then_some(Set::Observation);
            for set in sets.iter().copied().chain(observed) {
                let names = names(scenarios, set)?;
                column.wanted.extend_from_slice(&names);
                stages.run(&format!("scenarios on {series}, {}", set.word()), || {
                    let said = project.target().join(SAID).join(format!("{series}-{}.txt", set.word()));
                    let parts = extent.scenarios();
                    let among = |name: &String| parts.is_empty() || parts.iter().any(|part| name.contains(part));
                    let runs = runs && names.iter().any(among);
                    let ended = if runs { run_set(project, &kernel, set, parts, &binaries, &said) } else { Ok(()) };
                    let heard = column.hear(&said);
                    ended.and(heard)?;
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
    /// Takes in what a guest said.
    fn hear(&mut self, said: &Path) -> Result<()> {
        let said = fs::read(said).with_context(|| format!("no guest has said anything: no {}", said.display()))?;
        let report = Report::parse(&said)?;
        self.package = report.package.or(self.package.take());
        for effect in report.effects {
            self.effects.retain(|before| before.mode != effect.mode);
            self.effects.push(effect);
        }
        let mut rows: Vec<Row> = Vec::new();
        for row in report.rows {
            // What ran again has ended as it did then.
            rows.retain(|before| before.name != row.name);
            rows.push(row);
        }
        let failed = rows.iter().filter(|row| row.result == Ended::Failed).count();
        self.rows.extend(rows);
        ensure!(failed == 0, "{failed} failed");
        Ok(())
    }

    /// What came of a scenario here.
    fn row(&self, scenario: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == scenario)
    }
}

/// Builds what is needed, runs it, or a part, and writes the document into `docs`, whatever came of it: the exit code
/// says whether all is well.
///
/// # Errors
/// There is no such kernel, or the set-up or a build fails.
pub(crate) fn run(project: &Project, part: Part<'_>) -> Result<ExitCode> {
    for kernel in part.kernels {
        let known = KERNELS.map(|(series, _)| series);
        ensure!(known.contains(&kernel.as_str()), "{kernel} is none of {}", known.join(", "));
    }
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;
    let snat_trace = dist::build(project, &toolchain, dist::SNAT_TRACE)?;
    let scenarios = dist::build(project, &toolchain, dist::SCENARIOS)?;
    let mut stages = Stages::default();
    let matrix = Matrix::run(project, &mut stages, [&snat_trace, &scenarios], Extent::Told(part))?;
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

/// Runs a set in a guest; what it said is kept even when the guest did not live to its end.
fn run_set(
    project: &Project,
    kernel: &Kernel,
    set: Set,
    parts: &[String],
    binaries: &[&Path],
    said: &Path,
) -> Result<()> {
    let payload = binaries.iter().map(|binary| Payload::plain(PathBuf::from(binary))).collect::<Result<_>>()?;
    let words = ["scenarios", "--rows", set.word()].map(str::to_owned);
    let command = words.into_iter().chain(parts.iter().cloned()).collect();
    let mut run = VmRun::new(command, payload, TIMEOUT);
    run.load_modules = set != Set::Unloaded;
    if parts.is_empty() {
        // What an earlier one said is not of this one.
        let _absent = fs::remove_file(said);
    }
    let outcome = vm::run(project, kernel, &run)?;
    fs::create_dir_all(project.target().join(SAID))?;
    let keep = || File::options().create(true).append(true).open(said)?.write_all(&outcome.output);
    keep().with_context(|| format!("cannot write {}", said.display()))?;
    match outcome.exit_code()? {
        0 => Ok(()),
        code => bail!("the scenarios ended with exit code {code} on {}", kernel.release),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_again_stands_and_the_rest_as_it_was() {
        let said = std::env::temp_dir().join(format!("snat-trace-said-{}", std::process::id()));
        let row = |name, result| {
            format!("row {{\"name\":\"{name}\",\"result\":\"{result}\",\"seconds\":1.0,\"text\":\"\"}}\n")
        };
        let first = row("a", "ok") + &row("b", "failed");
        let mut column = Column::default();
        fs::write(&said, &first).unwrap();
        assert_eq!(column.hear(&said).unwrap_err().to_string(), "1 failed");
        let mut column = Column::default();
        fs::write(&said, first + &row("b", "ok")).unwrap();
        column.hear(&said).unwrap();
        fs::remove_file(&said).unwrap();
        let rows: Vec<_> = column.rows.iter().map(|row| (row.name.as_str(), row.result)).collect();
        assert_eq!(rows, [("a", Ended::Ok), ("b", Ended::Ok)]);
        assert!(column.hear(&said).is_err(), "no guest has said anything");
    }
}
