//! The guest's userland: busybox, a shell, and the tools to make and look at NAT with, taken from this machine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::debian::install;
use crate::progress::{self, Progress};
use crate::project::Project;

/// First process of the guest.
const INIT: &str = include_str!("init.sh");

/// What the guest is made of, and what makes it.
const PACKAGES: [&str; 10] = [
    "busybox-static",
    "conntrack",
    "ethtool",
    "iproute2",
    "iptables",
    "kmod", // finds the order to load modules in
    "nftables",
    "tmux",     // a terminal to drive the live view in
    "xz-utils", // unpacks modules
    "zstd",
];

/// Dynamic programs of the guest, below `/bin` there. busybox's own `ip` is too small.
const PROGRAMS: [(&str, &str); 10] = [
    ("dash", "/bin/dash"),
    ("ip", "/bin/ip"),
    ("ss", "/bin/ss"),
    ("tc", "/sbin/tc"),
    ("nft", "/usr/sbin/nft"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("ethtool", "/usr/sbin/ethtool"),
    ("tmux", "/usr/bin/tmux"),
    ("xtables-nft-multi", "/usr/sbin/xtables-nft-multi"),
    ("xtables-legacy-multi", "/usr/sbin/xtables-legacy-multi"),
];

/// Names the programs above go by as well.
const ALIASES: [(&str, &str); 12] = [
    ("sh", "dash"),
    ("iptables", "xtables-nft-multi"),
    ("iptables-nft", "xtables-nft-multi"),
    ("iptables-nft-save", "xtables-nft-multi"),
    ("iptables-nft-restore", "xtables-nft-multi"),
    ("ip6tables", "xtables-nft-multi"),
    ("ip6tables-nft", "xtables-nft-multi"),
    ("iptables-legacy", "xtables-legacy-multi"),
    ("iptables-legacy-save", "xtables-legacy-multi"),
    ("iptables-legacy-restore", "xtables-legacy-multi"),
    ("ip6tables-legacy", "xtables-legacy-multi"),
    ("xtables-monitor", "xtables-nft-multi"),
];

/// Where iptables looks for its extensions.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Characters of a terminal that knows more than ASCII: without it tmux does not start.
const CHARACTERS: &str = "/usr/lib/locale/C.utf8/LC_CTYPE";

/// Applets that would hide a program above, or do harm.
const NO_APPLETS: [&str; 4] = ["busybox", "ip", "modprobe", "sh"];

const BUSYBOX: &str = "/bin/busybox";

/// Makes sure that the machine has what a guest is made of.
///
/// # Errors
/// Something is missing that we may not install.
pub(super) fn ensure_packages() -> Result<()> {
    install::ensure(&PACKAGES, "the virtual machines' userland")
}

/// The userland as an archive, made again only when one of its parts has changed.
///
/// # Errors
/// A part cannot be read or the cache not written.
pub(super) fn archive(project: &Project) -> Result<Vec<u8>> {
    let cache = project.vm().join("base.cpio");
    let stamp = project.vm().join("base.stamp");
    let wanted = inputs()?;
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted)
        && let Ok(bytes) = fs::read(&cache)
    {
        return Ok(bytes);
    }
    let progress = Progress::start("packing the guest's userland");
    let bytes = pack()?;
    fs::write(&cache, &bytes).with_context(|| format!("cannot write {}", cache.display()))?;
    fs::write(&stamp, wanted)?;
    progress.done();
    Ok(bytes)
}

/// What the archive depends on, as text.
fn inputs() -> Result<String> {
    let mut text = format!("{INIT}\n{ALIASES:?}\n{NO_APPLETS:?}\n");
    for path in PROGRAMS.iter().map(|(_, path)| *path).chain([BUSYBOX, EXTENSIONS, CHARACTERS]) {
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {path}"))?;
        text.push_str(&format!("{path} {} {}\n", metadata.size(), metadata.mtime()));
    }
    Ok(text)
}

fn pack() -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for mount_point in ["proc", "sys", "dev", "tmp", "run", "t", "mods", "etc", "root", "sbin", "var/run"] {
        archive.directory(mount_point)?;
    }
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("bin/busybox", 0o755, &read(Path::new(BUSYBOX))?)?;
    let taken = |name: &str| PROGRAMS.iter().chain(&ALIASES).any(|(program, _)| *program == name);
    for applet in progress::capture(Command::new(BUSYBOX).arg("--list"))?.lines() {
        if !NO_APPLETS.contains(&applet) && !taken(applet) {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
    }
    for (name, path) in PROGRAMS {
        archive.file(&format!("bin/{name}"), 0o755, &read(Path::new(path))?)?;
    }
    for (name, program) in ALIASES {
        archive.symlink(&format!("bin/{name}"), program)?;
    }
    let extensions = extensions()?;
    for extension in &extensions {
        put(&mut archive, extension)?;
    }
    let dynamic = PROGRAMS.iter().map(|(_, path)| PathBuf::from(path)).chain(extensions);
    for library in libraries(dynamic)? {
        put(&mut archive, &library)?;
    }
    put(&mut archive, Path::new(CHARACTERS))?;
    for file in ["/etc/protocols", "/etc/services"] {
        // Only names for numbers: tools do without.
        if Path::new(file).exists() {
            put(&mut archive, Path::new(file))?;
        }
    }
    archive.finish()
}

/// The file of that path, links followed, at the same path in the guest.
fn put(archive: &mut Archive, path: &Path) -> Result<()> {
    let name = path.to_str().and_then(|path| path.strip_prefix('/')).context("an absolute path was expected")?;
    archive.file(name, 0o755, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn extensions() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(EXTENSIONS).with_context(|| format!("cannot read {EXTENSIONS}"))?;
    let mut extensions = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    extensions.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    extensions.sort();
    Ok(extensions)
}

/// The shared libraries and dynamic loaders all of `programs` need.
fn libraries(programs: impl Iterator<Item = PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let programs: Vec<PathBuf> = programs.collect();
    let listing = progress::capture(Command::new("ldd").env("LC_ALL", "C.UTF-8").args(&programs))?;
    Ok(parse_ldd(&listing).filter(|library| !programs.contains(library)).collect())
}

/// Paths in the output of ldd(1); a line for each program asked about ends in a colon.
fn parse_ldd(listing: &str) -> impl Iterator<Item = PathBuf> {
    listing
        .lines()
        .filter(|line| !line.ends_with(':'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_listing() {
        let listing = "\
/usr/sbin/nft:
\tlinux-vdso.so.1 (0x00007ffd)
\tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f)
/bin/static:
\tstatically linked
";
        let libraries: Vec<PathBuf> = parse_ldd(listing).collect();
        assert_eq!(
            libraries,
            [Path::new("/lib/x86_64-linux-gnu/libnftables.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }
}
