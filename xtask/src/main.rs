//! Set-up, builds, virtual machines and tests of snat-trace.

mod bench;
mod btf_fixture;
mod debian;
mod demo;
mod dist;
mod elf;
mod matrix;
mod mutants;
mod progress;
mod project;
mod selftest;
mod stages;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use project::Project;
use toolchain::Toolchain;
use vm::{Payload, Series, VmRun};

/// Set-up, builds, virtual machines and tests of snat-trace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install whatever is missing here (the other commands do it for themselves, each for its own needs)
    Setup,
    /// Build one static binary: target/dist/snat-trace, with its man pages and completions
    Build,
    /// Set up, build, and show snat-trace catching real races, here or in a virtual machine
    Demo,
    /// Set up and run every test: format, lints, tests, and scenarios on Debian kernels in virtual machines
    Test,
    /// Run the scenarios on every kernel and write the table of what came of them: docs/MATRIX.md
    Matrix {
        /// Run these only (5.10, 6.1-rt); of the others the table has what they said the last time
        kernels: Vec<String>,

        /// Run only scenarios with this in their names; of the others the table has what they said the last time
        #[arg(long)]
        scenario: Vec<String>,
    },
    /// Measure what snat-trace costs beside other tools, and write docs/COST.md, docs/cost.json and plots
    ///
    /// In one virtual machine and on this machine, which should have nothing else to do: most of an hour.
    Bench {
        /// Measure nothing: write the document anew from docs/cost.json
        #[arg(long, conflicts_with = "natively")]
        again: bool,

        /// Measure on this machine itself only; of the virtual machine the document has what it said the last time
        #[arg(long)]
        natively: bool,
    },
    /// Break the sources in one place at a time and see that a scenario fails
    Mutants,
    /// Run a command in a virtual machine with a Debian kernel, and end with its exit code
    ///
    /// The command's working folder, which is also in its PATH, holds a static snat-trace and the files given. What it
    /// says comes as it says it. Exit code 125: there was no guest, or it hung, panicked, or never said how the command
    /// ended.
    Vm(VmArguments),
    /// Cut a kernel's BTF down to what snat-trace reads, for snat-trace/tests/data/kernels
    BtfFixture(btf_fixture::Args),
}

#[derive(Args, Debug)]
struct VmArguments {
    /// Kernel series: 6.12, 7 for the newest 7.x, 6.12-full and 6.12-rt for other flavours than the cloud's
    #[arg(long, value_name = "SERIES")]
    kernel: Series,
    /// Look for a newer kernel of the series than the one found last time
    #[arg(long)]
    refresh: bool,
    /// Guest processors
    #[arg(long, default_value_t = 2)]
    smp: u32,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Kill the guest after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    timeout: u64,
    /// Put a file into the guest's working folder, under another name if one is given
    #[arg(long = "file", value_name = "HOST[:GUESTNAME]", value_parser = vm::parse_payload)]
    files: Vec<Payload>,
    /// Load no kernel modules: they lie in /mods, to be loaded in the order of /mods/order
    #[arg(long)]
    no_modules: bool,
    /// Neither build nor take snat-trace along
    #[arg(long)]
    bare: bool,
    /// The command and its arguments (for a shell's line: sh -c 'LINE')
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Exit code of `vm` when the guest gave none.
const NO_EXIT_CODE: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let project = Project::find()?;
    match command {
        Command::Setup => {
            Toolchain::ensure(&project)?;
            vm::setup(&project)?;
            eprintln!("set-up: everything is here");
        }
        Command::Build => {
            let toolchain = Toolchain::ensure(&project)?;
            let binary = dist::build(&project, &toolchain, dist::SNAT_TRACE)?;
            dist::companions(&project, &binary)?;
            eprintln!("built {}, with man pages and completions beside it", binary.display());
        }
        Command::Demo => return demo::run(&project),
        Command::Test => return test::run(&project),
        Command::Matrix { kernels, scenario } => {
            return matrix::run(&project, matrix::Part { kernels: &kernels, scenarios: &scenario });
        }
        Command::Bench { again: true, .. } => bench::again(&project)?,
        Command::Bench { natively: true, .. } => return bench::natively(&project),
        Command::Bench { .. } => return bench::run(&project),
        Command::Mutants => return mutants::run(&project),
        Command::BtfFixture(arguments) => btf_fixture::run(&arguments)?,
        Command::Vm(arguments) => return Ok(run_vm(&project, arguments)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The guest's exit code, and never another one that could be taken for it.
fn run_vm(project: &Project, arguments: VmArguments) -> ExitCode {
    ExitCode::from(guest_exit_code(project, arguments).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        NO_EXIT_CODE
    }))
}

fn guest_exit_code(project: &Project, arguments: VmArguments) -> Result<u8> {
    let mut payload = arguments.files;
    if !arguments.bare {
        let toolchain = Toolchain::ensure(project)?;
        payload.push(Payload::plain(dist::build(project, &toolchain, dist::SNAT_TRACE)?)?);
    }
    vm::setup(project)?;
    let kernel = vm::ensure_kernel(project, &arguments.kernel, arguments.refresh)?;
    let mut run = VmRun::new(arguments.command, payload, Duration::from_secs(arguments.timeout));
    run.smp = arguments.smp;
    run.memory = arguments.memory;
    run.load_modules = !arguments.no_modules;
    vm::run(project, &kernel, &run)?.exit_code()
}
