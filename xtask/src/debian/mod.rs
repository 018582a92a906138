//! Debian: its packages, its versions, and where this machine gets them from.

pub(crate) mod archive;
pub(crate) mod install;
pub(crate) mod sources;
pub(crate) mod version;
