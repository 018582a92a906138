//! What the kernel and this process have, read from files.

use std::fs::File;
use std::io::{self, BufReader};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use super::btf::{Offsets, OffsetsError};
use super::capability::Capabilities;
use super::cgroups::Hierarchies;
use super::hooks::{CONNTRACK_MODULE, HOOKS, Hook, NAT_MODULE};
use super::symbols::Symbols;

/// Everything a [`plan`](super::plan()) depends on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelFacts {
    /// As `uname -r`.
    pub release: String,
    /// As `uname -m`.
    pub machine: String,
    /// Changes with every boot.
    pub boot_id: Option<String>,
    /// Of this process.
    pub capabilities: Capabilities,
    /// Whether functions can be probed.
    pub kprobes: Kprobes,
    /// `None` when the kernel has no lockdown or securityfs is not mounted.
    pub lockdown: Option<Lockdown>,
    /// `nf_conntrack`.
    pub conntrack: Presence,
    /// `nf_nat`.
    pub nat: Presence,
    /// `nf_conntrack_netlink`, by which counters are read.
    pub conntrack_netlink: Presence,
    /// Functions that a hook may go to, and the address of `nf_conntrack_ext_genid`.
    pub symbols: Symbols,
    /// Where the fields are, or why that cannot be known.
    pub offsets: Result<Offsets, OffsetsError>,
    /// Where cgroups are.
    pub cgroups: Hierarchies,
}

/// Whether this kernel takes kprobes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kprobes {
    /// Yes.
    Available,
    /// They can be attached but would never run (`/sys/kernel/debug/kprobes/enabled` is 0).
    Disarmed,
    /// No (`CONFIG_KPROBE_EVENTS` is not set).
    Absent,
}

/// `/sys/kernel/security/lockdown`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lockdown {
    /// Nothing is forbidden.
    None,
    /// Kernel memory may be read, not written.
    Integrity,
    /// Kernel memory may not be read.
    Confidentiality,
}

impl Lockdown {
    /// Its name in `/sys/kernel/security/lockdown`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
        }
    }
}

/// Whether a part of the kernel is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presence {
    /// In the kernel image.
    BuiltIn,
    /// A module, loaded.
    Module,
    /// Neither.
    Absent,
}

impl Presence {
    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "built in",
            Self::Module => "module",
            Self::Absent => "not loaded",
        }
    }
}

/// A file without which nothing can be said of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}, which says what this kernel has: {source}")]
pub struct FactsError {
    path: PathBuf,
    source: io::Error,
}

/// The generation of extensions (net/netfilter/nf_conntrack_extend.c), on kernels that compare an entry's with it.
const EXT_GENERATION: &str = "nf_conntrack_ext_genid";

/// A module and a function of it that is always a symbol, because a table or another module refers to it.
struct Part {
    module: &'static str,
    function: &'static str,
}

const CONNTRACK: Part = Part { module: CONNTRACK_MODULE, function: "nf_conntrack_in" };
const NAT: Part = Part { module: NAT_MODULE, function: "nf_nat_packet" };
const CONNTRACK_NETLINK: Part = Part { module: "nf_conntrack_netlink", function: "ctnetlink_stat_ct_cpu" };

impl KernelFacts {
    /// Reads them below `root`, which is `/` on a live system. Nothing is changed, no module is loaded.
    ///
    /// # Errors
    ///
    /// When `/proc` is not what it should be. Whatever a kernel may lack is a fact, no error.
    pub fn gather(root: &Path) -> Result<Self, FactsError> {
        Self::gather_and(root, |_, _| ()).map(|(facts, _)| facts)
    }

