//! The tool's own log while the screen is the view's: kept, to be said afterwards.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use crate::output::escape_lines;

/// So many lines are kept, the first ones; of more, only the number.
const KEPT: usize = 200;

/// Standard error, or what is to come there later. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// The screen is not for lines now.
    held: bool,
    kept: Vec<u8>,
    count: usize,
    left_out: u64,
    /// The last one, until the view has shown it.
    news: Option<String>,
}

impl Log {
    /// Keeps lines from now on, if they would come to a terminal.
    pub(super) fn hold(&self) {
        self.lines().held = io::stderr().is_terminal();
    }

    /// Says what was kept, and from now on everything at once.
    pub fn release(&self) {
        let mut lines = self.lines();
        let Lines { held, kept, left_out, .. } = std::mem::take(&mut *lines);
        if held {
            let mut out = io::stderr().lock();
            // There is nowhere else to say that it cannot be said.
            let _ = out.write_all(&kept);
            if left_out > 0 {
                let _ = writeln!(out, " WARN {left_out} more lines were left out while the view was shown");
            }
        }
    }

    /// The last line that came since this was last asked.
    pub(super) fn news(&self) -> Option<String> {
        self.lines().news.take()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // A line half written is still worth saying.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Log {
    /// Takes a whole line. Names in it may be from outside.
    fn write(&mut self, whole: &[u8]) -> io::Result<usize> {
        let escaped = escape_lines(&String::from_utf8_lossy(whole));
        let line = escaped.as_bytes();
        let mut lines = self.lines();
        if !lines.held {
            return io::stderr().write_all(line).map(|()| whole.len());
        }
        lines.news = Some(escaped.trim().to_owned());
        if lines.count < KEPT {
            lines.kept.extend_from_slice(line);
            lines.count += 1;
        } else {
            lines.left_out += 1;
        }
        Ok(whole.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
