//! How long it takes until everything is attached.

use std::time::Instant;

use anyhow::{Context, Result};

use super::figure::Figure;
use super::generator::Generator;
use super::{Effort, ways};
use crate::statistics::median_and_range;

/// Starts of each way.
const RUNS: usize = 10;

/// Prints the times of every way.
pub(super) fn measure(effort: Effort) -> Result<()> {
    // Where tools of a network namespace are at home.
    let generator = Generator::new()?;
    for way in ways() {
        let mut times = Vec::new();
        for _ in 0..effort.of(RUNS, 1) {
            let start = Instant::now();
            let attached = way.attach(generator.node())?;
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            attached.end()?;
        }
        let milliseconds = median_and_range(&times).context("there was a start")?;
        Figure::Start { way: way.name(), runs: times.len(), milliseconds }.tell()?;
    }
    Ok(())
}
