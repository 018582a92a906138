//! Which cgroup hierarchies there are, and where they are mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The hierarchies by which containers can be told apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hierarchies {
    /// Where the whole of cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
    pub unified: Option<PathBuf>,
    /// One of version 1, where there are any.
    pub legacy: Option<Legacy>,
}

/// A hierarchy of version 1.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Legacy {
    /// A controller in it.
    pub controller: LegacyController,
    /// Its number, as in `/proc/PID/cgroup` (`cgroup_root.hierarchy_id`).
    pub hierarchy: u32,
    /// Where all of it is mounted.
    pub mount: PathBuf,
}

/// Controllers in whose hierarchies containers have groups of their own, the surest first. Their numbers are those of
/// `LEGACY_CONTROLLER` in the BPF object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum LegacyController {
    /// `pids`
    Pids = 1,
    /// `memory`
    Memory = 2,
    /// `cpu`
    Cpu = 3,
    /// `devices`
    Devices = 4,
}

impl LegacyController {
    const ALL: [Self; 4] = [Self::Pids, Self::Memory, Self::Cpu, Self::Devices];

    /// Its name in a mount's options and in `/proc/PID/cgroup`.
    fn name(self) -> &'static str {
        match self {
            Self::Pids => "pids",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Devices => "devices",
        }
    }
}

impl Hierarchies {
    /// By which hierarchy of version 1 containers are told apart, where there is one.
    #[must_use]
    pub fn controller(&self) -> Option<LegacyController> {
        self.legacy.as_ref().map(|legacy| legacy.controller)
    }

    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup` below `root`, which is `/` on a live system. What cannot be read
    /// has none.
    pub(crate) fn gather(root: &Path) -> Self {
        let file = |path| fs::read(root.join(path)).unwrap_or_default();
        Self::parse(&file("proc/self/mountinfo"), &String::from_utf8_lossy(&file("proc/self/cgroup")))
    }

    fn parse(mountinfo: &[u8], cgroups: &str) -> Self {
        let mounts: Vec<Mount> = mountinfo.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect();
        let legacy = LegacyController::ALL.into_iter().find_map(|controller| {
            let has = |mount: &&Mount| mount.kind == b"cgroup" && has_word(mount.options, controller.name().as_bytes());
            let mount = mounts.iter().find(has)?.directory();
            Some(Legacy { controller, hierarchy: number(cgroups, controller)?, mount })
        });
        Self { unified: mounts.iter().find(|mount| mount.kind == b"cgroup2").map(Mount::directory), legacy }
    }
}

/// A line of mountinfo: a file system mounted from its root on.
struct Mount<'a> {
    directory: &'a [u8],
    kind: &'a [u8],
    /// Of the file system.
    options: &'a [u8],
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        // ID PARENT MAJOR:MINOR ROOT MOUNT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER-OPTIONS
        let mut fields = line.split(|&byte| byte == b' ');
        let (root, directory) = (fields.nth(3)?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-");
        let (kind, options) = (fields.nth(1)?, fields.nth(1)?);
        (root == b"/").then_some(Self { directory, kind, options })
    }

    fn directory(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(unescape(self.directory)))
    }
}

fn has_word(words: &[u8], word: &[u8]) -> bool {
    words.split(|&byte| byte == b',').any(|known| known == word)
}

/// The hierarchy of a controller: lines `ID:CONTROLLER,...:PATH` (kernel/cgroup/cgroup.c, `proc_cgroup_show`).
fn number(cgroups: &str, controller: LegacyController) -> Option<u32> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers) = (fields.next()?, fields.next()?);
        has_word(controllers.as_bytes(), controller.name().as_bytes()).then(|| id.parse().ok())?
    })
}

/// Undoes `\ooo`, which stands for blanks and backslashes in mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match tail.get(..3).and_then(octal) {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    fn unified(mountinfo: &str) -> Option<PathBuf> {
        Hierarchies::parse(mountinfo.as_bytes(), "").unified
    }

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                          37 31 0:34 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                          38 31 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                          39 31 0:36 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                          40 31 0:37 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n";

    #[test]
    fn the_mount_is_found() {
        let plain = "23 30 0:21 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let legacy = "37 31 0:34 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n";
        // In a container: only a part is mounted.
        let part = "99 90 0:21 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n98 90 0:21 /x /mnt ro - cgroup2 c rw\n";
        let blank = "5 4 0:9 / /mnt/c\\040g\\134 rw shared:1 master:2 - cgroup2 none rw\n";
        assert_eq!(unified(plain), Some("/sys/fs/cgroup".into()));
        assert_eq!(unified(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(unified(blank), Some("/mnt/c g\\".into()));
        for none in [legacy, part, "", "1 2 3\n", "1 2 0:1 / /x rw - \n", "1 2 0:1 / /x rw cgroup2\n"] {
            assert_eq!(unified(none), None, "{none}");
        }
    }

    #[test]
    fn the_surest_hierarchy_of_version_1_is_taken() {
        let legacy = |mountinfo: &str, cgroups| Hierarchies::parse(mountinfo.as_bytes(), cgroups).legacy;
        let found = |controller, hierarchy, mount: &str| Some(Legacy { controller, hierarchy, mount: mount.into() });
        let cgroups = "9:name=systemd:/\n8:pids:/\n4:memory:/docker/x\n3:cpu,cpuacct:/other\n0::/\n";
        assert_eq!(legacy(HYBRID, cgroups), found(LegacyController::Pids, 8, "/sys/fs/cgroup/pids"));
        let without = HYBRID.replace("rw,pids", "rw,rdma");
        assert_eq!(legacy(&without, cgroups), found(LegacyController::Cpu, 3, "/sys/fs/cgroup/cpu,cpuacct"));
        // Mounted, but in no hierarchy that is known.
        assert_eq!(legacy(HYBRID, "0::/\n"), None);
        assert_eq!(legacy("", cgroups), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(0|:|/|-|\n| |,|pids|\\PC){0,60}") {
            let _ = (Hierarchies::parse(&bytes, &text), Hierarchies::parse(text.as_bytes(), &text));
            prop_assert!(unescape(&bytes).len() <= bytes.len());
        }
    }

    #[test]
    fn mutated_files_are_survived() {
        survives("mountinfo", &[], |bytes| drop(Hierarchies::parse(bytes, "1:pids:/\n")));
        survives("cgroup", &[], |bytes| drop(Hierarchies::parse(HYBRID.as_bytes(), &String::from_utf8_lossy(bytes))));
    }
}
