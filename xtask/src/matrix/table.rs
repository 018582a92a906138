//! The matrix as a document. Nothing in it depends on the day it is written.

use std::fmt::Write as _;

use super::rows::{Effect, Ended, Numbers, Row};
use super::{Column, Matrix};

const HEAD: &str = "\
# Scenarios on kernels

Written by `cargo xtask matrix`, which runs what it says. `cargo xtask test` runs the same scenarios, all but the measurement of
the observer's effect, and fails if anything here would.
";

const LEGEND: &str = "\
A cell is *expected / seen / pids right / cgroups right / unexplained / lost*, `-` where a scenario has no such number:

* **expected**: races there were, by the word of senders, receiver and kernel counters,
* **seen**: those of them that were told, with both flows right,
* **pids right**, **cgroups right**: those with both senders' processes and cgroups right; of the others a sender was told to be
  unknown, as a wrong one fails the scenario,
* **unexplained**: failed inserts the summary had no explanation for,
* **lost**: records the summary says were lost on the way.

`ok` is a scenario that has no such numbers; an empty cell one that does not run on that kernel. *full* and *minimal* are the
levels of detail; where none is named it is full.
";

const OBSERVER: &str = "## The observer's effect

Two senders, each on a CPU of its own, send a datagram from one source port at one instant: the share of rounds in which the
kernel counts a failed insert, with nothing attached and with `snat-trace watch` beside it, in turns within one guest. The ratio
is to nothing attached, with its 95 % interval from the paired differences. At either level of detail a mean share that differs
from nothing attached by more than one turn's standard deviation is a failure.
";

/// The document.
pub(super) fn markdown(matrix: &Matrix, emulator: &str) -> String {
    let mut text = String::from(HEAD);
    let version = env!("CARGO_PKG_VERSION");
    _ = write!(text, "\nsnat-trace {version}; {emulator}; guests of 2 processors and 1 GiB; Debian kernels:\n\n");
    for Column { release, package, .. } in &matrix.columns {
        _ = writeln!(text, "* {release} ({})", package.as_deref().unwrap_or("package not known"));
    }
    _ = write!(text, "\n{LEGEND}\n| scenario |");
    for column in &matrix.columns {
        _ = write!(text, " {} |", column.release);
    }
    text.push_str("\n| --- |");
    text.push_str(&" --- |".repeat(matrix.columns.len()));
    for scenario in &matrix.scenarios {
        _ = write!(text, "\n| {} |", escaped(scenario));
        for column in &matrix.columns {
            _ = write!(text, " {} |", cell(column, scenario));
        }
    }
    text.push('\n');
    for (title, ended) in [("Failed", Ended::Failed), ("Skipped", Ended::Skipped)] {
        notes(&mut text, title, ended, matrix);
    }
    if matrix.columns.iter().any(|column| !column.effects.is_empty()) {
        _ = write!(
            text,
            "\n{OBSERVER}\n| kernel | attached | share | one turn's deviation | ratio | turns | rounds each |"
        );
        text.push_str("\n| --- | --- | --- | --- | --- | --- | --- |\n");
        for column in &matrix.columns {
            column.effects.iter().for_each(|effect| text.push_str(&effect_line(&column.release, effect)));
        }
    }
    text
}

fn cell(column: &Column, scenario: &str) -> String {
    match column.row(scenario) {
        Some(Row { result: Ended::Failed, .. }) => "**FAILED**".to_owned(),
        Some(Row { result: Ended::Skipped, .. }) => "skipped".to_owned(),
        Some(Row { numbers, .. }) => numbers_cell(*numbers),
        None if column.wanted.iter().any(|wanted| wanted == scenario) => "**not run**".to_owned(),
        None => String::new(),
    }
}

fn numbers_cell(numbers: Numbers) -> String {
    let Numbers { expected, seen, pids_right, cgroups_right, unexplained, lost } = numbers;
    let cells = [expected, seen, pids_right, cgroups_right, unexplained, lost];
    if cells.iter().all(Option::is_none) {
        return "ok".to_owned();
    }
    cells.map(|cell| cell.map_or_else(|| "-".to_owned(), |cell| cell.to_string())).join(" / ")
}

