//! Containers of podman, by the lists in its storage.

use serde::Deserialize;

use super::homes::home;
use super::key::Key;
use super::known::{Known, name};
use super::root::Root;

/// Where storage is unless it is told otherwise: root's, and a user's below the home.
const STORAGE: &str = "/var/lib/containers/storage";
const USERS_STORAGE: &str = ".local/share/containers/storage";
/// The drivers that podman chooses by itself.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];
/// A volatile container (`--rm`) is in a list of its own.
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// An entry of a list (containers/storage, containers.go, `Container`).
#[derive(Debug, Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    metadata: Option<String>,
}

/// What podman has storage keep for it (containers/podman, libpod/storage.go, `StorageContainerMetadata`).
#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(rename = "image-name")]
    image: Option<String>,
}

/// What podman's storage says of a container.
pub(super) fn look(root: &Root, key: &Key) -> Option<Known> {
    let storage = match key.user {
        Some(user) => format!("{}/{USERS_STORAGE}", home(root, user)?),
        None => STORAGE.to_owned(),
    };
    let lists =
        DRIVERS.into_iter().flat_map(|driver| LISTS.map(|list| format!("{storage}/{driver}-containers/{list}")));
    lists.into_iter().find_map(|path| parse(&root.read(&path)?, key))
}

/// The container that is meant, in a list of all.
pub(super) fn parse(json: &[u8], key: &Key) -> Option<Known> {
    let stored = serde_json::from_slice::<Vec<Stored>>(json).ok()?.into_iter().find(|stored| stored.id == key.id)?;
    let metadata = stored.metadata.and_then(|metadata| serde_json::from_str::<Metadata>(&metadata).ok());
    Some(Known {
        runtime: Some("podman"),
        name: name(stored.names.into_iter().next()),
        image: name(metadata.and_then(|metadata| metadata.image)),
        pod: None,
    })
}
