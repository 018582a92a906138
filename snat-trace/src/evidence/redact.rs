//! Evidence that names nobody: addresses and names are exchanged for others, equal ones for equal ones.
//!
//! The exchange depends on a key that is made for one recording and never written, so it cannot be turned back from the
//! file. Addresses go to addresses of their own kind (private ones of a range to the same range, public to public), and no
//! two to the same. Ports, times and numbers that mean nothing elsewhere (process ids, inode numbers) stay: they are what
//! a race is about.

mod addresses;
mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher as _};
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use rustix::rand::{GetRandomFlags, getrandom};
use siphasher::sip::SipHasher24;

use super::node::{Cni, CniPlugin, KubeProxy, NodeRecord};
use super::reader::Item;
use crate::owner::{Behind, CommandLine, Container, Owner, Pod, Program};
use crate::race::event::{Flow, Race};
use crate::race::failure::Failure;
use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};
use crate::session::Session;

/// What stands between words.
const SEPARATORS: [char; 7] = ['/', '-', '_', '.', ':', '@', ' '];
/// Words of container runtimes and systemd, which tell how a group came to be and not whose it is.
const KEPT: [&str; 29] = [
    "app",
    "besteffort",
    "burstable",
    "conmon",
    "containerd",
    "cri",
    "crio",
    "default",
    "docker",
    "init",
    "io",
    "k8s",
    "kubelet",
    "kubepods",
    "libpod",
    "machine",
    "moby",
    "nspawn",
    "oci",
    "podman",
    "root",
    "scope",
    "service",
    "session",
    "slice",
    "system",
    "systemd",
    "target",
    "user",
];
/// Plugins that container networks are made of, and modes of kube-proxy.
const KNOWN: [&str; 26] = [
    "aws-cni",
    "azure-vnet",
    "bandwidth",
    "bridge",
    "calico",
    "cilium-cni",
    "dhcp",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "iptables",
    "ipvs",
    "kernelspace",
    "loopback",
    "macvlan",
    "nftables",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
    "userspace",
    "vlan",
    "weave-net",
];
/// Folders in which kube-proxy's files are.
const FOLDERS: [&str; 10] =
    ["", "etc", "kubernetes", "manifests", "var", "lib", "kubelet", "pods", "volumes", "kubernetes.io~configmap"];
/// Hexadecimal digits from which on a word is an id and keeps its length.
const SHORTEST_ID: usize = 12;
/// Hexadecimal digits of the first part of a pod's uid.
const UID_PART: usize = 8;
/// Digits for any other word.
const WORD: usize = 8;

/// Exchanges what evidence should not tell, as it is recorded or as it is read.
pub struct Redactor(SipHasher24);

/// Without the key.
impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

