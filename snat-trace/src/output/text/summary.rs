//! The last lines: what was seen, whether the account closes, what to change.

use std::fmt;
use std::time::Duration;

use super::{GREEN, PLAIN, RED};
use crate::counters::account::Account;
use crate::output::escape;
use crate::race::event::Class;
use crate::summary::Summary;

/// The closing lines of a run.
pub(super) struct Closing<'a> {
    pub(super) summary: &'a Summary,
    pub(super) colour: bool,
}

impl fmt::Display for Closing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { summary, colour } = *self;
        let among =
            summary.connections.map(|count| format!(", {}", counted(count, "new connection"))).unwrap_or_default();
        writeln!(f, "{} watched{among}: {}.", watched(summary.span.duration()), races(summary))?;
        writeln!(f, "{}; lost {}.", totals(&summary.accounts), lost(summary))?;
        let (paint, plain) = match (colour, summary.closes()) {
            (false, _) => ("", ""),
            (true, true) => (GREEN, PLAIN),
            (true, false) => (RED, PLAIN),
        };
        if summary.closes() {
            writeln!(f, "{paint}The account closes.{plain}")?;
        } else {
            writeln!(f, "{paint}THE ACCOUNT DOES NOT CLOSE:{plain} {}.", why_open(summary).join("; "))?;
        }
        let several = summary.accounts.len() > 1;
        for account in &summary.accounts {
            let netns = netns(account);
            for line in figures(account, several) {
                writeln!(f, "  netns {netns}: {line}")?;
            }
            if let Some(note) = &account.note {
                writeln!(f, "  netns {netns}: {}", escape(note))?;
            }
        }
        for hint in hints(&summary.accounts, summary.failures.is_some()) {
            writeln!(f, "{hint}")?;
        }
        if let Some(failures) = summary.failures.as_ref().filter(|failures| !failures.is_empty()) {
            let reasons: Vec<_> = failures.iter().map(|&(reason, count)| (reason.name(), count)).collect();
            writeln!(f, "Failures that are no race: {}.", list(&reasons))?;
        }
        if summary.outside > 0 {
            let verb = if summary.outside == 1 { "is" } else { "are" };
            let races = counted(summary.outside, "race");
            writeln!(f, "{races} before or after the counters were read {verb} not in the account.")?;
        }
        if summary.ended > 0 {
            let they = if summary.ended == 1 { "it" } else { "they" };
            let namespaces = counted(summary.ended, "network namespace");
            writeln!(
                f,
                "{namespaces} went away while watched; what {they} counted since the last reading is not known."
            )?;
        }
        if !summary.incomplete.is_empty() {
            writeln!(f, "Incomplete: {}.", list(&summary.incomplete))?;
        }
        summary.advice().iter().try_for_each(|sentence| writeln!(f, "{sentence}"))
    }
}

