//! Runs scenarios inside a guest, as root: `scenarios [--rows] [loaded|brief|unloaded] [NAME-PART]`.

use std::process::{ExitCode, Termination as _};

use snat_trace_tests::scenario::{Scenario, Set, Tally};
use snat_trace_tests::scenarios;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let rows = arguments.next_if_eq("--rows").is_some();
    let wanted: fn(Set) -> bool = match arguments.next().as_deref() {
        None | Some("loaded") => |set| set != Set::Unloaded,
        Some("brief") => |set| set == Set::Brief,
        Some("unloaded") => |set| set == Set::Unloaded,
        Some(other) => {
            eprintln!("scenarios: {other:?} is none of `loaded`, `brief` and `unloaded`");
            return ExitCode::from(2);
        }
    };
    let part = arguments.next().unwrap_or_default();
    let mut tally = Tally::default();
    for scenario in scenarios().filter(|Scenario { name, set, .. }| wanted(*set) && name.contains(&part)) {
        tally.run(scenario, rows);
    }
    println!("{tally}");
    tally.report()
}
