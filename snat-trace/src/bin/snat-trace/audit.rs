//! `snat-trace audit`: what makes races likely on this node.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use snat_trace::audit::{Audit, look};

use crate::cli::{AuditArgs, Format};

/// Looks at the node and says what it found: a success, whatever that is.
pub(crate) fn run(args: &AuditArgs) -> Result<ExitCode> {
    let audit = Audit::new(&look()?);
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => write!(out, "{audit}")?,
        Format::Json => audit.write_json(&mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
