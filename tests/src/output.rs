//! What snat-trace printed, as JSON lines.

use std::fs::File;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::scenario::Numbers;

/// The binary under test, which lies in `PATH`.
pub const SNAT_TRACE: &str = "snat-trace";

/// How many characters are shown of the last line of a run that failed: a lab lists what differs, one race after another.
const SHOWN: usize = 1000;

/// Everything one run printed.
#[derive(Debug)]
pub struct Lines(Vec<Value>);

impl Lines {
    /// Runs snat-trace with `arguments` and `--format json`.
    ///
    /// # Errors
    ///
    /// It did not end with 0 (its standard error is in the error), or printed something that is no JSON.
    pub fn of(arguments: &[&str]) -> Result<Self> {
        Self::accepted(arguments, |_| false)
    }

    /// The same of a lab that may find fault.
    ///
    /// # Errors
    ///
    /// As [`Self::of`], but for a lab that ended with 1 and says so.
    pub fn of_lab(arguments: &[&str]) -> Result<Self> {
        Self::accepted(arguments, |lines| lines.only("lab").is_ok_and(|lab| lab["ok"] == false))
    }

    fn accepted(arguments: &[&str], may_fail: impl FnOnce(&Self) -> bool) -> Result<Self> {
        let output = Command::new(SNAT_TRACE).args(arguments).args(["--format", "json"]).output();
        let output = output.with_context(|| format!("cannot run {SNAT_TRACE}"))?;
        let lines = Self::parse(&output)?;
        ensure!(
            output.status.success() || output.status.code() == Some(1) && may_fail(&lines),
            "`snat-trace {}` ended with {}: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            lines.0.last().map(|last| last.to_string().chars().take(SHOWN).collect::<String>()).unwrap_or_default()
        );
        Ok(lines)
    }

    /// The lines of a run's standard output.
    ///
    /// # Errors
    ///
    /// A line is no JSON.
    pub fn parse(output: &Output) -> Result<Self> {
        Self::parse_bytes(&output.stdout)
    }

    /// Lines as they are.
    ///
    /// # Errors
    ///
    /// A line is no JSON.
    pub fn parse_bytes(printed: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(printed).context("the output is not UTF-8")?;
        let lines = text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")));
        lines.collect::<Result<_>>().map(Self)
    }

