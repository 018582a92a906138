//! One readable line per race, and the account at the end.

mod columns;
mod summary;
mod verbose;

use std::io::{self, Write};

pub(crate) use columns::{Columns, GAP};
pub(crate) use summary::{list, watched, why_open};
pub(crate) use verbose::Block;

use super::Sink;
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// How the text is to look.
#[derive(Clone, Debug)]
pub struct Style {
    /// Columns of the terminal; `None` when the output is no terminal and may be as wide as it likes.
    pub width: Option<usize>,
    /// Whether escape sequences for colour may be written.
    pub colour: bool,
    /// Whether each race is followed by a block with everything known of it.
    pub verbose: bool,
    /// In which zone times are printed.
    pub zone: jiff::tz::TimeZone,
}

/// Writes text.
#[derive(Debug)]
pub struct TextSink<W> {
    out: W,
    style: Style,
    columns: Columns,
}

impl<W: Write> TextSink<W> {
    /// Writes to `out`.
    pub fn new(out: W, style: Style) -> Self {
        let columns = Columns::fitting(style.width);
        Self { out, style, columns }
    }
}

impl<W: Write> Sink for TextSink<W> {
    fn session(&mut self, _session: &Session) -> io::Result<()> {
        writeln!(self.out, "{}", self.columns.header())?;
        self.out.flush()
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        writeln!(self.out, "{}", self.columns.line(race, clock, &self.style))?;
        if self.style.verbose {
            write!(self.out, "{}", Block { race, clock, zone: &self.style.zone })?;
        }
        self.out.flush()
    }

    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()> {
        writeln!(self.out, "{}", self.columns.failure(failure, clock, &self.style))?;
        if self.style.verbose {
            write!(self.out, "{}", verbose::FailureBlock { failure, clock, zone: &self.style.zone })?;
        }
        self.out.flush()
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        write!(self.out, "{}", summary::Closing { summary, colour: self.style.colour })?;
        self.out.flush()
    }
}

/// A time of day, as `format` says (strftime).
fn clock_time(time: jiff::Timestamp, zone: &jiff::tz::TimeZone, format: &str) -> String {
    time.to_zoned(zone.clone()).strftime(format).to_string()
}

/// A duration in the unit that gives it one to three digits before the point.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let tenth = |unit: u128| format!("{}.{}", nanoseconds / unit, nanoseconds % unit * 10 / unit);
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{} us", tenth(1_000)),
        1_000_000..1_000_000_000 => format!("{} ms", tenth(1_000_000)),
        _ => format!("{} s", tenth(1_000_000_000)),
    }
}
