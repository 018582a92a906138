//! The evidence of a run in one file: what the machine was, every event as the JSON output has it, the counters meanwhile,
//! and the summary; and the way back from the file to the events.
//!
//! A file is a row of zstd frames, each of whole lines and complete in itself, so that one that was cut short is good up to
//! the last whole frame, and one that is good can be added to.

mod frames;
pub mod node;
mod reader;
mod recorder;
mod redact;
mod restore;
mod rules;

pub use frames::{Existing, Limits, OpenError};
pub use reader::{Cut, Evidence, Item, ReadError, Sample, read};
pub use recorder::Recorder;
pub use redact::Redactor;
pub use restore::{NotKnown, clock};
pub use rules::{LookAt, Rules};

#[cfg(test)]
mod real;
#[cfg(test)]
mod tests;
