//! Containers of docker, by its files and by what its API answers, which are alike.

use serde::Deserialize;

use super::homes::home;
use super::key::Key;
use super::known::{Known, KubeletLabels, name};
use super::root::Root;

/// Where docker keeps its data unless it is told otherwise.
const DATA: &str = "/var/lib/docker";

/// A container in `config.v2.json` (moby, daemon/container/container.go, `Container`) and in the answer to
/// `GET /containers/ID/json` (moby, api/swagger.yaml, `ContainerInspectResponse`).
#[derive(Debug, Deserialize)]
struct Inspected {
    #[serde(rename = "ID", alias = "Id")]
    id: String,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Config")]
    config: Option<Config>,
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(rename = "Image")]
    image: Option<String>,
    #[serde(rename = "Labels")]
    labels: Option<KubeletLabels>,
}

/// What docker's files say of a container.
pub(super) fn look(root: &Root, key: &Key) -> Option<Known> {
    let data = match key.user {
        Some(user) => format!("{}/.local/share/docker", home(root, user)?),
        None => configured(root).unwrap_or_else(|| DATA.to_owned()),
    };
    parse(&root.read(&format!("{data}/containers/{}/config.v2.json", key.id))?, key)
}

/// Where `daemon.json` tells docker to keep its data (moby, daemon/config/config.go, `data-root`, `graph` in old ones).
fn configured(root: &Root) -> Option<String> {
    #[derive(Deserialize)]
    struct Daemon {
        #[serde(rename = "data-root", alias = "graph")]
        data: Option<String>,
    }
    serde_json::from_slice::<Daemon>(&root.read("/etc/docker/daemon.json")?).ok()?.data
}

/// A container as docker describes it, if it is the one that is meant. In a pod it has the name it has there; docker's own
/// name for it is put together of that and more.
pub(super) fn parse(json: &[u8], key: &Key) -> Option<Known> {
    let Inspected { id, name: own, config } = serde_json::from_slice(json).ok()?;
    if id != key.id {
        return None;
    }
    let (image, labels) = config.map(|Config { image, labels }| (image, labels)).unwrap_or_default();
    let labels = labels.unwrap_or_default();
    let pod = labels.pod(key);
    let own = own.map(|name| name.strip_prefix('/').map(str::to_owned).unwrap_or(name));
    let called = match &pod {
        // What holds the pod's namespaces is none of its containers (cri-dockerd, core/docker_service.go).
        Some(_) => labels.container.filter(|_| labels.docker_type.as_deref() != Some("podsandbox")),
        None => own,
    };
    Some(Known { runtime: Some("docker"), name: name(called), image: name(image), pod })
}
