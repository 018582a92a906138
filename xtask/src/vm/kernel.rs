//! Debian's kernels: the newest of a series and flavour, downloaded once.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::modules;
use crate::debian::archive::{Archive, Package};
use crate::debian::sources::Sources;
use crate::debian::version;
use crate::progress::{self, Progress, note};
use crate::project::Project;

/// Which suites have which series. Every suite costs its package lists, so none is asked in vain.
const SUITES: [(&str, &[&str]); 4] = [
    ("5.10", &["bullseye-security"]),
    ("6.1", &["bookworm-security", "bookworm"]),
    ("6.12", &["trixie-security", "trixie"]),
    ("", &["trixie-backports", "sid"]),
];

/// How Debian configures a kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flavour {
    /// For virtual machines: the smallest, with the same netfilter as the others.
    Cloud,
    /// For any machine.
    Full,
    /// With `CONFIG_PREEMPT_RT`.
    Rt,
}

impl Flavour {
    /// How the releases of its kernels end.
    fn suffix(self) -> &'static str {
        match self {
            Self::Cloud => "-cloud-amd64",
            Self::Full => "-amd64",
            Self::Rt => "-rt-amd64",
        }
    }

    /// What a series' name has for it.
    fn name(self) -> &'static str {
        match self {
            Self::Cloud => "",
            Self::Full => "-full",
            Self::Rt => "-rt",
        }
    }

    /// The kernel release a package is of; `None` for packages of other flavours, and for those that only depend on the
    /// newest one.
    fn release(self, package: &str) -> Option<&str> {
        let release = package.strip_prefix("linux-image-")?;
        let version = release.strip_suffix(self.suffix())?;
        // `6.1.0-50`, `6.12.117+deb13`: another flavour's name would be a part without a digit.
        let numbers = version.split(['-', '+']).next()?;
        let plain = version.split('-').all(|part| part.contains(|c: char| c.is_ascii_digit()));
        (plain && numbers.split('.').count() >= 3).then_some(release)
    }
}

/// A kernel series, such as `6.12`, or `7` for the newest of all 7.x; `6.12-full` and `6.12-rt` for other flavours than the
/// cloud's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Series {
    numbers: String,
    flavour: Flavour,
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let flavours = [Flavour::Full, Flavour::Rt];
        let flavoured = flavours.iter().find_map(|flavour| Some((text.strip_suffix(flavour.name())?, *flavour)));
        let (numbers, flavour) = flavoured.unwrap_or((text, Flavour::Cloud));
        if !numbers.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())) {
            bail!("a kernel series is numbers with dots, such as 6.12, and may have a flavour: 6.12-full, 6.12-rt");
        }
        Ok(Self { numbers: numbers.to_owned(), flavour })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.numbers, self.flavour.name())
    }
}

impl Series {
    /// Whether a version such as `6.12.117-1` belongs to it.
    fn contains(&self, version: &str) -> bool {
        begins_with(version, &self.numbers)
    }

    fn suites(&self) -> &'static [&'static str] {
        let own = SUITES.iter().find(|(series, _)| series.is_empty() || begins_with(&self.numbers, series));
        own.map_or(&[], |(_, suites)| suites)
    }
}

/// Whether a version begins with these numbers, and not with longer ones.
fn begins_with(version: &str, numbers: &str) -> bool {
    version.strip_prefix(numbers).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A kernel that is here.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    dir: PathBuf,
}

