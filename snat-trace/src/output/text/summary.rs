//! The last lines: what was seen, whether the account closes, what to change.

use std::fmt;

use crate::counters::account::Account;
use crate::summary::Summary;

/// The closing lines of a run.
pub(super) struct Closing<'a>(pub(super) &'a Summary);

impl fmt::Display for Closing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(summary) = self;
        let seconds = summary.span.duration().as_secs_f64();
        writeln!(
            f,
            "{seconds:.1} s watched: {}{}; lost {}.",
            races(summary),
            totals(&summary.accounts),
            lost(summary)
        )?;
        for account in &summary.accounts {
            let line = account_line(account);
            if summary.accounts.len() > 1 || !account.closes() || !line.is_empty() {
                let netns = account.netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string());
                let insert_failed = if summary.accounts.len() > 1 { figure(account, 0) } else { None };
                let parts: Vec<String> = insert_failed.into_iter().chain(line).collect();
                if !parts.is_empty() {
                    writeln!(f, "netns {netns}: {}.", parts.join("; "))?;
                }
            }
            if let Err(error) = &account.counters {
                writeln!(f, "The account does not close: {error}.")?;
            }
            if let Some(note) = account.note {
                writeln!(f, "Note: {note}.")?;
            }
        }
        for (reason, count) in &summary.incomplete {
            writeln!(f, "Facts missing from events: {count} {reason}.")?;
        }
        summary.advice().iter().try_for_each(|sentence| writeln!(f, "{sentence}"))
    }
}

fn races(summary: &Summary) -> String {
    let all = summary.races();
    let noun = if all == 1 { "race" } else { "races" };
    let parts: Vec<String> =
        [(summary.dropped, "dropped"), (summary.resolved, "resolved"), (summary.undecided, "of unknown outcome")]
            .into_iter()
            .filter(|&(count, _)| count > 0)
            .map(|(count, word)| if count == all { format!("all {word}") } else { format!("{count} {word}") })
            .collect();
    if all == 0 { format!("no {noun}") } else { format!("{all} {noun}, {}", parts.join(", ")) }
}

/// insert_failed over all namespaces, as counted = explained + unexplained.
fn totals(accounts: &[Account]) -> String {
    let counted: u64 = accounts.iter().filter_map(|account| account.counters.as_ref().ok()?.insert_failed).sum();
    let explained: u64 =
        accounts.iter().filter(|account| account.counters.is_ok()).map(|account| account.explained.insert_failed).sum();
    let unexplained: i64 = accounts.iter().filter_map(|account| account.unexplained.insert_failed).sum();
    format!(". insert_failed +{counted} = {explained} explained + {unexplained} unexplained")
}

fn lost(summary: &Summary) -> String {
    if summary.lost() == 0 {
        return "0".to_owned();
    }
    let reasons: Vec<String> = summary.lost.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("{} ({})", summary.lost(), reasons.join(", "))
}

/// What a namespace's account says beyond insert_failed: the other counters that moved.
fn account_line(account: &Account) -> Vec<String> {
    (1..5).filter_map(|counter| figure(account, counter)).collect()
}

/// One counter of an account, in the order of `Tally::named`; `None` when it did not move and nothing claims it did, or
/// when it is a drop that goes with its failed insert.
fn figure(account: &Account, counter: usize) -> Option<String> {
    let counters = account.counters.as_ref().ok()?;
    let (name, counted) = counters.named()[counter];
    let (_, explained) = account.explained.named()[counter];
    let (_, unexplained) = account.unexplained.named()[counter];
    let (counted, unexplained) = (counted?, unexplained.unwrap_or(0));
    if (counted == 0 && explained == 0) || (name == "drop" && unexplained == 0) {
        return None;
    }
    Some(format!("{name} +{counted} = {explained} explained + {unexplained} unexplained"))
}
