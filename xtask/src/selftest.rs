//! Whether a virtual machine tells the truth: a runner that takes a dead guest for a good one would pass every scenario.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::project::Project;
use crate::vm::{self, End, Kernel, Outcome, VmRun};

/// More than a boot takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Enough to boot and too short for the command that hangs; on a machine too slow to boot in it the guest hangs as well.
const IMPATIENCE: Duration = Duration::from_secs(15);

/// Loads the modules as the guest would have done.
const LOAD: &str = "grep -q '^nf_conntrack ' /proc/modules && exit 1
while read -r module; do insmod /mods/$module || exit 2; done < /mods/order
grep -q '^nf_conntrack ' /proc/modules || exit 3
grep -c -e ' /sys/fs/cgroup cgroup2 ' -e ' /sys/fs/bpf bpf ' -e ' /sys/kernel/tracing tracefs ' /proc/mounts
nft list ruleset && iptables-nft -L -n > /dev/null && iptables-legacy -L -n > /dev/null && conntrack -L";

/// Boots guests that end well, badly, and not at all.
///
/// # Errors
/// One of them was taken for something else.
pub(crate) fn run(project: &Project, kernel: &Kernel) -> Result<()> {
    let guest = |script: &str, timeout, load_modules| -> Result<Outcome> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let run = VmRun { load_modules, ..VmRun::new(command, Vec::new(), timeout) };
        let outcome = vm::run(project, kernel, &run)?;
        eprintln!("  a guest of {:.1} s: {:?}", outcome.duration.as_secs_f64(), outcome.end);
        Ok(outcome)
    };

    let outcome = guest("echo one; echo two >&2; echo VM-EXIT 0; exit 3", PATIENCE, true)?;
    ensure!(outcome.end == End::Exited(3), "an exit code of 3 came out as {:?}", outcome.end);
    ensure!(outcome.output == b"one\ntwo\nVM-EXIT 0\n", "output was changed: {:?}", outcome.output.escape_ascii());

    let outcome = guest(LOAD, PATIENCE, false)?;
    let output = String::from_utf8_lossy(&outcome.output);
    ensure!(
        outcome.end == End::Exited(0),
        "a guest cannot load its modules or use its tools: {:?}\n{output}",
        outcome.end
    );
    ensure!(output.starts_with("3\n"), "a file system is not mounted in the guest");

    let outcome = guest("echo c > /proc/sysrq-trigger; sleep 1000", PATIENCE, true)?;
    ensure!(outcome.end == End::Panicked, "a panic came out as {:?}", outcome.end);

    let outcome = guest("poweroff -f; sleep 1000", PATIENCE, true)?;
    ensure!(matches!(outcome.end, End::Silent(_)), "a guest that went silently came out as {:?}", outcome.end);

    let outcome = guest("sleep 1000", IMPATIENCE, true)?;
    ensure!(outcome.end == End::TimedOut(IMPATIENCE), "a hang came out as {:?}", outcome.end);
    Ok(())
}
