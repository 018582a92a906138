//! Reading the node: each tool's own output, in every network namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, capabilities};

use super::census::{Toward, census};
use super::reach::source_nat;
use super::rules::{Action, Choice, Family, Table, Tool, Translation};
use super::{iptables, nft};
use crate::counters::netns::{self, Depth, Netns};
use crate::counters::procfs;
use crate::kernel::Symbols;
use crate::lab::find_in;
use crate::race::event::NetnsInum;

/// How long the kernel may take to tell a table of connections.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Rules are shown to administrators only.
    #[error("not enough privilege: reading rules needs cap_net_admin; run it as root (sudo snat-trace audit)")]
    NotPrivileged,
    /// Namespaces cannot be found.
    #[error("network namespaces cannot be found: {0} (is /proc mounted?)")]
    NoNamespaces(#[source] io::Error),
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub(super) namespaces: Vec<Namespace>,
    /// The caller's own, if that is known.
    pub(super) own: Option<NetnsInum>,
    /// What could not be, and why.
    pub(super) not_read: Vec<String>,
}

impl Look {
    /// How many entries the connection tracking table of the first namespace has, and how many it may have.
    #[must_use]
    pub fn entries(&self) -> Option<(u64, u64)> {
        self.namespaces.first()?.entries
    }

    /// Whether the first namespace is the caller's own; `None` where that is not known.
    #[must_use]
    pub fn is_own(&self) -> Option<bool> {
        Some(self.namespaces.first()?.inum == self.own?)
    }
}

/// One network namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    pub inum: NetnsInum,
    pub tables: Vec<Table>,
    /// Entries in the connection tracking table, and how many there may be.
    pub entries: Option<(u64, u64)>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// Whether the kernel counts the clashes it resolves; `None` where it is not said.
    pub counts_clashes: Option<bool>,
    pub towards: Vec<Toward>,
}

/// Reads rules and settings of the caller's network namespace and of every other that is found. No module is loaded by it
/// but those that answer about connections, where rules translate sources.
///
/// # Errors
/// Nothing at all could be looked at. What could not be besides is in [`Look`].
pub fn look() -> Result<Look, AuditError> {
    check_privilege()?;
    let tools = Tools::find();
    let own = Netns::current().map_err(AuditError::NoNamespaces)?;
    let mut all = netns::enumerate(Depth::Threads).map_err(AuditError::NoNamespaces)?;
    all.sort_by_key(|netns| (netns.inum != own.inum, netns.inum));
    let mut look = Look { own: Some(own.inum), ..Look::default() };
    let mut problems = BTreeMap::<String, Vec<NetnsInum>>::new();
    for place in all {
        match tools.look_in(&place) {
            Ok((namespace, said)) => {
                look.namespaces.push(namespace);
                said.into_iter().for_each(|problem| problems.entry(problem).or_default().push(place.inum));
            }
            // It has ended since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.entry(format!("it cannot be entered: {error}")).or_default().push(place.inum),
        }
    }
    look.not_read = problems.into_iter().map(|(problem, inums)| named(&inums, &problem)).collect();
    Ok(look)
}

/// Reads rules and settings of one network namespace, wherever it is found. What cannot be read is in what is returned.
#[must_use]
pub fn look_at(inum: NetnsInum) -> Look {
    let own = Netns::current().ok().map(|own| own.inum);
    match try_look_at(inum) {
        Ok((namespace, not_read)) => Look { namespaces: vec![namespace], own, not_read },
        Err(problem) => Look { namespaces: Vec::new(), own, not_read: vec![problem] },
    }
}

fn try_look_at(inum: NetnsInum) -> Result<(Namespace, Vec<String>), String> {
    check_privilege().map_err(|error| error.to_string())?;
    let tools = Tools::find();
    let listed = netns::enumerate(Depth::Threads).map_err(|error| AuditError::NoNamespaces(error).to_string())?;
    let gone = |seen: &io::Result<_>| matches!(seen, Err(error) if error.kind() == io::ErrorKind::NotFound);
    let mut seen = Err(io::ErrorKind::NotFound.into());
    if let Some(place) = listed.iter().find(|place| place.inum == inum) {
        seen = tools.look_in(place);
    }
    if gone(&seen) {
        let searched = netns::search([inum].into(), |place| {
            seen = tools.look_in(place);
            !gone(&seen)
        });
        searched.map_err(|error| AuditError::NoNamespaces(error).to_string())?;
    }
    if gone(&seen) {
        return Err(format!("netns {}: it has gone", inum.0));
    }
    seen.map_err(|error| format!("netns {}: it cannot be entered: {error}", inum.0))
}

