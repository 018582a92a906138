//! `snat-trace completions` and `snat-trace man`: what the command line's definition says, for shells and for man.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::cli::{Cli, Shell};
use crate::run::print;

/// How clap_complete 4.6 names the states of the command in bash where it looks them up, and how where it enters them: of a command
/// with a hyphen no option of a subcommand would be found.
const MISSPELT: &str = "snat__subcmd__trace";
const SPELT: &str = "snat__trace";

/// Prints the completions.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode> {
    let (mut command, mut script) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    match shell {
        Shell::Bash => {
            generate(Bash, &mut command, name, &mut script);
            script = String::from_utf8(script)?.replace(MISSPELT, SPELT).into_bytes();
        }
        Shell::Zsh => generate(Zsh, &mut command, name, &mut script),
        Shell::Fish => generate(Fish, &mut command, name, &mut script),
    }
    // At once, so that a closed pipe is an error and no panic.
    print(|out| out.write_all(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for each command.
pub(crate) fn man(folder: &Path) -> Result<ExitCode> {
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("cannot write man pages into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
