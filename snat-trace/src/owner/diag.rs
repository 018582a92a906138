//! Asking the calling thread's network namespace for its addresses and sockets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, BytesMut};
use rustix::net::netlink::SOCK_DIAG;

use crate::counters::wire::{Attributes, DumpError, Socket as Netlink};
use crate::race::tuple::{Ends, Protocol};

/// `RTM_GETADDR`.
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Size of `struct ifaddrmsg`.
const IFADDRMSG_LEN: usize = 8;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// States of a TCP socket that has sent a SYN and that a process may still hold: all but `TIME_WAIT` (6), `CLOSE` (7),
/// `LISTEN` (10) and the request sockets of `NEW_SYN_RECV` (12) (include/net/tcp_states.h).
const TCP_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// A socket as the kernel's socket diagnostics show it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Socket {
    family: u8,
    local: SocketAddr,
    /// Port 0 when it is not connected.
    remote: SocketAddr,
    v6only: bool,
    /// What `/proc/PID/fd` shows; 0 when no process holds it.
    pub(super) inode: u32,
}

impl Socket {
    /// Whether it sends to one place only.
    pub(super) fn is_connected(&self) -> bool {
        self.remote.port() != 0
    }

    /// Whether a flow from `ends.source` can have come from this socket, given that the namespace has that address.
    pub(super) fn carries(&self, protocol: Protocol, ends: Ends) -> bool {
        let same = |ours: SocketAddr, theirs: SocketAddr| {
            ours.ip().to_canonical() == theirs.ip().to_canonical() && ours.port() == theirs.port()
        };
        if self.is_connected() || protocol == Protocol::TCP {
            return same(self.local, ends.source) && same(self.remote, ends.destination);
        }
        let wildcard = match ends.source {
            SocketAddr::V4(_) => self.family == AF_INET || !self.v6only,
            SocketAddr::V6(_) => self.family == AF_INET6,
        };
        self.local.port() == ends.source.port()
            && (self.local.ip().to_canonical() == ends.source.ip()
                || wildcard && self.local.ip().to_canonical().is_unspecified())
    }
}

/// Every address of the namespace.
pub(super) fn addresses() -> Result<BTreeSet<IpAddr>, DumpError> {
    Netlink::open(None)?.dump(RTM_GETADDR, &[0; IFADDRMSG_LEN], BTreeSet::new, |addresses, _, payload| {
        addresses.extend(parse_address(payload));
    })
}

