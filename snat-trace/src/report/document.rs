//! The sections of a report, in the order in which one asks: what, what to do, and how it is known.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::case::{Case, Recording, sender};
use super::changes::{Change, caveats, changes};
use super::chart::{Bar, Chart};
use super::rules::{audit, rules};
use super::series::{Step, Timeline, overlaps};
use super::verdict::{counted, ended, short, verdict};
use crate::counters::account::Account;
use crate::evidence::{Cut, clock};
use crate::output::text::{duration, list, watched};
use crate::probe::HookState;
use crate::race::event::{Race, Verdict};
use crate::race::tuple::Protocol;

/// So many rows of a table; the others are counted.
pub(super) const ROWS: usize = 10;
/// Rows of figures over time, at most.
const FIGURES: usize = 20;
/// Settings of the machine that races depend on most; the others are in the file and in the JSON.
const SETTINGS: [&str; 5] = [
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_buckets",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
];

/// A piece of a report. Text in it may come from outside; whoever prints it escapes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Block {
    Heading(&'static str),
    Paragraph(String),
    List(Vec<String>),
    /// What to type.
    Command(String),
    Table {
        head: Vec<&'static str>,
        rows: Vec<Vec<String>>,
    },
    Chart(Chart),
    /// What a picture shows, for those who have none.
    Figures {
        head: Vec<&'static str>,
        rows: Vec<Vec<String>>,
    },
    /// A chart that says nothing in text which the words around it do not.
    Picture(Chart),
}

use Block::{Command, Heading, List, Paragraph, Table};

/// Everything a report has.
pub(super) fn document(case: &Case) -> Vec<Block> {
    let mut blocks = vec![Heading("Verdict")];
    blocks.extend(verdict(case).into_iter().map(Paragraph));
    change(case, &mut blocks);
    over_time(case, &mut blocks);
    overlap(case, &mut blocks);
    places(case, &mut blocks);
    races(case, &mut blocks);
    rules(case, &mut blocks);
    audit(case, &mut blocks);
    node(case, &mut blocks);
    completeness(case, &mut blocks);
    blocks
}

fn change(case: &Case, blocks: &mut Vec<Block>) {
    let changes = changes(case);
    if changes.is_empty() {
        return;
    }
    blocks.push(Heading("What to change"));
    let caveats = caveats(case, &changes);
    for Change { what, command, .. } in changes {
        blocks.push(List(vec![what]));
        blocks.extend(command.map(Command));
    }
    blocks.extend(caveats.into_iter().map(Paragraph));
}

fn over_time(case: &Case, blocks: &mut Vec<Block>) {
    let Some(timeline) = Timeline::new(case).filter(|_| !case.times.is_empty()) else { return };
    let start = timeline.start;
    let label = |index: usize| {
        let seconds = i64::try_from(index as u64 * timeline.length).unwrap_or(i64::MAX);
        let time = start.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(start);
        let format = if timeline.length >= 21_600 { "%m-%d %H:%M" } else { "%H:%M:%S" };
        time.strftime(format).to_string()
    };
    blocks.push(Heading("Races over time, beside the kernel's counters"));
    blocks.push(Paragraph(format!(
        "{} a step; times are UTC, and begin on {}.",
        counted(timeline.length, "second", "seconds"),
        start.strftime("%Y-%m-%d"),
    )));
    let series = vec!["dropped", "resolved or unknown"];
    let steps = || timeline.steps.iter().enumerate();
    let bars =
        steps().map(|(index, step)| Bar { label: label(index), values: vec![step.dropped, step.other], mark: None });
    blocks.push(Block::Chart(Chart {
        title: "Races over time",
        series: series.clone(),
        marks: None,
        bars: bars.collect(),
    }));
    let (mut dropped, mut other) = (0, 0);
    let added_up = steps().map(|(index, step)| {
        (dropped, other) = (dropped + step.dropped, other + step.other);
        Bar { label: label(index), values: vec![dropped, other], mark: step.counted }
    });
    let bars: Vec<_> = added_up.collect();
    if let Some(counted) = bars.last().and_then(|bar| bar.mark) {
        blocks.push(Paragraph(format!(
            "Added up they are {}; the kernel had counted {counted} (insert_failed and clash_resolve, read about once a second).",
            case.times.len()
        )));
        blocks.push(figures_over_time(&timeline, label));
        blocks.push(Block::Picture(Chart {
            title: "Races so far, and what the kernel had counted",
            series,
            marks: Some("counted by the kernel"),
            bars,
        }));
    }
}

