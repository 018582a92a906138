//! One echo request per flow, from a ping socket: the id stands where others have a source port.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};

use super::super::wire::Stamp;
use super::{First, family, set_ttl};

/// `ICMP_ECHO` and `ICMPV6_ECHO_REQUEST`.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// Type, code, checksum, id and sequence number.
const HEADER: usize = 8;

/// A socket bound to a port sends it as the id of its echo requests (net/ipv4/ping.c, `ping_get_port`). Whoever may
/// open one is named in net.ipv4.ping_group_range.
pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    let protocol = if first.source.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = socket_with(family(first.source), SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?;
    bind(&socket, &first.source)?;
    set_ttl(&socket, first.source, first.ttl)?;
    Ok(socket)
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    let mut packet = [0; HEADER + Stamp::LENGTH];
    // The kernel fills in the id and the checksum.
    packet[0] = if first.source.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    packet[HEADER..].copy_from_slice(&first.stamp.encode());
    sendto(socket, &packet, SendFlags::empty(), &first.destination)?;
    Ok(())
}

/// Id and stamp of an echo request, not of what answers it or of anything else.
pub(super) fn read(packet: &[u8]) -> Option<(u16, Stamp)> {
    let (header, stamp) = packet.split_first_chunk::<HEADER>()?;
    let [ECHO_REQUEST | ECHO_REQUEST_V6, 0, _, _, high, low, _, _] = *header else { return None };
    Some((u16::from_be_bytes([high, low]), Stamp::decode(stamp)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_echo_requests_with_a_stamp_are_read() {
        let stamp = Stamp { round: 3, pod: 1 };
        for (kind, expected) in [(8, Some((0x2710, stamp))), (128, Some((0x2710, stamp))), (0, None), (135, None)] {
            let packet = [&[kind, 0, 1, 2, 0x27, 0x10, 0, 0], stamp.encode().as_slice()].concat();
            assert_eq!(read(&packet), expected);
            assert_eq!(read(&packet[..packet.len() - 1]), None);
        }
    }
}