    /// The same, and what `make` makes of the fields and the cgroups while functions are still being looked for; `None` where it
    /// cannot be known where the fields are.
    ///
    /// # Errors
    ///
    /// As [`gather`](Self::gather).
    pub fn gather_and<T>(
        root: &Path,
        make: impl FnOnce(&Offsets, &Hierarchies) -> T,
    ) -> Result<(Self, Option<T>), FactsError> {
        let release = read(root, "proc/sys/kernel/osrelease")?.trim().to_owned();
        let status = read(root, "proc/self/status")?;
        let effective = Capabilities::effective_from_status(&status).unwrap_or(0);
        let modules = optional(root, "proc/modules")?.unwrap_or_default();

        let kallsyms = root.join("proc/kallsyms");
        let read_symbols = || {
            let wanted = HOOKS.iter().flat_map(Hook::candidates).map(|candidate| candidate.symbol);
            let wanted = wanted.chain([CONNTRACK, NAT, CONNTRACK_NETLINK].map(|part| part.function));
            let file = BufReader::with_capacity(1 << 16, File::open(&kallsyms)?);
            Symbols::read(file, wanted, EXT_GENERATION)
        };
        let cgroups = Hierarchies::gather(root);
        let read_types = || {
            let offsets = Offsets::read(&root.join("sys/kernel/btf"));
            let made = offsets.as_ref().ok().map(|offsets| make(offsets, &cgroups));
            (offsets, made)
        };
        // Most of the time a start takes goes into these two. What types take would stay with another thread's memory.
        let ((offsets, made), symbols) = both(read_types, read_symbols);
        let symbols = symbols.map_err(|source| FactsError { path: kallsyms, source })?;

        let facts = Self {
            machine: rustix::system::uname().machine().to_string_lossy().into_owned(),
            boot_id: optional(root, "proc/sys/kernel/random/boot_id")?.map(|id| id.trim().to_owned()),
            capabilities: Capabilities::new(effective, initial_user_namespace(root)),
            kprobes: kprobes(root),
            lockdown: text(root, "sys/kernel/security/lockdown").and_then(|text| lockdown(&text)),
            conntrack: CONNTRACK.presence(&symbols, &modules),
            nat: NAT.presence(&symbols, &modules),
            conntrack_netlink: CONNTRACK_NETLINK.presence(&symbols, &modules),
            offsets,
            cgroups,
            symbols,
            release,
        };
        Ok((facts, made))
    }
}

/// Does two things at once, or one after the other where no thread can be had.
fn both<A, B: Send>(here: impl FnOnce() -> A, there: impl Fn() -> B + Sync) -> (A, B) {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, &there);
        let a = here();
        let b = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => there(),
        };
        (a, b)
    })
}

impl Part {
    /// A module counts once it is live: while it loads, its functions are not yet probed.
    fn presence(&self, symbols: &Symbols, modules: &str) -> Presence {
        if symbols.locations(self.function).iter().any(|location| location.module().is_none()) {
            return Presence::BuiltIn;
        }
        let live = modules.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some(self.module) && words.nth(3) == Some("Live")
        });
        if live { Presence::Module } else { Presence::Absent }
    }
}

/// The perf event source of kprobes is there with `CONFIG_KPROBE_EVENTS` (kernel/events/core.c, `perf_kprobe`).
fn kprobes(root: &Path) -> Kprobes {
    let signs = [
        "sys/bus/event_source/devices/kprobe/type",
        "sys/kernel/tracing/kprobe_events",
        "sys/kernel/debug/tracing/kprobe_events",
    ];
    if !signs.iter().any(|sign| root.join(sign).exists()) {
        return Kprobes::Absent;
    }
    match text(root, "sys/kernel/debug/kprobes/enabled") {
        Some(enabled) if enabled.trim() == "0" => Kprobes::Disarmed,
        _ => Kprobes::Available,
    }
}

/// The level in brackets.
fn lockdown(text: &str) -> Option<Lockdown> {
    [Lockdown::None, Lockdown::Integrity, Lockdown::Confidentiality]
        .into_iter()
        .find(|level| text.contains(&format!("[{}]", level.name())))
}

/// The first user namespace has a fixed inode number (include/linux/proc_ns.h, `PROC_USER_INIT_INO`). A kernel
/// without user namespaces has no such link, and no other one to be in.
fn initial_user_namespace(root: &Path) -> bool {
    const INITIAL: &str = "user:[4026531837]";
    std::fs::read_link(root.join("proc/self/ns/user")).map_or(true, |link| link.as_os_str() == INITIAL)
}