/// Seconds with a tenth up to two minutes; more is told in whole minutes and hours.
pub(crate) fn watched(duration: Duration) -> String {
    match duration.as_secs() {
        0..120 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 120..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How many races, what became of them, and of which classes they were unless of the usual one.
fn races(summary: &Summary) -> String {
    let all = summary.races();
    if all == 0 {
        return "no races".to_owned();
    }
    let outcomes: Vec<_> =
        [("dropped", summary.dropped), ("resolved", summary.resolved), ("of unknown outcome", summary.undecided)]
            .into_iter()
            .filter(|&(_, count)| count > 0)
            .collect();
    let outcomes = match outcomes.as_slice() {
        [(outcome, 1)] => (*outcome).to_owned(),
        [(outcome, _)] => format!("all {outcome}"),
        several => list(several),
    };
    let classes: Vec<_> = summary.classes.iter().map(|&(class, count)| (class.name(), count)).collect();
    let classes = match summary.classes.as_slice() {
        [] | [(Class::SnatPortCollision, _)] => String::new(),
        _ => format!(" ({})", list(&classes)),
    };
    format!("{}, {outcomes}{classes}", counted(all, "race"))
}

/// `insert_failed` over all namespaces of which it is known, and of how many it is not.
fn totals(accounts: &[Account]) -> String {
    let known: Vec<_> = accounts.iter().filter(|account| known(account)).collect();
    if known.is_empty() && !accounts.is_empty() {
        return format!("insert_failed of {} is not fully known", namespaces(accounts.len()));
    }
    let equation = equation(
        "insert_failed",
        known.iter().filter_map(|account| account.counters.as_ref().ok()?.insert_failed).sum(),
        known.iter().map(|account| account.explained.insert_failed).sum(),
        known.iter().filter_map(|account| account.unexplained.insert_failed).sum(),
    );
    if known.len() == accounts.len() {
        equation
    } else {
        format!("{equation} in {} of {}", known.len(), namespaces(accounts.len()))
    }
}

/// Whether the figures are there, and of the whole time.
fn known(account: &Account) -> bool {
    account.complete && account.counters.is_ok()
}

fn namespaces(count: usize) -> String {
    counted(count.try_into().unwrap_or(u64::MAX), "network namespace")
}

fn equation(name: &str, counted: u64, explained: u64, unexplained: i64) -> String {
    // The minus of a negative number takes the place of the plus.
    let sign = if unexplained < 0 { '-' } else { '+' };
    format!("{name} +{counted} = {explained} explained {sign} {} unexplained", unexplained.unsigned_abs())
}

fn lost(summary: &Summary) -> String {
    if summary.lost.is_empty() { "0".to_owned() } else { format!("{} ({})", summary.lost(), list(&summary.lost)) }
}

/// Everything for which the account does not close.
pub(crate) fn why_open(summary: &Summary) -> Vec<String> {
    let mut reasons = Vec::new();
    if summary.lost() > 0 {
        let bigger = summary.lost.iter().any(|(reason, _)| reason.ends_with("ring-full"));
        let hint = if bigger { " (a larger --ring-bytes helps)" } else { "" };
        let failures: u64 =
            summary.lost.iter().filter(|(reason, _)| reason.starts_with("failure-")).map(|(_, n)| n).sum();
        let clashes = summary.lost() - failures;
        let what: Vec<_> = [(clashes, "clash", "clashes"), (failures, "failure", "failures")]
            .into_iter()
            .filter(|&(count, ..)| count > 0)
            .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
            .collect();
        let were = if summary.lost() == 1 { "was" } else { "were" };
        reasons.push(format!("{} {were} lost on the way{hint}", what.join(" and ")));
    }
    if !summary.hooks_gone.is_empty() {
        let (was, its) = if summary.hooks_gone.len() == 1 { ("was", "its") } else { ("were", "their") };
        let modules: Vec<_> = summary.hooks_gone.iter().map(|module| escape(module).to_string()).collect();
        let modules = modules.join(" and ");
        reasons.push(format!(
            "{modules} {was} unloaded while watched: {its} hooks are gone and saw nothing since, so start again"
        ));
    }
    for account in summary.accounts.iter().filter(|account| !account.closes()) {
        let netns = netns(account);
        if !account.complete {
            reasons.push(format!("the final counters of netns {netns} are not known"));
            continue;
        }
        match &account.counters {
            Err(error) => reasons.push(format!("netns {netns} has no counters: {}", escape(error))),
            Ok(_) => {
                let explained = account.explained.named().into_iter();
                for ((name, explained), (_, unexplained)) in explained.zip(account.unexplained.named()) {
                    let (count, what) = match unexplained {
                        _ if name == "drop" && !drop_is_apart(account) => continue,
                        Some(0) => continue,
                        Some(more @ 1..) => (more.unsigned_abs(), "unexplained"),
                        Some(less) => (less.unsigned_abs(), "seen and not counted"),
                        None if explained == 0 => continue,
                        None => (explained, "seen, which this kernel does not count"),
                    };
                    reasons.push(format!("{count} {name} of netns {netns} {what}"));
                }
            }
        }
    }
    reasons
}

/// What the counters prove of the unexplained, and how to have it named.
fn hints(accounts: &[Account], failures_traced: bool) -> Vec<String> {
    let unexplained = |counter: fn(&Account) -> Option<i64>| accounts.iter().filter_map(counter).any(|more| more > 0);
    // A clash that is dropped counts in both, a chain that is too long names itself, and every clash is told.
    let failed = unexplained(|account| account.unexplained.insert_failed);
    // What fails at its insert counts a drop with it or none, so this was dropped before.
    let dropped = unexplained(|account| account.unexplained.drop?.checked_sub(account.unexplained.insert_failed?));
    let hints = [
        (
            failed,
            "A failed insert without a clash or a long chain: its entry was dying, or its extensions were of another time",
        ),
        (
            dropped,
            "A drop without a failed insert: the table was full (nf_conntrack_count against nf_conntrack_max), or the \
             protocol's tracker refused the packet",
        ),
    ];
    let tracing = if failures_traced { "." } else { "; --failures tells them apart." };
    hints.into_iter().filter(|&(applies, _)| applies).map(|(_, hint)| format!("{hint}{tracing}")).collect()
}

/// The figures of an account that moved, one line each. `insert_failed` stands in the totals, so it is repeated only
/// for one of several namespaces or when it does not close.
fn figures(account: &Account, several: bool) -> Vec<String> {
    let Ok(counters) = &account.counters else {
        let races = account.explained.insert_failed + account.explained.clash_resolve;
        return vec![format!("{} seen, counters unknown", counted(races, "race"))];
    };
    let counters = counters.named().into_iter().zip(account.explained.named()).zip(account.unexplained.named());
    counters
        .filter_map(|(((name, counted), (_, explained)), (_, unexplained))| {
            let unexplained = unexplained?;
            let shown = match name {
                "insert_failed" => several || unexplained != 0 || !account.complete,
                "drop" => drop_is_apart(account),
                _ => true,
            };
            let counted = counted?;
            let moved = counted > 0 || explained > 0;
            (shown && moved).then(|| equation(name, counted, explained, unexplained))
        })
        .collect()
}

/// Whether `drop` says anything that `insert_failed` does not: a lost race counts in both.
fn drop_is_apart(Account { unexplained, .. }: &Account) -> bool {
    unexplained.drop.is_some_and(|drop| drop != unexplained.insert_failed.unwrap_or(0))
}

fn netns(account: &Account) -> String {
    account.netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string())
}

fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Counts and what they are of. In a file of evidence that may be anything.
pub(crate) fn list(counts: &[(impl AsRef<str>, u64)]) -> String {
    let parts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {}", escape(what.as_ref()))).collect();
    parts.join(", ")
}