fn check_privilege() -> Result<(), AuditError> {
    let sets = capabilities(None);
    let may = sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    if may { Ok(()) } else { Err(AuditError::NotPrivileged) }
}

/// A problem with the namespaces that have it.
fn named(inums: &[NetnsInum], problem: &str) -> String {
    match inums {
        [] => problem.to_owned(),
        [one] => format!("netns {}: {problem}", one.0),
        [first, rest @ ..] => format!("netns {} and {} more: {problem}", first.0, rest.len()),
    }
}

/// The commands there are.
struct Tools {
    /// Whether there can be rules of `nf_tables` at all: asking would load it.
    nf_tables: bool,
    nft: Option<PathBuf>,
    /// What saves, and what changes what it saved.
    iptables_nft: [Option<Save>; 2],
    iptables_legacy: [Option<Save>; 2],
}

struct Save {
    program: PathBuf,
    changes: &'static str,
    family: Family,
}

/// Saving programs by backend and family, with the program that changes; the plain name may be either.
const SAVES: [(Tool, Family, &str, &str); 8] = [
    (Tool::IptablesNft, Family::Ip, "iptables-nft-save", "iptables-nft"),
    (Tool::IptablesNft, Family::Ip, "iptables-save", "iptables"),
    (Tool::IptablesNft, Family::Ip6, "ip6tables-nft-save", "ip6tables-nft"),
    (Tool::IptablesNft, Family::Ip6, "ip6tables-save", "ip6tables"),
    (Tool::IptablesLegacy, Family::Ip, "iptables-legacy-save", "iptables-legacy"),
    (Tool::IptablesLegacy, Family::Ip, "iptables-save", "iptables"),
    (Tool::IptablesLegacy, Family::Ip6, "ip6tables-legacy-save", "ip6tables-legacy"),
    (Tool::IptablesLegacy, Family::Ip6, "ip6tables-save", "ip6tables"),
];

