//! Real runtimes, where they are installed and allowed to run: they lay out files and groups, and say what is true.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::owner::cgroup::{ProcessCgroups, telling};
use crate::skipped::skipped;

/// A program that needs nothing else (Debian: busybox-static).
const BUSYBOX: &str = "/bin/busybox";
const UID: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";

/// What a command printed, or why it failed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command:?}: {}", text(&output.stderr)))
    }
}

/// The cgroup of a process that a runtime has started.
fn cgroup(pid: &str) -> String {
    let cgroups = ProcessCgroups::of(pid.parse().unwrap()).unwrap();
    telling(cgroups.unified, || cgroups.legacy).unwrap()
}

/// Removes groups that a runtime leaves behind, in each hierarchy. Those that somebody is in stay.
fn remove_groups(paths: &[&str]) {
    let unified = Path::new("/sys/fs/cgroup").to_path_buf();
    let legacy = fs::read_dir(&unified).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in legacy.chain([unified]) {
        for path in paths {
            let _busy = fs::remove_dir(hierarchy.join(path));
        }
    }
}

/// A root file system with one program.
fn root_fs(directory: &Path) -> Result<(), String> {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::copy(BUSYBOX, bin.join("busybox")))
        .map(drop)
        .map_err(|e| format!("{BUSYBOX}: {e}"))
}

/// A node's root where podman has its storage, and the container in it.
struct Podman(TempDir);

impl Podman {
    fn command(&self, words: &[&str]) -> Command {
        let at = |path: &str| self.0.path().join(path);
        let mut command = Command::new("podman");
        command.arg("--root").arg(at("var/lib/containers/storage")).arg("--runroot").arg(at("run/containers"));
        command.arg("--tmpdir").arg(at("run/libpod")).args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "--runtime", "runc"]).args(words);
        command
    }

    fn run(&self, more: &[&str]) -> Result<String, String> {
        root_fs(&self.0.path().join("image"))?;
        let at = |path: &str| self.0.path().join(path).display().to_string();
        output(Command::new("tar").args(["-C", &at("image"), "-cf", &at("image.tar"), "."]))?;
        output(&mut self.command(&["import", &at("image.tar"), "localhost/acme:1.2"]))?;
        let run = ["run", "-d", "--name", "web-1", "--network", "host", "--security-opt", "seccomp=unconfined"];
        // As much as a container may have that is in one itself.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        let what = ["localhost/acme:1.2", "/bin/busybox", "sleep", "600"];
        output(&mut self.command(&[&run[..], &limits, more, &what].concat()))
    }

    /// Answers at podman's socket, once somebody can connect to it.
    fn serve(&self) -> Result<Service, String> {
        let socket = self.0.path().join("run/podman/podman.sock");
        fs::create_dir_all(self.0.path().join("run/podman")).map_err(|error| error.to_string())?;
        let url = format!("unix://{}", socket.display());
        let mut command = self.command(&["system", "service", "--time", "0", &url]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut service = Service(command.spawn().map_err(|error| format!("podman: {error}"))?);
        while UnixStream::connect(&socket).is_err() {
            if let Ok(Some(status)) = service.0.try_wait() {
                return Err(format!("podman system service: {status}"));
            }
            thread::yield_now();
        }
        Ok(service)
    }
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = (self.0.kill(), self.0.wait());
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _gone = output(&mut self.command(&["rm", "-f", "-t", "0", "web-1"]));
        remove_groups(&["libpod_parent/conmon", "libpod_parent"]);
    }
}

#[test]
fn a_container_of_podman_is_named() {
    for more in [&[][..], &["--rm"]] {
        let podman = Podman(tempfile::tempdir().unwrap());
        let id = match podman.run(more) {
            Ok(id) => id,
            Err(why) => {
                skipped(format_args!("a container of podman's (Debian: podman, runc, busybox-static): {why}"));
                return;
            }
        };
        let inspect = |what: &str| output(&mut podman.command(&["inspect", "-f", what, "web-1"])).unwrap();
        let mut names = Names::start(Root::at(podman.0.path()));
        let owner = named(&mut names, &cgroup(&inspect("{{.State.Pid}}")));
        let [runtime, name, image] = ["podman", "web-1", "localhost/acme:1.2"].map(|text| Some(text.to_owned()));
        assert_eq!(told(&owner), [runtime, name.clone(), image.clone(), None], "{more:?}");
        let _service = podman.serve().unwrap();
        let by_socket =
            Sockets::new(Root::at(podman.0.path()).unwrap()).unwrap().ask(&key(owner.cgroup.as_ref().unwrap()));
        assert_eq!(by_socket, Known { runtime: Some("podman"), name, image, pod: None }, "{more:?}");
        assert_eq!(owner.container.unwrap().id, id);
        assert_eq!(
            (inspect("{{.Name}}"), inspect("{{.ImageName}}")),
            ("web-1".to_owned(), "localhost/acme:1.2".to_owned())
        );
    }
}

