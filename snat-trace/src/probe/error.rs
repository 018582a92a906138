//! Why tracing could not start: one sentence each.

use aya::programs::ProgramError;

/// Why the programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The object does not load; its maps could not be made.
    #[error("the BPF object cannot be loaded: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// The object lacks a program or map of this version.
    #[error("the BPF object has no {kind} {name}: it is not of this version of snat-trace")]
    NotInObject {
        /// `program` or `map`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the BPF program {program}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The error and the end of the verifier's log.
        reason: String,
    },
    /// The kernel takes probes of privileged users only.
    #[error(
        "not enough privilege to attach to {symbol}: kernel.perf_event_paranoid keeps probes from all without \
         cap_sys_admin; run it as root (sudo snat-trace)"
    )]
    NotPrivileged {
        /// The function.
        symbol: &'static str,
    },
    /// The program the tracing stands on could not be attached.
    #[error("cannot attach to {symbol}{}: {reason}", in_module(module.as_deref()))]
    Attach {
        /// The function.
        symbol: &'static str,
        /// Its module.
        module: Option<String>,
        /// The error.
        reason: String,
    },
    /// A map could not be used.
    #[error("the map {name} cannot be used: {error}")]
    Map {
        /// Its name.
        name: &'static str,
        /// The error.
        error: Box<aya::maps::MapError>,
    },
    /// Programs cannot be verified beside those that are attached.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The ring cannot be waited for.
    #[error("the ring buffer cannot be waited for: {0}")]
    Wait(#[from] std::io::Error),
}

fn in_module(module: Option<&str>) -> String {
    module.map(|module| format!(" in {module}")).unwrap_or_default()
}

/// Whether it is the user who may not.
pub(super) fn is_refusal(error: &ProgramError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The innermost cause of an aya error, with the end of the verifier's log where there is one.
pub(super) fn reason(error: &ProgramError) -> String {
    /// Lines of a verifier log that say why: the last ones.
    const TAIL: usize = 12;

    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        return if tail.is_empty() {
            io_error.to_string()
        } else {
            format!("{io_error}; the verifier's last words:\n{}", tail.join("\n"))
        };
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
