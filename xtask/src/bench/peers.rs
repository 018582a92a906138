//! What else people watch with, for the guest: Debian's packages, with every library they need and a loader of their own, as
//! the guest's userland is this machine's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::archive::{Archive, Package};
use crate::debian::sources::Sources;
use crate::progress::{announce, capture};
use crate::project::Project;
use crate::vm::Payload;

/// Where they come from: the release of the measured kernel.
const SUITE: &str = "trixie";

/// Other ways of watching.
const PEERS: [Peer; 3] = [
    Peer { name: "bpftrace", path: "usr/bin/bpftrace", arguments: "" },
    Peer { name: "conntrack", path: "usr/sbin/conntrack", arguments: "" },
    // Debian's would become a user that guests do not have.
    Peer { name: "tcpdump", path: "usr/bin/tcpdump", arguments: "-Z root" },
];

/// A program, in the package of its name.
struct Peer {
    name: &'static str,
    path: &'static str,
    /// What it needs in a guest, before what it is asked.
    arguments: &'static str,
}

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Where all of it lies in the guest, and that in the command's working folder there.
const GUEST: &str = "/t/peers";

/// Programs that run in a guest.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) payload: Vec<Payload>,
    /// The packages they are of: `bpftrace 0.23.2-1`.
    pub(super) packages: Vec<String>,
}

impl Peers {
    /// Fetches what is not here yet.
    ///
    /// # Errors
    /// The mirror cannot be reached, or a package lacks what it should have.
    pub(super) fn ensure(project: &Project) -> Result<Self> {
        let home = project.target().join("peers");
        let (tree, list) = (home.join("tree"), home.join("packages"));
        // Written last.
        let known = match fs::read_to_string(&list) {
            Ok(known) => known,
            Err(_) => {
                let packages = fetch(&home, &tree)?;
                let text: String =
                    packages.iter().map(|package| format!("{} {}\n", package.name, package.version)).collect();
                fs::write(&list, &text)?;
                text
            }
        };
        let is_peer = |line: &&str| PEERS.iter().any(|peer| line.split(' ').next() == Some(peer.name));
        let packages = known.lines().filter(is_peer).map(str::to_owned).collect();
        Ok(Self { payload: payload(&home, &tree)?, packages })
    }
}

/// Unpacks the peers' packages, and all that these depend on, into `tree`.
fn fetch(home: &Path, tree: &Path) -> Result<Vec<Package>> {
    let names = PEERS.map(|peer| peer.name);
    announce(&format!("fetching {} of {SUITE} for the guest", names.join(", ")));
    let downloads = home.join("packages.new");
    for folder in [tree, &downloads] {
        // What an earlier attempt left.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let archive = Archive::isolated(&home.join("apt"), &Sources::read().of(SUITE)?)?;
    archive.update()?;
    let packages = archive.closure(&names)?;
    archive.download(&format!("{} packages", packages.len()), &packages, &downloads)?;
    for package in fs::read_dir(&downloads)? {
        capture(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(tree))?;
    }
    fs::remove_dir_all(downloads)?;
    Ok(packages)
}

/// The programs, a script for each that starts it, and their libraries.
fn payload(home: &Path, tree: &Path) -> Result<Vec<Payload>> {
    let scripts = home.join("bin");
    fs::create_dir_all(&scripts)?;
    let mut payload = vec![in_guest(tree.join(LOADER), "lib/ld.so")];
    for peer in &PEERS {
        let Peer { name, path, .. } = peer;
        let program = tree.join(path);
        if !program.is_file() {
            bail!("the package {name} has no {path}; remove {} to fetch it again", home.display());
        }
        for library in libraries(tree, &program)? {
            let file = library.file_name().and_then(|file| file.to_str()).context("a library has an odd name")?;
            payload.push(in_guest(library.clone(), &format!("lib/{file}")));
        }
        payload.push(in_guest(program, &format!("bin/{name}")));
        let script = scripts.join(name);
        fs::write(&script, starter(peer))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        payload.push(Payload::plain(script)?);
    }
    payload.sort_by(|left, right| left.name.cmp(&right.name));
    payload.dedup();
    Ok(payload)
}

fn in_guest(host: PathBuf, name: &str) -> Payload {
    Payload { host, name: format!("peers/{name}") }
}

/// In the guest's PATH: the program with its own loader and libraries.
fn starter(Peer { name, arguments, .. }: &Peer) -> String {
    format!("#!/bin/sh\nexec {GUEST}/lib/ld.so --library-path {GUEST}/lib {GUEST}/bin/{name} {arguments} \"$@\"\n")
}

/// Shared libraries of `program` in `tree`, and none of this machine's.
fn libraries(tree: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let mut loader = Command::new(tree.join(LOADER));
    loader.arg("--inhibit-cache").arg("--library-path").arg(tree.join(LIBRARIES)).arg("--list").arg(program);
    let listing = capture(&mut loader)?;
    if let Some(missing) = listing.lines().find(|line| line.contains("not found")) {
        bail!("{} needs what is not there: {}", program.display(), missing.trim());
    }
    Ok(parse_listing(&listing).filter(|library| library.starts_with(tree)).collect())
}

/// Paths in the output of `ld.so --list`: `NAME => PATH (ADDRESS)`; the loader names itself by a path, which is known.
fn parse_listing(listing: &str) -> impl Iterator<Item = PathBuf> {
    let pairs = listing.lines().filter_map(|line| line.trim().split_once(" => "));
    pairs
        .filter(|(name, _)| !name.starts_with('/'))
        .filter_map(|(_, found)| found.split_whitespace().next())
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffb)\n\tlibbpf.so.1 => /w/tree/usr/lib/libbpf.so.1 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 => ./usr/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
                       \tlibc.so.6 => /w/tree/usr/lib/libc.so.6 (0x00007f)\n";
        let found: Vec<PathBuf> = parse_listing(listing).collect();
        assert_eq!(found, [Path::new("/w/tree/usr/lib/libbpf.so.1"), Path::new("/w/tree/usr/lib/libc.so.6")]);
    }

    #[test]
    fn a_starter_passes_arguments_on() {
        let peer = Peer { name: "echo", path: "", arguments: "-n x" };
        let script = starter(&peer).replace(&format!("{GUEST}/lib/ld.so --library-path {GUEST}/lib {GUEST}/bin/"), "");
        let output = Command::new("sh").args(["-c", &script, "sh", "a b", "$c"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "x a b $c");
    }
}
