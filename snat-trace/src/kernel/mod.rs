//! What this kernel has and which hooks that allows.
//!
//! [`KernelFacts`] are gathered from files below a root directory, [`plan()`] is a pure function of them, and
//! [`Report`] says the outcome to a user. Symbols and BTF are asked, kernel versions never.

mod btf;
mod capability;
mod cgroups;
mod doctor;
mod facts;
#[cfg(test)]
mod fixture;
mod hooks;
mod modules;
mod plan;
mod symbols;
mod uevents;

pub use btf::{Offsets, OffsetsError};
pub use capability::{Capabilities, Capability, Missing};
pub use cgroups::{Hierarchies, Legacy, LegacyController};
pub use doctor::Report;
pub use facts::{FactsError, KernelFacts, Kprobes, Lockdown, Presence};
pub(crate) use hooks::{CLASH_PROGRAM, PROCESS_PROGRAM};
pub use hooks::{Detail, Mechanism, Request, Role, programs};
pub use modules::ModuleWatch;
pub use plan::{CannotTrace, MissingHook, MissingReason, Plan, PlannedHook, plan};
pub use symbols::{Location, Symbols};
pub use uevents::{ModuleNews, News};
