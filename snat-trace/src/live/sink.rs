//! The view as a sink: a queue it never waits for, and the thread that draws.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::layout::Size;
use rustix::process::{Signal, getpid, kill_process};

use super::screen::Screen;
use super::{Action, Log, Picture, View, leave, save};
use crate::evidence::LookAt;
use crate::output::Sink;
use crate::race::event::Race;
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::session::Session;
use crate::summary::Summary;

/// Messages on their way to the thread: as many as a picture keeps, and time to draw it.
const IN_FLIGHT: usize = 4096;
/// Least time between two pictures.
const FRAME: Duration = Duration::from_millis(50);
/// Without news, time between two pictures: the clock goes on.
const SECOND: Duration = Duration::from_secs(1);
/// How long the end waits for a terminal that takes nothing; less than a watch gives its output for its last words.
const PATIENCE: Duration = Duration::from_millis(1000);

/// How the view looks.
#[derive(Clone, Debug)]
pub struct Look {
    /// Whether colours may be used.
    pub colour: bool,
    /// In which zone times are shown.
    pub zone: jiff::tz::TimeZone,
}

/// Shows a run on the terminal, and its summary by another sink after that.
pub struct LiveSink {
    look: Look,
    look_at: LookAt,
    log: Log,
    /// Prints the summary.
    after: Box<dyn Sink + Send>,
    /// From the session to the summary.
    thread: Option<Thread>,
}

impl fmt::Debug for LiveSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSink").field("thread", &self.thread).finish_non_exhaustive()
    }
}

/// The thread that draws.
#[derive(Debug)]
struct Thread {
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
    /// How it ended.
    ended: Receiver<io::Result<()>>,
}

/// What is known on both sides of the queue.
#[derive(Debug, Default)]
struct Shared {
    /// Races that found no room in the queue.
    missed: AtomicU64,
    /// The thread is to end.
    over: AtomicBool,
}

/// What comes to the thread.
enum Message {
    Race(Box<Race>),
    Failure,
    SoFar(Box<Summary>),
    Input(Event),
    Saved(String),
    Over,
}

impl LiveSink {
    /// Takes the terminal at the session and gives it back at the summary, which `after` prints. Rules for what is saved come by
    /// `look_at`.
    #[must_use]
    pub fn new(look: Look, log: Log, look_at: LookAt, after: Box<dyn Sink + Send>) -> Self {
        Self { look, look_at, log, after, thread: None }
    }

    /// Hands a message over if there is room.
    fn offer(&mut self, message: Message) -> io::Result<()> {
        let Some(thread) = &self.thread else { return Ok(()) };
        match thread.messages.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Message::Race(_))) => {
                thread.shared.missed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => self.end(),
        }
    }

    /// Ends the thread, and gives the terminal back even when that stands still.
    fn end(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.shared.over.store(true, Ordering::Relaxed);
        // Where the queue is full, the thread looks at the flag.
        let _full = thread.messages.try_send(Message::Over);
        let ended = thread.ended.recv_timeout(PATIENCE);
        leave();
        self.log.release();
        let missed = thread.shared.missed.load(Ordering::Relaxed);
        if missed > 0 {
            tracing::warn!("{missed} races were not in the view: they came faster than the terminal took it");
        }
        match ended {
            Ok(ended) => ended,
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the view's thread panicked")),
        }
    }
}

/// A run that ends before its time leaves the terminal as it was, too.
impl Drop for LiveSink {
    fn drop(&mut self) {
        // Why it ends is known already.
        let _ = self.end();
    }
}

impl Sink for LiveSink {
    fn session(&mut self, session: &Session) -> io::Result<()> {
        let screen = Screen::enter()?;
        self.log.hold();
        let (messages, queue) = mpsc::sync_channel(IN_FLIGHT);
        let (tell, ended) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let Look { colour, zone } = self.look.clone();
        let picture = Picture::new(session.started, session.clock);
        let drawing = Drawing {
            view: View::new(picture, Size::default(), colour, zone),
            screen,
            session: session.clone(),
            log: self.log.clone(),
            look_at: self.look_at,
            shared: Arc::clone(&shared),
            messages: messages.clone(),
            saving: false,
        };
        thread::Builder::new().name("view".to_owned()).spawn(move || {
            // Nobody listens any more when the terminal stood still for too long.
            let _ = tell.send(drawing.run(&queue));
        })?;
        read_keys(messages.clone())?;
        self.thread = Some(Thread { messages, shared, ended });
        Ok(())
    }

    fn race(&mut self, race: &Race, _clock: WallClock) -> io::Result<()> {
        self.offer(Message::Race(Box::new(race.clone())))
    }

    fn failure(&mut self, _failure: &Failure, _clock: WallClock) -> io::Result<()> {
        self.offer(Message::Failure)
    }

    fn follows(&self) -> bool {
        true
    }

