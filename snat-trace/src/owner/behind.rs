//! Where flows come from that no socket of this machine is known to have sent: forwarded for a virtual machine or another
//! host, or sent by a process that is gone while its network namespace is still there.
//!
//! Asked is where the answers go: the interface that the route back to the flow's source leads to, on a bridge the port behind
//! which its neighbour was seen, and at a veth the namespace that has the other end. A packet can have come another way, so
//! this is told beside a sender that is not known, and never as one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};

use super::cgroup::{ProcessCgroups, telling};
use super::diag::{AF_INET, AF_INET6};
use super::links::{Link, nsid_of};
use super::process::{pids, proc_has_root_pids};
use super::{Container, Pod, workload};
use crate::counters::netns::{self, Depth, in_netns};
use crate::counters::wire::{Attributes, DumpError, Socket, put_attribute};
use crate::race::event::NetnsInum;

/// A look that takes longer is given up.
const BUDGET: Duration = Duration::from_secs(2);
/// Cgroups with processes in a network namespace that is some pod's or container's: a pod has one for each of its containers.
const CGROUPS: usize = 64;

const AF_BRIDGE: u8 = 7;
/// `RTM_GETROUTE`, `struct rtmsg`, `RTA_*` (include/uapi/linux/rtnetlink.h).
const RTM_GETROUTE: u16 = 26;
const RTMSG_LEN: usize = 12;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
/// `RTM_GETNEIGH`, `struct ndmsg`, `NDA_*` (include/uapi/linux/neighbour.h).
const RTM_GETNEIGH: u16 = 30;
const NDMSG_LEN: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;

/// What answers to a flow go to. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Behind {
    /// The interface, in the network namespace of the entries.
    pub interface: String,
    /// The port of that interface, where it is a bridge that has seen the source's neighbour.
    pub port: Option<String>,
    /// The network namespace at the other end, where it is a veth.
    pub netns: Option<NetnsInum>,
    /// The container of every process in there.
    pub container: Option<Container>,
    /// The pod of every process in there.
    pub pod: Option<Pod>,
}

/// Before what all processes behind a flow are in, and before the interface, where a sender would be named.
pub(crate) const IN: &str = "in";
pub(crate) const VIA: &str = "via";

impl Behind {
    /// In a few words, to stand beside a sender that is not known: the pod or container, else the interface. Not escaped.
    pub(crate) fn words(&self) -> String {
        match self.workload() {
            Some(inside) => format!("{IN} {inside}"),
            None => format!("{VIA} {}", self.nearest()),
        }
    }

    /// The pod or container that all processes there are in.
    pub(crate) fn workload(&self) -> Option<Cow<'_, str>> {
        workload(self.container.as_ref(), self.pod.as_ref())
    }

    /// The port of the bridge, or the interface.
    pub(crate) fn nearest(&self) -> &str {
        self.port.as_deref().unwrap_or(&self.interface)
    }
}

/// A source of flows whose entries are in a network namespace.
pub(super) type Source = (NetnsInum, IpAddr);

/// What the entries' namespace says of a source.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Way {
    interface: String,
    port: Option<String>,
    /// The entries' namespace's own number of the namespace at the other end.
    nsid: Option<i32>,
}

/// Where answers to each source go, but for those that are addresses of the entries' own namespace, and whose way cannot be
/// told.
pub(super) fn look_up(sources: &BTreeSet<Source>) -> BTreeMap<Source, Behind> {
    let deadline = Instant::now() + BUDGET;
    let mut ways: Vec<(Source, Way)> = Vec::new();
    let mut homes: BTreeMap<NetnsInum, OwnedFd> = BTreeMap::new();
    // What was found up to the deadline is as true as all.
    let _ = netns::visit(Depth::Threads, deadline, |inum, fd| {
        let here: Vec<IpAddr> = sources.iter().filter(|(netns, _)| *netns == inum).map(|&(_, source)| source).collect();
        if !here.is_empty()
            && let Ok(found) = in_netns(fd, || here.iter().map(|&source| way(source)).collect::<Vec<_>>())
        {
            ways.extend(here.iter().zip(found).filter_map(|(&source, way)| Some(((inum, source), way.ok()??))));
            homes.extend(fd.try_clone_to_owned().ok().map(|fd| (inum, fd)));
        }
        Some(())
    });
    let wanted: BTreeSet<(NetnsInum, i32)> =
        ways.iter().filter_map(|((netns, _), way)| Some((*netns, way.nsid?))).collect();
    let peers = if wanted.is_empty() { BTreeMap::new() } else { find_peers(&wanted, &homes, deadline) };
    ways.into_iter()
        .map(|((netns, source), Way { interface, port, nsid })| {
            let netns_behind = nsid.and_then(|nsid| peers.get(&(netns, nsid)).copied());
            let behind = Behind { interface, port, netns: netns_behind, ..Behind::default() };
            ((netns, source), behind)
        })
        .collect()
}

