//! `snat-trace completions` and `snat-trace man`: what the command line's definition says, for shells and for man.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};
use clap_mangen::Man;

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
    let mut command = in_full(Cli::command().disable_help_subcommand(true));
    command.build();
    write_pages(&command, folder).with_context(|| format!("cannot write man pages into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// With all help there is: clap_mangen takes options that are left out of the short help for such as have no help.
fn in_full(command: Command) -> Command {
    command.mut_args(|argument| argument.hide_short_help(false)).mut_subcommands(in_full)
}

fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(command, folder)?;
    }
    let (man, mut page) = (Man::new(command.clone()), Vec::new());
    man.render(&mut page)?;
    fs::write(folder.join(man.get_filename()), listed(&String::from_utf8_lossy(&page)))
}

/// The page with the lines that stand in two columns, which man would fill into one paragraph, as a list.
fn listed(page: &str) -> String {
    let mut listed = String::with_capacity(page.len());
    let mut in_list = false;
    for line in page.lines() {
        match line.strip_prefix("  ").and_then(|columns| columns.split_once("  ")) {
            Some((example, what)) => {
                listed.extend([".TP\n.B ", example, "\n", what.trim_start()]);
                in_list = true;
            }
            None if std::mem::take(&mut in_list) && line.is_empty() => listed.push_str(".PP"),
            None => listed.push_str(line),
        }
        listed.push('\n');
    }
    listed
}