impl Redactor {
    /// With a key of its own.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut key = [0; 16];
        let filled = getrandom(&mut key, GetRandomFlags::empty())?;
        if filled < key.len() {
            return Err(io::Error::other("the kernel gave too few random bytes"));
        }
        Ok(Self(SipHasher24::new_with_key(&key)))
    }

    /// One line of evidence. Equal names and addresses of all items that one redactor has exchanged are equal still.
    #[must_use]
    pub fn item(&self, item: Item) -> Item {
        match item {
            Item::Session(session) => Item::Session(Box::new(self.session(&session))),
            Item::Node(node) => Item::Node(Box::new(self.node(*node))),
            Item::Race(race) => Item::Race(Box::new(self.race(&race))),
            Item::Failure(failure) => Item::Failure(Box::new(self.failure(&failure))),
            Item::Rules(rules) => Item::Rules(Box::new(self.rules(&rules))),
            // Numbers, and names of modules and counters.
            Item::Sample(_) | Item::Summary(_) => item,
        }
    }

    /// The head of a recording, without what tells this boot of this machine from others.
    pub(super) fn session(&self, session: &Session) -> Session {
        let boot_id = session.boot_id.as_ref().map(|id| self.words(id));
        Session { boot_id, ..session.clone() }
    }

    /// The machine, without names that somebody gave.
    pub(super) fn node(&self, node: NodeRecord) -> NodeRecord {
        let path = |path: String| match path.rsplit_once('/') {
            Some((folder, name)) => format!("{folder}/{}", self.words(name)),
            None => self.words(&path),
        };
        let queue = |queue: &str| match queue.split_once('/') {
            Some((device, queue)) => format!("{}/{queue}", self.words(device)),
            None => self.words(queue),
        };
        NodeRecord {
            rps: node.rps.into_iter().map(|(name, mask)| (queue(&name), mask)).collect(),
            networks: node.networks.into_iter().map(path).collect::<BTreeSet<_>>(),
            cni: node.cni.into_iter().map(|cni| self.cni(cni)).collect(),
            kube_proxy: node.kube_proxy.map(|KubeProxy { file, mode }| KubeProxy {
                // A pod's uid is in it.
                file: file
                    .split('/')
                    .map(|part| if FOLDERS.contains(&part) { part.into() } else { self.words(part) })
                    .collect::<Vec<_>>()
                    .join("/"),
                mode: self.unless_known(mode),
            }),
            ..node
        }
    }

    fn cni(&self, Cni { file, cni_version, plugins }: Cni) -> Cni {
        let is_number = |version: &String| version.chars().all(|part| part.is_ascii_digit() || part == '.');
        Cni {
            file: match file.rsplit_once('/') {
                Some((folder, name)) => format!("{folder}/{}", self.words(name)),
                None => self.words(&file),
            },
            cni_version: cni_version.filter(is_number),
            plugins: plugins
                .into_iter()
                .map(|plugin| CniPlugin { kind: self.unless_known(plugin.kind), ..plugin })
                .collect(),
        }
    }

    /// A word that everybody's machine may have stays; any other may be somebody's.
    fn unless_known(&self, word: String) -> String {
        if KNOWN.contains(&word.as_str()) { word } else { self.words(&word) }
    }

    /// A race.
    pub(super) fn race(&self, race: &Race) -> Race {
        Race {
            contested: TranslatedTuple::from_ends(self.ends(race.contested.ends())),
            winner: self.flow(&race.winner),
            loser: self.flow(&race.loser),
            packet: self.packet(&race.packet, race.protocol),
            ..race.clone()
        }
    }

    /// A failure that is no race.
    pub(super) fn failure(&self, failure: &Failure) -> Failure {
        Failure { flow: self.flow(&failure.flow), ..failure.clone() }
    }

    fn flow(&self, flow: &Flow) -> Flow {
        Flow {
            original: OriginalTuple::from_ends(self.ends(flow.original.ends())),
            owner: flow.owner.as_ref().map(|owner| self.owner(owner)),
            behind: flow.behind.as_ref().map(|behind| self.behind(behind)),
            ..flow.clone()
        }
    }

    /// Interfaces of pods have names made of the pods' own.
    fn behind(&self, Behind { interface, port, netns, container, pod }: &Behind) -> Behind {
        Behind {
            interface: self.words(interface),
            port: port.as_deref().map(|port| self.words(port)),
            netns: *netns,
            container: container.as_ref().map(|container| self.container(container)),
            pod: pod.as_ref().map(|pod| self.pod(pod)),
        }
    }

    fn container(&self, Container { runtime, id, name, image }: &Container) -> Container {
        Container {
            runtime: runtime.clone(),
            id: self.words(id),
            name: name.as_deref().map(|name| self.words(name)),
            image: image.as_deref().map(|image| self.words(image)),
        }
    }

    fn pod(&self, Pod { namespace, name, uid }: &Pod) -> Pod {
        Pod { namespace: self.words(namespace), name: self.words(name), uid: self.words(uid) }
    }

    fn owner(&self, owner: &Owner) -> Owner {
        let words = |text: &String| self.words(text);
        let command = |CommandLine { words, cut }: &CommandLine| CommandLine {
            words: words.iter().map(|word| self.words(word)).collect(),
            cut: *cut,
        };
        let Program { executable, command_line, .. } = &owner.program;
        let program = Program {
            executable: executable.as_ref().map(words),
            command_line: command_line.as_ref().map(command),
            ..owner.program.clone()
        };
        Owner {
            program,
            comm: self.words(&owner.comm),
            cgroup: owner.cgroup.as_ref().map(words),
            container: owner.container.as_ref().map(|container| self.container(container)),
            pod: owner.pod.as_ref().map(|pod| self.pod(pod)),
            ..owner.clone()
        }
    }

    /// A name, word by word, so that one is the same wherever it stands. What runtimes and systemd put around it stays.
    fn words(&self, name: &str) -> String {
        let mut exchanged = String::new();
        for piece in name.split_inclusive(SEPARATORS) {
            let word = piece.trim_end_matches(SEPARATORS);
            let separator = &piece[word.len()..];
            // The kubelet writes a pod's uid behind this.
            let word = match word.strip_prefix("pod") {
                Some(uid) if uid.len() >= UID_PART && is_hexadecimal(uid) => {
                    exchanged.push_str("pod");
                    uid
                }
                _ => word,
            };
            if word.len() >= SHORTEST_ID && is_hexadecimal(word) {
                exchanged.push_str(&self.digits(word, word.len()));
            } else if word.is_empty() || KEPT.contains(&word) {
                exchanged.push_str(word);
            } else {
                exchanged.push('x');
                exchanged.push_str(&self.digits(word, WORD));
            }
            exchanged.push_str(separator);
        }
        exchanged
    }

    /// So many hexadecimal digits instead of a word.
    fn digits(&self, word: &str, count: usize) -> String {
        let digits = (0..).flat_map(|part: u32| format!("{:016x}", self.hash(&(word, part))).into_bytes());
        digits.take(count).map(char::from).collect()
    }

    fn hash(&self, value: &impl Hash) -> u64 {
        let mut hasher = self.0;
        value.hash(&mut hasher);
        hasher.finish()
    }

    fn ends(&self, Ends { source, destination }: Ends) -> Ends {
        let end = |end: SocketAddr| SocketAddr::new(self.address(end.ip()), end.port());
        Ends { source: end(source), destination: end(destination) }
    }

    /// The head of a packet: its addresses exchanged, ports and lengths as they are, no checksum and nothing of the content.
    fn packet(&self, packet: &Bytes, protocol: Protocol) -> Bytes {
        let mut packet = packet.to_vec();
        let header = match packet.first().map(|byte| byte >> 4) {
            Some(4) if packet.len() >= 20 => {
                for at in [12, 16] {
                    if let Ok(address) = <[u8; 4]>::try_from(&packet[at..at + 4]) {
                        packet[at..at + 4].copy_from_slice(&self.v4(address.into()).octets());
                    }
                }
                packet[10..12].fill(0);
                usize::from(packet[0] & 0xf) * 4
            }
            Some(6) if packet.len() >= 40 => {
                for at in [8, 24] {
                    if let Ok(address) = <[u8; 16]>::try_from(&packet[at..at + 16]) {
                        packet[at..at + 16].copy_from_slice(&self.v6(address.into()).octets());
                    }
                }
                40
            }
            // Something else: nothing of it is known to be harmless.
            _ => 0,
        };
        // Options of IP may tell addresses.
        if header > 20 && packet.first().is_some_and(|byte| byte >> 4 == 4) {
            packet[20..].iter_mut().take(header - 20).for_each(|byte| *byte = 0);
        }
        for (at, byte) in packet.iter_mut().enumerate().skip(header) {
            if header == 0 || !is_kept(at - header, protocol) {
                *byte = 0;
            }
        }
        packet.into()
    }
}

