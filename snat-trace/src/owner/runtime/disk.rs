//! What is on the node's disks about a container.

use super::key::Key;
use super::known::Known;
use super::root::Root;
use super::{docker, kubelet, machine, oci, podman};

/// Everything that files say of a container. May take as long as the disk does.
pub(super) fn look(root: &Root, key: &Key) -> Known {
    let by_runtime = match (&*key.runtime, key.user) {
        ("docker", _) => docker::look(root, key),
        ("podman", _) => podman::look(root, key),
        ("containerd", None) => oci::containerd(root, key),
        ("cri-o", None) => oci::crio(root, key),
        ("systemd-nspawn", None) => machine::look(root, key),
        ("cri" | "oci", None) => {
            [oci::containerd, oci::crio, docker::look].into_iter().find_map(|look| look(root, key))
        }
        _ => None,
    };
    let known = by_runtime.unwrap_or_default();
    match kubelet::look(root, key) {
        Some(by_kubelet) => known.and(by_kubelet),
        None => known,
    }
}
