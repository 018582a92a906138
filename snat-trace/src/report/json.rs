//! The report for programs: one object.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;

use serde::Serialize;

use super::case::{self, Case, Outcome};
use super::changes::{self, changes};
use super::series::{self, Timeline, overlaps};
use super::verdict::verdict;
use crate::audit::{Finding, RuleShown};
use crate::evidence::node::NodeRecord;
use crate::evidence::{Cut, clock};
use crate::output::json::records::{SessionRecord, SummaryRecord, Time};
use crate::output::json::to_line;
use crate::race::event::NetnsInum;
use crate::race::tuple::Protocol;

#[derive(Serialize)]
#[serde(tag = "type", rename = "report")]
struct Report<'a> {
    schema: u32,
    /// As the other formats have it, a sentence each.
    verdict: Vec<String>,
    changes: Vec<Change>,
    watched_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    /// Races in the evidence by class.
    classes: BTreeMap<&'static str, Outcomes>,
    failures: BTreeMap<&'static str, u64>,
    /// Races that were seen and are not in the evidence.
    left_out: u64,
    /// Races toward private addresses.
    private: u64,
    timeline: Vec<Step>,
    overlap: Vec<Overlap>,
    destinations: Vec<Place>,
    contested: Vec<Place>,
    pairs: Vec<Pair<'a>>,
    rules: Vec<Rule<'a>>,
    /// Port collisions of which it is not known by which rule they came, by why.
    not_attributed: BTreeMap<&'static str, u64>,
    findings: Vec<&'a Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a NodeRecord>,
    recordings: Vec<Recording<'a>>,
    /// Whether the evidence ends as it should.
    complete: bool,
}

#[derive(Serialize)]
struct Change {
    change: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// Where, and when its rules were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Time>,
    /// Whether that is the network namespace that was recorded from; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<bool>,
}

#[derive(Default, Serialize)]
struct Outcomes {
    dropped: u64,
    resolved: u64,
    undecided: u64,
}

#[derive(Serialize)]
struct Step {
    time: Time,
    seconds: u64,
    dropped: u64,
    /// Resolved, or of unknown outcome.
    other: u64,
    /// `insert_failed` and `clash_resolve` up to its end, as far as they were read; absent before they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<u64>,
}

#[derive(Serialize)]
struct Overlap {
    from_ns: u64,
    races: u64,
}

#[derive(Serialize)]
struct Place {
    protocol: String,
    address: String,
    /// Or the id of an echo.
    port: u16,
    races: u64,
}

#[derive(Serialize)]
struct Pair<'a> {
    lost: &'a str,
    won: &'a str,
    races: u64,
}

#[derive(Serialize)]
struct Rule<'a> {
    netns: u32,
    /// Port collisions that are known to have come by it.
    races: u64,
    #[serde(flatten)]
    rule: &'a RuleShown,
}

#[derive(Serialize)]
struct Recording<'a> {
    session: SessionRecord<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<SummaryRecord<'a>>,
}

/// The whole report, on one line.
///
/// # Errors
/// None but a bug's: every value can be written.
pub fn json(case: &Case) -> io::Result<String> {
    let mut line = Vec::new();
    to_line(&mut line, &report(case))?;
    String::from_utf8(line).map_err(io::Error::other)
}

fn report(case: &Case) -> Report<'_> {
    let mut classes = BTreeMap::<_, Outcomes>::new();
    for (&(class, outcome), &count) in &case.classes {
        let outcomes = classes.entry(class.name()).or_default();
        match outcome {
            Outcome::Dropped => outcomes.dropped += count,
            Outcome::Resolved => outcomes.resolved += count,
            Outcome::Unknown => outcomes.undecided += count,
        }
    }
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let overlap = |(from, races)| Overlap { from_ns: nanoseconds(from), races };
    let places = |counts: &HashMap<(Protocol, SocketAddr), u64>| {
        let mut places: Vec<_> = counts.iter().map(|(&(protocol, end), &races)| (races, end, protocol)).collect();
        places.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| (one.1, one.2).cmp(&(other.1, other.2))));
        let place = |(races, end, protocol): (u64, SocketAddr, Protocol)| Place {
            protocol: protocol.to_string(),
            address: end.ip().to_string(),
            port: end.port(),
            races,
        };
        places.into_iter().map(place).collect()
    };
    let mut pairs: Vec<_> =
        case.pairs.iter().map(|((lost, won), &races)| Pair { lost: lost.as_str(), won: won.as_str(), races }).collect();
    pairs.sort_by(|one, other| {
        other.races.cmp(&one.races).then_with(|| (one.lost, one.won).cmp(&(other.lost, other.won)))
    });
    let rules = case.rules.iter().flat_map(|read| read.audit.rules.iter().map(|rule| (read.netns, rule)));
    let rule = |(netns, rule): (NetnsInum, _)| {
        let its = case.by_rule.iter().find(|(cause, _)| cause.rule() == Some((netns, rule)));
        let races = its.map_or(0, |(_, races)| *races);
        Rule { netns: netns.0, races, rule }
    };
    Report {
        schema: 1,
        verdict: verdict(case),
        changes: changes(case).into_iter().map(|change| change_of(case, change)).collect(),
        watched_ns: nanoseconds(case.watched()),
        connections: case.connections(),
        classes,
        failures: case.failures.iter().map(|(reason, &count)| (reason.name(), count)).collect(),
        left_out: case.left_out(),
        private: case.private,
        timeline: Timeline::new(case).map(steps).unwrap_or_default(),
        overlap: overlaps(&case.overlaps).into_iter().map(overlap).collect(),
        destinations: places(&case.destinations),
        contested: places(&case.contested),
        pairs,
        rules: rules.map(rule).collect(),
        not_attributed: case.by_rule.iter().filter_map(|(cause, count)| Some((cause.reason()?, *count))).collect(),
        findings: case.findings(),
        node: case.node.as_deref(),
        recordings: case.recordings.iter().map(recording).collect(),
        complete: case.cut == Some(Cut::No),
    }
}

fn change_of(case: &Case, change: changes::Change) -> Change {
    let changes::Change { what, command, at } = change;
    let (netns, read) = at.unzip();
    let own = netns.and_then(|netns| case.rules.iter().rev().find(|rules| rules.netns == netns)?.own);
    let read = read.map(|read| Time::of(clock(), read));
    Change { change: what, command, netns: netns.map(|netns| netns.0), read, own }
}

fn recording(recording: &case::Recording) -> Recording<'_> {
    let summary = recording.summary.as_ref().map(SummaryRecord::new);
    Recording { session: SessionRecord::new(&recording.session), summary }
}

fn steps(timeline: Timeline) -> Vec<Step> {
    let Timeline { start, length, steps } = timeline;
    let step = |(index, step): (u64, series::Step)| {
        let seconds = i64::try_from(index * length).unwrap_or(i64::MAX);
        let time = start.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(start);
        let series::Step { dropped, other, counted } = step;
        Step { time: Time(time), seconds: length, dropped, other, counted }
    };
    (0..).zip(steps).map(step).collect()
}
