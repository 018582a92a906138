//! Whether watching changes what is watched: the share of rounds in which two senders collide, beside every way to watch.

use anyhow::{Context, Result};

use super::figure::Figure;
use super::{Effort, ways};
use crate::observe::{ratio, turns};
use crate::statistics::mean;
use crate::ways::Way;

/// How often each way has its turn.
const TURNS: usize = 60;
/// Rounds of a turn. Shares differ more from turn to turn than chance has them differ within one, so more rounds tell little.
const ROUNDS: u32 = 50;

/// Prints the share of every way.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let mut all = vec![Way::Nothing];
    all.extend(ways());
    let shares = turns(&all, effort.of(TURNS, 1), effort.of(ROUNDS, 10))?;
    let bare = shares.first().context("there is a way")?;
    for (way, shares) in all.into_iter().zip(&shares) {
        // In a few rounds there may be no collision to compare with.
        let comparable = way != Way::Nothing && mean(bare) > 0.0;
        let ratio = comparable.then(|| ratio(shares, bare));
        Figure::Collisions { way: way.name(), turns: shares.len(), share: mean(shares), ratio }.tell()?;
    }
    Ok(())
}
