//! The observer's effect: how often two senders collide with nothing attached, and with snat-trace watching. The traffic is a
//! lab's that traces nothing; the share of rounds with a collision comes from the kernel's counters, not from us.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use snat_trace::lab::{Lab, Mode, Scenario as Traffic, Setup};

use crate::output::Running;
use crate::places::until;
use crate::scenario::{Row, Scenario, observation};

/// The only one.
pub const SCENARIOS: &[Scenario] = &[observation("observer effect", observer_effect)];

/// Ways to watch, by name, and the arguments of `snat-trace watch`.
const MODES: [(&str, &[&str]); 3] = [("minimal", &["--detail", "minimal"]), ("full", &[]), (COSTLY, &["--failures"])];

/// The way that may change what it observes, as its users are told: half of each return probe lies in the window.
const COSTLY: &str = "full, --failures";

/// All ways, the first being that nothing is attached.
const WAYS: usize = MODES.len() + 1;

/// How often each way has its turn.
const TURNS: usize = 40;

/// Rounds of a turn.
const ROUNDS: u32 = 125;

/// Two-sided 95 % quantile of Student's t with `TURNS - 1` degrees of freedom.
const T: f64 = 2.023;

/// Shares of rounds with a collision, one for each turn.
type Shares = Vec<f64>;

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
    ratio: Option<[f64; 3]>,
}

/// Nothing attached and every way to watch, in turns, in one guest. The mean share at either level of detail must lie within
/// the spread of nothing attached: one standard deviation of a turn.
///
/// # Errors
///
/// It does not, or a lab or a tracer fails.
pub fn observer_effect() -> Result<Row> {
    let mut ways = [const { Shares::new() }; WAYS];
    for turn in 0..TURNS {
        for (all, share) in ways.iter_mut().zip(turns(turn)?) {
            all.push(share);
        }
    }
    let [bare, watched @ ..] = ways;
    let none = Effect::of("nothing", &bare, None);
    none.tell()?;
    let mut text = format!("{:.1} % of rounds collide with nothing attached", none.share * 100.0);
    let mut wrong = Vec::new();
    for ((mode, _), shares) in MODES.into_iter().zip(&watched) {
        let effect = Effect::of(mode, shares, Some(&bare));
        effect.tell()?;
        if let Some([ratio, low, high]) = effect.ratio {
            text.push_str(&format!("; {mode} {ratio:.3} ({low:.3} to {high:.3}) of it"));
        }
        if mode != COSTLY && (effect.share - none.share).abs() > none.deviation {
            wrong.push(mode);
        }
    }
    ensure!(wrong.is_empty(), "{} changes what it observes: {text}", wrong.join(" and "));
    Ok(Row::said(text))
}

impl Effect {
    fn of(mode: &'static str, shares: &[f64], bare: Option<&[f64]>) -> Self {
        let ratio = bare.map(|bare| {
            let differences: Shares = shares.iter().zip(bare).map(|(watched, bare)| watched - bare).collect();
            let (reference, difference) = (mean(bare), mean(&differences));
            let half = T * deviation(&differences) / count(&differences).sqrt();
            [difference, difference - half, difference + half].map(|difference| 1.0 + difference / reference)
        });
        Self { mode, turns: shares.len(), rounds: ROUNDS, share: mean(shares), deviation: deviation(shares), ratio }
    }

    /// A line for xtask.
    fn tell(&self) -> Result<()> {
        println!("observer {}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// `snat-trace watch`, attached. What it prints goes nowhere.
fn watching(arguments: &[&str]) -> Result<Running> {
    let ready = Path::new("/tmp/ready-observer");
    let _absent = fs::remove_file(ready);
    let nowhere = File::options().write(true).open("/dev/null")?;
    let path = ready.to_str().context("a path is text")?;
    let mut watch =
        Running::into_file(&[&["watch", "--format", "json", "--ready-file", path], arguments].concat(), nowhere)?;
    let child = watch.child()?;
    until("the ready file", || ready.exists() || child.try_wait().is_ok_and(|status| status.is_some()))?;
    ensure!(ready.exists(), "watch ended early");
    Ok(watch)
}

/// One turn of every way in one lab, from way `first` on, so that what drifts with time falls on all alike: the share of rounds
/// with a collision of each.
fn turns(first: usize) -> Result<[f64; WAYS]> {
    let rounds = ROUNDS * u32::try_from(WAYS)?;
    let setup = Setup { rounds, mode: Mode::Natural, ..Setup::new(Traffic::SnatUdp) };
    let mut lab = Lab::build(&setup)?;
    let order: Vec<usize> = (0..WAYS).map(|step| (first + step) % WAYS).collect();
    let mut next = order.iter();
    let attach =
        |way: Option<&usize>| way.and_then(|&way| way.checked_sub(1)).map(|mode| watching(MODES[mode].1)).transpose();
    let mut watch = attach(next.next())?;
    let mut lost = Vec::new();
    let mut wrong = None;
    let stop = AtomicBool::new(false);
    let truth = lab.run(&stop, |progress| {
        if progress.rounds.is_multiple_of(ROUNDS) {
            lost.push(progress.lost);
            let changed = watch.take().map(Running::interrupt).transpose().and_then(|_ended| attach(next.next()));
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
    let mut shares = [0.0; WAYS];
    let mut before = 0;
    for (way, lost) in order.into_iter().zip(lost) {
        shares[way] = f64::from(u32::try_from(lost - before)?) / f64::from(ROUNDS);
        before = lost;
    }
    Ok(shares)
}

#[expect(clippy::cast_precision_loss, reason = "a few turns")]
fn count(numbers: &[f64]) -> f64 {
    numbers.len() as f64
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / count(numbers)
}

/// Standard deviation of a sample.
fn deviation(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>();
    (squares / (count(numbers) - 1.0)).sqrt()
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
        // 0.1 * sqrt(40 / 39) * 2.023 / sqrt(40)
        assert!(
            (ratio - 1.0).abs() < 1e-9 && ((high - low) / 2.0 * reference - 0.032_394).abs() < 1e-5,
            "{low} {high}"
        );
        assert!((deviation(&[1.0, 2.0, 3.0]) - 1.0).abs() < 1e-12);
    }
}
