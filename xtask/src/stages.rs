//! What was run and what came of it, as a table and an exit code.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Stages in the order they ran.
#[derive(Debug, Default)]
pub(crate) struct Stages(Vec<Stage>);

#[derive(Debug)]
struct Stage {
    name: String,
    duration: Duration,
    error: Option<String>,
}

impl Stages {
    /// Runs one stage; what it made, if it did not fail.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
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
    pub(crate) fn close(&self) -> ExitCode {
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
    use anyhow::bail;

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
