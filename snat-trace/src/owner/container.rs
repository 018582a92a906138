//! Which container a cgroup belongs to, by the path its runtime gave it. Pure.

use super::Container;

/// Length of the hexadecimal ids that container runtimes make.
const ID_LEN: usize = 64;

/// What runtimes put before an id, in `PREFIX-ID.scope` (systemd driver), `PREFIX-ID` (cgroupfs driver) and
/// `SLICE:PREFIX:ID` (an unfinished systemd name taken literally).
const PREFIXES: [(&str, &str); 6] = [
    ("docker", "docker"),
    ("cri-containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("crio", "cri-o"),
    ("libpod", "podman"),
    // `podman run --cgroups=split` puts the container beside conmon's own group.
    ("libpod-payload", "podman"),
];

/// The container a cgroup path belongs to; a systemd unit when there is none.
///
/// The innermost container wins, for a container can run a runtime of its own; but a unit inside a container is part of
/// that container. Words from the path are returned as they are there.
#[must_use]
pub fn container(path: &str) -> Option<Container> {
    let parts = parts(path);
    let at = |index| of_part(&parts, index);
    (0..parts.len()).rev().find_map(at).or_else(|| parts.iter().rev().find_map(|part| unit(part)))
}

/// The outermost container of a path, which is this node's own and no container's, with the uid of the pod whose group it
/// is in.
pub(super) fn outermost(path: &str) -> Option<(Container, Option<String>)> {
    let parts = parts(path);
    (0..parts.len()).find_map(|index| Some((of_part(&parts, index)?, pod_uid(&parts, index))))
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

/// The uid of the pod in whose group, as the kubelet names it, the container at `index` is. systemd has no hyphens within
/// a word of a slice's name, so there it has underscores (pkg/kubelet/cm/cgroup_manager_linux.go, `escapeSystemdCgroupName`).
fn pod_uid(parts: &[&str], index: usize) -> Option<String> {
    let outer = parts.get(..index)?;
    let group = match parts.get(index)?.split_once(".slice:") {
        // An unfinished systemd name begins with its slice.
        Some((slice, _)) => slice,
        None => outer.last()?,
    };
    let group = group.strip_suffix(".slice").unwrap_or(group);
    let uid = match group.rsplit_once("-pod") {
        Some((slice, uid)) if is_kubepods(slice) => uid,
        _ if outer.iter().any(|part| is_kubepods(part)) => group.strip_prefix("pod")?,
        _ => return None,
    };
    let is_uid = !uid.is_empty()
        && uid.len() <= ID_LEN
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    is_uid.then(|| uid.replace('_', "-"))
}

/// The container whose group the part of a path at `index` is.
fn of_part(parts: &[&str], index: usize) -> Option<Container> {
    let (&part, outer) = (parts.get(index)?, parts.get(..index)?);
    let of = |runtime, id: &str| Some(Container::of(runtime, id));
    if let Some((prefix, id)) = prefixed(part)
        && is_id(id)
        && let Some((_, runtime)) = PREFIXES.into_iter().find(|&(known, _)| known == prefix)
    {
        return of(runtime, id);
    }
    if let Some(machine) = part.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service")) {
        return of("systemd-nspawn", machine);
    }
    // libvirt's machines stand there too, as `qemu-1-NAME` and `lxc-1-NAME` with the hyphens escaped.
    if let Some(machine) = part.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope"))
        && outer.last() == Some(&"machine.slice")
        && !["qemu\\x2d", "lxc\\x2d"].iter().any(|libvirt| machine.starts_with(libvirt))
    {
        return of("systemd-nspawn", machine);
    }
    let parent = *outer.last()?;
    if is_id(part) {
        // The cgroupfs driver of the kubelet hands the pod's group to whichever runtime there is.
        let runtime = match parent {
            "docker" => "docker",
            "default" | "k8s.io" | "moby" => "containerd",
            _ if outer.iter().any(|part| is_kubepods(part)) => "cri",
            _ => "oci",
        };
        return of(runtime, part);
    }
    // containerd's default namespace at the root; ids given by hand need not be hexadecimal.
    (outer == ["default"] && is_name(part)).then(|| Container::of("containerd", part))
}

/// Prefix and id of a group's name.
fn prefixed(part: &str) -> Option<(&str, &str)> {
    if let Some((slice_and_prefix, id)) = part.rsplit_once(':') {
        let prefix = slice_and_prefix.rsplit_once(':').map_or(slice_and_prefix, |(_, prefix)| prefix);
        return Some((prefix, id));
    }
    part.strip_suffix(".scope").unwrap_or(part).rsplit_once('-')
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What containerd takes for an identifier.
fn is_name(text: &str) -> bool {
    text.len() <= 76 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_kubepods(part: &str) -> bool {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    part.split('-').any(|word| word == "kubepods")
}

/// A systemd scope or service.
fn unit(part: &str) -> Option<Container> {
    let is_unit = [".scope", ".service"].into_iter().any(|suffix| part.len() > suffix.len() && part.ends_with(suffix));
    is_unit.then(|| Container::of("systemd", part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
    const B: &str = "91c2d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";

    /// Paths with `{A}` and `{B}` for two ids; the runtime and id expected, if any.
    const PATHS: &[(&str, Option<(&str, &str)>)] = &[
        // docker
        ("/docker/{A}", Some(("docker", "{A}"))),
        ("/system.slice/docker-{A}.scope", Some(("docker", "{A}"))),
        ("/system.slice/docker-{A}.scope/init.scope", Some(("docker", "{A}"))),
        ("/system.slice/docker-{A}.scope/system.slice/nginx.service", Some(("docker", "{A}"))),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope", Some(("docker", "{A}"))),
        ("/system.slice:docker:{A}", Some(("docker", "{A}"))),
        ("/system.slice/docker.service", Some(("systemd", "docker.service"))),
        // containerd through CRI
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f3ae9d2_1c55_4f6b_9f0e_2a7c1f1d9b11.slice/cri-containerd-{A}.scope",
            Some(("containerd", "{A}")),
        ),
        (
            "/system.slice/containerd.service/kubepods-besteffort-pod0f3ae9d2_1c55_4f6b_9f0e_2a7c1f1d9b11.slice:cri-containerd:{A}",
            Some(("containerd", "{A}")),
        ),
        ("/kubepods/burstable/pod0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11/{A}", Some(("cri", "{A}"))),
        ("/kubepods/pod0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11/{A}", Some(("cri", "{A}"))),
        (
            "/kubepods.slice/kubepods-pod0f3ae9d2_1c55_4f6b_9f0e_2a7c1f1d9b11.slice/docker-{A}.scope",
            Some(("docker", "{A}")),
        ),
        // containerd without CRI
        ("/default/{A}", Some(("containerd", "{A}"))),
        ("/default/web-1", Some(("containerd", "web-1"))),
        ("/system.slice/nerdctl-{A}.scope", Some(("containerd", "{A}"))),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{A}.scope", Some(("containerd", "{A}"))),
        // cri-o
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7d1c0f3e_aaaa_bbbb_cccc_0123456789ab.slice/crio-{A}.scope",
            Some(("cri-o", "{A}")),
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7d1c0f3e_aaaa_bbbb_cccc_0123456789ab.slice/crio-{A}.scope/container",
            Some(("cri-o", "{A}")),
        ),
        ("/kubepods/besteffort/pod7d1c0f3e-aaaa-bbbb-cccc-0123456789ab/crio-{A}", Some(("cri-o", "{A}"))),
        (
            "/kubepods.slice/kubepods-pod7d1c0f3e_aaaa_bbbb_cccc_0123456789ab.slice/crio-conmon-{A}.scope",
            Some(("systemd", "crio-conmon-{A}.scope")),
        ),
        ("/kubepods/besteffort/pod7d1c0f3e-aaaa-bbbb-cccc-0123456789ab/crio-conmon-{A}", None),
        // podman
        ("/machine.slice/libpod-{A}.scope", Some(("podman", "{A}"))),
        ("/machine.slice/libpod-{A}.scope/container", Some(("podman", "{A}"))),
        ("/libpod_parent/libpod-{A}", Some(("podman", "{A}"))),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
            Some(("podman", "{A}")),
        ),
        ("/system.slice/web.service/libpod-payload-{A}", Some(("podman", "{A}"))),
        ("/machine.slice/libpod-conmon-{A}.scope", Some(("systemd", "libpod-conmon-{A}.scope"))),
        // systemd
        ("/system.slice/ssh.service", Some(("systemd", "ssh.service"))),
        ("/user.slice/user-1000.slice/session-3.scope", Some(("systemd", "session-3.scope"))),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome\\x2dterminal-4711.scope",
            Some(("systemd", "app-gnome\\x2dterminal-4711.scope")),
        ),
        ("/init.scope", Some(("systemd", "init.scope"))),
        ("/machine.slice/machine-web.scope", Some(("systemd-nspawn", "web"))),
        ("/machine.slice/machine-web.scope/payload/system.slice/nginx.service", Some(("systemd-nspawn", "web"))),
        ("/machine.slice/systemd-nspawn@web.service/payload", Some(("systemd-nspawn", "web"))),
        (
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator",
            Some(("systemd", "machine-qemu\\x2d1\\x2dvm.scope")),
        ),
        // one inside another
        (
            "/system.slice/docker-{A}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod7d1c0f3e_aaaa_bbbb_cccc_0123456789ab.slice/cri-containerd-{B}.scope",
            Some(("containerd", "{B}")),
        ),
        ("/docker/{A}/kubelet/kubepods/besteffort/pod7d1c0f3e-aaaa-bbbb-cccc-0123456789ab/{B}", Some(("cri", "{B}"))),
        ("/docker/{A}/docker/{B}", Some(("docker", "{B}"))),
        ("/docker/{A}/default/{B}", Some(("containerd", "{B}"))),
        // made by something unknown
        ("/ecs/0123456789abcdef/{A}", Some(("oci", "{A}"))),
        // no container
        ("", None),
        ("/", None),
        ("/user.slice", None),
        ("/{A}", None),
        ("/docker", None),
        ("/docker/buildx", None),
        ("/process_api/a90f73af3b47e24c6542c191ab9f75ce", None),
        ("/system.slice/docker-short.scope", Some(("systemd", "docker-short.scope"))),
        ("/docker-{A}0.scope", Some(("systemd", "docker-{A}0.scope"))),
        ("/.scope", None),
    ];

    #[test]
    fn real_paths() {
        let full = |text: &str| text.replace("{A}", A).replace("{B}", B);
        for (path, expected) in PATHS {
            let expected = expected.map(|(runtime, id)| (runtime.into(), full(id)));
            let found = container(&full(path)).map(|container| (container.runtime, container.id));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn the_outermost_container_and_its_pod() {
        const UID: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";
        const HASH: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f4051";
        let (under, pod) = (UID.replace('-', "_"), Some(UID));
        for (path, runtime, id, uid) in [
            (format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{A}.scope/container"), "cri-o", A, pod),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/cri-containerd-{A}.scope"
                ),
                "containerd",
                A,
                Some(HASH),
            ),
            (format!("/kubepods/besteffort/pod{UID}/{A}"), "cri", A, pod),
            (format!("/kubepods/pod{UID}/{A}/docker/{B}"), "cri", A, pod),
            (
                format!("/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{A}"),
                "containerd",
                A,
                pod,
            ),
            (
                format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/docker-{A}.scope"),
                "docker",
                A,
                pod,
            ),
            // A node inside a container: its pods are not this node's.
            (format!("/docker/{A}/kubelet/kubepods/besteffort/pod{UID}/{B}"), "docker", A, None),
            (
                format!("/system.slice/docker-{A}.scope/kubepods-pod{under}.slice/cri-containerd-{B}.scope"),
                "docker",
                A,
                None,
            ),
            // Not the kubelet's.
            (format!("/machine.slice/machine-pod{under}.slice/libpod-{A}.scope"), "podman", A, None),
            (format!("/pod{UID}/{A}"), "oci", A, None),
            (format!("/kubepods/besteffort/{A}"), "cri", A, None),
            (format!("/kubepods/pod../{A}"), "cri", A, None),
            ("/default/web-1".to_owned(), "containerd", "web-1", None),
        ] {
            let found = outermost(&path).unwrap();
            assert_eq!((&*found.0.runtime, found.0.id.as_str(), found.1.as_deref()), (runtime, id, uid), "{path}");
        }
        assert_eq!(outermost("/system.slice/ssh.service"), None);
    }

    #[test]
    fn hostile_names_are_names() {
        let long = format!("/{}/docker/{A}", "x".repeat(4096));
        assert_eq!(container(&long).map(|container| container.id), Some(A.to_owned()));
        let hostile = container("/system.slice/\u{1b}[2J\n\u{7}.service").unwrap();
        assert_eq!((&*hostile.runtime, hostile.id.as_str()), ("systemd", "\u{1b}[2J\n\u{7}.service"));
        assert_eq!(container(&"/docker-".repeat(1000)), None);
        assert_eq!(container(":::\u{fffd}:/-"), None);
    }

    proptest! {
        #[test]
        fn any_path_is_survived(path in "(/|:|-|docker|kubepods|\\.scope|\\.service|libpod|default|[0-9a-f]{64}|\\PC){0,40}") {
            if let Some(found) = container(&path) {
                prop_assert!(path.contains(&found.id));
            }
            let _ = outermost(&path);
        }
    }
}
