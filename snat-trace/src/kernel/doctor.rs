//! What `doctor` says: can this kernel be traced, by which hooks, and what is missing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use snat_trace_common::{ABSENT, Need};

use super::facts::{KernelFacts, Kprobes};
use super::hooks::{Detail, Mechanism, Request};
use super::plan::{CannotTrace, MissingHook, PlannedHook, plan, survey};

/// The facts and the plan in words. As text by [`fmt::Display`] in 80 columns, as JSON by [`Serialize`].
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "type", rename = "doctor")]
pub struct Report {
    schema: u32,
    kernel: String,
    machine: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
    detail: &'static str,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip)]
    exit_code: u8,
    kprobes: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lockdown: Option<&'static str>,
    modules: BTreeMap<&'static str, &'static str>,
    missing_capabilities: Vec<MissingCapability>,
    hooks: Vec<HookLine>,
    /// Attached on request only.
    optional_hooks: Vec<HookLine>,
    offsets: BTreeMap<String, u16>,
    missing_offsets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offsets_error: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Everything wanted is there.
    Traceable,
    /// Races are seen, but less is known of them.
    TraceableWithLess,
    /// Nothing can be traced.
    CannotTrace,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct MissingCapability {
    capability: &'static str,
    cost: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct HookLine {
    role: &'static str,
    symbol: &'static str,
    mechanism: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
    /// Can be attached: a function that is there cannot where the kernel takes no kprobes.
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'static str>,
}

impl Report {
    /// On tracing at `detail`, with the hooks that are attached on request only.
    #[must_use]
    pub fn new(facts: &KernelFacts, detail: Detail) -> Self {
        let plan = plan(facts, detail);
        let races = Request::from(detail);
        let hooks: Vec<_> = survey(facts, races).map(|surveyed| HookLine::new(surveyed, plan.is_ok())).collect();
        let optional: Vec<_> = survey(facts, Request { failures: true, ..races })
            .skip(hooks.len())
            .map(|surveyed| HookLine::new(surveyed, plan.is_ok()))
            .collect();
        let missing_capabilities: Vec<_> = plan.as_ref().map_or(&[][..], |plan| &plan.missing_capabilities).to_vec();
        let missing_capabilities: Vec<_> = missing_capabilities
            .into_iter()
            .map(|capability| MissingCapability { capability: capability.name(), cost: capability.cost() })
            .collect();

        let offsets = facts.offsets.iter().flat_map(super::Offsets::iter);
        let offsets = offsets.filter(|&(offset, &value)| value != ABSENT || offset.need != Need::Telling);
        let (known, absent): (Vec<_>, Vec<_>) = offsets.partition(|&(_, &value)| value != ABSENT);
        let field = |offset: &snat_trace_common::Offset| match offset.field {
            "" => format!("sizeof {}", offset.structure),
            field => format!("{}.{field}", offset.structure),
        };
        let all = hooks.iter().all(|hook| hook.cost.is_none()) && missing_capabilities.is_empty() && absent.is_empty();
        Self {
            schema: 1,
            kernel: facts.release.clone(),
            machine: facts.machine.clone(),
            boot_id: facts.boot_id.clone(),
            detail: detail.name(),
            verdict: match plan {
                Ok(_) if all => Verdict::Traceable,
                Ok(_) => Verdict::TraceableWithLess,
                Err(_) => Verdict::CannotTrace,
            },
            reason: plan.as_ref().err().map(ToString::to_string),
            exit_code: plan.as_ref().err().map_or(0, CannotTrace::exit_code),
            kprobes: match facts.kprobes {
                Kprobes::Available => "available",
                Kprobes::Disarmed => "switched off",
                Kprobes::Absent => "none",
            },
            lockdown: facts.lockdown.map(super::facts::Lockdown::name),
            modules: BTreeMap::from([
                ("nf_conntrack", facts.conntrack.name()),
                ("nf_conntrack_netlink", facts.conntrack_netlink.name()),
                ("nf_nat", facts.nat.name()),
            ]),
            missing_capabilities,
            hooks,
            optional_hooks: optional,
            offsets: known.into_iter().map(|(offset, &value)| (field(offset), value)).collect(),
            missing_offsets: absent.into_iter().map(|(offset, _)| field(offset)).collect(),
            offsets_error: facts.offsets.as_ref().err().map(ToString::to_string),
        }
    }

    /// Exit code of `doctor`: 0, or why tracing would be refused.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl HookLine {
    fn new(surveyed: Result<PlannedHook, MissingHook>, traceable: bool) -> Self {
        match surveyed {
            Ok(hook) => Self {
                role: hook.role.name(),
                symbol: hook.symbol,
                mechanism: hook.mechanism.name(),
                module: hook.module,
                available: traceable,
                reason: None,
                cost: hook.drawback,
            },
            Err(hook) => Self {
                role: hook.role.name(),
                symbol: hook.tried.first().copied().unwrap_or_default(),
                mechanism: hook.mechanism.name(),
                module: None,
                available: false,
                reason: Some(hook.reason.to_string()),
                cost: Some(hook.cost),
            },
        }
    }
}

impl HookLine {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.reason {
            Some(_) => "missing",
            None if self.available => "ok",
            None => "found",
        };
        let half = if self.mechanism == Mechanism::Kretprobe.name() { ", at return" } else { "" };
        let place = match &self.module {
            Some(module) => module.escape_default().to_string(),
            None if self.reason.is_none() => "kernel".to_owned(),
            None => "-".to_owned(),
        };
        writeln!(f, "{:LABEL$}{:<32}{place:<14}{state}{half}", self.role, self.symbol)?;
        if let Some(reason) = &self.reason {
            field(f, "", reason)?;
        }
        if let Some(cost) = self.cost {
            field(f, "", &format!("cost: {cost}"))?;
        }
        Ok(())
    }
}

/// Columns of text.
const WIDTH: usize = 80;
/// Columns of a label.
const LABEL: usize = 14;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names come from the kernel, but a terminal is no place to find out that one has escape sequences.
        field(f, "kernel", &format!("{} ({})", self.kernel.escape_default(), self.machine.escape_default()))?;
        field(f, "kprobes", self.kprobes)?;
        field(f, "lockdown", self.lockdown.unwrap_or("unknown"))?;
        let modules: Vec<_> = self.modules.iter().map(|(name, presence)| format!("{name} {presence}")).collect();
        field(f, "conntrack", &modules.join(", "))?;
        match &self.offsets_error {
            None => field(f, "offsets", &format!("{} known from BTF", self.offsets.len()))?,
            Some(error) => field(f, "offsets", &format!("unknown: {}", error.escape_default()))?,
        }
        for missing in &self.missing_offsets {
            field(f, "", &format!("{missing} is not in this kernel, so it is not reported"))?;
        }
        for missing in &self.missing_capabilities {
            field(f, "no capability", &format!("{}: {}", missing.capability, missing.cost))?;
        }

