//! From a cgroup's id to its path, without walking the tree.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use snat_trace_common::CgroupKey;

use super::container::outermost;
use crate::kernel::{Hierarchies, Legacy};

/// Paths remembered before all are forgotten. A node of 500 pods has some 2000 cgroups.
const CACHED: usize = 4096;

/// Number of the unified hierarchy (`cgroup_root.hierarchy_id`).
pub(crate) const UNIFIED: u32 = 0;

/// Paths of cgroups by the number of their hierarchy and their id there. An id is never used twice, so what is remembered
/// stays right, also after the cgroup has gone.
#[derive(Debug)]
pub(crate) struct CgroupPaths {
    /// Where cgroup2 is mounted, if it is.
    mount: Option<PathBuf>,
    /// The number of a hierarchy of version 1, and where that is mounted.
    legacy: Option<(u32, PathBuf)>,
    cached: HashMap<(u32, u64), String>,
}

impl CgroupPaths {
    /// Of these hierarchies, as far as they can be seen as a whole.
    pub(crate) fn new(hierarchies: Hierarchies) -> Self {
        /// Of the root of every kernfs. Inside a cgroup namespace another cgroup looks like the root.
        const ROOT_ID: u64 = 1;
        let whole = |mount: &PathBuf| fs::metadata(mount).is_ok_and(|root| root.st_ino() == ROOT_ID);
        let Hierarchies { unified, legacy } = hierarchies;
        let legacy = legacy.map(|Legacy { hierarchy, mount, controller: _ }| (hierarchy, mount));
        Self { mount: unified.filter(whole), legacy: legacy.filter(|(_, mount)| whole(mount)), cached: HashMap::new() }
    }

    /// The number of the hierarchy of version 1 whose ids are recorded.
    pub(crate) fn legacy(&self) -> Option<u32> {
        self.legacy.as_ref().map(|&(hierarchy, _)| hierarchy)
    }

    /// The path of the cgroup below its hierarchy's root. One that has gone is named by what `removed` noted of it, else
    /// not at all; nor is one that cannot be seen from here.
    pub(crate) fn path(
        &mut self,
        hierarchy: u32,
        id: u64,
        removed: impl FnOnce(CgroupKey) -> Option<String>,
    ) -> Option<String> {
        if let Some(path) = self.cached.get(&(hierarchy, id)) {
            return Some(path.clone());
        }
        let mount = match &self.legacy {
            Some((number, mount)) if hierarchy == *number => mount,
            _ => self.mount.as_ref().filter(|_| hierarchy == UNIFIED)?,
        };
        let path = resolve(mount, id).or_else(|| removed(CgroupKey { id, hierarchy, reserved: 0 }))?;
        if self.cached.len() >= CACHED {
            self.cached.clear();
        }
        self.cached.insert((hierarchy, id), path.clone());
        Some(path)
    }

    /// The id of the cgroup at a path below the hierarchy's root: the inode number of its directory, on kernels since
    /// 5.5 (fs/kernfs/dir.c, `kernfs_id`).
    pub(crate) fn id(&self, path: &str) -> Option<u64> {
        let directory = self.mount.as_ref()?.join(path.strip_prefix('/')?);
        fs::metadata(directory).ok().map(|metadata| metadata.st_ino())
    }
}

/// Opens the cgroup by its handle and asks where that is.
fn resolve(mount: &Path, id: u64) -> Option<String> {
    let mount_fd = File::open(mount).ok()?;
    let cgroup = open_by_id(&mount_fd, id).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
    // A cgroup outside of what is mounted here is `(unreachable)/...` and has no such prefix.
    below(mount, &path)
}

/// `path` relative to the mount, beginning with `/`.
fn below(mount: &Path, path: &Path) -> Option<String> {
    let path = format!("/{}", path.strip_prefix(mount).ok()?.to_string_lossy());
    (!path.ends_with(DELETED)).then_some(path)
}

/// What the kernel puts after the path of something removed.
pub(super) const DELETED: &str = " (deleted)";

