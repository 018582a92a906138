//! The other side of the account: conntrack statistics of each network namespace.

pub mod account;
pub mod accounts;
pub(crate) mod ctnetlink;
pub mod figures;
pub mod netlink;
pub mod netns;
pub mod ports;
pub mod procfs;
pub mod window;
pub(crate) mod wire;
