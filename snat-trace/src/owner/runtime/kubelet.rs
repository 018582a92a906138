//! Pods, by the directories in which the kubelet has their logs.

use super::key::Key;
use super::known::{Known, name};
use super::root::Root;
use crate::owner::Pod;

/// A directory `NAMESPACE_NAME_UID` for each pod, with one for each container
/// (pkg/kubelet/kuberuntime/helpers.go, `BuildPodLogsDirectory`).
const PODS: &str = "/var/log/pods";
/// A link `NAME_NAMESPACE_CONTAINER-ID.log` to the log of each container, in its pod's directory
/// (pkg/kubelet/kuberuntime/legacy.go, `logSymlink`).
const CONTAINERS: &str = "/var/log/containers";

/// What the kubelet's directories say of a pod's container.
pub(super) fn look(root: &Root, key: &Key) -> Option<Known> {
    let uid = key.pod_uid.as_ref()?;
    let mut pods = root.names(PODS).into_iter().filter_map(|directory| pod(&directory)).filter(|pod| pod.uid == *uid);
    // A uid is one pod's.
    let pod = pods.next().filter(|_| pods.next().is_none());
    let by_pod = Known { pod, ..Known::default() };
    Some(match container(root, key) {
        Some(by_container) => by_pod.and(by_container),
        None => by_pod,
    })
}

/// The pod whose directory this is. None of the three has an underscore.
fn pod(directory: &str) -> Option<Pod> {
    let mut words = directory.split('_');
    let mut word = || name(words.next().map(str::to_owned));
    let (namespace, pod, uid) = (word()?, word()?, word()?);
    words.next().is_none().then_some(Pod { namespace, name: pod, uid })
}

/// The container whose id a link has. The link's own name and the place it leads to tell the same, or nothing is told.
fn container(root: &Root, key: &Key) -> Option<Known> {
    let end = format!("-{}.log", key.id);
    let link = root.names(CONTAINERS).into_iter().find(|name| name.ends_with(&end))?;
    let target = root.link(&format!("{CONTAINERS}/{link}"))?;
    let mut backwards = target.rsplit('/').skip(1);
    let (container, pod) = (backwards.next()?, backwards.next().and_then(pod)?);
    let expected = format!("{}_{}_{container}{end}", pod.name, pod.namespace);
    (link == expected && key.pod_uid.as_ref() == Some(&pod.uid)).then(|| Known {
        name: name(Some(container.to_owned())),
        pod: Some(pod),
        ..Known::default()
    })
}
