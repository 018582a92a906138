//! How many ports toward one destination are taken: entries of the conntrack table, counted over ctnetlink.
//!
//! Asked for only where a range seems to be exhausted. The kernel walks its whole table for an answer, whatever it is
//! asked to leave out of it, so questions are few: one a second for each range, and a quarter of the time for all.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Buf;
use rustix::net::netlink::NETFILTER;

use super::ctnetlink::{
    self, CT_GET, CTA_FILTER, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_TUPLE_PROTO, CTA_TUPLE_REPLY, CTA_ZONE, Tuple,
};
use super::netns::{self, Depth, Netns};
use super::wire::{DumpError, NESTED, Socket, put_attribute};
use crate::race::event::NetnsInum;
use crate::race::tuple::{Ends, Protocol};

// enum ctattr_filter
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
// What a filter looks at (net/netfilter/nf_internals.h).
const FILTER_IP: u32 = 1 | 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_SRC_PORT: u32 = 1 << 4;

/// How old an answer may be and serve again.
const FRESH: Duration = Duration::from_secs(1);
/// How much of each second may be spent asking. After a question that took longer there is none for four times as long.
const BUDGET: Duration = Duration::from_millis(250);
/// How long the kernel may take over one answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most answers kept.
const KEPT: usize = 1024;

/// What the entries to be counted have in common: all but the port in their reply tuple.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Range {
    /// Of the flows.
    pub protocol: Protocol,
    /// The translated source address.
    pub translated: IpAddr,
    /// Where the flows go; its port is 0 for ICMP.
    pub destination: SocketAddr,
    /// The conntrack zone of the entries in the reply direction.
    pub zone: u16,
    /// The ports that count, or ids of echoes.
    pub ports: RangeInclusive<u16>,
}

/// Counts, and remembers what it counted for a second.
#[derive(Debug, Default)]
pub struct PortCounts {
    answers: HashMap<(NetnsInum, Range), (Instant, Option<u32>)>,
    /// Where namespaces were found, and when they were last looked for.
    places: HashMap<NetnsInum, Netns>,
    looked: Option<Instant>,
    /// When the running second began, and how much was spent since.
    second: Option<(Instant, Duration)>,
}

impl PortCounts {
    /// How many ports of the range are taken in a namespace, as of a second ago at most; `None` when that cannot be said:
    /// the namespace is gone or may not be entered, the table is too large, or too much was asked in this second.
    pub fn count(&mut self, netns: NetnsInum, range: &Range) -> Option<u32> {
        let now = Instant::now();
        let key = (netns, range.clone());
        if let Some((when, answer)) = self.answers.get(&key)
            && now.duration_since(*when) < FRESH
        {
            return *answer;
        }
        let spent = match self.second {
            Some((began, spent)) if now.duration_since(began) < FRESH.max(4 * spent) => spent,
            _ => {
                self.second = Some((now, Duration::ZERO));
                Duration::ZERO
            }
        };
        if spent >= BUDGET {
            return None;
        }
        let answer = self.ask(netns, range);
        if self.answers.len() >= KEPT {
            self.answers.retain(|_, (when, _)| now.duration_since(*when) < FRESH);
        }
        if self.answers.len() < KEPT {
            self.answers.insert(key, (now, answer));
        }
        answer
    }

    fn ask(&mut self, netns: NetnsInum, range: &Range) -> Option<u32> {
        let fd = match self.places.get(&netns).and_then(|place| place.open().ok()) {
            Some(fd) => fd,
            None => self.find(netns)?,
        };
        let began = Instant::now();
        let answer = netns::in_netns(fd.as_fd(), || taken(range, began + PATIENCE));
        if let Some((_, spent)) = &mut self.second {
            *spent += began.elapsed();
        }
        answer.ok()?.ok()
    }

    /// Looks for a namespace, at most once a second.
    fn find(&mut self, netns: NetnsInum) -> Option<OwnedFd> {
        if self.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return None;
        }
        self.looked = Some(Instant::now());
        self.places = netns::enumerate(Depth::Threads).ok()?.into_iter().map(|place| (place.inum, place)).collect();
        self.places.get(&netns)?.open().ok()
    }
}

/// How many ports of the range are taken in the calling thread's namespace.
fn taken(range: &Range, deadline: Instant) -> Result<u32, DumpError> {
    let ask = |body: &[u8]| {
        Socket::open(Some(NETFILTER))?.until(deadline).dump(CT_GET, body, BTreeSet::new, |ports, _, payload| {
            ports.extend(range.port_of(payload));
        })
    };
    // A kernel before 5.8 does not know the filter and passes it over; one that refuses it is asked without.
    let ports = match ask(&range.request(true)) {
        Err(DumpError::Refused(_)) => ask(&range.request(false))?,
        answer => answer?,
    };
    // A set of ports has 65536 members at most.
    Ok(u32::try_from(ports.len()).unwrap_or(u32::MAX))
}

