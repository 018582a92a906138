//! One guest's life: from the start of qemu to how the command ended.

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stdout};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::MemfdFlags;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::VmRun;
use super::kernel::Kernel;
use super::qemu::{Accelerator, PROGRAM};
use crate::progress::{Progress, TICK, last_lines};

/// What the kernel is told. An oops ends the guest at once instead of leaving it half dead. The timer is not tested
/// (arch/x86/kernel/apic/io_apic.c, `timer_irq_works`): under emulation on a busy machine the test fails now and then, and
/// the kernel panics.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr audit=0 apparmor=0 no_timer_check";

/// Said on the console when the modules are loaded and the command is about to run.
const BOOTED: &str = "VM-BOOT ";

/// Said on the console with the command's exit code.
const EXITED: &str = "VM-EXIT ";

/// Said by every kernel that gives up.
const PANICKED: &str = "Kernel panic";

/// Lines of the console that are shown of a guest that failed.
const SHOWN_LINES: usize = 20;

/// How a guest ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The command ended with this code.
    Exited(u8),
    /// It took longer than allowed and was killed.
    TimedOut(Duration),
    /// Its kernel gave up.
    Panicked,
    /// It went without a word on how the command ended.
    Silent(ExitStatus),
}

/// What came of a guest.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) end: End,
    /// What the command said, stdout and stderr as they came.
    pub(crate) output: Vec<u8>,
    /// What the kernel and qemu said.
    pub(crate) console: String,
    /// From start to end.
    pub(crate) duration: Duration,
}

impl Outcome {
    /// The exit code of the command.
    ///
    /// # Errors
    /// The guest never told; the message has the console's last lines.
    pub(crate) fn exit_code(&self) -> Result<u8> {
        let what = match self.end {
            End::Exited(code) => return Ok(code),
            End::TimedOut(limit) => format!("the guest did not finish within {} s and was killed", limit.as_secs()),
            End::Panicked => {
                let words = self.console.lines().find(|line| line.contains(PANICKED)).unwrap_or_default();
                format!("the guest's kernel panicked: {words}")
            }
            End::Silent(status) => format!("the guest ended without saying how the command did (qemu: {status})"),
        };
        bail!("{what}; the console's last lines:\n{}", last_lines(&self.console, SHOWN_LINES))
    }
}

/// What a guest says.
enum Said {
    /// The command.
    Output(Vec<u8>),
    /// The kernel, our init, or qemu itself.
    Console(Vec<u8>),
}

/// Boots and waits for the end.
pub(super) fn boot(kernel: &Kernel, initramfs: &[u8], run: &VmRun) -> Result<Outcome> {
    let accelerator = Accelerator::of_this_machine();
    let initramfs = in_memory(initramfs)?;
    let start = Instant::now();
    let mut child = spawn(kernel, &initramfs, run, accelerator)?;
    let progress = Progress::start(format!("booting {} under {}", kernel.release, accelerator.name()));
    let watched = watch(&mut child, start + run.timeout, progress);
    if !matches!(watched, Ok(Watched { in_time: true, .. })) {
        // It may have gone already.
        drop(child.kill());
    }
    let status = child.wait()?;
    let Watched { output, console, in_time } = watched?;
    let console = String::from_utf8_lossy(&console).replace('\r', "");
    let end = match exit_code(&console) {
        Some(code) => End::Exited(code),
        None if console.contains(PANICKED) => End::Panicked,
        None if !in_time => End::TimedOut(run.timeout),
        None => End::Silent(status),
    };
    Ok(Outcome { end, output, console, duration: start.elapsed() })
}

/// A file that is gone with us, however we end.
fn in_memory(bytes: &[u8]) -> Result<File> {
    let memory = rustix::fs::memfd_create("initramfs", MemfdFlags::empty()).context("no memory for the initramfs")?;
    let mut file = File::from(memory);
    file.write_all(bytes).context("no memory for the initramfs")?;
    Ok(file)
}

