//! What runtimes answer to questions over their sockets.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::key::Key;
use super::known::Known;
use super::root::{Root, by_descriptor};
use super::{cri, docker, docker_api};

/// How long one runtime may take for one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long one that took longer is not asked.
const PAUSE: Duration = Duration::from_secs(60);

/// What is spoken at a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Language {
    Docker,
    Cri,
}

/// Where runtimes listen unless they are told otherwise, and whose containers they know. For each container they are tried in
/// this order.
const SOCKETS: [(&str, Language, &str); 7] = [
    ("/run/docker.sock", Language::Docker, "docker"),
    ("/run/cri-dockerd.sock", Language::Cri, "docker"),
    ("/run/containerd/containerd.sock", Language::Cri, "containerd"),
    ("/run/k3s/containerd/containerd.sock", Language::Cri, "containerd"),
    ("/var/snap/microk8s/common/run/containerd.sock", Language::Cri, "containerd"),
    ("/run/crio/crio.sock", Language::Cri, "cri-o"),
    // podman speaks docker's language (podman-system-service(1)).
    ("/run/podman/podman.sock", Language::Docker, "podman"),
];

/// Whether any socket there may be knows of a container: the node's own, and through CRI those in pods.
pub(super) fn know(key: &Key) -> bool {
    key.user.is_none() && SOCKETS.iter().any(|&(_, language, runtime)| knows(key, language, runtime))
}

fn knows(key: &Key, language: Language, runtime: &str) -> bool {
    let runtimes = match &*key.runtime {
        "cri" | "oci" => true,
        known => known == runtime,
    };
    runtimes && (language == Language::Docker || key.pod_uid.is_some())
}

/// The sockets of a node.
#[derive(Debug)]
pub(super) struct Sockets {
    root: Root,
    runtime: Runtime,
    /// Those that took too long, and until when they are not asked.
    paused: RefCell<HashMap<&'static str, Instant>>,
}

impl Sockets {
    /// # Errors
    /// There can be no event loop.
    pub(super) fn new(root: Root) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        Ok(Self { root, runtime, paused: RefCell::default() })
    }

    /// Everything that the first runtime says which knows the container.
    pub(super) fn ask(&self, key: &Key) -> Known {
        let sockets = SOCKETS.into_iter().filter(|&(_, language, runtime)| knows(key, language, runtime));
        let answers = sockets.filter_map(|(path, language, runtime)| {
            self.ask_one(path, language, key).map(|known| Known { runtime: Some(runtime), ..known })
        });
        answers.into_iter().next().unwrap_or_default()
    }

    fn ask_one(&self, path: &'static str, language: Language, key: &Key) -> Option<Known> {
        let mut paused = self.paused.borrow_mut();
        if paused.get(path).is_some_and(|&until| Instant::now() < until) {
            return None;
        }
        let socket = self.root.socket(path)?;
        let asked = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(&socket, language, key)).await });
        match asked {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                tracing::debug!("{path} does not name {}: {error}", key.id);
                None
            }
            Err(_elapsed) => {
                tracing::debug!("{path} does not answer within {PATIENCE:?} and is not asked for {PAUSE:?}");
                paused.insert(path, Instant::now() + PAUSE);
                None
            }
        }
    }
}

/// One question and its answer; `None` for one that makes no sense.
async fn ask(socket: &OwnedFd, language: Language, key: &Key) -> io::Result<Option<Known>> {
    let stream = UnixStream::connect(by_descriptor(socket)).await?;
    match language {
        Language::Docker => Ok(docker::parse(&docker_api::inspect(stream, &key.id).await?, key)),
        Language::Cri => Ok(cri::parse(&cri::status(stream, &key.id).await?, key)),
    }
}