/// Opens a cgroup's directory by its id (fs/kernfs/mount.c, `kernfs_fh_to_dentry`); needs `CAP_DAC_READ_SEARCH`.
fn open_by_id(mount: &File, id: u64) -> io::Result<OwnedFd> {
    /// `FILEID_KERNFS` (include/linux/exportfs.h), since 5.5.
    const FILEID_KERNFS: libc::c_int = 0xfe;
    /// `struct file_handle` with the eight bytes of a kernfs handle.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        id: [u8; 8],
    }
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: the call reads `handle`, which has the layout of `struct file_handle` and as many bytes behind its header
    // as it says; it outlives the call.
    let fd =
        unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cgroups of a process, as `/proc/PID/cgroup` names them.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct ProcessCgroups {
    /// Its path in the unified hierarchy.
    pub(crate) unified: Option<String>,
    /// Its path in the hierarchy of version 1 that says most: the first in which it is in a container, else the first in
    /// which it is not in the root.
    pub(crate) legacy: Option<String>,
}

/// Which path to go by, that in the unified hierarchy or that in one of version 1.
///
/// A runtime that does not leave its groups to systemd makes them in version 1 only. In the unified hierarchy its containers
/// are in the root, or beside systemd still in the unit of the runtime itself, whose name is not theirs.
pub(crate) fn telling(unified: Option<String>, legacy: impl FnOnce() -> Option<String>) -> Option<String> {
    if unified.as_deref().is_some_and(is_contained) {
        return unified;
    }
    let legacy = legacy();
    match unified {
        Some(path) if path != "/" && !legacy.as_deref().is_some_and(is_contained) => Some(path),
        root => legacy.or(root),
    }
}

/// Whether a path leads into a runtime's container; a systemd unit is none.
fn is_contained(path: &str) -> bool {
    outermost(path).is_some()
}

impl ProcessCgroups {
    /// Of the process that has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
        Some(parse_cgroups(&String::from_utf8_lossy(&text)))
    }
}

/// Hierarchies of version 1 in which containers have groups of their own, the surest first.
const LEGACY: [&str; 8] = ["name=systemd", "pids", "memory", "cpu", "cpuacct", "devices", "freezer", "blkio"];

