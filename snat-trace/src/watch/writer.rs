//! The sink on a thread of its own: a reader that reads no more must not keep us from draining the ring, nor from ending.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::counters::figures::Tally;
use crate::evidence::Sample;
use crate::output::Sink;
use crate::race::event::{NetnsInum, Race};
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::session::Session;
use crate::summary::Summary;

/// Messages on their way to the thread.
const IN_FLIGHT: usize = 16;
/// How long the output may stand still when everything else has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is written.
#[derive(Debug)]
pub(super) enum Message {
    Session(Box<Session>),
    Race(Box<Race>, WallClock),
    Failure(Box<Failure>, WallClock),
    Samples(Box<Samples>, WallClock),
    SoFar(Box<Summary>),
    Summary(Box<Summary>),
}

/// One reading of the counters.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) time: KernelTime,
    pub(super) read: Vec<(NetnsInum, Tally<Option<u64>>)>,
    /// How many more there would be with it and since the one before.
    pub(super) left_out: u64,
}

impl Samples {
    /// Takes the place of one that there was no time for.
    pub(super) fn instead_of(mut self: Box<Self>, other: Option<Box<Self>>) -> Box<Self> {
        self.left_out += other.map_or(0, |other| other.left_out + other.read.len() as u64);
        self
    }

    fn write(self, sink: &mut (dyn Sink + Send), clock: WallClock) -> io::Result<()> {
        let Self { time, read, mut left_out } = self;
        read.into_iter().try_for_each(|(netns, counters)| {
            let left_out = std::mem::take(&mut left_out);
            sink.sample(&Sample { time, netns, counters, left_out }, clock)
        })
    }
}

/// The right to hand one message over.
pub(super) type Room<'a> = mpsc::Permit<'a, Message>;

/// Writes messages in their order.
#[derive(Debug)]
pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    /// Whether the sink wants [`Message::SoFar`].
    follows: bool,
    /// Whether it wants [`Message::Samples`] of every namespace.
    wants_samples: bool,
    /// How the thread ended: with the last message, or at the first error.
    end: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    pub(super) fn start(sink: Box<dyn Sink + Send>) -> io::Result<Self> {
        let (follows, wants_samples) = (sink.follows(), sink.wants_samples());
        let (messages, queue) = mpsc::channel(IN_FLIGHT);
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            // Nobody listens any more when the output stood still for too long.
            let _ = ended.send(write_all(sink, queue));
        })?;
        Ok(Self { messages, follows, wants_samples, end })
    }

    /// Whether what the run comes to so far is wanted.
    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    /// Whether samples of every namespace are wanted from the start.
    pub(super) fn wants_samples(&self) -> bool {
        self.wants_samples
    }

    /// Waits until the thread takes a message; unless one is `wanted`, for as long as the thread lives. Dropped before its
    /// end, it has done nothing.
    ///
    /// # Errors
    ///
    /// The thread's, as soon as it has one.
    pub(super) async fn room(&mut self, wanted: bool) -> io::Result<Room<'_>> {
        tokio::select! {
            room = self.messages.reserve(), if wanted => if let Ok(room) = room {
                return Ok(room);
            },
            end = &mut self.end => return Err(ended(end)),
        }
        // The thread takes no more messages: its error is on its way.
        Err(ended((&mut self.end).await))
    }

    /// As [`room`](Self::room), when there is nothing else to do than to wait for it.
    ///
    /// # Errors
    ///
    /// As there; and when the output stands still.
    pub(super) async fn room_at_last(&mut self) -> io::Result<Room<'_>> {
        timeout(PATIENCE, self.room(true)).await.map_err(|_elapsed| stands_still())?
    }

    /// Hands over what may be left out, unless the thread has enough to do; then it comes back.
    pub(super) fn offer(&self, message: Message) -> Option<Message> {
        self.messages.try_send(message).err().map(TrySendError::into_inner)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    ///
    /// The thread's; and when the output stands still.
    pub(super) async fn finish(self) -> io::Result<()> {
        // As long as one more is taken in time, it does not stand still.
        while self.messages.capacity() < IN_FLIGHT {
            let one_more = self.messages.reserve_many(self.messages.capacity() + 1);
            if timeout(PATIENCE, one_more).await.map_err(|_elapsed| stands_still())?.is_err() {
                break;
            }
        }
        drop(self.messages);
        match timeout(PATIENCE, self.end).await {
            Ok(end) => end.unwrap_or_else(|_panicked| Err(io::Error::other("the output's thread panicked"))),
            Err(_elapsed) => Err(stands_still()),
        }
    }
}

fn stands_still() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nobody takes it")
}

/// The error of a thread that ended before its time.
fn ended(end: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Error {
    match end {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => io::Error::other("the output's thread ended"),
    }
}

fn write_all(mut sink: Box<dyn Sink + Send>, mut queue: mpsc::Receiver<Message>) -> io::Result<()> {
    loop {
        let message = match queue.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                sink.pause()?;
                let Some(message) = queue.blocking_recv() else { break };
                message
            }
            Err(TryRecvError::Disconnected) => break,
        };
        match message {
            Message::Session(session) => sink.session(&session)?,
            Message::Race(race, clock) => sink.race(&race, clock)?,
            Message::Failure(failure, clock) => sink.failure(&failure, clock)?,
            Message::Samples(samples, clock) => samples.write(&mut *sink, clock)?,
            Message::SoFar(summary) => sink.so_far(&summary)?,
            Message::Summary(summary) => sink.summary(&summary)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::clock;

    #[derive(Default)]
    struct Counts(Vec<u64>);

    impl Sink for Counts {
        fn session(&mut self, _: &Session) -> io::Result<()> {
            Ok(())
        }

        fn race(&mut self, _: &Race, _: WallClock) -> io::Result<()> {
            Ok(())
        }

        fn failure(&mut self, _: &Failure, _: WallClock) -> io::Result<()> {
            Ok(())
        }

        fn sample(&mut self, sample: &Sample, _: WallClock) -> io::Result<()> {
            self.0.push(sample.left_out);
            Ok(())
        }

        fn summary(&mut self, _: &Summary) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn samples_that_found_no_room_are_counted_once() {
        let read = |count: u32, left_out| {
            let read = (0..count).map(|number| (NetnsInum(number), Tally::default())).collect();
            Box::new(Samples { time: KernelTime::from_record(1).unwrap(), read, left_out })
        };
        let mut sink = Counts::default();
        read(2, 1).instead_of(Some(read(3, 4))).write(&mut sink, clock()).unwrap();
        assert_eq!(sink.0, [8, 0]);
    }
}
