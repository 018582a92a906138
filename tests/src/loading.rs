//! A node on which connection tracking is not loaded yet. The modules lie in `/mods`, in the order of `/mods/order`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::modules;
use crate::output::{Lines, Running, SNAT_TRACE};
use crate::places::HOOKS;
use crate::scenario::{Row, Scenario, unloaded};

/// In this order: the last one loads the modules.
pub const SCENARIOS: &[Scenario] = &[unloaded("not loaded", not_loaded), unloaded("--wait", wait)];

/// Says so and ends with 4.
///
/// # Errors
///
/// Anything else.
pub fn not_loaded() -> Result<Row> {
    let output = Command::new(SNAT_TRACE).arg("watch").output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{}: {error}", output.status);
    ensure!(error.contains("nf_conntrack is not loaded") && error.contains("--wait"), "said: {error}");
    Ok(Row::said("exit 4"))
}

/// `--wait` waits until it is, and then watches.
///
/// # Errors
///
/// Anything else.
pub fn wait() -> Result<Row> {
    let ready = Path::new("/tmp/ready-wait");
    let path = ready.to_str().context("a path is text")?;
    let mut watch = Running::start(&["watch", "--wait", "--format", "json", "--ready-file", path])?;
    ensure!(!ready.exists() && watch.child()?.try_wait()?.is_none(), "it did not wait");
    modules::load(None)?;
    while !ready.exists() {
        ensure!(watch.child()?.try_wait()?.is_none(), "watch ended early");
        std::thread::yield_now();
    }
    watch.signal(Signal::TERM)?;
    let output = watch.wait()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let lines = Lines::parse(&output)?;
    let hooks = lines.only("session")?["hooks"].as_array().context("no hooks")?;
    ensure!(hooks.len() == HOOKS && hooks.iter().all(|hook| hook["attached"] == true), "hooks {hooks:?}");
    Ok(Row::said(format!("{HOOKS} hooks, once loaded")))
}
