//! Finding the sender of a flow after the fact: the socket in its network namespace, then the process that holds it.
//!
//! Right or not at all. Two pods can have the same port, so a socket counts only in the one namespace that has the flow's
//! source address, of several the only one that has a link to where it came; and every doubt (two namespaces still, two
//! processes, another who can send with that port, a look that could not be completed) gives nothing. A namespace that
//! translates sends flows of others: of them it says whose they were.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cgroup::{CgroupPaths, ProcessCgroups, telling};
use super::container::container;
use super::diag::{addresses, sockets};
use super::links;
use super::others::{has_raw_sockets, has_udp_tunnels};
use super::process::{self, StartTime};
use super::program::{Program, StartClock};
use super::translation::untranslated;
use super::{Owner, OwnerSource};
use crate::counters::netns::{self, Depth, in_netns};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;
use crate::race::tuple::{OriginalTuple, Protocol};

/// A look that takes longer is given up: the sockets of a short flow are gone by then.
const BUDGET: Duration = Duration::from_secs(5);

/// A flow whose sender is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Query {
    pub(super) protocol: Protocol,
    /// As the sender made it.
    pub(super) original: OriginalTuple,
    /// The network namespace it came to, if that is known.
    pub(super) came_to: Option<NetnsInum>,
    /// When its packet was seen: a process that started later is not its sender.
    pub(super) time: KernelTime,
}

/// What a look came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// Its sender.
    Owner(Box<Owner>),
    /// This namespace, which has its source address, made it of another flow.
    Translated(NetnsInum, OriginalTuple),
    /// No socket that can have sent it is there any more.
    NoSocket,
    /// Nothing for sure.
    Nothing,
}

/// What the namespace that has a flow's source address says of it.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    /// These sockets, by inode number, can have sent it.
    Sockets(Vec<u32>),
    /// It was another flow, and translated.
    Translated(OriginalTuple),
    /// It can have been sent there without any of the sockets that can be looked up.
    Doubtful,
}

/// A socket that can have sent a flow.
type Candidate = (NetnsInum, u32);

/// What a look needs to know of this machine, and may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks<'a> {
    pub(super) paths: &'a CgroupPaths,
    /// Read executables and command lines.
    pub(super) commands: bool,
    pub(super) clock: StartClock,
}

/// What is found of each flow, in the order of the queries.
pub(super) fn look_up(queries: &[Query], looks: &Looks<'_>) -> Vec<Found> {
    let deadline = Instant::now() + BUDGET;
    let nothing = || vec![Found::Nothing; queries.len()];
    if queries.is_empty() || !process::proc_has_root_pids() {
        return nothing();
    }
    let Some(mut places) = find_places(queries, deadline) else { return nothing() };
    leave_the_linked(queries, &mut places, deadline);
    let candidates: Vec<Vec<Candidate>> = places.iter().map(|places| candidates(places)).collect();
    let inodes = candidates.iter().flatten().map(|&(_, inode)| inode).collect();
    let Some(holders) = find_holders(&inodes, deadline) else { return nothing() };
    let mut found = Vec::with_capacity(queries.len());
    for ((query, places), candidates) in queries.iter().zip(&places).zip(&candidates) {
        found.push(match places.as_slice() {
            [(netns, Place::Translated(inner))] => Found::Translated(*netns, *inner),
            // Of a pod that is gone not even the address is there.
            [] => Found::NoSocket,
            [(_, Place::Sockets(sockets))] if sockets.is_empty() => Found::NoSocket,
            _ => only_holder(candidates, &holders)
                .and_then(|(netns, inode, pid)| describe(pid, netns, inode, query.time, looks))
                .map_or(Found::Nothing, |owner| Found::Owner(Box::new(owner))),
        });
    }
    found
}

/// The sockets that can have sent a flow. Where two namespaces have its source address, the one without such a socket may
/// have had one: there are none to choose from.
fn candidates(places: &[(NetnsInum, Place)]) -> Vec<Candidate> {
    match places {
        [(netns, Place::Sockets(inodes))] => inodes.iter().map(|&inode| (*netns, inode)).collect(),
        _ => Vec::new(),
    }
}

/// The namespaces that have each query's source address; `None` when not every namespace could be asked.
fn find_places(queries: &[Query], deadline: Instant) -> Option<Vec<Vec<(NetnsInum, Place)>>> {
    let mut places = vec![Vec::new(); queries.len()];
    netns::visit(Depth::Threads, deadline, |inum, fd| {
        for (query, place) in in_netns(fd, || find_here(queries)).ok()?? {
            places.get_mut(query)?.push((inum, place));
        }
        Some(())
    })?;
    Some(places)
}

