//! A root directory with the files of a known kernel, to be made worse by a test.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::facts::KernelFacts;

/// Every kernel under `tests/data/kernels`.
pub(super) const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7.3"];

/// Where the fixtures are.
pub(super) fn data(series: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/kernels").join(series)
}

/// A root directory.
pub(super) struct Root(TempDir);

impl Root {
    /// Of a kernel with everything tracing wants, seen by root.
    pub(super) fn new(series: &str) -> Self {
        let root = Self(TempDir::new().unwrap());
        let data = data(series);
        for (fixture, path) in [
            ("kallsyms", "proc/kallsyms"),
            ("modules", "proc/modules"),
            ("osrelease", "proc/sys/kernel/osrelease"),
            ("vmlinux.btf", "sys/kernel/btf/vmlinux"),
        ] {
            root.write(path, &fs::read(data.join(fixture)).unwrap());
        }
        root.write("proc/self/status", b"Name:\tsnat-trace\nCapEff:\t000001ffffffffff\n");
        root.write("proc/sys/kernel/random/boot_id", b"0f6b2a44-8d0a-4b27-9a55-3a1de5b7c0de\n");
        root.write("sys/bus/event_source/devices/kprobe/type", b"6\n");
        root.write("sys/kernel/security/lockdown", b"[none] integrity confidentiality\n");
        root
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn write(&self, path: &str, content: &[u8]) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        fs::remove_file(self.path().join(path)).unwrap();
    }

    /// Changes the lines of a file; `None` drops one. Fails when that changes nothing.
    pub(super) fn edit(&self, path: &str, change: impl Fn(&str) -> Option<String>) {
        let before = fs::read_to_string(self.path().join(path)).unwrap();
        let after: String = before.lines().filter_map(change).map(|line| line + "\n").collect();
        assert_ne!(before, after, "{path} has nothing to change");
        self.write(path, after.as_bytes());
    }

    /// Takes a module away, its functions included.
    pub(super) fn unload(&self, module: &str) {
        self.edit("proc/modules", |line| (line.split(' ').next() != Some(module)).then(|| line.to_owned()));
        self.edit("proc/kallsyms", |line| (!line.ends_with(&format!("[{module}]"))).then(|| line.to_owned()));
    }

    /// Gives a function another name.
    pub(super) fn rename(&self, symbol: &str, new: &str) {
        self.edit("proc/kallsyms", |line| {
            let mut words: Vec<_> = line.split([' ', '\t']).collect();
            if words[2] == symbol {
                words[2] = new;
            }
            Some(words[..3].join(" ") + &words[3..].iter().map(|module| format!("\t{module}")).collect::<String>())
        });
    }

    pub(super) fn facts(&self) -> KernelFacts {
        KernelFacts::gather(self.path()).unwrap()
    }
}
