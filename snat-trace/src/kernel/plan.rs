//! From facts to the hooks to attach: a pure function.

use std::fmt;

use super::btf::{Offsets, OffsetsError};
use super::capability::{Capability, Missing};
use super::cgroups::LegacyController;
use super::facts::{KernelFacts, Kprobes, Lockdown, Presence};
use super::hooks::{CONNTRACK_MODULE, Candidate, HOOKS, Home, Hook, Mechanism, NAT_MODULE, Request, Role};
use super::symbols::Location;

/// What to load and where to attach it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// To be attached, the clash hook first.
    pub hooks: Vec<PlannedHook>,
    /// Asked for, but not to be had.
    pub missing: Vec<MissingHook>,
    /// Capabilities that tracing itself can do without; see [`Capability::cost`].
    pub missing_capabilities: Vec<Capability>,
    /// To be patched into the programs before they are loaded.
    pub offsets: Offsets,
    /// Address of the generation of conntrack extensions, where this kernel has one and shows it.
    pub ext_generation: Option<u64>,
    /// By which hierarchy of version 1 containers are told apart, where there is one.
    pub legacy: Option<LegacyController>,
}

/// One BPF program and the function it is attached to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlannedHook {
    /// What it is for.
    pub role: Role,
    /// Name of the program in the BPF object.
    pub program: &'static str,
    /// Where in the function it runs.
    pub mechanism: Mechanism,
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
    /// Where in the preferred one it would run.
    pub mechanism: Mechanism,
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
pub fn plan(facts: &KernelFacts, request: impl Into<Request>) -> Result<Plan, CannotTrace> {
    let request = request.into();
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

    let mut plan = Plan {
        request,
        hooks: Vec::new(),
        missing: Vec::new(),
        missing_capabilities,
        offsets,
        ext_generation: facts.symbols.variable(),
        legacy: facts.cgroups.controller(),
    };
    for surveyed in survey(facts, request) {
        match surveyed {
            Ok(hook) => plan.hooks.push(hook),
            Err(MissingHook { role: Role::Clash, reason, .. }) => {
                return Err(CannotTrace::NoClashSymbol { release: release(), reason });
            }
            Err(missing) => plan.missing.push(missing),
        }
    }
    Ok(plan)
}

/// Every hook asked for, whether or not anything can be attached.
pub(super) fn survey(facts: &KernelFacts, request: Request) -> impl Iterator<Item = Result<PlannedHook, MissingHook>> {
    HOOKS.iter().filter(move |hook| hook.wanted(request)).map(|hook| {
        find(facts, hook).map_err(|reason| MissingHook {
            role: hook.role,
            tried: hook.candidates().map(|candidate| candidate.symbol).collect(),
            mechanism: hook.preferred.mechanism,
            reason,
            cost: hook.cost,
        })
    })
}

/// The first candidate that is one function, or what is wrong with the preferred one.
fn find(facts: &KernelFacts, hook: &Hook) -> Result<PlannedHook, MissingReason> {
    match hook.home {
        Home::Conntrack if facts.conntrack == Presence::Absent => {
            return Err(MissingReason::NotLoaded { module: CONNTRACK_MODULE });
        }
        Home::Nat if facts.nat == Presence::Absent => return Err(MissingReason::NotLoaded { module: NAT_MODULE }),
        Home::Conntrack | Home::Nat | Home::Image => {}
    }
    let planned = |candidate: &Candidate| {
        let location = only_location(facts, candidate.symbol)?;
        Ok(PlannedHook {
            role: hook.role,
            program: candidate.program,
            mechanism: candidate.mechanism,
            symbol: candidate.symbol,
            module: location.module().map(str::to_owned),
            drawback: candidate.drawback,
            cost: hook.cost,
        })
    };
    planned(&hook.preferred).or_else(|reason| match &hook.fallback {
        Some(fallback) => planned(fallback).map_err(|_| reason),
        None => Err(reason),
    })
}

