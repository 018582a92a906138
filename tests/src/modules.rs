//! Modules that come and go while we watch. They lie in `/mods`, in the order of `/mods/order`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::command;
use crate::output::{Lines, Running, SNAT_TRACE};
use crate::places::{nothing_attached, until, watching};
use crate::scenario::{Numbers, Row, Scenario, unloaded};
use crate::storm::Storm;

/// In this order, on a node with all modules loaded, which the last one leaves so.
pub const SCENARIOS: &[Scenario] = &[
    unloaded("modules unloaded", all_unloaded),
    unloaded("modules loaded again at once", loaded_again),
    unloaded("nf_nat alone unloaded", nat_unloaded),
    unloaded("lab, nf_nat unloaded", lab_unloads),
    unloaded("nf_nat loaded late", nat_late),
];

/// How long a module can have been gone before it is noticed. Where nobody told it took up to ten seconds.
const NOTICED: Duration = Duration::from_secs(5);

/// Every module of the guest, in the order they are loaded in.
pub(crate) fn order() -> Result<Vec<String>> {
    Ok(fs::read_to_string("/mods/order")?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).join("initstate").exists()
}

/// The module in a file of `/mods`.
fn name(file: &str) -> String {
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Loads what is not loaded, up to and with `last`.
pub(crate) fn load(last: Option<&str>) -> Result<()> {
    for file in order()? {
        let module = name(&file);
        if !is_loaded(&module) {
            command("insmod", &[&format!("/mods/{file}")], "")?;
        }
        if last == Some(module.as_str()) {
            break;
        }
    }
    Ok(())
}

/// Unloads whatever can be until `module` is gone: those that need it first, and rules that are being freed take a moment.
pub(crate) fn unload(module: &str) -> Result<()> {
    let files = order()?;
    until(&format!("{module} unloaded"), || {
        for file in files.iter().rev() {
            let file = name(file);
            // `nf_nat` needs `nf_conntrack`, and everything else of netfilter one of the two.
            if is_loaded(module) && is_loaded(&file) && (file != "nf_conntrack" || module == file) {
                // It may be in use; then it is tried again.
                let _in_use = Command::new("rmmod").arg(&file).stderr(Stdio::null()).status();
            }
        }
        !is_loaded(module)
    })
}

/// Waits for a watch whose hooks are gone to end by itself, and holds what it says against that; its summary.
fn ended(watch: Running, gone: &str) -> Result<(Output, Value)> {
    let mut watch = watch;
    let unloaded = Instant::now();
    let child = watch.child()?;
    until("the end of watch", || child.try_wait().is_ok_and(|status| status.is_some()))?;
    let noticed = unloaded.elapsed();
    let output = watch.wait()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(noticed < NOTICED, "noticed after {noticed:.1?}");
    ensure!(output.status.code() == Some(1), "{}: {error}", output.status);
    ensure!(error.contains(gone) && error.contains("unloaded"), "said: {error}");
    nothing_attached()?;
    let summary = Lines::parse(&output)?.only("summary")?.clone();
    let hooks_gone = summary["hooks_gone"].as_array().context("hooks_gone is no list")?;
    ensure!(hooks_gone.iter().any(|module| module == gone), "{summary}");
    ensure!(summary["closes"] == false, "an account without hooks closes: {summary}");
    Ok((output, summary))
}

/// Unloads `module` under a watch that has seen some clashes, and `then`; the watch says so and ends.
fn unload_under(module: &str, then: impl FnOnce() -> Result<()>) -> Result<Row> {
    const CLASHES: u64 = 5;

    load(None)?;
    let storm = Storm::new()?;
    let mut watch = watching(&[], Path::new("/tmp/ready-modules"))?;
    let sent = storm.rage(1, |refused| refused >= CLASHES)?;
    drop(storm);
    unload(module)?;
    then()?;
    ensure!(watch.child()?.stdout.is_some(), "the output is caught");
    let (output, summary) = ended(watch, "nf_nat")?;
    let lines = Lines::parse(&output)?;
    let (seen, pids_right) = (lines.races(), Some(lines.sent_by_us()?));
    ensure!(seen == sent.refused, "{seen} races of {}", sent.refused);
    let explained = &summary["accounts"][0]["explained"]["insert_failed"];
    ensure!(*explained == seen, "explained {explained}: {summary}");
    Ok(Row {
        numbers: Numbers { expected: Some(sent.refused), seen: Some(seen), pids_right, ..Numbers::default() },
        ..Row::default()
    })
}

/// The hooks of both modules go with them: no crash, and no account that closes.
fn all_unloaded() -> Result<Row> {
    unload_under("nf_conntrack", || Ok(()))
}

/// What is loaded again at once has other functions, without our hooks: clashes there are nobody's.
fn loaded_again() -> Result<Row> {
    unload_under("nf_conntrack", || {
        load(None)?;
        Storm::new()?.rage(1, |refused| refused >= 3).map(drop)
    })
}

/// The clash hook alone is left, which is not enough.
fn nat_unloaded() -> Result<Row> {
    unload_under("nf_nat", || load(None))
}

/// A `PATH` with a modprobe, which the guest's kernel must not find.
pub(crate) fn with_modprobe() -> Result<String> {
    const MODPROBE: &str = "/tmp/modprobe/modprobe";

    fs::create_dir_all("/tmp/modprobe")?;
    fs::write(
        MODPROBE,
        "#!/bin/sh\nfor file in /mods/$1.ko /mods/$(echo $1 | tr _ -).ko; do\n\
         [ -e $file ] && exec insmod $file\ndone\nexit 1\n",
    )?;
    fs::set_permissions(MODPROBE, fs::Permissions::from_mode(0o755))?;
    Ok(format!("/tmp/modprobe:{}", std::env::var("PATH")?))
}

/// The lab does it by itself, if it may and nobody else needs it, and puts everything back.
fn lab_unloads() -> Result<Row> {
    load(None)?;
    let path = with_modprobe()?;
    let lab = |more: &[&str]| {
        let arguments = ["lab", "--scenario", "nat-unloaded", "--format", "json"];
        Command::new(SNAT_TRACE).env("PATH", &path).args(arguments).args(more).output()
    };
    let refused = |output: &Output, code: i32, why: &str| -> Result<()> {
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code) && error.contains(why), "{}: {error}", output.status);
        ensure!(error.lines().count() == 1 && output.stdout.is_empty(), "more than one sentence: {error}");
        Ok(())
    };
    refused(&lab(&[])?, 2, "--change-node")?;
    refused(&lab(&["--change-node", "--detail", "minimal"])?, 2, "no hook in nf_nat")?;
    let storm = Storm::new()?;
    refused(&lab(&["--change-node"])?, 1, "rules of others need the module")?;
    drop(storm);
    let before: BTreeSet<_> = loaded()?;
    // Namespaces are taken down in the kernel's own time.
    let references = || fs::read_to_string("/sys/module/nft_chain_nat/refcnt");
    until("nobody's rules", || references().is_ok_and(|count| count.trim() == "0"))?;
    let output = lab(&["--change-node"])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {error}", output.status);
    let lines = Lines::parse(&output)?;
    let (lab, summary) = (lines.only("lab")?, lines.only("summary")?);
    ensure!(lab["ok"] == true && lines.races() == 20 && lab["packets_lost"] == 20, "{lab}");
    let gone = summary["hooks_gone"].as_array().context("hooks_gone is no list")?;
    ensure!(gone == &["nf_nat"] && summary["closes"] == false, "{summary}");
    let after = loaded()?;
    ensure!(before == after, "not as before: {:?}", before.symmetric_difference(&after).collect::<Vec<_>>());
    nothing_attached()?;
    Ok(Row { text: String::new(), numbers: lines.numbers()? })
}

