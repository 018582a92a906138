//! Whether the scenarios would notice: the sources are broken in one place at a time, and a scenario must fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::dist;
use crate::matrix::{Ended, Report, Row};
use crate::project::Project;
use crate::toolchain::Toolchain;
use crate::vm::{self, Kernel, Payload, Series, VmRun};

/// One thing broken.
#[derive(Clone, Copy, Debug)]
struct Mutant {
    /// What is wrong then.
    name: &'static str,
    /// Below the workspace.
    file: &'static str,
    /// Stands in the file once.
    from: &'static str,
    to: &'static str,
    /// The scenario that must fail.
    scenario: &'static str,
}

/// Rules of classification, offsets, keys of what is paired, and the account.
const MUTANTS: [Mutant; 20] = [
    Mutant {
        name: "a race is an exhaustion",
        file: "snat-trace/src/race/class.rs",
        from: "(Some(_), Some(_)) => Class::SnatPortCollision,",
        to: "(Some(_), Some(_)) => Class::PortExhaustion,",
        scenario: "forced udp, full",
    },
    Mutant {
        name: "one port leaves a choice",
        file: "snat-trace/src/race/class.rs",
        from: "candidates.is_some_and(|ports| count(&ports) == 1)",
        to: "candidates.is_some_and(|ports| count(&ports) == 0)",
        scenario: "fixed port, full",
    },
    Mutant {
        name: "a flow made twice is a race",
        file: "snat-trace/src/race/classify.rs",
        from: "Shape::SameFlow | Shape::SameOriginal => Class::DuplicateFlow,",
        to: "Shape::SameFlow | Shape::SameOriginal => Class::SnatPortCollision,",
        scenario: "duplicate flow, full",
    },
    Mutant {
        name: "crossed flows are not known",
        file: "snat-trace/src/race/classify.rs",
        from: "Shape::Crossed => Class::CrossedFlow,",
        to: "Shape::Crossed => Class::Unclassified,",
        scenario: "crossed flow, full",
    },
    Mutant {
        name: "a zone holds for both directions",
        file: "snat-trace/src/race/classify.rs",
        from: "if flow.zone_dir & 1 << direction != 0 { flow.zone } else { 0 }",
        to: "if direction < 2 { flow.zone } else { 0 }",
        scenario: "zones for one direction, full",
    },
    Mutant {
        name: "the bit of a reply-only entry",
        file: "snat-trace/src/race/verdict.rs",
        from: "const NAT_CLASH: u64 = 1 << 12;",
        to: "const NAT_CLASH: u64 = 1 << 13;",
        scenario: "verdicts, udp",
    },
    Mutant {
        name: "offset of a tuple's direction",
        file: "snat-trace-ebpf/src/clash.rs",
        from: "const TUPLE_DIR: u64 = 39;",
        to: "const TUPLE_DIR: u64 = 18;",
        scenario: "forced udp, full",
    },
    Mutant {
        name: "offset of a rule's ports",
        file: "snat-trace-ebpf/src/allocation.rs",
        from: "const RANGE_WORDS: usize = 10;",
        to: "const RANGE_WORDS: usize = 9;",
        scenario: "fixed port, full",
    },
    Mutant {
        name: "byte order of a socket's port",
        file: "snat-trace-ebpf/src/owner.rs",
        from: "tuple.src_port_be = sk.head.num.to_be();",
        to: "tuple.src_port_be = sk.head.num;",
        scenario: "forced tcp, full",
    },
    Mutant {
        name: "offset of the network header",
        file: "snat-trace-common/src/offsets.rs",
        from: "\"network_header\"",
        to: "\"mac_header\"",
        scenario: "forced udp, minimal",
    },
    Mutant {
        name: "key of an allocation",
        file: "snat-trace-ebpf/src/allocation.rs",
        from: "ALLOCATIONS.insert(entry.as_key(),",
        to: "ALLOCATIONS.insert(range.as_key(),",
        scenario: "forced udp, full",
    },
    Mutant {
        name: "an allocation of an entry that is gone",
        file: "snat-trace-ebpf/src/flow.rs",
        from: "if asked && same_tuple(&allocation.original, &original) {",
        to: "if allocation.allocated_ns != 0 {",
        scenario: "addresses reused",
    },
    Mutant {
        name: "key of a clash that is being decided",
        file: "snat-trace-ebpf/src/frame.rs",
        from: "const RETURN_ADDRESS: u64 = 8;",
        to: "const RETURN_ADDRESS: u64 = 16;",
        scenario: "verdicts, udp",
    },
    Mutant {
        name: "a thread for a process",
        file: "snat-trace-ebpf/src/process.rs",
        from: "let (tgid, tid) = ",
        to: "let (tid, tgid) = ",
        scenario: "forced udp, full",
    },
    Mutant {
        name: "another's socket with the same ports",
        file: "snat-trace-ebpf/src/sending.rs",
        from: "Ok(if bound == 0 { has_ipv4(sk, src) } else { bound == src })",
        to: "Ok(bound != 0 || has_ipv4(sk, src))",
        scenario: "links: rps, full",
    },
    Mutant {
        name: "a program for the next one",
        file: "snat-trace-ebpf/src/process.rs",
        from: "exec_id: task.load(TASK_EXEC_ID)",
        to: "exec_id: 0",
        scenario: "owners: processes, full",
    },
    Mutant {
        name: "a clash is another failure too",
        file: "snat-trace-ebpf/src/confirm.rs",
        from: "if !has_clashed(call) {",
        to: "if !has_clashed(call) || call.subject != 0 {",
        scenario: "verdicts, tcp",
    },
    Mutant {
        name: "a full table is not known",
        file: "snat-trace/src/race/failure.rs",
        from: "(if full { Reason::TableFull } else { Reason::Unknown },",
        to: "(if full && !by_packet { Reason::TableFull } else { Reason::Unknown },",
        scenario: "failures, table full",
    },
    Mutant {
        name: "a dropped packet explains no drop",
        file: "snat-trace/src/counters/account.rs",
        from: "        self.explained.drop += races;\n",
        to: "",
        scenario: "forced udp, full",
    },
    Mutant {
        name: "a full ring is not counted",
        file: "snat-trace-ebpf/src/clash.rs",
        from: "        count(Counter::LostRingFull);\n",
        to: "",
        scenario: "ring full",
    },
];

