//! Set-up, builds, virtual machines and tests of snat-trace.

mod debian;
mod dist;
mod elf;
mod progress;
mod project;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use project::Project;
use toolchain::Toolchain;

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
    /// Build one static binary: target/dist/snat-trace
    Build,
}

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
        }
        Command::Build => {
            let toolchain = Toolchain::ensure(&project)?;
            let binary = dist::build(&project, &toolchain, dist::SNAT_TRACE)?;
            eprintln!("built {}", binary.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
