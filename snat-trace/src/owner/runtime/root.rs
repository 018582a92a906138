//! The node's files, as the node itself sees them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};

use crate::owner::process::proc_has_root_pids;

/// Bytes of the largest file or answer that is read.
pub(super) const LONGEST: usize = 4 << 20;
/// Entries of the largest directory that is read. A node has some hundred pods.
const ENTRIES: usize = 65_536;

/// A root directory. No path and no symbolic link leads out of it.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl Root {
    /// The node's: that of its first process where this one is in a container and may look there, else our own.
    ///
    /// # Errors
    /// There is no root to be opened.
    pub(super) fn of_node() -> io::Result<Self> {
        let own = Self::at(Path::new("/"))?;
        let place = |root: &Self| fstat(&root.0).map(|stat| (stat.st_dev, stat.st_ino));
        if proc_has_root_pids()
            && let Ok(node) = Self::at(Path::new("/proc/1/root"))
            && place(&node)? != place(&own)?
        {
            return Ok(node);
        }
        Ok(own)
    }

    /// The directory at a path.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn open(&self, path: &str, flags: OFlags) -> Option<OwnedFd> {
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).ok()
    }

    /// What is in a regular file. Nothing else is opened, for to open a pipe is to wait, and to open a device may do
    /// something.
    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let place = self.open(path, OFlags::PATH)?;
        let stat = fstat(&place).ok()?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_regular || usize::try_from(stat.st_size).is_ok_and(|size| size > LONGEST) {
            return None;
        }
        let file = File::open(by_descriptor(&place)).ok()?;
        let mut content = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut content).ok()?;
        (content.len() <= LONGEST).then_some(content)
    }

    /// What is in a directory, but for names that are not UTF-8, which neither Kubernetes nor any runtime makes.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Some(directory) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let Ok(entries) = Dir::read_from(&directory) else { return Vec::new() };
        let names = entries.take(ENTRIES).map_while(Result::ok);
        names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned)).collect()
    }

    /// Where a symbolic link leads.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        let link = self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        readlinkat(&link, "", Vec::new()).ok()?.into_string().ok()
    }

    /// A socket, to be connected to by [`by_descriptor`].
    pub(super) fn socket(&self, path: &str) -> Option<OwnedFd> {
        let place = self.open(path, OFlags::PATH)?;
        let kind = FileType::from_raw_mode(fstat(&place).ok()?.st_mode);
        (kind == FileType::Socket).then_some(place)
    }
}

/// A path to what a descriptor is of, wherever that is.
pub(super) fn by_descriptor(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkfifoat;

    use super::*;

    #[test]
    fn only_regular_files_of_some_size_within_the_root_are_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let inside = outside.path().join("inside");
        let at = |name: &str| inside.join(name);
        fs::create_dir_all(at("data")).unwrap();
        fs::write(at("data/file"), "text").unwrap();
        fs::write(at("data/secret"), "another").unwrap();
        fs::write(at("large"), vec![b' '; LONGEST]).unwrap();
        fs::write(at("larger"), vec![b' '; LONGEST + 1]).unwrap();
        mkfifoat(CWD, at("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        symlink("/data", at("link")).unwrap();
        symlink("../secret", at("out")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let root = Root::at(&inside).unwrap();
        // An absolute link is the node's, not ours.
        assert_eq!(root.read("/link/file").as_deref(), Some(&b"text"[..]));
        assert_eq!(root.read("/data/../../data/file").as_deref(), Some(&b"text"[..]));
        assert_eq!(root.read("large").map(|content| content.len()), Some(LONGEST));
        for none in ["larger", "pipe", "out", "device", "loop", "data", "missing", "../secret", "", "a\0b"] {
            assert_eq!(root.read(none), None, "{none}");
        }
        assert_eq!(root.link("link").as_deref(), Some("/data"));
        assert_eq!((root.link("data"), root.socket("data/file").is_some()), (None, false));
        assert_eq!((root.names("pipe"), root.names("missing")), (Vec::new(), Vec::new()));
    }

    #[test]
    fn names_are_those_that_are_text() {
        use std::os::unix::ffi::OsStrExt as _;

        let directory = tempfile::tempdir().unwrap();
        for name in [&b"a\x1b[2J\n"[..], b"\xff\xfe", &[b'x'; 255]] {
            fs::write(directory.path().join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        let mut names = Root::at(directory.path()).unwrap().names("/");
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        assert_eq!(names, ["a\x1b[2J\n".to_owned(), "x".repeat(255)]);
    }
}