impl Range {
    /// A request for every entry of the family, or those that the kernel can tell to be none of ours. An address of
    /// IPv6 is not asked for: kernels (5.8 to at least 6.18; net/netfilter/nf_conntrack_netlink.c,
    /// `ctnetlink_filter_match_tuple`) leave out the entries that have it instead of those that have not.
    fn request(&self, filtered: bool) -> Vec<u8> {
        let mut body = ctnetlink::header(self.translated);
        if !filtered {
            return body;
        }
        let mut flags = FILTER_PROTO_NUM;
        let mut tuple = Vec::new();
        if self.translated.is_ipv4() && self.destination.is_ipv4() {
            flags |= FILTER_IP;
            ctnetlink::put_addresses(&mut tuple, self.destination.ip(), self.translated);
        }
        let mut proto = Vec::new();
        put_attribute(&mut proto, CTA_PROTO_NUM, &[self.protocol.0]);
        if matches!(self.protocol, Protocol::TCP | Protocol::UDP) {
            flags |= FILTER_SRC_PORT;
            put_attribute(&mut proto, CTA_PROTO_SRC_PORT, &self.destination.port().to_be_bytes());
        }
        put_attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &proto);
        put_attribute(&mut body, CTA_TUPLE_REPLY | NESTED, &tuple);
        let mut filter = Vec::new();
        put_attribute(&mut filter, CTA_FILTER_REPLY_FLAGS, &flags.to_ne_bytes());
        put_attribute(&mut body, CTA_FILTER | NESTED, &filter);
        body
    }

    /// The port that the entry of one message holds, if it is one of ours. The message is without its netlink
    /// header.
    fn port_of(&self, payload: &[u8]) -> Option<u16> {
        let mut zone = 0;
        let mut reply = Tuple::default();
        for (kind, mut value) in ctnetlink::attributes(payload)? {
            match kind {
                CTA_TUPLE_REPLY => reply = Tuple::parse(value),
                CTA_ZONE => zone = value.try_get_u16().ok()?,
                _ => {}
            }
        }
        let Ends { source, destination } = reply.ends_or_echo()?;
        let ours = (source, destination.ip()) == (self.destination, self.translated)
            && reply.protocol == Some(self.protocol)
            && reply.zone.unwrap_or(zone) == self.zone;
        Some(destination.port()).filter(|port| ours && self.ports.contains(port))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::super::ctnetlink::{
        CTA_IP_V4_DST, CTA_IP_V4_SRC, CTA_PROTO_DST_PORT, CTA_PROTO_ICMP_ID, CTA_TUPLE_IP, CTA_TUPLE_ZONE,
    };
    use super::super::netns::tests::{alone, new_netns};
    use super::super::wire::attribute;
    use super::*;
    use crate::skipped::skipped;

    fn range(translated: &str, destination: &str, ports: RangeInclusive<u16>) -> Range {
        Range {
            protocol: Protocol::UDP,
            translated: translated.parse().unwrap(),
            destination: destination.parse().unwrap(),
            zone: 0,
            ports,
        }
    }

    /// One entry as the kernel dumps it: 10.0.0.2:53 answers 10.0.0.1 at a port.
    fn entry(port: u16, proto: &[Vec<u8>], in_tuple: &[u8], around: &[u8]) -> Vec<u8> {
        let ip = [attribute(CTA_IP_V4_SRC, &[10, 0, 0, 2]), attribute(CTA_IP_V4_DST, &[10, 0, 0, 1])].concat();
        let port = attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        let proto = [proto.concat(), attribute(CTA_PROTO_SRC_PORT, &53_u16.to_be_bytes()), port].concat();
        let tuple = [attribute(CTA_TUPLE_IP, &ip), attribute(CTA_TUPLE_PROTO, &proto), in_tuple.to_vec()].concat();
        [&[2, 0, 0, 0][..], &attribute(1, &[0; 8]), &attribute(CTA_TUPLE_REPLY, &tuple), around].concat()
    }

    #[test]
    fn an_entry_counts_by_its_reply_tuple() {
        let udp = [attribute(CTA_PROTO_NUM, &[17])];
        let of = |range: &Range, bytes: &[u8]| range.port_of(bytes);
        let ours = range("10.0.0.1", "10.0.0.2:53", 100..=200);
        assert_eq!(of(&ours, &entry(100, &udp, &[], &[])), Some(100));
        assert_eq!(of(&ours, &entry(200, &udp, &[], &[])), Some(200));
        assert_eq!(of(&ours, &entry(201, &udp, &[], &[])), None, "out of the range");
        assert_eq!(of(&ours, &entry(100, &[attribute(CTA_PROTO_NUM, &[6])], &[], &[])), None, "another protocol");
        for other in [
            range("10.0.0.3", "10.0.0.2:53", 100..=200),
            range("10.0.0.1", "10.0.0.3:53", 100..=200),
            range("10.0.0.1", "10.0.0.2:54", 100..=200),
        ] {
            assert_eq!(of(&other, &entry(100, &udp, &[], &[])), None, "{other:?}");
        }
        let zoned = Range { zone: 7, ..ours.clone() };
        let zone = |kind| attribute(kind, &7_u16.to_be_bytes());
        for in_zone in [entry(100, &udp, &zone(CTA_TUPLE_ZONE), &[]), entry(100, &udp, &[], &zone(CTA_ZONE))] {
            assert_eq!((of(&ours, &in_zone), of(&zoned, &in_zone)), (None, Some(100)));
        }
    }

    #[test]
    fn the_id_of_an_echo_counts_as_a_port() {
        let mut ping = range("10.0.0.1", "10.0.0.2:0", 0..=u16::MAX);
        ping.protocol = Protocol::ICMP;
        let ip = [attribute(CTA_IP_V4_SRC, &[10, 0, 0, 2]), attribute(CTA_IP_V4_DST, &[10, 0, 0, 1])].concat();
        let proto =
            [attribute(CTA_PROTO_NUM, &[1]), attribute(CTA_PROTO_ICMP_ID, &77_u16.to_be_bytes()), attribute(5, &[0])];
        let tuple = [attribute(CTA_TUPLE_IP, &ip), attribute(CTA_TUPLE_PROTO, &proto.concat())].concat();
        let bytes = [&[2, 0, 0, 0][..], &attribute(CTA_TUPLE_REPLY, &tuple)].concat();
        assert_eq!(ping.port_of(&bytes), Some(77));
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = range("10.0.0.1", "10.0.0.2:53", 0..=9).port_of(&bytes);
        }
    }

    /// Flows of the loopback, each of which holds the port it was sent from.
    #[test]
    fn the_kernels_table_is_counted() {
        let Some(_alone) = alone() else { return };
        let netns = new_netns();
        let inum = Netns::of(netns.as_fd()).unwrap().inum;
        let script = "ip link set lo up && \
                      nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
                      add rule inet t c ct state new'";
        let made = netns::in_netns(netns.as_fd(), || {
            Command::new("sh").args(["-c", script]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        if !made.unwrap() {
            skipped("no ip, no nft, or no conntrack in this kernel");
            return;
        }
        // Both namespaces are found by their files only.
        let count = |range: &Range| {
            let deadline = Instant::now() + Duration::from_secs(5);
            netns::in_netns(netns.as_fd(), || taken(range, deadline)).unwrap()
        };
        for (host, others) in [("127.0.0.1", "127.0.0.2"), ("::1", "fd00::1")] {
            let sent = netns::in_netns(netns.as_fd(), || {
                let to: IpAddr = host.parse().unwrap();
                let receiver = UdpSocket::bind((to, 7000)).unwrap();
                let send = |from: u16, to: (IpAddr, u16)| {
                    let socket = UdpSocket::bind((to.0, from)).unwrap();
                    socket.send_to(b"x", to).unwrap();
                    socket
                };
                let toward = [6001, 6003, 6010, 6011].map(|from| send(from, (to, 7000)));
                (receiver, toward, send(6002, (to, 7001)))
            });
            let destination = SocketAddr::new(host.parse().unwrap(), 7000).to_string();
            assert_eq!(count(&range(host, &destination, 6000..=6010)), Ok(3), "{host}");
            assert_eq!(count(&range(host, &destination, 6004..=6009)), Ok(0), "{host}");
            assert_eq!(count(&range(others, &destination, 6000..=6010)), Ok(0), "{host}");
            let unfiltered = Range { ports: 0..=u16::MAX, ..range(host, &destination, 0..=0) };
            assert_eq!(count(&unfiltered), Ok(4), "{host}");
            drop(sent);
        }
        let range = range("127.0.0.1", "127.0.0.1:7000", 6000..=6010);
        let late = netns::in_netns(netns.as_fd(), || taken(&range, Instant::now())).unwrap();
        assert_eq!(late, Err(DumpError::TooLong));
        // Held by no process: not found by the look a count may take.
        assert_eq!(PortCounts::default().count(inum, &range), None);
        let mut counts = PortCounts::default();
        counts.places.insert(inum, Netns::of(netns.as_fd()).unwrap());
        assert_eq!(counts.count(inum, &range), Some(3));
        // Within a second it is not asked again, whatever happened to the place.
        counts.places.clear();
        assert_eq!(counts.count(inum, &range), Some(3));
        // Nor is anything else, once the second's budget is spent.
        counts.second = Some((Instant::now(), BUDGET));
        assert_eq!(counts.count(inum, &Range { ports: 1..=2, ..range }), None);
    }
}
