//! Events as text and JSON.

mod escape;
pub mod json;
pub mod text;
pub(crate) mod wrap;

pub use escape::{escape, escape_lines, escape_path};

use std::io;

use crate::evidence::Sample;
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

/// Where the events of a session go, in this order: one session, races, failures and samples, one summary.
pub trait Sink {
    /// The tracer is attached.
    ///
    /// # Errors
    ///
    /// When the output takes no more; a closed pipe is [`io::ErrorKind::BrokenPipe`].
    fn session(&mut self, session: &Session) -> io::Result<()>;

    /// One race.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()>;

    /// One failure that is no race.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()>;

    /// Whether a [`sample`](Self::sample) of every network namespace is wanted each second from the start, and not only of
    /// those that have races: it wakes an idle watch.
    fn wants_samples(&self) -> bool {
        false
    }

    /// What a network namespace counted so far, about once a second.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn sample(&mut self, _sample: &Sample, _clock: WallClock) -> io::Result<()> {
        Ok(())
    }

    /// Whether [`so_far`](Self::so_far) is wanted.
    fn follows(&self) -> bool {
        false
    }

    /// What the run comes to so far, about once a second. Its accounts have the counters as they were a second before, of
    /// namespaces that had races, so that the races in them have had time to come. Clashes on their way here stand under
    /// `lost`, as [`ON_THE_WAY`](crate::summary::ON_THE_WAY).
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn so_far(&mut self, _summary: &Summary) -> io::Result<()> {
        Ok(())
    }

    /// Nothing more is at hand for now.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The tracer is detached and the account made.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn summary(&mut self, summary: &Summary) -> io::Result<()>;
}

#[cfg(test)]
pub(crate) mod golden;
