//! More clashes than anybody can read. Whatever happens: seen = delivered + lost, in order, within bounds of memory and
//! of time.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::output::{Lines, Running, SNAT_TRACE};
use crate::places::{nothing_attached, until, watching};
use crate::process::Usage;
use crate::scenario::{Numbers, Row, Scenario, whole};
use crate::storm::{Sent, Storm};

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[
    whole("storm, full", || storm("full")),
    whole("storm, minimal", || storm("minimal")),
    whole("stalled reader, ring of a page", || stall(&["--ring-bytes", "4096"])),
    whole("stalled reader, ring of 64 KiB", || stall(&["--ring-bytes", "65536"])),
    whole("stalled reader", || stall(&[])),
    whole("slow pipe", slow_pipe),
    whole("full disk", full_disk),
];

/// How long a watch may take to end in a storm, in a guest without a CPU of its own: what waits is not all shown, but the
/// account is. Where everything was shown it took a minute.
const END: Duration = Duration::from_secs(10);

/// Most KiB a storm may add: the records held back, twice their number of bytes for good measure.
const GROWTH: u64 = 32 * 1024;

/// What stands before the pid of a sender.
const OWNER: &str = r#""owner":{"pid":"#;

/// What a watch printed, counted as it came.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    pub(crate) races: u64,
    out_of_order: u64,
    /// Senders named that are not this process, which sends all there is.
    others: u64,
    session_and_summary: Vec<u8>,
}

impl Printed {
    /// Reads to the end.
    fn read(output: impl Read) -> Result<Self> {
        let mut printed = Self::default();
        let mut last = String::new();
        let us = format!("{},", std::process::id());
        for line in BufReader::new(output).lines() {
            let line = line?;
            // In one zone and with nine digits, times sort as text.
            match line.strip_prefix(r#"{"type":"race","time":""#).and_then(|rest| rest.get(..30)) {
                Some(time) => {
                    printed.races += 1;
                    printed.out_of_order += u64::from(time < last.as_str());
                    let owners = line.split(OWNER).skip(1);
                    printed.others += owners.filter(|pid| !pid.starts_with(&us)).count() as u64;
                    time.clone_into(&mut last);
                }
                None => printed.session_and_summary.extend([line.as_bytes(), b"\n"].concat()),
            }
        }
        Ok(printed)
    }

    pub(crate) fn summary(&self) -> Result<Value> {
        Lines::parse_bytes(&self.session_and_summary)?.only("summary").cloned()
    }
}

/// A watch whose output is read as it comes.
pub(crate) struct Watch {
    pub(crate) running: Running,
    reader: JoinHandle<Result<Printed>>,
}

impl Watch {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let mut running = watching(arguments, Path::new("/tmp/ready-load"))?;
        let output = running.child()?.stdout.take().context("stdout is a pipe")?;
        Ok(Self { running, reader: thread::spawn(move || Printed::read(output)) })
    }

    /// Most memory it ever had, in KiB.
    fn peak(&mut self) -> Result<u64> {
        Ok(Usage::of(self.running.child()?.id())?.peak_kib)
    }

    /// Ctrl-C, and what it printed; and how long that took.
    pub(crate) fn end(mut self) -> Result<(Printed, Duration)> {
        let start = Instant::now();
        self.running.signal(Signal::INT)?;
        let output = self.running.wait()?;
        let took = start.elapsed();
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        Ok((self.reader.join().unwrap_or_else(|_| bail!("the reader panicked"))?, took))
    }
}

