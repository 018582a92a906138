//! From facts to the hooks to attach: a pure function.

use std::fmt;

use super::btf::{Offsets, OffsetsError};
use super::capability::{Capability, Missing};
use super::facts::{KernelFacts, Kprobes, Lockdown, Presence};
use super::hooks::{Detail, HOOKS, Home, Hook, NAT_MODULE, Role};

/// What to load and where to attach it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// What was asked for.
    pub detail: Detail,
    /// To be attached, the clash hook first.
    pub hooks: Vec<PlannedHook>,
    /// Wanted at this detail, but not to be had.
    pub missing: Vec<MissingHook>,
    /// Capabilities that tracing itself can do without; see [`Capability::cost`].
    pub missing_capabilities: Vec<Capability>,
    /// To be patched into the programs before they are loaded.
    pub offsets: Offsets,
}

/// One BPF program and the function it is attached to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlannedHook {
    /// What it is for.
    pub role: Role,
    /// Name of the program in the BPF object.
    pub program: &'static str,
    /// Kernel function, found exactly once in `/proc/kallsyms`.
    pub symbol: &'static str,
    /// Module of the function; `None` when it is in the kernel image.
    pub module: Option<String>,
    /// What is worse than usual, where the usual function is not there.
    pub drawback: Option<&'static str>,
    /// What is not known without it.
    pub cost: &'static str,
}

/// A role nothing can fill on this kernel now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MissingHook {
    /// What it would be for.
    pub role: Role,
    /// Functions that were looked for, in order.
    pub tried: Vec<&'static str>,
    /// Why none of them will do.
    pub reason: MissingReason,
    /// What is not known without it.
    pub cost: &'static str,
}

/// Why a function cannot be hooked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MissingReason {
    /// Its module is not loaded.
    NotLoaded {
        /// The module.
        module: &'static str,
    },
    /// The name stands more than once in `/proc/kallsyms`, and a kprobe cannot tell which is meant.
    Ambiguous {
        /// The name.
        symbol: &'static str,
        /// How often.
        count: usize,
    },
    /// This kernel was compiled without the function: inlined, cloned under another name or configured out.
    NoSymbol {
        /// The preferred function.
        symbol: &'static str,
    },
}

impl fmt::Display for MissingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoaded { module: NAT_MODULE } => f.write_str(
                "nf_nat is not loaded: this node has no NAT rule now, so there is nothing to race for; start again once it has one",
            ),
            Self::NotLoaded { module } => write!(f, "{module} is not loaded"),
            Self::Ambiguous { symbol, count } => {
                write!(f, "{symbol} stands {count} times in /proc/kallsyms, so a kprobe cannot tell which is meant")
            }
            Self::NoSymbol { symbol } => write!(f, "{symbol} is not a function of this kernel (inlined or renamed by its compiler)"),
        }
    }
}

/// Why nothing can be traced: one sentence, what to do included.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CannotTrace {
    /// Capabilities are missing, or do not count.
    #[error("not enough privilege: {0}; run it as root (sudo snat-trace)")]
    NotPrivileged(Missing),
    /// The kernel is locked against reading its memory.
    #[error(
        "kernel lockdown is \"confidentiality\", which forbids kprobes and reading kernel memory: boot with \
         lockdown=integrity or none; conntrack -S still counts failed inserts (insert_failed)"
    )]
    Lockdown,
    /// The kernel has no kprobes.
    #[error(
        "kernel {release} takes no kprobes (no /sys/bus/event_source/devices/kprobe): it needs CONFIG_KPROBE_EVENTS=y; \
         conntrack -S still counts failed inserts (insert_failed)"
    )]
    NoKprobes {
        /// As `uname -r`.
        release: String,
    },
    /// Kprobes are switched off.
    #[error(
        "kprobes are switched off: write 1 to /sys/kernel/debug/kprobes/enabled; conntrack -S still counts failed \
         inserts (insert_failed)"
    )]
    KprobesDisarmed,
    /// BTF is absent or does not say what is needed.
    #[error("kernel {release}: {error}; conntrack -S still counts failed inserts (insert_failed)")]
    Offsets {
        /// As `uname -r`.
        release: String,
        /// What is wrong with it.
        error: OffsetsError,
    },
    /// There is no connection tracking on this node, yet.
    #[error(
        "nf_conntrack is not loaded, so nothing tracks connections on this node: start again once a firewall or NAT \
         rule has loaded it, or use --wait"
    )]
    ConntrackNotLoaded,
    /// The clash function cannot be hooked.
    #[error("kernel {release} cannot be traced: {reason}; conntrack -S still counts failed inserts (insert_failed)")]
    NoClashSymbol {
        /// As `uname -r`.
        release: String,
        /// Why.
        reason: MissingReason,
    },
}