/// Lines `ID:CONTROLLER,...:PATH`; the unified hierarchy has id 0 and no controllers (kernel/cgroup/cgroup.c,
/// `proc_cgroup_show`). A path outside of the reader's cgroup namespace begins with `/..` and is no path to give.
fn parse_cgroups(text: &str) -> ProcessCgroups {
    let mut cgroups = ProcessCgroups::default();
    let mut best = (true, usize::MAX);
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if !path.starts_with('/') || path == "/.." || path.starts_with("/../") || path.ends_with(DELETED) {
            continue;
        }
        if id == "0" && controllers.is_empty() {
            cgroups.unified = Some(path.to_owned());
        } else if path != "/" {
            let rank = |controller| LEGACY.iter().position(|&known| known == controller).unwrap_or(LEGACY.len());
            let rank = (!is_contained(path), controllers.split(',').map(rank).min().unwrap_or(LEGACY.len()));
            if rank < best {
                best = rank;
                cgroups.legacy = Some(path.to_owned());
            }
        }
    }
    cgroups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;
    use crate::owner::container::container;
    use crate::skipped::skipped;

    const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";

    #[test]
    fn the_hierarchy_that_says_most_is_taken() {
        let of = |text: &str| {
            let ProcessCgroups { unified, legacy } = parse_cgroups(text);
            (unified.unwrap_or_default(), legacy.unwrap_or_default())
        };
        let pair = |unified: &str, legacy: &str| (unified.to_owned(), legacy.to_owned());
        assert_eq!(of("0::/system.slice/a.service\n"), pair("/system.slice/a.service", ""));
        let hybrid = "9:name=systemd:/\n8:pids:/\n4:memory:/docker/x\n3:cpu,cpuacct:/other\n0::/\n";
        assert_eq!(of(hybrid), pair("/", "/docker/x"));
        assert_eq!(of("5:perf_event:/p\n2:cpu,cpuacct:/c\n"), pair("", "/c"));
        assert_eq!(of("5:perf_event:/p\n2:rdma:/r\n"), pair("", "/p"));
        let session = "/user.slice/user-0.slice/session-1.scope";
        let podman = format!("/libpod_parent/libpod-{ID}");
        assert_eq!(of(&format!("9:name=systemd:{session}\n8:pids:{podman}\n")), pair("", &podman));
        // A name may hold colons; one outside of our namespace or gone is no name.
        assert_eq!(of("0::/s.slice:cri-containerd:x\n"), pair("/s.slice:cri-containerd:x", ""));
        assert_eq!(of("0::/../../x\n1:pids:/..\n2:cpu:/y (deleted)\n"), pair("", ""));
        assert_eq!(of("0::/..x\n"), pair("/..x", ""));
        assert_eq!(of("nonsense\n0:\n:::\n"), pair("", ""));
    }

    #[test]
    fn the_path_that_tells_a_container_is_gone_by() {
        let docker = format!("/docker/{ID}");
        let scope = format!("/system.slice/docker-{ID}.scope");
        let runtime = "/system.slice/containerd.service";
        for (unified, legacy, expected) in [
            // The runtime's own unit tells nothing of its containers.
            (Some(runtime), Some(&*docker), Some(&*docker)),
            (Some("/"), Some(&docker), Some(&docker)),
            (None, Some(&docker), Some(&docker)),
            (Some("/user.slice"), Some(&docker), Some(&docker)),
            (Some(&scope), Some(&docker), Some(&scope)),
            (Some(&scope), Some(runtime), Some(&scope)),
            // Neither tells a container.
            (Some(runtime), Some("/system.slice"), Some(runtime)),
            (Some("/"), Some(runtime), Some(runtime)),
            (None, Some(runtime), Some(runtime)),
            (Some(runtime), None, Some(runtime)),
            (Some("/"), None, Some("/")),
            (None, None, None),
        ] {
            let told = telling(unified.map(str::to_owned), || legacy.map(str::to_owned));
            assert_eq!(told.as_deref(), expected, "{unified:?} {legacy:?}");
        }
        let hybrid = include_str!("../../tests/corpus/cgroup/hybrid-docker");
        let ProcessCgroups { unified, legacy } = parse_cgroups(hybrid);
        assert_eq!(unified.as_deref(), Some(runtime));
        assert_eq!(telling(unified, || legacy), Some(docker));
    }

    #[test]
    fn a_path_is_told_below_the_mount() {
        let mount = Path::new("/sys/fs/cgroup");
        assert_eq!(below(mount, mount).as_deref(), Some("/"));
        assert_eq!(below(mount, Path::new("/sys/fs/cgroup/a/b")).as_deref(), Some("/a/b"));
        assert_eq!(below(mount, Path::new("/sys/fs/cgroup/a (deleted)")), None);
        assert_eq!(below(mount, Path::new("(unreachable)/a")), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(0|:|/|-|\n| |\\PC){0,60}") {
            let _ = parse_cgroups(&text);
        }
    }

    #[test]
    fn an_id_leads_to_the_path_until_the_cgroup_goes() {
        let mut paths = CgroupPaths::new(Hierarchies::gather(Path::new("/")));
        let gone = |_| None;
        let Some(mount) = paths.mount.clone() else {
            skipped("cgroup2 is not mounted");
            return;
        };
        let name = format!("snat-trace-test-{}", std::process::id());
        let directory = mount.join(&name);
        if let Err(error) = fs::create_dir(&directory) {
            skipped(format_args!("no cgroup can be made: {error}"));
            return;
        }
        let path = format!("/{name}");
        let id = fs::metadata(&directory).unwrap().st_ino();
        let at = |paths: &mut CgroupPaths, id| paths.path(UNIFIED, id, gone);
        let found = (paths.id(&path), resolve(&mount, id), at(&mut paths, id), at(&mut paths, 1));
        fs::remove_dir(&directory).unwrap();
        assert_eq!(found, (Some(id), Some(path.clone()), Some(path.clone()), Some("/".to_owned())));
        assert_eq!(resolve(&mount, id), None);
        // What was resolved in time is still known.
        assert_eq!(at(&mut paths, id), Some(path));
        assert_eq!(at(&mut paths, u64::MAX), None);
        // One that was never seen is what was noted when it went, in its own hierarchy.
        let noted = |key: CgroupKey| Some(format!("/{}:{}", key.hierarchy, key.id));
        assert_eq!(paths.path(UNIFIED, u64::MAX, noted).as_deref(), Some("/0:18446744073709551615"));
        assert_eq!(paths.path(77, u64::MAX, noted), None);
    }

    #[test]
    fn mutated_files_are_survived() {
        survives("cgroup", &[], |bytes| {
            let cgroups = parse_cgroups(&String::from_utf8_lossy(bytes));
            for path in [cgroups.unified, cgroups.legacy].into_iter().flatten() {
                assert!(path.starts_with('/') && !path.starts_with("/../"));
                drop(container(&path));
            }
        });
    }
}