/// The namespaces that have these numbers in those of the entries.
fn find_peers(
    wanted: &BTreeSet<(NetnsInum, i32)>,
    homes: &BTreeMap<NetnsInum, OwnedFd>,
    deadline: Instant,
) -> BTreeMap<(NetnsInum, i32), NetnsInum> {
    let mut peers = BTreeMap::new();
    for (&home, fd) in homes {
        let mut missing = wanted.iter().filter(|(netns, _)| *netns == home).count();
        let found = in_netns(fd.as_fd(), || {
            let mut found = Vec::new();
            let _ = netns::visit(Depth::Threads, deadline, |inum, fd| {
                let nsid = nsid_of(fd).ok().filter(|&nsid| wanted.contains(&(home, nsid)));
                found.extend(nsid.map(|nsid| ((home, nsid), inum)));
                missing = missing.saturating_sub(usize::from(nsid.is_some()));
                (missing > 0).then_some(())
            });
            found
        });
        peers.extend(found.into_iter().flatten());
    }
    peers
}

/// The cgroups of the processes in each of these network namespaces, but for those with too many to be of one pod.
pub(super) fn cgroups_in(namespaces: &BTreeSet<NetnsInum>) -> BTreeMap<NetnsInum, BTreeSet<String>> {
    let mut found: BTreeMap<NetnsInum, BTreeSet<String>> = BTreeMap::new();
    // Of all processes can only be said what was seen of all.
    if namespaces.is_empty() || !proc_has_root_pids() {
        return found;
    }
    for pid in pids().into_iter().flatten().flatten() {
        let Ok(netns) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
        let inum = netns::inum(&netns);
        if !namespaces.contains(&inum) {
            continue;
        }
        let cgroups = found.entry(inum).or_default();
        if cgroups.len() <= CGROUPS
            && let Some(ProcessCgroups { unified, legacy }) = ProcessCgroups::of(pid)
        {
            // One in the root is one of all too: it is in no container.
            cgroups.insert(telling(unified, || legacy).unwrap_or_else(|| "/".to_owned()));
        }
    }
    found.retain(|_, cgroups| cgroups.len() <= CGROUPS);
    found
}

/// The way back to a source from the calling thread's namespace; `None` to one of its own addresses, or where there is none.
fn way(source: IpAddr) -> Result<Option<Way>, DumpError> {
    let Some(Route { interface, gateway }) = route(source)? else { return Ok(None) };
    let link = Link::of(interface)?;
    let port = if link.kind == b"bridge" {
        port(interface, gateway.unwrap_or(source))?.map(Link::of).transpose()?
    } else {
        None
    };
    let last = port.as_ref().unwrap_or(&link);
    let nsid = last.nsid.filter(|_| last.kind == b"veth");
    let port = port.map(|port| port.name);
    Ok(Some(Way { interface: link.name, port, nsid }))
}

#[derive(Debug, Eq, PartialEq)]
struct Route {
    interface: u32,
    gateway: Option<IpAddr>,
}

/// The route to an address, unless it is local.
fn route(to: IpAddr) -> Result<Option<Route>, DumpError> {
    let (family, bytes) = wire(to);
    let mut request = vec![family, u8::try_from(bytes.len() * 8).unwrap_or(u8::MAX)];
    request.resize(RTMSG_LEN, 0);
    put_attribute(&mut request, RTA_DST, &bytes);
    let answer = existing(Socket::open(None)?.get(RTM_GETROUTE, &request))?;
    Ok(answer.and_then(|answer| parse_route(&answer)))
}

fn parse_route(answer: &[u8]) -> Option<Route> {
    // `rtm_type` is the eighth byte.
    let (header, attributes) = answer.split_at_checked(RTMSG_LEN)?;
    if header.get(7) != Some(&RTN_UNICAST) {
        return None;
    }
    let attributes = Attributes(attributes);
    let interface = attributes.value(RTA_OIF)?.try_get_u32_ne().ok()?;
    // `struct rtvia` begins with the family, of two bytes.
    let gateway = attributes.value(RTA_GATEWAY).or_else(|| attributes.value(RTA_VIA)?.get(2..)).and_then(address);
    Some(Route { interface, gateway })
}

/// The port behind which a bridge has seen a neighbour, by the neighbour's link-layer address.
fn port(bridge: u32, neighbour: IpAddr) -> Result<Option<u32>, DumpError> {
    let (family, bytes) = wire(neighbour);
    let mut request = neighbour_header(family, bridge);
    put_attribute(&mut request, NDA_DST, &bytes);
    let Some(answer) = existing(Socket::open(None)?.get(RTM_GETNEIGH, &request))? else { return Ok(None) };
    let Some(lladdr) = answer.get(NDMSG_LEN..).and_then(|attributes| Attributes(attributes).value(NDA_LLADDR)) else {
        return Ok(None);
    };
    let mut request = neighbour_header(AF_BRIDGE, 0);
    put_attribute(&mut request, NDA_LLADDR, lladdr);
    put_attribute(&mut request, NDA_MASTER, &bridge.to_ne_bytes());
    let Some(answer) = existing(Socket::open(None)?.get(RTM_GETNEIGH, &request))? else { return Ok(None) };
    let port = answer.get(4..).and_then(|mut rest| rest.try_get_u32_ne().ok());
    // The bridge's own address is behind no port.
    Ok(port.filter(|&port| port != bridge))
}

