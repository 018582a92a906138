//! Containers and pods by name: senders in cgroups as runtimes and the kubelet name them, with the files these leave.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::stage::Expected::{Absent, Named};
use super::stage::{Sender, Stage, Workload};
use super::{NODE, P0, P1};
use crate::node::command;
use crate::output::Running;
use crate::scenario::{Row, Skip};

/// Where cgroup2 is, whole.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What is made on this node. Where one of them is there already, it is somebody's.
const MADE: [&str; 4] = ["/run/containerd", "/var/lib/docker", "/var/log/containers", "/var/log/pods"];
/// Their groups' outermost directories.
const SLICES: [&str; 3] = ["kubepods.slice", "kubepods", "docker"];

const CART: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";
const PROXY: &str = "91c2d0e1-f2a3-44c5-96e7-f8091a2b3c4d";
const EXPORTER: &str = "7b1e0d4c-2f3a-4e5b-8c6d-9a0b1c2d3e4f";
/// Of a manifest: the pod is static.
const ETCD: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f4051";

/// Every sender's container and pod are told right, and from the second time on they are told: pods with addresses of their own, two that have the node's, a static
/// pod whose runtime is not known, an init container, docker's containers, and one that left no files.
pub(super) fn pods(detail: &str) -> Result<Row> {
    told(|| Stage::new(detail))
}

/// The same from a container that has the node's processes and none of its files.
pub(super) fn from_a_container() -> Result<Row> {
    let inner = Inner::new()?;
    told(|| {
        Stage::watched_by("full", |arguments| {
            Running::by(Command::new("chroot").arg(&inner.0).arg(INNER_TOOL).args(arguments))
        })
    })
}

/// A skip where what [`Node`] would make is another's here.
fn unoccupied() -> Result<()> {
    match MADE.into_iter().find(|path| Path::new(path).exists()) {
        Some(there) => Err(Skip::because(format!("there is {there} here"))),
        None => Ok(()),
    }
}

fn told(stage: impl FnOnce() -> Result<Stage>) -> Result<Row> {
    unoccupied()?;
    let node = Node;
    let (app, init) =
        (node.containerd(CART, "shop", "cart-x2k4q", "app")?, node.containerd(CART, "shop", "cart-x2k4q", "init")?);
    let proxy = node.containerd(PROXY, "kube-system", "kube-proxy-9w2hj", "kube-proxy")?;
    let exporter = node.containerd(EXPORTER, "monitoring", "node-exporter-6ndwh", "exporter")?;
    let etcd = node.of_unknown_runtime(ETCD, "kube-system", "etcd-node-1", "etcd")?;
    let (web, nameless) = (node.docker(1, Some("shop-web-1"))?, node.docker(2, None)?);
    let mut stage = stage()?;
    let pod = |name, address| move |workload| (name, address, workload);
    let (p0, p1, host) = (pod("p0", P0), pod("p1", P1), pod("n", NODE));
    let pairs = [
        (p0(&app), p1(&etcd)),
        (p1(&web), p0(&init)),
        (p0(&app), p1(&nameless)),
        // Pods with one address, the node's: the socket decides.
        (host(&proxy), host(&exporter)),
        (host(&exporter), host(&proxy)),
        (p0(&etcd), host(&proxy)),
    ];
    for (socket, seen) in [("udp", false), ("udp", true), ("tcp", true)] {
        for (winner, loser) in pairs {
            let to = stage.outside();
            for (pod, address, workload) in [winner, loser] {
                stage.workload = Some(Workload { seen, ..Workload::clone(workload) });
                let from = SocketAddr::new(IpAddr::clone(&address), stage.port());
                stage.send(&Sender { pod, way: "plain", socket, from, to, seen_as: from, expected: Named })?;
            }
            stage.races += 1;
        }
        stage.settle()?;
    }
    stage.finish()
}

/// Senders that no hook has seen, and that are gone before they are looked for: of their pods, whose namespaces are still there,
/// others are known.
pub(super) fn gone() -> Result<Row> {
    unoccupied()?;
    let node = Node;
    let pods = [
        ("p0", P0, node.containerd(CART, "shop", "cart-x2k4q", "app")?),
        ("p1", P1, node.containerd(PROXY, "kube-system", "coredns-7db6d8", "coredns")?),
    ];
    let mut stage = Stage::new("minimal")?;
    for (pod, address, workload) in &pods {
        stage.workload = Some(workload.clone());
        let (from, to) = (SocketAddr::new(*address, stage.port()), stage.outside());
        stage.hold(&Sender { pod, way: "plain", socket: "udp", from, to, seen_as: from, expected: Named })?;
    }
    for round in 0..2 {
        stage.pause()?;
        let to = stage.outside();
        for (pod, address, workload) in &pods {
            stage.workload = Some(workload.clone());
            let from = SocketAddr::new(*address, stage.port());
            stage.send(&Sender { pod, way: "exit", socket: "udp", from, to, seen_as: from, expected: Absent })?;
        }
        stage.races += 1;
        stage.bury(2)?;
        stage.resume()?;
        stage.settle()?;
        // Names that come too late for the first event are known for the next.
        stage.placed = 2 * round;
    }
    stage.finish()
}

