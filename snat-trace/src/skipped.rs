//! Tests that cannot run here say so.

use std::fmt::Display;
use std::io::Write as _;

/// Says why the calling test does not run: past the macros that print, whose output is only shown of tests that fail.
pub(crate) fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped {}: {why}", thread.name().unwrap_or("a test"));
}
