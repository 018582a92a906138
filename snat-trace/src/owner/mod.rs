//! Who is behind a flow: process, cgroup, container.

mod cgroup;
pub mod container;
mod diag;
mod lookup;
mod others;
mod owners;
mod process;
pub(crate) mod recorded;
mod translation;

pub use owners::Owners;
pub use recorded::Recording;

use std::borrow::Cow;

use crate::race::event::NetnsInum;

/// How an owner was found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum OwnerSource {
    /// Recorded by the kernel when the process sent.
    Socket,
    /// Found by user space after the clash, by the socket that held the flow.
    SocketLookup,
}

impl OwnerSource {
    /// Every source.
    pub const ALL: [Self; 2] = [Self::Socket, Self::SocketLookup];

    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::SocketLookup => "socket-lookup",
        }
    }
}

/// A container, as its cgroup path tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, `systemd-nspawn` or `systemd`; `cri` or `oci` where the path shows
    /// a pod's or any runtime's container and not whose.
    pub runtime: Cow<'static, str>,
    /// Its full id; for a systemd scope or service the unit's name.
    pub id: String,
}

/// The sender of a flow. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Thread id in the root pid namespace; a socket look-up cannot tell, nor can a record of several threads.
    pub tid: Option<u32>,
    /// `task_struct.comm` of the thread (socket) or of the process (socket look-up).
    pub comm: String,
    /// Network namespace of the socket.
    pub netns: Option<NetnsInum>,
    /// Id of the cgroup in the unified hierarchy.
    pub cgroup_id: Option<u64>,
    /// Path of the cgroup below the hierarchy's root, beginning with `/`.
    pub cgroup: Option<String>,
    /// The container that cgroup belongs to.
    pub container: Option<Container>,
    /// How this was found.
    pub source: OwnerSource,
}
