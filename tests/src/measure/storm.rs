//! The largest burst of collisions that is told while the reader of the ring stands still.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;
use snat_trace_common::ClashRecord;

use super::Effort;
use super::figure::Figure;
use crate::load::Watch;
use crate::process::Usage;
use crate::storm::Storm;

/// Rings from a page to 64 MiB.
const RINGS: [u32; 8] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
/// Longest a burst may take; larger rings are not filled then, and so many were kept as there were.
const LONGEST: Duration = Duration::from_secs(20);
/// How long the reader is looked at to tell whether it is at rest, and the CPU time it may take then: it reads counters once
/// a second.
const LOOK: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_millis(50);
/// How long it may take to read a burst.
const PATIENCE: Duration = Duration::from_secs(120);

/// Prints for each size how many of a burst were told.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let rings = effort.of(&RINGS[..], &RINGS[..2]);
    rings.iter().try_for_each(|ring| burst(*ring)?.tell())
}

/// More collisions than the ring has room for, as each of them takes a record at least.
fn burst(ring_bytes: u32) -> Result<Figure> {
    let storm = Storm::new()?;
    let mut watch = Watch::start(&["--ring-bytes", &ring_bytes.to_string()])?;
    let pid = watch.running.child()?.id();
    watch.running.signal(Signal::STOP)?;
    let most = u64::from(ring_bytes) / size_of::<ClashRecord>() as u64 + 1;
    let start = Instant::now();
    let sent = storm.rage(1, |refused| refused >= most || start.elapsed() > LONGEST)?.refused;
    watch.running.signal(Signal::CONT)?;
    until_at_rest(pid)?;
    let (printed, _) = watch.end()?;
    Ok(Figure::Storm { ring_bytes, sent, kept: printed.races })
}

/// What it has read it works off, and only the time it takes tells when it is done.
fn until_at_rest(pid: u32) -> Result<()> {
    let start = Instant::now();
    loop {
        let before = Usage::of(pid)?;
        thread::sleep(LOOK);
        if Usage::of(pid)?.since(before).cpu <= REST || start.elapsed() > PATIENCE {
            return Ok(());
        }
    }
}
