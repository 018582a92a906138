//! Measures what it costs to watch, inside a guest, as root: `measure [--quick] [PART...]`.

use std::process::ExitCode;

use snat_trace_tests::measure::{Effort, PARTS};

/// How a lab starts its pods: from the binary it is in.
const LAB_POD: &str = "lab-pod";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((LAB_POD, rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match snat_trace::lab::pod_main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("measure: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = words.into_iter().peekable();
    let effort = if arguments.next_if_eq("--quick").is_some() { Effort::Quick } else { Effort::Whole };
    let wanted: Vec<String> = arguments.collect();
    if let Some(unknown) = wanted.iter().find(|wanted| PARTS.iter().all(|(name, _)| name != wanted)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("measure: {unknown:?} is none of {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut failed = false;
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            // What else there is to measure is measured.
            if let Err(error) = part(effort) {
                eprintln!("measure: {name}: {error:#}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
