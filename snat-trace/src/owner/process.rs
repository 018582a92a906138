//! What `/proc` says of one process.

use std::os::linux::fs::MetadataExt;
use std::{fs, io};

use rustix::time::{ClockId, clock_gettime};

use crate::race::time::KernelTime;

/// Inode number of the root pid namespace (include/uapi/linux/nsfs.h, `PID_NS_INIT_INO`; include/linux/proc_ns.h
/// before 6.18).
const ROOT_PID_NAMESPACE: u64 = 0xeffffffc;

/// Clock ticks from boot to the start of a process: with the pid, what tells one process from a later one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct StartTime(u64);

impl StartTime {
    /// Of the process that has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        parse_start(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The same if a thread of it still runs: who has ended stays until it is waited for.
    pub(super) fn of_running(pid: u32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        parse_start(&stat).filter(|_| !has_ended(&stat))
    }

    /// In nanoseconds of `CLOCK_BOOTTIME`, cut to a tick.
    pub(crate) fn since_boot(self) -> u64 {
        let ticks = u128::from(self.0) * 1_000_000_000 / u128::from(rustix::param::clock_ticks_per_second()).max(1);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Of a start in nanoseconds of `CLOCK_BOOTTIME` (fs/proc/array.c, `do_task_stat`); `None` for 0, which means unknown.
    pub(crate) fn from_record(start_ns: u64) -> Option<Self> {
        let ticks = u128::from(start_ns) * u128::from(rustix::param::clock_ticks_per_second()) / 1_000_000_000;
        u64::try_from(ticks).ok().filter(|_| start_ns != 0).map(Self)
    }

    /// Whether the process was there at `time`.
    ///
    /// Both are compared in ticks, a hundredth of a second: a process that started in the very tick counts as there.
    /// To be wrong, every other pid would have to be given out within that tick.
    pub(crate) fn was_there_at(self, time: KernelTime) -> bool {
        let (boot, monotonic) = (clock(ClockId::Boottime), clock(ClockId::Monotonic));
        self.not_after(time, boot.saturating_sub(monotonic), rustix::param::clock_ticks_per_second())
    }

    /// `suspended` nanoseconds are in the time since boot and not in kernel time.
    fn not_after(self, time: KernelTime, suspended: u128, ticks_per_second: u64) -> bool {
        let since_boot = u128::from(time.nanoseconds()) + suspended;
        u128::from(self.0) <= since_boot * u128::from(ticks_per_second) / 1_000_000_000
    }
}

fn clock(clock: ClockId) -> u128 {
    let time = clock_gettime(clock);
    let part = |value: i64| u128::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Whether a process has children, or has had one and waited for it: a child has the sockets of its parent too, until it
/// executes another program or for good. `None` when the process has gone.
pub(crate) fn has_had_children(pid: u32) -> Option<bool> {
    if had_children(&fs::read(format!("/proc/{pid}/stat")).ok()?)? {
        return Some(true);
    }
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        match fs::read(task.ok()?.path().join("children")) {
            Ok(children) if !children.is_empty() => return Some(true),
            // The thread has gone, or the kernel has no such file (CONFIG_PROC_CHILDREN).
            Ok(_) | Err(_) => {}
        }
    }
    Some(false)
}

/// Field 11 of `/proc/PID/stat`, the page faults of children that were waited for: none lives without.
fn had_children(stat: &[u8]) -> Option<bool> {
    Some(field(stat, 11)? != 0)
}

/// Field 22 of `/proc/PID/stat`.
fn parse_start(stat: &[u8]) -> Option<StartTime> {
    field(stat, 22).map(StartTime)
}

/// Whether it waits to be reaped or is, and is its own last thread: the first may end before others.
fn has_ended(stat: &[u8]) -> bool {
    matches!(text(stat, 3), Some("Z" | "X")) && field(stat, 20).is_none_or(|threads| threads <= 1)
}

/// A number in `/proc/PID/stat`, counted from 1.
fn field(stat: &[u8], number: usize) -> Option<u64> {
    text(stat, number)?.parse().ok()
}

/// A field in `/proc/PID/stat`, counted from 1. Field 2, the name, is in parentheses and may hold anything, parentheses
/// included, so counting begins after the last one.
fn text(stat: &[u8], number: usize) -> Option<&str> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// The pids of the processes that `/proc` has now, as far as it can be read.
///
/// # Errors
///
/// There is no `/proc`.
pub(super) fn pids() -> io::Result<impl Iterator<Item = io::Result<u32>>> {
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(fs::read_dir("/proc")?.filter_map(move |entry| entry.map(pid).transpose()))
}

/// Ids of a process besides its pid.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ids {
    /// Real user id, in our user namespace.
    pub(crate) uid: Option<u32>,
    /// Process id in the innermost pid namespace it is in.
    pub(crate) own_pid: Option<u32>,
}

/// From `/proc/PID/status`: `Uid:` has the real one first, `NSpid:` the innermost last (fs/proc/array.c).
pub(crate) fn ids(status: &[u8]) -> Ids {
    let field = |name: &str| {
        let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()))?;
        std::str::from_utf8(line).ok()
    };
    Ids {
        uid: field("Uid:").and_then(|ids| ids.split_ascii_whitespace().next()?.parse().ok()),
        own_pid: field("NSpid:").and_then(|pids| pids.split_ascii_whitespace().next_back()?.parse().ok()),
    }
}

