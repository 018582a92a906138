//! What it costs to watch a node, measured in one guest.

mod collisions;
pub mod figure;
mod generator;
mod growth;
mod hooks;
mod memory;
mod programs;
mod rates;
mod start;
mod storm;

use anyhow::Result;

use crate::ways::Way;

/// Something to measure, by its name.
pub type Part = (&'static str, fn(Effort) -> Result<()>);

/// Everything, in the order it is measured.
pub const PARTS: &[Part] = &[
    ("rates", rates::measure),
    ("hooks", hooks::measure),
    ("collisions", collisions::measure),
    ("start", start::measure),
    ("storm", storm::measure),
    ("memory", memory::measure),
    ("growth", growth::measure),
];

/// How much time is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effort {
    /// As much as it takes to tell a few percent.
    Whole,
    /// As little as shows that everything works: the figures mean nothing.
    Quick,
}

impl Effort {
    fn of<T>(self, whole: T, quick: T) -> T {
        match self {
            Self::Whole => whole,
            Self::Quick => quick,
        }
    }
}

/// Ways to watch that there are here, nothing left out. Who is not here is told.
fn ways() -> Vec<Way> {
    let (here, absent): (Vec<Way>, Vec<Way>) =
        Way::ALL.into_iter().filter(|way| *way != Way::Nothing).partition(|way| way.is_here());
    for way in absent {
        eprintln!("measure: {} is not here, and not measured", way.name());
    }
    here
}