/// The modules there are.
pub(crate) fn loaded() -> Result<BTreeSet<String>> {
    let modules = fs::read_to_string("/proc/modules")?;
    Ok(modules.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect())
}

/// Without nf_nat a watch says what it will not know, and what comes of it later is as little as it said.
fn nat_late() -> Result<Row> {
    unload("nf_conntrack")?;
    load(Some("nf_conntrack"))?;
    ensure!(!is_loaded("nf_nat"), "nf_nat is loaded");
    let watch = watching(&[], Path::new("/tmp/ready-modules"))?;
    load(None)?;
    let storm = Storm::new()?;
    let sent = storm.rage(1, |refused| refused >= 5)?;
    let output = watch.interrupt()?;
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(warned.contains("no allocation hook: nf_nat is not loaded"), "said: {warned}");
    let lines = Lines::parse(&output)?;
    for race in lines.all("race") {
        let (loser, winner) = (&race["loser"], &race["winner"]);
        let times = [&loser["allocated"], &winner["allocated"], &winner["inserted"], &race["overlap_ns"], &race["nat"]];
        ensure!(times.iter().all(|time| time.is_null()), "known without a hook: {race}");
    }
    let summary = lines.only("summary")?;
    let incomplete = summary["incomplete"]["flow-without-allocation"].as_u64();
    ensure!(incomplete == Some(2 * sent.refused), "incomplete {incomplete:?}: {summary}");
    ensure!(lines.races() == sent.refused && summary["closes"] == true, "{} races, {summary}", lines.races());
    let pids_right = Some(lines.sent_by_us()?);
    let numbers = Numbers { expected: Some(sent.refused), seen: Some(lines.races()), pids_right, ..Numbers::default() };
    Ok(Row { numbers, text: "no times".to_owned() })
}
