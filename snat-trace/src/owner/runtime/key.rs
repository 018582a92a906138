//! What the files and sockets of a node are asked about.

use std::borrow::Cow;

use crate::owner::container::{container, outermost};

/// A container of this node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// As in [`Container`](crate::owner::Container).
    pub(super) runtime: Cow<'static, str>,
    pub(super) id: String,
    /// The pod in whose cgroup it is.
    pub(super) pod_uid: Option<String>,
    /// Whose manager its cgroup is below. What is there can have any name: nothing but what this user has says more.
    pub(super) user: Option<u32>,
}

impl Key {
    /// The container of this node that a cgroup is in, and whether that is what the path names: it may be of another
    /// container inside, of which this node knows nothing.
    pub(super) fn of(path: &str) -> Option<(Self, bool)> {
        let (outermost, pod_uid) = outermost(path)?;
        let user = user_of(path);
        let itself = container(path).as_ref() == Some(&outermost);
        let pod_uid = pod_uid.filter(|_| user.is_none());
        Some((Self { runtime: outermost.runtime, id: outermost.id, pod_uid, user }, itself))
    }

    /// Whether a runtime made the id, so that no other container has it.
    pub(super) fn is_unique(&self) -> bool {
        self.id.len() == 64 && self.id.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// The user in `/user.slice/user-UID.slice`.
fn user_of(path: &str) -> Option<u32> {
    let slice = path.strip_prefix("/user.slice/")?.split('/').next()?;
    slice.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
    const POD: &str = "0f3ae9d2_1c55_4f6b_9f0e_2a7c1f1d9b11";

    #[test]
    fn a_user_has_no_pods_of_the_node() {
        let kubepods = format!("kubepods.slice/kubepods-pod{POD}.slice/cri-containerd-{ID}.scope");
        let (key, itself) = Key::of(&format!("/{kubepods}")).unwrap();
        assert_eq!((key.user, key.pod_uid, itself), (None, Some(POD.replace('_', "-")), true));
        let (key, _) = Key::of(&format!("/user.slice/user-1000.slice/user@1000.service/{kubepods}")).unwrap();
        assert_eq!((key.user, key.pod_uid), (Some(1000), None));
    }

    #[test]
    fn what_is_inside_a_container_is_not_the_nodes() {
        let inner = ID.replace('5', "6");
        let (key, itself) = Key::of(&format!("/docker/{ID}/docker/{inner}")).unwrap();
        assert_eq!((key.id.as_str(), itself), (ID, false));
        let (_, itself) = Key::of(&format!("/docker/{ID}/system.slice/nginx.service")).unwrap();
        assert!(itself);
        assert_eq!(Key::of("/system.slice/nginx.service"), None);
    }

    #[test]
    fn an_id_is_unique_where_a_runtime_made_it() {
        for (id, unique) in [(ID, true), ("web-1", false), (&"x".repeat(64), false), (&ID[1..], false)] {
            assert_eq!(Key::of(&format!("/default/{id}")).unwrap().0.is_unique(), unique, "{id}");
        }
    }
}