fn is_hexadecimal(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a byte of a protocol's header, counted from its beginning, is neither content nor a checksum of it.
fn is_kept(at: usize, protocol: Protocol) -> bool {
    match protocol {
        // Up to the window.
        Protocol::TCP => at < 16,
        // Ports and length.
        Protocol::UDP | Protocol::UDPLITE => at < 6,
        // Type and code, id and sequence number.
        Protocol::ICMP | Protocol::ICMPV6 => matches!(at, 0..2 | 4..8),
        // Ports, where there are any.
        _ => at < 4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::output::golden;

    const CURL: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";

    pub(super) fn with_key(key: u8) -> Redactor {
        Redactor(SipHasher24::new_with_key(&[key; 16]))
    }

    #[test]
    fn names_keep_what_their_runtime_put_around_them() {
        let redactor = with_key(1);
        let id = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
        let path = redactor.words(&format!("/kubepods.slice/kubepods-burstable-acme.slice/cri-containerd-{id}.scope"));
        let exchanged = redactor.words(id);
        assert_eq!(exchanged.len(), id.len());
        assert!(path.starts_with("/kubepods.slice/kubepods-burstable-x"), "{path}");
        assert!(path.ends_with(&format!(".slice/cri-containerd-{exchanged}.scope")), "{path}");
        assert!(!path.contains("acme") && !path.contains(&id[..12]), "{path}");
        // The same word is the same one everywhere, and another with another key.
        assert_eq!(redactor.words("nginx.service"), format!("{}.service", redactor.words("nginx")));
        assert_ne!(redactor.words("nginx"), with_key(2).words("nginx"));
    }

    #[test]
    fn a_pod_is_the_same_in_its_cgroup_and_by_its_name() {
        let redactor = with_key(1);
        let (uid, hash) = ("0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11", "5e3fa1c0d2b44e6f8a9b0c1d2e3f4051");
        let path = redactor.words(&format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_")));
        assert_eq!(path, format!("/kubepods.slice/kubepods-pod{}.slice", redactor.words(uid).replace('-', "_")));
        assert_eq!(redactor.words(&format!("/kubepods/pod{hash}")), format!("/kubepods/pod{}", redactor.words(hash)));
        let owner =
            golden::every_kind().into_iter().find_map(|race| race.loser.owner.filter(|owner| owner.pod.is_some()));
        let owner = owner.unwrap();
        let (pod, exchanged) = (owner.pod.clone().unwrap(), redactor.owner(&owner));
        let now = exchanged.pod.clone().unwrap();
        assert_eq!(
            [&now.namespace, &now.name, &now.uid],
            [&redactor.words(&pod.namespace), &redactor.words(&pod.name), &redactor.words(&pod.uid)]
        );
        let container = exchanged.container.clone().unwrap();
        let texts = format!("{exchanged:?}");
        for told in ["shop", "cart", "x2k4q", "0f3ae9d2", "registry", "example", "1.4", &CURL[..12]] {
            assert!(!texts.contains(told), "{told} in {texts}");
        }
        assert!(container.image.is_some() && container.name.is_some() && exchanged.workload().contains('/'));
    }

    #[test]
    fn a_machine_keeps_what_every_machine_has() {
        let redactor = with_key(1);
        let plugin = |kind: &str| CniPlugin { kind: kind.to_owned(), ip_masq: Some(true) };
        let node = NodeRecord {
            cni: vec![Cni {
                file: "/etc/cni/net.d/10-acme.conflist".to_owned(),
                cni_version: Some("1.0.0".to_owned()),
                plugins: vec![plugin("bridge"), plugin("acme-net")],
            }],
            kube_proxy: Some(KubeProxy {
                file: "/var/lib/kubelet/pods/0f3ae9d2-1c55/volumes/kubernetes.io~configmap/kube-proxy/config.conf"
                    .to_owned(),
                mode: "nftables".to_owned(),
            }),
            ..NodeRecord::default()
        };
        let (told, proxy) = (redactor.node(node.clone()), node.kube_proxy.unwrap());
        let text = format!("{told:?}");
        for secret in ["acme", "0f3ae9d2"] {
            assert!(!text.contains(secret), "{text}");
        }
        let [Cni { cni_version, plugins, .. }] = told.cni.as_slice() else { panic!("{text}") };
        assert_eq!((cni_version.as_deref(), plugins[0].clone()), (Some("1.0.0"), plugin("bridge")));
        assert_eq!(plugins[1].ip_masq, Some(true));
        let told = told.kube_proxy.unwrap();
        assert_eq!(told.mode, proxy.mode);
        assert!(told.file.starts_with("/var/lib/kubelet/pods/x"), "{}", told.file);
    }

    #[test]
    fn a_packet_keeps_its_ports_and_nothing_of_its_content() {
        let redactor = with_key(1);
        let mut packet = vec![0x45, 0, 0, 36, 1, 2, 0x40, 0, 64, 17, 0xaa, 0xbb, 10, 0, 0, 1, 8, 8, 8, 8];
        packet.extend([0x27, 0x10, 0, 53, 0, 16, 0xcc, 0xdd]);
        packet.extend(b"secret!!");
        let exchanged = redactor.packet(&packet.clone().into(), Protocol::UDP);
        assert_eq!(exchanged.len(), packet.len());
        assert_eq!(exchanged[12..16], redactor.v4(Ipv4Addr::new(10, 0, 0, 1)).octets());
        assert_eq!(exchanged[16..20], redactor.v4(Ipv4Addr::new(8, 8, 8, 8)).octets());
        assert_eq!(exchanged[20..26], packet[20..26]);
        assert!(exchanged[10..12].iter().chain(&exchanged[26..]).all(|&byte| byte == 0), "{exchanged:?}");
        let echo = redactor.packet(&packet.clone().into(), Protocol::ICMP);
        assert_eq!((&echo[20..24], &echo[24..28]), (&[0x27, 0x10, 0, 0][..], &packet[24..28]));
        assert!(echo[28..].iter().all(|&byte| byte == 0), "{echo:?}");
        assert!(
            redactor
                .packet(&b"????????????????????????".as_slice().into(), Protocol::UDP)
                .iter()
                .all(|&byte| byte == 0)
        );
    }

    #[test]
    fn a_race_keeps_its_shape() {
        let redactor = Redactor::new().unwrap();
        for race in golden::every_kind() {
            let exchanged = redactor.race(&race);
            assert_eq!((exchanged.time, exchanged.class, exchanged.verdict), (race.time, race.class, race.verdict));
            // Both flows still go to one place, and from one port if they did.
            let (loser, winner) = (race.loser.original.ends(), race.winner.original.ends());
            let (loser_now, winner_now) = (exchanged.loser.original.ends(), exchanged.winner.original.ends());
            assert_eq!(loser.destination == winner.destination, loser_now.destination == winner_now.destination);
            assert_eq!(loser.source == winner.source, loser_now.source == winner_now.source);
            assert_eq!(
                (loser.source.port(), winner.source.port()),
                (loser_now.source.port(), winner_now.source.port())
            );
            assert_eq!(race.contested.ends().destination == loser.destination, {
                exchanged.contested.ends().destination == loser_now.destination
            });
        }
    }

    proptest! {
        #[test]
        fn any_name_and_packet_is_survived(name in "\\PC{0,40}", packet in proptest::collection::vec(any::<u8>(), 0..130)) {
            let redactor = with_key(1);
            let _ = redactor.words(&name);
            prop_assert_eq!(redactor.packet(&packet.clone().into(), Protocol::TCP).len(), packet.len());
        }
    }
}
