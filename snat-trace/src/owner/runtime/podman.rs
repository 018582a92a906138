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
        None => configured(root).unwrap_or_else(|| STORAGE.to_owned()),
    };
    let lists =
        DRIVERS.into_iter().flat_map(|driver| LISTS.map(|list| format!("{storage}/{driver}-containers/{list}")));
    lists.into_iter().find_map(|path| parse(&root.read(&path)?, key))
}

/// Where storage is told to be (containers-storage.conf(5)): by the administrator's file, and by the distribution's where there
/// is none. What users write into theirs is not gone by: it could lead to others' containers.
fn configured(root: &Root) -> Option<String> {
    let files = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];
    graphroot(&String::from_utf8_lossy(&files.into_iter().find_map(|file| root.read(file))?))
}

/// The string `graphroot` of the table `storage`, in TOML; one with escapes in it is no path that anybody has.
fn graphroot(toml: &str) -> Option<String> {
    let mut lines = toml.lines().map(str::trim).skip_while(|line| table(line) != Some("storage")).skip(1);
    let value = lines.by_ref().take_while(|line| table(line).is_none()).find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "graphroot").then(|| value.trim())
    })?;
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let (path, _comment) = value.get(1..)?.split_once(quote)?;
    (path.starts_with('/') && !path.contains('\\')).then(|| path.to_owned())
}

/// The name of the table that begins with a line.
fn table(line: &str) -> Option<&str> {
    Some(line.strip_prefix('[')?.split_once(']')?.0.trim())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_configured_place_is_read_as_toml_has_it() {
        for (toml, expected) in [
            ("[storage]\ndriver = \"overlay\"\n graphroot = \"/srv/c\" # here\n[storage.options]\n", Some("/srv/c")),
            ("# [storage]\n[ storage ]\ngraphroot='/srv/a b'", Some("/srv/a b")),
            ("[storage]\n# graphroot = \"/srv/c\"\nrunroot = \"/run/c\"\n", None),
            ("[storage.options]\ngraphroot = \"/srv/c\"\n", None),
            ("[storage]\n[storage.options]\ngraphroot = \"/srv/c\"\n", None),
            ("[storage]\ngraphroot = \"/srv/\\u0041\"\n", None),
            ("[storage]\ngraphroot = \"$HOME/c\"\n", None),
            ("[storage]\ngraphroot = \"/srv/c\n", None),
            ("graphroot = \"/srv/c\"\n", None),
            ("", None),
        ] {
            assert_eq!(graphroot(toml).as_deref(), expected, "{toml}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(\\[storage\\]|graphroot|=|\"|'|/|\n| |\\PC){0,40}") {
            let _ = graphroot(&text);
        }
    }
}