impl Kernel {
    /// The compressed image.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Its modules as an archive.
    pub(super) fn modules(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("modules.cpio");
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The kernel of `series`: the one found last time, or with `refresh` (or none yet) the newest of its suites.
///
/// # Errors
/// No suite that can be reached has the series, or it cannot be unpacked.
pub(crate) fn ensure(project: &Project, series: &Series, refresh: bool) -> Result<Kernel> {
    let kernels = project.vm().join("kernels");
    let known = kernels.join("series").join(series.to_string());
    if !refresh && let Ok(release) = fs::read_to_string(&known) {
        let kernel = Kernel { dir: kernels.join(release.trim()), release: release.trim().to_owned() };
        if kernel.image().exists() {
            ensure_modules(&kernel)?;
            return Ok(kernel);
        }
    }
    let (archive, package) = newest(project, series)?;
    let release = series.flavour.release(&package.name).context("a kernel package has an odd name")?.to_owned();
    let kernel = Kernel { dir: kernels.join(&release), release };
    if !kernel.image().exists() {
        download(&archive, &package, &kernel)?;
    }
    ensure_modules(&kernel)?;
    fs::create_dir_all(kernels.join("series"))?;
    fs::write(known, &kernel.release)?;
    Ok(kernel)
}

/// Asks the suites.
fn newest(project: &Project, series: &Series) -> Result<(Archive, Package)> {
    progress::announce(&format!("looking for the newest Debian kernel {series}"));
    let sources = Sources::read();
    let mut best: Option<(Archive, Package)> = None;
    let mut failed = Vec::new();
    for suite in series.suites() {
        let archive = Archive::isolated(&project.vm().join("apt"), &sources.of(suite)?)?;
        if let Err(error) = archive.update() {
            note(&format!("suite {suite} is not to be had: {}", progress::last_lines(&format!("{error:#}"), 1)));
            failed.push(*suite);
            continue;
        }
        let found = archive.packages(&format!("^linux-image-[0-9].*{}$", series.flavour.suffix()))?;
        if let Some(package) = newest_of(found, series)
            && best.as_ref().is_none_or(|(_, known)| version::compare(&package.version, &known.version).is_gt())
        {
            best = Some((archive, package));
        }
    }
    best.with_context(|| {
        let asked = series.suites().join(", ");
        let hint = if failed.is_empty() {
            String::new()
        } else {
            let failed = failed.join(", ");
            format!(
                ". The mirror does not have {failed}: if it moved to an archive, an entry for it in \
                 /etc/apt/sources.list.d makes it available again"
            )
        };
        format!("no Debian kernel {series} in {asked}{hint}")
    })
}

fn newest_of(packages: Vec<Package>, series: &Series) -> Option<Package> {
    packages
        .into_iter()
        .filter(|package| series.flavour.release(&package.name).is_some() && series.contains(&package.version))
        .max_by(|left, right| version::compare(&left.version, &right.version))
}

fn download(archive: &Archive, package: &Package, kernel: &Kernel) -> Result<()> {
    let part = kernel.dir.with_added_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let root = part.join("root");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;

    // Since 6.19 the image package is empty and the kernel comes in three.
    let of_release = |name: &str| format!("linux-{name}-{}", kernel.release);
    let split = !archive.packages(&format!("^{}$", regex_escape(&of_release("modules"))))?.is_empty();
    let names = if split { vec!["binary", "modules", "base"] } else { vec!["image"] };
    let packages: Vec<Package> =
        names.into_iter().map(|name| Package { name: of_release(name), version: package.version.clone() }).collect();
    archive.download(&format!("downloading kernel {}", kernel.release), &packages, &part)?;

    let progress = Progress::start(format!("unpacking kernel {}", kernel.release));
    for entry in fs::read_dir(&part)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            progress::capture(Command::new("dpkg").arg("-x").arg(&path).arg(&root))?;
            fs::remove_file(path)?;
        }
    }
    let images = [
        root.join("boot").join(format!("vmlinuz-{}", kernel.release)),
        root.join("usr/lib/modules").join(&kernel.release).join("vmlinuz"),
    ];
    let image = images.iter().find(|image| image.exists()).context("the kernel's packages hold no kernel")?;
    fs::copy(image, part.join("vmlinuz"))?;
    // kmod looks in /lib only.
    if !root.join("lib/modules").exists() {
        fs::create_dir_all(root.join("lib"))?;
        std::os::unix::fs::symlink("../usr/lib/modules", root.join("lib/modules"))?;
    }
    progress.done();
    if kernel.dir.exists() {
        fs::remove_dir_all(&kernel.dir)?;
    }
    fs::rename(&part, &kernel.dir).with_context(|| format!("cannot make {}", kernel.dir.display()))
}

