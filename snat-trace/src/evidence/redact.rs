//! Evidence that names nobody: addresses and names are exchanged for others, equal ones for equal ones.
//!
//! The exchange depends on a key that is made for one recording and never written, so it cannot be turned back from the
//! file. Addresses go to addresses of their own kind (private ones of a range to the same range, public to public), and no
//! two to the same. Ports, times and numbers that mean nothing elsewhere (process ids, inode numbers) stay: they are what
//! a race is about.

mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher as _};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use rustix::rand::{GetRandomFlags, getrandom};
use siphasher::sip::SipHasher24;

use super::node::NodeRecord;
use super::reader::Item;
use super::rules::Rules;
use crate::owner::{Container, Owner};
use crate::race::event::{Flow, Race};
use crate::race::failure::Failure;
use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};
use crate::session::Session;

/// Rounds of the permutation of addresses: four make it as good as its round function (Luby and Rackoff), more do for domains
/// as small as 16 bits.
const ROUNDS: u8 = 10;

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
/// Hexadecimal digits from which on a word is an id and keeps its length.
const SHORTEST_ID: usize = 12;
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
            Item::Rules(rules) => Item::Rules(Box::new(Rules { audit: self.audit(&rules.audit), ..*rules })),
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
            ..node
        }
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
            ..flow.clone()
        }
    }

    fn owner(&self, owner: &Owner) -> Owner {
        let container = owner
            .container
            .as_ref()
            .map(|container| Container { runtime: container.runtime.clone(), id: self.words(&container.id) });
        Owner {
            comm: self.words(&owner.comm),
            cgroup: owner.cgroup.as_ref().map(|path| self.words(path)),
            container,
            ..owner.clone()
        }
    }

    /// A name, word by word, so that one is the same wherever it stands. What runtimes and systemd put around it stays.
    fn words(&self, name: &str) -> String {
        let mut exchanged = String::new();
        for piece in name.split_inclusive(SEPARATORS) {
            let word = piece.trim_end_matches(SEPARATORS);
            let is_id = word.len() >= SHORTEST_ID && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_id {
                exchanged.push_str(&self.digits(word, word.len()));
            } else if word.is_empty() || KEPT.contains(&word) {
                exchanged.push_str(word);
            } else {
                exchanged.push('x');
                exchanged.push_str(&self.digits(word, WORD));
            }
            exchanged.push_str(&piece[word.len()..]);
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

    fn address(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => self.v4(address).into(),
            IpAddr::V6(address) => self.v6(address).into(),
        }
    }

    fn v4(&self, address: Ipv4Addr) -> Ipv4Addr {
        let kind = kind_v4(address);
        let Some(free) = kind else { return address };
        let mut bits = address.to_bits();
        loop {
            let fixed = if free == 32 { 0 } else { bits >> free << free };
            let low = self.permuted(4, free, u128::from(bits ^ fixed));
            bits = fixed | u32::try_from(low).unwrap_or(0);
            // Out of the kind, which only happens to public ones, it is exchanged again: that keeps any two apart.
            if kind_v4(bits.into()) == kind {
                return bits.into();
            }
        }
    }

    fn v6(&self, address: Ipv6Addr) -> Ipv6Addr {
        if let Some(inner) = address.to_ipv4_mapped() {
            return self.v4(inner).to_ipv6_mapped();
        }
        let free = match address.segments()[0] {
            // Loopback and what is not specified, and multicast, whose groups are known.
            _ if address.is_loopback() || address.is_unspecified() || address.is_multicast() => return address,
            // Link-local, by its interface.
            0xfe80..=0xfebf => 64,
            // Unique local: the first byte tells.
            0xfc00..=0xfdff => 120,
            _ => 124,
        };
        let bits = address.to_bits();
        let fixed = bits >> free << free;
        (fixed | self.permuted(6, free, bits ^ fixed)).into()
    }

    /// A number of so many bits, an even number of them, for another: a Feistel network, so that no two become one.
    fn permuted(&self, domain: u8, bits: u32, number: u128) -> u128 {
        let half = bits / 2;
        let mask = (1_u128 << half) - 1;
        let (mut left, mut right) = (number >> half, number & mask);
        for round in 0..ROUNDS {
            let mixed = u128::from(self.hash(&(domain, bits, round, right))) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << half | right
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

/// How many of an address's low bits may change without it becoming one of another kind; `None` where all of it is known.
fn kind_v4(address: Ipv4Addr) -> Option<u32> {
    match address.octets() {
        [0 | 127 | 224.., ..] => None,
        [10, ..] => Some(24),
        [172, 16..=31, ..] => Some(20),
        [192, 168, ..] | [169, 254, ..] => Some(16),
        // Carriers' own (RFC 6598).
        [100, 64..=127, ..] => Some(22),
        _ => Some(32),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::output::golden;

    fn with_key(key: u8) -> Redactor {
        Redactor(SipHasher24::new_with_key(&[key; 16]))
    }

    #[test]
    fn no_two_addresses_of_a_range_become_one() {
        let redactor = with_key(1);
        let all: HashSet<Ipv4Addr> = (0..=u16::MAX)
            .map(|low| redactor.v4(Ipv4Addr::from_bits(u32::from_be_bytes([192, 168, 0, 0]) | u32::from(low))))
            .collect();
        assert_eq!(all.len(), 1 << 16);
        assert!(all.iter().all(|address| address.octets()[..2] == [192, 168]));
        let public: HashSet<_> = (0..1 << 16).map(|low| redactor.v4(Ipv4Addr::from_bits(0x0808_0000 | low))).collect();
        assert_eq!(public.len(), 1 << 16);
    }

    #[test]
    fn what_is_known_anyway_stays() {
        let redactor = with_key(1);
        for address in ["127.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "::1", "::", "ff02::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(redactor.address(address), address);
        }
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
        fn an_address_stays_of_its_kind(bits: u32, key: u8) {
            let address = Ipv4Addr::from_bits(bits);
            let exchanged = with_key(key).v4(address);
            prop_assert_eq!(kind_v4(address), kind_v4(exchanged));
            prop_assert_eq!(address.is_private(), exchanged.is_private());
            prop_assert_eq!(exchanged, with_key(key).v4(address));
        }

        #[test]
        fn an_ipv6_address_stays_of_its_kind(bits: u128, range in prop::sample::select(vec![0xfd00_u16, 0xfe80, 0x2001, 0x64]), key: u8) {
            let address = Ipv6Addr::from_bits(bits >> 16 | u128::from(range) << 112);
            let exchanged = with_key(key).v6(address);
            prop_assert_eq!(address.is_unique_local(), exchanged.is_unique_local());
            prop_assert_eq!(address.is_unicast_link_local(), exchanged.is_unicast_link_local());
            prop_assert_ne!(address, exchanged);
        }

        #[test]
        fn different_ipv6_addresses_stay_different(one: u128, other: u128) {
            let redactor = with_key(3);
            prop_assert_eq!(one == other, redactor.v6(one.into()) == redactor.v6(other.into()));
        }

        #[test]
        fn any_name_and_packet_is_survived(name in "\\PC{0,40}", packet in proptest::collection::vec(any::<u8>(), 0..130)) {
            let redactor = with_key(1);
            let _ = redactor.words(&name);
            prop_assert_eq!(redactor.packet(&packet.clone().into(), Protocol::TCP).len(), packet.len());
        }
    }
}
