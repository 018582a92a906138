//! The connection tracking table of the node's namespace, as the lab itself fills it through ctnetlink.
//!
//! The limit of entries is compared with those of each namespace by itself (net/netfilter/nf_conntrack_core.c,
//! `__nf_conntrack_alloc`), so that nobody else's table gets full. It is the whole node's setting and stays as it is.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::error::{Doing, LabError};
use super::netns::Netns;
use crate::counters::ctnetlink::{
    CT_DELETE, CT_NEW, CTA_PROTO_DST_PORT, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_STATUS, CTA_TIMEOUT, CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO, CTA_TUPLE_REPLY, header, put_addresses,
};
use crate::counters::wire::{DumpError, NESTED, Socket, put_attribute};
use crate::race::tuple::{Ends, Protocol};

/// More entries the lab does not make: at some 400 bytes each, a hundred megabytes of the kernel's.
const MOST_ENTRIES: u32 = 262_144;
/// Entries per bucket with which most chains have as many as the kernel admits: two are of one entry, and from 50 to 80
/// are admitted (net/netfilter/nf_conntrack_core.c, `MIN_CHAINLEN` and `MAX_CHAINLEN`).
const ENTRIES_PER_BUCKET: u32 = 40;
/// Seconds an entry stays: longer than any run.
const TIMEOUT: u32 = 24 * 60 * 60;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const ASSURED: u32 = 2 | 4 | 8;
/// Each address of the entries that fill the table stands in so many.
const PORTS: u32 = 50_000;

/// What the table is filled with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Filling {
    /// Up to the limit, with entries that are never evicted.
    Kept,
    /// Up to the limit, with entries that are evicted for others.
    Evictable,
    /// With so many that the hash chains are as long as they may be.
    Chains,
}

impl Filling {
    /// How many entries it takes.
    pub(super) fn entries(self, node: &Netns) -> Result<u32, LabError> {
        let (limit, buckets) = node.inside(|| Ok((setting("max")?, setting("buckets")?)))?;
        let refuse = |what: String| Err(LabError::Table(what));
        if self != Self::Chains {
            return match limit {
                1..=MOST_ENTRIES => Ok(limit),
                // No limit at all.
                0 => refuse("net.netfilter.nf_conntrack_max is 0 and sets no limit".to_owned()),
                more => refuse(format!(
                    "net.netfilter.nf_conntrack_max is {more}, and the lab makes {MOST_ENTRIES} entries at most: set it \
                     to that or less meanwhile"
                )),
            };
        }
        let path = Path::new("/proc/thread-self/net/stat/nf_conntrack");
        let limits = node.inside(|| fs::read_to_string(path).doing("read the conntrack statistics"))?;
        if !limits.contains("chainlength") {
            return refuse("this kernel admits hash chains of any length".to_owned());
        }
        let entries = buckets.saturating_mul(ENTRIES_PER_BUCKET);
        if entries > MOST_ENTRIES || limit != 0 && entries >= limit {
            let few = MOST_ENTRIES / ENTRIES_PER_BUCKET;
            return refuse(format!(
                "with {buckets} buckets for {limit} entries no hash chain gets too long; set \
                 /sys/module/nf_conntrack/parameters/hashsize to {few} or less and net.netfilter.nf_conntrack_max to more \
                 than {ENTRIES_PER_BUCKET} times as much meanwhile"
            ));
        }
        Ok(entries)
    }
}

/// A setting of connection tracking in the calling thread's namespace.
fn setting(name: &str) -> Result<u32, LabError> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    let value = text.and_then(|text| text.trim().parse().map_err(std::io::Error::other));
    value.doing("read the limits of connection tracking")
}

/// The node's table.
#[derive(Debug)]
pub(super) struct Table {
    ctnetlink: Socket,
    /// Number of the next entry that fills it.
    next: u32,
}

impl Table {
    /// That of a namespace.
    pub(super) fn of(node: &Netns) -> Result<Self, LabError> {
        let ctnetlink = node.inside(|| Socket::open(Some(NETFILTER)).map_err(failed))?;
        Ok(Self { ctnetlink, next: 0 })
    }

    /// Removes what is there.
    pub(super) fn clear(&self) -> Result<(), LabError> {
        self.ctnetlink.remove(CT_DELETE, &header(Ipv4Addr::UNSPECIFIED.into())).map_err(failed)
    }

    /// Removes what is there and puts `entries` others in.
    pub(super) fn fill(&mut self, filling: Filling, entries: u32) -> Result<(), LabError> {
        self.clear()?;
        self.add(filling, entries)
    }

