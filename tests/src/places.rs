//! Bad places and bad moments.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::output::{Lines, Running, SNAT_TRACE, is_absence, verdicts_are_the_kernels};
use crate::scenario::{Numbers, Row, Scenario, whole};

/// Hooks at full detail: of the clash, its verdict, allocations, insertions, four of senders, and cgroups.
pub const HOOKS: usize = 10;

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[
    whole("not root", not_root),
    whole("idle", idle),
    whole("two tracers", two_tracers),
    whole("two labs", two_labs),
    whole("--count", count),
    whole("in traffic", in_traffic),
    whole("ring full", ring_full),
    whole("closed pipe", closed_pipe),
    whole("stuck pipe", stuck_pipe),
    whole("interrupted lab", interrupted_lab),
    whole("killed lab", killed_lab),
];

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Nobody's user id.
const NOBODY: u32 = 65_534;

/// Looks again and again until it holds: what is waited for leaves no event to wait for.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        ensure!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
    Ok(())
}

/// `watch` in JSON, attached.
pub(crate) fn watching(arguments: &[&str], ready: &Path) -> Result<Running> {
    let _absent = fs::remove_file(ready);
    let ready_file = ready.to_str().context("a path is text")?;
    let mut watch = Running::start(&[&["watch", "--format", "json", "--ready-file", ready_file], arguments].concat())?;
    let child = watch.child()?;
    until("the ready file", || ready.exists() || child.try_wait().is_ok_and(|status| status.is_some()))?;
    if !ready.exists() {
        bail!("watch ended early: {}", String::from_utf8_lossy(&watch.wait()?.stderr));
    }
    Ok(watch)
}

/// Functions that have a kprobe now. Needs debugfs.
pub(crate) fn probed() -> Result<Vec<String>> {
    let debugfs = Path::new("/sys/kernel/debug");
    if !debugfs.join("kprobes").exists() {
        let mounted = Command::new("mount").args(["-t", "debugfs", "none"]).arg(debugfs).status()?;
        ensure!(mounted.success(), "cannot mount debugfs");
    }
    let list = fs::read_to_string(debugfs.join("kprobes/list"))?;
    let function =
        |line: &str| line.split_whitespace().nth(2).map(|name| name.split('+').next().unwrap_or(name).to_owned());
    Ok(list.lines().filter_map(function).collect())
}

pub(crate) fn nothing_attached() -> Result<()> {
    until("every kprobe gone", || probed().is_ok_and(|functions| functions.is_empty()))
}

/// Cgroups of labs.
fn lab_cgroups() -> Result<usize> {
    let entries = fs::read_dir("/sys/fs/cgroup")?.filter_map(Result::ok);
    Ok(entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("snat-trace-lab-")).count())
}

/// Processes of pods.
pub(crate) fn pods() -> usize {
    let commands = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    commands
        .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| contains(&line, b"lab-pod")))
        .count()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Without privilege: 3, and the capabilities are named.
///
/// # Errors
///
/// Anything else.
pub fn not_root() -> Result<Row> {
    for command in ["watch", "lab"] {
        let output = Command::new(SNAT_TRACE).arg(command).uid(NOBODY).gid(NOBODY).output()?;
        let error = String::from_utf8_lossy(&output.stderr).to_lowercase();
        ensure!(output.status.code() == Some(3), "{command} as nobody: {}: {error}", output.status);
        ensure!(error.contains("cap_") && error.lines().count() == 1, "{command} as nobody said: {error}");
    }
    Ok(Row::said("exit 3"))
}

/// `--duration` ends an idle watch with an account that closes, on nothing.
///
/// # Errors
///
/// Anything else.
pub fn idle() -> Result<Row> {
    let lines = Lines::of(&["watch", "--duration", "1s"])?;
    ensure!(lines.races() == 0 && lines.only("summary")?["closes"] == true, "{lines:?}");
    let hooks = lines.only("session")?["hooks"].as_array().context("no hooks")?;
    ensure!(hooks.len() == HOOKS && hooks.iter().all(|hook| hook["attached"] == true), "hooks {hooks:?}");
    nothing_attached()?;
    Ok(Row::said(format!("{HOOKS} hooks, no event")))
}