        writeln!(f, "\n{:LABEL$}{:<32}{:<14}HOOK ({})", "ROLE", "SYMBOL", "WHERE", self.detail)?;
        self.hooks.iter().try_for_each(|hook| hook.write(f))?;
        writeln!(f, "\n{:LABEL$}{:<32}{:<14}HOOK (--failures)", "ROLE", "SYMBOL", "WHERE")?;
        self.optional_hooks.iter().try_for_each(|hook| hook.write(f))?;

        let verdict = match (self.verdict, &self.reason) {
            (Verdict::Traceable, _) => "This kernel can be traced.".to_owned(),
            (Verdict::TraceableWithLess, _) => {
                "This kernel can be traced; what is missing, and costs, stands above.".to_owned()
            }
            (Verdict::CannotTrace, reason) => {
                format!("Nothing can be traced: {}.", reason.as_deref().unwrap_or_default().escape_default())
            }
        };
        writeln!(f)?;
        wrapped(f, &verdict, 0)
    }
}

/// A label and its text, which goes on below itself.
fn field(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "{label:LABEL$}")?;
    wrapped(f, text, LABEL)
}

/// `text` in lines of [`WIDTH`] columns, all but the first `indent` columns in. The first one is there already.
fn wrapped(f: &mut fmt::Formatter<'_>, text: &str, indent: usize) -> fmt::Result {
    let mut column = indent;
    for (index, word) in text.split(' ').enumerate() {
        if index == 0 {
            column += word.chars().count();
        } else if column + 1 + word.chars().count() > WIDTH {
            write!(f, "\n{:indent$}", "")?;
            column = indent + word.chars().count();
        } else {
            f.write_str(" ")?;
            column += 1 + word.chars().count();
        }
        f.write_str(word)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::{Root, SERIES};

    /// The machine is the one the tests run on.
    fn report(root: &Root, detail: Detail) -> Report {
        Report { machine: "x86_64".to_owned(), ..Report::new(&root.facts(), detail) }
    }

    fn worse() -> Root {
        let root = Root::new("6.12");
        root.unload("nf_nat");
        root.rename("__nf_conntrack_hash_insert", "__nf_conntrack_hash_insert.isra.0");
        root.edit("proc/kallsyms", |line| Some(line.replace(" mptcp_connect", " tcp_connect")));
        root.write("proc/self/status", b"CapEff:\t000000c000001000\n");
        root
    }

    fn no_kprobes() -> Root {
        let root = Root::new("6.12");
        root.remove("sys/bus/event_source/devices/kprobe/type");
        root
    }

    #[test]
    fn text() {
        insta::assert_snapshot!("traceable", report(&Root::new("6.12"), Detail::Full));
        insta::assert_snapshot!("minimal", report(&Root::new("5.10"), Detail::Minimal));
        insta::assert_snapshot!("with_less", report(&worse(), Detail::Full));
        insta::assert_snapshot!("no_kprobes", report(&no_kprobes(), Detail::Full));
    }

    #[test]
    fn json() {
        let json = |root: &Root| serde_json::to_string_pretty(&report(root, Detail::Full)).unwrap();
        insta::assert_snapshot!("json_with_less", json(&worse()));
        insta::assert_snapshot!("json_no_kprobes", json(&no_kprobes()));
    }

    #[test]
    fn exit_codes() {
        assert_eq!(report(&Root::new("7.3"), Detail::Full).exit_code(), 0);
        assert_eq!(report(&worse(), Detail::Full).exit_code(), 0);
        assert_eq!(report(&no_kprobes(), Detail::Full).exit_code(), 4);
        let root = no_kprobes();
        root.write("proc/self/status", b"CapEff:\t0\n");
        assert_eq!(report(&root, Detail::Full).exit_code(), 3);
    }

    #[test]
    fn text_fits_80_columns_and_holds_no_control_characters() {
        let mut roots: Vec<_> = SERIES.into_iter().map(Root::new).collect();
        roots.extend([worse(), no_kprobes()]);
        for root in &roots {
            root.write("proc/sys/kernel/osrelease", b"6.12\x1b[2J\x07evil\n");
            root.edit("proc/kallsyms", |line| Some(line.replace("[nf_conntrack]", "[nf\x1b[31m]")));
            for missing in ["", "sys/kernel/btf/vmlinux"] {
                if !missing.is_empty() {
                    root.remove(missing);
                }
                let text = report(root, Detail::Full).to_string();
                for line in text.lines() {
                    assert!(line.chars().count() <= WIDTH, "{line}");
                    assert!(!line.chars().any(char::is_control), "{line:?}");
                }
            }
        }
    }
}
