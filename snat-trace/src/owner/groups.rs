//! Cgroups that tests make.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::skipped::skipped;

/// An id as runtimes make them.
pub(super) const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";

/// A cgroup; its process goes to the root, and it is removed, with this value.
pub(super) struct Group {
    mount: PathBuf,
    pub(super) path: String,
}

impl Group {
    /// `/snat-trace-test-PID-NAME`, of which `name` may be more than one part; `None`, with a printed reason, where none can
    /// be made.
    pub(super) fn new(mount: &str, name: &str) -> Option<Self> {
        let path = format!("/snat-trace-test-{}-{name}", std::process::id());
        let group = Self { mount: mount.into(), path };
        if let Err(error) = fs::create_dir_all(group.directory()) {
            skipped(format_args!("no cgroup can be made in {mount}: {error}"));
            return None;
        }
        Some(group)
    }

    /// What a runtime makes for a container that does not leave its groups to systemd: one in version 1, while in the
    /// unified hierarchy the container stays in the runtime's unit. The latter is the first.
    pub(super) fn hybrid(name: &str) -> Option<[Self; 2]> {
        let (unified, legacy) = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids");
        if [unified, legacy].iter().any(|mount| !Path::new(mount).join("cgroup.procs").exists()) {
            skipped("there is no version 1 hierarchy for pids beside the unified one");
            return None;
        }
        let unit = Self::new(unified, &format!("{name}.service"))?;
        Some([unit, Self::new(legacy, &format!("{name}/docker/{ID}"))?])
    }

    fn directory(&self) -> PathBuf {
        self.mount.join(self.path.trim_start_matches('/'))
    }

    /// Puts a process into it.
    pub(super) fn put(&self, pid: u32) {
        fs::write(self.directory().join("cgroup.procs"), pid.to_string()).unwrap();
    }

    pub(super) fn id(&self) -> u64 {
        fs::metadata(self.directory()).unwrap().st_ino()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let directory = self.directory();
        let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            // It may have ended meanwhile.
            let _ = fs::write(self.mount.join("cgroup.procs"), pid);
        }
        // Not the mount: it is never empty.
        for part in directory.ancestors().take_while(|part| *part != self.mount) {
            let _ = fs::remove_dir(part);
        }
    }
}