/// `struct ndmsg`.
fn neighbour_header(family: u8, interface: u32) -> Vec<u8> {
    let mut header = vec![family, 0, 0, 0];
    header.put_u32_ne(interface);
    header.resize(NDMSG_LEN, 0);
    header
}

/// What there is, if the kernel did not say that there is nothing.
fn existing(answer: Result<Vec<u8>, DumpError>) -> Result<Option<Vec<u8>>, DumpError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(DumpError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Family and bytes of an address.
fn wire(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::counters::netns::Netns;
    use crate::counters::netns::tests::{alone, new_netns};
    use crate::owner::groups::Group;

    /// A namespace and a process in it.
    struct Place {
        fd: OwnedFd,
        inum: NetnsInum,
        process: std::process::Child,
    }

    impl Place {
        fn new() -> Self {
            let fd = new_netns();
            let cat = || Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            let process = in_netns(fd.as_fd(), cat).unwrap().unwrap();
            let inum = Netns::of(fd.as_fd()).unwrap().inum;
            Self { fd, inum, process }
        }

        fn run(&self, script: &str) {
            let sh = || Command::new("sh").args(["-ec", script]).status();
            assert!(in_netns(self.fd.as_fd(), sh).unwrap().unwrap().success(), "{script}");
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn source(place: &Place, address: &str) -> Source {
        (place.inum, address.parse().unwrap())
    }

    #[test]
    fn the_way_back_is_followed_as_far_as_it_can_be() {
        let Some(_alone) = alone() else { return };
        let (node, routed, bridged) = (Place::new(), Place::new(), Place::new());
        let pid = |place: &Place| place.process.id();
        node.run(&format!(
            "ip link set lo up
             ip link add routed type veth peer name eth0 netns {}
             ip link add port type veth peer name eth0 netns {}
             ip link add bridge type bridge
             ip link set port master bridge
             ip link add machine type veth peer name tap
             ip link set routed up; ip link set port up; ip link set bridge up; ip link set machine up; ip link set tap up
             ip addr add 192.0.2.1/24 dev routed; ip addr add 198.51.100.1/24 dev bridge
             ip addr add 2001:db8::1/64 dev bridge nodad; ip addr add 203.0.113.1/24 dev machine
             ip route add 10.0.0.0/8 via 198.51.100.9",
            pid(&routed),
            pid(&bridged),
        ));
        bridged.run(
            "ip link set eth0 address 02:00:00:00:00:09; ip link set eth0 up
             ip addr add 198.51.100.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad",
        );
        node.run(
            "ip neigh replace 198.51.100.9 lladdr 02:00:00:00:00:09 dev bridge
             ip neigh replace 2001:db8::9 lladdr 02:00:00:00:00:09 dev bridge
             bridge fdb replace 02:00:00:00:00:09 dev port master static",
        );
        let behind = |interface: &str, port: Option<&str>, netns| {
            let port = port.map(str::to_owned);
            Some(Behind { interface: interface.to_owned(), port, netns, ..Behind::default() })
        };
        let cases = [
            ("192.0.2.7", behind("routed", None, Some(routed.inum))),
            ("198.51.100.9", behind("bridge", Some("port"), Some(bridged.inum))),
            ("2001:db8::9", behind("bridge", Some("port"), Some(bridged.inum))),
            // A router behind the same port.
            ("10.1.2.3", behind("bridge", Some("port"), Some(bridged.inum))),
            // Not seen by the bridge.
            ("198.51.100.10", behind("bridge", None, None)),
            // The other end is in the same namespace.
            ("203.0.113.7", behind("machine", None, None)),
            // Its own, and no way at all.
            ("192.0.2.1", None),
            ("127.0.0.1", None),
            ("100.64.0.1", None),
        ];
        let sources = cases.iter().map(|(address, _)| source(&node, address)).collect();
        let found = look_up(&sources);
        for (address, expected) in cases {
            assert_eq!(found.get(&source(&node, address)), expected.as_ref(), "{address}");
        }
        let own = ProcessCgroups::of(std::process::id()).unwrap();
        let own = telling(own.unified, || own.legacy);
        let cgroups = cgroups_in(&BTreeSet::from([bridged.inum]));
        assert_eq!(cgroups.get(&bridged.inum), Some(&own.into_iter().collect()), "of its one process");
    }

    #[test]
    fn what_is_behind_is_named_by_the_hierarchy_that_has_its_container() {
        let Some(_alone) = alone() else { return };
        let Some([unit, docker]) = Group::hybrid("behind") else { return };
        let place = Place::new();
        [&unit, &docker].into_iter().for_each(|group| group.put(place.process.id()));
        let cgroups = cgroups_in(&BTreeSet::from([place.inum]));
        assert_eq!(cgroups.get(&place.inum), Some(&BTreeSet::from([docker.path.clone()])));
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = parse_route(&bytes);
        }
    }
}
