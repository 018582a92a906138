//! Whether this process may do what tracing takes.

use std::fmt;

/// A capability, by its bit in `CapEff` (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Capability {
    /// Reads counters over netlink.
    NetAdmin = 12,
    /// Opens the namespaces of other users' processes.
    SysPtrace = 19,
    /// Enters other network namespaces; stands in for `Perfmon` and `Bpf`.
    SysAdmin = 21,
    /// Attaches kprobes and reads kernel memory.
    Perfmon = 38,
    /// Loads programs and makes maps.
    Bpf = 39,
}

impl Capability {
    /// Tracing is refused without these.
    const REQUIRED: [Self; 3] = [Self::Bpf, Self::Perfmon, Self::NetAdmin];
    /// Tracing knows less without these.
    const USEFUL: [Self; 2] = [Self::SysAdmin, Self::SysPtrace];

    /// Its name, as in capabilities(7) but lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "cap_net_admin",
            Self::SysPtrace => "cap_sys_ptrace",
            Self::SysAdmin => "cap_sys_admin",
            Self::Perfmon => "cap_perfmon",
            Self::Bpf => "cap_bpf",
        }
    }

    /// What is lost without it.
    #[must_use]
    pub fn cost(self) -> &'static str {
        match self {
            Self::Bpf => "programs cannot be loaded",
            Self::Perfmon => "kprobes cannot be attached",
            Self::NetAdmin => "the kernel's counters cannot be read, so the account cannot be closed",
            Self::SysAdmin => {
                "other network namespaces cannot be entered, so their accounts stay open and their sockets are not looked up"
            }
            Self::SysPtrace => "namespaces of other users' processes cannot be opened, so their accounts may stay open",
        }
    }

    fn mask(self) -> u64 {
        1 << (self as u8)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The capabilities of this process that are in effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capabilities {
    effective: u64,
    initial_user_namespace: bool,
}

/// What a process lacks to trace anything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Missing {
    /// These capabilities.
    Capabilities(Vec<Capability>),
    /// It has capabilities, but only over a user namespace that is not the kernel's first.
    UserNamespace,
}

impl Capabilities {
    /// From the bits of `CapEff` and whether they hold in the initial user namespace.
    #[must_use]
    pub fn new(effective: u64, initial_user_namespace: bool) -> Self {
        Self { effective, initial_user_namespace }
    }

    /// From the text of `/proc/self/status`; `None` when it has no such line.
    pub(super) fn effective_from_status(status: &str) -> Option<u64> {
        let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(bits.trim(), 16).ok()
    }

    /// Whether `capability`, or one that includes it, is in effect (include/linux/capability.h, `bpf_capable` and
    /// `perfmon_capable`).
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        let mut mask = capability.mask();
        if matches!(capability, Capability::Bpf | Capability::Perfmon) {
            mask |= Capability::SysAdmin.mask();
        }
        self.effective & mask != 0
    }

    /// The useful ones that are missing, or what makes tracing impossible.
    pub(super) fn check(self) -> Result<Vec<Capability>, Missing> {
        let missing = |wanted: &[Capability]| -> Vec<Capability> {
            wanted.iter().copied().filter(|&capability| !self.has(capability)).collect()
        };
        let required = missing(&Capability::REQUIRED);
        if !required.is_empty() {
            return Err(Missing::Capabilities(required));
        }
        if !self.initial_user_namespace {
            return Err(Missing::UserNamespace);
        }
        Ok(missing(&Capability::USEFUL))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities(missing) => {
                f.write_str("this process lacks ")?;
                for (index, capability) in missing.iter().enumerate() {
                    let separator = match index {
                        0 => "",
                        _ if index + 1 == missing.len() => " and ",
                        _ => ", ",
                    };
                    write!(f, "{separator}{capability}")?;
                }
                Ok(())
            }
            Self::UserNamespace => f.write_str(
                "this process has its capabilities only within a user namespace (a rootless container?), not over the kernel",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;

    #[test]
    fn reads_the_effective_set() {
        let status = "Name:\tsnat-trace\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(Capabilities::effective_from_status(status), Some(ALL));
        assert_eq!(Capabilities::effective_from_status("Name:\tx\n"), None);
        assert_eq!(Capabilities::effective_from_status("CapEff:\tnonsense\n"), None);
    }

    #[test]
    fn what_each_set_allows() {
        use Capability::{Bpf, NetAdmin, Perfmon, SysAdmin, SysPtrace};
        let set = |capabilities: &[Capability]| capabilities.iter().map(|c| c.mask()).fold(0, |a, b| a | b);
        for (effective, expected) in [
            (ALL, Ok(vec![])),
            (0, Err(Missing::Capabilities(vec![Bpf, Perfmon, NetAdmin]))),
            (set(&[Bpf, Perfmon, NetAdmin]), Ok(vec![SysAdmin, SysPtrace])),
            (set(&[SysAdmin, NetAdmin]), Ok(vec![SysPtrace])),
            (set(&[Bpf, NetAdmin]), Err(Missing::Capabilities(vec![Perfmon]))),
            (set(&[SysAdmin, SysPtrace]), Err(Missing::Capabilities(vec![NetAdmin]))),
        ] {
            assert_eq!(Capabilities::new(effective, true).check(), expected, "{effective:#x}");
        }
        assert_eq!(Capabilities::new(ALL, false).check(), Err(Missing::UserNamespace));
    }

    #[test]
    fn bits_are_those_of_the_kernel() {
        // `capsh --decode` of each bit.
        assert_eq!(Capability::NetAdmin.mask(), 0x1000);
        assert_eq!(Capability::SysPtrace.mask(), 0x8_0000);
        assert_eq!(Capability::SysAdmin.mask(), 0x20_0000);
        assert_eq!(Capability::Perfmon.mask(), 0x40_0000_0000);
        assert_eq!(Capability::Bpf.mask(), 0x80_0000_0000);
    }

    #[test]
    fn names_them_in_a_sentence() {
        let missing = Missing::Capabilities(vec![Capability::Bpf, Capability::Perfmon, Capability::NetAdmin]);
        assert_eq!(missing.to_string(), "this process lacks cap_bpf, cap_perfmon and cap_net_admin");
    }
}
