//! The case in plain words: what was lost to what, whether it is all explained, where it comes from.

use std::time::Duration;

use super::case::{Case, Outcome};
use crate::audit::{Choice, RuleShown, Tool};
use crate::evidence::Cut;
use crate::output::text::{list, watched, why_open};
use crate::race::event::Class;

/// What stands first, a sentence each.
pub(super) fn verdict(case: &Case) -> Vec<String> {
    let mut sentences = vec![lost(case)];
    sentences.extend(harmless(case));
    sentences.push(account(case));
    sentences.extend(ended(case));
    sentences.extend(by_rule(case));
    sentences.extend(private(case));
    sentences.extend(not_races(case));
    sentences.extend(left_out(case));
    sentences
}

/// How many packets, to what, in what time and of how many connections.
fn lost(case: &Case) -> String {
    let dropped = case.dropped();
    let time = watched(case.watched());
    if dropped == 0 {
        let among =
            case.connections().map(|count| format!(" among {}", counted(count, "new connection", "new connections")));
        return format!(
            "No connection is known to have lost a packet to a race in {time}{}.",
            among.unwrap_or_default()
        );
    }
    let to = |class| match class {
        Class::SnatPortCollision => "SNAT port collisions",
        Class::PortExhaustion => "ranges of ports that were exhausted",
        Class::FixedPort => "rules that allow one port",
        Class::DuplicateFlow => "another packet of the same flow",
        Class::CrossedFlow => "the same flow opened from the other end",
        Class::Unclassified => "clashes of unknown cause",
    };
    let classes =
        Class::ALL.map(|class| (to(class), case.races(|one, outcome| one == class && outcome == Outcome::Dropped)));
    let classes: Vec<_> = classes.into_iter().filter(|(_, count)| *count > 0).collect();
    let what = match classes.as_slice() {
        _ if case.left_out() > 0 => format!(" to races in {time}"),
        [(only, _)] => format!(" to {only} in {time}"),
        several => {
            let parts: Vec<_> = several.iter().map(|(what, count)| format!("{count} to {what}")).collect();
            format!(" in {time}: {}", parts.join(", "))
        }
    };
    let connections = counted(dropped, "connection lost its first packet", "connections lost their first packet");
    let rate = case.connections().filter(|&all| all > 0).map(|all| {
        format!(" That is {} of every 1000 new connections (there were {all}).", per_thousand(dropped, all))
    });
    format!("{connections}{what}.{}", rate.unwrap_or_default())
}

/// So many of so many, in a thousand.
fn per_thousand(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of connections are far below 2^52")]
    let rate = part as f64 * 1000.0 / whole as f64;
    if rate < 10.0 { format!("{rate:.2}") } else { format!("{rate:.0}") }
}

/// Clashes that cost nothing, or of which that is not known.
fn harmless(case: &Case) -> Option<String> {
    let resolved = case.races(|_, outcome| outcome == Outcome::Resolved);
    let unknown = case.races(|_, outcome| outcome == Outcome::Unknown);
    let parts = [
        (resolved, "in which the kernel sent the packet on"),
        (unknown, "of which it is not known what became of the packet"),
    ];
    let parts: Vec<_> =
        parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    (!parts.is_empty()).then(|| format!("There were other clashes: {}.", parts.join(", and ")))
}