/// A tracer of its own sees the races of a lab as well as the lab's tracer does.
///
/// # Errors
///
/// They differ.
pub fn two_tracers() -> Result<Row> {
    let watch = watching(&[], Path::new("/tmp/ready-two"))?;
    let lab = Lines::of(&["lab", "--rounds", "30"])?;
    let watch = Lines::parse(&watch.interrupt()?)?;
    let contested = |lines: &Lines| {
        lines
            .all("race")
            .map(|race| (race["contested"].to_string(), race["loser"]["owner"]["pid"].to_string()))
            .collect::<Vec<_>>()
    };
    ensure!(contested(&watch) == contested(&lab), "watch saw {} races, the lab {}", watch.races(), lab.races());
    ensure!(watch.races() == 30 && watch.lost_in_all()? == 0, "{} races", watch.races());
    nothing_attached()?;
    Ok(Row::said("30 races each"))
}

/// Two labs at once have the same addresses, and neither takes the other's races or senders for its own.
///
/// # Errors
///
/// One of them does.
pub fn two_labs() -> Result<Row> {
    let arguments = ["lab", "--rounds", "100", "--format", "json"];
    let labs = [Running::start(&arguments)?, Running::start(&arguments)?];
    // Both are read at once: one that nobody reads gives up.
    let outputs = std::thread::scope(|scope| {
        let read = labs.map(|lab| scope.spawn(|| lab.wait()));
        read.map(|output| output.join().unwrap_or_else(|_| bail!("a lab's reader panicked")))
    });
    let mut unnamed = 0;
    for output in outputs {
        let output = output?;
        let lines = Lines::parse(&output)?;
        let (races, error) = (lines.races(), String::from_utf8_lossy(&output.stderr));
        let lab = lines.only("lab").with_context(|| format!("{}: {error}", output.status))?;
        ensure!(races == 100 && lab["account_closes"] == true, "{races} races, {}: {error}{lab}", output.status);
        // Both have the same addresses and ports. A packet that was put off is not seen being sent, and may then be that of
        // either: nobody is named. Everything else is told, and right.
        let differences = lab["differences"].as_array().context("no differences")?;
        let of_senders = |difference: &Value| {
            let what = difference["what"].as_str().unwrap_or_default();
            is_absence(difference) && (what.ends_with("-pid") || what.ends_with("-cgroup"))
        };
        let named = lab["pids_right"].as_u64().context("no number of senders")?;
        ensure!(differences.iter().all(of_senders) && named >= 90, "{error}{lab}");
        unnamed += races - named;
    }
    Ok(Row::said(format!("100 races each, {unnamed} without a sender")))
}

/// `--count` stops after so many, and shows no more.
///
/// # Errors
///
/// Anything else.
pub fn count() -> Result<Row> {
    let watch = watching(&["--count", "3"], Path::new("/tmp/ready-count"))?;
    Lines::of(&["lab", "--rounds", "20"])?;
    let output = watch.wait()?;
    ensure!(output.status.success(), "{}", output.status);
    let lines = Lines::parse(&output)?;
    ensure!(lines.races() == 3, "{} races", lines.races());
    Ok(Row::said("3 races"))
}

/// Watching that begins and ends in the middle of traffic: what was counted before or after is not taken for ours, and the
/// account closes.
///
/// # Errors
///
/// It does not.
pub fn in_traffic() -> Result<Row> {
    let _traffic = lab_with_races(&["--rounds", "40000"])?;
    let mut outside = 0;
    for run in 0..3 {
        let lines = Lines::of(&["watch", "--count", "100", "--duration", "30s"])?;
        let summary = lines.only("summary")?;
        ensure!(lines.races() == 100 && summary["closes"] == true, "run {run}: {summary}");
        verdicts_are_the_kernels(summary).with_context(|| format!("run {run}"))?;
        outside += summary["outside"].as_u64().unwrap_or(0);
    }
    Ok(Row::said(format!("3 accounts close; {outside} races outside their readings")))
}