/// The name of a process, without the newline that ends the file.
pub(crate) fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned())
}

/// A `task_struct.comm` as a record has it: up to its NUL.
pub(crate) fn comm_from_record(comm: &[u8]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or_default()).into_owned()
}

/// Whether the pids in `/proc` are those of the root pid namespace, as a record has them. In a container without the
/// host's pids they are not, and mean other processes.
pub(crate) fn proc_has_root_pids() -> bool {
    let root = fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.st_ino() == ROOT_PID_NAMESPACE);
    let own = fs::read_link("/proc/self").is_ok_and(|pid| pid.as_os_str() == std::process::id().to_string().as_str());
    root && own
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    /// A process of a 6.18 kernel; `{}` is its name.
    const STAT: &str = "4711 ({}) S 1 4711 4711 0 -1 4194560 1158 0 0 0 3 1 0 0 20 0 1 0 218437 8179712 1024 \
                        18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn the_name_cannot_shift_the_fields() {
        for name in ["curl", "a b", ") S 1 2 3", "((", "\n)", ""] {
            assert_eq!(parse_start(STAT.replace("{}", name).as_bytes()), Some(StartTime(218_437)), "{name:?}");
        }
        let not_utf8: Vec<u8> =
            STAT.replace("{}", "\u{1}").into_bytes().into_iter().map(|b| if b == 1 { 0xff } else { b }).collect();
        assert_eq!(parse_start(&not_utf8), Some(StartTime(218_437)));
    }

    #[test]
    fn children_are_noticed_while_they_live_and_afterwards() {
        assert_eq!(had_children(STAT.as_bytes()), Some(false));
        assert_eq!(had_children(STAT.replace("1158 0 0 0", "1158 7 0 0").as_bytes()), Some(true));
        // A shell that waits for our word, and then has had a child.
        let mut shell = Command::new("sh")
            .args(["-c", "read one; cat /dev/null; echo; read other"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(has_had_children(shell.id()), Some(false));
        let mut stdin = shell.stdin.take().unwrap();
        stdin.write_all(b"\n").unwrap();
        shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(has_had_children(shell.id()), Some(true));
        let mut parent = Command::new("sh")
            .args(["-c", "cat <&0 & echo; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        parent.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(has_had_children(parent.id()), Some(true));
        drop((stdin, parent.stdin.take()));
        for mut process in [shell, parent] {
            process.kill().unwrap();
            process.wait().unwrap();
            assert_eq!(has_had_children(process.id()), None);
        }
    }

    #[test]
    fn ids_are_the_real_and_the_innermost_one() {
        let status = "Name:\tcurl\nUid:\t1000\t0\t0\t0\nNSpid:\t4711\t12\t1\n";
        assert_eq!(ids(status.as_bytes()), Ids { uid: Some(1000), own_pid: Some(1) });
        assert_eq!(ids(b"Name:\tUid:\nNSpid:\n"), Ids::default());
        survives("status", &[status.as_bytes()], |bytes| {
            let _ = ids(bytes);
        });
    }

    #[test]
    fn a_recorded_start_is_the_one_of_its_tick() {
        let start = |start_ns| StartTime::from_record(start_ns).map(StartTime::since_boot);
        assert_eq!(start(2_184_376_543_210), Some(2_184_370_000_000));
        assert_eq!((start(1), start(0)), (Some(0), None));
    }

    #[test]
    fn what_is_cut_short_has_no_start() {
        for stat in ["", "4711 (curl", "4711 (curl) S 1", "no parenthesis at all"] {
            assert_eq!(parse_start(stat.as_bytes()), None, "{stat:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(stat in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_start(&stat);
            let _ = comm_from_record(&stat);
        }
    }

    #[test]
    fn a_later_process_was_not_there() {
        let time = KernelTime::from_record(2_345_000_000).unwrap();
        let there = |ticks, suspended| StartTime(ticks).not_after(time, suspended, 100);
        assert!(there(0, 0) && there(233, 0) && there(234, 0));
        assert!(!there(235, 0));
        // An hour of sleep between boot and then.
        assert!(there(360_234, 3_600_000_000_000) && !there(360_235, 3_600_000_000_000));
    }

    #[test]
    fn a_child_is_there_now_and_was_not_at_boot() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let start = StartTime::of(child.id()).unwrap();
        let time = clock_gettime(ClockId::Monotonic);
        let now = u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap();
        assert!(start.was_there_at(KernelTime::from_record(now).unwrap()));
        assert!(!start.was_there_at(KernelTime::from_record(1).unwrap()));
        assert_eq!(comm(child.id()).as_deref(), Some("cat"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(StartTime::of(child.id()), None);
    }

    #[test]
    fn a_recorded_name_ends_at_its_nul() {
        assert_eq!(comm_from_record(b"curl\0\0\0rest"), "curl");
        assert_eq!(comm_from_record(b"sixteen-bytes-xx"), "sixteen-bytes-xx");
        assert_eq!(comm_from_record(b"a\xffb\0"), "a\u{fffd}b");
        assert_eq!(comm_from_record(b""), "");
    }

    #[test]
    fn mutated_files_are_survived() {
        survives("stat", &[], |bytes| {
            let _ = parse_start(bytes);
        });
    }
}
