//! The sink on a thread of its own: a reader that reads no more must not keep us from draining the ring, nor from ending.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::output::Sink;
use crate::race::event::Race;
use crate::race::time::WallClock;
use crate::session::Session;
use crate::summary::Summary;

/// Messages on their way to the thread.
const IN_FLIGHT: usize = 64;
/// How long the output may stand still when everything else has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is written.
#[derive(Debug)]
pub(super) enum Message {
    Session(Box<Session>),
    Race(Box<Race>, WallClock),
    Summary(Box<Summary>),
}

/// Writes messages in their order.
#[derive(Debug)]
pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    /// How the thread ended: with the last message, or at the first error.
    end: oneshot::Receiver<io::Result<()>>,
    waiting: VecDeque<Message>,
}

impl Writer {
    pub(super) fn start(sink: Box<dyn Sink + Send>) -> io::Result<Self> {
        let (messages, queue) = mpsc::channel(IN_FLIGHT);
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            // Nobody listens any more when the output stood still for too long.
            let _ = ended.send(write_all(sink, queue));
        })?;
        Ok(Self { messages, end, waiting: VecDeque::new() })
    }

    /// Puts a message behind those that wait; [`Self::progress`] hands them over.
    pub(super) fn push(&mut self, message: Message) {
        self.waiting.push_back(message);
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Hands the first message that waits to the thread, as soon as it takes one. Ends with the thread's error; waits for
    /// one when there is no message. Dropped before its end, it has done nothing.
    pub(super) async fn progress(&mut self) -> io::Result<()> {
        tokio::select! {
            permit = self.messages.reserve(), if !self.waiting.is_empty() => {
                if let (Ok(permit), Some(message)) = (permit, self.waiting.pop_front()) {
                    permit.send(message);
                    return Ok(());
                }
            }
            end = &mut self.end => return Err(ended(end)),
        }
        // The thread takes no more messages: its error is on its way.
        Err(ended((&mut self.end).await))
    }

    /// Hands over everything that waits, and waits until it is written.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        let still = || io::Error::new(io::ErrorKind::TimedOut, "nobody takes it");
        while !self.waiting.is_empty() {
            timeout(PATIENCE, self.progress()).await.map_err(|_elapsed| still())??;
        }
        drop(self.messages);
        match timeout(PATIENCE, self.end).await {
            Ok(end) => end.unwrap_or_else(|_panicked| Err(io::Error::other("the output's thread panicked"))),
            Err(_elapsed) => Err(still()),
        }
    }
}

/// The error of a thread that ended before its time.
fn ended(end: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Error {
    match end {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => io::Error::other("the output's thread ended"),
    }
}

fn write_all(mut sink: Box<dyn Sink + Send>, mut queue: mpsc::Receiver<Message>) -> io::Result<()> {
    while let Some(message) = queue.blocking_recv() {
        match message {
            Message::Session(session) => sink.session(&session)?,
            Message::Race(race, clock) => sink.race(&race, clock)?,
            Message::Summary(summary) => sink.summary(&summary)?,
        }
    }
    Ok(())
}
