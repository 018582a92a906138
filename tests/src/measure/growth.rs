//! What a connection costs as there are more of them, more collisions, more network namespaces and more cgroups: time in our
//! programs by the kernel's run-time statistics, and CPU time of snat-trace itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Effort;
use super::figure::{Axis, Figure, Traffic};
use super::generator::{Amount, Generator, Sent};
use super::programs;
use crate::process::Usage;
use crate::statistics::median_and_range;
use crate::storm::{self, Storm};
use crate::ways::Way;

/// How long a point is measured, and in how many slices. The median slice counts: what else the machine does is not to.
const TIME: Duration = Duration::from_secs(4);
const SLICES: u32 = 16;
/// New flows a second beside collisions.
const BESIDE: f64 = 500.0;
/// As many as go.
const MOST: f64 = f64::INFINITY;
/// The last as many as go.
const FLOWS: [f64; 5] = [1000.0, 2000.0, 4000.0, 8000.0, MOST];
/// The last as many as go.
const COLLISIONS: [f64; 6] = [0.0, 10.0, 100.0, 1000.0, 10_000.0, MOST];
const NAMESPACES: [usize; 4] = [1, 10, 100, 1000];
const CGROUPS: [usize; 5] = [1, 10, 100, 1000, 10_000];
/// Clashes in a namespace whose counters are to be read all the time.
const SOME: u64 = 3;

/// Prints what a connection costs along every axis.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let _counted = programs::counted()?;
    let slice = effort.of(TIME, Duration::from_millis(800)) / SLICES;
    let mut point = Point { generator: Generator::new()?, slice };
    for pace in effort.of(&FLOWS[..], &FLOWS[..1]) {
        let reached = point.flows(*pace)?;
        // The next are beyond what the machine can do too, but for the last, which is as much as it can.
        if reached < 0.9 * pace && pace.is_finite() {
            point.flows(MOST)?;
            break;
        }
    }
    for pace in effort.of(&COLLISIONS[..], &COLLISIONS[3..4]) {
        let reached = point.collisions(*pace)?;
        if reached < 0.9 * pace && pace.is_finite() {
            point.collisions(MOST)?;
            break;
        }
    }
    let mut namespaces = Vec::new();
    for count in effort.of(&NAMESPACES[..], &NAMESPACES[1..2]) {
        while namespaces.len() < *count {
            namespaces.push(Storm::empty()?);
        }
        point.namespaces(*count)?;
    }
    drop(namespaces);
    let mut cgroups = Cgroups::new()?;
    for count in effort.of(&CGROUPS[..], &CGROUPS[1..2]) {
        cgroups.grow(*count)?;
        point.cgroups(&cgroups)?;
    }
    Ok(())
}

/// How one point is measured.
struct Point {
    generator: Generator,
    slice: Duration,
}

impl Point {
    /// With new flows only; how many a second there were.
    fn flows(&mut self, pace: f64) -> Result<f64> {
        let cost = self.cost(|generator, _, slice| Ok((new_flows(generator, pace, slice)?, 0)))?;
        let value = count(cost.flows) / cost.time.as_secs_f64();
        cost.figure(Axis::FlowsPerSecond, value).tell()?;
        Ok(value)
    }

    /// With collisions beside new flows; how many a second there were.
    fn collisions(&mut self, pace: f64) -> Result<f64> {
        let storm = Storm::new()?;
        let cost = self.cost(|generator, _, slice| {
            let (flows, sent) = thread::scope(|scope| {
                let rage =
                    scope.spawn(|| if pace > 0.0 { storm.rage_at(pace, slice) } else { Ok(storm::Sent::default()) });
                let flows = new_flows(generator, BESIDE, slice);
                (flows, rage.join().unwrap_or_else(|_| bail!("a thread panicked")))
            });
            Ok((flows?, sent?.refused))
        })?;
        let value = count(cost.besides) / cost.time.as_secs_f64();
        cost.figure(Axis::CollisionsPerSecond, value).tell()?;
        Ok(value)
    }

    /// With network namespaces beside those of the generator, and one of them with clashes.
    fn namespaces(&mut self, namespaces: usize) -> Result<()> {
        let storm = Storm::new()?;
        let cost = self.cost(|generator, number, slice| {
            if number == 0 {
                storm.rage(1, |refused| refused >= SOME)?;
            }
            Ok((new_flows(generator, MOST, slice)?, 0))
        })?;
        cost.figure(Axis::NetworkNamespaces, count(u64::try_from(namespaces)?)).tell()
    }

