//! Containers of containerd and CRI-O, by the annotations in the bundles they hand to runc.

use serde::Deserialize;

use super::key::Key;
use super::known::{Known, name};
use super::root::Root;
use crate::owner::Pod;

/// State directories of containerd: its own, those of k3s and rke2, and of microk8s.
const CONTAINERD: [&str; 3] = ["/run/containerd", "/run/k3s/containerd", "/var/snap/microk8s/common/run/containerd"];
/// Where CRI-O keeps bundles.
const CRIO: &str = "/run/containers/storage/overlay-containers";

/// `config.json` of a bundle (opencontainers/runtime-spec, config.md).
#[derive(Debug, Deserialize)]
struct Bundle {
    annotations: Option<Annotations>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Annotations {
    /// `container` or `sandbox` (containerd, internal/cri/annotations/annotations.go; so are the next).
    #[serde(rename = "io.kubernetes.cri.container-type")]
    kind: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    container: Option<String>,
    #[serde(rename = "io.kubernetes.cri.image-name")]
    image: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    pod: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    namespace: Option<String>,
    /// Not in older versions.
    #[serde(rename = "io.kubernetes.cri.sandbox-uid")]
    uid: Option<String>,
    /// nerdctl, pkg/labels/labels.go.
    #[serde(rename = "nerdctl/name")]
    nerdctl: Option<String>,
    /// As that of containerd (cri-o, internal/annotations; so is the next).
    #[serde(rename = "io.kubernetes.cri-o.ContainerType")]
    crio_kind: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.ImageName")]
    crio_image: Option<String>,
    /// The kubelet's labels, which CRI-O makes annotations of (pkg/kubelet/types/labels.go).
    #[serde(rename = "io.kubernetes.container.name")]
    crio_container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    crio_pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    crio_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.pod.uid")]
    crio_uid: Option<String>,
}

/// What containerd's bundle of a container says.
pub(super) fn containerd(root: &Root, key: &Key) -> Option<Known> {
    let mut found = CONTAINERD.into_iter().flat_map(|state| {
        let tasks = format!("{state}/io.containerd.runtime.v2.task");
        let namespaces = if key.is_unique() { root.names(&tasks) } else { vec!["default".to_owned()] };
        namespaces.into_iter().map(move |namespace| format!("{tasks}/{namespace}/{}/config.json", key.id))
    });
    let bundle = found.find_map(|path| root.read(&path))?;
    // An id that somebody made up can be there twice.
    if !key.is_unique() && found.any(|path| root.read(&path).is_some()) {
        return None;
    }
    let Annotations { kind, container, image, pod, namespace, uid, nerdctl, .. } = annotations(&bundle)?;
    let pod = pod_of(key, pod, namespace, uid.or_else(|| key.pod_uid.clone()));
    let own = container.filter(|_| kind.as_deref() == Some("container"));
    let called = if pod.is_some() { own } else { nerdctl };
    Some(Known { runtime: Some("containerd"), name: name(called), image: name(image), pod })
}

/// What CRI-O's bundle of a container says.
pub(super) fn crio(root: &Root, key: &Key) -> Option<Known> {
    let bundle = root.read(&format!("{CRIO}/{}/userdata/config.json", key.id))?;
    let Annotations { crio_kind, crio_image, crio_container, crio_pod, crio_namespace, crio_uid, .. } =
        annotations(&bundle)?;
    let kind = crio_kind?;
    let pod = pod_of(key, crio_pod, crio_namespace, crio_uid);
    let called = crio_container.filter(|_| kind == "container" && pod.is_some());
    Some(Known { runtime: Some("cri-o"), name: name(called), image: name(crio_image), pod })
}

pub(super) fn annotations(bundle: &[u8]) -> Option<Annotations> {
    serde_json::from_slice::<Bundle>(bundle).ok()?.annotations
}

/// The pod that annotations name, unless it is another than that in whose cgroup the container is.
fn pod_of(key: &Key, pod: Option<String>, namespace: Option<String>, uid: Option<String>) -> Option<Pod> {
    let uid = name(uid).filter(|uid| key.pod_uid.as_ref().is_none_or(|expected| expected == uid))?;
    Some(Pod { namespace: name(namespace)?, name: name(pod)?, uid })
}
