//! `snat-trace report`: evidence as a document.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use snat_trace::evidence::Redactor;
use snat_trace::report::{Case, html, json, markdown, text};

use crate::cli::{ReportArgs, ReportFormat};
use crate::run::{for_each, print};

/// Reads the evidence and prints what it comes to: a success, whatever that is.
pub(crate) fn run(args: &ReportArgs) -> Result<ExitCode> {
    let redactor = args.redact.then(Redactor::new).transpose().context("cannot make a key to redact with")?;
    let mut case = redactor.map(Case::redacted).unwrap_or_default();
    let cut = for_each(&args.file, |item| {
        case.add(item);
        Ok(())
    })?;
    case.end(cut);
    let document = match args.format {
        ReportFormat::Text => text(&case),
        ReportFormat::Markdown => markdown(&case),
        ReportFormat::Html => html(&case),
        ReportFormat::Json => json(&case)?,
    };
    print(|out| out.write_all(document.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}
