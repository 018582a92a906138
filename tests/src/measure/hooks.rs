//! What each BPF program costs a flow, or a datagram of an established one.

use anyhow::{Result, ensure};

use super::Effort;
use super::figure::{Figure, Traffic};
use super::generator::{Amount, Generator};
use super::programs::{self, Programs, Runs};
use crate::ways::Way;

/// Flows, or datagrams, of one kind of traffic.
fn amount(traffic: Traffic, effort: Effort) -> Amount {
    Amount::Units(match traffic {
        Traffic::UdpFlows => effort.of(10_000, 100),
        Traffic::TcpFlows => effort.of(3000, 30),
        Traffic::UdpDatagrams => effort.of(100_000, 320),
    })
}

/// Prints runs and times of every program: those of full detail beside nothing else, those of failures where they are.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let _counted = programs::counted()?;
    let mut generator = Generator::new()?;
    let full = of(&mut generator, Way::Full, effort)?;
    let mut failures = of(&mut generator, Way::Failures, effort)?;
    for ((_, all, _), (_, more, _)) in full.iter().zip(&mut failures) {
        more.retain(|program, _| !all.contains_key(program));
    }
    for (way, all) in [(Way::Full, full), (Way::Failures, failures)] {
        for (traffic, programs, units) in all {
            for (program, runs) in programs {
                figure(way, traffic, program, runs, units).tell()?;
            }
        }
    }
    Ok(())
}

/// All programs of a way, each kind of traffic, and how many units there were of it.
fn of(generator: &mut Generator, way: Way, effort: Effort) -> Result<Vec<(Traffic, Programs, u64)>> {
    generator.flush()?;
    let mut attached = way.attach(generator.node())?;
    let pid = attached.pid()?;
    let mut all = Vec::new();
    for traffic in Traffic::ALL {
        let (before, sent) = generator.run_after(|| programs::of(pid), traffic, amount(traffic, effort))?;
        ensure!(!before.is_empty(), "{} holds no program that is known", way.name());
        all.push((traffic, programs::since(&programs::of(pid)?, &before), sent.units));
    }
    attached.end()?;
    Ok(all)
}

#[expect(clippy::cast_precision_loss, reason = "a few million runs")]
fn figure(way: Way, traffic: Traffic, program: &'static str, runs: Runs, units: u64) -> Figure {
    let ns_per_run = if runs.count == 0 { 0.0 } else { runs.nanoseconds as f64 / runs.count as f64 };
    Figure::Hook { way: way.name(), traffic, program, runs_per_unit: runs.count as f64 / units as f64, ns_per_run }
}
