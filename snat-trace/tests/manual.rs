//! Completions and man pages, read by those they are made for. None of it needs root.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::process::{Command, Stdio};

use assert_cmd::cargo::cargo_bin;

/// The commands, as the README has them.
const COMMANDS: [&str; 11] =
    ["watch", "record", "replay", "report", "export", "compare", "lab", "doctor", "audit", "completions", "man"];

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn completions(shell: &str) -> String {
    printed(cargo_bin!("snat-trace").to_str().unwrap(), &["completions", shell])
}

/// Whether a program is here; says so if not.
fn is_here(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let missing = there.is_err_and(|error| error.kind() == ErrorKind::NotFound);
    if missing {
        // Past the macros that print: their output is only shown of tests that fail.
        let _ = writeln!(io::stderr(), "skipped: no {program} here");
    }
    !missing
}

/// What bash offers for the last of the words.
fn offered(words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snat-trace");
    fs::write(&file, completions("bash")).unwrap();
    let [.., before, last] = words else { panic!("two words at least") };
    let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); last=\"${!#}\"; before=\"${@: -2:1}\"; \
                  offer=$(complete -p snat-trace); offer=${offer#*-F }; \"${offer%% *}\" snat-trace \"$last\" \"$before\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let arguments = [&["--norc", "-c", script, "bash", file.to_str().unwrap()], words].concat();
    assert!(!before.is_empty() || last.is_empty());
    printed("bash", &arguments).lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn bash_completes() {
    if !is_here("bash") {
        return;
    }
    assert_eq!(offered(&["snat-trace", "wat"]), ["watch"]);
    assert_eq!(offered(&["snat-trace", "--format", ""]), ["text", "json"]);
    assert_eq!(offered(&["snat-trace", "watch", "--tu"]), ["--tui"]);
    assert_eq!(offered(&["snat-trace", "report", "--format", "h"]), ["html"]);
    assert_eq!(offered(&["snat-trace", "completions", "z"]), ["zsh"]);
    let all = offered(&["snat-trace", ""]);
    for command in COMMANDS {
        assert!(all.iter().any(|offer| offer == command), "{command}: {all:?}");
    }
    assert!(!all.iter().any(|offer| offer == "lab-pod"), "a lab's own");
}

#[test]
fn every_shell_reads_its_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = completions(shell);
        for command in COMMANDS {
            assert!(script.contains(command), "{command} in {shell}");
        }
        assert!(script.contains("snat-port-collision") && script.contains("tui"), "{shell}");
        if is_here(shell) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("script");
            fs::write(&file, script).unwrap();
            printed(shell, &["-n", file.to_str().unwrap()]);
        }
    }
}

#[test]
fn each_command_has_a_page_that_man_has_nothing_against() {
    let folder = tempfile::tempdir().unwrap();
    printed(cargo_bin!("snat-trace").to_str().unwrap(), &["man", folder.path().to_str().unwrap()]);
    let mut pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut wanted: Vec<_> = COMMANDS.iter().map(|command| OsString::from(format!("snat-trace-{command}.1"))).collect();
    wanted.push("snat-trace.1".into());
    pages.sort();
    wanted.sort();
    assert_eq!(pages, wanted);
    if !is_here("man") || !is_here("groff") {
        return;
    }
    for page in pages {
        let path = folder.path().join(&page);
        let output = Command::new("man")
            .envs([("LC_ALL", "C.UTF-8"), ("MANWIDTH", "80")])
            .args(["--warnings", "-l"])
            .arg(&path)
            .output()
            .unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"NAME") && lines.contains(&"OPTIONS"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        let command = page.to_str().unwrap().trim_start_matches("snat-trace").trim_end_matches(".1");
        for option in options(command.trim_start_matches('-')) {
            assert!(has_help(&lines, &option), "{option} in {text}");
        }
        if page == "snat-trace.1" {
            let example = lines.iter().position(|line| *line == "       sudo snat-trace --detail minimal");
            let what = example.and_then(|at| lines.get(at + 1));
            assert_eq!(what, Some(&"              the same, at no cost until two flows clash"), "{text}");
        }
    }
}

/// The long options in what a command says of itself.
fn options(command: &str) -> Vec<String> {
    let words: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
    let help = printed(cargo_bin!("snat-trace").to_str().unwrap(), &words);
    // What options do stands further in, and may begin with the name of another.
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-') && !line.starts_with("          "));
    let options: Vec<String> = lines
        .filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--")).map(str::to_owned))
        .collect();
    assert!(options.iter().any(|option| option == "--log-level"), "{help}");
    options
}

/// Whether a page has an option, and beside or below it, further in, what that does.
fn has_help(lines: &[&str], option: &str) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let heads = |line: &str| line.trim_start().starts_with('-') && line.split([' ', ',']).any(|word| word == option);
    let mut lines = lines.iter().skip_while(|line| indent(line) != 7 || !heads(line));
    let Some(head) = lines.next() else { return false };
    // After a short option stands its help, after others what they take, as `<VALUE> [default: ...]`.
    let mut after = head.split(' ').skip_while(|word| *word != option).skip(1);
    let beside = after.next().is_some_and(|word| !word.starts_with(['<', '[']));
    beside || lines.next().is_some_and(|line| indent(line) > 7)
}