/// The tool in that container.
const INNER_TOOL: &str = "/snat-trace";

/// A container's root: the tool, the file systems of the kernel, and a directory to say there that it is ready.
struct Inner(PathBuf);

impl Inner {
    fn new() -> Result<Self> {
        let inner = Self(PathBuf::from("/tmp/snat-trace-inner-root"));
        let script = "mkdir -p $0/proc $0/sys $0/tmp; touch $0/snat-trace; mount --bind $(command -v snat-trace) $0/snat-trace; \
                      mount -t proc proc $0/proc; mount --rbind /sys $0/sys; mount --bind /tmp $0/tmp";
        command("sh", &["-ec", script, &inner.0.display().to_string()], "")?;
        Ok(inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let script =
            "umount -l $0/tmp $0/sys $0/proc $0/snat-trace; rm $0/snat-trace && rmdir $0/tmp $0/sys $0/proc $0";
        let _left = command("sh", &["-c", script, &self.0.display().to_string()], "");
    }
}

/// What runtimes and the kubelet leave on a node, by their own documentation and sources, removed when dropped.
struct Node;

impl Node {
    /// A pod's container that containerd runs, in a group by systemd.
    fn containerd(&self, uid: &str, namespace: &str, pod: &str, container: &str) -> Result<Workload> {
        let (id, image) = (id(container), format!("registry.example/{container}:1"));
        let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}");
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": container,
            "io.kubernetes.cri.image-name": image,
            "io.kubernetes.cri.sandbox-id": "0".repeat(64),
            "io.kubernetes.cri.sandbox-name": pod,
            "io.kubernetes.cri.sandbox-namespace": namespace,
            "io.kubernetes.cri.sandbox-uid": uid,
        });
        write(
            &format!("{bundle}/config.json"),
            &json!({"ociVersion": "1.1.0", "annotations": annotations}).to_string(),
        )?;
        log(&id, uid, namespace, pod, container)?;
        let slice = format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
        Ok(Workload {
            cgroup: cgroup(&format!("kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-{id}.scope"))?,
            container: json!({"runtime": "containerd", "id": id, "name": container, "image": image}),
            pod: json!({"namespace": namespace, "name": pod, "uid": uid}),
            seen: false,
        })
    }

    /// A pod's container of whatever runtime, in a group by the kubelet itself.
    fn of_unknown_runtime(&self, uid: &str, namespace: &str, pod: &str, container: &str) -> Result<Workload> {
        let id = id(container);
        log(&id, uid, namespace, pod, container)?;
        Ok(Workload {
            cgroup: cgroup(&format!("kubepods/burstable/pod{uid}/{id}"))?,
            container: json!({"runtime": "cri", "id": id, "name": container}),
            pod: json!({"namespace": namespace, "name": pod, "uid": uid}),
            seen: false,
        })
    }

    /// A container of docker's, with its file if it has a name.
    fn docker(&self, number: u8, name: Option<&str>) -> Result<Workload> {
        let id = format!("{number:02x}").repeat(32);
        let mut container = json!({"runtime": "docker", "id": id});
        if let Some(name) = name {
            let config = json!({"ID": id, "Name": format!("/{name}"), "Config": {"Image": "nginx:1.27", "Labels": {}}});
            write(&format!("/var/lib/docker/containers/{id}/config.v2.json"), &config.to_string())?;
            container["name"] = name.into();
            container["image"] = "nginx:1.27".into();
        }
        Ok(Workload { cgroup: cgroup(&format!("docker/{id}"))?, container, pod: Value::Null, seen: false })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in MADE {
            let _absent = fs::remove_dir_all(path);
        }
        for slice in SLICES {
            remove_cgroups(&Path::new(CGROUPS).join(slice));
        }
    }
}

/// An id as runtimes make them, another for each name.
fn id(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<64}")
}

/// A container's log and the link to it.
fn log(id: &str, uid: &str, namespace: &str, pod: &str, container: &str) -> Result<()> {
    let log = format!("/var/log/pods/{namespace}_{pod}_{uid}/{container}/0.log");
    write(&log, "")?;
    fs::create_dir_all("/var/log/containers")?;
    symlink(&log, format!("/var/log/containers/{pod}_{namespace}_{container}-{id}.log"))?;
    Ok(())
}

fn write(path: &str, text: &str) -> Result<()> {
    let directory = Path::new(path).parent().context("a file is in a directory")?;
    fs::create_dir_all(directory).and_then(|()| fs::write(path, text)).with_context(|| format!("cannot write {path}"))
}

fn cgroup(path: &str) -> Result<PathBuf> {
    let directory = Path::new(CGROUPS).join(path);
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// From the innermost outward; one that is still left by its last process is tried again.
fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    while fs::remove_dir(directory).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy) {
        std::thread::yield_now();
    }
}