/// Of several namespaces with a flow's source address, takes away those that are apart from the one it came to, if that
/// leaves any.
fn leave_the_linked(queries: &[Query], places: &mut [Vec<(NetnsInum, Place)>], deadline: Instant) {
    let in_doubt = queries.iter().zip(&*places).filter(|(_, places)| places.len() > 1);
    let mut pairs: Vec<(NetnsInum, NetnsInum)> = in_doubt
        .filter_map(|(query, places)| Some((query.came_to?, places)))
        .flat_map(|(to, places)| places.iter().map(move |&(from, _)| (to, from)))
        .collect();
    if pairs.is_empty() {
        return;
    }
    pairs.sort_unstable();
    pairs.dedup();
    let Some(apart) = links::apart(&pairs, deadline) else { return };
    for (query, places) in queries.iter().zip(places) {
        let linked = |netns| query.came_to.is_none_or(|to| !apart.contains(&(to, netns)));
        if places.iter().any(|&(netns, _)| linked(netns)) {
            places.retain(|&(netns, _)| linked(netns));
        }
    }
}

/// What the calling thread's namespace says of the flows whose source address it has, by their place in `queries`.
fn find_here(queries: &[Query]) -> Option<Vec<(usize, Place)>> {
    let addresses = addresses().ok()?;
    let here = |query: &&Query| addresses.contains(&query.original.ends().source.ip());
    let others = Others::default();
    let places = queries.iter().enumerate().filter(|(_, query)| here(query));
    places.map(|(index, query)| Some((index, place(query, &others)?))).collect()
}

/// What the calling thread's namespace, which has the flow's source address, says of it; `None` when it does not answer.
fn place(query: &Query, others: &Others) -> Option<Place> {
    let Query { protocol, original, .. } = *query;
    if protocol.has_ports() {
        match untranslated(protocol, original) {
            Ok(Some(inner)) if inner != original => return Some(Place::Translated(inner)),
            Ok(_) => {}
            Err(_) => return Some(Place::Doubtful),
        }
    }
    if !matches!(protocol, Protocol::TCP | Protocol::UDP) || others.raw_sockets()? {
        return Some(Place::Doubtful);
    }
    let ends = original.ends();
    let mut carrying = sockets(protocol, ends.source.port()).ok()?;
    carrying.retain(|socket| socket.inode != 0 && socket.carries(protocol, ends));
    // What a tunnel sends goes where no process connects its socket to.
    if carrying.iter().any(|socket| !socket.is_connected()) && others.udp_tunnels()? {
        return Some(Place::Doubtful);
    }
    Some(Place::Sockets(carrying.iter().map(|socket| socket.inode).collect()))
}

/// Who else may send with a socket's port in the calling thread's namespace, asked once for all flows of a look.
#[derive(Debug, Default)]
struct Others {
    raw_sockets: OnceCell<Option<bool>>,
    udp_tunnels: OnceCell<Option<bool>>,
}

impl Others {
    /// `None` when it cannot be told.
    fn raw_sockets(&self) -> Option<bool> {
        *self.raw_sockets.get_or_init(|| has_raw_sockets().ok())
    }

    /// `None` when it cannot be told.
    fn udp_tunnels(&self) -> Option<bool> {
        *self.udp_tunnels.get_or_init(|| has_udp_tunnels().ok())
    }
}

