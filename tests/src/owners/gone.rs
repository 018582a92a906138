//! Senders that have ended and whose cgroups are removed before anybody can ask for either.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::stage::Expected::Named;
use super::stage::{LEGACY, Stage, Workload};
use crate::node::command;
use crate::scenario::Row;

const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";

/// In the unified hierarchy.
pub(super) fn unified() -> Result<Row> {
    named("/sys/fs/cgroup")
}

/// In one of version 1 only; in the unified hierarchy they are in the root.
pub(super) fn legacy() -> Result<Row> {
    let mounted = Legacy::mount()?;
    let row = named(LEGACY);
    drop(mounted);
    row
}

/// Each pair is named after it has ended, in a container that is gone.
fn named(hierarchy: &str) -> Result<Row> {
    let outermost = Path::new(hierarchy).join("docker");
    let mut stage = Stage::new("full")?;
    for socket in ["udp", "tcp"] {
        let cgroup = outermost.join(ID);
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let container = json!({"runtime": "docker", "id": ID});
        stage.workload = Some(Workload { cgroup: cgroup.clone(), container, pod: Value::Null, seen: true });
        stage.pause()?;
        stage.pair(("exit", socket, Named), ("exit", socket, Named))?;
        stage.bury(2)?;
        remove(&cgroup)?;
        remove(&outermost)?;
        stage.resume()?;
        stage.settle()?;
    }
    stage.finish()
}

/// A cgroup stays busy for a moment after its last process was waited for.
fn remove(directory: &PathBuf) -> Result<()> {
    super::stage::until("an empty cgroup", || match fs::remove_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(false),
        result => Ok(result.map(|()| true)?),
    })
}

/// A hierarchy of version 1, with the controller that the kernel has for processes.
struct Legacy;

impl Legacy {
    fn mount() -> Result<Self> {
        fs::create_dir_all(LEGACY)?;
        command("mount", &["-t", "cgroup", "-o", "pids", "none", LEGACY], "")?;
        Ok(Self)
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        let _left = command("umount", &[LEGACY], "");
        let _left = fs::remove_dir(LEGACY);
    }
}
