//! Loading, attaching, and reading what the BPF programs say.

mod attach;
mod error;
mod losses;
mod missed;
mod object;
mod senders;
mod tracer;

pub use attach::{AttachedHook, HookState};
pub use error::ProbeError;
pub use losses::KernelCounts;
pub use object::{Loaded, OBJECT, Sizes, verified_instructions};
pub use senders::Senders;
pub use tracer::Tracer;
