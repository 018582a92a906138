//! The emulator: getting it, and what to ask of it on this machine.

use std::fs::{self, OpenOptions};
use std::process::Command;

use anyhow::{Result, bail};

use crate::debian::archive::Archive;
use crate::debian::install;
use crate::debian::sources::Sources;
use crate::progress;
use crate::project::Project;

/// Emulator of the guests.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

const PACKAGE: &str = "qemu-system-x86";

/// Makes sure that it is installed.
///
/// # Errors
/// It is not and we may not install it, or no suite has one that fits this machine.
pub(super) fn ensure(project: &Project) -> Result<()> {
    if std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(PROGRAM).exists()) {
        return Ok(());
    }
    let purpose = "booting kernels";
    if !install::is_debian() {
        return install::install(&[PACKAGE], purpose);
    }
    if install::candidate(PACKAGE)?.is_none() {
        install::update_lists()?;
    }
    if install::is_installable(PACKAGE) {
        return install::install(&[PACKAGE], purpose);
    }
    // A package of qemu's that is here may come from the backports and break the release's: then its like is there too.
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(codename) = parse_codename(&release) else {
        bail!("{PACKAGE} cannot be installed here; `apt-get install {PACKAGE}` says why");
    };
    let backports = format!("{codename}-backports");
    progress::announce(&format!("{PACKAGE} of {codename} does not fit this machine's packages: taking {backports}"));
    let sources = Sources::read();
    let suites = [codename.to_owned(), format!("{codename}-security"), backports.clone()];
    let sources = suites.iter().map(|suite| sources.of(suite)).collect::<Result<Vec<_>>>()?;
    let archive = Archive::for_this_machine(&project.vm().join("apt").join(&backports), &sources)?;
    archive.update()?;
    install::install_with(|| archive.apt("apt-get"), &[PACKAGE], &["-t", &backports], purpose)
}

/// The emulator's own words on its version, and how it runs guests on this machine.
///
/// # Errors
/// It does not run.
pub(super) fn describe() -> Result<String> {
    let version = progress::capture(Command::new(PROGRAM).arg("--version"))?;
    let first = version.lines().next().unwrap_or(PROGRAM);
    Ok(format!("{first}, {}", Accelerator::of_this_machine().name()))
}

/// `VERSION_CODENAME` of os-release(5).
fn parse_codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim().trim_matches('"')).filter(|codename| !codename.is_empty())
}

/// How guest instructions are run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation, guest processors truly in parallel.
    Tcg,
}

impl Accelerator {
    /// What this machine can do. `/dev/kvm` alone says too little: a module without vmx or svm behind it gives a device
    /// on which stock kernels do not boot.
    pub(super) fn of_this_machine() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let usable = has_virtualization(&cpuinfo) && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        if usable { Self::Kvm } else { Self::Tcg }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }

    /// Arguments of qemu.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"],
        }
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags")).flat_map(str::split_whitespace);
    flags.any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_the_processor() {
        assert!(has_virtualization("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("model name\t: vmx\nflags\t\t: fpu svm_lock xvmx\nbugs\t\t: svm\n"));
        assert!(!has_virtualization(""));
    }

    #[test]
    fn codename() {
        assert_eq!(parse_codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(parse_codename("VERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        assert_eq!(parse_codename("ID=arch\n"), None);
    }
}