/// Every TCP or UDP socket of the namespace with this local port, of both families.
pub(super) fn sockets(protocol: Protocol, port: u16) -> Result<Vec<Socket>, DumpError> {
    let netlink = Netlink::open(Some(SOCK_DIAG))?;
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = request(family, protocol, port);
        match netlink.dump(SOCK_DIAG_BY_FAMILY, &request, Vec::new, |found, _, payload| found.push(parse(payload))) {
            Ok(found) => {
                let found: Option<Vec<_>> = found.into_iter().collect();
                sockets.extend(found.ok_or(DumpError::Malformed)?);
            }
            // A kernel without IPv6 has no such sockets.
            Err(DumpError::Refused(rustix::io::Errno::NOENT)) if family == AF_INET6 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// `struct inet_diag_req_v2`; the kernel compares the port (net/ipv4/inet_diag.c and udp_diag.c).
fn request(family: u8, protocol: Protocol, port: u16) -> BytesMut {
    let mut request = BytesMut::with_capacity(56);
    request.put_slice(&[family, protocol.0, 0, 0]);
    request.put_u32_ne(if protocol == Protocol::TCP { TCP_STATES } else { u32::MAX });
    request.put_u16(port);
    request.put_bytes(0, 46);
    request
}

/// `struct inet_diag_msg` and its attributes.
fn parse(mut payload: &[u8]) -> Option<Socket> {
    let family = payload.try_get_u8().ok()?;
    let _state_timer_retransmits = payload.try_get_uint(3).ok()?;
    let (local_port, remote_port) = (payload.try_get_u16().ok()?, payload.try_get_u16().ok()?);
    let (local, remote) = (address(&mut payload, family)?, address(&mut payload, family)?);
    let _interface_and_cookie = (payload.try_get_u32_ne().ok()?, payload.try_get_u64_ne().ok()?);
    let _expires_queues_uid = payload.try_get_u128_ne().ok()?;
    let inode = payload.try_get_u32_ne().ok()?;
    let v6only = Attributes(payload).any(|(kind, value)| kind == INET_DIAG_SKV6ONLY && value.first() == Some(&1));
    let (local, remote) = (SocketAddr::new(local, local_port), SocketAddr::new(remote, remote_port));
    Some(Socket { family, local, remote, v6only, inode })
}

/// Sixteen bytes of an address in network byte order, of which IPv4 uses the first four.
fn address(payload: &mut &[u8], family: u8) -> Option<IpAddr> {
    let address = payload.try_get_u128().ok()?;
    match family {
        AF_INET => u32::try_from(address >> 96).ok().map(|address| IpAddr::V4(address.into())),
        AF_INET6 => Some(Ipv6Addr::from(address).into()),
        _ => None,
    }
}

/// `struct ifaddrmsg` and its attributes. The local address of a point-to-point link stands in `IFA_LOCAL`, and so do
/// all of IPv4; `IFA_ADDRESS` is the other end's then.
fn parse_address(payload: &[u8]) -> Option<IpAddr> {
    let attributes = Attributes(payload.get(IFADDRMSG_LEN..)?);
    let value = attributes.value(IFA_LOCAL).or_else(|| attributes.value(IFA_ADDRESS))?;
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    fn socket(family: u8, local: &str, remote: &str, v6only: bool) -> Socket {
        Socket { family, local: local.parse().unwrap(), remote: remote.parse().unwrap(), v6only, inode: 1 }
    }

    #[test]
    fn which_socket_carries_a_flow() {
        let table = [
            // Protocol, socket, flow, whether it can be.
            (Protocol::UDP, socket(AF_INET, "0.0.0.0:5", "0.0.0.0:0", false), ("10.0.0.1:5", "9.9.9.9:53"), true),
            (Protocol::UDP, socket(AF_INET, "0.0.0.0:6", "0.0.0.0:0", false), ("10.0.0.1:5", "9.9.9.9:53"), false),
            (Protocol::UDP, socket(AF_INET, "10.0.0.1:5", "0.0.0.0:0", false), ("10.0.0.1:5", "9.9.9.9:53"), true),
            (Protocol::UDP, socket(AF_INET, "10.0.0.2:5", "0.0.0.0:0", false), ("10.0.0.1:5", "9.9.9.9:53"), false),
            (Protocol::UDP, socket(AF_INET, "10.0.0.1:5", "9.9.9.9:53", false), ("10.0.0.1:5", "9.9.9.9:53"), true),
            (Protocol::UDP, socket(AF_INET, "10.0.0.1:5", "9.9.9.8:53", false), ("10.0.0.1:5", "9.9.9.9:53"), false),
            (Protocol::UDP, socket(AF_INET6, "[::]:5", "[::]:0", false), ("10.0.0.1:5", "9.9.9.9:53"), true),
            (Protocol::UDP, socket(AF_INET6, "[::]:5", "[::]:0", true), ("10.0.0.1:5", "9.9.9.9:53"), false),
            (Protocol::UDP, socket(AF_INET6, "[::]:5", "[::]:0", true), ("[fd00::1]:5", "[fd00::9]:53"), true),
            (Protocol::UDP, socket(AF_INET, "0.0.0.0:5", "0.0.0.0:0", false), ("[fd00::1]:5", "[fd00::9]:53"), false),
            (
                Protocol::UDP,
                socket(AF_INET6, "[::ffff:10.0.0.1]:5", "[::]:0", false),
                ("10.0.0.1:5", "9.9.9.9:53"),
                true,
            ),
            (Protocol::TCP, socket(AF_INET, "10.0.0.1:5", "9.9.9.9:80", false), ("10.0.0.1:5", "9.9.9.9:80"), true),
            (Protocol::TCP, socket(AF_INET, "10.0.0.1:5", "9.9.9.9:81", false), ("10.0.0.1:5", "9.9.9.9:80"), false),
            (Protocol::TCP, socket(AF_INET, "0.0.0.0:5", "0.0.0.0:0", false), ("10.0.0.1:5", "9.9.9.9:80"), false),
            (
                Protocol::TCP,
                socket(AF_INET6, "[::ffff:10.0.0.1]:5", "[::ffff:9.9.9.9]:80", false),
                ("10.0.0.1:5", "9.9.9.9:80"),
                true,
            ),
        ];
        for (protocol, socket, (source, destination), expected) in table {
            let ends = Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            assert_eq!(socket.carries(protocol, ends), expected, "{protocol} {socket:?} {ends:?}");
        }
    }

    #[test]
    fn the_local_end_of_a_link_is_the_address() {
        let message = |attributes: &[u8]| parse_address(&[&[0; IFADDRMSG_LEN], attributes].concat());
        let local_and_peer = [8, 0, 1, 0, 10, 0, 0, 2, 8, 0, 2, 0, 10, 0, 0, 1];
        assert_eq!(message(&local_and_peer), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(message(&local_and_peer[..8]), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(message(&local_and_peer[..7]), None);
        assert_eq!(message(&[7, 0, 2, 0, 10, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (parse(&bytes), parse_address(&bytes));
        }
    }

    #[test]
    fn the_kernel_shows_our_own_sockets() {
        let ours = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = ours.local_addr().unwrap();
        let found = sockets(Protocol::UDP, local.port()).unwrap();
        assert_eq!(found.iter().filter(|socket| socket.local == local && socket.inode != 0).count(), 1, "{found:?}");
        assert!(addresses().unwrap().contains(&local.ip()));
    }

    #[test]
    fn mutated_messages_are_survived() {
        survives("netlink", &[], |bytes| {
            for payload in [Some(bytes), bytes.get(16..)].into_iter().flatten() {
                let _ = (parse(payload), parse_address(payload));
            }
        });
    }
}
