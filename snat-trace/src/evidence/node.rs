//! What the machine is, as far as races depend on it. Read from files once, as the recording's own network namespace sees them;
//! what cannot be read is absent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod network;

pub use network::{Cni, CniPlugin, KubeProxy};

use crate::counters::accounts;
use crate::counters::figures::CpuCounters;
use crate::race::time::WallClock;

/// Settings of which races depend, one by one or all of a folder, below `/proc/sys`.
const SETTINGS: [&str; 4] =
    ["net/netfilter", "net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_forward"];
/// Loaded modules whose names begin so.
const MODULES: [&str; 8] = ["nf_", "nft_", "xt_", "ip_tables", "ip6_tables", "iptable_", "ip6table_", "ip_vs"];
/// Where a container network leaves traces of itself.
const NETWORKS: [&str; 4] = ["etc/cni/net.d", "var/lib/kube-proxy", "run/flannel", "var/lib/calico"];
/// A value is cut here; the settings above are short.
const LONGEST: usize = 256;
/// Most entries of a kind.
const MOST: usize = 1024;

/// The machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeRecord {
    /// `PRETTY_NAME` of os-release(5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<String>,
    /// CPUs in use, as a list of ranges such as `0-3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// What the kernel reads its time from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clocksource: Option<String>,
    /// Wall time minus `CLOCK_MONOTONIC`, nanoseconds: turns the times of a recording into those of the kernel's log.
    pub clock_offset_ns: i64,
    /// Of conntrack (table size and use, hash buckets, timeouts) and of local ports, by the names of sysctl(8).
    pub sysctls: BTreeMap<String, String>,
    /// Loaded modules of netfilter.
    pub modules: BTreeSet<String>,
    /// Receive queues whose packets go to other CPUs: device and queue, and the mask of CPUs.
    pub rps: BTreeMap<String, String>,
    /// Files that a container network or kube-proxy has left.
    pub networks: BTreeSet<String>,
    /// What the files of container networks say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni: Vec<Cni>,
    /// What kube-proxy is told to be, where a file says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_proxy: Option<KubeProxy>,
    /// What conntrack has counted on each CPU since the network namespace of the recording was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conntrack: Vec<CpuRecord>,
}

/// Counters of one CPU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CpuRecord {
    /// Its number.
    pub cpu: u16,
    /// Those this kernel has, by its names for them.
    pub counters: BTreeMap<String, u32>,
}

impl NodeRecord {
    /// Reads it, below `root`.
    #[must_use]
    pub fn gather(root: &Path, clock: WallClock) -> Self {
        let line = |path: &str| text(&root.join(path));
        let os_release = ["etc/os-release", "usr/lib/os-release"].map(|path| root.join(path));
        Self {
            distribution: os_release.iter().find_map(|path| pretty_name(&fs::read_to_string(path).ok()?)),
            cpus: line("sys/devices/system/cpu/online"),
            clocksource: line("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            clock_offset_ns: clock.offset_ns(),
            sysctls: sysctls(&root.join("proc/sys")),
            modules: modules(&fs::read_to_string(root.join("proc/modules")).unwrap_or_default()),
            rps: rps(&root.join("sys/class/net")),
            networks: NETWORKS
                .iter()
                .flat_map(|folder| entries(&root.join(folder)))
                .filter_map(|path| Some(format!("/{}", path.strip_prefix(root).ok()?.display())))
                .take(MOST)
                .collect(),
            cni: network::cni(root),
            kube_proxy: network::kube_proxy(root),
            conntrack: Vec::new(),
        }
    }

    /// With what conntrack has counted in the caller's network namespace, if it can be read.
    #[must_use]
    pub fn with_counters(self) -> Self {
        let reading = accounts::read().unwrap_or_default();
        Self { conntrack: reading.iter().take(MOST).map(CpuRecord::new).collect(), ..self }
    }
}

impl CpuRecord {
    fn new((&cpu, &CpuCounters { tally, found, invalid, search_restart }): (&u16, &CpuCounters)) -> Self {
        let others = [("found", found), ("invalid", invalid), ("search_restart", search_restart)];
        let all = tally.named().into_iter().chain(others);
        Self { cpu, counters: all.filter_map(|(name, count)| Some((name.to_owned(), count?))).collect() }
    }
}

/// `PRETTY_NAME` of os-release(5), without its quotes.
fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(cut(value.trim_matches(['"', '\''])))
}

