//! The command `snat-trace`.

mod audit;
mod cli;
mod compare;
mod export;
mod lab;
mod manual;
mod report;
mod run;

use std::process::ExitCode;
use std::{env, io};

use clap::Parser as _;
use snat_trace::audit::AuditError;
use snat_trace::kernel::CannotTrace;
use snat_trace::lab::{LabError, pod_main};
use snat_trace::live::Log;
use snat_trace::output::escape_lines;
use snat_trace::probe::ProbeError;
use snat_trace::watch::WatchError;

use cli::Cli;
use run::CannotDraw;

/// How a lab starts its pods: no command of the user's, so that neither help nor completions have it.
const LAB_POD: &str = "lab-pod";

fn main() -> ExitCode {
    let mut words = env::args_os().skip(1);
    if words.next().is_some_and(|first| first == LAB_POD) {
        let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        return ended(pod_main(&words).map(|()| ExitCode::SUCCESS).map_err(Into::into));
    }
    let cli = Cli::parse();
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(cli.log_level))
        .with_writer(log.clone())
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    ended(run::run(cli, &log))
}

fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // The verifier's words have lines; nothing else that may be in it may steer a terminal.
            eprintln!("snat-trace: {}", escape_lines(&sentence(&error)));
            exit_code(&error)
        }
    }
}

/// What failed and why, each cause once: errors of the library name their cause in their own sentence.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |mut text, cause| {
        if !text.contains(&cause) {
            text.extend((!text.is_empty()).then_some(": "));
            text.push_str(&cause);
        }
        text
    })
}

/// Whoever read our output has seen enough: a normal end.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = match cause.downcast_ref::<WatchError>() {
            Some(WatchError::Output(error)) => Some(error),
            _ => cause.downcast_ref::<io::Error>(),
        };
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// 2 wrong usage, 3 not enough privilege, 4 this kernel cannot be traced, 1 anything else.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    const WRONG_USAGE: u8 = 2;
    const NOT_PRIVILEGED: u8 = 3;
    const CANNOT_TRACE: u8 = 4;

    for cause in error.chain() {
        if let Some(cannot) = cause.downcast_ref::<CannotTrace>() {
            return cannot.exit_code().into();
        }
        match cause.downcast_ref::<WatchError>() {
            Some(WatchError::CannotTrace(cannot)) => return cannot.exit_code().into(),
            Some(WatchError::Probe(ProbeError::NotPrivileged { .. })) => return NOT_PRIVILEGED.into(),
            Some(WatchError::Probe(ProbeError::Refused { .. } | ProbeError::Attach { .. })) => {
                return CANNOT_TRACE.into();
            }
            _ => {}
        }
        if cause.is::<CannotDraw>() {
            return WRONG_USAGE.into();
        }
        if let Some(AuditError::NotPrivileged) = cause.downcast_ref() {
            return NOT_PRIVILEGED.into();
        }
        match cause.downcast_ref::<LabError>() {
            Some(LabError::Setup(_)) => return WRONG_USAGE.into(),
            Some(LabError::NotPermitted { .. }) => return NOT_PRIVILEGED.into(),
            _ => {}
        }
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let said = sentence(&anyhow::Error::from(WatchError::Output(full())));
        assert_eq!(said.matches(&full().to_string()).count(), 1, "{said}");
        let said = sentence(&anyhow::Error::from(full()).context("cannot open it"));
        assert_eq!(said, format!("cannot open it: {}", full()));
    }
}