impl CannotTrace {
    /// Exit code of the process: 3 not enough privilege, 4 this kernel cannot be traced.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotPrivileged(_) => 3,
            Self::Lockdown
            | Self::NoKprobes { .. }
            | Self::KprobesDisarmed
            | Self::Offsets { .. }
            | Self::ConntrackNotLoaded
            | Self::NoClashSymbol { .. } => 4,
        }
    }
}

/// Which hooks to attach on this kernel.
///
/// # Errors
///
/// The first thing a user has to see to: privilege, then kprobes, then BTF, then conntrack, then its functions.
pub fn plan(facts: &KernelFacts, detail: Detail) -> Result<Plan, CannotTrace> {
    let missing_capabilities = facts.capabilities.check().map_err(CannotTrace::NotPrivileged)?;
    let release = || facts.release.clone();
    match facts.kprobes {
        Kprobes::Available => {}
        Kprobes::Disarmed => return Err(CannotTrace::KprobesDisarmed),
        Kprobes::Absent => return Err(CannotTrace::NoKprobes { release: release() }),
    }
    if facts.lockdown == Some(Lockdown::Confidentiality) {
        return Err(CannotTrace::Lockdown);
    }
    let offsets = match &facts.offsets {
        Ok(offsets) => offsets.clone(),
        // The structures of a module are in the module's own BTF, which comes with it.
        Err(OffsetsError::NoField { .. }) if facts.conntrack == Presence::Absent => {
            return Err(CannotTrace::ConntrackNotLoaded);
        }
        Err(error) => return Err(CannotTrace::Offsets { release: release(), error: error.clone() }),
    };
    if facts.conntrack == Presence::Absent {
        return Err(CannotTrace::ConntrackNotLoaded);
    }

    let mut plan = Plan { detail, hooks: Vec::new(), missing: Vec::new(), missing_capabilities, offsets };
    for hook in HOOKS.iter().filter(|hook| hook.wanted(detail)) {
        match find(facts, hook) {
            Ok(planned) => plan.hooks.push(planned),
            Err(reason) if hook.role == Role::Clash => {
                return Err(CannotTrace::NoClashSymbol { release: release(), reason });
            }
            Err(reason) => plan.missing.push(MissingHook {
                role: hook.role,
                tried: hook.candidates.iter().map(|candidate| candidate.symbol).collect(),
                reason,
                cost: hook.cost,
            }),
        }
    }
    Ok(plan)
}

/// The first candidate that is one function.
fn find(facts: &KernelFacts, hook: &Hook) -> Result<PlannedHook, MissingReason> {
    if hook.home == Home::Nat && facts.nat == Presence::Absent {
        return Err(MissingReason::NotLoaded { module: NAT_MODULE });
    }
    let mut reason = None;
    for candidate in hook.candidates {
        let symbol = candidate.symbol;
        match facts.symbols.locations(symbol) {
            [location] => {
                return Ok(PlannedHook {
                    role: hook.role,
                    program: candidate.program,
                    symbol,
                    module: location.module().map(str::to_owned),
                    drawback: candidate.drawback,
                    cost: hook.cost,
                });
            }
            [] => reason = reason.or(Some(MissingReason::NoSymbol { symbol })),
            several => reason = reason.or(Some(MissingReason::Ambiguous { symbol, count: several.len() })),
        }
    }
    Err(reason.unwrap_or(MissingReason::NoSymbol { symbol: hook.role.name() }))
}
