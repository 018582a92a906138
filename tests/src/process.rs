//! What a process takes of the machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;

/// Since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// In user space and the kernel, by the kernel's ticks.
    pub cpu: Duration,
    /// Context switches of the threads it has now.
    pub switches: u64,
    /// Memory it has now, in KiB.
    pub resident_kib: u64,
    /// Most memory it ever had, in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// Of a process.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let mut switches = 0;
        for thread in fs::read_dir(process.join("task"))? {
            // One that has ended meanwhile is none.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            switches += field(&status, "voluntary_ctxt_switches")? + field(&status, "nonvoluntary_ctxt_switches")?;
        }
        Ok(Self {
            cpu: cpu(&fs::read_to_string(process.join("stat"))?)?,
            switches,
            resident_kib: field(&status, "VmRSS")?,
            peak_kib: field(&status, "VmHWM")?,
        })
    }

    /// What came on top of an earlier look; memory as it is now.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
            ..self
        }
    }

    /// CPU time in milliseconds.
    ///
    /// # Errors
    ///
    /// It is more than 584 million years.
    pub fn cpu_milliseconds(self) -> Result<u64> {
        Ok(u64::try_from(self.cpu.as_millis())?)
    }
}

/// A number of `/proc/PID/status`.
pub(crate) fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The time in `/proc/PID/stat`: its 14th and 15th fields, of which the second is a name with whatever in it.
fn cpu(stat: &str) -> Result<Duration> {
    let (_, fields) = stat.rsplit_once(')').context("a short stat")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("a short stat")?.parse()?) };
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_by_the_names_of_its_fields() {
        let status = "Name:\tx\nVmHWM:\t   20484 kB\nVmRSS:\t   19000 kB\nvoluntary_ctxt_switches:\t12\n\
                      nonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmHWM").unwrap(), 20_484);
        assert_eq!(field(status, "voluntary_ctxt_switches").unwrap(), 12);
        assert!(field(status, "VmSwap").is_err());
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 1000 10";
        assert_eq!(cpu(stat).unwrap(), Duration::from_secs(3));
        assert!(Usage::of(std::process::id()).unwrap().resident_kib > 0);
    }
}