/// The processes that hold each socket; `None` when not every process could be looked at.
fn find_holders(inodes: &BTreeSet<u32>, deadline: Instant) -> Option<BTreeMap<u32, BTreeSet<u32>>> {
    let mut holders: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    if inodes.is_empty() {
        return Some(holders);
    }
    for pid in process::pids().ok()? {
        let pid = pid.ok()?;
        if Instant::now() >= deadline {
            return None;
        }
        match sockets_of(pid) {
            Ok(held) => {
                for inode in held.intersection(inodes) {
                    holders.entry(*inode).or_default().insert(pid);
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => return None,
        }
    }
    Some(holders)
}

/// Inode numbers of the sockets that a process holds.
fn sockets_of(pid: u32) -> io::Result<BTreeSet<u32>> {
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(inode).collect())
}

/// Whether an error says that the process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Namespace, socket and pid, when all candidates are of one namespace and held by one and the same process.
fn only_holder(candidates: &[Candidate], holders: &BTreeMap<u32, BTreeSet<u32>>) -> Option<(NetnsInum, u32, u32)> {
    let &(netns, inode) = candidates.first()?;
    let mut pids = holders.get(&inode)?.iter();
    let (Some(&pid), None) = (pids.next(), pids.next()) else { return None };
    let agrees = |&(other, inode): &Candidate| {
        other == netns && holders.get(&inode).is_some_and(|pids| pids.len() == 1 && pids.contains(&pid))
    };
    candidates.iter().all(agrees).then_some((netns, inode, pid))
}

/// Whether a process holds a socket that no other can have sent with and closed since: each descriptor is closed on
/// execution, so that it came from no parent that way, and there were no children to have it too.
fn is_its_own(pid: u32, inode: u32) -> Option<bool> {
    let socket = format!("socket:[{inode}]");
    let mut held = false;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == socket.as_str()) {
            let path = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(entry.file_name());
            if !closes_on_execution(&fs::read_to_string(path).ok()?)? {
                return Some(false);
            }
            held = true;
        }
    }
    Some(held && !process::has_had_children(pid)?)
}

/// The flags of a descriptor in `/proc/PID/fdinfo`, in octal (fs/proc/fd.c, `seq_show`).
fn closes_on_execution(fdinfo: &str) -> Option<bool> {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?;
    Some(i32::from_str_radix(flags.trim(), 8).ok()? & libc::O_CLOEXEC != 0)
}

