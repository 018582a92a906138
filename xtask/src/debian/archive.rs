//! Packages of any suite, with package lists of our own: the machine's package state stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::sources::Source;
use crate::progress;

/// The amd64 packages of one suite, or of several looked at together.
#[derive(Debug)]
pub(crate) struct Archive {
    name: String,
    dir: PathBuf,
    /// The dpkg status to resolve dependencies against: an empty one of our own, or the machine's.
    status: PathBuf,
}

/// A package as a suite has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its Debian version.
    pub(crate) version: String,
}

impl Archive {
    /// For looking and downloading: nothing counts as installed. Lists are kept below `dir`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn isolated(dir: &Path, source: &Source) -> Result<Self> {
        let dir = dir.join(&source.suite);
        let status = dir.join("status");
        let archive = Self { name: source.suite.clone(), dir, status };
        archive.prepare(&source.line())?;
        fs::write(&archive.status, "")?;
        Ok(archive)
    }

    /// For installing on this machine from suites it does not use itself. Lists are kept in `dir`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn for_this_machine(dir: &Path, sources: &[Source]) -> Result<Self> {
        let name = sources.iter().map(|source| source.suite.as_str()).collect::<Vec<_>>().join(", ");
        let archive = Self { name, dir: dir.to_path_buf(), status: PathBuf::from("/var/lib/dpkg/status") };
        archive.prepare(&sources.iter().map(Source::line).collect::<String>())?;
        Ok(archive)
    }

    fn prepare(&self, sources: &str) -> Result<()> {
        for part in ["lists/partial", "archives/partial", "none"] {
            let part = self.dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        fs::write(self.dir.join("sources.list"), sources)?;
        Ok(())
    }

    /// An apt program that sees only this archive.
    pub(crate) fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, path: &Path| {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        };
        option("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        option("Dir::Etc::sourceparts", &self.dir.join("none"));
        option("Dir::Etc::preferences", Path::new("/dev/null"));
        option("Dir::Etc::preferencesparts", &self.dir.join("none"));
        option("Dir::State::Lists", &self.dir.join("lists"));
        option("Dir::State::status", &self.status);
        option("Dir::Cache", &self.dir);
        command.args(["-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64"]);
        // Our folders may be closed to apt's own user.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.env("LC_ALL", "C.UTF-8");
        command
    }

    /// Brings the lists up to date; little is transferred when they are.
    ///
    /// # Errors
    /// The mirror cannot be reached or does not have the suite.
    pub(crate) fn update(&self) -> Result<()> {
        let label = format!("package lists of {}", self.name);
        progress::run(label, self.apt("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))?;
        Ok(())
    }

    /// Every version of the packages whose name matches `pattern`, an extended regular expression.
    ///
    /// # Errors
    /// apt fails.
    pub(crate) fn packages(&self, pattern: &str) -> Result<Vec<Package>> {
        let found = progress::capture(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        let names: Vec<&str> = found.lines().filter_map(|line| line.split_whitespace().next()).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        Ok(parse_madison(&progress::capture(self.apt("apt-cache").arg("madison").args(names))?))
    }

    /// Packages and everything they depend on, as a machine without any would install them.
    ///
    /// # Errors
    /// One of them is not to be had.
    pub(crate) fn closure(&self, names: &[&str]) -> Result<Vec<Package>> {
        let mut plan = self.apt("apt-get");
        plan.args(["-q", "--simulate", "--no-install-recommends", "install"]).args(names);
        Ok(parse_plan(&progress::capture(&mut plan)?))
    }

    /// Downloads packages into `dir`.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub(crate) fn download(&self, label: &str, packages: &[Package], dir: &Path) -> Result<()> {
        let wanted = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        progress::run(label, self.apt("apt-get").args(["-q", "download"]).args(wanted).current_dir(dir))?;
        Ok(())
    }
}

/// Lines of `apt-cache madison`: name, version and place, separated by `|`.
fn parse_madison(text: &str) -> Vec<Package> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let (name, version) = (columns.next()?, columns.next()?);
            let binary = columns.next()?.ends_with("Packages");
            binary.then(|| Package { name: name.to_owned(), version: version.to_owned() })
        })
        .collect()
}

/// Lines of `apt-get --simulate install` for what would be unpacked: `Inst NAME (VERSION SUITES [ARCHITECTURE])`.
fn parse_plan(text: &str) -> Vec<Package> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Inst ")?.split_whitespace();
            let (name, version) = (words.next()?, words.next()?.strip_prefix('(')?);
            Some(Package { name: name.to_owned(), version: version.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_plan() {
        let text = "\
The following NEW packages will be installed:
  tcpdump libc6
Inst libc6 (2.41-12+deb13u1 Debian:13.7/stable [amd64]) []
Inst tcpdump (4.99.5-2 Debian:13.7/stable [amd64])
Conf tcpdump (4.99.5-2 Debian:13.7/stable [amd64])
";
        let package = |name: &str, version: &str| Package { name: name.to_owned(), version: version.to_owned() };
        assert_eq!(parse_plan(text), [package("libc6", "2.41-12+deb13u1"), package("tcpdump", "4.99.5-2")]);
    }

    #[test]
    fn madison_lines() {
        let text = "\
linux-image-6.1.0-50-cloud-amd64 | 6.1.176-1 | http://mirror.test/debian bookworm/main amd64 Packages
 linux-image-cloud-amd64 | 6.1.176-1 | http://mirror.test/debian bookworm/main amd64 Packages
     linux | 6.1.176-1 | http://mirror.test/debian bookworm/main Sources
N: something else
";
        let package = |name: &str| Package { name: name.to_owned(), version: "6.1.176-1".to_owned() };
        assert_eq!(
            parse_madison(text),
            [package("linux-image-6.1.0-50-cloud-amd64"), package("linux-image-cloud-amd64")]
        );
    }
}