/// Races beside what the kernel counted, in no more rows than [`FIGURES`]; without those in which nothing was.
fn figures_over_time(timeline: &Timeline, label: impl Fn(usize) -> String) -> Block {
    let together = timeline.steps.len().div_ceil(FIGURES).max(1);
    let (mut races, mut counted) = (0, 0);
    let row = |(index, steps): (usize, &[Step])| {
        let now: u64 = steps.iter().map(|step| step.dropped + step.other).sum();
        let so_far = steps.iter().rev().find_map(|step| step.counted).unwrap_or(counted);
        let more = so_far.saturating_sub(counted);
        (races, counted) = (races + now, so_far);
        let figures = [now, more, races, counted].map(|figure| figure.to_string());
        (now + more > 0).then(|| [label(index * together)].into_iter().chain(figures).collect())
    };
    let rows = timeline.steps.chunks(together).enumerate().filter_map(row).collect();
    Block::Figures { head: vec!["from", "races", "counted", "races so far", "counted so far"], rows }
}

fn overlap(case: &Case, blocks: &mut Vec<Block>) {
    let steps = overlaps(&case.overlaps);
    if steps.is_empty() {
        return;
    }
    blocks.push(Heading("How long both flows had the port"));
    blocks.push(Paragraph(format!(
        "From the later request for a port to the winner's insert, of the {} of which it is known; a step begins at its label.",
        counted(case.overlaps.len() as u64, "race", "races")
    )));
    let bars = steps.into_iter().map(|(from, count)| Bar { label: short(from), values: vec![count], mark: None });
    blocks.push(Block::Chart(Chart { title: "Overlaps", series: vec!["races"], marks: None, bars: bars.collect() }));
}

/// The most frequent first, in a fixed order where equal.
fn most<K: Ord>(counts: impl Iterator<Item = (K, u64)>) -> (Vec<(K, u64)>, usize) {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by(|(one, ones), (other, others)| others.cmp(ones).then_with(|| one.cmp(other)));
    let more = counts.len().saturating_sub(ROWS);
    counts.truncate(ROWS);
    (counts, more)
}

fn table(head: Vec<&'static str>, counts: (Vec<(Vec<String>, u64)>, usize), blocks: &mut Vec<Block>) {
    let (rows, more) = counts;
    let row = |(mut cells, count): (Vec<String>, u64)| {
        cells.insert(0, count.to_string());
        cells
    };
    blocks.push(Table { head, rows: rows.into_iter().map(row).collect() });
    if more > 0 {
        blocks.push(Paragraph(format!("And {more} more.")));
    }
}

/// Where a flow comes from: for ICMP, an id stands for the port.
fn source(protocol: Protocol, end: SocketAddr) -> String {
    if protocol.is_icmp() { format!("{} id {}", end.ip(), end.port()) } else { end.to_string() }
}

fn destination(protocol: Protocol, end: SocketAddr) -> String {
    if protocol.is_icmp() { end.ip().to_string() } else { end.to_string() }
}

fn places(case: &Case, blocks: &mut Vec<Block>) {
    if case.times.is_empty() {
        return;
    }
    blocks.push(Heading("Where to, which ports, and who lost to whom"));
    let to = |&(protocol, end): &(Protocol, SocketAddr)| vec![protocol.to_string(), destination(protocol, end)];
    let from = |&(protocol, end): &(Protocol, SocketAddr)| vec![protocol.to_string(), source(protocol, end)];
    let destinations = most(case.destinations.iter().map(|(key, &count)| (to(key), count)));
    table(vec!["races", "protocol", "destination"], destinations, blocks);
    let contested = most(case.contested.iter().map(|(key, &count)| (from(key), count)));
    table(vec!["races", "protocol", "contested source"], contested, blocks);
    let pairs = most(case.pairs.iter().map(|((loser, winner), &count)| (vec![loser.clone(), winner.clone()], count)));
    table(vec!["races", "lost", "won"], pairs, blocks);
}

fn races(case: &Case, blocks: &mut Vec<Block>) {
    if case.examples.is_empty() {
        return;
    }
    let more = case.times.len() - case.examples.len();
    blocks.push(Heading("Races"));
    if more > 0 {
        blocks.push(Paragraph(format!("The first {}; {more} more are in the evidence.", case.examples.len())));
    }
    let row = |race: &Race| {
        let ends = race.contested.ends();
        let verdict = race.verdict.map_or("?", Verdict::name);
        vec![
            clock().wall(race.time).strftime("%H:%M:%S.%6f").to_string(),
            format!("{}, {verdict}", race.class),
            format!(
                "{} {} > {}",
                race.protocol,
                source(race.protocol, ends.source),
                destination(race.protocol, ends.destination)
            ),
            format!("{} ({})", sender(&race.loser), source(race.protocol, race.loser.original.ends().source)),
            format!("{} ({})", sender(&race.winner), source(race.protocol, race.winner.original.ends().source)),
            race.overlap.map(duration).unwrap_or_default(),
        ]
    };
    blocks.push(Table {
        head: vec!["time", "class and verdict", "contested", "loser", "winner", "overlap"],
        rows: case.examples.iter().map(row).collect(),
    });
}