fn sysctls(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for setting in SETTINGS {
        let path = root.join(setting);
        let files = if path.is_dir() { entries(&path) } else { vec![path] };
        for file in files.into_iter().take(MOST) {
            if let (Some(value), Ok(name)) = (text(&file), file.strip_prefix(root)) {
                found.insert(name.display().to_string().replace('/', "."), value);
            }
        }
    }
    found
}

/// The first words of `/proc/modules`.
fn modules(list: &str) -> BTreeSet<String> {
    list.lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter(|name| MODULES.iter().any(|prefix| name.starts_with(prefix)))
        .take(MOST)
        .map(cut)
        .collect()
}

fn rps(devices: &Path) -> BTreeMap<String, String> {
    let queues = entries(devices).into_iter().flat_map(|device| entries(&device.join("queues")));
    queues
        .filter_map(|queue| {
            let mask = text(&queue.join("rps_cpus"))?;
            let name = queue.strip_prefix(devices).ok()?.display().to_string().replace("/queues/", "/");
            mask.contains(|digit| !matches!(digit, '0' | ',')).then_some((name, mask))
        })
        .take(MOST)
        .collect()
}

/// What is in a folder, by name; nothing where there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// A file's text, on one line.
fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(cut(&text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [
            ("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "17\n"),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("proc/modules", "xt_MASQUERADE 16384 1 - Live 0x0\nnf_nat 61440 2 - Live 0x0\next4 1 1 - Live 0x0\n"),
            ("sys/class/net/eth0/queues/rx-0/rps_cpus", "00,0000000f\n"),
            ("sys/class/net/eth0/queues/rx-1/rps_cpus", "00,00000000\n"),
            ("etc/cni/net.d/10-flannel.conflist", "{}"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let expected = NodeRecord {
            distribution: Some("Debian GNU/Linux 12 (bookworm)".to_owned()),
            cpus: Some("0-3".to_owned()),
            clocksource: Some("tsc".to_owned()),
            clock_offset_ns: 5,
            sysctls: pairs(&[
                ("net.ipv4.ip_local_port_range", "32768 60999"),
                ("net.netfilter.nf_conntrack_count", "17"),
                ("net.netfilter.nf_conntrack_max", "65536"),
            ]),
            modules: set(&["xt_MASQUERADE", "nf_nat"]),
            rps: pairs(&[("eth0/rx-0", "00,0000000f")]),
            networks: set(&["/etc/cni/net.d/10-flannel.conflist"]),
            ..NodeRecord::default()
        };
        assert_eq!(NodeRecord::gather(root.path(), WallClock::from_offset(5)), expected);
    }

    /// On each CPU what this kernel has, and of no counter that it has not.
    #[test]
    fn counters_have_the_kernels_names() {
        let tally = crate::counters::figures::Tally { insert_failed: Some(7), drop: Some(0), ..Default::default() };
        let counters = CpuCounters { tally, invalid: Some(3), ..CpuCounters::default() };
        let record = serde_json::to_value(CpuRecord::new((&5, &counters))).unwrap();
        let expected = serde_json::json!({"cpu": 5, "counters": {"drop": 0, "insert_failed": 7, "invalid": 3}});
        assert_eq!(record, expected);
    }

    #[test]
    fn of_a_machine_without_files_nothing_is_said() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(NodeRecord::gather(root.path(), WallClock::from_offset(0)), NodeRecord::default());
    }
}
