//! A comparison as one JSON object. What is not known, or has no end, is absent.

use std::io::{self, Write};

use serde::Serialize;

use super::intervals::{Interval, LEVEL};
use super::rate::{Rate, Rates};
use super::{Basis, Comparison, Judgement, Kind, Side};
use crate::output::json::records::SCHEMA;
use crate::output::json::to_line;

#[derive(Serialize)]
#[serde(tag = "type", rename = "comparison")]
struct Record<'a> {
    schema: u32,
    verdict: Judgement,
    /// What rates are races per: 1000 connections, or an hour.
    per: &'static str,
    /// Of the intervals, percent.
    level: u8,
    rates: Vec<RowRecord>,
    /// The same by time where `rates` are by connections; `verdict` is not by these.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_time: Option<ByTimeRecord>,
    before: SideRecord<'a>,
    after: SideRecord<'a>,
    differences: Vec<DifferenceRecord>,
    cautions: Vec<String>,
}

#[derive(Serialize)]
struct ByTimeRecord {
    per: &'static str,
    rates: Vec<RowRecord>,
}

#[derive(Serialize)]
struct RowRecord {
    races: &'static str,
    verdict: Judgement,
    before: RateRecord,
    after: RateRecord,
    /// After by before.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<IntervalRecord>,
    /// Of how many races that come together each is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<f64>,
}

#[derive(Serialize)]
struct RateRecord {
    races: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(flatten)]
    interval: Option<IntervalRecord>,
}

#[derive(Serialize)]
struct IntervalRecord {
    low: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
}

#[derive(Serialize)]
struct SideRecord<'a> {
    recordings: u64,
    unfinished: u64,
    watched_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    races: u64,
    dropped: u64,
    undecided: u64,
    lost: u64,
    closes: bool,
    kernels: Vec<&'a str>,
    details: Vec<&'a str>,
}

#[derive(Serialize)]
struct DifferenceRecord {
    what: String,
    before: String,
    after: String,
}

impl Comparison {
    /// Writes it as a line.
    ///
    /// # Errors
    /// The output takes no more.
    pub fn write_json(&self, out: impl Write) -> io::Result<()> {
        let differences = self.differences().into_iter();
        let record = Record {
            schema: SCHEMA,
            verdict: self.judgement(),
            per: per(self.basis),
            level: LEVEL,
            rates: self.rows.iter().map(RowRecord::new).collect(),
            by_time: self
                .by_time
                .as_ref()
                .map(|rows| ByTimeRecord { per: per(Basis::Hours), rates: rows.iter().map(RowRecord::new).collect() }),
            before: SideRecord::new(&self.before),
            after: SideRecord::new(&self.after),
            differences: differences
                .map(|super::differences::Difference { what, before, after }| DifferenceRecord { what, before, after })
                .collect(),
            cautions: self.cautions(),
        };
        to_line(out, &record)
    }
}

fn per(basis: Basis) -> &'static str {
    match basis {
        Basis::Connections => "1000-connections",
        Basis::Hours => "hour",
    }
}

impl RowRecord {
    fn new((kind, rates): &(Kind, Rates)) -> Self {
        Self {
            races: kind.name(),
            verdict: rates.judgement,
            before: RateRecord::new(rates.before),
            after: RateRecord::new(rates.after),
            ratio: rates.ratio.map(IntervalRecord::new),
            burst: rates.burst,
        }
    }
}

impl RateRecord {
    fn new(Rate { races, rate, interval }: Rate) -> Self {
        Self { races, rate, interval: interval.map(IntervalRecord::new) }
    }
}

impl IntervalRecord {
    fn new(Interval { low, high }: Interval) -> Self {
        Self { low, high: high.is_finite().then_some(high) }
    }
}

impl<'a> SideRecord<'a> {
    fn new(side: &'a Side) -> Self {
        Self {
            recordings: side.recordings,
            unfinished: side.unfinished,
            watched_ns: u64::try_from(side.watched.as_nanos()).unwrap_or(u64::MAX),
            connections: side.connections,
            races: side.races(Kind::All),
            dropped: side.races(Kind::Dropped),
            undecided: side.undecided,
            lost: side.lost,
            closes: side.open.is_empty() && side.unfinished == 0,
            kernels: side.kernels.iter().map(String::as_str).collect(),
            details: side.details.iter().copied().collect(),
        }
    }
}