fn node(case: &Case, blocks: &mut Vec<Block>) {
    blocks.push(Heading("Node"));
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut say = |what: &str, value: String| {
        let row = [what.to_owned(), value];
        if !row[1].is_empty() && !rows.contains(&row) {
            rows.push(row);
        }
    };
    for Recording { session, .. } in &case.recordings {
        say("kernel", format!("{}, {}", session.kernel, session.machine));
        say(
            "traced by",
            format!(
                "{}, detail {}{}",
                session.tool,
                session.request.detail,
                if session.request.failures { ", failures" } else { "" }
            ),
        );
        let not: Vec<_> = session
            .hooks
            .iter()
            .filter(|hook| hook.state != HookState::Attached)
            .map(|hook| hook.role.name())
            .collect();
        say("hooks not attached", not.join(", "));
    }
    if let Some(node) = &case.node {
        say("distribution", node.distribution.clone().unwrap_or_default());
        say("CPUs", node.cpus.clone().unwrap_or_default());
        say("clock", node.clocksource.clone().unwrap_or_default());
        for setting in SETTINGS {
            say(setting, node.sysctls.get(setting).cloned().unwrap_or_default());
        }
        say("modules", node.modules.iter().cloned().collect::<Vec<_>>().join(" "));
        say(
            "receive packet steering",
            node.rps.iter().map(|(queue, mask)| format!("{queue} {mask}")).collect::<Vec<_>>().join(", "),
        );
        say("files of container networks", node.networks.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    blocks.push(Table { head: vec!["what", "value"], rows: rows.into_iter().map(Vec::from).collect() });
}

fn completeness(case: &Case, blocks: &mut Vec<Block>) {
    blocks.push(Heading("Completeness"));
    let recording = |recording: &Recording| {
        let started = clock().wall(recording.session.started).strftime("%Y-%m-%d %H:%M:%S");
        let summary = recording.summary.as_ref();
        vec![
            started.to_string(),
            watched(recording.duration()),
            summary.map_or_else(|| "no end".to_owned(), |summary| summary.races().to_string()),
            summary.map_or_else(
                String::new,
                |summary| if summary.lost.is_empty() { "0".into() } else { list(&summary.lost) },
            ),
            summary.map_or_else(String::new, |summary| if summary.closes() { "closes".into() } else { "OPEN".into() }),
        ]
    };
    blocks.push(Table {
        head: vec!["recorded from", "watched", "races", "lost by us", "account"],
        rows: case.recordings.iter().map(recording).collect(),
    });
    let mut rows = Vec::new();
    for account in case.summaries().flat_map(|summary| &summary.accounts) {
        let netns = account.netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string());
        match &account.counters {
            Err(why) => {
                rows.push(vec![netns, format!("counters unknown: {why}"), String::new(), String::new(), String::new()]);
            }
            Ok(_) => rows.extend(figures(account).map(|mut row| {
                row.insert(0, netns.clone());
                row
            })),
        }
    }
    if !rows.is_empty() {
        blocks.push(Table { head: vec!["netns", "counter", "counted", "explained", "unexplained"], rows });
    }
    let notes: BTreeSet<_> =
        case.summaries().flat_map(|summary| &summary.accounts).filter_map(|account| account.note.as_deref()).collect();
    blocks.extend(notes.into_iter().map(|note| Paragraph(format!("Note: {note}."))));
    blocks.extend(ended(case).map(Paragraph));
    let incomplete: Vec<_> = case.summaries().flat_map(|summary| &summary.incomplete).cloned().collect();
    if !incomplete.is_empty() {
        blocks.push(Paragraph(format!("Facts that are absent from races: {}.", list(&incomplete))));
    }
    blocks.extend(match case.cut {
        Some(Cut::No) => None,
        Some(Cut::NoSummary) => {
            Some(Paragraph("The evidence ends without a summary: its recording was killed, or goes on.".into()))
        }
        Some(Cut::Torn) | None => Some(Paragraph(
            "The evidence is cut short or damaged: what stands behind its last line is not known.".into(),
        )),
    });
}

/// Counters that moved, with what explains them.
fn figures(account: &Account) -> impl Iterator<Item = Vec<String>> {
    let counters = account.counters.as_ref().ok().map(|counters| counters.named());
    let explained = account.explained.named();
    let unexplained = account.unexplained.named();
    counters.into_iter().flatten().zip(explained).zip(unexplained).filter_map(
        |(((name, counted), (_, explained)), (_, unexplained))| {
            let counted = counted?;
            (counted > 0 || explained > 0).then(|| {
                vec![
                    name.to_owned(),
                    counted.to_string(),
                    explained.to_string(),
                    unexplained.map(|count| count.to_string()).unwrap_or_default(),
                ]
            })
        },
    )
}
