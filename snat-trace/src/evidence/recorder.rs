//! Evidence as an output: everything that is shown, and what is not.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::frames::{Existing, Frames, Limits, OpenError};
use super::node::NodeRecord;
use super::reader::Sample;
use super::redact::Redactor;
use super::rules::{LookAt, Reading, Rules};
use crate::output::Sink;
use crate::output::json::JsonSink;
use crate::output::json::records::{Line, RulesRecord, SampleRecord, Time};
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

/// Shows events as another sink does and writes evidence of them.
pub struct Recorder {
    /// `None` when nobody reads it any more, which ends no recording.
    shown: Option<Box<dyn Sink + Send>>,
    file: JsonSink<Frames>,
    /// What stands in the file names nobody.
    redactor: Option<Redactor>,
    rules: Reading,
    /// For the heads of files to come.
    session: Option<Session>,
}

impl Recorder {
    /// Opens the file and waits for the session. With `redact`, what stands in the file names nobody; what is shown does. The
    /// rules of namespaces that have races come by `look_at`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        path: &Path,
        existing: Existing,
        limits: Limits,
        redact: bool,
        look_at: LookAt,
        shown: Box<dyn Sink + Send>,
    ) -> Result<Self, OpenError> {
        let redactor = redact.then(Redactor::new).transpose().map_err(OpenError::NoKey)?;
        let file = JsonSink::new(Frames::open(path, existing, limits)?);
        let rules = Reading::start(look_at).map_err(|error| OpenError::Io(path.to_owned(), error))?;
        Ok(Self { shown: Some(shown), file, redactor, rules, session: None })
    }

    fn show(&mut self, event: impl FnOnce(&mut (dyn Sink + Send)) -> io::Result<()>) -> io::Result<()> {
        let Some(shown) = self.shown.as_deref_mut() else { return Ok(()) };
        match event(shown) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.shown = None;
                Ok(())
            }
            result => result,
        }
    }

    /// What every file begins with.
    fn head(&mut self, session: &Session) -> io::Result<()> {
        match &self.redactor {
            Some(redactor) => self.file.session(&redactor.session(session))?,
            None => self.file.session(session)?,
        }
        self.node(session.clock)
    }

    /// The machine as it is now.
    fn node(&mut self, clock: WallClock) -> io::Result<()> {
        let node = NodeRecord::gather(Path::new("/"), clock).with_counters();
        let node = match &self.redactor {
            Some(redactor) => redactor.node(node),
            None => node,
        };
        self.file.line(&Line::Node(Box::new(node)))
    }

    fn write_rules_that_came(&mut self) -> io::Result<()> {
        let Some(clock) = self.session.as_ref().map(|session| session.clock) else { return Ok(()) };
        let come = self.rules.take();
        self.write_rules(&come, clock)
    }

    /// Begins another file where this one is full. Not only at a pause: in a storm there is none.
    fn keep_within_limits(&mut self) -> io::Result<()> {
        if !self.file.get_mut().is_full() {
            return Ok(());
        }
        let Some(session) = self.session.take() else { return Ok(()) };
        self.file.get_mut().rotate();
        self.head(&session)?;
        let known = self.rules.known().to_vec();
        self.write_rules(&known, session.clock)?;
        self.session = Some(session);
        Ok(())
    }

    /// After each event.
    fn go_on(&mut self) -> io::Result<()> {
        self.write_rules_that_came()?;
        self.keep_within_limits()
    }

    /// Rules that were read, with the wall times of `session`.
    fn write_rules<'r>(&mut self, all: impl IntoIterator<Item = &'r Rules>, clock: WallClock) -> io::Result<()> {
        for rules in all {
            let redacted = self.redactor.as_ref().map(|redactor| redactor.rules(rules));
            let rules = redacted.as_ref().unwrap_or(rules);
            let record = RulesRecord::new(Time::of(clock, rules.time), rules);
            self.file.line(&Line::Rules(Box::new(record)))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Sink for Recorder {
    fn session(&mut self, session: &Session) -> io::Result<()> {
        self.show(|shown| shown.session(session))?;
        self.head(session)?;
        self.session = Some(session.clone());
        Ok(())
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        self.show(|shown| shown.race(race, clock))?;
        if let Some(netns) = race.netns {
            self.rules.want(netns);
        }
        match &self.redactor {
            Some(redactor) => self.file.race(&redactor.race(race), clock)?,
            None => self.file.race(race, clock)?,
        }
        self.go_on()
    }

    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()> {
        self.show(|shown| shown.failure(failure, clock))?;
        match &self.redactor {
            Some(redactor) => self.file.failure(&redactor.failure(failure), clock)?,
            None => self.file.failure(failure, clock)?,
        }
        self.go_on()
    }

    fn wants_samples(&self) -> bool {
        true
    }

    fn sample(&mut self, sample: &Sample, clock: WallClock) -> io::Result<()> {
        self.file.line(&Line::Sample(SampleRecord::new(sample, clock)))?;
        self.go_on()
    }

    fn pause(&mut self) -> io::Result<()> {
        self.write_rules_that_came()?;
        self.file.get_mut().end_frame();
        self.keep_within_limits()
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let shown = self.show(|shown| shown.summary(summary));
        let come = self.rules.take_last();
        self.write_rules(&come, summary.span.clock)?;
        // What the table holds and the counters say at the end, beside what they did at the start.
        self.node(summary.span.clock)?;
        self.file.summary(summary)?;
        self.file.get_mut().finish()?;
        shown
    }
}
