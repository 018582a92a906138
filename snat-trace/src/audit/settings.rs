//! Settings of the kernel, judged.

use std::ops::RangeInclusive;

use super::findings::{Finding, Kind, NARROW, NEARLY_FULL, Severity, plain};
use super::node::Namespace;
use crate::race::event::NetnsInum;

/// The connection tracking table, if there is little room in it.
pub(super) fn table_nearly_full(namespace: &Namespace) -> Option<Finding> {
    let (count, max) = namespace.entries.filter(|&(_, max)| max > 0)?;
    let severity = match count.saturating_mul(100) / max {
        used if used >= NEARLY_FULL[1] => Severity::High,
        used if used >= NEARLY_FULL[0] => Severity::Medium,
        _ => return None,
    };
    let what = format!("the connection tracking table has {count} entries of {max} at most");
    let why = "When it is full new flows are dropped, whatever port they have, or evict others; that is no race, and the \
               counters look much like one (drop, early_drop).";
    let fix = "raise the limit, in the first network namespace; each entry takes some 300 bytes of memory";
    let words =
        ["sysctl".to_owned(), "-w".to_owned(), format!("net.netfilter.nf_conntrack_max={}", max.saturating_mul(2))];
    let finding = plain(severity, Kind::TableNearlyFull, namespace.inum, (what, why.into(), fix.into()));
    Some(Finding { command: Some(words.into()), ..finding })
}

/// Namespaces whose senders have few ports to choose from. Flows keep them where rules keep ports, so it is among these
/// that they meet; in the default range of 28232 none of 130000 pairs did, of 100 ports 4 of 1000.
pub(super) fn ephemeral_ranges(namespaces: &[Namespace]) -> Vec<Finding> {
    let size = |range: &RangeInclusive<u16>| u32::from(*range.end()).saturating_sub(u32::from(*range.start())) + 1;
    let mut ranges: Vec<(RangeInclusive<u16>, Vec<NetnsInum>)> = Vec::new();
    for namespace in namespaces {
        let Some(range) = namespace.local_ports.clone().filter(|range| size(range) <= NARROW[1]) else { continue };
        match ranges.iter_mut().find(|(known, _)| *known == range) {
            Some((_, inums)) => inums.push(namespace.inum),
            None => ranges.push((range, vec![namespace.inum])),
        }
    }
    let finding = |(range, inums): (RangeInclusive<u16>, Vec<NetnsInum>)| {
        let others = match inums.len() {
            1 => String::new(),
            more => format!(", in {more} network namespaces"),
        };
        let (size, first) = (size(&range), inums.first().copied().unwrap_or(NetnsInum(0)));
        let what = format!("senders choose among {size} ports, {}-{}{others}", range.start(), range.end());
        let why = "Flows of several senders to one destination have the same source port the more often, and rules that \
                   let them keep it are there.";
        let fix = "widen net.ipv4.ip_local_port_range where the senders are";
        let words = ["sysctl", "-w", "'net.ipv4.ip_local_port_range=32768 60999'"].map(str::to_owned);
        let finding = plain(Severity::Medium, Kind::EphemeralRange, first, (what, why.into(), fix.into()));
        Finding { command: Some(words.into()), ..finding }
    };
    ranges.into_iter().map(finding).collect()
}
