//! `snat-trace export`: evidence for other tools.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Seek as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use snat_trace::evidence::{Item, ReadError, Redactor, read};
use snat_trace::export::{ExportError, Survey, pcapng};
use snat_trace::output::escape_path;
use tempfile::{Builder, NamedTempFile};

use crate::cli::ExportArgs;
use crate::run::say_how_it_ends;

/// Writes the file, which is there when it is whole and not before.
pub(crate) fn run(args: &ExportArgs) -> Result<ExitCode> {
    let ExportArgs { file: evidence, pcapng: path, redact } = args;
    let name = escape_path(evidence);
    let mut file = File::open(evidence).with_context(|| format!("cannot read {name}"))?;
    if path.symlink_metadata().is_ok() {
        bail!(exists(path));
    }
    let survey = Survey::of(read(&file)).with_context(|| name.clone())?;
    let redactor = redact.then(Redactor::new).transpose().context("cannot make a key to redact with")?;
    let cannot_write = || format!("cannot write {}", escape_path(path));
    // Its own errors name the file as it is called until it is whole.
    let mut new = beside(path).map_err(|error| io::Error::from(error.kind())).with_context(cannot_write)?;
    file.rewind().with_context(|| format!("cannot read {name} a second time"))?;
    let items = read(&file).map(|item: Result<Item, ReadError>| match &redactor {
        Some(redactor) => Ok(redactor.item(item?)),
        None => item,
    });
    pcapng(&survey, items, *redact, BufWriter::new(new.as_file_mut())).map_err(|error| match error {
        ExportError::Read(error) => anyhow::Error::new(error).context(name.clone()),
        ExportError::Write(error) => anyhow::Error::new(error).context(cannot_write()),
    })?;
    new.persist_noclobber(path).map_err(|error| match error.error.kind() {
        ErrorKind::AlreadyExists => anyhow!(exists(path)),
        _ => anyhow::Error::new(error.error).context(cannot_write()),
    })?;
    say_how_it_ends(&name, survey.cut);
    let Survey { packets, without, .. } = survey;
    let out = escape_path(path);
    match (packets, without) {
        (0, 0) => tracing::warn!("{name} has no races: there is no packet in {out}"),
        (0, _) => tracing::warn!("of {without} losers no packet is known: there is none in {out}"),
        (_, 0) => tracing::info!("packets in {out}: {packets}"),
        _ => tracing::info!("packets in {out}: {packets}; of {without} more losers the packet is not known"),
    }
    Ok(ExitCode::SUCCESS)
}

fn exists(path: &Path) -> String {
    format!("{} exists; export writes a new file", escape_path(path))
}

/// A file in the same folder, its user's alone, which goes away unless it is given its name.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Builder::new().prefix(".snat-trace-").tempfile_in(folder)
}