impl Tools {
    fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let save = |tool, family| {
            let rows = SAVES.into_iter().filter(|row| (row.0, row.1) == (tool, family));
            rows.into_iter().find_map(|(_, family, name, changes)| {
                let program = find_in(&path, name).filter(|program| is_of(program, name, tool))?;
                Some(Save { program, changes, family })
            })
        };
        Self {
            nf_tables: has_nf_tables(),
            nft: find_in(&path, "nft"),
            iptables_nft: [Family::Ip, Family::Ip6].map(|family| save(Tool::IptablesNft, family)),
            iptables_legacy: [Family::Ip, Family::Ip6].map(|family| save(Tool::IptablesLegacy, family)),
        }
    }

    /// Everything of a namespace, and what could not be read of it.
    fn look_in(&self, place: &Netns) -> io::Result<(Namespace, Vec<String>)> {
        let fd = place.open()?;
        netns::in_netns(fd.as_fd(), || self.look(place.inum))
    }

    /// Everything of the calling thread's namespace, and what could not be read of it.
    fn look(&self, inum: NetnsInum) -> (Namespace, Vec<String>) {
        let mut problems = Vec::new();
        let mut tables = if self.nf_tables { self.nf_tables(&mut problems) } else { Vec::new() };
        for (save, (names, tool)) in self.iptables_legacy.iter().zip(LEGACY) {
            // Only tables that are there: listing another would make it, and load its module.
            if !fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "nat")) {
                continue;
            }
            match save {
                None => problems.push(format!("{tool} is not installed: its rules are not looked at")),
                Some(save) => match output(&save.program, &["-c", "-t", "nat"]) {
                    Ok(text) => {
                        tables.extend(iptables::parse(&text, Tool::IptablesLegacy, save.changes, save.family));
                    }
                    Err(problem) => problems.push(problem),
                },
            }
        }
        let entries = number("net/netfilter/nf_conntrack_count").zip(number("net/netfilter/nf_conntrack_max"));
        let mut towards = Vec::new();
        if entries.is_some() && tables.iter().any(|table| !source_nat(table).is_empty()) {
            match census(Instant::now() + PATIENCE) {
                Ok(found) => towards = found,
                Err(error) => problems.push(format!("ports in use are not known: {error}")),
            }
        }
        let counts_clashes = procfs::read().ok();
        let counts_clashes =
            counts_clashes.map(|reading| reading.values().any(|counters| counters.tally.clash_resolve.is_some()));
        (Namespace { inum, tables, entries, local_ports: local_ports(), counts_clashes, towards }, problems)
    }

    /// Tables of nft and of iptables-nft, each chain once.
    fn nf_tables(&self, problems: &mut Vec<String>) -> Vec<Table> {
        let listed = match &self.nft {
            None => None,
            Some(nft) => match rulesets(nft) {
                Ok(tables) => Some(tables),
                Err(problem) => {
                    problems.push(problem);
                    None
                }
            },
        };
        let known = listed.is_some();
        let mut tables = listed.unwrap_or_default();
        if self.nft.is_none() {
            problems.push("nft is not installed: its rules are not looked at".to_owned());
        }
        for (save, (family, name)) in
            self.iptables_nft.iter().zip([(Family::Ip, "iptables-nft-save"), (Family::Ip6, "ip6tables-nft-save")])
        {
            let is_nat = |table: &Table| table.family == family && table.name == "nat";
            if known && !tables.iter().any(is_nat) {
                continue;
            }
            let saved = save.as_ref().map(|save| {
                let text = output(&save.program, if known { &["-c", "-t", "nat"] } else { &["-c"] })?;
                Ok::<_, String>(iptables::parse(&text, Tool::IptablesNft, save.changes, save.family))
            });
            match saved {
                Some(Ok(saved)) => take_over(&mut tables, saved),
                Some(Err(problem)) => problems.push(problem),
                None if !known => problems.push(format!("{name} is not installed: its rules are not looked at")),
                None => {}
            }
        }
        let hidden = tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
        let hidden =
            hidden.filter(|rule| matches!(rule.action, Action::Translate(Translation { choice: Choice::Unknown, .. })));
        let hidden = hidden.count();
        if hidden > 0 {
            problems.push(format!("options of {hidden} rules of iptables that only nft could list"));
        }
        tables
    }
}

/// Where `ip_tables` says which tables it has, and what saves them. There is no such file where it is not loaded.
const LEGACY: [(&str, &str); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
];

/// Puts what iptables-nft printed in the place of what nft printed of the same chains. Chains that iptables-nft does not
/// know, such as base chains of other names, stay nft's.
pub(super) fn take_over(tables: &mut Vec<Table>, saved: Vec<Table>) {
    for saved in saved {
        for table in tables.iter_mut().filter(|table| table.family == saved.family && table.name == saved.name) {
            table.chains.retain(|chain| !saved.chains.iter().any(|known| known.name == chain.name));
        }
        tables.push(saved);
    }
}

fn rulesets(nft: &Path) -> Result<Vec<Table>, String> {
    let json = output(nft, &["-j", "list", "ruleset"])?;
    let tables = nft::parse(&json, "").map_err(|error| error.to_string())?;
    if tables.iter().all(|table| table.chains.iter().all(|chain| chain.rules.is_empty())) {
        return Ok(tables);
    }
    // Rules that only one of the two has came or went in between.
    let listing = output(nft, &["-a", "list", "ruleset"]).unwrap_or_default();
    nft::parse(&json, &listing).map_err(|error| error.to_string())
}

/// What a command prints, or why it does not. It runs in the calling thread's namespace.
fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let name = || {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        [&[&*name], arguments].concat().join(" ")
    };
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let run = run.map_err(|error| format!("{} could not be run: {error}", name()))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        return Err(format!("{} failed: {}", name(), said.trim()));
    }
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

/// Whether a program is the one for a backend. One of the plain name says so in its version, and is for `ip_tables` where it
/// is too old to say.
fn is_of(program: &Path, name: &str, tool: Tool) -> bool {
    if name.contains("-nft-") || name.contains("-legacy-") {
        return true;
    }
    let version = output(program, &["-V"]).unwrap_or_default();
    version.contains("(nf_tables)") == (tool == Tool::IptablesNft) && !version.is_empty()
}