/// What is known of a process, provided that it holds the socket and was there at `time`. The start is read before and
/// after, so that all of it is of one process.
fn describe(pid: u32, netns: NetnsInum, inode: u32, time: KernelTime, looks: &Looks<'_>) -> Option<Owner> {
    let &Looks { paths, commands, clock } = looks;
    let start = StartTime::of(pid)?;
    if !start.was_there_at(time) || !is_its_own(pid, inode)? {
        return None;
    }
    let comm = process::comm(pid)?;
    let ProcessCgroups { unified, legacy } = ProcessCgroups::of(pid)?;
    let program = Program::running(pid, start, commands, clock);
    if StartTime::of(pid) != Some(start) {
        return None;
    }
    let cgroup_id = unified.as_deref().and_then(|path| paths.id(path));
    let cgroup = telling(unified, || legacy);
    let container = cgroup.as_deref().and_then(container);
    let source = OwnerSource::SocketLookup;
    Some(Owner { pid, tid: None, comm, netns: Some(netns), cgroup_id, cgroup, container, pod: None, program, source })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::process::{Child, Command, Stdio};

    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

    use super::*;
    use crate::counters::netns::tests::{alone, new_netns};
    use crate::kernel::Hierarchies;
    use crate::owner::Container;
    use crate::owner::groups::{Group, ID};
    use crate::race::tuple::Ends;
    use crate::skipped::skipped;

    const ROLE: &str = "SNAT_TRACE_TEST_SENDER";
    const REMOTE: &str = "198.51.100.7:53";
    const REMOTE6: &str = "[2001:db8::7]:53";

    /// Local ports, and what is bound to each by [`hold`].
    const WILDCARD: u16 = 40001;
    const CONNECTED: u16 = 40002;
    const DUAL: u16 = 40003;
    const SYN_SENT: u16 = 40004;
    const MAPPED: u16 = 40005;
    const V6ONLY: u16 = 40006;
    const SHARED: u16 = 40007;
    const BOUND_AND_CONNECTED: u16 = 40008;
    const V6: u16 = 40009;
    const INHERITABLE: u16 = 40010;

    /// A namespace with two addresses and a way out that leads nowhere.
    struct Pod {
        netns: OwnedFd,
        address: &'static str,
        address6: &'static str,
    }

    impl Pod {
        fn new(address: &'static str, address6: &'static str) -> Self {
            let pod = Self { netns: new_netns(), address, address6 };
            pod.run(&format!(
                "ip link set lo up && ip link add va type veth peer name vb && ip link set vb up && ip link set va up &&
                 ip addr add {address}/24 dev va && ip route add default via 192.0.2.1 &&
                 ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:09 dev va &&
                 ip addr add {address6}/64 dev va nodad && ip -6 route add default dev va"
            ));
            pod
        }

        fn run(&self, script: &str) {
            let sh = || Command::new("sh").args(["-c", script]).status();
            assert!(in_netns(self.netns.as_fd(), sh).unwrap().unwrap().success(), "{script}");
        }

        fn inum(&self) -> NetnsInum {
            netns::Netns::of(self.netns.as_fd()).unwrap().inum
        }

        /// Starts a process in the pod that holds the sockets of `role`, and waits until it does.
        fn sender(&self, role: &str) -> Sender {
            let exe = std::env::current_exe().unwrap();
            let started = in_netns(self.netns.as_fd(), || {
                Command::new(exe)
                    .args(["--exact", "owner::lookup::tests::hold", "--nocapture", "--test-threads=1"])
                    .env(ROLE, format!("{role} {} {}", self.address, self.address6))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
            });
            let mut child = started.unwrap().unwrap();
            let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
            let ready = lines.map(Result::unwrap).any(|line| line.ends_with("holding"));
            assert!(ready, "the sender ended early");
            Sender(child)
        }

        fn query(&self, protocol: Protocol, port: u16) -> Query {
            let (address, remote) = if port == V6 { (self.address6, REMOTE6) } else { (self.address, REMOTE) };
            let source = SocketAddr::new(address.parse().unwrap(), port);
            let original = OriginalTuple::from_ends(Ends { source, destination: remote.parse().unwrap() });
            Query { protocol, original, came_to: None, time: now() }
        }
    }

    fn paths() -> CgroupPaths {
        CgroupPaths::new(Hierarchies::gather(Path::new("/")))
    }

    fn looks(paths: &CgroupPaths) -> Looks<'_> {
        Looks { paths, commands: true, clock: StartClock::now() }
    }

    struct Sender(Child);

    impl Drop for Sender {
        fn drop(&mut self) {
            // The end of its standard input ends it.
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    fn now() -> KernelTime {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let part = |value: i64| u64::try_from(value).unwrap();
        KernelTime::from_record(part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)).unwrap()
    }

    /// Binds a socket of any kind, not connected yet.
    fn bind(kind: SocketType, local: &str, options: impl Fn(&OwnedFd)) -> OwnedFd {
        let local: SocketAddr = local.parse().unwrap();
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        options(&socket);
        rustix::net::bind(&socket, &local).unwrap();
        socket
    }

    fn start_connecting(socket: &OwnedFd, remote: &str) {
        let remote: SocketAddr = remote.parse().unwrap();
        match rustix::net::connect(socket, &remote) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Not a test of its own: the process that [`Pod::sender`] starts.
    #[test]
    fn hold() {
        let Ok(role) = std::env::var(ROLE) else { return };
        let [role, address, address6]: [&str; 3] = role.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let plain = |_: &OwnedFd| {};
        let share = |socket: &OwnedFd| sockopt::set_socket_reuseport(socket, true).unwrap();
        let mut held = Vec::new();
        if role != "none" {
            held.push(bind(SocketType::DGRAM, &format!("0.0.0.0:{SHARED}"), share));
        }
        if role == "all" {
            let udp = |local: String| bind(SocketType::DGRAM, &local, plain);
            held.push(udp(format!("0.0.0.0:{WILDCARD}")));
            held.push(udp(format!("[::]:{DUAL}")));
            held.push(bind(SocketType::DGRAM, &format!("[::]:{V6ONLY}"), |socket| {
                sockopt::set_ipv6_v6only(socket, true).unwrap();
            }));
            held.push(udp(format!("0.0.0.0:{INHERITABLE}")));
            rustix::io::fcntl_setfd(&held[held.len() - 1], rustix::io::FdFlags::empty()).unwrap();
            let connected = [
                (udp(format!("0.0.0.0:{CONNECTED}")), REMOTE),
                (bind(SocketType::DGRAM, &format!("{address}:{BOUND_AND_CONNECTED}"), plain), REMOTE),
                (bind(SocketType::DGRAM, &format!("[{address6}]:{V6}"), plain), REMOTE6),
                (bind(SocketType::STREAM, &format!("{address}:{SYN_SENT}"), plain), REMOTE),
                (bind(SocketType::STREAM, &format!("[{address6}]:{V6}"), plain), REMOTE6),
                (bind(SocketType::STREAM, &format!("[::]:{MAPPED}"), plain), "[::ffff:198.51.100.7]:53"),
            ];
            for (socket, remote) in connected {
                start_connecting(&socket, remote);
                held.push(socket);
            }
        }
        println!("\nholding");
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        drop(held);
    }

    fn pids(queries: &[Query]) -> Vec<Option<u32>> {
        owners(queries).into_iter().map(|owner| owner.map(|owner| owner.pid)).collect()
    }

    fn owners(queries: &[Query]) -> Vec<Option<Owner>> {
        let owner = |found| match found {
            Found::Owner(owner) => Some(*owner),
            Found::Translated(..) | Found::NoSocket | Found::Nothing => None,
        };
        look_up(queries, &looks(&paths())).into_iter().map(owner).collect()
    }

    /// Two pods with the same ports, and one sender in each.
    fn two_pods() -> Option<[(Pod, Sender); 2]> {
        if !process::proc_has_root_pids() {
            skipped("not in the root pid namespace");
            return None;
        }
        if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
            skipped("ip is not installed");
            return None;
        }
        let pods = [Pod::new("192.0.2.10", "2001:db8:1::10"), Pod::new("192.0.2.11", "2001:db8:1::11")];
        Some(pods.map(|pod| {
            let sender = pod.sender("all");
            (pod, sender)
        }))
    }

    #[test]
    fn two_pods_with_the_same_ports_are_told_apart() {
        let Some(_alone) = alone() else { return };
        let Some(pods) = two_pods() else { return };
        let kinds = [
            (Protocol::UDP, WILDCARD),
            (Protocol::UDP, CONNECTED),
            (Protocol::UDP, BOUND_AND_CONNECTED),
            (Protocol::UDP, DUAL),
            (Protocol::UDP, SHARED),
            (Protocol::UDP, V6),
            (Protocol::TCP, SYN_SENT),
            (Protocol::TCP, MAPPED),
            (Protocol::TCP, V6),
        ];
        for (protocol, port) in kinds {
            let queries = [1, 0].map(|pod: usize| pods[pod].0.query(protocol, port));
            let found = owners(&queries);
            for (owner, pod) in found.into_iter().zip([1, 0]) {
                let (pod, sender) = &pods[pod];
                let owner = owner.unwrap_or_else(|| panic!("{protocol} {port}: not found"));
                assert_eq!((owner.pid, owner.netns), (sender.0.id(), Some(pod.inum())), "{protocol} {port}");
                assert_eq!(Some(owner.comm), process::comm(sender.0.id()));
                assert!(owner.cgroup.is_some());
            }
        }
    }

    #[test]
    fn a_sender_is_named_by_the_hierarchy_that_has_its_container() {
        let Some(_alone) = alone() else { return };
        let Some([unit, docker]) = Group::hybrid("lookup") else { return };
        let Some([(pod, sender), _]) = two_pods() else { return };
        [&unit, &docker].into_iter().for_each(|group| group.put(sender.0.id()));
        let found = owners(&[pod.query(Protocol::UDP, WILDCARD)]).pop().flatten().unwrap();
        assert_eq!(found.cgroup.as_ref(), Some(&docker.path));
        assert_eq!(found.container, Some(Container::of("docker", ID)));
    }

    #[test]
    fn doubt_gives_nothing() {
        let Some(_alone) = alone() else { return };
        let Some(pods) = two_pods() else { return };
        let [(pod, sender), _] = &pods;
        // No such socket; one that cannot send IPv4; another remote; another protocol.
        assert_eq!(pids(&[pod.query(Protocol::UDP, 40999)]), [None]);
        assert_eq!(pids(&[pod.query(Protocol::UDP, V6ONLY)]), [None]);
        assert_eq!(pids(&[pod.query(Protocol::TCP, WILDCARD)]), [None]);
        assert_eq!(pids(&[pod.query(Protocol::ICMP, WILDCARD)]), [None]);
        let elsewhere = |port, source: &str| {
            let source = SocketAddr::new(source.parse().unwrap(), port);
            let ends = Ends { source, destination: "203.0.113.1:53".parse().unwrap() };
            Query { protocol: Protocol::UDP, original: OriginalTuple::from_ends(ends), came_to: None, time: now() }
        };
        assert_eq!(pids(&[elsewhere(CONNECTED, "192.0.2.10")]), [None]);
        // The same port is open, but no namespace has this address.
        assert_eq!(
            pids(&[elsewhere(WILDCARD, "192.0.2.99"), elsewhere(WILDCARD, "192.0.2.10")]),
            [None, Some(sender.0.id())]
        );
        // The process started after the flow was seen.
        let early = Query { time: KernelTime::from_record(1).unwrap(), ..pod.query(Protocol::UDP, WILDCARD) };
        assert_eq!(pids(&[early]), [None]);
        // A second process shares the port.
        let query = pod.query(Protocol::UDP, SHARED);
        assert_eq!(pids(&[query]), [Some(sender.0.id())]);
        let second = pod.sender("shared");
        assert_eq!(pids(&[query]), [None]);
        drop(second);
        assert_eq!(pids(&[query]), [Some(sender.0.id())]);
        // Whoever executed the sender could have sent with it.
        assert_eq!(pids(&[pod.query(Protocol::UDP, INHERITABLE)]), [None]);
        // Others there can send with any port.
        let raw = in_netns(pod.netns.as_fd(), raw_socket).unwrap();
        assert_eq!(pids(&[query]), [None]);
        drop(raw);
        assert_eq!(pids(&[query]), [Some(sender.0.id())]);
        // A second namespace has the same address; the socket there, if there was one, may have gone.
        let twin = Pod::new("192.0.2.10", "2001:db8:1::99");
        let other = twin.sender("none");
        assert_eq!(pids(&[query]), [None]);
        drop(other);
    }

    #[test]
    fn of_two_namespaces_with_one_address_it_is_the_linked_one() {
        let Some(_alone) = alone() else { return };
        let Some([(pod, sender), _]) = two_pods() else { return };
        let twin = Pod::new(pod.address, pod.address6);
        let other = twin.sender("all");
        let [(first, _first), (second, _second), (third, _third)] =
            ["192.0.2.20", "192.0.2.30", "192.0.2.40"].map(|address| {
                let node = Pod::new(address, "2001:db8:1::20");
                let waits = node.sender("none");
                (node, waits)
            });
        let moved = |pod: &Pod, to: &Pod| {
            let theirs = format!("/proc/{}/fd/{}", std::process::id(), to.netns.as_raw_fd());
            pod.run(&format!("ip link set vb name vp{} netns {theirs}", pod.inum().0));
        };
        moved(&pod, &first);
        moved(&twin, &second);
        let query = |came_to| Query { came_to, ..pod.query(Protocol::UDP, CONNECTED) };
        let found = |places: [Option<&Pod>; 6]| pids(&places.map(|place| query(place.map(Pod::inum))));
        let all = [Some(&first), Some(&second), Some(&pod), Some(&twin), Some(&third), None];
        let (ours, others) = (Some(sender.0.id()), Some(other.0.id()));
        assert_eq!(found(all), [ours, others, ours, others, None, None]);
        // Both have a link to the second now.
        pod.run("ip link add vc type veth peer name vd");
        pod.run("ip link set vc up && ip link set vd name vb");
        moved(&pod, &second);
        assert_eq!(found(all), [ours, None, ours, others, None, None]);
        // The twin has a way out that leads anywhere.
        if Path::new("/dev/net/tun").exists() {
            twin.run("ip tuntap add mode tap name tap && ip link set tap up");
            assert_eq!(found(all), [None, None, None, others, others, None]);
        } else {
            skipped("a way out through a program, as there is no /dev/net/tun");
        }
    }

    fn raw_socket() -> OwnedFd {
        let raw = rustix::net::ipproto::RAW;
        rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(raw)).unwrap()
    }

    #[test]
    fn a_socket_held_by_two_processes_has_no_owner() {
        let socket = |inode, holders: &[u32]| (inode, BTreeSet::from_iter(holders.iter().copied()));
        let holders = BTreeMap::from([socket(1, &[10]), socket(2, &[10]), socket(3, &[10, 11]), socket(4, &[11])]);
        let (here, there) = (NetnsInum(1), NetnsInum(2));
        assert_eq!(only_holder(&[(here, 1), (here, 2)], &holders), Some((here, 1, 10)));
        for doubt in [
            &[][..],
            &[(here, 3)],
            &[(here, 1), (here, 3)],
            &[(here, 1), (here, 4)],
            &[(here, 1), (there, 2)],
            &[(here, 1), (here, 9)],
            &[(here, 9)],
        ] {
            assert_eq!(only_holder(doubt, &holders), None, "{doubt:?}");
        }
    }

    #[test]
    fn the_caller_stays_in_its_namespace() {
        let Some(_alone) = alone() else { return };
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = netns::Netns::current().unwrap().inum;
        let source = ours.local_addr().unwrap();
        let ends = Ends { source, destination: "127.0.0.1:9".parse().unwrap() };
        let query =
            Query { protocol: Protocol::UDP, original: OriginalTuple::from_ends(ends), came_to: None, time: now() };
        let _ = look_up(&[query], &looks(&paths()));
        assert_eq!(netns::Netns::current().unwrap().inum, before);
    }
}