fn spawn(kernel: &Kernel, initramfs: &File, run: &VmRun, accelerator: Accelerator) -> Result<Child> {
    let append = if run.load_modules { "" } else { " snat-trace.modules=no" };
    let mut command = Command::new(PROGRAM);
    command.args(accelerator.arguments());
    command.args(["-smp", &run.smp.to_string(), "-m", &run.memory.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"]);
    command.arg("-kernel").arg(kernel.image());
    command.args(["-initrd", &format!("/proc/self/fd/{}", initramfs.as_raw_fd())]);
    command.args(["-append", &format!("{COMMAND_LINE}{append}")]);
    // The console together with qemu's own words, the command by itself.
    command.args(["-serial", "file:/proc/self/fd/2", "-serial", "file:/proc/self/fd/1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only prctl(2) is called, which allocates nothing and takes no lock.
    unsafe {
        // A guest that outlives us would burn the processor unseen. (In our process group, Ctrl-C reaches it by itself.)
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().with_context(|| format!("cannot start {}", PROGRAM))
}

/// What was heard.
struct Watched {
    output: Vec<u8>,
    console: Vec<u8>,
    /// Whether the guest ended before the deadline.
    in_time: bool,
}

/// Listens until the guest falls silent for good.
fn watch(child: &mut Child, deadline: Instant, progress: Progress) -> Result<Watched> {
    let (sender, receiver) = channel();
    listen(child.stdout.take().context("qemu has no stdout")?, sender.clone(), Said::Output);
    listen(child.stderr.take().context("qemu has no stderr")?, sender, Said::Console);
    let mut booting = Some(progress);
    let mut watched = Watched { output: Vec::new(), console: Vec::new(), in_time: true };
    loop {
        match next(&receiver, deadline) {
            Next::Said(Said::Output(bytes)) => {
                let mut out = stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush()).context("cannot pass on what the guest says")?;
                watched.output.extend(bytes);
            }
            Next::Said(Said::Console(bytes)) => {
                watched.console.extend(bytes);
                if contains(&watched.console, BOOTED)
                    && let Some(progress) = booting.take()
                {
                    progress.done();
                }
            }
            Next::Nothing => booting.iter_mut().for_each(Progress::tick),
            Next::Gone => break,
            Next::Late => {
                watched.in_time = false;
                break;
            }
        }
    }
    if let Some(progress) = booting {
        progress.clear();
    }
    Ok(watched)
}

enum Next {
    Said(Said),
    /// For a while.
    Nothing,
    /// Both ends closed.
    Gone,
    /// The deadline has passed.
    Late,
}

fn next(receiver: &Receiver<Said>, deadline: Instant) -> Next {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Next::Late;
    }
    match receiver.recv_timeout(left.min(TICK)) {
        Ok(said) => Next::Said(said),
        Err(RecvTimeoutError::Timeout) => Next::Nothing,
        Err(RecvTimeoutError::Disconnected) => Next::Gone,
    }
}

fn listen(mut from: impl Read + Send + 'static, to: Sender<Said>, as_what: fn(Vec<u8>) -> Said) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // Ends with the guest, or when nobody listens any more.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.send(as_what(buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// The code of the last [`EXITED`] on the console. A kernel message may stand before it on the same line.
fn exit_code(console: &str) -> Option<u8> {
    let (_, after) = console.rsplit_once(EXITED)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The guest's `/t/.run`.
pub(super) fn script(command: &[String]) -> String {
    let mut script = String::from("#!/bin/sh\nexport PATH=/t:$PATH");
    match terminal_size() {
        Some((columns, rows)) => {
            script.push_str(&format!(" TERM=linux\nstty -F /dev/ttyS1 cols {columns} rows {rows}\n"));
        }
        // The guest's end is a terminal all the same.
        None => script.push_str(" TERM=dumb NO_COLOR=1\n"),
    }
    script.push_str("exec");
    for word in command {
        script.push_str(" '");
        script.push_str(&word.replace('\'', r"'\''"));
        script.push('\'');
    }
    script.push('\n');
    script
}

fn terminal_size() -> Option<(u16, u16)> {
    let out = stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok()?;
    // Some terminals do not know.
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exit_code_counts() {
        assert_eq!(exit_code("VM-BOOT 6.1\nVM-EXIT 0\n"), Some(0));
        assert_eq!(exit_code("[ 3.1] something VM-EXIT 137\n[ 3.2] reboot: Power down\n"), Some(137));
        assert_eq!(exit_code("VM-EXIT 1\nVM-EXIT 3\n"), Some(3));
        assert_eq!(exit_code("VM-BOOT 6.1\n"), None);
        assert_eq!(exit_code("VM-EXIT \n"), None);
        assert_eq!(exit_code("VM-EXIT 300\n"), None);
    }

    fn outcome(end: End) -> Outcome {
        let console = (1..=30).map(|line| format!("line {line}\n")).collect();
        Outcome { end, output: Vec::new(), console, duration: Duration::ZERO }
    }

    #[test]
    fn each_bad_end_has_its_own_message_and_the_consoles_last_lines() {
        assert_eq!(outcome(End::Exited(7)).exit_code().unwrap(), 7);
        for (end, what) in [
            (End::TimedOut(Duration::from_secs(9)), "within 9 s"),
            (End::Panicked, "panicked"),
            (End::Silent(ExitStatus::default()), "without saying"),
        ] {
            let error = outcome(end).exit_code().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert!(
                error.ends_with("line 30") && error.contains("\nline 11\n") && !error.contains("line 10\n"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_command_survives_the_shell() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "\"x\\"];
        let script = script(&words.map(str::to_owned)).replace("export PATH=/t:$PATH", "export");
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|it's|$HOME||\"x\\|");
    }
}