/// Whether everything the kernel counted is explained.
fn account(case: &Case) -> String {
    let open: Vec<_> = case.summaries().filter(|summary| !summary.closes()).flat_map(why_open).collect();
    if !open.is_empty() {
        return format!("THE ACCOUNT DOES NOT CLOSE: {}.", open.join("; "));
    }
    if case.cut != Some(Cut::No) || case.recordings.iter().any(|recording| recording.summary.is_none()) {
        return "THE ACCOUNT IS OPEN: the recording has no end, so the races could not be set against all the kernel counted.".into();
    }
    let accounts = || case.summaries().flat_map(|summary| &summary.accounts);
    let failed: u64 = accounts().filter_map(|account| account.counters.as_ref().ok()?.insert_failed).sum();
    let outside: u64 = case.summaries().map(|summary| summary.outside).sum();
    let all = match failed {
        // Those that went away may have counted some.
        0 if namespaces_ended(case) > 0 => {
            "No failed insert (insert_failed) is known to have been counted in that time.".into()
        }
        0 => "The kernel counted no failed insert (insert_failed) in that time.".into(),
        1 => "The kernel counted one failed insert (insert_failed) in that time, and it is explained.".into(),
        _ => format!("The kernel counted {failed} failed inserts (insert_failed) in that time, and all are explained."),
    };
    if outside == 0 {
        return all;
    }
    let more = counted(outside, "race was", "races were");
    format!("{all} {more} seen before its counters were first read, or after they last were.")
}

fn namespaces_ended(case: &Case) -> u64 {
    case.summaries().map(|summary| summary.ended).sum()
}

/// Whose last counters nobody knows.
pub(super) fn ended(case: &Case) -> Option<String> {
    let count = namespaces_ended(case);
    let they = if count == 1 { "it" } else { "they" };
    (count > 0).then(|| {
        format!(
            "{} went away while watched; what {they} counted since the last reading is not known.",
            counted(count, "network namespace", "network namespaces")
        )
    })
}

/// Where collisions come from.
fn by_rule(case: &Case) -> Option<String> {
    let all: u64 = case.by_rule.iter().map(|(_, count)| count).sum();
    let (netns, rule, count) =
        case.by_rule.iter().find_map(|(cause, count)| cause.rule().map(|(netns, rule)| (netns, rule, count)))?;
    let what = match rule.choice {
        Choice::Kept => format!(" without {}", flag(rule)),
        Choice::Random => " with random ports".to_owned(),
        Choice::FullyRandom => format!(" with {}", flag(rule)),
        Choice::Unknown => String::new(),
    };
    let there = if case.is_own(netns) { String::new() } else { format!("; netns {}", netns.0) };
    Some(format!("{count} of {all} port collisions came by one {} rule{what}: {}{there}.", name(rule), place(rule)))
}

/// A rule's target as its tool spells it.
pub(super) fn name(rule: &RuleShown) -> String {
    let name = rule.target.name();
    if rule.tool == Tool::Nft { name.to_owned() } else { name.to_uppercase() }
}

fn flag(rule: &RuleShown) -> &'static str {
    if rule.tool == Tool::Nft { "fully-random" } else { "--random-fully" }
}

/// Where a rule stands, and who made it.
pub(super) fn place(rule: &RuleShown) -> String {
    let owner = rule.owner.as_ref().map(|owner| format!(", made by {owner}")).unwrap_or_default();
    format!("{}, table {} {}, chain {}{owner}", rule.tool.name(), rule.family.name(), rule.table, rule.chain)
}

fn private(case: &Case) -> Option<String> {
    let all = case.races(|_, _| true);
    (case.private > 0).then(|| {
        format!(
            "{} of {} went to private addresses (RFC 1918, ULA), which need no translation where there is a route back.",
            case.private,
            counted(all, "race", "races")
        )
    })
}

fn not_races(case: &Case) -> Option<String> {
    let failures: Vec<_> = case.failures.iter().map(|(reason, &count)| (reason.name(), count)).collect();
    (!failures.is_empty())
        .then(|| format!("Connections that failed for other reasons than a race: {}.", list(&failures)))
}

fn left_out(case: &Case) -> Option<String> {
    let count = case.left_out();
    (count > 0).then(|| {
        format!(
            "{} counted and not in this file (filters, rotation): what follows is of the others.",
            counted(count, "race was", "races were")
        )
    })
}

pub(super) fn counted(count: u64, one: &str, more: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {more}") }
}

/// The border of a step, of whole units.
pub(super) fn short(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{} us", nanoseconds / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", nanoseconds / 1_000_000),
        _ => format!("{} s", nanoseconds / 1_000_000_000),
    }
}
