//! Carrying out a plan, hook by hook.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::mpsc;
use std::thread;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{KProbe, Program};

use super::error::{ProbeError, is_refusal, reason};
use super::object::verify;
use crate::kernel::{Detail, Mechanism, MissingHook, PROCESS_PROGRAM, Plan, PlannedHook, Role};

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

/// What each program that runs is for, by the kernel's id of it.
pub(super) type Programs = HashMap<u32, Role>;

/// Verifies and attaches every hook of the plan, the clash hook last, so that what it joins is there from its first call on.
/// While one is attached the next is verified, for which the kernel takes as long: attaching two at once it does not.
///
/// A hook that cannot be attached is reported in the result; only the clash hook is fatal.
pub(super) fn attach(
    object: &mut Ebpf,
    continuations: &mut ProgramArray<MapData>,
    plan: &Plan,
) -> Result<(Vec<AttachedHook>, Programs), ProbeError> {
    let (clash, others): (Vec<_>, Vec<_>) = plan.hooks.iter().partition(|hook| hook.role == Role::Clash);
    let mut programs = Programs::new();
    let mut hooks: Vec<AttachedHook> = plan.missing.iter().map(not_planned).collect();
    if plan.request.detail == Detail::Full
        && let Err(error) = set_continuation(continuations, object.program_mut(PROCESS_PROGRAM))
    {
        tracing::warn!("what senders run is known of those that are still there only: {error}");
    }
    let mut by_name: HashMap<&str, &mut Program> = object.programs_mut().collect();
    thread::scope(|scope| {
        let (sender, verified) = mpsc::channel();
        let verify_all = move || {
            for hook in others.into_iter().chain(clash) {
                // Nobody waits for it where attaching has failed.
                let _ = sender.send((hook, verify(hook.program, by_name.remove(hook.program))));
            }
        };
        thread::Builder::new().spawn_scoped(scope, verify_all).map_err(ProbeError::Thread)?;
        for (hook, program) in verified {
            let state = match program.and_then(|program| attach_one(program, hook)) {
                Ok(id) => {
                    programs.insert(id, hook.role);
                    HookState::Attached
                }
                Err(error) if hook.role == Role::Clash => return Err(error),
                Err(error) => HookState::NotAttached { reason: error.to_string(), cost: hook.cost },
            };
            hooks.push(AttachedHook { role: hook.role, symbol: hook.symbol.into(), mechanism: hook.mechanism, state });
        }
        Ok(())
    })?;
    hooks.sort_by_key(|hook| hook.role as u8);
    Ok((hooks, programs))
}

/// Loads the program that those of senders go on with.
fn set_continuation(map: &mut ProgramArray<MapData>, program: Option<&mut Program>) -> Result<(), ProbeError> {
    let name = PROCESS_PROGRAM;
    let loaded = verify(name, program)?.fd();
    let loaded = loaded.map_err(|error| ProbeError::Refused { program: name, reason: reason(&error) })?;
    map.set(0, loaded, 0).map_err(|error| ProbeError::Map { name: "CONTINUATIONS", error: Box::new(error) })
}

/// Gives the kernel's id of the program.
fn attach_one(program: &mut KProbe, hook: &PlannedHook) -> Result<u32, ProbeError> {
    let symbol = hook.symbol;
    let attached = program.attach(symbol, 0).and_then(|_link| program.info());
    attached.map(|info| info.id()).map_err(|error| {
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
