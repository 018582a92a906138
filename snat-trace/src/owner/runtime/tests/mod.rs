//! A node's files as runtimes lay them out, and sockets that answer as they should and otherwise.

mod files;
mod real;
mod servers;
mod waiting;
mod wire;

use std::path::{Path, PathBuf};

use super::*;
use crate::owner::container::container;
use crate::owner::{Owner, OwnerSource, Program};

/// What `tests/data/runtimes/README.md` tells of.
pub(super) fn node() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/runtimes/node")
}

/// A sender in a cgroup, as it is before anything but the path is known.
pub(super) fn owner(cgroup: &str) -> Owner {
    Owner {
        pid: 1,
        tid: None,
        comm: "curl".to_owned(),
        netns: None,
        cgroup_id: None,
        cgroup: Some(cgroup.to_owned()),
        container: container(cgroup),
        pod: None,
        program: Program::default(),
        source: OwnerSource::Socket,
    }
}

pub(super) fn key(cgroup: &str) -> Key {
    Key::of(cgroup).unwrap().0
}

/// The owner with all that `names` knows in time.
pub(super) fn named_in_time(names: &mut Names, cgroup: &str) -> Owner {
    let mut owner = owner(cgroup);
    names.complete(owner.place().into_iter(), &mut { PATIENCE });
    owner
}

/// The owner with all that `names` comes to know, however busy this machine is.
pub(super) fn named(names: &mut Names, cgroup: &str) -> Owner {
    let _in_time = named_in_time(names, cgroup);
    settle(names);
    named_in_time(names, cgroup)
}

/// Waits until everything that was asked is answered.
pub(super) fn settle(names: &mut Names) {
    while names.remembered.values().any(|entry| matches!(entry.state, State::Asked(_))) {
        let answer = names.answers.recv().unwrap();
        names.take(answer);
    }
}

/// Runtime, name and image of the container, and the pod, as far as they are known.
pub(super) fn told(owner: &Owner) -> [Option<String>; 4] {
    let container = owner.container.as_ref().unwrap();
    let pod = owner.pod.as_ref().map(|pod| format!("{}/{} {}", pod.namespace, pod.name, pod.uid));
    [Some(container.runtime.clone().into_owned()), container.name.clone(), container.image.clone(), pod]
}