/// Whether `nf_tables` is loaded, or part of the kernel: then its functions have names, and it has no directory.
fn has_nf_tables() -> bool {
    const FUNCTION: &str = "nft_do_chain";
    let named = || {
        let symbols = Symbols::read(BufReader::new(File::open("/proc/kallsyms")?), [FUNCTION], "")?;
        Ok::<_, io::Error>(!symbols.locations(FUNCTION).is_empty())
    };
    Path::new("/sys/module/nf_tables").exists() || named().unwrap_or(true)
}

/// A setting of the calling thread's namespace (net/sysctl_net.c, `net_ctl_header_lookup`).
fn number(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn local_ports() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::audit::findings::{Kind, judge};
    use crate::counters::netns::tests::{alone, new_netns};
    use crate::skipped::skipped;

    #[test]
    fn problems_are_told_once_for_all() {
        assert_eq!(named(&[NetnsInum(7)], "nft failed"), "netns 7: nft failed");
        assert_eq!(named(&[NetnsInum(7), NetnsInum(8), NetnsInum(9)], "nft failed"), "netns 7 and 2 more: nft failed");
    }

    #[test]
    fn what_fails_is_named_with_its_words() {
        let shell = |script: &str| output(Path::new("/bin/sh"), &["-c", script]);
        assert_eq!(shell("echo said").as_deref(), Ok("said\n"));
        assert_eq!(
            shell("echo; echo '  no' >&2; exit 1").unwrap_err(),
            "sh -c echo; echo '  no' >&2; exit 1 failed: no"
        );
        assert_eq!(shell("exit 1").unwrap_err(), "sh -c exit 1 failed: it did not say why");
        assert!(output(Path::new("/no/such"), &[]).unwrap_err().starts_with("such could not be run"));
    }

    #[test]
    fn rules_of_all_tools_are_read_once_and_their_commands_are_taken() {
        let Some(_alone) = alone() else { return };
        let netns = new_netns();
        let script = "set -e; ip link set lo up; \
            nft 'add table ip t; add chain ip t post { type nat hook postrouting priority 100; }; \
                 add rule ip t post ip saddr 10.1.0.0/16 udp dport 9000 snat to 127.0.0.9:7000-7003 fully-random; \
                 add rule ip t post ip saddr 127.0.0.1 udp dport 9000 snat to 127.0.0.9:7000-7003 fully-random'; \
            iptables-nft -w -t nat -A POSTROUTING -s 10.3.0.0/16 -m comment --comment \"it's \\$HOME\" -j MASQUERADE; \
            iptables-legacy -w -t nat -A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE; \
            ip6tables-nft -w -t nat -A POSTROUTING -j MASQUERADE --random-fully";
        let made = netns::in_netns(netns.as_fd(), || {
            let shell = Command::new("sh").args(["-c", script]).env("XTABLES_LOCKFILE", "/dev/null").output();
            shell.map(|output| (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
        });
        let (made, said) = made.unwrap().unwrap();
        if !made {
            skipped(format_args!("not every tool and module is there: {said}"));
            return;
        }
        let _held = netns::in_netns(netns.as_fd(), || {
            let receiver = UdpSocket::bind("127.0.0.2:9000").unwrap();
            let senders = [(); 3].map(|()| {
                let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
                sender.send_to(b"x", "127.0.0.2:9000").unwrap();
                sender
            });
            (receiver, senders)
        });
        let (namespace, problems) = netns::in_netns(netns.as_fd(), || Tools::find().look(NetnsInum(1))).unwrap();
        assert_eq!(problems, [] as [String; 0]);
        let mut rules: Vec<_> =
            namespace.tables.iter().flat_map(source_nat).map(|rule| rule.rule.text.clone()).collect();
        rules.sort_unstable();
        let expected = [
            "-A POSTROUTING -j MASQUERADE --random-fully",
            "-A POSTROUTING -s 10.3.0.0/16 -m comment --comment \"it\\'s $HOME\" -j MASQUERADE",
            "-A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE",
            "ip saddr 10.1.0.0/16 udp dport 9000 snat to 127.0.0.9:7000-7003 fully-random",
            "ip saddr 127.0.0.1 udp dport 9000 snat to 127.0.0.9:7000-7003 fully-random",
        ];
        assert_eq!(rules, expected);
        let (findings, rules) = judge(&[namespace], None);
        assert_eq!(rules.len(), expected.len());
        let full: Vec<_> = findings.iter().filter(|finding| finding.finding == Kind::RangeNearlyFull).collect();
        let words = "3 of the 4 ports 7000-7003 of 127.0.0.9 are taken toward udp 127.0.0.2:9000";
        assert_eq!(full.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>(), [words; 2]);
        let kept: Vec<_> = findings.iter().filter(|finding| finding.finding == Kind::NoRandomFully).collect();
        assert_eq!(kept.len(), 2, "{kept:?}");
        for finding in kept {
            let fix = finding.command.as_ref().unwrap().join(" ");
            let shell = || Command::new("sh").args(["-c", &fix]).env("XTABLES_LOCKFILE", "/dev/null").status();
            assert!(netns::in_netns(netns.as_fd(), shell).unwrap().unwrap().success(), "{fix}");
        }
        let (namespace, _) = netns::in_netns(netns.as_fd(), || Tools::find().look(NetnsInum(1))).unwrap();
        let texts: Vec<_> = namespace.tables.iter().flat_map(source_nat).map(|rule| rule.rule.text.clone()).collect();
        let changed =
            "-A POSTROUTING -s 10.3.0.0/16 -m comment --comment \"it\\'s $HOME\" -j MASQUERADE --random-fully";
        assert!(texts.iter().any(|text| text == changed), "{texts:?}");
        let (findings, rules) = judge(&[namespace], None);
        assert!(findings.iter().all(|finding| finding.finding != Kind::NoRandomFully), "{findings:?}");
        assert_eq!(rules.len(), expected.len());
    }

    /// Each in a namespace of its own: one may take away the place that another names.
    #[test]
    fn the_command_of_every_finding_is_taken_and_ends_it() {
        let Some(_alone) = alone() else { return };
        let listing = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/rules/home.nft.txt"));
        let home: String =
            listing.unwrap().lines().map(|line| format!("{}\n", line.split(" # ").next().unwrap())).collect();
        let script = format!(
            "set -e; nft -f - <<'END'\n{home}add table inet both\n\
             add chain inet both post {{ type nat hook postrouting priority 100; }}\n\
             add rule inet both post masquerade\nEND\n\
             iptables-nft -w -t nat -A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1:5-9 --persistent
             ip6tables-nft -w -t nat -A POSTROUTING -p tcp -j SNAT --to-source [fd00::1-fd00::9]:5-7
             iptables-legacy -w -t nat -A POSTROUTING -s 10.9.0.0/16 ! -d 10.0.0.0/8 -p udp -j MASQUERADE --to-ports 7"
        );
        let prepared = || {
            let netns = new_netns();
            let shell = || Command::new("sh").args(["-c", &script]).env("XTABLES_LOCKFILE", "/dev/null").output();
            let made = netns::in_netns(netns.as_fd(), shell).unwrap().unwrap();
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            if made.status.success() { Ok(netns) } else { Err(said) }
        };
        let found = |netns: &std::os::fd::OwnedFd| {
            let (namespace, _) = netns::in_netns(netns.as_fd(), || Tools::find().look(NetnsInum(1))).unwrap();
            judge(&[namespace], Some(NetnsInum(1))).0
        };
        let findings = match prepared() {
            Ok(netns) => found(&netns),
            Err(said) => return eprintln!("skipped: not every tool and module is there: {said}"),
        };
        let told = findings.iter().filter_map(|finding| Some((finding, finding.command.as_ref()?.join(" "))));
        let told: Vec<_> = told.collect();
        assert!(told.len() > 15, "{findings:#?}");
        for (finding, command) in told {
            let netns = prepared().unwrap();
            let shell = || Command::new("sh").args(["-c", &command]).env("XTABLES_LOCKFILE", "/dev/null").output();
            let run = netns::in_netns(netns.as_fd(), shell).unwrap().unwrap();
            assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stderr));
            let text = |finding: &crate::audit::Finding| finding.rule.as_ref().map(|rule| rule.text.clone());
            let still =
                |after: &crate::audit::Finding| after.finding == finding.finding && text(after) == text(finding);
            assert!(!found(&netns).iter().any(still), "{command}");
        }
    }
}