    /// Fills the room that has come about. A table that was too full, in whatever namespace, has the kernel evict what it
    /// can in all of them, down to 95 % of the limit (net/netfilter/nf_conntrack_core.c, `gc_worker`).
    pub(super) fn top_up(&mut self, node: &Netns) -> Result<(), LabError> {
        let (limit, count) = node.inside(|| Ok((setting("max")?, setting("count")?)))?;
        self.add(Filling::Evictable, limit.saturating_sub(count))
    }

    fn add(&mut self, filling: Filling, entries: u32) -> Result<(), LabError> {
        let status = (filling != Filling::Evictable).then_some(ASSURED);
        for _ in 0..entries {
            let ends = filler(self.next);
            self.next = self.next.wrapping_add(1);
            match self.ctnetlink.create(CT_NEW, &entry(ends, turned(ends), status)) {
                // Another's chain is full already.
                Err(DumpError::Refused(Errno::NOSPC)) if filling == Filling::Chains => {}
                // A packet of the lab's own came in between.
                Err(DumpError::Refused(Errno::NOMEM)) if filling == Filling::Kept => return Ok(()),
                made => made.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Has an entry made that cannot be, because one of the same tuple is there, in one direction at least.
    pub(super) fn refused(&self, original: Ends, reply: Ends) -> Result<(), LabError> {
        match self.ctnetlink.create(CT_NEW, &entry(original, reply, None)) {
            Err(DumpError::Refused(Errno::EXIST)) => Ok(()),
            Ok(()) => Err(LabError::Table(format!("{} was made though it was there", original.source))),
            Err(error) => Err(failed(error)),
        }
    }
}

fn failed(error: DumpError) -> LabError {
    let source = match error {
        DumpError::Socket(errno) | DumpError::Refused(errno) => errno.into(),
        other => std::io::Error::other(other),
    };
    LabError::System { doing: "use ctnetlink", source }
}

/// The other direction.
pub(super) fn turned(Ends { source, destination }: Ends) -> Ends {
    Ends { source: destination, destination: source }
}

/// Flows of addresses that nobody has.
fn filler(number: u32) -> Ends {
    let port = u16::try_from(number % PORTS).unwrap_or(0) + 1;
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(10, 98, 0, 0).to_bits().wrapping_add(number / PORTS));
    Ends {
        source: SocketAddr::new(source.into(), port),
        destination: SocketAddr::new(Ipv4Addr::new(10, 98, 255, 254).into(), 7),
    }
}

/// The body of a request for an entry of UDP. What is not assured has no status.
fn entry(original: Ends, reply: Ends, status: Option<u32>) -> Vec<u8> {
    let mut body = header(original.source.ip());
    put_tuple(&mut body, CTA_TUPLE_ORIG, original);
    put_tuple(&mut body, CTA_TUPLE_REPLY, reply);
    put_attribute(&mut body, CTA_TIMEOUT, &TIMEOUT.to_be_bytes());
    if let Some(status) = status {
        put_attribute(&mut body, CTA_STATUS, &status.to_be_bytes());
    }
    body
}

fn put_tuple(body: &mut Vec<u8>, kind: u16, Ends { source, destination }: Ends) {
    let mut tuple = Vec::new();
    put_addresses(&mut tuple, source.ip(), destination.ip());
    let mut protocol = Vec::new();
    put_attribute(&mut protocol, CTA_PROTO_NUM, &[Protocol::UDP.0]);
    put_attribute(&mut protocol, CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
    put_attribute(&mut protocol, CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
    put_attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &protocol);
    put_attribute(body, kind | NESTED, &tuple);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::counters::ctnetlink::{Tuple, attributes};

    #[test]
    fn no_two_entries_that_fill_the_table_are_of_one_flow() {
        let flows: HashSet<_> = (0..MOST_ENTRIES).map(|number| filler(number).source).collect();
        assert_eq!(flows.len(), usize::try_from(MOST_ENTRIES).unwrap());
        assert!(flows.iter().all(|source| source.port() != 0 && source.ip() != Ipv4Addr::new(10, 98, 255, 254)));
    }

    #[test]
    fn an_entry_has_both_directions_and_stays() {
        let ends = filler(PORTS + 6);
        let body = entry(ends, turned(ends), Some(ASSURED));
        let told: Vec<_> = attributes(&body).unwrap().collect();
        let tuple = |kind| told.iter().find(|(other, _)| *other == kind).map(|(_, value)| Tuple::parse(value));
        assert_eq!(tuple(CTA_TUPLE_ORIG).unwrap().ends(), Some(ends));
        assert_eq!(tuple(CTA_TUPLE_REPLY).unwrap().ends(), Some(turned(ends)));
        assert!(told.contains(&(CTA_TIMEOUT, &TIMEOUT.to_be_bytes())) && told.contains(&(CTA_STATUS, &[0, 0, 0, 14])));
        assert_eq!(ends.source, "10.98.0.1:7".parse().unwrap());
    }
}
