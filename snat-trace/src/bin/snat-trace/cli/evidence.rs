//! Arguments of the commands that write evidence and read it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use snat_trace::evidence::{Existing, Limits};

use super::{FilterArgs, Format, ShowArgs, WatchArgs, duration};

#[derive(Args, Debug)]
pub(crate) struct RecordArgs {
    /// Where to write the evidence: a new file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Add to a file that is there, after a crash for example
    #[arg(long)]
    append: bool,
    /// Exchange addresses and names in the file for others, equal ones for equal ones and private for private
    ///
    /// The key is never written, so nothing can be turned back. Ports, times, process ids and inode numbers stay; of a
    /// packet, its content goes. What is printed here is as ever.
    #[arg(long)]
    pub(crate) redact: bool,
    /// Begin another file when this one has so many bytes; those before are FILE.1, the youngest, to FILE.N
    ///
    /// It is looked at whenever something is written, at most 128 KiB of lines at once. So there are never more than N + 1
    /// files (see --keep), each larger than this by what was written last, and by its head: the machine, and the rules of
    /// namespaces with races.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(4096..))]
    rotate_size: Option<u64>,
    /// Begin another file when this one is so old
    ///
    /// This bounds how many files there are, and not how large one becomes: for a bound on the disk give --rotate-size too.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    rotate_age: Option<Duration>,
    /// How many files to keep beside the one that is written; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(..1000))]
    keep: u32,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

impl RecordArgs {
    pub(crate) fn existing(&self) -> Existing {
        if self.append { Existing::Append } else { Existing::Refuse }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { size: self.rotate_size, age: self.rotate_age, keep: self.keep }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// What record wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// What record wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// As what
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: ReportFormat,
    /// Exchange addresses and names for others, as record --redact does
    #[arg(long)]
    pub(crate) redact: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ReportFormat {
    /// In 80 columns
    Text,
    /// For an issue of a tracker
    Markdown,
    /// One file with pictures, for light, dark and paper
    Html,
    /// For programs: one object
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// What record wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where to write the packets: a new file, readable by its owner alone
    #[arg(long, value_name = "OUT")]
    pub(crate) pcapng: PathBuf,
    /// Exchange addresses and names for others, as record does
    #[arg(long)]
    pub(crate) redact: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// What record wrote before the change
    #[arg(value_name = "BEFORE")]
    pub(crate) before: PathBuf,
    /// What it wrote after
    #[arg(value_name = "AFTER")]
    pub(crate) after: PathBuf,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}