fn read(root: &Path, path: &str) -> Result<String, FactsError> {
    let path = root.join(path);
    let bytes = std::fs::read(&path).map_err(|source| FactsError { path, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A file that some kernels do not have.
fn optional(root: &Path, path: &str) -> Result<Option<String>, FactsError> {
    match read(root, path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that some kernels do not have and that an unprivileged process may not read.
fn text(root: &Path, path: &str) -> Option<String> {
    read(root, path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::{Root, SERIES};
    use crate::kernel::{Detail, Report, plan};
    use crate::mutate::survives;

    #[test]
    fn facts_of_known_kernels() {
        for series in SERIES {
            let facts = Root::new(series).facts();
            assert!(facts.release.starts_with(series), "{}", facts.release);
            assert_eq!(facts.boot_id.as_deref(), Some("0f6b2a44-8d0a-4b27-9a55-3a1de5b7c0de"));
            assert_eq!(facts.kprobes, Kprobes::Available);
            assert_eq!(facts.lockdown, Some(Lockdown::None));
            assert_eq!(
                [facts.conntrack, facts.nat, facts.conntrack_netlink],
                [Presence::Module; 3],
                "on {series} all three are modules"
            );
            for (symbol, module) in [
                ("nf_ct_resolve_clash", Some("nf_conntrack")),
                ("__nf_conntrack_hash_insert", Some("nf_conntrack")),
                ("nf_nat_setup_info", Some("nf_nat")),
                ("tcp_connect", None),
                ("ip6_push_pending_frames", None),
            ] {
                let modules: Vec<_> = facts.symbols.locations(symbol).iter().map(|found| found.module()).collect();
                assert_eq!(modules, [module], "{symbol} on {series}");
            }
        }
    }

    #[test]
    fn presence() {
        let root = Root::new("6.12");
        root.unload("nf_nat");
        assert_eq!(root.facts().nat, Presence::Absent);

        let root = Root::new("6.12");
        root.edit("proc/modules", |line| Some(line.replace("Live", "Loading")));
        assert_eq!(root.facts().conntrack, Presence::Absent);

        // CONFIG_MODULES=n
        let root = Root::new("6.12");
        root.remove("proc/modules");
        assert_eq!(root.facts().conntrack, Presence::Absent);
        root.edit("proc/kallsyms", |line| line.split('\t').next().map(str::to_owned));
        let facts = root.facts();
        assert_eq!([facts.conntrack, facts.nat, facts.conntrack_netlink], [Presence::BuiltIn; 3]);
    }

    #[test]
    fn what_is_made_meanwhile() {
        let root = Root::new("6.12");
        let gather = || {
            let made = |offsets: &Offsets, _: &Hierarchies| offsets.clone();
            KernelFacts::gather_and(root.path(), made).unwrap()
        };
        let (facts, made) = gather();
        assert_eq!(made, facts.offsets.ok());
        assert!(made.is_some());
        root.remove("sys/kernel/btf/vmlinux");
        let (facts, made) = gather();
        assert_eq!((facts.offsets, made), (Err(OffsetsError::NoBtf), None));
    }

    #[test]
    fn kprobes() {
        let root = Root::new("6.12");
        root.write("sys/kernel/debug/kprobes/enabled", b"1\n");
        assert_eq!(root.facts().kprobes, Kprobes::Available);
        root.write("sys/kernel/debug/kprobes/enabled", b"0\n");
        assert_eq!(root.facts().kprobes, Kprobes::Disarmed);
        root.remove("sys/bus/event_source/devices/kprobe/type");
        assert_eq!(root.facts().kprobes, Kprobes::Absent);
        root.remove("sys/kernel/debug/kprobes/enabled");
        root.write("sys/kernel/tracing/kprobe_events", b"");
        assert_eq!(root.facts().kprobes, Kprobes::Available);
    }

    #[test]
    fn lockdown_levels() {
        assert_eq!(lockdown("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(lockdown("none integrity [confidentiality]\n"), Some(Lockdown::Confidentiality));
        assert_eq!(lockdown("\n"), None);
        let root = Root::new("6.12");
        root.remove("sys/kernel/security/lockdown");
        assert_eq!(root.facts().lockdown, None);
    }

    #[test]
    fn user_namespace() {
        let root = Root::new("6.12");
        assert!(initial_user_namespace(root.path()));
        let link = root.path().join("proc/self/ns/user");
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("user:[4026531837]", &link).unwrap();
        assert!(initial_user_namespace(root.path()));
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("user:[4026532201]", &link).unwrap();
        assert!(!initial_user_namespace(root.path()));
    }

    #[test]
    fn a_missing_proc_is_named() {
        let root = Root::new("6.12");
        root.remove("proc/kallsyms");
        let error = KernelFacts::gather(root.path()).unwrap_err().to_string();
        assert!(error.contains("proc/kallsyms"), "{error}");
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = KernelFacts::gather(Path::new("/")).unwrap();
        assert_eq!(facts.release, rustix::system::uname().release().to_str().unwrap());
    }

    /// From any files, a plan or the reason why there is none, and a report of it.
    #[test]
    fn mutated_files_make_a_plan_or_none() {
        let root = Root::new("6.12");
        for path in [
            "proc/kallsyms",
            "sys/kernel/btf/vmlinux",
            "proc/modules",
            "proc/sys/kernel/osrelease",
            "proc/self/status",
            "proc/sys/kernel/random/boot_id",
            "sys/bus/event_source/devices/kprobe/type",
            "sys/kernel/security/lockdown",
        ] {
            let whole = std::fs::read(root.path().join(path)).unwrap();
            survives("facts", &[&whole], |bytes| {
                root.write(path, bytes);
                let Ok(facts) = KernelFacts::gather(root.path()) else { return };
                for detail in [Detail::Minimal, Detail::Full] {
                    drop(plan(&facts, detail));
                    let report = Report::new(&facts, detail).to_string();
                    assert!(!report.contains('\x1b'), "{report:?}");
                }
            });
            root.write(path, &whole);
        }
    }
}
