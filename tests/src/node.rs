//! A node of a scenario's own: a network namespace with addresses on its loopback, rules, and the kernel's counters.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use snat_trace::counters::netns::in_netns;

/// The namespace; removed when dropped.
#[derive(Debug)]
pub struct Node {
    name: &'static str,
}

impl Node {
    /// A new one, with `addresses` of IPv4 on its loopback and the rules of `ruleset` (nft).
    ///
    /// # Errors
    ///
    /// `ip` or `nft` fails.
    pub fn new(name: &'static str, addresses: &[&str], ruleset: &str) -> Result<Self> {
        command("ip", &["netns", "add", name], "")?;
        let node = Self { name };
        node.inside(|| {
            command("ip", &["link", "set", "lo", "up"], "")?;
            addresses
                .iter()
                .try_for_each(|address| command("ip", &["address", "add", address, "dev", "lo"], "").map(drop))?;
            command("nft", &["-f", "-"], ruleset).map(drop)
        })?;
        Ok(node)
    }

    /// Runs `work` on a thread of its own inside. Threads and processes it starts begin there too.
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_netns(File::open(format!("/run/netns/{}", self.name))?.as_fd(), work)?
    }

    /// Its inode number.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn inum(&self) -> Result<u64> {
        Ok(rustix::fs::stat(format!("/run/netns/{}", self.name))?.st_ino)
    }

    /// What the kernel counted in it, from /proc, by the names in its first line.
    ///
    /// # Errors
    ///
    /// The file is not of the form known.
    pub fn counters(&self) -> Result<Counters> {
        self.inside(|| Counters::parse(&fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack")?))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whoever cannot remove it has said more by now than this could.
        let _ = command("ip", &["netns", "delete", self.name], "");
    }
}

/// Columns of `/proc/net/stat/nf_conntrack`, each the sum over CPUs.
#[derive(Clone, Debug)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// The file's names and numbers.
    ///
    /// # Errors
    ///
    /// A line has fewer numbers than there are names, or something else in their place.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().context("no first line")?.split_whitespace().collect();
        let mut sums = BTreeMap::<String, u64>::new();
        for line in lines {
            let mut numbers = line.split_whitespace();
            for name in &names {
                let number = numbers.next().context("a short line")?;
                *sums.entry((*name).to_owned()).or_default() += u64::from_str_radix(number, 16)?;
            }
        }
        Ok(Self(sums))
    }

    /// One of them; `None` where this kernel has no such column.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// One of them; 0 where this kernel has no such column.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.column(name).unwrap_or(0)
    }
}

/// Runs a command to its end, `input` being its standard input; what it printed.
///
/// # Errors
///
/// It fails; what it said is in the error.
pub fn command(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    child.stdin.take().context("stdin is a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
