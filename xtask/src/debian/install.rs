//! Installing packages on this machine: says what first, asks for nothing that is there already.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{self, announce};

/// What we need must never cost the user a package of theirs: apt would rather fail.
const NO_REMOVE: &str = "--no-remove";

/// Whether this machine's packages are Debian's.
pub(crate) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists()
}

fn may_install() -> bool {
    is_debian() && rustix::process::geteuid().is_root()
}

/// Those of `packages` that are not installed.
///
/// # Errors
/// dpkg-query cannot be started.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status} ${Package}\n"]).args(packages);
    // It fails when it does not know one of them, and lists the others all the same.
    let output = query.output().context("cannot start dpkg-query")?;
    let installed = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &str| installed.lines().any(|line| line.strip_prefix("installed ") == Some(package));
    Ok(packages.iter().copied().filter(|package| !is_installed(package)).collect())
}

/// The version apt would install.
///
/// # Errors
/// apt-cache fails.
pub(crate) fn candidate(package: &str) -> Result<Option<String>> {
    let policy = progress::capture(Command::new("apt-cache").env("LC_ALL", "C.UTF-8").args(["policy", package]))?;
    Ok(parse_candidate(&policy))
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// Brings the machine's package lists up to date, when we may.
///
/// # Errors
/// apt-get fails.
pub(crate) fn update_lists() -> Result<()> {
    if may_install() {
        progress::run("package lists of this machine", apt_get().args(["-q", "update"]))?;
    }
    Ok(())
}

/// Whether apt would install `package` without taking another one away.
pub(crate) fn is_installable(package: &str) -> bool {
    let arguments = ["-s", "-q", "--no-install-recommends", NO_REMOVE, "install", package];
    progress::capture(apt_get().args(arguments)).is_ok()
}

/// Installs those of `packages` that are not installed yet, which are needed for `purpose`.
///
/// # Errors
/// As [`install`].
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing = missing(packages)?;
    for package in &missing {
        if candidate(package)?.is_none() {
            update_lists()?;
            break;
        }
    }
    install(&missing, purpose)
}

/// Installs `packages`, which are needed for `purpose`.
///
/// # Errors
/// We may not (the message has the command to run), or apt-get fails.
pub(crate) fn install(packages: &[&str], purpose: &str) -> Result<()> {
    install_with(apt_get, packages, &[], purpose)
}

/// The same with an apt-get of the caller's making and further arguments.
///
/// # Errors
/// As [`install`].
pub(crate) fn install_with(
    apt_get: impl Fn() -> Command,
    packages: &[&str],
    arguments: &[&str],
    purpose: &str,
) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !may_install() {
        bail!("missing for {purpose}: {list}. Run this, then try again:\n  {}", command_line(&list));
    }
    announce(&format!("installing {list} (for {purpose})"));
    let mut command = apt_get();
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Somebody else may be installing at this moment.
    command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", NO_REMOVE]);
    command.args(arguments).arg("install").args(packages);
    progress::run(format!("installing {} packages", packages.len()), &mut command)?;
    Ok(())
}

/// What a user types to install `packages`.
pub(crate) fn command_line(packages: &str) -> String {
    if is_debian() {
        format!("sudo apt-get update && sudo apt-get install --no-install-recommends {packages}")
    } else {
        format!("(with your distribution's package manager; the names are Debian's) install {packages}")
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C.UTF-8");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_of_a_policy() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(parse_candidate("a:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
