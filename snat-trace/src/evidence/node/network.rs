//! What a container network and kube-proxy say of themselves in files on the disk. What is not said is absent.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{cut, entries};

/// Where runtimes look for container networks.
const CNI: &str = "etc/cni/net.d";
/// So much of a file is read, and of so many files.
const LONGEST_FILE: u64 = 256 << 10;
const MOST_FILES: usize = 256;
/// So many of them are told, each with so many plugins.
const MOST: usize = 16;

/// A container network, as its file describes it (CNI specification, section 1).
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Cni {
    /// Which.
    pub file: String,
    /// Of the specification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// Those that make it, in their order.
    pub plugins: Vec<CniPlugin>,
}

/// A program that makes a part of it.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct CniPlugin {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is to translate the sources of what leaves the network; its own or its delegate's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_masq: Option<bool>,
}

/// How kube-proxy is to make the rules of services.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct KubeProxy {
    /// Which file says so.
    pub file: String,
    /// As it does.
    pub mode: String,
}

/// A file of either form: one plugin, or a list of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CniFile {
    cni_version: Option<String>,
    #[serde(default)]
    plugins: Vec<PluginFile>,
    #[serde(flatten)]
    only: Option<PluginFile>,
}

#[derive(Deserialize)]
struct PluginFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "ipMasq")]
    ip_masq: Option<bool>,
    delegate: Option<Delegate>,
}

#[derive(Deserialize)]
struct Delegate {
    #[serde(rename = "ipMasq")]
    ip_masq: Option<bool>,
}

/// Every container network there is a file of, below `root`.
pub(super) fn cni(root: &Path) -> Vec<Cni> {
    let files = entries(&root.join(CNI)).into_iter().take(MOST_FILES);
    files
        .filter_map(|path| {
            let CniFile { cni_version, plugins, only } = serde_json::from_str(&read(&path)?).ok()?;
            let plugin = |PluginFile { kind, ip_masq, delegate }: PluginFile| CniPlugin {
                kind: cut(&kind),
                ip_masq: ip_masq.or(delegate.and_then(|delegate| delegate.ip_masq)),
            };
            let plugins: Vec<_> = only.into_iter().chain(plugins).map(plugin).take(MOST).collect();
            let cni_version = cni_version.map(|version| cut(&version));
            (!plugins.is_empty()).then_some(Cni { file: below(root, &path)?, cni_version, plugins })
        })
        .take(MOST)
        .collect()
}

/// The first word of kube-proxy's mode that is found below `root`: its configuration as kubeadm and others mount it, or the
/// command line of its static pod.
pub(super) fn kube_proxy(root: &Path) -> Option<KubeProxy> {
    let folders = ["var/lib/kube-proxy", "var/lib/kube-proxy-config", "etc/kubernetes/manifests"];
    let pods = entries(&root.join("var/lib/kubelet/pods")).into_iter();
    let mounted = pods.map(|pod| pod.join("volumes/kubernetes.io~configmap/kube-proxy"));
    let folders = folders.into_iter().map(|folder| root.join(folder)).chain(mounted);
    let mut files = folders.flat_map(|folder| entries(&folder)).take(MOST_FILES);
    files.find_map(|path| Some(KubeProxy { mode: cut(&mode(&read(&path)?)?), file: below(root, &path)? }))
}

/// `mode:` of a `KubeProxyConfiguration`, which stands at its top level, or the value of `--proxy-mode`.
fn mode(text: &str) -> Option<String> {
    let plain = |value: &str| {
        let value = value.trim().trim_matches(['"', '\'', ',', ']']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    if text.contains("KubeProxyConfiguration") {
        let told = text.lines().find_map(|line| line.strip_prefix("mode:"))?;
        return plain(told.split('#').next()?);
    }
    let (_, behind) = text.split_once("--proxy-mode=")?;
    plain(behind.split_whitespace().next()?)
}

/// The beginning of a file.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    // What is no file, such as a pipe, may keep whoever reads it waiting.
    let file = path.metadata().ok()?.is_file().then(|| File::open(path).ok())??;
    file.take(LONGEST_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

fn below(root: &Path, path: &Path) -> Option<String> {
    Some(PathBuf::from("/").join(path.strip_prefix(root).ok()?).display().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    /// As flannel and the examples of the plugins have it, and what is none.
    #[test]
    fn container_networks_say_what_they_do() {
        let root = root(&[
            (
                "etc/cni/net.d/10-flannel.conflist",
                r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"ipMasq":false}},
                   {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
            ),
            ("etc/cni/net.d/87-podman.conf", r#"{"cniVersion":"1.0.0","name":"podman","type":"bridge","ipMasq":true}"#),
            ("etc/cni/net.d/99-broken.conf", "{"),
            ("etc/cni/net.d/calico-kubeconfig", "apiVersion: v1\n"),
        ]);
        let plugin = |kind: &str, ip_masq| CniPlugin { kind: kind.to_owned(), ip_masq };
        let of = |file: &str, version: &str, plugins| Cni {
            file: format!("/etc/cni/net.d/{file}"),
            cni_version: Some(version.to_owned()),
            plugins,
        };
        let expected = [
            of("10-flannel.conflist", "0.3.1", vec![plugin("flannel", Some(false)), plugin("portmap", None)]),
            of("87-podman.conf", "1.0.0", vec![plugin("bridge", Some(true))]),
        ];
        assert_eq!(cni(root.path()), expected);
    }

    #[test]
    fn kube_proxy_says_its_mode() {
        const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nconntrack:\n  mode: none\nkind: \
                              KubeProxyConfiguration\nmode: \"ipvs\" # not nftables\n";
        let mounted = "var/lib/kubelet/pods/0f3ae9d2/volumes/kubernetes.io~configmap/kube-proxy/config.conf";
        let said = |files: &[(&str, &str)]| {
            let root = root(files);
            kube_proxy(root.path()).map(|KubeProxy { file, mode }| (file, mode))
        };
        assert_eq!(said(&[(mounted, CONFIG)]), Some((format!("/{mounted}"), "ipvs".to_owned())));
        // The default is not said.
        assert_eq!(said(&[(mounted, &CONFIG.replace("ipvs", ""))]), None);
        let pod = "spec:\n  containers:\n  - command: [\"kube-proxy\", \"--proxy-mode=nftables\"]\n";
        let manifest = "etc/kubernetes/manifests/kube-proxy.yaml";
        assert_eq!(said(&[(manifest, pod)]), Some((format!("/{manifest}"), "nftables".to_owned())));
        assert_eq!(said(&[("var/lib/kube-proxy/kubeconfig", "mode: ipvs\n")]), None);
    }
}
