//! Kernel modules for the guest: unpacked, in one folder, with the order to load them in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::progress::{capture, note};

/// Modules the guest shall have. Not every kernel has them all.
pub(super) const WANTED: &[&str] = &[
    "nf_conntrack",
    "nf_nat",
    "nf_conntrack_ftp",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "nft_compat",
    "nft_counter",
    "nft_numgen",
    "nft_hash",
    "nft_queue",
    "nfnetlink",
    "nfnetlink_queue",
    "x_tables",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "ip6_tables",
    "ip6table_nat",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_conntrack",
    "xt_comment",
    "xt_mark",
    "xt_tcpudp",
    "xt_CT",
    "xt_statistic",
    "xt_addrtype",
    "xt_NFQUEUE",
    "xt_hl",
    "veth",
    "bridge",
    "br_netfilter",
    "dummy",
    "af_packet",
    "sch_netem",
    "nf_log_syslog",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "sctp",
    "vxlan",
];

/// Packs the modules of the kernel `release` below `root` that [`WANTED`] names, with those they need.
///
/// # Errors
/// kmod or a decompressor fails.
pub(super) fn pack(root: &Path, release: &str) -> Result<Vec<u8>> {
    capture(Command::new("depmod").arg("-b").arg(root).arg(release))?;
    let mut order: Vec<PathBuf> = Vec::new();
    let mut absent = Vec::new();
    for module in WANTED {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(root).args(["-S", release, "--show-depends", module]);
        match capture(&mut modprobe) {
            Ok(steps) => {
                for path in parse_steps(&steps) {
                    if !order.contains(&path) {
                        order.push(path);
                    }
                }
            }
            Err(_) => absent.push(*module),
        }
    }
    if !absent.is_empty() {
        note(&format!("kernel {release} has no modules {}", absent.join(", ")));
    }
    let mut archive = Archive::default();
    let mut names = String::new();
    for path in &order {
        let (name, content) = unpack(path)?;
        archive.file(&format!("mods/{name}"), 0o644, &content)?;
        names.push_str(&name);
        names.push('\n');
    }
    archive.file("mods/order", 0o644, names.as_bytes())?;
    archive.finish()
}

/// Paths in the output of `modprobe --show-depends`: `insmod PATH OPTIONS` for each module in the order to load them,
/// `builtin NAME` for those the kernel has inside.
fn parse_steps(steps: &str) -> impl Iterator<Item = PathBuf> {
    steps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("insmod") {
            return None;
        }
        words.next().map(PathBuf::from)
    })
}

/// Name (`nf_nat.ko`) and content of a module that may be compressed.
fn unpack(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a module has an odd name")?;
    let (name, program) = match name.rsplit_once('.') {
        Some((name, "xz")) => (name, Some("xz")),
        Some((name, "zst")) => (name, Some("zstd")),
        Some((name, "gz")) => (name, Some("gzip")),
        _ => (name, None),
    };
    let content = match program {
        None => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        Some(program) => {
            let mut command = Command::new(program);
            command.arg("-dcq").arg(path).stdin(Stdio::null());
            let output = command.output().with_context(|| format!("cannot start {program}"))?;
            if !output.status.success() {
                bail!("{program} cannot unpack {}", path.display());
            }
            output.stdout
        }
    };
    Ok((name.to_owned(), content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_modprobe() {
        let steps = "\
builtin nfnetlink
insmod /k/lib/modules/6.12.1/kernel/lib/libcrc32c.ko.xz 
insmod /k/lib/modules/6.12.1/kernel/net/netfilter/nf_conntrack.ko.xz hashsize=1024
";
        assert_eq!(
            parse_steps(steps).collect::<Vec<_>>(),
            [
                Path::new("/k/lib/modules/6.12.1/kernel/lib/libcrc32c.ko.xz"),
                Path::new("/k/lib/modules/6.12.1/kernel/net/netfilter/nf_conntrack.ko.xz")
            ]
        );
    }
}
