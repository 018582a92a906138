//! The audit as text and JSON.

use std::fmt;
use std::io;

use serde::Serialize;

use super::findings::{Finding, judge};
use super::node::Look;
use super::shown::RuleShown;
use crate::output::escape;
use crate::output::json::to_line;
use crate::output::wrap::{WIDTH, wrapped};

/// Columns of a label.
const LABEL: usize = 9;

/// Everything an audit says. As text by [`fmt::Display`] in 80 columns, as JSON by [`Audit::write_json`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Audit {
    /// The most severe first.
    pub findings: Vec<Finding>,
    /// The rules that translate sources, in the order they were read.
    pub rules: Vec<RuleShown>,
    /// How many network namespaces were looked at.
    pub namespaces: usize,
    /// What could not be, and why: one sentence each.
    pub not_read: Vec<String>,
}

/// The last line of JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename = "audit")]
struct Closing<'a> {
    schema: u32,
    findings: usize,
    rules: usize,
    namespaces: usize,
    not_read: &'a [String],
}

impl Audit {
    /// Judges what was read.
    #[must_use]
    pub fn new(look: &Look) -> Self {
        let (findings, rules) = judge(&look.namespaces, look.own);
        Self { findings, rules, namespaces: look.namespaces.len(), not_read: look.not_read.clone() }
    }

    /// One object for each finding, and one at the end, a line each.
    ///
    /// # Errors
    /// `out` takes no more.
    pub fn write_json(&self, mut out: impl io::Write) -> io::Result<()> {
        for finding in &self.findings {
            to_line(&mut out, finding)?;
        }
        let Self { findings, rules, namespaces, not_read } = self;
        let (findings, rules, namespaces) = (findings.len(), rules.len(), *namespaces);
        to_line(&mut out, &Closing { schema: 1, findings, rules, namespaces, not_read })
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = None;
        for finding in &self.findings {
            field(f, &finding.severity.to_string(), &finding.what)?;
            if let Some(rule) = &finding.rule {
                field(f, "  rule", &place(rule, finding))?;
                field(f, "", &rule.text)?;
            } else {
                field(f, "  where", &format!("network namespace {}", finding.netns))?;
            }
            // Of many like it, the first one says why.
            if said.replace(&finding.why) != Some(&finding.why) {
                field(f, "  why", &finding.why)?;
            }
            field(f, "  fix", &finding.fix)?;
            if let Some(command) = &finding.command {
                continued(f, command)?;
            }
            writeln!(f)?;
        }
        let counted = |count: usize, one: &str, more: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {more}"),
        };
        let said = format!(
            "{}; {} in {}.",
            counted(self.findings.len(), "finding", "findings"),
            counted(self.rules.len(), "rule that translates sources", "rules that translate sources"),
            counted(self.namespaces, "network namespace", "network namespaces")
        );
        wrapped(f, &said, 0)?;
        self.not_read.iter().try_for_each(|what| wrapped(f, &format!("Not read: {what}"), 0))
    }
}

/// Where a rule is and whose.
fn place(rule: &RuleShown, finding: &Finding) -> String {
    let RuleShown { tool, family, table, chain, packets, .. } = rule;
    let mut place = format!("{}, table {} {table}, chain {chain}", tool.name(), family.name());
    if let Some(owner) = &finding.owner {
        place.push_str(&format!(", made by {owner}"));
    }
    if let Some(packets) = packets {
        place.push_str(&format!(", {packets} packets"));
    }
    place.push_str(&format!(", netns {}", finding.netns));
    place
}

/// A label and its text, which goes on below itself. All of it may be from outside.
fn field(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "{label:LABEL$}")?;
    wrapped(f, text, LABEL)
}

/// A command, in lines that a shell joins.
fn continued(f: &mut fmt::Formatter<'_>, words: &[String]) -> fmt::Result {
    const INDENT: usize = LABEL + 2;
    write!(f, "{:LABEL$}", "")?;
    let mut column = LABEL;
    for (index, word) in words.iter().enumerate() {
        let word = escape(word);
        let length = word.chars().count();
        if index > 0 && column + 1 + length + " \\".len() > WIDTH {
            write!(f, " \\\n{:INDENT$}", "")?;
            column = INDENT;
        } else if index > 0 {
            f.write_str(" ")?;
            column += 1;
        }
        f.write_str(&word)?;
        column += length;
    }
    writeln!(f)
}