    /// With cgroups, some of which send.
    fn cgroups(&mut self, cgroups: &Cgroups) -> Result<()> {
        let cost = self.cost(|generator, number, slice| {
            cgroups.enter(usize::try_from(number)? * cgroups.count / usize::try_from(SLICES)?)?;
            Ok((new_flows(generator, MOST, slice)?, 0))
        })?;
        cost.figure(Axis::Cgroups, count(u64::try_from(cgroups.count)?)).tell()
    }

    /// Does something in slices, first with nothing attached and then with snat-trace, each of which has a number and a time and
    /// tells of its flows and how many connections there were besides; and what that took.
    fn cost(&mut self, mut work: impl FnMut(&mut Generator, u32, Duration) -> Result<(Sent, u64)>) -> Result<Cost> {
        self.generator.flush()?;
        let mut alone = Vec::new();
        for number in 0..SLICES {
            let (sent, _) = work(&mut self.generator, number, self.slice)?;
            alone.push(nanoseconds_of_one(sent));
        }
        self.generator.flush()?;
        let mut attached = Way::Full.attach(self.generator.node())?;
        let pid = attached.pid()?;
        let usage = Usage::of(pid)?;
        let (mut flows, mut besides, mut time) = (0, 0, Duration::ZERO);
        let (mut costs, mut watched) = (Vec::new(), Vec::new());
        for number in 0..SLICES {
            let (before, start) = (programs::of(pid)?, Instant::now());
            let (sent, more) = work(&mut self.generator, number, self.slice)?;
            time += start.elapsed();
            flows += sent.units;
            besides += more;
            let runs = programs::since(&programs::of(pid)?, &before);
            let nanoseconds: u64 = runs.values().map(|runs| runs.nanoseconds).sum();
            costs.push(count(nanoseconds) / count((sent.units + more).max(1)));
            watched.push(nanoseconds_of_one(sent));
        }
        let cpu = Usage::of(pid)?.since(usage).cpu;
        attached.end()?;
        let median = |slices| median_and_range(slices).map(|[median, ..]| median).context("there was a slice");
        let (nanoseconds, watched, alone) = (median(&costs)?, median(&watched)?, median(&alone)?);
        Ok(Cost { flows, besides, time, nanoseconds, watched, alone, cpu })
    }
}

/// What each of these flows took in all.
fn nanoseconds_of_one(sent: Sent) -> f64 {
    sent.busy.as_secs_f64() * 1e9 / count(sent.units.max(1))
}

fn new_flows(generator: &mut Generator, pace: f64, time: Duration) -> Result<Sent> {
    generator.run(Traffic::UdpFlows, Amount::Paced(pace, time))
}

/// What something took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    flows: u64,
    /// Connections beside them.
    besides: u64,
    time: Duration,
    /// Of all programs, per connection.
    nanoseconds: f64,
    /// Nanoseconds of a flow, all in all.
    watched: f64,
    /// The same with nothing attached.
    alone: f64,
    /// Of snat-trace itself.
    cpu: Duration,
}

impl Cost {
    fn figure(self, axis: Axis, value: f64) -> Figure {
        Figure::Growth {
            axis,
            value,
            ns_per_connection: self.nanoseconds,
            ns_of_a_flow: self.watched,
            ns_of_a_flow_alone: self.alone,
            cpu_milliseconds_of_user_side_per_second: self.cpu.as_secs_f64() * 1000.0 / self.time.as_secs_f64(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

/// Cgroups of our own, removed when dropped.
struct Cgroups {
    /// Where this process was before.
    home: PathBuf,
    directory: PathBuf,
    count: usize,
}

impl Cgroups {
    /// A directory for them.
    fn new() -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("there is no cgroup version 2")?;
        let directory = root.join(format!("snat-trace-measure-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { home: root.join(own), directory, count: 0 })
    }

    /// Makes more.
    fn grow(&mut self, count: usize) -> Result<()> {
        while self.count < count {
            fs::create_dir(self.path(self.count))?;
            self.count += 1;
        }
        Ok(())
    }

    /// Moves this process.
    fn enter(&self, number: usize) -> Result<()> {
        Ok(fs::write(self.path(number).join("cgroup.procs"), "0")?)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(number.to_string())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // What cannot be removed is empty.
        let _stays = fs::write(self.home.join("cgroup.procs"), "0");
        (0..self.count).for_each(|number| drop(fs::remove_dir(self.path(number))));
        let _stays = fs::remove_dir(&self.directory);
    }
}