/// Where a function is, if there is one of that name and no other.
fn only_location<'a>(facts: &'a KernelFacts, symbol: &'static str) -> Result<&'a Location, MissingReason> {
    match facts.symbols.locations(symbol) {
        [location] => Ok(location),
        [] => Err(MissingReason::NoSymbol { symbol }),
        several => Err(MissingReason::Ambiguous { symbol, count: several.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::{Root, SERIES, data};
    use crate::kernel::{Detail, Offsets};

    fn hooks(plan: &Plan) -> Vec<(Role, &'static str, &'static str, Option<&str>)> {
        plan.hooks.iter().map(|hook| (hook.role, hook.program, hook.symbol, hook.module.as_deref())).collect()
    }

    #[test]
    fn every_hook_on_every_known_kernel() {
        for series in SERIES {
            let facts = Root::new(series).facts();
            let full = plan(&facts, Detail::Full).unwrap();
            assert_eq!(
                hooks(&full),
                [
                    (Role::Clash, "clash", "nf_ct_resolve_clash", Some("nf_conntrack")),
                    (Role::Verdict, "verdict", "nf_ct_resolve_clash", Some("nf_conntrack")),
                    (Role::Allocation, "allocation", "nf_nat_setup_info", Some("nf_nat")),
                    (Role::Insertion, "insertion", "__nf_conntrack_hash_insert", Some("nf_conntrack")),
                    (Role::OwnerTcp, "owner_tcp", "tcp_connect", None),
                    (Role::OwnerIpv4, "owner_ipv4", "reuseport_has_conns_set", None),
                    (Role::OwnerIpv6, "owner_ipv6", "ip6_datagram_release_cb", None),
                    (Role::OwnerRaw, "owner_raw", "ip_push_pending_frames", None),
                    (Role::OwnerRaw6, "owner_raw6", "ip6_push_pending_frames", None),
                    (Role::CgroupRemoval, "cgroup_removed", "cgroup_rmdir", None),
                ],
                "{series}"
            );
            assert_eq!(full.missing, [], "{series}");
            assert_eq!(full.missing_capabilities, [], "{series}");

            let minimal = plan(&facts, Detail::Minimal).unwrap();
            assert_eq!(hooks(&minimal), hooks(&full)[..2], "{series}");
            assert_eq!(minimal.missing, [], "{series}");
        }
    }

    #[test]
    fn failures_are_hooked_on_request_only() {
        for series in SERIES {
            let facts = Root::new(series).facts();
            for detail in [Detail::Minimal, Detail::Full] {
                let (races, both) = (plan(&facts, detail), plan(&facts, Request { failures: true, ..detail.into() }));
                let (races, both) = (races.unwrap(), both.unwrap());
                assert_eq!(both.missing, [], "{series}");
                assert_eq!(hooks(&both)[..races.hooks.len()], hooks(&races), "{series}");
                let failures = &both.hooks[races.hooks.len()..];
                let functions: Vec<_> = failures.iter().map(|hook| (hook.symbol, hook.mechanism)).collect();
                let (begin, end) = (Mechanism::Kprobe, Mechanism::Kretprobe);
                assert_eq!(
                    functions,
                    [
                        ("__nf_conntrack_confirm", end),
                        ("__nf_conntrack_confirm", begin),
                        ("early_drop", end),
                        ("__nf_conntrack_alloc", end),
                        ("__nf_conntrack_alloc", begin),
                        ("nf_conntrack_hash_check_insert", end),
                        ("nf_conntrack_hash_check_insert", begin),
                    ],
                    "{series}"
                );
                // Of the kernels known, 6.1 alone compares generations of extensions.
                assert_eq!(both.ext_generation.is_some(), series == "6.1", "{series}");
            }
        }
    }

    #[test]
    fn built_in_conntrack_has_no_module() {
        let root = Root::new("6.12");
        root.remove("proc/modules");
        root.edit("proc/kallsyms", |line| line.split('\t').next().map(str::to_owned));
        let plan = plan(&root.facts(), Detail::Full).unwrap();
        assert_eq!(plan.missing, []);
        assert!(plan.hooks.iter().all(|hook| hook.module.is_none()), "{:?}", plan.hooks);
    }

    /// What one thing missing does to a full plan, on every kernel: role, reason, and how many hooks are left.
    #[test]
    fn a_missing_function_costs_its_role() {
        let no_symbol = |symbol| MissingReason::NoSymbol { symbol };
        for (gone, role, reason) in [
            ("nf_nat_setup_info", Role::Allocation, no_symbol("nf_nat_setup_info")),
            ("tcp_connect", Role::OwnerTcp, no_symbol("tcp_connect")),
            ("ip6_datagram_release_cb", Role::OwnerIpv6, no_symbol("ip6_datagram_release_cb")),
            ("ip_push_pending_frames", Role::OwnerRaw, no_symbol("ip_push_pending_frames")),
            ("ip6_push_pending_frames", Role::OwnerRaw6, no_symbol("ip6_push_pending_frames")),
            ("cgroup_rmdir", Role::CgroupRemoval, no_symbol("cgroup_rmdir")),
        ] {
            for series in SERIES {
                let root = Root::new(series);
                root.rename(gone, &format!("{gone}.isra.0"));
                let plan = plan(&root.facts(), Detail::Full).unwrap();
                let missing: Vec<_> =
                    plan.missing.iter().map(|missing| (missing.role, missing.reason.clone())).collect();
                assert_eq!(missing, [(role, reason.clone())], "{gone} on {series}");
                assert_eq!(plan.missing[0].tried, [gone]);
                assert_eq!(plan.hooks.len(), 9);
            }
        }
    }

    #[test]
    fn insertion_falls_back_to_confirm() {
        let root = Root::new("6.12");
        root.rename("__nf_conntrack_hash_insert", "__nf_conntrack_hash_insert.isra.0");
        let found = plan(&root.facts(), Detail::Full).unwrap();
        let insertion = found.hooks.iter().find(|hook| hook.role == Role::Insertion).unwrap();
        assert_eq!((insertion.program, insertion.symbol), ("insertion_at_confirm", "__nf_conntrack_confirm"));
        assert!(insertion.drawback.is_some());
        assert_eq!(found.missing, []);

        root.rename("__nf_conntrack_confirm", "__nf_conntrack_confirm.constprop.0");
        let found = plan(&root.facts(), Detail::Full).unwrap();
        assert_eq!(found.missing[0].tried, ["__nf_conntrack_hash_insert", "__nf_conntrack_confirm"]);
        assert_eq!(found.missing[0].reason, MissingReason::NoSymbol { symbol: "__nf_conntrack_hash_insert" });
    }

    #[test]
    fn connected_sockets_are_seen_where_their_lock_ends_too() {
        let root = Root::new("6.12");
        root.rename("reuseport_has_conns_set", "reuseport_has_conns_set.isra.0");
        let found = plan(&root.facts(), Detail::Full).unwrap();
        let owner = found.hooks.iter().find(|hook| hook.role == Role::OwnerIpv4).unwrap();
        assert_eq!((owner.program, owner.symbol, owner.drawback), ("owner_ipv4", "ip4_datagram_release_cb", None));
        assert_eq!(found.missing, []);
    }

    #[test]
    fn an_ambiguous_name_is_refused() {
        let root = Root::new("6.12");
        root.edit("proc/kallsyms", |line| Some(line.replace(" mptcp_connect", " tcp_connect")));
        let found = plan(&root.facts(), Detail::Full).unwrap();
        assert_eq!(found.missing[0].role, Role::OwnerTcp);
        assert_eq!(found.missing[0].reason, MissingReason::Ambiguous { symbol: "tcp_connect", count: 2 });

        root.edit("proc/kallsyms", |line| Some(line.replace(" __nf_ct_resolve_clash", " nf_ct_resolve_clash")));
        let Err(CannotTrace::NoClashSymbol { reason, .. }) = plan(&root.facts(), Detail::Minimal) else { panic!() };
        assert_eq!(reason, MissingReason::Ambiguous { symbol: "nf_ct_resolve_clash", count: 2 });
    }

    #[test]
    fn no_nat_is_no_hindrance() {
        let root = Root::new("6.12");
        root.unload("nf_nat");
        let plan = plan(&root.facts(), Detail::Full).unwrap();
        assert_eq!(plan.missing[0].reason, MissingReason::NotLoaded { module: "nf_nat" });
        assert_eq!(plan.hooks.len(), 9);
    }

    #[test]
    fn capabilities_that_tracing_can_do_without() {
        let root = Root::new("6.12");
        // cap_bpf, cap_perfmon, cap_net_admin
        root.write("proc/self/status", b"CapEff:\t000000c000001000\n");
        let plan = plan(&root.facts(), Detail::Full).unwrap();
        assert_eq!(plan.missing_capabilities, [Capability::SysAdmin, Capability::SysPtrace]);
        assert_eq!(plan.hooks.len(), 10);
    }

    /// Each makes the kernel worse than the one before; the first thing to be seen to is always the one named.
    #[test]
    fn what_must_be_seen_to_first_comes_first() {
        let root = Root::new("6.12");
        let refused = |expected: &str, exit_code: u8| {
            for detail in [Detail::Minimal, Detail::Full] {
                let error = plan(&root.facts(), detail).unwrap_err();
                assert!(error.to_string().contains(expected), "{error}\nhas no: {expected}");
                assert_eq!(error.exit_code(), exit_code, "{error}");
            }
        };
        assert!(plan(&root.facts(), Detail::Full).is_ok());

        root.rename("nf_ct_resolve_clash", "nf_ct_resolve_clash.constprop.0");
        refused("nf_ct_resolve_clash is not a function of this kernel", 4);
        root.unload("nf_conntrack");
        refused("nf_conntrack is not loaded", 4);
        root.write("sys/kernel/btf/vmlinux", b"no BTF at all, but long enough");
        refused("does not begin as BTF does", 4);
        root.remove("sys/kernel/btf/vmlinux");
        refused("CONFIG_DEBUG_INFO_BTF", 4);
        root.write("sys/kernel/security/lockdown", b"none integrity [confidentiality]\n");
        refused("lockdown", 4);
        root.write("sys/kernel/debug/kprobes/enabled", b"0\n");
        refused("kprobes are switched off", 4);
        root.remove("sys/bus/event_source/devices/kprobe/type");
        refused("CONFIG_KPROBE_EVENTS", 4);
        root.write("proc/self/status", b"CapEff:\t0000000000000000\n");
        refused("cap_bpf, cap_perfmon and cap_net_admin", 3);
    }

    #[test]
    fn structures_only_the_module_knows() {
        let split = |name: &str| std::fs::read(data("split").join(name)).unwrap();
        let root = Root::new("6.12");
        let whole: Offsets = root.facts().offsets.unwrap();
        root.write("sys/kernel/btf/vmlinux", &split("vmlinux.btf"));
        let error = plan(&root.facts(), Detail::Full).unwrap_err();
        assert!(error.to_string().contains("struct nf_conntrack_tuple"), "{error}");

        root.write("sys/kernel/btf/nf_conntrack", &split("nf_conntrack.btf"));
        assert_eq!(plan(&root.facts(), Detail::Full).unwrap().offsets, whole);

        // The module brings its type information with it, so it must not be blamed on the kernel.
        root.remove("sys/kernel/btf/nf_conntrack");
        root.unload("nf_conntrack");
        assert_eq!(plan(&root.facts(), Detail::Full), Err(CannotTrace::ConntrackNotLoaded));
    }

    #[test]
    fn a_kernel_that_takes_no_probes_is_told_what_still_works() {
        let root = Root::new("6.12");
        root.remove("sys/bus/event_source/devices/kprobe/type");
        let error = plan(&root.facts(), Detail::Full).unwrap_err().to_string();
        assert!(error.contains("conntrack -S"), "{error}");
    }
}
