//! Runs the scenarios inside a guest, as root: `scenarios [loaded|brief|unloaded] [NAME-PART]`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use snat_trace_tests::races::{Races, Run};
use snat_trace_tests::{fallback, loading, places, races, verifier};

type Scenario = (String, Box<dyn Fn() -> Result<String>>);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let scenarios = match arguments.next().as_deref() {
        None | Some("loaded") => loaded(),
        Some("brief") => brief(),
        Some("unloaded") => unloaded(),
        Some(other) => {
            eprintln!("scenarios: {other:?} is none of `loaded`, `brief` and `unloaded`");
            return ExitCode::from(2);
        }
    };
    let part = arguments.next().unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in scenarios.iter().filter(|(name, _)| name.contains(&part)) {
        let start = Instant::now();
        let result = scenario();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(what) => {
                passed += 1;
                println!("ok      {name:<34} {seconds:5.1} s  {what}");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED  {name:<34} {seconds:5.1} s  {error:#}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The verifier, and every race that is forced.
fn brief() -> Vec<Scenario> {
    let kinds: [(&str, &'static [&'static str], u64); 3] = [
        ("forced udp", &["--rounds", "200"], 200),
        ("forced tcp", &["--scenario", "snat-tcp", "--rounds", "100"], 100),
        ("forced udp, 8 pods", &["--pods", "8", "--rounds", "40"], 280),
    ];
    let races = ["full", "minimal"].into_iter().flat_map(|detail| {
        kinds
            .map(|(name, arguments, races)| lab(&format!("{name}, {detail}"), arguments, detail, Races::Exactly(races)))
    });
    [plain("verifier", verifier::gate)].into_iter().chain(races).collect()
}

/// Those of a node that tracks connections.
fn loaded() -> Vec<Scenario> {
    let mut scenarios = brief();
    for detail in ["full", "minimal"] {
        let kinds: [(&str, &'static [&'static str]); 2] = [
            ("natural udp", &["--natural", "--rounds", "200"]),
            ("natural tcp", &["--natural", "--scenario", "snat-tcp", "--rounds", "60"]),
        ];
        for (name, arguments) in kinds {
            scenarios.push(lab(&format!("{name}, {detail}"), arguments, detail, Races::Some));
        }
    }
    let controls: [(&str, &'static [&'static str]); 6] = [
        ("random-fully, forced", &["--random-fully", "--rounds", "50"]),
        ("random-fully, natural tcp", &["--random-fully", "--natural", "--scenario", "snat-tcp", "--rounds", "60"]),
        ("different ports", &["--control", "different-ports", "--rounds", "100"]),
        ("one CPU", &["--control", "one-cpu", "--rounds", "100"]),
        ("sequential", &["--control", "sequential", "--rounds", "100"]),
        ("sequential tcp", &["--control", "sequential", "--scenario", "snat-tcp", "--rounds", "60"]),
    ];
    for (name, arguments) in controls {
        scenarios.push(lab(&format!("control: {name}"), arguments, "full", Races::Exactly(0)));
    }
    scenarios.extend([
        plain("insertion at confirm", fallback::insertion_at_confirm),
        plain("not root", places::not_root),
        plain("idle", places::idle),
        plain("two tracers", places::two_tracers),
        plain("two labs", places::two_labs),
        plain("--count", places::count),
        plain("in traffic", places::in_traffic),
        plain("ring full", places::ring_full),
        plain("closed pipe", places::closed_pipe),
        plain("stuck pipe", places::stuck_pipe),
        plain("interrupted lab", places::interrupted_lab),
        plain("killed lab", places::killed_lab),
    ]);
    scenarios
}

/// Those of a node that does not, in this order: the last one loads the modules.
fn unloaded() -> Vec<Scenario> {
    vec![plain("not loaded", loading::not_loaded), plain("--wait", loading::wait)]
}

fn plain(name: &str, scenario: fn() -> Result<String>) -> Scenario {
    (name.to_owned(), Box::new(scenario))
}

fn lab(name: &str, arguments: &'static [&'static str], detail: &'static str, expected: Races) -> Scenario {
    (name.to_owned(), Box::new(move || races::run(Run { arguments, detail, races: expected })))
}
