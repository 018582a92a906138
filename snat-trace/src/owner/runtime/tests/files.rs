//! What files tell.

use std::fs;

use super::*;
use crate::mutate::survives;
use crate::owner::runtime::known::name;

const DOCKER: &str = "d548c5b83fa61d8e3bd86ad42a7ffea9b7c86e3f9d8095c1577d3e1270bb9420";
const DOCKERS_POD: &str = "56f83fbc8deb83e0b577ebb1a9b55609651a055439537d5c66b6fe0da00fdc7f";
const DOCKERS_SANDBOX: &str = "5836e0bb3d91b6c9a2ff3f9d5dbe04a573e205254bb64e6740745036108a674a";
const PRETENDER: &str = "dc9c14b451fdecaabbd1839a67972fc95c9bbe29f669b183be295d4148286bd3";
const ALICES_DOCKER: &str = "1dfec15bdb69c62add2f184a1f8fc2ad2370307c927a0d3b4986856d8c988597";
const CART: &str = "1c42ddc0285b9c25135be3bf345e6a041271b784b22a6f6cab6588dab93c5980";
const MIGRATE: &str = "ecacfbf996b51b22e51c51fda1c3e725d9519809f8404a48b5733011663aa6b7";
const SANDBOX: &str = "6d5d705d1dededb5858c8f74fbbd14b01ddf7c7f0e6696d242826f5a55bd29bd";
const PROXY: &str = "1241936d4dd3aad68fe7bfbdfe854b935926bc678fc72377e15166078916227a";
const ETCD: &str = "c38cbd92fce41312f3fbdce60510013b7f0d4004a03b45c8e762f98f1ed4006c";
const COREDNS: &str = "86bd33ebf64e01aaafb7dab419436ac025d04abd933bbbb124ddb25c30b59dd7";
const NERDCTL: &str = "aa470170773aae4a69e6e0a509eb8c1f304140b1fea1a2d55ec93a07a78e497c";
const WORKER: &str = "5f587935f02bfeea8553c335c9775b5c0400f12a9bfae3c6353326226e3ae2a5";
const ROUTER: &str = "c64064614423cb790e88b3e5492ff5ccf673b25ae823089f7a60c65cda24d809";
const QUEUE: &str = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9";
const VOLATILE: &str = "24ff56bac653640bc536357637d7d203ce272703b6d425d82d4958b84626ac8f";
const NOTES: &str = "668044d25b2482b20aa547b01ee58dc09b7ebb676c5e3f71640071aca2e0d399";
/// Of no container.
const NOBODYS: &str = "0000000000000000000000000000000000000000000000000000000000000001";

const CART_UID: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";
const CART_POD: &str = "shop/cart-7d4b9c6f5-x2k4q 0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";
const ORDERS_POD: &str = "shop/orders-5b7d9f-qx7zl 3d5f9c1e-7a42-4b8e-9a55-0e6f2c1b7d10";

fn slice(uid: &str) -> String {
    let uid = uid.replace('-', "_");
    format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice")
}

