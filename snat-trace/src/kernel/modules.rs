//! Whether the modules that hooks went into are still the same ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::uevents::News;

/// The modules of planned hooks, as they were. A kprobe in a module that is unloaded is gone for good, also when the
/// module comes back (kernel/kprobes.c, `kprobes_module_callback`), and its owner is not told; but that a module goes is
/// told to everybody.
#[derive(Clone, Debug)]
pub struct ModuleWatch {
    /// `/sys/module`.
    modules: PathBuf,
    known: BTreeMap<String, Identity>,
    /// Those of `known` of which was told that they go. Their directory may still be there then (lib/kobject.c,
    /// `__kobject_del`).
    told: BTreeSet<String>,
}

/// Device and inode of a module's directory in sysfs, which gives each new directory a new number (fs/kernfs/dir.c,
/// `__kernfs_new_node`).
type Identity = (u64, u64);

impl ModuleWatch {
    /// Remembers the modules of a plan's hooks, below `root`, which is `/` on a live system. To be called before the
    /// hooks are attached. Functions in the kernel image stay, and where there is no sysfs nothing is known.
    #[must_use]
    pub fn start(root: &Path, plan: &Plan) -> Self {
        let modules = root.join("sys/module");
        let known = plan
            .hooks
            .iter()
            .filter_map(|hook| hook.module.clone())
            .filter_map(|module| Some((module.clone(), identity(&modules.join(module)).ok()?)))
            .collect();
        Self { modules, known, told: BTreeSet::new() }
    }

    /// Takes in what [`ModuleNews`](super::ModuleNews) gave, and says whether a module is gone.
    pub fn hear(&mut self, news: News) -> bool {
        match news {
            News::Removed(module) if self.known.contains_key(&module) => {
                self.told.insert(module);
                true
            }
            News::Removed(_) => false,
            News::Look => !self.gone().is_empty(),
        }
    }

    /// The modules that were unloaded since, whether they were loaded again or not, by name.
    #[must_use]
    pub fn gone(&self) -> Vec<String> {
        let same = |module: &str, before| {
            !self.told.contains(module)
                && match identity(&self.modules.join(module)) {
                    Ok(now) => now == before,
                    Err(error) => error.kind() != io::ErrorKind::NotFound,
                }
        };
        self.known.iter().filter(|&(module, &before)| !same(module, before)).map(|(module, _)| module.clone()).collect()
    }
}

fn identity(directory: &Path) -> io::Result<Identity> {
    let metadata = std::fs::metadata(directory)?;
    Ok((metadata.st_dev(), metadata.st_ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernel::fixture::Root;
    use crate::kernel::{Detail, plan};

    fn watch(root: &Root, detail: Detail) -> ModuleWatch {
        ModuleWatch::start(root.path(), &plan(&root.facts(), detail).unwrap())
    }

    fn with_modules() -> Root {
        let root = Root::new("6.12");
        for module in ["nf_conntrack", "nf_nat", "tcp_diag"] {
            root.write(&format!("sys/module/{module}/initstate"), b"live\n");
        }
        root
    }

    #[test]
    fn unloaded() {
        let root = with_modules();
        let modules = watch(&root, Detail::Full);
        assert_eq!(modules.gone(), [""; 0]);
        fs::remove_dir_all(root.path().join("sys/module/tcp_diag")).unwrap();
        assert_eq!(modules.gone(), [""; 0]);
        fs::remove_dir_all(root.path().join("sys/module/nf_nat")).unwrap();
        assert_eq!(modules.gone(), ["nf_nat"]);
        fs::remove_dir_all(root.path().join("sys/module/nf_conntrack")).unwrap();
        assert_eq!(modules.gone(), ["nf_conntrack", "nf_nat"]);
    }

    #[test]
    fn loaded_again() {
        let root = with_modules();
        let modules = watch(&root, Detail::Full);
        // Made while the other is there: some file systems give an inode number away at once, sysfs does not.
        root.write("sys/module/new/initstate", b"live\n");
        let of = |module| root.path().join("sys/module").join(module);
        fs::remove_dir_all(of("nf_conntrack")).unwrap();
        fs::rename(of("new"), of("nf_conntrack")).unwrap();
        assert_eq!(modules.gone(), ["nf_conntrack"]);
    }

    #[test]
    fn told_before_it_is_to_be_seen() {
        let root = with_modules();
        let mut modules = watch(&root, Detail::Full);
        assert!(!modules.hear(News::Look));
        assert!(!modules.hear(News::Removed("tcp_diag".to_owned())));
        assert!(modules.hear(News::Removed("nf_nat".to_owned())));
        assert_eq!(modules.gone(), ["nf_nat"]);
        fs::remove_dir_all(root.path().join("sys/module/nf_conntrack")).unwrap();
        assert!(modules.hear(News::Look));
        assert_eq!(modules.gone(), ["nf_conntrack", "nf_nat"]);
    }

    #[test]
    fn only_modules_with_hooks_matter() {
        let root = with_modules();
        let modules = watch(&root, Detail::Minimal);
        fs::remove_dir_all(root.path().join("sys/module/nf_nat")).unwrap();
        assert_eq!(modules.gone(), [""; 0]);
    }

    #[test]
    fn what_is_not_a_module_does_not_go() {
        // CONFIG_MODULES=n: the functions are in the image, and what sysfs has are parameters.
        let root = with_modules();
        root.edit("proc/kallsyms", |line| line.split('\t').next().map(str::to_owned));
        let modules = watch(&root, Detail::Full);
        fs::remove_dir_all(root.path().join("sys/module")).unwrap();
        assert_eq!(modules.gone(), [""; 0]);
        // No sysfs from the start.
        let root = Root::new("6.12");
        let modules = watch(&root, Detail::Full);
        root.write("sys/module/nf_conntrack/initstate", b"live\n");
        assert_eq!(modules.gone(), [""; 0]);
    }
}
