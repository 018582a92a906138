//! What is known of a container.

use serde::Deserialize;

use super::key::Key;
use crate::owner::Pod;

/// Bytes of the longest text that is taken for a name.
const LONGEST_NAME: usize = 4096;

/// What one source, or all of them, know of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Known {
    /// Whose it is, where its cgroup does not show that.
    pub(super) runtime: Option<&'static str>,
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) pod: Option<Pod>,
}

impl Known {
    /// What both say, and either where the other says nothing: where they differ, neither is believed.
    pub(super) fn and(self, other: Self) -> Self {
        fn agreed<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => (one == other).then_some(one),
                (one, other) => one.or(other),
            }
        }
        let (runtime, image) = (agreed(self.runtime, other.runtime), agreed(self.image, other.image));
        Self { runtime, name: agreed(self.name, other.name), image, pod: agreed(self.pod, other.pod) }
    }

    /// The same, and what `later` knows besides.
    pub(super) fn or(self, later: Self) -> Self {
        let Self { runtime, name, image, pod } = self;
        Self {
            runtime: runtime.or(later.runtime),
            name: name.or(later.name),
            image: image.or(later.image),
            pod: pod.or(later.pod),
        }
    }

    /// Whether there is nothing left to ask.
    pub(super) fn is_all(&self, key: &Key) -> bool {
        self.name.is_some() && self.image.is_some() && (self.pod.is_some() || key.pod_uid.is_none())
    }
}

/// A name from outside, if it can be one.
pub(super) fn name(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text.len() <= LONGEST_NAME)
}

/// What the kubelet attaches to each container it makes (pkg/kubelet/types/labels.go).
#[derive(Debug, Default, Deserialize)]
pub(super) struct KubeletLabels {
    #[serde(rename = "io.kubernetes.container.name")]
    pub(super) container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    pub(super) pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    pub(super) namespace: Option<String>,
    #[serde(rename = "io.kubernetes.pod.uid")]
    pub(super) uid: Option<String>,
    /// `container` or `podsandbox`, where docker is the runtime.
    #[serde(rename = "io.kubernetes.docker.type")]
    pub(super) docker_type: Option<String>,
}

impl KubeletLabels {
    /// The pod, if it is that in whose cgroup the container is: whoever may start a container can give it labels.
    pub(super) fn pod(&self, key: &Key) -> Option<Pod> {
        let Self { pod, namespace, uid, container: _, docker_type: _ } = self;
        let uid = uid.clone().filter(|uid| key.pod_uid.as_ref() == Some(uid))?;
        Some(Pod { namespace: name(namespace.clone())?, name: name(pod.clone())?, uid })
    }
}
