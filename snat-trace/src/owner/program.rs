//! What a sender runs and as whom: as the kernel noted it when the sender sent, or as `/proc` has it now.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::time::ClockId;
use snat_trace_common::{ARGUMENTS_LEN, OwnerFact, PathFact, ProcessFact};

use super::cgroup::DELETED;
use super::process::{StartTime, ids};
use crate::race::time::{KernelTime, WallClock};

/// What is known of the process behind a flow besides its name. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Program {
    /// Real user id in the root user namespace.
    pub uid: Option<u32>,
    /// When the process started: to the nanosecond as the kernel noted it, to the hundredth of a second from `/proc`.
    pub started: Option<jiff::Timestamp>,
    /// Process id in the innermost pid namespace it is in.
    pub own_pid: Option<u32>,
    /// Its file, as seen from the root of its mount namespace.
    pub executable: Option<String>,
    /// What it was called with, the program's name first.
    pub command_line: Option<CommandLine>,
}

/// A command line, or its beginning.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandLine {
    /// The arguments; of one that was cut the last may be cut too.
    pub words: Vec<String>,
    /// It is longer than the 256 bytes kept.
    pub cut: bool,
}

/// Tells wall times of starts, in a session always the same for the same process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartClock(WallClock);

impl StartClock {
    /// Reads the clocks now.
    pub(crate) fn now() -> Self {
        Self(WallClock::of(ClockId::Boottime))
    }

    /// The wall time of a start, given in nanoseconds of `CLOCK_BOOTTIME`.
    fn wall(self, start_ns: u64) -> Option<jiff::Timestamp> {
        KernelTime::from_record(start_ns).map(|start| self.0.wall(start))
    }
}

impl Program {
    /// What the kernel noted of a sender; `noted` of the program it ran.
    pub(crate) fn recorded(fact: &OwnerFact, noted: Option<&ProcessFact>, clock: StartClock) -> Self {
        let Some(started) = clock.wall(fact.process.start_ns) else {
            return Self { uid: Some(fact.uid), ..Self::default() };
        };
        Self {
            uid: Some(fact.uid),
            started: Some(started),
            own_pid: noted.map(|noted| noted.own_pid).filter(|&pid| pid != 0),
            executable: noted.and_then(|noted| path(&noted.executable)),
            command_line: noted.and_then(|noted| {
                let whole = usize::try_from(noted.arguments_len).ok()?;
                CommandLine::parse(noted.arguments.get(..whole.min(ARGUMENTS_LEN))?, whole)
            }),
        }
    }

    /// What `/proc` has of the process with this pid now, which started at `start`; `commands` says whether the executable
    /// and the command line may be read.
    pub(super) fn running(pid: u32, start: StartTime, commands: bool, clock: StartClock) -> Self {
        let ids = fs::read(format!("/proc/{pid}/status")).map(|status| ids(&status)).unwrap_or_default();
        let started = clock.wall(start.since_boot());
        let mut program = Self { uid: ids.uid, started, own_pid: ids.own_pid, ..Self::default() };
        if commands {
            program.executable = fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| executable(&path));
            program.command_line = read_command_line(pid).ok().flatten();
        }
        program
    }
}

fn executable(path: &Path) -> String {
    let path = path.to_string_lossy();
    path.strip_suffix(DELETED).unwrap_or(&path).to_owned()
}

fn read_command_line(pid: u32) -> io::Result<Option<CommandLine>> {
    let mut bytes = Vec::new();
    // One more tells that there is more.
    let most = u64::try_from(ARGUMENTS_LEN).unwrap_or(u64::MAX) + 1;
    File::open(format!("/proc/{pid}/cmdline"))?.take(most).read_to_end(&mut bytes)?;
    let whole = bytes.len();
    bytes.truncate(ARGUMENTS_LEN);
    Ok(CommandLine::parse(&bytes, whole))
}

impl CommandLine {
    /// Of the first bytes of `whole`, a NUL behind each argument. `None` when there are none: a thread of the kernel, or a
    /// process that has removed them.
    fn parse(bytes: &[u8], whole: usize) -> Option<Self> {
        let words = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        if words.iter().all(|&byte| byte == 0) {
            return None;
        }
        let word = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        Some(Self { words: words.split(|&byte| byte == 0).map(word).collect(), cut: whole > bytes.len() })
    }
}

