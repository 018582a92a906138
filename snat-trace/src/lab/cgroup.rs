//! A cgroup for each pod, below the unified hierarchy's root, removed at the end or by the next lab.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::truth::CgroupTruth;

/// What every directory of a lab begins with; its process id and start time follow.
const PREFIX: &str = "snat-trace-lab-";

/// The directories of one lab.
#[derive(Debug)]
pub(super) struct Cgroups {
    directory: PathBuf,
    pods: Vec<(PathBuf, CgroupTruth)>,
}

impl Cgroups {
    /// Makes one per pod, after removing what labs that are no more have left. The error says in a clause why there
    /// are none.
    pub(super) fn new(pods: usize) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let root = unified_mount(&mounts).ok_or("no cgroup2 file system is mounted")?;
        remove_leftovers(&root);
        let pid = std::process::id();
        let start = start_time(pid).ok_or("/proc does not show this process")?;
        let name = format!("{PREFIX}{pid}-{start}");
        let mut cgroups = Self { directory: root.join(&name), pods: Vec::new() };
        let make = |directory: &Path| {
            fs::create_dir(directory).map_err(|error| format!("{} cannot be made: {error}", directory.display()))
        };
        make(&cgroups.directory)?;
        for pod in 0..pods {
            let directory = cgroups.directory.join(format!("pod-{pod}"));
            make(&directory)?;
            // The cgroup's id is its directory's inode number (include/linux/kernfs.h, `kernfs_ino`).
            let id = fs::metadata(&directory).map_err(|error| error.to_string())?.ino();
            cgroups.pods.push((directory, CgroupTruth { path: format!("/{name}/pod-{pod}"), id }));
        }
        Ok(cgroups)
    }

    /// Moves a process into a pod's cgroup.
    pub(super) fn join(&self, pod: usize, pid: u32) -> Result<CgroupTruth, String> {
        let (directory, truth) = self.pods.get(pod).ok_or("there is none for this pod")?;
        let procs = directory.join("cgroup.procs");
        fs::write(&procs, pid.to_string())
            .map_err(|error| format!("{} cannot be written: {error}", procs.display()))?;
        Ok(truth.clone())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes a lab's directory and those in it. One that is still busy stays for the next lab to remove.
fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _busy = fs::remove_dir(entry.path());
        }
    }
    let _busy = fs::remove_dir(directory);
}

/// Removes the directories of labs killed before they could do it themselves.
fn remove_leftovers(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, start)) = name.to_str().and_then(lab_of) else { continue };
        if start_time(pid) != Some(start) {
            remove(&entry.path());
        }
    }
}

/// Process id and start time in a directory's name.
fn lab_of(name: &str) -> Option<(u32, u64)> {
    let (pid, start) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// When a process started, in clock ticks after boot: with its id, a name no other process ever has.
fn start_time(pid: u32) -> Option<u64> {
    start_time_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/PID/stat`; field 2, the name in parentheses, may have anything in it.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Where the unified hierarchy is mounted, whether alone or beside the old ones.
fn unified_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if !file_system.starts_with("cgroup2 ") {
            return None;
        }
        // A path with a space in it would be escaped; no system mounts cgroups at such a place.
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Whether any lab's directory exists below the unified hierarchy, for tests of the clean-up.
///
/// # Errors
/// When the mounts or the hierarchy cannot be read.
pub fn lab_cgroups() -> io::Result<Vec<PathBuf>> {
    let Some(root) = unified_mount(&fs::read_to_string("/proc/self/mountinfo")?) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(lab_of).is_some() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_in_every_layout() {
        for (mountinfo, expected) in [
            ("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate", Some("/sys/fs/cgroup")),
            (
                "29 20 0:24 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 31 29 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
            ("", None),
        ] {
            assert_eq!(unified_mount(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        }
    }

    #[test]
    fn a_name_says_whose_it_is() {
        assert_eq!(lab_of("snat-trace-lab-12-3456"), Some((12, 3456)));
        for other in ["snat-trace-lab-", "snat-trace-lab-12", "snat-trace-lab-x-1", "system.slice"] {
            assert_eq!(lab_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_start_time_is_read_past_any_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 98765 20 21";
        assert_eq!(start_time_in(stat), Some(98765));
        assert_eq!(start_time_in("42 (a) S 1"), None);
    }
}
