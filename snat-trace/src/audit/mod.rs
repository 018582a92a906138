//! What makes races likely on this node: its NAT rules and settings, read by their own tools, and judged.
//!
//! [`look`] reads the node, [`Audit::new`] judges what was read, as a pure function. Nothing is guessed: what a parser does
//! not know is unknown, and nothing is said of it, but that it was not read.

mod census;
mod findings;
mod fixes;
mod iptables;
mod nft;
mod node;
mod owners;
mod reach;
mod report;
mod rules;
mod settings;
mod shown;
mod spans;

pub use self::findings::{Finding, Kind, Severity};
pub use self::node::{AuditError, Look, look, look_at};
pub use self::report::Audit;
pub use self::rules::{Choice, Family, Target, Tool};
pub use self::shown::{RuleShown, Translated};

#[cfg(test)]
pub(crate) mod tests;
