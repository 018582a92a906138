//! A thread that looks for names, so that nobody else waits for a disk that hangs or a runtime that is stuck.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread;

use super::key::Key;
use super::known::Known;

/// Questions that may wait for the thread.
const QUEUE: usize = 256;

/// Who answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Disk,
    Sockets,
}

/// What somebody knows of a container; there may be nothing to it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) source: Source,
    pub(super) key: Key,
    pub(super) known: Known,
}

/// The thread, as those see it who ask. It ends when there is nobody left to ask, and what it waits for has come.
#[derive(Debug)]
pub(super) struct Worker {
    questions: SyncSender<Key>,
    late: bool,
}

impl Worker {
    /// Starts a thread that answers each question by `look`.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) fn start(
        source: Source,
        answers: Sender<Answer>,
        mut look: impl FnMut(&Key) -> Known + Send + 'static,
    ) -> io::Result<Self> {
        let (questions, asked) = sync_channel::<Key>(QUEUE);
        let name = match source {
            Source::Disk => "names-disk",
            Source::Sockets => "names-sockets",
        };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for key in asked {
                let known = look(&key);
                if answers.send(Answer { source, key, known }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { questions, late: false })
    }

    /// Whether it takes the question. It does not when too many wait.
    pub(super) fn ask(&mut self, key: &Key) -> bool {
        self.questions.try_send(key.clone()).is_ok()
    }

    /// Somebody has waited in vain.
    pub(super) fn is_late(&mut self) {
        self.late = true;
    }

    pub(super) fn has_answered(&mut self) {
        self.late = false;
    }

    /// Whether it answers, as far as is known.
    pub(super) fn is_in_time(&self) -> bool {
        !self.late
    }
}
