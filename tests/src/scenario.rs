//! What a scenario is, and the row of the matrix it comes to.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// One scenario. Each module lists its own in a constant `SCENARIOS`, made with [`brief`], [`whole`], [`once`],
/// [`unloaded`] and [`observation`].
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its row in the matrix: unique, short, and the same on every kernel.
    pub name: &'static str,
    /// Where it runs.
    pub set: Set,
    /// Runs it. An error is a failure, but for [`Skip`].
    pub run: fn() -> Result<Row>,
}

/// Where a scenario runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Set {
    /// On every kernel: seconds, and sure to tell.
    Brief,
    /// Only where the whole set runs.
    Whole,
    /// On the newest kernel only: it takes long, and is of files and user space, which no kernel changes.
    Once,
    /// In a guest that does not track connections yet, in the order of the list.
    Unloaded,
    /// In a guest of its own, on an idle machine: what is measured there is time.
    Observation,
}

/// A scenario for every kernel.
#[must_use]
pub const fn brief(name: &'static str, run: fn() -> Result<Row>) -> Scenario {
    Scenario { name, set: Set::Brief, run }
}

/// A scenario for kernels with the whole set.
#[must_use]
pub const fn whole(name: &'static str, run: fn() -> Result<Row>) -> Scenario {
    Scenario { name, set: Set::Whole, run }
}

/// A scenario for one kernel, whichever.
#[must_use]
pub const fn once(name: &'static str, run: fn() -> Result<Row>) -> Scenario {
    Scenario { name, set: Set::Once, run }
}

/// A scenario of a node that does not track connections yet.
#[must_use]
pub const fn unloaded(name: &'static str, run: fn() -> Result<Row>) -> Scenario {
    Scenario { name, set: Set::Unloaded, run }
}

/// A measurement that wants a guest to itself.
#[must_use]
pub const fn observation(name: &'static str, run: fn() -> Result<Row>) -> Scenario {
    Scenario { name, set: Set::Observation, run }
}

/// What came of a scenario that passed. The scenario has judged it: a row whose numbers are wrong is never returned.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Row {
    /// What a person wants to know besides the numbers; may be empty.
    pub text: String,
    /// The cells.
    pub numbers: Numbers,
}

/// The cells of the matrix; absent where a scenario has none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Numbers {
    /// Races (or failures) there were, by another's word than snat-trace's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Those of them that snat-trace told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
    /// Those with both processes right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_right: Option<u64>,
    /// Those with both cgroups right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_right: Option<u64>,
    /// Failed inserts the summary has no explanation for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<u64>,
    /// What the summary says was lost on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

impl Row {
    /// A row with words only.
    pub fn said(text: impl Into<String>) -> Self {
        Self { text: text.into(), numbers: Numbers::default() }
    }
}

impl Numbers {
    /// The sum of two runs. A cell absent in one is absent in the sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let add = |left: Option<u64>, right: Option<u64>| left.zip(right).map(|(left, right)| left + right);
        Self {
            expected: add(self.expected, other.expected),
            seen: add(self.seen, other.seen),
            pids_right: add(self.pids_right, other.pids_right),
            cgroups_right: add(self.cgroups_right, other.cgroups_right),
            unexplained: add(self.unexplained, other.unexplained),
            lost: add(self.lost, other.lost),
        }
    }

    fn cells(self) -> [(&'static str, Option<u64>); 6] {
        [
            ("expected", self.expected),
            ("seen", self.seen),
            ("pids right", self.pids_right),
            ("cgroups right", self.cgroups_right),
            ("unexplained", self.unexplained),
            ("lost", self.lost),
        ]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = self.numbers.cells().into_iter().filter_map(|(name, number)| Some(format!("{} {name}", number?)));
        let text = Some(self.text.clone()).filter(|text| !text.is_empty());
        f.write_str(&cells.chain(text).collect::<Vec<_>>().join(", "))
    }
}

/// Why a scenario cannot run on this kernel: neither passed nor failed. `return Err(Skip::because("..."))`, from any depth.
#[derive(Debug)]
pub struct Skip(String);

impl Skip {
    /// With the reason, a clause: `this kernel has no module sctp`.
    pub fn because(reason: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(reason.into()))
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Skip {}

/// What begins a line that is for xtask.
const ROW: &str = "row ";

/// The line for xtask, JSON behind [`ROW`].
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    result: &'a str,
    seconds: f64,
    /// What the row says, why it failed, or why it was skipped.
    text: &'a str,
    #[serde(flatten)]
    numbers: Numbers,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    passed: u32,
    skipped: u32,
    failed: u32,
}

impl Tally {
    /// Runs a scenario and says what came of it: a line for people, and with `rows` one for xtask.
    pub fn run(&mut self, scenario: &Scenario, rows: bool) {
        let start = Instant::now();
        let result = (scenario.run)();
        let seconds = start.elapsed().as_secs_f64();
        let (counted, mark, word, numbers, text, full) = match &result {
            Ok(row) => (&mut self.passed, "ok", "ok", row.numbers, row.text.clone(), row.to_string()),
            Err(error) if error.downcast_ref::<Skip>().is_some() => {
                let reason = format!("{error:#}");
                (&mut self.skipped, "skipped", "skipped", Numbers::default(), reason.clone(), reason)
            }
            Err(error) => {
                let reason = format!("{error:#}");
                (&mut self.failed, "FAILED", "failed", Numbers::default(), reason.clone(), reason)
            }
        };
        *counted += 1;
        println!("{mark:<7} {:<40} {seconds:5.1} s  {full}", scenario.name);
        if rows {
            let line = Line { name: scenario.name, result: word, seconds, text: &text, numbers };
            match serde_json::to_string(&line) {
                Ok(line) => println!("{ROW}{line}"),
                Err(error) => println!("cannot write a row: {error}"),
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} skipped, {} failed", self.passed, self.skipped, self.failed)
    }
}

impl Termination for Tally {
    /// A run of nothing is no success.
    fn report(self) -> ExitCode {
        if self.failed == 0 && self.passed + self.skipped > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, bail};

    use super::*;

    fn tally(scenarios: &[Scenario]) -> Tally {
        let mut tally = Tally::default();
        scenarios.iter().for_each(|scenario| tally.run(scenario, false));
        tally
    }

    #[test]
    fn a_skip_is_neither_passed_nor_failed_from_any_depth() {
        let scenarios = [
            brief("passes", || Ok(Row::said("well"))),
            whole("skips", || Err(Skip::because("no module sctp")).context("while it began")),
            whole("fails", || bail!("broken")),
        ];
        assert_eq!(tally(&scenarios), Tally { passed: 1, skipped: 1, failed: 1 });
        assert_eq!(tally(&scenarios).report(), ExitCode::FAILURE);
        assert_eq!(tally(&scenarios[..2]).report(), ExitCode::SUCCESS);
        assert_eq!(tally(&[]).report(), ExitCode::FAILURE);
    }

    #[test]
    fn a_row_says_its_numbers_and_its_words() {
        let numbers = Numbers { expected: Some(5), lost: Some(0), ..Numbers::default() };
        assert_eq!(Row { text: "as told".to_owned(), numbers }.to_string(), "5 expected, 0 lost, as told");
        assert_eq!(Row::said("exit 3").to_string(), "exit 3");
        assert_eq!(numbers.plus(numbers).expected, Some(10));
        assert_eq!(numbers.plus(numbers).seen, None);
    }
}