    fn so_far(&mut self, summary: &Summary) -> io::Result<()> {
        self.offer(Message::SoFar(Box::new(summary.clone())))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.end()?;
        self.after.summary(summary)
    }
}

/// Reads keys and changes of size on a thread of their own. It ends with the view at the next key, or with the process.
fn read_keys(messages: SyncSender<Message>) -> io::Result<()> {
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while let Ok(event) = event::read()
            && messages.send(Message::Input(event)).is_ok()
        {}
    })?;
    Ok(())
}

/// Everything the thread has.
struct Drawing {
    view: View,
    screen: Screen,
    session: Session,
    log: Log,
    look_at: LookAt,
    shared: Arc<Shared>,
    /// For those that work for it.
    messages: SyncSender<Message>,
    saving: bool,
}

impl Drawing {
    fn run(mut self, queue: &Receiver<Message>) -> io::Result<()> {
        self.screen.draw(&mut self.view)?;
        let mut drawn = Instant::now();
        let mut news = false;
        while !self.shared.over.load(Ordering::Relaxed) {
            let next = drawn + if news { FRAME } else { SECOND };
            match queue.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Message::Over) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => {
                    self.take(message)?;
                    news = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(line) = self.log.news() {
                self.view.say(line);
            }
            if Instant::now() >= drawn + if news { FRAME } else { SECOND } {
                self.view.picture.missed(self.shared.missed.load(Ordering::Relaxed));
                self.view.picture.at(KernelTime::now());
                self.screen.draw(&mut self.view)?;
                (drawn, news) = (Instant::now(), false);
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::Race(race) => self.view.picture.race(Arc::from(race)),
            Message::Failure => self.view.picture.failure(),
            Message::SoFar(summary) => self.view.picture.so_far(*summary),
            Message::Saved(said) => {
                self.saving = false;
                self.view.say(said);
            }
            Message::Input(Event::Key(key)) if key.kind != KeyEventKind::Release => match self.view.key(key) {
                // As the terminal itself does without a view.
                Some(Action::Quit) => {
                    self.view.say("ending".to_owned());
                    kill_process(getpid(), Signal::INT)?;
                }
                Some(Action::Suspend) => self.screen.suspend()?,
                Some(Action::Save) => self.save()?,
                None => {}
            },
            Message::Input(_) | Message::Over => {}
        }
        Ok(())
    }

    /// Writes evidence on a thread of its own, one at a time: rules are read for it, and disks are slow.
    fn save(&mut self) -> io::Result<()> {
        let races = self.view.to_save();
        if self.saving || races.is_empty() {
            self.view.say(if self.saving { "still saving" } else { "nothing to save" }.to_owned());
            return Ok(());
        }
        self.saving = true;
        self.view.say(format!("saving {} races", races.len()));
        let (session, look_at, messages) = (self.session.clone(), self.look_at, self.messages.clone());
        let from = self.view.shown_from();
        thread::Builder::new().name("save".to_owned()).spawn(move || {
            let said = match save(Path::new("."), &session, &races, from, look_at) {
                Ok(path) => format!("saved {} races in {}", races.len(), path.display()),
                Err(error) => format!("not saved: {error}"),
            };
            // The view may have ended meanwhile; the file is there all the same.
            let _ = messages.send(Message::Saved(said));
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::golden::{clock, collision, summaries};
    use crate::output::json::JsonSink;

    #[test]
    fn a_view_that_stands_still_is_not_waited_for_and_what_it_misses_is_counted() {
        let (messages, queue) = mpsc::sync_channel(2);
        let (tell, ended) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let look = Look { colour: false, zone: jiff::tz::TimeZone::UTC };
        let after = Box::new(JsonSink::new(io::sink()));
        let mut sink = LiveSink::new(look, Log::default(), |_| crate::audit::Look::default(), after);
        sink.thread = Some(Thread { messages, shared: Arc::clone(&shared), ended });
        for _ in 0..5 {
            sink.race(&collision(), clock()).unwrap();
        }
        let (_, summary) = &summaries()[0];
        sink.so_far(summary).unwrap();
        assert_eq!(shared.missed.load(Ordering::Relaxed), 3);
        // Neither is its end, for long.
        sink.summary(summary).unwrap();
        drop((queue, tell));
    }

    #[test]
    fn a_view_that_failed_ends_the_run_with_its_error() {
        let (messages, queue) = mpsc::sync_channel(2);
        let (tell, ended) = mpsc::channel();
        let look = Look { colour: false, zone: jiff::tz::TimeZone::UTC };
        let after = Box::new(JsonSink::new(io::sink()));
        let mut sink = LiveSink::new(look, Log::default(), |_| crate::audit::Look::default(), after);
        sink.thread = Some(Thread { messages, shared: Arc::default(), ended });
        tell.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        drop(queue);
        let error = sink.race(&collision(), clock()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
