//! `snat-trace audit`: what makes races likely on this node.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use snat_trace::audit::{Audit, look};

use crate::cli::{AuditArgs, Format};
use crate::run::print;

/// Looks at the node and says what it found: a success, whatever that is.
pub(crate) fn run(args: &AuditArgs) -> Result<ExitCode> {
    let audit = Audit::new(&look()?);
    print(|out| match args.format {
        Format::Text => write!(out, "{audit}"),
        Format::Json => audit.write_json(out),
    })?;
    Ok(ExitCode::SUCCESS)
}
