//! Memory of snat-trace in each state, and what it does when there is nothing to do.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use snat_trace::lab::{Lab, Mode, Scenario, Setup};

use super::Effort;
use super::figure::Figure;
use crate::process::Usage;
use crate::storm::Storm;
use crate::ways::Way;

/// How long it is looked at when nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// After which it has done all that a start takes.
const STARTED: Duration = Duration::from_secs(1);
/// How long collisions go on.
const STORM: Duration = Duration::from_secs(5);
/// Rounds of a lab in which nothing is forced.
const ROUNDS: u32 = 500;
/// Collisions a second that are no storm.
const STEADY: f64 = 1000.0;

/// Prints the memory of each state, and what both levels of detail do in none.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let (idle, time) = (effort.of(IDLE, Duration::from_millis(500)), effort.of(STORM, Duration::from_millis(500)));
    for way in [Way::Minimal, Way::Full] {
        let usage = state(way, &format!("idle, {}", way.name()), || {
            thread::sleep(idle);
            Ok(0.0)
        })?;
        let cpu_milliseconds = usage.cpu_milliseconds()?;
        let seconds = idle.as_secs_f64();
        Figure::Idle { way: way.name(), seconds, wakeups: usage.switches, cpu_milliseconds }.tell()?;
    }
    let rounds = effort.of(ROUNDS, 20);
    state(Way::Full, "races of a lab that forces none", || lab(rounds))?;
    state(Way::Full, "races at a steady pace", || collisions(STEADY, time))?;
    state(Way::Full, "a storm of races", || collisions(f64::INFINITY, time))?;
    Ok(())
}

/// Prints the memory of a new process after something that tells how many collisions a second it had, and returns what the
/// process took meanwhile.
fn state(way: Way, when: &str, happens: impl FnOnce() -> Result<f64>) -> Result<Usage> {
    let here = File::open("/proc/self/ns/net")?;
    let mut attached = way.attach(here.as_fd())?;
    let pid = attached.pid()?;
    thread::sleep(STARTED);
    let before = Usage::of(pid)?;
    let collisions_per_second = happens()?;
    let after = Usage::of(pid)?;
    attached.end()?;
    let Usage { resident_kib, peak_kib, .. } = after;
    Figure::Memory { when: when.to_owned(), collisions_per_second, resident_kib, peak_kib }.tell()?;
    Ok(after.since(before))
}

/// Two senders at one instant, again and again.
fn lab(rounds: u32) -> Result<f64> {
    let mut lab = Lab::build(&Setup { rounds, mode: Mode::Natural, ..Setup::new(Scenario::SnatUdp) })?;
    let start = Instant::now();
    let truth = lab.run(&AtomicBool::new(false), |_| {})?;
    Ok(per_second(truth.insert_failed, start.elapsed()))
}

/// Nothing but collisions; how many a second there were of those wanted.
fn collisions(wanted: f64, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let sent = Storm::new()?.rage_at(wanted, time)?;
    Ok(per_second(sent.refused, start.elapsed()))
}

#[expect(clippy::cast_precision_loss, reason = "a few million")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
