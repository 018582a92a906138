//! Packets that netfilter dropped, as the kernel's tracepoint `skb:kfree_skb` tells them: counted by tracefs, with nothing of
//! snat-trace in between.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The one function in which a hook's verdict becomes the end of a packet (net/netfilter/core.c).
const FUNCTION: &str = "nf_hook_slow";

/// A trace instance of its own, so that nobody else's settings matter; removed when dropped.
#[derive(Debug)]
pub struct Drops {
    instance: PathBuf,
    /// What is counted, in tracefs' words.
    filter: String,
}

impl Drops {
    /// Begins to count. Kernels that give reasons are asked for `NETFILTER_DROP`; all of them for the place.
    ///
    /// # Errors
    ///
    /// tracefs is not mounted at its usual place, or refuses the filter.
    pub fn count() -> Result<Self> {
        let instance = Path::new("/sys/kernel/tracing/instances").join(format!("netfilter-{}", std::process::id()));
        fs::create_dir(&instance).with_context(|| format!("cannot make {}", instance.display()))?;
        let mut drops = Self { instance, filter: String::new() };
        let format = fs::read_to_string(drops.event("format"))?;
        let place = places(&fs::read_to_string("/proc/kallsyms")?)?;
        drops.filter = match reason(&format) {
            Some(reason) => format!("reason == {reason} && ({place})"),
            None => place,
        };
        fs::write(drops.event("filter"), &drops.filter)
            .with_context(|| format!("the filter {} is refused", drops.filter))?;
        fs::write(drops.event("enable"), "1")?;
        Ok(drops)
    }

    /// How many there have been.
    ///
    /// # Errors
    ///
    /// tracefs does not say.
    pub fn so_far(&self) -> Result<u64> {
        let mut sum = 0;
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            sum += events(&fs::read_to_string(cpu?.path().join("stats"))?)?;
        }
        Ok(sum)
    }

    /// Whether this kernel gives reasons.
    #[must_use]
    pub fn has_reason(&self) -> bool {
        self.filter.starts_with("reason")
    }

    fn event(&self, file: &str) -> PathBuf {
        self.instance.join("events/skb/kfree_skb").join(file)
    }
}

impl Drop for Drops {
    fn drop(&mut self) {
        // What fails here fails loudly when the next instance is made.
        let _off = fs::write(self.event("enable"), "0");
        let _gone = fs::remove_dir(&self.instance);
    }
}

/// The number of `NETFILTER_DROP` in the event's format: `{ 8, "NETFILTER_DROP" }`. It differs between kernels.
fn reason(format: &str) -> Option<u32> {
    let (before, _) = format.split_once(", \"NETFILTER_DROP\" }")?;
    let number = before.rsplit_once('{')?.1.trim();
    number.strip_prefix("0x").map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
}

/// The condition that `location` lies in [`FUNCTION`], or in the part of it that the compiler has put elsewhere.
fn places(kallsyms: &str) -> Result<String> {
    let mut symbols: Vec<(u64, &str)> = Vec::new();
    for line in kallsyms.lines() {
        let mut words = line.split_whitespace();
        if let (Some(address), Some(name)) = (words.next(), words.nth(1)) {
            symbols.push((u64::from_str_radix(address, 16)?, name));
        }
    }
    symbols.sort_unstable();
    let ours = |name: &str| name == FUNCTION || name.strip_prefix(FUNCTION) == Some(".cold");
    let conditions: Vec<String> = symbols
        .iter()
        .filter(|(_, name)| ours(name))
        .filter_map(|&(start, _)| {
            let end = symbols.iter().map(|&(address, _)| address).find(|&address| address > start)?;
            // A return address may be that of the next function, when the call is the last instruction.
            Some(format!("(location > {start:#x} && location <= {end:#x})"))
        })
        .collect();
    ensure!(!conditions.is_empty(), "there is no symbol {FUNCTION}");
    Ok(conditions.join(" || "))
}

/// Events of one CPU: those in the buffer, those written over, and those there was no room for
/// (kernel/trace/trace.c, `tracing_stats_read`).
fn events(stats: &str) -> Result<u64> {
    let number = |name: &str| -> Result<u64> {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name} in {stats}"))?.trim().parse()?)
    };
    Ok(number("entries:")? + number("overrun:")? + number("dropped events:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_name() {
        let format = r#"reason: %s", __print_symbolic(REC->reason, { 1, "NOT_SPECIFIED" }, { 8, "NETFILTER_DROP" }, { 9, "X" })"#;
        assert_eq!(reason(format), Some(8));
        assert_eq!(reason(r#"{ 0x2, "A" }, { 0x1f, "NETFILTER_DROP" }"#), Some(31));
        assert_eq!(reason("print fmt: \"skbaddr=%p protocol=%u location=%p\""), None);
    }

    #[test]
    fn a_function_may_lie_in_two_places() {
        let kallsyms = "\
ffffffff81000300 T next_one
ffffffff81000100 T nf_hook_slow
ffffffff81000100 T alias
ffffffff82000000 t nf_hook_slow.cold
ffffffff82000010 t other.cold
ffffffff81000200 T nf_hook_slow_list
";
        assert_eq!(
            places(kallsyms).unwrap(),
            "(location > 0xffffffff81000100 && location <= 0xffffffff81000200) || \
             (location > 0xffffffff82000000 && location <= 0xffffffff82000010)"
        );
        assert!(places("ffffffff81000100 T other\n").is_err());
    }

    #[test]
    fn everything_counted_is_counted() {
        let stats = "entries: 40\noverrun: 2\ncommit overrun: 7\nbytes: 2080\noldest event ts:  2.1\ndropped events: 1\nread events: 0\n";
        assert_eq!(events(stats).unwrap(), 43);
        assert!(events("entries: 40\n").is_err());
    }
}
