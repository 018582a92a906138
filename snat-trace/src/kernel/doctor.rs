//! What `doctor` says: can this kernel be traced, by which hooks, and what is missing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use snat_trace_common::ABSENT;

use super::facts::{KernelFacts, Kprobes};
use super::hooks::Detail;
use super::plan::{CannotTrace, plan, survey};

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
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'static str>,
}

impl Report {
    /// On tracing at `detail`.
    #[must_use]
    pub fn new(facts: &KernelFacts, detail: Detail) -> Self {
        let plan = plan(facts, detail);
        let hooks: Vec<_> = survey(facts, detail).map(HookLine::new).collect();
        let missing_capabilities: Vec<_> = plan.as_ref().map_or(&[][..], |plan| &plan.missing_capabilities).to_vec();
        let missing_capabilities: Vec<_> = missing_capabilities
            .into_iter()
            .map(|capability| MissingCapability { capability: capability.name(), cost: capability.cost() })
            .collect();

        let offsets = facts.offsets.iter().flat_map(super::Offsets::iter);
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
    fn new(surveyed: Result<super::PlannedHook, super::MissingHook>) -> Self {
        match surveyed {
            Ok(hook) => Self {
                role: hook.role.name(),
                symbol: hook.symbol,
                mechanism: "kprobe",
                module: hook.module,
                available: true,
                reason: None,
                cost: hook.drawback,
            },
            Err(hook) => Self {
                role: hook.role.name(),
                symbol: hook.tried.first().copied().unwrap_or_default(),
                mechanism: "kprobe",
                module: None,
                available: false,
                reason: Some(hook.reason.to_string()),
                cost: Some(hook.cost),
            },
        }
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

        writeln!(f, "\n{:LABEL$}{:<28}{:<14}HOOK ({})", "ROLE", "SYMBOL", "WHERE", self.detail)?;
        for hook in &self.hooks {
            let (place, state) = match (&hook.module, hook.available) {
                (Some(module), _) => (module.escape_default().to_string(), "ok"),
                (None, true) => ("kernel".to_owned(), "ok"),
                (None, false) => ("-".to_owned(), "missing"),
            };
            writeln!(f, "{:LABEL$}{:<28}{place:<14}{state}", hook.role, hook.symbol)?;
            for note in hook.reason.as_deref().into_iter().chain(hook.cost) {
                field(f, "", note)?;
            }
        }

        let verdict = match (self.verdict, &self.reason) {
            (Verdict::Traceable, _) => "This kernel can be traced.".to_owned(),
            (Verdict::TraceableWithLess, _) => {
                "This kernel can be traced; what is missing, and costs, stands above.".to_owned()
            }
            (Verdict::CannotTrace, reason) => {
                format!("This kernel cannot be traced now: {}.", reason.as_deref().unwrap_or_default().escape_default())
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
