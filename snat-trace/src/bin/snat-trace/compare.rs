//! `snat-trace compare`: whether a change helped.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use snat_trace::compare::{Comparison, Side};
use snat_trace::evidence::read;
use snat_trace::output::escape_path;

use crate::cli::{CompareArgs, Format};
use crate::run::print;

/// Compares: a success, whatever comes out.
pub(crate) fn run(args: &CompareArgs) -> Result<ExitCode> {
    let comparison = Comparison::new(side(&args.before)?, side(&args.after)?);
    print(|out| match args.format {
        Format::Text => write!(out, "{comparison}"),
        Format::Json => comparison.write_json(out),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn side(path: &Path) -> Result<Side> {
    let file = File::open(path).with_context(|| format!("cannot read {}", escape_path(path)))?;
    Side::read(read(file)).with_context(|| escape_path(path))
}