    /// Every record of a type.
    pub fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |line| line["type"] == kind)
    }

    /// The one record of a type.
    ///
    /// # Errors
    ///
    /// There is none, or more than one.
    pub fn only<'a>(&'a self, kind: &'a str) -> Result<&'a Value> {
        let mut records = self.all(kind);
        let record = records.next().with_context(|| format!("no {kind} record"))?;
        ensure!(records.next().is_none(), "more than one {kind} record");
        Ok(record)
    }

    /// How many races were printed.
    #[must_use]
    pub fn races(&self) -> u64 {
        self.all("race").count() as u64
    }

    /// A count in the summary's `lost`; 0 when the reason does not stand there.
    ///
    /// # Errors
    ///
    /// There is no summary.
    pub fn lost(&self, reason: &str) -> Result<u64> {
        Ok(self.only("summary")?["lost"][reason].as_u64().unwrap_or(0))
    }

    /// Everything in the summary's `lost`.
    ///
    /// # Errors
    ///
    /// There is no summary.
    pub fn lost_in_all(&self) -> Result<u64> {
        let lost = self.only("summary")?["lost"].as_object().context("lost is no object")?;
        Ok(lost.values().filter_map(Value::as_u64).sum())
    }

    /// Failed inserts that the accounts have no explanation for, or explain and did not count.
    ///
    /// # Errors
    ///
    /// There is no summary.
    pub fn unexplained(&self) -> Result<u64> {
        let accounts = self.only("summary")?["accounts"].as_array().context("no accounts")?;
        Ok(accounts
            .iter()
            .filter_map(|account| Some(account["unexplained"]["insert_failed"].as_i64()?.unsigned_abs()))
            .sum())
    }

    /// Of how many races both senders are named, each the process that `sender` says of its flow. Whoever is named and is
    /// another, or should be nobody, is an error.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn sent_by(&self, sender: impl Fn(&Value) -> Option<u32>) -> Result<u64> {
        let mut both = 0;
        for race in self.all("race") {
            let mut named = true;
            for flow in [&race["loser"], &race["winner"]] {
                let owner = &flow["owner"];
                named &= !owner.is_null();
                ensure!(
                    owner.is_null() || sender(flow).is_some_and(|pid| owner["pid"] == pid),
                    "not its sender: {race}"
                );
            }
            both += u64::from(named);
        }
        Ok(both)
    }

    /// The same where everything was sent by this process.
    ///
    /// # Errors
    ///
    /// Another is named.
    pub fn sent_by_us(&self) -> Result<u64> {
        self.sent_by(|_| Some(std::process::id()))
    }

    /// The cells of a lab's run, as its comparison and its summary have them. They are not judged here.
    ///
    /// # Errors
    ///
    /// A record or a number is missing.
    pub fn numbers(&self) -> Result<Numbers> {
        let lab = self.only("lab")?;
        let number = |name: &str| lab[name].as_u64().with_context(|| format!("{name} is missing: {lab}")).map(Some);
        Ok(Numbers {
            expected: number("packets_lost")?.zip(number("resolved")?).map(|(lost, resolved)| lost + resolved),
            seen: number("seen")?,
            pids_right: number("pids_right")?,
            // Absent when the pods have no cgroups of their own.
            cgroups_right: lab["cgroups_right"].as_u64(),
            unexplained: Some(self.unexplained()?),
            lost: Some(self.lost_in_all()?),
        })
    }
}

/// Whether a lab has found only that something of a race is not told, or the race itself.
#[must_use]
pub fn is_absence(difference: &Value) -> bool {
    let untold = ["unknown", "unclassified"].iter().any(|word| difference["seen"] == *word);
    difference["kind"] == "missing" || difference["kind"] == "wrong" && untold
}

/// Verdicts are the kernel's own, each of them, and none is other than what the tuples prove.
///
/// # Errors
///
/// The summary says otherwise.
pub fn verdicts_are_the_kernels(summary: &Value) -> Result<()> {
    for reason in ["clash-without-verdict", "verdict-against-tuples"] {
        ensure!(summary["incomplete"][reason].is_null(), "{reason}: {summary}");
    }
    Ok(())
}

/// snat-trace with both outputs caught, still running; killed when dropped, so that a scenario that fails leaves the next
/// one nothing to stumble over.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::by(Command::new(SNAT_TRACE).args(arguments))
    }

    /// Starts it by a command that becomes it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn by(command: &mut Command) -> Result<Self> {
        Self::with(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts it with its output in a file, for more of it than fits a pipe.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn into_file(arguments: &[&str], output: File) -> Result<Self> {
        let mut command = Command::new(SNAT_TRACE);
        Self::with(command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::piped()))
    }

    /// Starts whatever it is, with inputs and outputs as they are told.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn with(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self(Some(child)))
    }

    /// The process.
    ///
    /// # Errors
    ///
    /// Never, before it is waited for.
    pub fn child(&mut self) -> Result<&mut Child> {
        self.0.as_mut().context("it was waited for")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child()?.id().cast_signed()).context("a process has a pid")?;
        kill_process(pid, signal).context("cannot send a signal")
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// Its output cannot be read.
    pub fn wait(mut self) -> Result<Output> {
        Ok(self.0.take().context("it was waited for")?.wait_with_output()?)
    }

    /// Ctrl-C, and its end, which must be a good one.
    ///
    /// # Errors
    ///
    /// It ends otherwise.
    pub fn interrupt(mut self) -> Result<Output> {
        self.signal(Signal::INT)?;
        let output = self.wait()?;
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended already.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}
