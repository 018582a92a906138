//! What a run of the tracer is: where, since when, with which hooks.

use crate::kernel::{KernelFacts, Request, Role};
use crate::probe::{AttachedHook, HookState};
use crate::race::time::{KernelTime, WallClock};

/// The head of every output.
#[derive(Clone, Debug)]
pub struct Session {
    /// Name and version of what traced.
    pub tool: String,
    /// Turns kernel times of this run into wall times.
    pub clock: WallClock,
    /// When the last hook was attached.
    pub started: KernelTime,
    /// As `uname -r`.
    pub kernel: String,
    /// As `uname -m`.
    pub machine: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Option<String>,
    /// What was asked for.
    pub request: Request,
    /// What came of it.
    pub hooks: Vec<AttachedHook>,
}

impl Session {
    /// A session that starts now.
    #[must_use]
    pub fn start(facts: &KernelFacts, request: Request, hooks: Vec<AttachedHook>) -> Self {
        Self {
            tool: concat!("snat-trace ", env!("CARGO_PKG_VERSION")).to_owned(),
            clock: WallClock::now(),
            started: KernelTime::now(),
            kernel: facts.release.clone(),
            machine: facts.machine.clone(),
            boot_id: facts.boot_id.clone(),
            request,
            hooks,
        }
    }

    /// Whether what follows this head is of the same run as what followed `other`: of the files of a rotation each has its head.
    #[must_use]
    pub fn is_same_run(&self, other: &Self) -> bool {
        self.started == other.started && self.boot_id == other.boot_id
    }

    /// Roles of the hooks that run.
    pub fn attached(&self) -> impl Iterator<Item = Role> {
        self.hooks.iter().filter(|hook| hook.state == HookState::Attached).map(|hook| hook.role)
    }
}
