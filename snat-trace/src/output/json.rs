//! One JSON object per line.

pub(crate) mod records;

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

use self::records::{FailureRecord, Line, RaceRecord, SessionRecord, SummaryRecord};
use super::Sink;
use super::escape::steers;
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

/// Writes JSON lines.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
}

impl<W: Write> JsonSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one line.
    pub(crate) fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        to_line(&mut self.out, line)
    }

    /// What is written to.
    pub(crate) fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn session(&mut self, session: &Session) -> io::Result<()> {
        self.line(&Line::Session(SessionRecord::new(session)))
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        self.line(&Line::Race(Box::new(RaceRecord::new(race, clock))))
    }

    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()> {
        self.line(&Line::InsertFailure(Box::new(FailureRecord::new(failure, clock))))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&Line::Summary(Box::new(SummaryRecord::new(summary))))
    }
}

/// Writes a value as one line, in which nothing steers a terminal.
///
/// # Errors
/// `out` takes no more.
pub fn to_line(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Harmless))?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes what could steer a terminal as JSON's own escapes, so that a line may be looked at as it is. Control
/// characters below the space serde_json escapes itself.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for piece in fragment.split_inclusive(steers) {
            let plain = piece.trim_end_matches(steers);
            writer.write_all(plain.as_bytes())?;
            for unit in piece[plain.len()..].encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}