/// A package name in a regular expression: only `+` and `.` mean something else there.
fn regex_escape(name: &str) -> String {
    name.replace('.', "[.]").replace('+', "[+]")
}

/// Packs the modules unless the same ones are packed already.
fn ensure_modules(kernel: &Kernel) -> Result<()> {
    let stamp = kernel.dir.join("modules.stamp");
    let wanted = modules::WANTED.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|packed| packed == wanted) {
        return Ok(());
    }
    let progress = Progress::start(format!("packing the modules of {}", kernel.release));
    let bytes = modules::pack(&kernel.dir.join("root"), &kernel.release)?;
    fs::write(kernel.dir.join("modules.cpio"), bytes)?;
    fs::write(stamp, wanted)?;
    progress.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(text: &str) -> Series {
        text.parse().unwrap()
    }

    #[test]
    fn a_series_is_numbers_with_dots() {
        for text in ["6.12", "7", "5.10", "6.12.117", "6.12-full", "6.1-rt"] {
            assert_eq!(series(text).to_string(), text);
        }
        for text in ["", ".", "6.", "6.x", "../7", "6.12-cloud", "-rt", "6.1-rt-rt"] {
            assert!(text.parse::<Series>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_series_contains_its_own_versions_only() {
        assert!(series("6.1").contains("6.1.176-1"));
        assert!(!series("6.1").contains("6.12.117-1"));
        assert!(series("7").contains("7.3.4-1~bpo13+1"));
        assert!(!series("7").contains("6.7.1-1"));
        assert!(series("6.12.117").contains("6.12.117-1"));
    }

    #[test]
    fn few_suites_are_asked() {
        assert_eq!(series("6.1").suites(), ["bookworm-security", "bookworm"]);
        assert_eq!(series("6.12").suites(), ["trixie-security", "trixie"]);
        assert_eq!(series("6.12.117").suites(), ["trixie-security", "trixie"]);
        assert_eq!(series("5.10").suites(), ["bullseye-security"]);
        assert_eq!(series("6.1-rt").suites(), ["bookworm-security", "bookworm"]);
        assert_eq!(series("7").suites(), ["trixie-backports", "sid"]);
        assert_eq!(series("6.18").suites(), ["trixie-backports", "sid"]);
    }

    #[test]
    fn the_newest_of_a_series_by_version_not_by_name() {
        let package =
            |name: &str, version: &str| Package { name: format!("linux-image-{name}"), version: version.to_owned() };
        let packages = vec![
            package("6.12.94+deb13-cloud-amd64", "6.12.94-1"),
            package("6.12.117+deb13-cloud-amd64", "6.12.117-1"),
            package("6.12.107+deb13-cloud-amd64", "6.12.107-1"),
            package("6.12.118+deb13-cloud-amd64-unsigned", "6.12.118-1"),
            package("6.12.118+deb13-amd64", "6.12.118-1"),
            package("6.12.116+deb13-amd64", "6.12.116-1"),
            package("6.12.116+deb13-rt-amd64", "6.12.116-1"),
            package("6.12-rt-amd64", "6.12.117-1"),
            package("6.1.0-50-cloud-amd64", "6.1.176-1"),
            package("6.1.0-47-cloud-amd64", "6.1.170-3"),
            package("7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            package("6.12-cloud-amd64", "6.12.117-1"),
            package("cloud-amd64", "6.12.117-1"),
        ];
        let newest = |text: &str| newest_of(packages.clone(), &series(text)).map(|package| package.name);
        assert_eq!(newest("6.12").as_deref(), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest("6.12-full").as_deref(), Some("linux-image-6.12.118+deb13-amd64"));
        assert_eq!(newest("6.12-rt").as_deref(), Some("linux-image-6.12.116+deb13-rt-amd64"));
        assert_eq!(newest("6.1-rt"), None);
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest("7").as_deref(), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest("5.10"), None);
        assert_eq!(Flavour::Cloud.release("linux-image-6.1.0-50-cloud-amd64"), Some("6.1.0-50-cloud-amd64"));
    }
}
