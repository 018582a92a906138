//! The command as a user meets it, on any machine: nothing here needs to trace, and what would is told to fail.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _, pipe};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{self, Stdio};

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tempfile::TempDir;

/// There are no kprobes where this is missing.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";
/// A user and group without any privilege.
const NOBODY: u32 = 65_534;

fn snat_trace(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin!("snat-trace"));
    command.args(arguments);
    command
}

/// Runs it, expects an exit code, and returns standard output and standard error.
fn run(mut command: Command, code: i32) -> (String, String) {
    let output = command.assert().code(code).get_output().clone();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The command in a place where everybody may run it, which the build folder need not be.
struct ForAll(TempDir);

impl ForAll {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        fs::copy(cargo_bin!("snat-trace"), place.path().join("snat-trace")).unwrap();
        Self(place)
    }

    fn unprivileged(&self, arguments: &[&str]) -> Command {
        let mut command = process::Command::new(self.0.path().join("snat-trace"));
        command.args(arguments).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Command::from_std(command)
    }
}

/// Whether this machine's root can trace nothing, for want of kprobes; says so if not.
fn without_kprobes(test: &str) -> bool {
    let skip = if Path::new(KPROBES).exists() {
        "this kernel has kprobes"
    } else if !rustix::process::geteuid().is_root() {
        "not root, so privilege is missed first"
    } else {
        return true;
    };
    // Past the macros that print: their output is only shown of tests that fail.
    let _ = writeln!(io::stderr(), "skipped {test}: {skip}");
    false
}