/// Holds what was printed against what the senders know.
fn judge(printed: &Printed, sent: Sent, netns: u32) -> Result<Numbers> {
    let summary = printed.summary()?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("a number is missing in {summary}"));
    let lost = summary["lost"].as_object().context("lost is no object")?;
    let lost: u64 = lost.values().filter_map(Value::as_u64).sum();
    let dropped = number(&summary["races"]["dropped"])?;
    ensure!(printed.out_of_order == 0, "{} races out of order", printed.out_of_order);
    ensure!(printed.others == 0, "{} senders are others", printed.others);
    ensure!(dropped == printed.races, "{} races printed, {dropped} in the summary", printed.races);
    ensure!(dropped + lost == sent.refused, "{dropped} races and {lost} lost are not {}: {summary}", sent.refused);
    let accounts = summary["accounts"].as_array().context("no accounts")?;
    let account = accounts.iter().find(|account| account["netns"] == netns).context("the storm has no account")?;
    ensure!(number(&account["counters"]["insert_failed"])? == sent.refused, "counted {account}, sent {sent:?}");
    ensure!(summary["closes"] == (lost == 0), "closes with {lost} lost: {summary}");
    let (expected, seen, unexplained) =
        (sent.refused, printed.races, number(&account["unexplained"]["insert_failed"])?);
    ensure!(unexplained == lost, "{lost} lost and {unexplained} unexplained: {account}");
    Ok(Numbers {
        expected: Some(expected),
        seen: Some(seen),
        unexplained: Some(unexplained),
        lost: Some(lost),
        ..Numbers::default()
    })
}

/// A storm of a few seconds.
fn storm(detail: &str) -> Result<Row> {
    let storm = Storm::new()?;
    let mut watch = Watch::start(&["--detail", detail])?;
    let before = watch.peak()?;
    let start = Instant::now();
    let sent = storm.rage(2, |_| start.elapsed() > Duration::from_secs(4))?;
    let after = watch.peak()?;
    let (printed, took) = watch.end()?;
    let numbers = judge(&printed, sent, storm.inum()?)?;
    ensure!(took < END, "ended in {took:.1?}");
    ensure!(after < before + GROWTH, "{before} KiB have become {after} KiB");
    Ok(Row { text: format!("{before} + {} KiB, ended in {took:.1?}", after - before), numbers })
}

/// A reader stopped for a second.
fn stall(arguments: &[&str]) -> Result<Row> {
    let storm = Storm::new()?;
    let mut watch = Watch::start(arguments)?;
    watch.running.signal(Signal::STOP)?;
    let start = Instant::now();
    let sent = storm.rage(2, |_| start.elapsed() > Duration::from_secs(1))?;
    watch.running.signal(Signal::CONT)?;
    let (printed, took) = watch.end()?;
    let numbers = judge(&printed, sent, storm.inum()?)?;
    ensure!(took < END, "ended in {took:.1?}");
    Ok(Row { text: format!("ended in {took:.1?}"), numbers })
}

/// A reader that takes a line now and then: what it cannot take is lost, and it has the account all the same.
fn slow_pipe() -> Result<Row> {
    /// Lines a second.
    const PACE: u32 = 50;

    let storm = Storm::new()?;
    let mut running = watching(&[], Path::new("/tmp/ready-load"))?;
    let output = running.child()?.stdout.take().context("stdout is a pipe")?;
    // The pace is the point here, not a time to wait for anything.
    let paced = Paced { output, pause: Duration::from_secs(1) / PACE };
    let watch = Watch { running, reader: thread::spawn(move || Printed::read(paced)) };
    let start = Instant::now();
    let sent = storm.rage(2, |_| start.elapsed() > Duration::from_secs(2))?;
    let (printed, took) = watch.end()?;
    let numbers = judge(&printed, sent, storm.inum()?)?;
    ensure!(took < END, "ended in {took:.1?}");
    Ok(Row { text: format!("ended in {took:.1?}"), numbers })
}

/// Reads no more than about a line at a time, and not too fast.
struct Paced {
    output: ChildStdout,
    pause: Duration,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        thread::sleep(self.pause);
        let length = buffer.len().min(1024);
        self.output.read(&mut buffer[..length])
    }
}

/// The disk that standard output is on is full: one sentence, and nothing stays attached.
fn full_disk() -> Result<Row> {
    for format in ["json", "text"] {
        let mut watch = Command::new(SNAT_TRACE)
            .args(["watch", "--format", format, "--log-level", "error"])
            .stdout(File::options().write(true).open("/dev/full")?)
            .stderr(Stdio::piped())
            .spawn()?;
        until("the end of watch", || watch.try_wait().is_ok_and(|status| status.is_some()))?;
        let output = watch.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{format}: {}: {error}", output.status);
        let said = error.trim_end();
        ensure!(said.contains("No space left on device") && !said.contains('\n'), "{format}: said {said:?}");
        nothing_attached()?;
    }
    Ok(Row::said("exit 1"))
}
