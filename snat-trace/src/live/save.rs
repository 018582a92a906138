//! What is on the screen as a file of evidence.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::counters::account::Delta;
use crate::counters::accounts::Closed;
use crate::evidence::{Existing, Limits, LookAt, OpenError, Recorder};
use crate::output::Sink;
use crate::output::json::JsonSink;
use crate::probe::KernelCounts;
use crate::race::event::Race;
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::{Span, Totals};

/// So many files of one second are told apart by a number.
const SAME_SECOND: u32 = 100;

/// Why the counters stand in no account of such a file.
const NOT_READ: &str = "these races were saved from the live view, which does not read the counters for them";

/// Writes races, the oldest first, to a new file below `folder`, with the machine and the rules of their network namespaces, and
/// a summary of these races alone. `from` is since when there were no others to be shown.
///
/// # Errors
///
/// See [`OpenError`]; or the file could not be written whole.
pub fn save(
    folder: &Path,
    session: &Session,
    races: &[Arc<Race>],
    from: KernelTime,
    look_at: LookAt,
) -> Result<PathBuf, OpenError> {
    let now = KernelTime::now();
    let name = session.clock.wall(now).strftime("snat-trace-%Y%m%dT%H%M%SZ").to_string();
    let (path, mut recorder) = create(folder, &name, look_at)?;
    let span = Span { started: from, ended: now, clock: session.clock };
    write(&mut recorder, session, races, span).map_err(|error| OpenError::Io(path.clone(), error))?;
    Ok(path)
}

/// A file that was not there.
fn create(folder: &Path, name: &str, look_at: LookAt) -> Result<(PathBuf, Recorder), OpenError> {
    let mut number = 1;
    loop {
        let path = if number == 1 { format!("{name}.zst") } else { format!("{name}-{number}.zst") };
        let path = folder.join(path);
        // They are shown already.
        let shown = Box::new(JsonSink::new(io::sink()));
        match Recorder::open(&path, Existing::Refuse, Limits::default(), false, look_at, shown) {
            Err(OpenError::Exists(_)) if number < SAME_SECOND => number += 1,
            opened => return Ok((path, opened?)),
        }
    }
}

fn write(recorder: &mut Recorder, session: &Session, races: &[Arc<Race>], span: Span) -> io::Result<()> {
    let mut totals = Totals::default();
    recorder.session(session)?;
    for race in races {
        totals.add(race, session.request.detail);
        recorder.race(race, session.clock)?;
    }
    let namespaces: BTreeSet<_> = races.iter().filter_map(|race| race.netns).collect();
    let unread = |netns| Delta { netns, counters: Err(NOT_READ.to_owned()), caveat: None };
    let closed = Closed { deltas: namespaces.into_iter().map(unread).collect(), ..Closed::default() };
    recorder.summary(&totals.close(span, KernelCounts::default(), &closed))
}
