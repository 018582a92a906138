//! Who is behind a flow: process, cgroup, container.

pub(crate) mod behind;
mod cgroup;
pub mod container;
mod diag;
#[cfg(test)]
mod groups;
mod links;
mod lookup;
mod others;
mod owners;
mod process;
mod program;
pub(crate) mod recorded;
mod runtime;
mod translation;

pub use behind::Behind;
pub use owners::{Owners, Sources, Wanted};
pub use program::{CommandLine, Program};
#[cfg(test)]
pub(crate) use program::{StartClock, tests::worker};

use std::borrow::Cow;

use crate::race::event::NetnsInum;

/// How an owner was found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum OwnerSource {
    /// Recorded by the kernel when the process sent.
    Socket,
    /// Recorded by the kernel when the process connected the socket, just before the packet was on its way; the socket was
    /// gone when it was looked for.
    SocketConnect,
    /// Found by user space after the clash, by the socket that held the flow.
    SocketLookup,
}

impl OwnerSource {
    /// Every source.
    pub const ALL: [Self; 3] = [Self::Socket, Self::SocketConnect, Self::SocketLookup];

    /// Its name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::SocketConnect => "socket-connect",
            Self::SocketLookup => "socket-lookup",
        }
    }
}

/// A container, as its cgroup path tells, named as its runtime does. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, `systemd-nspawn` or `systemd`; `cri` or `oci` where it shows that this
    /// is a pod's or any runtime's container and not whose.
    pub runtime: Cow<'static, str>,
    /// Its full id; for a systemd scope or service the unit's name.
    pub id: String,
    /// In a pod the container's name there, else the name its runtime or user gave it.
    pub name: Option<String>,
    /// The image it was made of, as whoever made it called that.
    pub image: Option<String>,
}

impl Container {
    /// What the path alone tells.
    pub(crate) fn of(runtime: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        Self { runtime: runtime.into(), id: id.into(), name: None, image: None }
    }
}

/// A Kubernetes pod. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid as the kubelet has it: of a static pod the hash of its manifest, not the uid of its mirror in the API.
    pub uid: String,
}

/// The sender of a flow. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Thread id in the root pid namespace; neither a socket look-up can tell nor who connected, nor a record of several
    /// threads.
    pub tid: Option<u32>,
    /// `task_struct.comm` of the thread (socket, and who connected it) or of the process (socket look-up).
    pub comm: String,
    /// Network namespace of the socket.
    pub netns: Option<NetnsInum>,
    /// Id of the cgroup in the unified hierarchy.
    pub cgroup_id: Option<u64>,
    /// Path of the cgroup below the hierarchy's root, beginning with `/`.
    pub cgroup: Option<String>,
    /// The container that cgroup belongs to.
    pub container: Option<Container>,
    /// The pod that container belongs to, or the one around it.
    pub pod: Option<Pod>,
    /// What it runs and as whom.
    pub program: Program,
    /// How this was found.
    pub source: OwnerSource,
}

/// A cgroup's path, and what is to be found out of it.
#[derive(Debug)]
struct Place<'a> {
    cgroup: &'a str,
    /// As the path tells, to be named.
    container: &'a mut Option<Container>,
    pod: &'a mut Option<Pod>,
}

/// Characters of a hexadecimal id that tell a container from others, as runtimes print them.
const SHORT_ID: usize = 12;

impl Owner {
    /// What its cgroup tells, if that is known.
    fn place(&mut self) -> Option<Place<'_>> {
        let Self { cgroup, container, pod, .. } = self;
        Some(Place { cgroup: cgroup.as_deref()?, container, pod })
    }

    /// The best short name of what runs there: `namespace/name` of the pod, else the container's name or short id, the
    /// unit, the innermost cgroup or the process. Not escaped.
    #[must_use]
    pub fn workload(&self) -> Cow<'_, str> {
        workload(self.container.as_ref(), self.pod.as_ref()).unwrap_or_else(|| {
            let innermost = self.cgroup.as_deref().and_then(|path| path.rsplit('/').find(|part| !part.is_empty()));
            innermost.unwrap_or(&self.comm).into()
        })
    }
}

/// The best short name of a pod or container: `namespace/name` of the pod, else the container's name or short id, or the unit.
pub(crate) fn workload<'a>(container: Option<&'a Container>, pod: Option<&'a Pod>) -> Option<Cow<'a, str>> {
    if let Some(Pod { namespace, name, uid: _ }) = pod {
        return Some(format!("{namespace}/{name}").into());
    }
    container.map(|Container { id, name, .. }| name.as_deref().unwrap_or_else(|| short_id(id)).into())
}

/// The beginning of an id that a runtime made; any other name in full.
fn short_id(id: &str) -> &str {
    let made = id.len() > SHORT_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    id.get(..SHORT_ID).filter(|_| made).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_the_best_name_there_is() {
        let id = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
        let mut owner = Owner {
            pid: 1,
            tid: None,
            comm: "curl".to_owned(),
            netns: None,
            cgroup_id: None,
            cgroup: None,
            container: None,
            pod: None,
            program: Program::default(),
            source: OwnerSource::Socket,
        };
        assert_eq!(owner.workload(), "curl");
        owner.cgroup = Some("/".to_owned());
        assert_eq!(owner.workload(), "curl");
        owner.cgroup = Some("/lab/pod-1".to_owned());
        assert_eq!(owner.workload(), "pod-1");
        owner.container = Some(Container::of("systemd", "chronyd.service"));
        assert_eq!(owner.workload(), "chronyd.service");
        owner.container = Some(Container::of("docker", id));
        assert_eq!(owner.workload(), "5e3fa1c0d2b4");
        owner.container = Some(Container { name: Some("web".to_owned()), ..Container::of("docker", id) });
        assert_eq!(owner.workload(), "web");
        let [namespace, name, uid] = ["shop", "cart-x2k4q", "0f3ae9d2"].map(str::to_owned);
        owner.pod = Some(Pod { namespace, name, uid });
        assert_eq!(owner.workload(), "shop/cart-x2k4q");
    }

    #[test]
    fn only_an_id_that_a_runtime_made_is_cut() {
        for (id, expected) in [
            ("5e3fa1c0d2b44e6f", "5e3fa1c0d2b4"),
            ("5e3fa1c0d2b4", "5e3fa1c0d2b4"),
            ("web-1-of-a-long-name", "web-1-of-a-long-name"),
            ("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"),
            ("", ""),
        ] {
            assert_eq!(short_id(id), expected);
        }
    }
}
