//! The commands of others the lab runs: `ip` and `nft`, each fed one script, and `iptables`, a rule a time.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::addresses::Family;
use super::error::{Doing, LabError};
use super::netns::Netns;
use super::setup::RuleTool;

/// Where system commands are when `PATH` is a plain user's.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where commands are looked for.
#[derive(Debug)]
pub(super) struct Tools {
    path: OsString,
}

impl Tools {
    /// Takes the search path from the environment, and looks for `ip`, without which there is no lab at all.
    pub(super) fn find() -> Result<Self, LabError> {
        let tools = Self { path: std::env::var_os("PATH").unwrap_or_default() };
        tools.program("ip", "iproute2")?;
        Ok(tools)
    }

    fn program(&self, tool: &'static str, package: &'static str) -> Result<PathBuf, LabError> {
        find_in(&self.path, tool).ok_or(LabError::MissingTool { tool, package })
    }

    /// `ip -batch` inside `netns`; `place` names it in an error.
    pub(super) fn ip(&self, netns: &Netns, place: &str, script: &str) -> Result<(), LabError> {
        let failed = run(&self.program("ip", "iproute2")?, &["-batch", "-"], netns, script)?;
        failed.map_or(Ok(()), |said| Err(command_error("ip", place, &said)))
    }

    /// `nft -f` inside `netns`.
    pub(super) fn nft(&self, netns: &Netns, place: &str, script: &str) -> Result<(), LabError> {
        let Some(said) = run(&self.program("nft", "nftables")?, &["-f", "-"], netns, script)? else { return Ok(()) };
        // nft repeats the line the kernel refused; the only one of ours with this word is the queue rule.
        if said.lines().any(|line| line.contains("queue num")) {
            return Err(LabError::NoQueue { reason: first_line(&said) });
        }
        Err(command_error("nft", place, &said))
    }

    /// One rule of the node.
    pub(super) fn iptables(&self, tool: RuleTool, family: Family, node: &Netns, rule: &str) -> Result<(), LabError> {
        let tool = match (tool, family) {
            (RuleTool::Nft, _) => "nft",
            (RuleTool::IptablesNft, Family::V4) => "iptables-nft",
            (RuleTool::IptablesNft, Family::V6) => "ip6tables-nft",
            (RuleTool::IptablesLegacy, Family::V4) => "iptables-legacy",
            (RuleTool::IptablesLegacy, Family::V6) => "ip6tables-legacy",
        };
        let arguments: Vec<&str> = rule.split_whitespace().collect();
        let failed = run(&self.program(tool, "iptables")?, &arguments, node, "")?;
        failed.map_or(Ok(()), |said| Err(command_error(tool, "node", &said)))
    }
}

/// The first file of this name in `path`, or where system commands are.
pub(crate) fn find_in(path: &OsStr, tool: &str) -> Option<PathBuf> {
    let system = SYSTEM_DIRECTORIES.iter().map(PathBuf::from);
    std::env::split_paths(path).chain(system).map(|directory| directory.join(tool)).find(|file| file.is_file())
}

/// What the command wrote to stderr when it failed.
fn run(program: &Path, arguments: &[&str], netns: &Netns, script: &str) -> Result<Option<String>, LabError> {
    // The child is started by a thread inside the namespace and inherits it.
    let output = netns.inside(|| {
        let mut child = Command::new(program)
            .args(arguments)
            // The namespace is ours alone: iptables needs no lock, and shall leave no file of one behind.
            .env("XTABLES_LOCKFILE", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .doing("start ip, nft or iptables")?;
        // A command that stops reading has failed and says why.
        let _unread = child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes()));
        child.wait_with_output().doing("wait for ip, nft or iptables")
    })?;
    Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn command_error(tool: &'static str, place: &str, said: &str) -> LabError {
    LabError::Command { tool, place: place.to_owned(), message: first_line(said) }
}

/// Without the place in the script, of which the user has no copy.
fn first_line(said: &str) -> String {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it did not say why");
    line.split_once("Error: ").map_or(line, |(_, message)| message).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_found_beside_the_path_or_not_at_all() {
        assert!(find_in(OsStr::new("/nowhere"), "sh").is_some());
        assert_eq!(find_in(OsStr::new("/nowhere"), "no-such-tool"), None);
    }

    #[test]
    fn the_first_line_that_says_something_is_quoted() {
        assert_eq!(first_line("\n  /dev/stdin:8:44-48: Error: no\n  more\n"), "no");
        assert_eq!(first_line("Cannot find device \"x0\"\n"), "Cannot find device \"x0\"");
        assert_eq!(first_line("\n"), "it did not say why");
    }
}
