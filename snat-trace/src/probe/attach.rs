//! Carrying out a plan, hook by hook.

use std::borrow::Cow;

use aya::Ebpf;

use super::error::{ProbeError, is_refusal, reason};
use super::object::verify;
use crate::kernel::{Mechanism, MissingHook, Plan, PlannedHook, Role};

/// How a hook of the plan fared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HookState {
    /// It runs.
    Attached,
    /// It does not, and what that costs.
    NotAttached {
        /// Why.
        reason: String,
        /// What is not known without it.
        cost: &'static str,
    },
}

/// One hook, attached or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachedHook {
    /// What it is for.
    pub role: Role,
    /// Kernel function.
    pub symbol: Cow<'static, str>,
    /// Where in it.
    pub mechanism: Mechanism,
    /// Whether it runs.
    pub state: HookState,
}

/// Loads and attaches every hook of the plan, the clash hook last, so that what it joins is there from its first call on.
///
/// A hook that cannot be attached is reported in the result; only the clash hook is fatal.
pub(super) fn attach(object: &mut Ebpf, plan: &Plan) -> Result<Vec<AttachedHook>, ProbeError> {
    let (clash, others): (Vec<_>, Vec<_>) = plan.hooks.iter().partition(|hook| hook.role == Role::Clash);
    let mut hooks: Vec<AttachedHook> = plan.missing.iter().map(not_planned).collect();
    for hook in others.into_iter().chain(clash) {
        let state = match attach_one(object, hook) {
            Ok(()) => HookState::Attached,
            Err(error) if hook.role == Role::Clash => return Err(error),
            Err(error) => HookState::NotAttached { reason: error.to_string(), cost: hook.cost },
        };
        hooks.push(AttachedHook { role: hook.role, symbol: hook.symbol.into(), mechanism: hook.mechanism, state });
    }
    hooks.sort_by_key(|hook| hook.role as u8);
    Ok(hooks)
}

fn attach_one(object: &mut Ebpf, hook: &PlannedHook) -> Result<(), ProbeError> {
    let symbol = hook.symbol;
    verify(object, hook.program)?.attach(symbol, 0).map(|_link| ()).map_err(|error| {
        if is_refusal(&error) {
            return ProbeError::NotPrivileged { symbol };
        }
        ProbeError::Attach { symbol, module: hook.module.clone(), reason: reason(&error) }
    })
}

fn not_planned(hook: &MissingHook) -> AttachedHook {
    AttachedHook {
        role: hook.role,
        symbol: hook.tried.first().copied().unwrap_or_default().into(),
        mechanism: hook.mechanism,
        state: HookState::NotAttached { reason: hook.reason.to_string(), cost: hook.cost },
    }
}