/// A node's root where containerd has its state, and containerd.
struct Containerd {
    root: TempDir,
    daemon: Child,
}

impl Containerd {
    fn start() -> Result<Self, String> {
        let root = tempfile::tempdir().map_err(|error| error.to_string())?;
        let state = root.path().join("run/containerd");
        let socket = state.join("containerd.sock");
        let config = root.path().join("config.toml");
        let mut file = fs::File::create(&config).map_err(|error| error.to_string())?;
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n",
            root.path().join("lib")
        );
        file.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = command.spawn().map_err(|error| format!("containerd: {error}"))?;
        let mut containerd = Self { root, daemon };
        // It says by its API that it is ready.
        while let Err(why) = output(&mut containerd.ctr(&["version"])) {
            if let Ok(Some(status)) = containerd.daemon.try_wait() {
                return Err(format!("containerd: {status}"));
            }
            if why.contains("os error 2") {
                return Err(why);
            }
            thread::yield_now();
        }
        Ok(containerd)
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(self.root.path().join("run/containerd/containerd.sock"))
            .args(["-n", "k8s.io"])
            .args(words);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ended = (self.daemon.kill(), self.daemon.wait());
        remove_groups(&[&format!("kubepods/besteffort/pod{UID}"), "kubepods/besteffort", "kubepods"]);
    }
}

#[test]
fn a_container_of_containerd_is_named_and_its_socket_is_understood() {
    // Another for every run: containerd has places for all of a machine.
    let id = format!("{:064x}", std::process::id());
    let containerd = Containerd::start().and_then(|containerd| {
        let rootfs = containerd.root.path().join("rootfs");
        root_fs(&rootfs)?;
        let cgroup = format!("/kubepods/besteffort/pod{UID}/{id}");
        let annotation = |name: &str, value: &str| format!("io.kubernetes.cri.{name}={value}");
        let annotations = [
            annotation("container-type", "container"),
            annotation("container-name", "app"),
            annotation("image-name", "localhost/acme:1.2"),
            annotation("sandbox-name", "cart-x2k4q"),
            annotation("sandbox-namespace", "shop"),
            annotation("sandbox-uid", UID),
        ];
        let mut run = containerd.ctr(&["run", "-d", "--cgroup", &cgroup]);
        for annotation in &annotations {
            run.args(["--annotation", annotation]);
        }
        output(run.arg("--rootfs").arg(&rootfs).args([&id, BUSYBOX, "sleep", "600"]))?;
        Ok(containerd)
    });
    let containerd = match containerd {
        Ok(containerd) => containerd,
        Err(why) => {
            skipped(format_args!("a container of containerd's (Debian: containerd, runc, busybox-static): {why}"));
            return;
        }
    };
    let tasks = output(&mut containerd.ctr(&["task", "ls"])).unwrap();
    let line = tasks.lines().find(|line| line.starts_with(&id)).unwrap();
    let cgroup = cgroup(line.split_whitespace().nth(1).unwrap());
    let owner = named(&mut Names::start(Root::at(containerd.root.path())), &cgroup);
    // By API it is no container of CRI's: asked for it, the real server says so, and not that it did not understand.
    let socket = Root::at(containerd.root.path()).unwrap().socket("run/containerd/containerd.sock").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(root::by_descriptor(&socket)).await.unwrap();
        cri::status(stream, &id).await
    });
    for words in
        [&["task", "kill", "-s", "KILL", &id][..], &["task", "delete", "-f", &id], &["container", "delete", &id]]
    {
        let _gone = output(&mut containerd.ctr(words));
    }
    let [runtime, name, image] = ["containerd", "app", "localhost/acme:1.2"].map(|text| Some(text.to_owned()));
    assert_eq!(told(&owner), [runtime, name, image, Some(format!("shop/cart-x2k4q {UID}"))], "{cgroup}");
    assert_eq!(owner.container.unwrap().id, id);
    const NOT_FOUND: u32 = 5;
    assert_eq!(status.unwrap_err().to_string(), format!("the answer is status {NOT_FOUND}"));
}
