//! What to change, and where.

use std::collections::BTreeSet;

use super::case::Case;
use super::verdict::{counted, place};
use crate::audit::{Finding, RuleShown, Severity};
use crate::evidence::clock;
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// So many destinations are named in a command, and so many rules to exempt them from.
const DESTINATIONS: usize = 8;
const RULES: usize = 5;

/// One thing to change.
#[derive(Debug)]
pub(super) struct Change {
    /// In a sentence.
    pub what: String,
    /// What to type.
    pub command: Option<String>,
    /// The network namespace it is for, and when its rules were read; `None` where it is for no certain one.
    pub at: Option<(NetnsInum, KernelTime)>,
}

/// What to change, the most effective first.
pub(super) fn changes(case: &Case) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let mut findings = case.findings();
    findings.retain(|finding| finding.severity != Severity::Info);
    // Rules that are known to have let races happen first.
    let guilty =
        |rule: &RuleShown| case.by_rule.iter().filter_map(|(cause, _)| cause.rule()).any(|(_, known)| known == rule);
    findings.sort_by_key(|finding| (finding.severity, !finding.rule.as_ref().is_some_and(guilty)));
    changes.extend(findings.into_iter().map(|finding| change(case, finding)));
    for sentence in case.summaries().flat_map(crate::summary::Summary::advice) {
        // What a rule's own finding says already.
        let known = !changes.is_empty() && sentence.contains("add --random-fully");
        if !known && changes.iter().all(|known| known.what != sentence) {
            changes.push(Change { what: sentence, command: None, at: None });
        }
    }
    changes.extend(private(case));
    changes
}

/// How the private destinations of races are kept from the rules these came by; where that is not known, from those that
/// were read.
fn private(case: &Case) -> Vec<Change> {
    if case.private == 0 {
        return Vec::new();
    }
    let mut rules: Vec<(NetnsInum, &RuleShown)> = case.by_rule.iter().filter_map(|(cause, _)| cause.rule()).collect();
    if rules.is_empty() {
        rules = case.rules.iter().flat_map(|read| read.audit.rules.iter().map(|rule| (read.netns, rule))).collect();
    }
    let destinations = case.private_destinations();
    let shown = &destinations[..destinations.len().min(DESTINATIONS)];
    let these = match destinations.len() {
        all if all > shown.len() => format!("as here the {} most frequent of {all}", shown.len()),
        _ => "as here all of them".to_owned(),
    };
    let mut changes: Vec<Change> = Vec::new();
    for (netns, rule) in rules {
        let read = case.rules.iter().rev().find(|read| read.netns == netns);
        let (how, command) = rule.exempting(shown);
        // With other names in it, it is of no use.
        let command = command.filter(|_| read.is_some_and(|read| !read.redacted));
        let which = match &command {
            Some(_) => format!("{how}, {these}"),
            None => how.to_owned(),
        };
        let (part, all) = (case.private, case.races(|_, _| true));
        let all = counted(all, "race", "races");
        let there = places(case, netns, Some(rule));
        let what =
            format!("{part} of {all} went to private destinations; for those that have a route back: {which}{there}");
        // One setting of one program is for all of its rules.
        let known = |change: &Change| change.what == what || rule.owner.is_some() && change.what.contains(&which);
        if changes.len() < RULES && !changes.iter().any(known) {
            let command = command.map(|words| words.join(" "));
            changes.push(Change { what, command, at: read.map(|read| (netns, read.time)) });
        }
    }
    changes
}

fn change(case: &Case, finding: &Finding) -> Change {
    let Finding { what, fix, command, rule, .. } = finding;
    let netns = NetnsInum(finding.netns);
    let readings = case.rules.iter().rev().filter(|rules| rules.netns == netns);
    let at = readings.into_iter().find(|rules| rules.audit.findings.contains(finding)).map(|rules| (netns, rules.time));
    Change {
        what: format!("{what}{}: {fix}", places(case, netns, rule.as_ref())),
        command: command.as_ref().map(|words| words.join(" ")),
        at,
    }
}

/// Where something is: by its rule, if it is about one, and by its network namespace, if that is not known to be the
/// recorder's own.
pub(super) fn whereabouts(case: &Case, netns: NetnsInum, rule: Option<&RuleShown>) -> String {
    let there = (!case.is_own(netns)).then(|| format!("netns {}", netns.0));
    rule.map(place).into_iter().chain(there).collect::<Vec<_>>().join("; ")
}

/// The same, in parentheses.
fn places(case: &Case, netns: NetnsInum, rule: Option<&RuleShown>) -> String {
    let there = whereabouts(case, netns, rule);
    if there.is_empty() { there } else { format!(" ({there})") }
}

/// What holds for all of them: of what time the rules are, and how one comes to where they are.
pub(super) fn caveats(case: &Case, changes: &[Change]) -> Vec<String> {
    let read: BTreeSet<_> = changes.iter().filter_map(|change| change.at).collect();
    let Some(first) = read.iter().map(|&(_, time)| time).min() else { return Vec::new() };
    let mut sentences = vec![format!(
        "Rules are those that were there when they were read, from {} on: look whether each is still there, and at its \
         place, before it is changed.",
        clock().wall(first).strftime("%Y-%m-%d %H:%M:%S")
    )];
    let away = read.iter().map(|&(netns, _)| netns).filter(|&netns| !case.is_own(netns));
    let (gone, away): (BTreeSet<_>, BTreeSet<_>) = away.partition(|&netns| case.is_gone(netns));
    if !away.is_empty() {
        sentences.push(format!(
            "{} not known to be the one that was recorded from: lsns -t net tells processes in it, and with the id of \
             one nsenter -t PID -n runs a command there.",
            are(&away)
        ));
    }
    if !gone.is_empty() {
        sentences
            .push(format!("{} had gone when the recording ended: change what makes the rules there.", numbers(&gone)));
    }
    sentences
}

fn are(netns: &BTreeSet<NetnsInum>) -> String {
    format!("{} {}", numbers(netns), if netns.len() == 1 { "is" } else { "are each" })
}

fn numbers(netns: &BTreeSet<NetnsInum>) -> String {
    let numbers: Vec<_> = netns.iter().map(|netns| netns.0.to_string()).collect();
    let what = if numbers.len() == 1 { "Network namespace" } else { "Network namespaces" };
    format!("{what} {}", numbers.join(", "))
}