/// A stopped reader and a ring of one page: what does not fit is counted, and seen = delivered + lost.
///
/// # Errors
///
/// Anything else.
pub fn ring_full() -> Result<Row> {
    const ROUNDS: u64 = 40;

    let mut watch = watching(&["--ring-bytes", "4096"], Path::new("/tmp/ready-ring"))?;
    watch.signal(Signal::STOP)?;
    let lab = Lines::of(&["lab", "--rounds", &ROUNDS.to_string()])?;
    watch.signal(Signal::CONT)?;
    let lines = Lines::parse(&watch.interrupt()?)?;
    // The lab has held those it was told itself against its pods.
    let pod = |flow: &Value| {
        let mut sent = lab.all("race").flat_map(|race| [&race["loser"], &race["winner"]]);
        let same = sent.find(|known| known["original"] == flow["original"])?;
        u32::try_from(same["owner"]["pid"].as_u64()?).ok()
    };
    let pids_right = Some(lines.sent_by(pod)?);
    let (races, lost) = (lines.races(), lines.lost("ring-full")?);
    ensure!(races > 0 && lost > 0 && races + lost == ROUNDS, "{races} races and {lost} lost are not {ROUNDS}");
    ensure!(lines.only("summary")?["closes"] == false, "an account with losses does not close");
    let numbers = Numbers {
        expected: Some(ROUNDS),
        seen: Some(races),
        pids_right,
        lost: Some(lost),
        unexplained: Some(lines.unexplained()?),
        ..Numbers::default()
    };
    Ok(Row { text: "seen + lost are all".to_owned(), numbers })
}

/// Whoever reads our output goes away: a normal end.
///
/// # Errors
///
/// Anything else.
pub fn closed_pipe() -> Result<Row> {
    let mut watch = watching(&[], Path::new("/tmp/ready-pipe"))?;
    let mut first = String::new();
    BufReader::new(watch.child()?.stdout.take().context("stdout is a pipe")?).read_line(&mut first)?;
    Lines::of(&["lab", "--rounds", "3"])?;
    let output = watch.wait()?;
    ensure!(output.status.code() == Some(0), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(Row::said("exit 0"))
}

/// Whoever should read our output does not: one signal ends us all the same, and what was not written is not passed over.
///
/// # Errors
///
/// Anything else.
pub fn stuck_pipe() -> Result<Row> {
    // Some 300 KB of JSON, where a pipe holds 64.
    let mut watch = watching(&[], Path::new("/tmp/ready-stuck"))?;
    Lines::of(&["lab", "--pods", "8", "--rounds", "40"])?;
    watch.signal(Signal::TERM)?;
    let child = watch.child()?;
    until("the end of watch", || child.try_wait().is_ok_and(|status| status.is_some()))?;
    nothing_attached()?;
    let output = watch.wait()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && error.contains("cannot write the output"), "{}: {error}", output.status);
    Ok(Row::said("exit 1"))
}

/// Ctrl-C in the middle of a lab: nothing remains.
///
/// # Errors
///
/// Something does.
pub fn interrupted_lab() -> Result<Row> {
    let mut lab = lab_with_races(&["--rounds", "40000"])?;
    lab.signal(Signal::INT)?;
    let output = lab.wait()?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(pods() == 0 && lab_cgroups()? == 0, "{} pods and {} cgroups remain", pods(), lab_cgroups()?);
    nothing_attached()?;
    Ok(Row::said("nothing remains"))
}

/// SIGKILL in the middle of a lab: nothing stays attached, and what the next lab leaves is nothing.
///
/// # Errors
///
/// Something remains.
pub fn killed_lab() -> Result<Row> {
    let mut lab = lab_with_races(&["--rounds", "40000"])?;
    lab.signal(Signal::KILL)?;
    lab.wait()?;
    nothing_attached()?;
    until("every pod gone", || pods() == 0)?;
    let left = lab_cgroups()?;
    Lines::of(&["lab", "--rounds", "2"])?;
    ensure!(lab_cgroups()? == 0, "the next lab left {} cgroups", lab_cgroups()?);
    Ok(Row::said(format!("{left} cgroups left, removed by the next lab")))
}

/// A lab that has printed a race and has many more rounds to go.
pub(crate) fn lab_with_races(arguments: &[&str]) -> Result<Running> {
    let mut lab = Running::start(&[&["lab", "--format", "json"], arguments].concat())?;
    let stdout = lab.child()?.stdout.take().context("stdout is a pipe")?;
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    while !line.contains("\"type\":\"race\"") {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            let mut error = String::new();
            lab.child()?.stderr.take().context("stderr is a pipe")?.read_to_string(&mut error)?;
            bail!("the lab ended without a race: {error}");
        }
    }
    // Goes on reading, so that the lab never waits for us.
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
    Ok(lab)
}