/// Cgroup; runtime, name, image and pod.
type Case = (String, &'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>);

fn cases() -> Vec<Case> {
    let (orders, etcd) = (slice("3d5f9c1e-7a42-4b8e-9a55-0e6f2c1b7d10"), "5e3fa1c0d2b44e6f8a9b0c1d2e3f4051");
    let alice = "/user.slice/user-1000.slice/user@1000.service/user.slice";
    let nobody = "/user.slice/user-65534.slice/user@65534.service/user.slice";
    let (cart, cart_image) = (slice(CART_UID), Some("registry.example/shop/cart:1.4"));
    let coredns = slice("c2b1a098-7654-4321-8fed-cba987654321");
    vec![
        // docker
        (format!("/system.slice/docker-{DOCKER}.scope"), "docker", Some("shop-web-1"), Some("nginx:1.27"), None),
        (format!("/docker/{DOCKER}"), "docker", Some("shop-web-1"), Some("nginx:1.27"), None),
        (format!("/made/by/hand/{DOCKER}"), "docker", Some("shop-web-1"), Some("nginx:1.27"), None),
        (
            format!("{orders}/docker-{DOCKERS_SANDBOX}.scope"),
            "docker",
            None,
            Some("registry.k8s.io/pause:3.9"),
            Some(ORDERS_POD),
        ),
        // Labels of a pod, and not in its cgroup.
        (format!("/system.slice/docker-{PRETENDER}.scope"), "docker", Some("pretender"), Some("alpine"), None),
        (format!("{alice}/docker-{ALICES_DOCKER}.scope"), "docker", Some("mine"), Some("postgres:16"), None),
        // Alice may call a group what she likes, and has no such container.
        (format!("{alice}/docker-{DOCKER}.scope"), "docker", None, None, None),
        (format!("/docker/{ALICES_DOCKER}"), "docker", None, None, None),
        // containerd
        (format!("{cart}/cri-containerd-{CART}.scope"), "containerd", Some("app"), cart_image, Some(CART_POD)),
        (format!("/kubepods/besteffort/pod{CART_UID}/{CART}"), "containerd", Some("app"), cart_image, Some(CART_POD)),
        (
            format!("{cart}/cri-containerd-{MIGRATE}.scope"),
            "containerd",
            Some("migrate"),
            Some("registry.example/shop/migrate:1.4"),
            Some(CART_POD),
        ),
        (format!("{cart}/cri-containerd-{SANDBOX}.scope"), "containerd", None, None, Some(CART_POD)),
        (
            format!("{}/cri-containerd-{PROXY}.scope", slice("91c2d0e1-f2a3-44c5-96e7-f8091a2b3c4d")),
            "containerd",
            Some("kube-proxy"),
            Some("registry.k8s.io/kube-proxy:v1.31.0"),
            Some("kube-system/kube-proxy-9w2hj 91c2d0e1-f2a3-44c5-96e7-f8091a2b3c4d"),
        ),
        (
            format!("{}/cri-containerd-{ETCD}.scope", slice(etcd)),
            "containerd",
            Some("etcd"),
            Some("registry.k8s.io/etcd:3.5.15-0"),
            Some("kube-system/etcd-node-1 5e3fa1c0d2b44e6f8a9b0c1d2e3f4051"),
        ),
        (
            format!("{coredns}/cri-containerd-{COREDNS}.scope"),
            "containerd",
            Some("coredns"),
            Some("rancher/mirrored-coredns-coredns:1.12.0"),
            Some("kube-system/coredns-ccb96694c-6ndwh c2b1a098-7654-4321-8fed-cba987654321"),
        ),
        (format!("/system.slice/nerdctl-{NERDCTL}.scope"), "containerd", Some("db"), None, None),
        ("/default/web-1".to_owned(), "containerd", None, None, None),
        // In the group of another pod than its bundle says: somebody is wrong, so neither is told.
        (
            format!("{coredns}/cri-containerd-{CART}.scope"),
            "containerd",
            None,
            cart_image,
            Some("kube-system/coredns-ccb96694c-6ndwh c2b1a098-7654-4321-8fed-cba987654321"),
        ),
        // Only the kubelet's directories tell.
        (
            format!("/kubepods/pod7b1e0d4c-2f3a-4e5b-8c6d-9a0b1c2d3e4f/{WORKER}"),
            "cri",
            Some("worker"),
            None,
            Some("batch/report-28934-abcde 7b1e0d4c-2f3a-4e5b-8c6d-9a0b1c2d3e4f"),
        ),
        // A container that has gone, of a pod that is there still.
        (format!("{cart}/cri-containerd-{NOBODYS}.scope"), "containerd", None, None, Some(CART_POD)),
        // A container in a pod's container: around it is the pod, and what it is called itself nobody here knows.
        (format!("{cart}/cri-containerd-{CART}.scope/docker/{DOCKER}"), "docker", None, None, Some(CART_POD)),
        // A node in a container.
        (format!("/docker/{DOCKER}/kubelet/kubepods/pod{CART_UID}/{CART}"), "cri", None, None, None),
        (format!("{alice}{cart}/cri-containerd-{CART}.scope"), "containerd", None, None, None),
        // CRI-O
        (
            format!("{}/crio-{ROUTER}.scope/container", slice("7d1c0f3e-aaaa-4bbb-8ccc-0123456789ab")),
            "cri-o",
            Some("router"),
            Some("quay.io/example/router:4.17"),
            Some("ingress/router-default-1 7d1c0f3e-aaaa-4bbb-8ccc-0123456789ab"),
        ),
        // podman
        (
            format!("/machine.slice/libpod-{QUEUE}.scope/container"),
            "podman",
            Some("queue"),
            Some("docker.io/library/rabbitmq:4"),
            None,
        ),
        (
            format!("/machine.slice/libpod-{VOLATILE}.scope"),
            "podman",
            Some("nervous_euler"),
            Some("docker.io/library/alpine:3"),
            None,
        ),
        (
            format!("{alice}/libpod-{NOTES}.scope/container"),
            "podman",
            Some("notes"),
            Some("localhost/notes:latest"),
            None,
        ),
        (format!("{nobody}/libpod-{NOTES}.scope/container"), "podman", None, None, None),
        // systemd
        (
            "/machine.slice/machine-my\\x2dweb.scope/payload/init.scope".to_owned(),
            "systemd-nspawn",
            Some("my-web"),
            None,
            None,
        ),
        ("/machine.slice/systemd-nspawn@build.service/payload".to_owned(), "systemd-nspawn", Some("build"), None, None),
        ("/machine.slice/machine-desktop.scope".to_owned(), "systemd-nspawn", None, None, None),
        ("/system.slice/ssh.service".to_owned(), "systemd", None, None, None),
    ]
}

#[test]
fn every_runtime_is_read() {
    let mut names = Names::start(Root::at(&node()));
    for (cgroup, runtime, name, image, pod) in cases() {
        let expected = [Some(runtime), name, image, pod].map(|text| text.map(str::to_owned));
        assert_eq!(told(&named(&mut names, &cgroup)), expected, "{cgroup}");
    }
    // In a pod docker's own name for the container is not the one it has there.
    let orders = format!("{}/docker-{DOCKERS_POD}.scope", slice("3d5f9c1e-7a42-4b8e-9a55-0e6f2c1b7d10"));
    let [_, name, image, pod] = told(&named(&mut names, &orders));
    assert_eq!((name.as_deref(), pod.as_deref()), (Some("app"), Some(ORDERS_POD)));
    assert!(image.unwrap().starts_with("sha256:"));
}

#[test]
fn a_batch_is_named_as_its_parts_are() {
    let cases = cases();
    let mut owners: Vec<Owner> = cases.iter().map(|(cgroup, ..)| owner(cgroup)).collect();
    let mut names = Names::start(Root::at(&node()));
    names.complete(owners.iter_mut().filter_map(Owner::place), &mut { PATIENCE });
    settle(&mut names);
    names.complete(owners.iter_mut().filter_map(Owner::place), &mut { PATIENCE });
    for ((cgroup, runtime, name, image, pod), owner) in cases.iter().zip(&owners) {
        let expected = [Some(*runtime), *name, *image, *pod].map(|text| text.map(str::to_owned));
        assert_eq!(told(owner), expected, "{cgroup}");
    }
}

#[test]
fn the_usual_places_are_looked_at_without_configuration() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("var/lib/docker/containers").join(DOCKER);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(
        node().join("srv/docker/containers").join(DOCKER).join("config.v2.json"),
        directory.join("config.v2.json"),
    )
    .unwrap();
    let mut names = Names::start(Root::at(root.path()));
    assert_eq!(told(&named(&mut names, &format!("/docker/{DOCKER}")))[1].as_deref(), Some("shop-web-1"));
}