/// Where they are tried.
const KERNEL: &str = "6.12";

/// A scenario that would wait for what never comes gives up long before.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Runs the scenarios as they are, which must pass, and then each against its mutant, which must fail. The sources are a
/// copy below `target`; these here stay as they are.
///
/// # Errors
/// A mutant does not apply, build, or run, or a scenario fails without one.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let toolchain = Toolchain::ensure(project)?;
    vm::setup(project)?;
    let kernel = vm::ensure_kernel(project, &KERNEL.parse::<Series>()?, false)?;
    let scenarios = dist::build(project, &toolchain, dist::SCENARIOS)?;
    let copy = Project::at(project.target().join("mutants"));
    copy_sources(project, &copy)?;

    let snat_trace = dist::build(&copy, &toolchain, dist::SNAT_TRACE)?;
    let names: Vec<&str> = MUTANTS.iter().map(|mutant| mutant.scenario).collect();
    for row in guest(project, &kernel, &[&snat_trace, &scenarios], &names)? {
        ensure!(row.result == Ended::Ok, "{} does not pass without a mutant: {}", row.name, row.text);
    }

    let mut table = String::new();
    let mut survivors = 0;
    for (number, mutant) in MUTANTS.iter().enumerate() {
        eprintln!("\n== mutant {} of {}: {}", number + 1, MUTANTS.len(), mutant.name);
        copy_sources(project, &copy)?;
        mutant.apply(&copy)?;
        // Some scenarios watch in their own process.
        let snat_trace = dist::build(&copy, &toolchain, dist::SNAT_TRACE)?;
        let scenarios = dist::build(&copy, &toolchain, dist::SCENARIOS)?;
        let rows = guest(project, &kernel, &[&snat_trace, &scenarios], &[mutant.scenario])?;
        let caught = rows.iter().find(|row| row.result == Ended::Failed);
        survivors += u32::from(caught.is_none());
        let what = caught.map_or_else(|| "SURVIVED".to_owned(), |row| format!("caught by {}", row.name));
        let why = caught.and_then(|row| row.text.lines().next()).unwrap_or_default();
        let why: String = why.chars().take(80).collect();
        let line = format!("{:<40} {what:<36} {why}\n", mutant.name);
        // A run of the better part of an hour may be stopped before its end.
        eprint!("{line}");
        table.push_str(&line);
    }
    eprint!("\n{table}{} mutants, {survivors} survived\n", MUTANTS.len());
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Mutant {
    /// Breaks the copy.
    fn apply(&self, copy: &Project) -> Result<()> {
        let path = copy.root().join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            text.matches(self.from).count() == 1,
            "the mutant {:?} does not fit: {:?} does not stand just once in {}",
            self.name,
            self.from,
            self.file
        );
        fs::write(&path, text.replacen(self.from, self.to, 1))?;
        Ok(())
    }
}

/// Rows of the scenarios whose names have one of `parts` in them.
fn guest(project: &Project, kernel: &Kernel, binaries: &[&PathBuf], parts: &[&str]) -> Result<Vec<Row>> {
    let payload = binaries.iter().map(|binary| Payload::plain((*binary).clone())).collect::<Result<_>>()?;
    let command = ["scenarios", "--rows", "loaded"].iter().chain(parts).map(|&word| word.to_owned()).collect();
    let outcome = vm::run(project, kernel, &VmRun::new(command, payload, TIMEOUT))?;
    outcome.exit_code()?;
    let rows = Report::parse(&outcome.output)?.rows;
    if rows.is_empty() {
        bail!("no scenario has a name with {}", parts.join(" or "));
    }
    Ok(rows)
}

/// Makes the copy as the sources are. Only what differs is written, so that little is built anew.
fn copy_sources(project: &Project, copy: &Project) -> Result<()> {
    let skipped = [".git", "target"].map(|name| project.root().join(name));
    let mut folders = vec![project.root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if skipped.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                copy_file(&path, &copy.root().join(path.strip_prefix(project.root())?))?;
            }
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_the_sources() {
        let project = Project::find().unwrap();
        for mutant in MUTANTS {
            let text = fs::read_to_string(project.root().join(mutant.file)).unwrap();
            assert_eq!(text.matches(mutant.from).count(), 1, "{}", mutant.name);
            assert_ne!(mutant.from, mutant.to, "{}", mutant.name);
        }
    }
}