#[test]
fn the_version_is_the_packages() {
    for flag in ["-V", "--version"] {
        let (out, _) = run(snat_trace(&[flag]), 0);
        assert_eq!(out, format!("snat-trace {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn what_is_no_evidence_is_not_replayed() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), "INSERT_FAILED\n").unwrap();
    fs::write(path("empty"), "").unwrap();
    evidence(&path("whole"), "");
    fs::write(path("cut"), &fs::read(path("whole")).unwrap()[..50]).unwrap();
    fs::remove_file(path("whole")).unwrap();
    for (name, why) in [
        ("text", "no evidence file"),
        ("empty", "no evidence file"),
        ("cut", "cut short"),
        ("absent", "cannot read"),
        ("", "directory"),
    ] {
        let (out, error) = run(snat_trace(&["replay", &path(name)]), 1);
        assert!(out.is_empty() && error.contains(why) && error.lines().count() == 1, "{name}: {error}");
    }
    run(snat_trace(&["replay"]), 2);
    run(snat_trace(&["record"]), 2);
    // Nothing is written over, and what is not begun leaves nothing.
    let (_, error) = run(snat_trace(&["record", "--output", &path("text")]), 1);
    assert!(error.contains("--append") && fs::read(path("text")).unwrap() == b"INSERT_FAILED\n", "{error}");
    let (_, error) = run(snat_trace(&["record", "--append", "--output", &path("text")]), 1);
    assert!(error.contains("no evidence file") && fs::read(path("text")).unwrap() == b"INSERT_FAILED\n", "{error}");
    if without_kprobes("a recording that does not begin") {
        run(snat_trace(&["record", "--output", &path("new")]), 4);
        assert!(!Path::new(&path("new")).exists());
    }
}

/// Whoever names a file may be somebody else than who reads what is said of it.
#[test]
fn names_of_files_do_not_steer_a_terminal() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (absent, there) = (path("\u{1b}[2J\n\u{202e}absent"), path("\u{1b}[2J\n\u{202e}there"));
    evidence(&there, "");
    for (arguments, code) in [
        (vec!["replay", &absent], 1),
        (vec!["report", &absent], 1),
        (vec!["compare", &there, &absent], 1),
        (vec!["export", &absent, "--pcapng", &there], 1),
        (vec!["export", &there, "--pcapng", &there], 1),
        (vec!["record", "--output", &there], 1),
        (vec!["replay", &there], 0),
        (vec!["report", &there], 0),
    ] {
        let (_, said) = run(snat_trace(&arguments), code);
        assert!(said.contains("\\u{1b}[2J\\u{a}\\u{202e}"), "{arguments:?}: {said:?}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']) && said.lines().count() == 1, "{arguments:?}: {said:?}");
    }
}

/// A recording without a summary, of a machine and one race, by hand: what `record` writes, line by line.
fn evidence(path: &str, packet: &str) {
    const FLOW: &str = r#"{"original":{"src":"10.0.0.1","sport":7000,"dst":"9.9.9.9","dport":53},"zone":0}"#;
    let session = r#"{"type":"session","schema":1,"tool":"snat-trace 0.1.0","time":"2026-03-01T12:00:00Z","kernel":"6.1","machine":"x86_64","hooks":[],"options":{"detail":"minimal","failures":false}}"#;
    let race = format!(
        r#"{{"type":"race","time":"2026-03-01T12:00:01Z","class":"snat-port-collision","verdict":"dropped","protocol":"udp","zone":0,"contested":{{"src":"10.9.9.1","sport":7000,"dst":"9.9.9.9","dport":53}},"winner":{FLOW},"loser":{FLOW}{packet}}}"#
    );
    fs::write(path, zstd::encode_all(format!("{session}\n{race}\n").as_bytes(), 0).unwrap()).unwrap();
}

#[test]
fn packets_are_exported_into_a_new_file_or_none() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    evidence(&path("evidence"), r#","packet":"4500001c0000000040110000"#);
    let (_, error) = run(snat_trace(&["export", &path("evidence"), "--pcapng", &path("out")]), 1);
    assert!(error.contains("cannot be understood"), "{error}");
    let udp = "4500001c00000000401100000a09090109090909 1b58003500080000".replace(' ', "");
    evidence(&path("evidence"), &format!(r#","packet":"{udp}""#));
    let (out, error) = run(snat_trace(&["export", &path("evidence"), "--pcapng", &path("out")]), 0);
    assert!(out.is_empty() && error.contains("without a summary") && error.contains("/out: 1\n"), "{error}");
    assert_eq!(fs::metadata(path("out")).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read(path("out")).unwrap();
    let (_, error) = run(snat_trace(&["export", &path("evidence"), "--pcapng", &path("out")]), 1);
    assert!(error.contains("exists") && error.lines().count() == 1, "{error}");
    assert_eq!(fs::read(path("out")).unwrap(), written);

    run(snat_trace(&["export", &path("evidence"), "--pcapng", &path("redacted"), "--redact"]), 0);
    let has = |name: &str| fs::read(path(name)).unwrap().windows(8).any(|window| window == b"10.0.0.1");
    assert_eq!([has("out"), has("redacted")], [true, false]);

    // The same of a document.
    for (more, is_there) in [(&[][..], true), (&["--redact"], false)] {
        let (document, _) = run(snat_trace(&[&["report", &path("evidence")], more].concat()), 0);
        assert_eq!(document.contains("10.0.0.1"), is_there, "{document}");
    }

    evidence(&path("bare"), "");
    let (_, error) = run(snat_trace(&["export", &path("bare"), "--pcapng", &path("none")]), 0);
    assert!(error.contains("of 1 losers no packet is known"), "{error}");
    for (evidence, out, why) in [
        ("absent", "new", "cannot read"),
        ("out", "new", "no evidence file"),
        ("evidence", "no/folder/new", "cannot write"),
    ] {
        let (_, error) = run(snat_trace(&["export", &path(evidence), "--pcapng", &path(out)]), 1);
        assert!(error.contains(why) && error.lines().count() == 1, "{error}");
        // Not as the file is called until it is whole.
        assert!(!error.contains(".snat-trace-"), "{error}");
    }
    run(snat_trace(&["export", &path("evidence")]), 2);
    // Nothing half written is left.
    let mut names: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bare", "evidence", "none", "out", "redacted"]);
}

#[test]
fn what_is_compared_is_evidence() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    evidence(&path("evidence"), "");
    fs::write(path("text"), "no evidence").unwrap();
    let (out, error) = run(snat_trace(&["compare", &path("evidence"), &path("evidence")]), 0);
    assert!(out.starts_with("not enough data: ") && error.is_empty(), "{out}{error}");
    let (out, _) = run(snat_trace(&["compare", &path("evidence"), &path("evidence"), "--format", "json"]), 0);
    let record: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&record["type"], &record["verdict"], &record["per"]),
        (&"comparison".into(), &"not-enough-data".into(), &"hour".into())
    );
    for (other, why) in [("text", "no evidence file"), ("absent", "cannot read")] {
        let (out, error) = run(snat_trace(&["compare", &path("evidence"), &path(other)]), 1);
        assert!(out.is_empty() && error.contains(other) && error.contains(why), "{error}");
    }
    run(snat_trace(&["compare", &path("evidence")]), 2);
}

#[test]
fn help_mentions_what_it_must() {
    let table: &[(&[&str], &[&str])] = &[
        (
            &["--help"],
            &[
                "watch",
                "lab",
                "doctor",
                "audit",
                "--detail",
                "minimal",
                "--format",
                "--duration",
                "sudo",
                "Exit codes: 0",
            ],
        ),
        (
            &["watch", "--help"],
            &["--verbose", "--ring-bytes", "--ready-file", "--wait", "--fail-on-race", "--netns", "10 races"],
        ),
        (
            &["lab", "--help"],
            &[
                "--scenario",
                "snat-tcp",
                "--pods",
                "--rounds",
                "--natural",
                "different-ports",
                "--random-fully",
                "nothing of them remains",
            ],
        ),
        (&["doctor", "--help"], &["--detail", "--format", "changes nothing", "Exit codes: 0"]),
        (&["audit", "--help"], &["--format", "nft and iptables", "Changes nothing", "Exit codes: 0"]),
    ];
    for (arguments, words) in table {
        let (long, err) = run(snat_trace(arguments), 0);
        assert_eq!(err, "");
        let unwrapped = long.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in *words {
            assert!(unwrapped.contains(word), "{arguments:?} does not mention {word}:\n{long}");
        }
        let short = arguments.iter().map(|word| if *word == "--help" { "-h" } else { word }).collect::<Vec<_>>();
        let (short, _) = run(snat_trace(&short), 0);
        assert!(short.lines().count() < long.lines().count() / 2, "{arguments:?}: the short help is long:\n{short}");
    }
}

#[test]
fn every_option_stands_under_its_own_heading() {
    let (help, _) = run(snat_trace(&["--help"]), 0);
    let (_, filters) = help.split_once("\nFilters").unwrap();
    assert!(filters.contains("--netns") && !filters.contains("--log-level"), "{help}");
}

#[test]
fn wrong_usage_names_the_wrong_value() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--proto", "http"], &["http", "--proto"]),
        (&["--src", "10.0.0.0/99"], &["10.0.0.0/99", "--src"]),
        (&["--dst", "example.org"], &["example.org", "--dst"]),
        (&["--duration", "soon"], &["soon", "--duration", "30s"]),
        (&["--class", "race"], &["'race'", "snat-port-collision"]),
        (&["--detail", "some"], &["'some'", "minimal, full"]),
        (&["--format", "xml"], &["'xml'", "text, json"]),
        (&["--count", "many"], &["'many'", "--count"]),
        (&["--netns", "net"], &["'net'", "--netns"]),
        (&["--ring-bytes", "0"], &["'0'", "--ring-bytes"]),
        (&["--log-level", "loud"], &["'loud'", "--log-level"]),
        (&["watsch"], &["'watsch'", "watch"]),
        (&["doctor", "--rounds", "1"], &["--rounds"]),
        (&["audit", "--detail", "full"], &["--detail"]),
        (&["lab", "--scenario", "dns"], &["'dns'", "snat-udp, snat-tcp"]),
        (&["lab", "--natural", "--control", "one-cpu"], &["--natural", "--control"]),
        (&["lab", "--control", "none"], &["'none'", "sequential"]),
        (&["lab", "--pods", "1"], &["2 to 8 pods, not 1"]),
        (&["lab", "--pods", "99"], &["2 to 8 pods, not 99"]),
        (&["lab", "--rounds", "0"], &["not 0"]),
        (&["lab", "--rounds", "4000000"], &["not 4000000"]),
        (&["lab", "--zones", "original", "--scenario", "snat-tcp"], &["one address", "no connection comes up"]),
        (&["lab", "--zones", "both", "--double-nat", "first"], &["zones or translated twice, not both"]),
        (&["lab", "--rules", "iptables"], &["'iptables'", "iptables-legacy"]),
    ];
    for (arguments, words) in table {
        let (out, err) = run(snat_trace(arguments), 2);
        assert_eq!(out, "", "{arguments:?}");
        for word in *words {
            assert!(err.contains(word), "{arguments:?} does not name {word}: {err}");
        }
    }
}

#[test]
fn without_privilege_the_capabilities_are_named() {
    let place = ForAll::new();
    for arguments in [&[][..], &["watch", "--detail", "minimal"], &["lab"], &["lab", "--format", "json"]] {
        let (out, err) = run(place.unprivileged(arguments), 3);
        assert_eq!(out, "", "{arguments:?}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: not one sentence: {err}");
        for word in ["cap_bpf", "cap_perfmon", "cap_net_admin", "sudo"] {
            assert!(err.contains(word), "{arguments:?} does not name {word}: {err}");
        }
    }
    let (out, _) = run(place.unprivileged(&["doctor"]), 3);
    assert!(out.contains("cap_bpf"), "{out}");
    for arguments in [&["audit"][..], &["audit", "--format", "json"]] {
        let (out, err) = run(place.unprivileged(arguments), 3);
        assert!(out.is_empty() && err.contains("cap_net_admin") && err.contains("sudo"), "{out}{err}");
        assert_eq!(err.lines().count(), 1, "not one sentence: {err}");
    }
}

#[test]
fn without_kprobes_one_sentence_says_so() {
    if !without_kprobes("without_kprobes_one_sentence_says_so") {
        return;
    }
    for arguments in [&[][..], &["--detail", "minimal"], &["lab"]] {
        let (out, err) = run(snat_trace(arguments), 4);
        assert_eq!(out, "", "{arguments:?}");
        assert_eq!(err.lines().count(), 1, "{arguments:?}: not one sentence: {err}");
        assert!(err.contains("takes no kprobes") && err.contains("CONFIG_KPROBE_EVENTS"), "{arguments:?}: {err}");
    }
    let (out, err) = run(snat_trace(&["doctor"]), 4);
    assert!(out.contains("Nothing can be traced: ") && err.is_empty(), "{out}{err}");
}

#[test]
fn doctor_says_the_same_in_text_and_json() {
    let output = snat_trace(&["doctor", "--format", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert_eq!((&report["type"], &report["schema"]), (&"doctor".into(), &1.into()));
    assert_eq!(report["verdict"] == "cannot-trace", code != 0, "{report}");
    assert!([0, 3, 4].contains(&code), "{code}");

    let (text, _) = run(snat_trace(&["doctor"]), code);
    assert!(text.contains(report["kernel"].as_str().unwrap()), "{text}");
    for hook in report["hooks"].as_array().unwrap() {
        assert!(text.contains(hook["role"].as_str().unwrap()), "{hook}: {text}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_a_normal_end() {
    for arguments in [&["doctor"][..], &["doctor", "--format", "json"], &["--help"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = process::Command::new(cargo_bin!("snat-trace"));
        let output = command.args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn an_output_that_takes_nothing_is_a_failure() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = process::Command::new(cargo_bin!("snat-trace"));
    let output = command.arg("doctor").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("snat-trace: cannot write the output: "), "{said}");
}

/// What a command says with standard error on a terminal of its own.
fn said_to_a_terminal(arguments: &[&str]) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut command = process::Command::new(cargo_bin!("snat-trace"));
    command.args(arguments).env_remove("NO_COLOR").env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal);
    command.status().unwrap();
    // Closes our end of the terminal, without which there is no end to read.
    drop(command);
    let mut said = Vec::new();
    // Its last reading ends in EIO, after everything that was said.
    let _ = fs::File::from(master).read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

#[test]
fn a_terminal_gets_the_sentence_and_nothing_else() {
    assert_eq!(said_to_a_terminal(&["lab", "--pods", "1"]), "snat-trace: a lab has from 2 to 8 pods, not 1\r\n");
    assert_eq!(said_to_a_terminal(&["doctor"]), "");
}

/// What is piped has no colour anyway; `CLICOLOR_FORCE` and the like must not bring it back.
#[test]
fn no_escape_sequence_leaves_for_a_pipe() {
    for no_colour in [None, Some("1"), Some("")] {
        for arguments in [&["doctor"][..], &["--help"], &["--proto", "http"], &["--log-level", "debug", "lab"]] {
            let mut command = snat_trace(arguments);
            command.env("CLICOLOR_FORCE", "1").env("TERM", "xterm-256color").env_remove("NO_COLOR");
            if let Some(value) = no_colour {
                command.env("NO_COLOR", value);
            }
            // Where the lab can be built it is left alone.
            if arguments.contains(&"lab") {
                command.args(["--rounds", "0"]);
            }
            let output = command.output().unwrap();
            assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{arguments:?}: {output:?}");
        }
    }
}