#[test]
fn podmans_storage_is_where_it_is_told_to_be() {
    let (root, list) = (tempfile::tempdir().unwrap(), "overlay-containers/containers.json");
    let write = |path: &str, content: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let name = || {
        let owner = named(&mut Names::start(Root::at(root.path())), &format!("/machine.slice/libpod-{QUEUE}.scope"));
        told(&owner)[1].clone()
    };
    write(&format!("srv/storage/{list}"), &fs::read(node().join("var/lib/containers/storage").join(list)).unwrap());
    assert_eq!(name(), None);
    write("usr/share/containers/storage.conf", b"[storage]\ngraphroot = \"/srv/storage\"\n");
    assert_eq!(name().as_deref(), Some("queue"));
    write("etc/containers/storage.conf", b"[storage]\ngraphroot = \"/srv/elsewhere\"\n");
    assert_eq!(name(), None, "the administrator's file stands for the other");
    write("etc/containers/storage.conf", b"[storage]\ngraphroot = \"/srv/storage\"\n");
    assert_eq!(name().as_deref(), Some("queue"));
}

#[test]
fn an_id_that_somebody_made_up_may_be_anybodys() {
    let root = tempfile::tempdir().unwrap();
    let name_of = |states: &[&str]| {
        for state in states {
            let bundle = root.path().join(state).join("io.containerd.runtime.v2.task/default/web-1");
            fs::create_dir_all(&bundle).unwrap();
            fs::write(bundle.join("config.json"), format!(r#"{{"annotations":{{"nerdctl/name":"of {state}"}}}}"#))
                .unwrap();
        }
        told(&named(&mut Names::start(Root::at(root.path())), "/default/web-1"))[1].clone()
    };
    assert_eq!(name_of(&["run/containerd"]).as_deref(), Some("of run/containerd"));
    assert_eq!(name_of(&["run/k3s/containerd"]), None);
}

#[test]
fn hostile_names_stay_as_they_are_and_what_is_no_name_is_none() {
    let long = "x".repeat(4096);
    let hostile = ["a\x1b[2Jb\n", "\u{202e}", "..", "/", "\"'`$(reboot)", "\u{fffd}\u{0}", long.as_str()];
    for text in hostile {
        let json =
            serde_json::json!({"ID": DOCKER, "Name": format!("/{text}"), "Config": {"Image": text, "Labels": null}});
        let known = docker::parse(json.to_string().as_bytes(), &key(&format!("/docker/{DOCKER}"))).unwrap();
        assert_eq!((known.name.as_deref(), known.image.as_deref()), (Some(text), Some(text)), "{text:?}");
    }
    assert_eq!((name(Some(String::new())), name(Some("x".repeat(4097)))), (None, None));
    let of = |json: &[u8]| docker::parse(json, &key(&format!("/docker/{DOCKER}")));
    let with = |rest: &str| format!(r#"{{"ID":"{DOCKER}",{rest}}}"#).into_bytes();
    assert_eq!(of(&with(r#""Name":"/\u0000","Config":{}"#)).unwrap().name.as_deref(), Some("\0"));
    for none in [&with(r#""Name":7"#)[..], &with(r#""Name":"a","Name":"b""#), b"", b"[]", b"null"] {
        assert_eq!(of(none), None, "{}", String::from_utf8_lossy(none));
    }
    let not_utf8 = [format!(r#"{{"ID":"{DOCKER}","Name":""#).as_bytes(), b"/\xff\"}"].concat();
    assert_eq!(of(&not_utf8), None);
    assert_eq!(of(&b"[".repeat(100_000)), None);
    assert_eq!(of(format!(r#"{{"ID":"{NOBODYS}","Name":"/another"}}"#).as_bytes()), None);
}

#[test]
fn directories_with_hostile_names_name_nobody() {
    let root = tempfile::tempdir().unwrap();
    let pods = root.path().join("var/log/pods");
    let uid = CART_UID;
    let of = |directories: &[String]| {
        let _ = fs::remove_dir_all(&pods);
        for directory in directories {
            fs::create_dir_all(pods.join(directory)).unwrap();
        }
        named(&mut Names::start(Root::at(root.path())), &format!("{}/crio-{ROUTER}.scope", slice(uid))).pod
    };
    assert_eq!(of(&[format!("a\x1b[2J\n_b\u{202e}_{uid}")]).map(|pod| pod.name), Some("b\u{202e}".to_owned()));
    for none in [
        format!("_b_{uid}"),
        format!("a__{uid}"),
        format!("a_{uid}"),
        format!("a_b_c_{uid}"),
        format!("a_b_{uid}_"),
        uid.to_owned(),
    ] {
        assert_eq!(of(std::slice::from_ref(&none)), None, "{none}");
    }
    // Two that claim to be the same.
    assert_eq!(of(&[format!("a_b_{uid}"), format!("a_c_{uid}")]), None);
}

#[test]
fn a_log_that_leads_elsewhere_names_nobody() {
    let root = tempfile::tempdir().unwrap();
    let logs = root.path().join("var/log/containers");
    fs::create_dir_all(&logs).unwrap();
    let link = logs.join(format!("pod_ns_main-{WORKER}.log"));
    let of = |target: &str| {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).unwrap();
        let owner =
            named(&mut Names::start(Root::at(root.path())), &format!("{}/crio-{WORKER}.scope", slice(CART_UID)));
        told(&owner)[1].clone()
    };
    assert_eq!(of(&format!("/var/log/pods/ns_pod_{CART_UID}/main/0.log")).as_deref(), Some("main"));
    for elsewhere in [
        format!("/var/log/pods/ns_pod_{CART_UID}/other/0.log"),
        format!("/var/log/pods/ns_other_{CART_UID}/main/0.log"),
        "/var/log/pods/ns_pod_91c2d0e1-f2a3-44c5-96e7-f8091a2b3c4d/main/0.log".to_owned(),
        "0.log".to_owned(),
        "/".to_owned(),
    ] {
        assert_eq!(of(&elsewhere), None, "{elsewhere}");
    }
}

#[test]
fn mutated_files_are_survived() {
    let read = |path: String| fs::read(node().join(path)).unwrap();
    let bundle = |id: &str| format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json");
    let (docker_key, podman_key) = (key(&format!("/docker/{DOCKER}")), key(&format!("/libpod_parent/libpod-{QUEUE}")));
    let config = read(format!("srv/docker/containers/{DOCKER}/config.v2.json"));
    survives("runtimes", &[&config], |bytes| drop(docker::parse(bytes, &docker_key)));
    let list = read("var/lib/containers/storage/overlay-containers/containers.json".to_owned());
    survives("runtimes", &[&list], |bytes| drop(podman::parse(bytes, &podman_key)));
    let crio = read(format!("run/containers/storage/overlay-containers/{ROUTER}/userdata/config.json"));
    survives("runtimes", &[&read(bundle(CART)), &crio], |bytes| drop(oci::annotations(bytes)));
}