/// The path that the kernel noted, beginning with `/`; `None` when it does not begin at the root.
pub(super) fn path(fact: &PathFact) -> Option<String> {
    let len = usize::try_from(fact.len).ok()?;
    let components = fact.components.get(..len)?;
    if fact.whole == 0 {
        return None;
    }
    let Some(components) = components.strip_suffix(b"\0") else { return components.is_empty().then(|| "/".to_owned()) };
    let names: Vec<_> = components.split(|&byte| byte == 0).rev().map(String::from_utf8_lossy).collect();
    Some(format!("/{}", names.join("/")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;
    use snat_trace_common::{COMPONENT_LEN, ProcessKey, RecordHeader, kind};

    use super::*;

    fn noted(components: &[u8], whole: u32) -> PathFact {
        let mut fact =
            PathFact { len: u32::try_from(components.len()).unwrap(), whole, components: [7; 2 * COMPONENT_LEN] };
        fact.components[..components.len()].copy_from_slice(components);
        fact
    }

    /// `/usr/sbin/nginx`, as the kernel would write it.
    pub(crate) fn worker() -> ProcessFact {
        let command_line = b"nginx: worker process\0";
        let mut arguments = [0; ARGUMENTS_LEN];
        arguments[..command_line.len()].copy_from_slice(command_line);
        let header =
            RecordHeader { kind: kind::PROCESS, len: size_of::<ProcessFact>().try_into().unwrap(), cpu: 1, time_ns: 2 };
        ProcessFact {
            header,
            key: ProcessKey { start_ns: 1, tgid: 4711, exec_id: 3 },
            told: 0,
            reserved: 0,
            own_pid: 12,
            arguments_len: u32::try_from(command_line.len()).unwrap(),
            executable: noted(b"nginx\0sbin\0usr\0", 1),
            arguments,
        }
    }

    fn started(start_ns: u64) -> ProcessKey {
        ProcessKey { start_ns, ..ProcessKey::default() }
    }

    #[test]
    fn what_the_kernel_noted_is_told() {
        let fact = OwnerFact { process: started(1), uid: 33, ..OwnerFact::default() };
        let program = Program::recorded(&fact, Some(&worker()), StartClock::now());
        assert_eq!((program.uid, program.own_pid), (Some(33), Some(12)));
        assert_eq!(program.executable.as_deref(), Some("/usr/sbin/nginx"));
        assert_eq!(program.command_line.unwrap().words, ["nginx: worker process"]);
        // Whose start is not known cannot be told from another with its id.
        let unknown = Program::recorded(&OwnerFact { process: started(0), ..fact }, Some(&worker()), StartClock::now());
        assert_eq!(unknown, Program { uid: Some(33), ..Program::default() });
    }

    #[test]
    fn a_path_is_put_together_from_its_end() {
        assert_eq!(path(&noted(b"curl\0bin\0usr\0", 1)).as_deref(), Some("/usr/bin/curl"));
        assert_eq!(path(&noted(b"x\0", 1)).as_deref(), Some("/x"));
        assert_eq!(path(&noted(b"", 1)).as_deref(), Some("/"));
        // Its beginning is not known.
        assert_eq!(path(&noted(b"curl\0bin\0", 0)), None);
        assert_eq!(path(&noted(b"no end", 1)), None);
        assert_eq!(path(&PathFact { len: u32::MAX, ..noted(b"", 1) }), None);
        assert_eq!(path(&noted(b"a\xff\0", 1)).as_deref(), Some("/a\u{fffd}"));
    }

    #[test]
    fn a_command_line_is_words() {
        let of = |bytes: &[u8], whole| {
            CommandLine::parse(bytes, whole).map(|CommandLine { words, cut }| (words.join("|"), cut))
        };
        assert_eq!(of(b"curl\0-s\0\0http://x/\0", 18), Some(("curl|-s||http://x/".to_owned(), false)));
        assert_eq!(of(b"nginx: worker process\0\0\0", 24), Some(("nginx: worker process||".to_owned(), false)));
        assert_eq!(of(b"java\0-cp\0a", 4000), Some(("java|-cp|a".to_owned(), true)));
        assert_eq!(of(b"a\xffb", 3), Some(("a\u{fffd}b".to_owned(), false)));
        assert_eq!((of(b"", 0), of(b"\0\0\0", 3)), (None, None));
    }

    #[test]
    fn a_running_process_says_what_it_is() {
        let long = "x".repeat(4000);
        let mut child =
            Command::new("cat").args(["-", &long]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (pid, clock) = (child.id(), StartClock::now());
        let before = jiff::Timestamp::now();
        // The child is our own program until it has executed its own.
        while fs::read(format!("/proc/{pid}/cmdline")).unwrap().first() != Some(&b'c') {
            std::thread::yield_now();
        }
        let start = StartTime::of(pid).unwrap();
        let program = Program::running(pid, start, true, clock);
        assert_eq!(program.uid, Some(rustix::process::getuid().as_raw()));
        let age = before.duration_since(program.started.unwrap()).as_secs_f64();
        assert!((-0.1..60.0).contains(&age), "{age}");
        assert!(program.executable.unwrap().ends_with("/cat"));
        let CommandLine { words, cut } = program.command_line.unwrap();
        assert_eq!((words.len(), cut), (3, true));
        assert_eq!((words[0].as_str(), words[1].as_str(), words[2].len()), ("cat", "-", ARGUMENTS_LEN - 6));
        let secret = Program::running(pid, start, false, clock);
        assert_eq!((secret.executable, secret.command_line), (None, None));
        assert_eq!(secret.own_pid, Some(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Program::running(pid, start, true, clock).executable, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..2 * COMPONENT_LEN),
            len in any::<u32>(),
            whole in 0..2_u32,
        ) {
            let mut fact = noted(&bytes, whole);
            let _ = path(&fact);
            fact.len = len;
            let _ = path(&fact);
            let _ = CommandLine::parse(&bytes, len as usize);
        }
    }
}
