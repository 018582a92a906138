//! Runs scenarios inside a guest, as root: `scenarios [--rows|--list] [loaded|brief|once|unloaded|observation] [NAME-PART...]`.

use std::process::{ExitCode, Termination as _};

use snat_trace_tests::scenario::{Scenario, Set, Tally};
use snat_trace_tests::{owners, scenarios};

/// How a lab starts its pods: from the binary it is in.
const LAB_POD: &str = "lab-pod";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((first, rest)) if first == "sender" => return ended(owners::sender_main(rest)),
        Some((first, rest)) if first == "inherited" => return ended(owners::inherited(rest)),
        Some((first, rest)) if first == "handed" => return ended(owners::handed(rest)),
        Some((first, rest)) if first == LAB_POD => return ended(snat_trace::lab::pod_main(rest)),
        _ => {}
    }
    let mut arguments = words.into_iter().peekable();
    let list = arguments.next_if_eq("--list").is_some();
    let rows = arguments.next_if_eq("--rows").is_some();
    let wanted: fn(Set) -> bool = match arguments.next().as_deref() {
        None | Some("loaded") => |set| matches!(set, Set::Brief | Set::Whole),
        Some("brief") => |set| set == Set::Brief,
        Some("once") => |set| set == Set::Once,
        Some("unloaded") => |set| set == Set::Unloaded,
        Some("observation") => |set| set == Set::Observation,
        Some(other) => {
            eprintln!("scenarios: {other:?} is none of `loaded`, `brief`, `once`, `unloaded` and `observation`");
            return ExitCode::from(2);
        }
    };
    let parts: Vec<String> = arguments.collect();
    let named = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let chosen = scenarios().filter(|Scenario { name, set, .. }| wanted(*set) && named(name));
    if list {
        chosen.for_each(|scenario| println!("{}", scenario.name));
        return ExitCode::SUCCESS;
    }
    if rows && let Ok(version) = std::fs::read_to_string("/proc/version") {
        print!("kernel {version}");
    }
    let mut tally = Tally::default();
    for scenario in chosen {
        tally.run(scenario, rows);
    }
    println!("{tally}");
    tally.report()
}

/// How a process ends that a scenario has started.
fn ended(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenarios: {error:#}");
            ExitCode::FAILURE
        }
    }
}
