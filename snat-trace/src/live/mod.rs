//! The live view: a run as a picture on a terminal, instead of a line for each race.
//!
//! [`View`] is what is to be seen and what keys do to it, and [`draw()`] makes cells of it: both are pure. [`LiveSink`] is the sink
//! that feeds it, over a bounded queue that it never waits for, and the thread that draws is the only one that waits for the
//! terminal.

mod details;
mod draw;
mod log;
mod picture;
mod save;
mod screen;
mod sink;
mod text;
mod view;
mod words;

pub use draw::draw;
pub use log::Log;
pub use picture::{KEPT, Picture};
pub use save::save;
pub use screen::leave;
pub use sink::{LiveSink, Look};
pub use view::{Action, View};

#[cfg(test)]
mod tests;