fn effect_line(release: &str, effect: &Effect) -> String {
    let Effect { mode, turns, rounds, share, deviation, ratio } = effect;
    let ratio = ratio.map_or_else(String::new, |[ratio, low, high]| format!("{ratio:.3} ({low:.3} to {high:.3})"));
    let (share, deviation) = (share * 100.0, deviation * 100.0);
    format!("| {release} | {} | {share:.1} % | {deviation:.1} % | {ratio} | {turns} | {rounds} |\n", escaped(mode))
}

/// Why scenarios ended that way, one line for each scenario and reason.
fn notes(text: &mut String, title: &str, ended: Ended, matrix: &Matrix) {
    let mut notes: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for column in &matrix.columns {
        for row in column.rows.iter().filter(|row| row.result == ended) {
            let reason = row.text.lines().next().unwrap_or_default();
            match notes.iter_mut().find(|(name, known, _)| *name == row.name && *known == reason) {
                Some((_, _, releases)) => releases.push(&column.release),
                None => notes.push((&row.name, reason, vec![&column.release])),
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    _ = write!(text, "\n{title}:\n\n");
    for (name, reason, releases) in notes {
        _ = writeln!(text, "* {} on {}: {}", escaped(name), releases.join(", "), escaped(reason));
    }
}

/// Text in which nothing is markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '\\' | '|' | '*' | '_' | '`' | '<' | '[') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, result: Ended, text: &str, numbers: Numbers) -> Row {
        Row { name: name.to_owned(), result, text: text.to_owned(), numbers }
    }

    fn column(release: &str, wanted: &[&str], rows: Vec<Row>) -> Column {
        let wanted = wanted.iter().map(|&name| name.to_owned()).collect();
        Column { release: release.to_owned(), package: Some("1.2-3".to_owned()), wanted, rows, effects: Vec::new() }
    }

    #[test]
    fn every_end_of_a_scenario_has_a_cell_of_its_own() {
        let right = Numbers { expected: Some(5), seen: Some(5), unexplained: Some(0), ..Numbers::default() };
        let none = Numbers::default();
        let whole = ["race", "idle", "sctp", "a|b", "gone"];
        let mut matrix = Matrix {
            scenarios: whole.map(str::to_owned).to_vec(),
            columns: vec![
                column(
                    "5.10.0-46",
                    &whole,
                    vec![
                        row("race", Ended::Ok, "", right),
                        row("idle", Ended::Ok, "6 hooks", none),
                        row("sctp", Ended::Skipped, "no module", none),
                        row("a|b", Ended::Failed, "4 races\nexpected 5", none),
                    ],
                ),
                column(
                    "7.3",
                    &["race", "sctp"],
                    vec![row("race", Ended::Ok, "", right), row("sctp", Ended::Skipped, "no module", none)],
                ),
            ],
        };
        matrix.columns[1].effects = [None, Some([0.99, 0.941_4, 1.05])]
            .map(|ratio| Effect {
                mode: ratio.map_or("nothing", |_| "full").to_owned(),
                turns: 20,
                rounds: 400,
                share: 0.42,
                deviation: 0.031,
                ratio,
            })
            .to_vec();
        let text = markdown(&matrix, "QEMU 7.2 (TCG)");
        for line in [
            "* 5.10.0-46 (1.2-3)",
            "| scenario | 5.10.0-46 | 7.3 |",
            "| --- | --- | --- |",
            "| race | 5 / 5 / - / - / 0 / - | 5 / 5 / - / - / 0 / - |",
            "| idle | ok |  |",
            "| sctp | skipped | skipped |",
            "| a\\|b | **FAILED** |  |",
            "| gone | **not run** |  |",
            "* a\\|b on 5.10.0-46: 4 races",
            "* sctp on 5.10.0-46, 7.3: no module",
            "| 7.3 | nothing | 42.0 % | 3.1 % |  | 20 | 400 |",
            "| 7.3 | full | 42.0 % | 3.1 % | 0.990 (0.941 to 1.050) | 20 | 400 |",
        ] {
            assert!(text.lines().any(|there| there == line), "no {line:?} in\n{text}");
        }
    }
}
