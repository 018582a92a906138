//! What is being done and for how long, on stderr.

use std::io::{IsTerminal, Read, Write, stderr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often [`Progress::tick`] wants to be called.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Without a terminal a line a second would drown a log.
const QUIET_TICK: Duration = Duration::from_secs(15);

/// Lines of a failed command's output that are shown.
const SHOWN_LINES: usize = 20;

/// A step that may take more than a second.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    start: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    /// Names the step.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let now = Instant::now();
        let progress = Self { label: label.into(), start: now, shown: now, terminal: stderr().is_terminal() };
        if progress.terminal {
            progress.draw();
        } else {
            eprintln!("  {} ...", progress.label);
        }
        progress
    }

    /// Says that it goes on.
    pub(crate) fn tick(&mut self) {
        if self.terminal {
            self.draw();
        } else if self.shown.elapsed() >= QUIET_TICK {
            self.shown = Instant::now();
            eprintln!("  {} ... {} s", self.label, self.start.elapsed().as_secs());
        }
    }

    /// Says that it is over, with its time.
    pub(crate) fn done(self) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}  {}: {:.1} s", self.label, self.start.elapsed().as_secs_f64());
    }

    /// Takes the line away again, so that something else can be written there.
    pub(crate) fn clear(self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    fn draw(&self) {
        let mut err = stderr().lock();
        // Progress is a courtesy: a closed stderr must not end the work.
        drop(write!(err, "\r\x1b[K  {} ... {} s", self.label, self.start.elapsed().as_secs()));
        drop(err.flush());
    }
}

/// Says what the set-up is about to do.
pub(crate) fn announce(what: &str) {
    eprintln!("set-up: {what}");
}

/// Something the user should know and that does not stop the work.
pub(crate) fn note(what: &str) {
    eprintln!("note: {what}");
}

/// Runs a command that is done in an instant; its stdout.
///
/// # Errors
/// The command cannot be started, or fails.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    finished(command, &output)
}

/// Runs a command with progress; its stdout. What it says is shown only when it fails.
///
/// # Errors
/// The command cannot be started, or fails.
pub(crate) fn run(label: impl Into<String>, command: &mut Command) -> Result<String> {
    let mut progress = Progress::start(label);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = spawned.with_context(|| cannot_start(command))?;
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = loop {
        match receiver.recv_timeout(TICK) {
            Ok(output) => break output?,
            Err(RecvTimeoutError::Timeout) => progress.tick(),
            Err(RecvTimeoutError::Disconnected) => bail!("lost sight of {}", name(command)),
        }
    };
    progress.done();
    finished(command, &output)
}

/// Runs a command that shows its own progress.
///
/// # Errors
/// The command cannot be started, or fails.
pub(crate) fn passthrough(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", name(command));
    }
    Ok(())
}

/// Runs a command that shows its own progress on stderr; its stdout.
///
/// # Errors
/// The command cannot be started, or fails.
pub(crate) fn capture_stdout(command: &mut Command) -> Result<String> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| cannot_start(command))?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})", name(command));
    }
    Ok(text)
}

fn finished(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = format!("{}\n{}", stdout.trim_end(), stderr.trim_end());
    bail!("`{}` failed ({}):\n{}", name(command), output.status, last_lines(&said, SHOWN_LINES))
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().display())
}

/// The command as a user would type it, without its environment.
fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut name = program.file_name().unwrap_or(program.as_os_str()).display().to_string();
    for argument in command.get_args() {
        name.push(' ');
        name.push_str(&argument.to_string_lossy());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_last_lines_only() {
        let error = run("count", Command::new("sh").args(["-c", "seq 100; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("\n81\n") && error.ends_with("\n100"), "{error}");
        assert!(!error.contains("\n80\n"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn last_lines_of_little_text_is_all_of_it() {
        assert_eq!(last_lines("a\nb\n", 5), "a\nb");
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
