//! Events as text and JSON.

mod escape;
pub mod json;
pub mod text;

pub use escape::escape;

use std::io;

use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

/// Where the events of a session go, in this order: one session, races and failures, one summary.
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

    /// The tracer is detached and the account made.
    ///
    /// # Errors
    ///
    /// As [`Sink::session`].
    fn summary(&mut self, summary: &Summary) -> io::Result<()>;
}

#[cfg(test)]
mod golden;
