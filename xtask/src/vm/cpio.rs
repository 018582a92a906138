//! Archives as the kernel unpacks them (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const TRAILER: &str = "TRAILER!!!";

/// An archive in the making. Archives may follow one another in an initramfs; where they overlap the last one wins.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A folder and those above it.
    pub(super) fn directory(&mut self, path: &str) -> Result<()> {
        let path = checked(path)?;
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file with its permission bits.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        let path = self.with_parent(path)?;
        self.entry(path, REGULAR | permissions, content)
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let path = self.with_parent(path)?;
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entries = 0;
        self.entry(TRAILER, 0, &[])?;
        Ok(self.bytes)
    }

    fn with_parent<'a>(&mut self, path: &'a str) -> Result<&'a str> {
        let path = checked(path)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        Ok(path)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too big for an initramfs"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), of a device node (2), name with its NUL, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.entries += 1;
        self.bytes.extend(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}")?;
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A path inside the archive: relative to its root, and staying there.
fn checked(path: &str) -> Result<&str> {
    let plain = Path::new(path).components().all(|component| matches!(component, Component::Normal(_)));
    if path.is_empty() || path.ends_with('/') || !plain {
        bail!("{path:?} cannot stand in an archive");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("bin/tool", 0o755, b"12345").unwrap();
        archive.file("bin/deep/er/x", 0o644, b"").unwrap();
        archive.symlink("bin/sh", "tool").unwrap();
        archive.directory("proc").unwrap();
        archive.directory("bin/deep").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn first_header() {
        let sample = sample();
        let expected = "070701000000000000" // magic, inode, beginning of the mode
            .to_owned()
            + "41ed"
            + "00000000" // uid
            + "00000000" // gid
            + "00000002" // links
            + "00000000" // mtime
            + "00000000" // size
            + "00000000000000000000000000000000" // devices
            + "00000004" // name
            + "00000000"; // checksum
        assert_eq!(String::from_utf8_lossy(&sample[..110]), expected);
        assert_eq!(&sample[110..116], b"bin\0\0\0", "the header with its name ends at a multiple of four");
        assert_eq!(sample.len() % 4, 0);
    }

    /// Another program's opinion of the same bytes.
    #[test]
    fn cpio_lists_what_was_put_in() {
        let tools: [(&str, &[&str]); 2] = [("cpio", &["-t", "-v"]), ("busybox", &["cpio", "-t", "-v"])];
        let mut checked = false;
        for (program, arguments) in tools {
            let spawned = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            let Ok(mut child) = spawned else { continue };
            child.stdin.take().unwrap().write_all(&sample()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{program} refuses the archive");
            let listing = String::from_utf8(output.stdout).unwrap();
            let names: Vec<&str> =
                listing.lines().map(|line| line.split(" -> ").next().unwrap().rsplit(' ').next().unwrap()).collect();
            assert_eq!(
                names,
                ["bin", "bin/tool", "bin/deep", "bin/deep/er", "bin/deep/er/x", "bin/sh", "proc"],
                "{program}: {listing}"
            );
            let tool = listing.lines().find(|line| line.ends_with("bin/tool")).unwrap();
            assert!(tool.starts_with("-rwxr-xr-x") && tool.contains(" 5 "), "{program}: {tool}");
            assert!(listing.contains("bin/sh -> tool"), "{program}: {listing}");
            checked = true;
        }
        if !checked {
            println!("skipped: neither cpio nor busybox here");
        }
    }

    #[test]
    fn paths_stay_inside() {
        for path in ["", "/etc", "../x", "a/../b", "a/", "./a"] {
            assert!(Archive::default().file(path, 0o644, b"").is_err(), "{path}");
        }
    }
}
