//! The observer's effect: how often two senders collide with nothing attached, and with snat-trace watching. The traffic is a
//! lab's that traces nothing; the share of rounds with a collision comes from the kernel's counters, not from us.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use snat_trace::lab::{Lab, Mode, Scenario as Traffic, Setup};

use crate::scenario::{Row, Scenario, observation};
use crate::statistics::{Interval, deviation, interval, mean};
use crate::ways::{Attached, Way};

/// The only one.
pub const SCENARIOS: &[Scenario] = &[observation("observer effect", observer_effect)];

/// Ways to watch, the first being that nothing is attached, and what they are called.
const MODES: [(Way, &str); 4] =
    [(Way::Nothing, "nothing"), (Way::Minimal, "minimal"), (Way::Full, "full"), (Way::Failures, "full, --failures")];

/// The way that may change what it observes, as its users are told: half of each return probe lies in the window.
const COSTLY: Way = Way::Failures;

/// How often each way has its turn.
const TURNS: usize = 24;

/// Rounds of a turn. Shares differ more from turn to turn than chance has them differ within one, so more would tell little.
const ROUNDS: u32 = 50;

/// Shares of rounds with a collision, one for each turn.
pub type Shares = Vec<f64>;

/// What is told of one way to watch.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Effect {
    mode: &'static str,
    turns: usize,
    rounds: u32,
    /// Mean share of rounds with a collision.
    share: f64,
    /// Standard deviation of the share of one turn.
    deviation: f64,
    /// Of the share to that with nothing attached, with the bounds of its 95 % interval from the paired differences.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Interval>,
}

/// Nothing attached and every way to watch, in turns, in one guest. The mean share at either level of detail must lie within
/// the spread of nothing attached: one standard deviation of a turn.
///
/// # Errors
///
/// It does not, or a lab or a tracer fails.
pub fn observer_effect() -> Result<Row> {
    let all = turns(&MODES.map(|(way, _)| way), TURNS, ROUNDS)?;
    let (bare, watched) = all.split_first().context("there is a way")?;
    let none = Effect::of(MODES[0].1, bare, None);
    none.tell()?;
    let mut text = format!("{:.1} % of rounds collide with nothing attached", none.share * 100.0);
    let mut wrong = Vec::new();
    for ((way, mode), shares) in MODES.into_iter().skip(1).zip(watched) {
        let effect = Effect::of(mode, shares, Some(bare));
        effect.tell()?;
        if let Some([ratio, low, high]) = effect.ratio {
            text.push_str(&format!("; {mode} {ratio:.3} ({low:.3} to {high:.3}) of it"));
        }
        if way != COSTLY && (effect.share - none.share).abs() > none.deviation {
            wrong.push(mode);
        }
    }
    ensure!(wrong.is_empty(), "{} changes what it observes: {text}", wrong.join(" and "));
    Ok(Row::said(text))
}

impl Effect {
    fn of(mode: &'static str, shares: &[f64], bare: Option<&[f64]>) -> Self {
        let ratio = bare.map(|bare| ratio(shares, bare));
        Self { mode, turns: shares.len(), rounds: ROUNDS, share: mean(shares), deviation: deviation(shares), ratio }
    }

    /// A line for xtask.
    fn tell(&self) -> Result<()> {
        println!("observer {}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// Of shares to those with nothing attached, from the differences between turns of the same number: a drift that both have is
/// in neither.
#[must_use]
pub fn ratio(shares: &[f64], bare: &[f64]) -> Interval {
    let differences: Shares = shares.iter().zip(bare).map(|(watched, bare)| watched - bare).collect();
    let reference = mean(bare);
    interval(&differences).map(|difference| 1.0 + difference / reference)
}

/// So many turns of every way, of so many rounds each: the share of rounds with a collision, of each way and turn. Each time
/// another way comes first.
///
/// # Errors
///
/// A lab fails, or a way to watch.
pub fn turns(ways: &[Way], turns: usize, rounds: u32) -> Result<Vec<Shares>> {
    let mut all = vec![Shares::new(); ways.len()];
    for turn in 0..turns {
        let order: Vec<usize> = (0..ways.len()).map(|step| (turn + step) % ways.len()).collect();
        let in_turn: Vec<Way> = order.iter().map(|&way| ways[way]).collect();
        for (way, share) in order.into_iter().zip(one_turn(&in_turn, rounds)?) {
            all[way].push(share);
        }
    }
    Ok(all)
}

/// One turn of every way in one lab, so that what drifts with time falls on all alike: the share of rounds with a collision.
fn one_turn(ways: &[Way], rounds: u32) -> Result<Shares> {
    let all = rounds * u32::try_from(ways.len())?;
    let setup = Setup { rounds: all, mode: Mode::Natural, ..Setup::new(Traffic::SnatUdp) };
    let mut lab = Lab::build(&setup)?;
    let node = lab.node_netns().try_clone_to_owned()?;
    let mut next = ways.iter();
    let mut attach = || next.next().map(|way| way.attach(node.as_fd())).transpose();
    let mut watch = attach()?;
    let mut lost = Vec::new();
    let mut wrong = None;
    let stop = AtomicBool::new(false);
    let truth = lab.run(&stop, |progress| {
        if progress.rounds.is_multiple_of(rounds) {
            lost.push(progress.lost);
            let changed = watch.take().map(Attached::end).transpose().and_then(|_ended| attach());
            watch = changed.unwrap_or_else(|error| {
                wrong = Some(error);
                stop.store(true, Ordering::Relaxed);
                None
            });
        }
    });
    if let Some(error) = wrong {
        return Err(error);
    }
    let counted = usize::try_from(truth?.insert_failed)?;
    ensure!(lost.last() == Some(&counted), "{lost:?} packets were lost, and {counted} failed inserts counted");
    let before = std::iter::once(0).chain(lost.iter().copied());
    lost.iter()
        .zip(before)
        .map(|(lost, before)| Ok(f64::from(u32::try_from(lost - before)?) / f64::from(rounds)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_and_its_interval_come_from_paired_differences() {
        // A drift that both share is in neither.
        let bare: Shares = (0..TURNS).map(|turn| 0.2 + 0.01 * f64::from(u32::try_from(turn).unwrap())).collect();
        let reference = mean(&bare);
        let half: Shares = bare.iter().map(|share| share - 0.1).collect();
        let [ratio, low, high] = Effect::of("full", &half, Some(&bare)).ratio.unwrap();
        let expected = 1.0 - 0.1 / reference;
        assert!([ratio, low, high].iter().all(|bound| (bound - expected).abs() < 1e-9), "{ratio} {low} {high}");
        let swinging: Shares = bare.iter().enumerate().map(|(turn, share)| share + [0.1, -0.1][turn % 2]).collect();
        let [ratio, low, high] = Effect::of("full", &swinging, Some(&bare)).ratio.unwrap();
        // 0.1 * sqrt(24 / 23) * 2.06866 / sqrt(24)
        assert!(
            (ratio - 1.0).abs() < 1e-9 && ((high - low) / 2.0 * reference - 0.043_134).abs() < 1e-5,
            "{low} {high}"
        );
    }
}
