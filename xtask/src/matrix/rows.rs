//! What the scenarios say to us: lines among those for people.

use anyhow::{Context, Result};
use serde::Deserialize;

/// What came of one scenario on one kernel.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) result: Ended,
    /// Why it failed or was skipped; else what there is to say besides the numbers.
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) numbers: Numbers,
}

/// How a scenario ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ended {
    Ok,
    Skipped,
    Failed,
}

/// Cells; absent where a scenario has none.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) expected: Option<u64>,
    pub(crate) seen: Option<u64>,
    pub(crate) pids_right: Option<u64>,
    pub(crate) cgroups_right: Option<u64>,
    pub(crate) unexplained: Option<u64>,
    pub(crate) lost: Option<u64>,
}

/// How often two senders collide, with one way of watching or with none.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Effect {
    /// `nothing`, or the way of watching.
    pub(crate) mode: String,
    pub(crate) turns: u32,
    /// In each turn.
    pub(crate) rounds: u32,
    /// Mean share of rounds with a collision.
    pub(crate) share: f64,
    /// Standard deviation of the share of one turn.
    pub(crate) deviation: f64,
    /// Of the share to that with nothing attached, and the bounds of its 95 % interval.
    pub(crate) ratio: Option<[f64; 3]>,
}

/// Everything one guest said to us.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// Debian's version of the kernel's package.
    pub(crate) package: Option<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) effects: Vec<Effect>,
}

impl Report {
    /// Lines that begin with `kernel ` (then `/proc/version`), or `row ` or `observer ` (then JSON). A guest that dies may
    /// cut the last line.
    ///
    /// # Errors
    /// A whole line is not what it should be.
    pub(crate) fn parse(output: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(output);
        let mut report = Self::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if let Some(version) = line.strip_prefix("kernel ") {
                report.package = package(version);
            } else if let Some(row) = line.strip_prefix("row ") {
                report.rows.push(serde_json::from_str(row).with_context(|| format!("no row: {row}"))?);
            } else if let Some(effect) = line.strip_prefix("observer ") {
                report.effects.push(serde_json::from_str(effect).with_context(|| format!("no effect: {effect}"))?);
            }
        }
        Ok(report)
    }
}

/// The word after `Debian` in `/proc/version` that is a version: `… Debian 6.1.192-1 (2026-…)`. The compiler's, in
/// parentheses, comes before it.
fn package(version: &str) -> Option<String> {
    let (_, after) = version.rsplit_once(" Debian ")?;
    after.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0, \
                           GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-01)";

    #[test]
    fn rows_among_other_lines() {
        let output = format!(
            "kernel {VERSION}\nok      forced  1.0 s\nrow {{\"name\":\"forced\",\"result\":\"ok\",\"seconds\":1.0,\"text\":\"\",\
             \"expected\":5,\"seen\":5}}\nrow {{\"name\":\"x\",\"result\":\"skipped\",\"seconds\":0.0,\"text\":\"no sctp\"}}\n\
             observer {{\"mode\":\"full\",\"turns\":20,\"rounds\":400,\"share\":0.4,\"deviation\":0.1,\"ratio\":[1.0,0.9,1.1]}}\n\
             row {{\"name\":\"cut"
        );
        let report = Report::parse(output.as_bytes()).unwrap();
        assert_eq!(report.package.as_deref(), Some("6.1.192-2"));
        let numbers = Numbers { expected: Some(5), seen: Some(5), ..Numbers::default() };
        let row = |name: &str, result, text: &str, numbers| Row {
            name: name.to_owned(),
            result,
            text: text.to_owned(),
            numbers,
        };
        assert_eq!(
            report.rows,
            [row("forced", Ended::Ok, "", numbers), row("x", Ended::Skipped, "no sctp", Numbers::default())]
        );
        assert_eq!(report.effects.iter().map(|effect| effect.ratio).collect::<Vec<_>>(), [Some([1.0, 0.9, 1.1])]);
        assert!(Report::parse(b"row {}\n").is_err());
    }
}
