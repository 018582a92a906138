//! What is measured on this machine itself, without a kernel's help.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::figure::{Figure, parse};
use super::targets::DOCTOR;
use crate::progress::{capture_stdout, passthrough};
use crate::project::Project;
use crate::toolchain::Toolchain;

/// The way of collisions through user space, measured in a process of its own for each rate; it reads the rate from the
/// environment.
const FLOOD: &str = "watch::flood::measured";

/// Collisions a second; without one, as many as get through.
const RATES: [Option<u32>; 3] = [Some(1000), Some(100_000), None];

/// What one benchmark of criterion is called, and how much it does in one iteration.
#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
struct Throughput {
    #[serde(rename = "Elements")]
    elements: f64,
}

/// How long an iteration took, in nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    mean: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// Runs the benchmarks: what they do in a second.
///
/// # Errors
/// They do not build or run.
pub(super) fn benchmarks(project: &Project, toolchain: &Toolchain) -> Result<Vec<Figure>> {
    let results = project.target().join("bench/criterion");
    if results.exists() {
        // Of an earlier run.
        fs::remove_dir_all(&results)?;
    }
    let mut cargo = project.cargo();
    cargo.args(["bench", "--locked", "--package", "snat-trace", "--bench", "records"]).env("CRITERION_HOME", &results);
    toolchain.apply(&mut cargo);
    passthrough(&mut cargo)?;
    let figures = read_results(&results)?;
    ensure!(!figures.is_empty(), "no results in {}", results.display());
    Ok(figures)
}

/// `GROUP/NAME/new/{benchmark,estimates}.json`, as criterion leaves them.
fn read_results(results: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for group in folders(results)? {
        for benchmark in folders(&group)? {
            let new = benchmark.join("new");
            let (benchmark, estimates) = (new.join("benchmark.json"), new.join("estimates.json"));
            if benchmark.exists() {
                figures.extend(speed(&fs::read_to_string(benchmark)?, &fs::read_to_string(estimates)?)?);
            }
        }
    }
    Ok(figures)
}

fn folders(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(of).with_context(|| format!("cannot read {}", of.display()))?;
    let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.retain(|path| path.is_dir());
    folders.sort();
    Ok(folders)
}

/// What one benchmark does in a second, if it says what it does.
fn speed(benchmark: &str, estimates: &str) -> Result<Option<Figure>> {
    let Benchmark { full_id: what, throughput } =
        serde_json::from_str(benchmark).context("no benchmark of criterion")?;
    let estimates: Estimates = serde_json::from_str(estimates).context("no estimates of criterion")?;
    Ok(throughput.map(|Throughput { elements }| Figure::User {
        what,
        per_second: elements * 1e9 / estimates.mean.point_estimate,
    }))
}

/// How often `doctor` is run: an odd number has one in the middle.
const STARTS: u32 = 11;

/// How long it takes to read what a start begins with, the kernel's symbols and types: `doctor` does that and attaches nothing.
///
/// # Errors
/// The binary does not run.
pub(super) fn start(snat_trace: &Path) -> Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let output = Command::new(snat_trace).arg("doctor").output();
        // Whether this kernel can be traced does not matter.
        output.with_context(|| format!("cannot run {}", snat_trace.display()))?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let milliseconds = [times[times.len() / 2], times[0], times[times.len() - 1]];
    Ok(vec![Figure::Start { way: DOCTOR.to_owned(), runs: STARTS, milliseconds }])
}

/// What the bodies of hooks take.
///
/// # Errors
/// The benchmark does not build, or this machine's kernel does not run them.
pub(super) fn bodies(project: &Project, toolchain: &Toolchain) -> Result<Vec<Figure>> {
    let mut cargo = project.cargo();
    cargo.args(["bench", "--locked", "--package", "snat-trace-tests", "--bench", "bodies"]);
    toolchain.apply(&mut cargo);
    figures(&mut cargo)
}

/// Allocations per event, and BPF instructions of each program and of a connection, as tests count them.
///
/// # Errors
/// A test does not build, fails, or says nothing.
pub(super) fn counted(project: &Project, toolchain: &Toolchain) -> Result<Vec<Figure>> {
    let mut all = Vec::new();
    for (package, name) in [("snat-trace", "allocations"), ("snat-trace-tests", "instructions")] {
        let mut cargo = test(project, toolchain, &["--package", package, "--test", name]);
        cargo.args(["--", "--nocapture"]);
        all.extend(figures(&mut cargo)?);
    }
    Ok(all)
}

/// Memory and speed of the whole way from the ring to a printed line.
///
/// # Errors
/// The measurement does not build, fails, or says nothing.
pub(super) fn flood(project: &Project, toolchain: &Toolchain) -> Result<Vec<Figure>> {
    let mut all = Vec::new();
    for rate in RATES {
        let mut cargo = test(project, toolchain, &["--release", "--package", "snat-trace", "--lib"]);
        cargo.args(["--", "--ignored", "--exact", FLOOD, "--nocapture"]);
        if let Some(rate) = rate {
            cargo.env("SNAT_TRACE_FLOOD", rate.to_string());
        }
        all.extend(figures(&mut cargo)?);
    }
    Ok(all)
}

fn test(project: &Project, toolchain: &Toolchain, which: &[&str]) -> Command {
    let mut cargo = project.cargo();
    cargo.args(["test", "--locked"]).args(which);
    toolchain.apply(&mut cargo);
    cargo
}

fn figures(cargo: &mut Command) -> Result<Vec<Figure>> {
    let figures = parse(capture_stdout(cargo)?.as_bytes())?;
    ensure!(!figures.is_empty(), "what measures said nothing");
    Ok(figures)
}

/// This machine's processors, as they call themselves.
pub(super) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = if count == 1 { "processor" } else { "processors" };
    format!("{}, {count} {processors}", model(&cpuinfo).unwrap_or("a processor without a name"))
}

fn model(cpuinfo: &str) -> Option<&str> {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    name.split_once(':').map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_elements_by_the_mean() {
        let benchmark = r#"{"group_id":"records","full_id":"records/decode","throughput":{"Elements":4096}}"#;
        let estimates = r#"{"mean":{"point_estimate":1024000.0,"standard_error":1.0},"slope":null}"#;
        let figure = Figure::User { what: "records/decode".to_owned(), per_second: 4e6 };
        assert_eq!(speed(benchmark, estimates).unwrap(), Some(figure));
        assert_eq!(speed(r#"{"full_id":"x","throughput":null}"#, estimates).unwrap(), None);
        assert!(speed(benchmark, "{}").is_err());
    }

    #[test]
    fn processor() {
        assert_eq!(model("processor\t: 0\nmodel name\t: Some CPU\n"), Some("Some CPU"));
        assert_eq!(model(""), None);
    }
}
