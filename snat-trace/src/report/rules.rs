//! The sections about rules: which there are, what came by them, and what the audit says of them.

use std::collections::BTreeSet;

use super::attribution::Cause;
use super::case::Case;
use super::changes::whereabouts;
use super::document::Block::{self, Heading, Paragraph, Table};
use super::document::ROWS;
use super::verdict::{counted, name, place};
use crate::audit::Choice;
use crate::evidence::{Rules, clock};
use crate::race::event::NetnsInum;

/// The rules that were read, and the collisions that came by each.
pub(super) fn rules(case: &Case, blocks: &mut Vec<Block>) {
    let Some(first) = case.rules.first() else {
        let mut why = not_attributed(case).peekable();
        if why.peek().is_some() {
            blocks.push(Heading("Rules"));
        }
        blocks.extend(why);
        return;
    };
    blocks.push(Heading("Rules"));
    blocks.push(Paragraph(format!(
        "Those that translate sources where races were seen, as read from {} on, and the port collisions known to have come by each.",
        clock().wall(first.time).strftime("%Y-%m-%d %H:%M:%S")
    )));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (netns, rule) in case.rules.iter().flat_map(|rules| rules.audit.rules.iter().map(|rule| (rules.netns, rule))) {
        let known = case.by_rule.iter().find(|(cause, _)| cause.rule() == Some((netns, rule)));
        let choice = match rule.choice {
            Choice::Kept => "none",
            Choice::Random => "random",
            Choice::FullyRandom => "fully",
            Choice::Unknown => "?",
        };
        let row = vec![
            known.map_or_else(String::new, |(_, count)| count.to_string()),
            format!("{}; netns {}", place(rule), netns.0),
            name(rule),
            choice.to_owned(),
            rule.packets.map(|packets| packets.to_string()).unwrap_or_default(),
            rule.text.clone(),
        ];
        // Read again for the next file of a rotation.
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.truncate(ROWS * 5);
    let full = |rules: &Rules| {
        let (entries, most) = rules.entries?;
        Some(format!("The table of netns {} had {entries} of at most {most} entries then.", rules.netns.0))
    };
    let full: BTreeSet<_> = case.rules.iter().filter_map(full).collect();
    blocks.extend(full.into_iter().map(Paragraph));
    blocks.push(Table { head: vec!["races", "place", "target", "random", "packets", "rule"], rows });
    blocks.extend(not_attributed(case));
    let not_read: BTreeSet<_> = case.rules.iter().flat_map(|rules| &rules.audit.not_read).collect();
    blocks.extend(not_read.into_iter().map(|what| Paragraph(format!("Not read: {what}."))));
}

/// What the rules and settings where races were make likely.
pub(super) fn audit(case: &Case, blocks: &mut Vec<Block>) {
    let findings = case.findings();
    if findings.is_empty() {
        return;
    }
    blocks.push(Heading("Audit"));
    blocks.push(Paragraph("What in the rules and settings where races were seen makes races likely.".to_owned()));
    let (mut said, mut rows) = (None, Vec::new());
    for finding in findings.iter().take(ROWS * 5) {
        // Of many like it, the first one says why.
        let why = if said.replace(&finding.why) == Some(&finding.why) { "as above" } else { &finding.why };
        rows.push(vec![
            finding.severity.to_string(),
            finding.what.clone(),
            whereabouts(case, NetnsInum(finding.netns), finding.rule.as_ref()),
            why.to_owned(),
            finding.fix.clone(),
            finding.command.as_ref().map(|words| words.join(" ")).unwrap_or_default(),
        ]);
    }
    blocks.push(Table { head: vec!["severity", "finding", "where", "why", "fix", "command"], rows });
    let more = findings.len().saturating_sub(ROWS * 5);
    if more > 0 {
        blocks.push(Paragraph(format!("And {more} more.")));
    }
}

/// Why it is not known of collisions which rule they came by.
fn not_attributed(case: &Case) -> impl Iterator<Item = Block> {
    let why = |(cause, count): &(Cause, u64)| {
        let why = match cause {
            Cause::Rule(..) => return None,
            Cause::Several => "may have come by more than one rule",
            Cause::Other => "can have come by no rule that was read",
            Cause::NotRead => "came where no rules could be read",
            Cause::Reused => {
                "came where it is not known that the rules which were read are those of then: a network namespace that \
                 goes away leaves its number to another"
            }
        };
        Some(Paragraph(format!("{} {why}.", counted(*count, "collision", "collisions"))))
    };
    case.by_rule.iter().filter_map(why)
}
