//! Finding and entering network namespaces without keeping any of them alive.
//!
//! A file descriptor to a namespace pins it, and everything in it, after its last process has gone. So what is kept
//! between calls is where a namespace was found, never a descriptor; it is checked by number when opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::race::event::NetnsInum;

/// Where programs mount the namespaces they name: iproute2 and CNI, and docker.
const MOUNTED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A network namespace and a path that led to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Netns {
    /// Its number.
    pub inum: NetnsInum,
    path: PathBuf,
}

/// How far to look for namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// Those of processes, by their main thread, and the mounted ones.
    Processes,
    /// Those of every thread too: a thread can be in a namespace of its own.
    Threads,
    /// Those that are held by nothing but an open file as well. Reads every file descriptor of every process.
    Descriptors,
}

impl Netns {
    /// The caller's own.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        // Not `thread-self`: the path must mean the same to another thread.
        let path = PathBuf::from(format!("/proc/self/task/{}/ns/net", rustix::thread::gettid().as_raw_nonzero()));
        Ok(Self { inum: inum(&fs::metadata(&path)?), path })
    }

    /// One that this process holds open.
    ///
    /// # Errors
    /// `fd` cannot be read.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(Self { inum: inum(&fs::metadata(&path)?), path })
    }

    /// Opens it where it was found.
    ///
    /// # Errors
    /// It is no longer there ([`io::ErrorKind::NotFound`], also when something else is there now), or may not be opened.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let file = File::open(&self.path)?;
        if inum(&file.metadata()?) == self.inum { Ok(file.into()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Every network namespace that can be found, by number, each once. The caller's own is among them.
///
/// # Errors
/// `/proc` is not mounted.
pub fn enumerate(depth: Depth) -> io::Result<Vec<Netns>> {
    let mut found = Found::new()?;
    for directory in MOUNTED {
        for path in entries(Path::new(directory)) {
            found.add(path);
        }
    }
    for process in numbered(Path::new("/proc")) {
        found.process(&process, depth);
    }
    Ok(found.all.into_iter().map(|(inum, path)| Netns { inum, path }).collect())
}

/// Hands every network namespace that can be found to `visit`, each once, until it returns `None`; `None` then, and when one
/// could not be opened or `deadline` has passed.
///
/// Where a namespace was found it may be gone at once: a thread showed it that has left it or ended, such as one of
/// [`in_netns`]. Others may still be there, so it is looked for again.
pub fn visit(
    depth: Depth,
    deadline: Instant,
    visit: impl FnMut(NetnsInum, BorrowedFd<'_>) -> Option<()>,
) -> Option<()> {
    visit_found(|| enumerate(depth), deadline, visit)
}

fn visit_found(
    mut find: impl FnMut() -> io::Result<Vec<Netns>>,
    deadline: Instant,
    mut visit: impl FnMut(NetnsInum, BorrowedFd<'_>) -> Option<()>,
) -> Option<()> {
    let mut visited = BTreeSet::new();
    loop {
        let mut gone = false;
        for netns in find().ok()? {
            if visited.contains(&netns.inum) {
                continue;
            }
            if Instant::now() >= deadline {
                return None;
            }
            match netns.open() {
                Ok(fd) => {
                    visited.insert(netns.inum);
                    visit(netns.inum, fd.as_fd())?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => gone = true,
                Err(_) => return None,
            }
        }
        if !gone {
            return Some(());
        }
    }
}

/// How often [`search`] looks for what it found and `take` did not have.
const SEARCHES: usize = 8;

/// Looks for those of `wanted` that [`enumerate`] does not find below [`Depth::Descriptors`], and hands them to `take`, which
/// says whether it has them. As with [`visit`], what was gone at once is looked for again.
///
/// # Errors
/// `/proc` is not mounted.
pub fn search(wanted: BTreeSet<NetnsInum>, take: impl FnMut(&Netns) -> bool) -> io::Result<()> {
    search_found(search_once, wanted, take)
}

fn search_found(
    mut find: impl FnMut(&BTreeSet<NetnsInum>) -> io::Result<Vec<Netns>>,
    mut wanted: BTreeSet<NetnsInum>,
    mut take: impl FnMut(&Netns) -> bool,
) -> io::Result<()> {
    for _ in 0..SEARCHES {
        if wanted.is_empty() {
            break;
        }
        wanted = find(&wanted)?.iter().filter(|&netns| !take(netns)).map(|netns| netns.inum).collect();
    }
    Ok(())
}

/// Stops when it has all.
fn search_once(wanted: &BTreeSet<NetnsInum>) -> io::Result<Vec<Netns>> {
    let mut found = Found::new()?;
    for process in numbered(Path::new("/proc")) {
        if wanted.iter().all(|inum| found.all.contains_key(inum)) {
            break;
        }
        found.process(&process, Depth::Descriptors);
    }
    Ok(found
        .all
        .into_iter()
        .filter(|(inum, _)| wanted.contains(inum))
        .map(|(inum, path)| Netns { inum, path })
        .collect())
}

/// Runs `f` inside a network namespace, on a thread of its own that ends with it: the caller's namespace never changes.
///
/// # Errors
/// The namespace may not be entered (`CAP_SYS_ADMIN` in it and in the caller's is needed), or no thread can be made.
pub fn in_netns<T: Send>(fd: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?;
                Ok(f())
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A number that the calling thread's network namespace shares with no other until the next boot; its inode number goes
/// to another namespace soon after it has gone. `None` on kernels before 5.14.
#[must_use]
pub fn cookie() -> Option<u64> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    /// The option's number on every architecture but parisc and sparc (include/uapi/asm-generic/socket.h).
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`, and the length; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<u64>() && cookie != 0).then_some(cookie)
}

/// What an enumeration gathers.
struct Found {
    /// Device of the file system namespaces live in; tells a namespace from any other file.
    device: u64,
    all: BTreeMap<NetnsInum, PathBuf>,
}

impl Found {
    fn new() -> io::Result<Self> {
        let own = Netns::current()?;
        let device = fs::metadata(&own.path)?.st_dev();
        Ok(Self { device, all: BTreeMap::from([(own.inum, own.path)]) })
    }

    fn process(&mut self, process: &Path, depth: Depth) {
        self.add(process.join("ns/net"));
        if depth != Depth::Processes {
            for thread in numbered(&process.join("task")) {
                self.add(thread.join("ns/net"));
            }
        }
        if depth == Depth::Descriptors {
            for path in numbered(&process.join("fd")) {
                // Only `net:[INUM]` is a network namespace; following every other link could have side effects.
                if fs::read_link(&path).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"net:["))
                {
                    self.add(path);
                }
            }
        }
    }

    fn add(&mut self, path: PathBuf) {
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.st_dev() == self.device
        {
            self.all.entry(inum(&metadata)).or_insert(path);
        }
    }
}

/// Inode numbers of namespaces are 32 bits wide (include/linux/ns_common.h).
pub(crate) fn inum(metadata: &fs::Metadata) -> NetnsInum {
    NetnsInum(u32::try_from(metadata.st_ino()).unwrap_or(0))
}

/// The subdirectories whose names are numbers; none when the directory is gone.
fn numbered(directory: &Path) -> impl Iterator<Item = PathBuf> {
    entries(directory)
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)))
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
    use std::time::Duration;

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;
    use crate::skipped::skipped;

    /// The right to make network namespaces, for one test at a time: another test's enumeration would for a moment hold
    /// open what this one expects to be gone. `None` says why not.
    pub(crate) fn alone() -> Option<MutexGuard<'static, ()>> {
        static ALONE: Mutex<()> = Mutex::new(());
        if !rustix::process::geteuid().is_root() {
            skipped("making network namespaces needs root");
            return None;
        }
        Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A network namespace that lives as long as this value, held by a descriptor only.
    pub(crate) fn new_netns() -> OwnedFd {
        thread::spawn(|| {
            // SAFETY: CLONE_NEWNET changes this thread's network namespace only; no descriptor table is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        })
        .join()
        .unwrap()
    }

    fn has(all: &[Netns], inum: NetnsInum) -> bool {
        all.iter().any(|netns| netns.inum == inum)
    }

    #[test]
    fn the_own_namespace_is_found_and_opens() {
        let own = Netns::current().unwrap();
        let all = enumerate(Depth::Processes).unwrap();
        assert!(has(&all, own.inum));
        assert_eq!(all.iter().filter(|netns| netns.inum == own.inum).count(), 1);
        own.open().unwrap();
    }

    #[test]
    fn a_namespace_held_by_a_descriptor_is_found_by_search_only() {
        let Some(_alone) = alone() else { return };
        let fd = new_netns();
        let inum = Netns::of(fd.as_fd()).unwrap().inum;
        assert!(!has(&enumerate(Depth::Threads).unwrap(), inum));
        assert!(has(&enumerate(Depth::Descriptors).unwrap(), inum));
        let found = search_once(&BTreeSet::from([inum])).unwrap();
        assert_eq!(found.iter().map(|netns| netns.inum).collect::<Vec<_>>(), [inum]);
        found[0].open().unwrap();
        drop(fd);
        assert_eq!(search_once(&BTreeSet::from([inum])).unwrap(), []);
    }

    #[test]
    fn what_was_gone_when_it_was_taken_is_searched_for_again() {
        let own = Netns::current().unwrap();
        let ended = Netns { path: PathBuf::from("/proc/self/task/0/ns/net"), ..own.clone() };
        let wanted = || BTreeSet::from([own.inum]);
        let mut taken = Vec::new();
        let mut take = |netns: &Netns| {
            taken.push(netns.path.clone());
            netns.open().is_ok()
        };
        // Whoever showed it first has ended; somebody else still has it.
        let mut finds = vec![vec![own.clone()], vec![ended.clone()]];
        search_found(|_| Ok(finds.pop().unwrap()), wanted(), &mut take).unwrap();
        // Gone for good, and never to be had.
        let mut finds = vec![vec![], vec![ended.clone()]];
        search_found(|_| Ok(finds.pop().unwrap()), wanted(), &mut take).unwrap();
        search_found(|_| Ok(vec![ended.clone()]), wanted(), &mut take).unwrap();
        let ended_often = std::iter::repeat_n(ended.path.clone(), 1 + SEARCHES);
        let expected: Vec<_> = [ended.path.clone(), own.path.clone()].into_iter().chain(ended_often).collect();
        assert_eq!(taken, expected);
    }

    #[test]
    fn a_namespace_gone_where_it_was_found_is_looked_for_again() {
        let own = Netns::current().unwrap();
        // The thread that showed it has ended.
        let ended = Netns { path: PathBuf::from("/proc/self/task/0/ns/net"), ..own.clone() };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut finds = vec![vec![own.clone()], vec![ended.clone()]];
        let mut seen = Vec::new();
        let all = visit_found(
            || Ok(finds.pop().unwrap()),
            deadline,
            |inum, _| {
                seen.push(inum);
                Some(())
            },
        );
        assert_eq!((all, seen), (Some(()), vec![own.inum]));
        // Gone for good: not there the next time.
        let mut finds = vec![vec![], vec![ended.clone()]];
        assert_eq!(visit_found(|| Ok(finds.pop().unwrap()), deadline, |_, _| Some(())), Some(()));
        // Never to be had: until the deadline.
        let soon = Instant::now() + Duration::from_millis(1);
        assert_eq!(visit_found(|| Ok(vec![ended.clone()]), soon, |_, _| Some(())), None);
    }

    #[test]
    fn a_thread_in_a_namespace_of_its_own_is_found() {
        let Some(_alone) = alone() else { return };
        let fd = new_netns();
        let inum = Netns::of(fd.as_fd()).unwrap().inum;
        let ((inside, entered), (leave, left)) = (mpsc::channel(), mpsc::channel::<()>());
        let thread = thread::spawn(move || {
            in_netns(fd.as_fd(), move || {
                inside.send(()).unwrap();
                left.recv().unwrap();
            })
        });
        entered.recv().unwrap();
        assert!(has(&enumerate(Depth::Threads).unwrap(), inum));
        assert!(!has(&enumerate(Depth::Processes).unwrap(), inum));
        leave.send(()).unwrap();
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn entering_leaves_the_caller_where_it_was() {
        let Some(_alone) = alone() else { return };
        let before = Netns::current().unwrap().inum;
        let fd = new_netns();
        let inside = in_netns(fd.as_fd(), || Netns::current().unwrap().inum).unwrap();
        assert_eq!(inside, Netns::of(fd.as_fd()).unwrap().inum);
        assert_ne!(inside, before);
        assert_eq!(Netns::current().unwrap().inum, before);
    }

    #[test]
    fn a_cookie_belongs_to_one_namespace() {
        let Some(_alone) = alone() else { return };
        let (first, second) = (new_netns(), new_netns());
        let Some(one) = in_netns(first.as_fd(), cookie).unwrap() else {
            skipped("this kernel has no SO_NETNS_COOKIE");
            return;
        };
        assert_eq!(in_netns(first.as_fd(), cookie).unwrap(), Some(one));
        assert_ne!(in_netns(second.as_fd(), cookie).unwrap(), Some(one));
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let file = File::open("/proc/self/ns/mnt").unwrap();
        assert!(in_netns(file.as_fd(), || ()).is_err());
    }

    #[test]
    fn another_namespace_at_the_same_place_is_not_opened() {
        let own = Netns::current().unwrap();
        let other = Netns { inum: NetnsInum(own.inum.0 ^ 1), path: own.path };
        assert_eq!(other.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
