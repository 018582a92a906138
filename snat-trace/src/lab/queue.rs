//! The little of nfnetlink_queue the lab needs (include/uapi/linux/netfilter/nfnetlink_queue.h): close-on-exec, pollable,
//! and never a panic over what the kernel says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

const NFNL_SUBSYS_QUEUE: u16 = 3;
const NFQNL_MSG_PACKET: u16 = 0;
const NFQNL_MSG_VERDICT: u16 = 1;
const NFQNL_MSG_CONFIG: u16 = 2;

const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_PAYLOAD: u16 = 10;
const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQNL_CFG_CMD_BIND: u8 = 1;
const NFQNL_COPY_PACKET: u8 = 2;

const NF_ACCEPT: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Bytes of each packet the kernel copies: an IPv4 header, or as much of an IPv6 header as has the hop limit.
const COPIED: u32 = 20;
/// Lengths of `nlmsghdr` with `nfgenmsg`, and of `nlattr`.
const HEADER: usize = 16 + 4;
const ATTRIBUTE: usize = 4;

/// A packet waiting for its verdict.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Queued {
    pub(super) id: u32,
    /// Time to live in its IPv4 header, or hop limit in its IPv6 header; `None` when that was not copied.
    pub(super) ttl: Option<u8>,
}

/// One queue of the namespace it was opened in.
#[derive(Debug)]
pub(super) struct Queue {
    socket: OwnedFd,
    number: u16,
}

impl Queue {
    /// Binds a queue of the calling thread's namespace.
    pub(super) fn bind(number: u16) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
        let queue = Self { socket, number };
        queue.configure(NFQA_CFG_CMD, &[NFQNL_CFG_CMD_BIND, 0, 0, 0])?;
        let [a, b, c, d] = COPIED.to_be_bytes();
        queue.configure(NFQA_CFG_PARAMS, &[a, b, c, d, NFQNL_COPY_PACKET])?;
        Ok(queue)
    }

    /// The next packets; waits for one.
    pub(super) fn receive(&self) -> io::Result<Vec<Queued>> {
        Ok(packets(&self.answer()?))
    }

    /// Lets a packet go on its way. The rest of its way, insertion included, runs before this returns.
    pub(super) fn accept(&self, id: u32) -> io::Result<()> {
        let mut verdict = [0; 8];
        verdict[..4].copy_from_slice(&NF_ACCEPT.to_be_bytes());
        verdict[4..].copy_from_slice(&id.to_be_bytes());
        self.send(&message(NFQNL_MSG_VERDICT, NLM_F_REQUEST, self.number, NFQA_VERDICT_HDR, &verdict))
    }

    fn configure(&self, attribute: u16, value: &[u8]) -> io::Result<()> {
        self.send(&message(NFQNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, self.number, attribute, value))?;
        match error_code(&self.answer()?) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::Error::other("nfnetlink_queue did not acknowledge a request")),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // A netlink socket without a peer sends to the kernel.
        send(&self.socket, bytes, SendFlags::empty())?;
        Ok(())
    }

    fn answer(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 8192];
        loop {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One request with one attribute.
fn message(kind: u16, flags: u16, queue: u16, attribute: u16, value: &[u8]) -> Vec<u8> {
    let padding = value.len().next_multiple_of(4) - value.len();
    let length = HEADER + ATTRIBUTE + value.len() + padding;
    let length_field = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(length_field(length).to_ne_bytes());
    bytes.extend((NFNL_SUBSYS_QUEUE << 8 | kind).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port id; nfgenmsg: family and version.
    bytes.extend([0; 8 + 2]);
    bytes.extend(queue.to_be_bytes());
    let attribute_length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    bytes.extend(attribute_length.to_ne_bytes());
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length, 0);
    bytes
}

/// Types and bodies of the netlink messages in one datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let kind = half(bytes, 4)?;
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The packets among them.
fn packets(bytes: &[u8]) -> Vec<Queued> {
    messages(bytes)
        .filter(|(kind, _)| *kind == NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)
        .filter_map(|(_, body)| packet(body.get(4..)?))
        .collect()
}

fn packet(mut attributes: &[u8]) -> Option<Queued> {
    let (mut id, mut ttl) = (None, None);
    while let (Some(length), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let length = usize::from(length);
        let Some(value) = attributes.get(ATTRIBUTE..length) else { break };
        match kind {
            // Its id is in network byte order.
            NFQA_PACKET_HDR => id = word(value, 0).map(u32::from_be),
            NFQA_PAYLOAD => ttl = time_to_live(value),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Queued { id: id?, ttl })
}

/// The time to live of a packet's IPv4 header, the hop limit of its IPv6 header.
fn time_to_live(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => packet.get(8).copied(),
        6 => packet.get(7).copied(),
        _ => None,
    }
}

/// The negative errno of an acknowledgement, 0 for success.
fn error_code(bytes: &[u8]) -> Option<i32> {
    messages(bytes).find(|(kind, _)| *kind == NLMSG_ERROR).and_then(|(_, body)| word(body, 0)).map(u32::cast_signed)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        message(0, 0, 0, kind, value)[HEADER..].to_vec()
    }

    fn queued(attributes: &[u8]) -> Vec<u8> {
        let mut bytes = message(NFQNL_MSG_PACKET, 0, 5, 99, &[]);
        bytes.truncate(HEADER);
        bytes.extend(attributes);
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn packets_are_found_with_id_and_ttl() {
        let header = attribute(NFQA_PACKET_HDR, &[0, 0, 1, 2, 8, 0, 4]);
        let mut ipv4 = [0; 20];
        (ipv4[0], ipv4[8]) = (0x45, 199);
        let mut ipv6 = [0; 20];
        (ipv6[0], ipv6[7]) = (0x60, 200);
        let one = queued(&[header.clone(), attribute(77, &[1]), attribute(NFQA_PAYLOAD, &ipv4)].concat());
        let other = queued(&[header.clone(), attribute(NFQA_PAYLOAD, &ipv6)].concat());
        let short = queued(&header);
        let expected = [Some(199), Some(200), None].map(|ttl| Queued { id: 258, ttl });
        assert_eq!(packets(&[one, other, short].concat()), expected);
    }

    #[test]
    fn an_acknowledgement_is_told_from_an_error() {
        let acknowledgement = |code: i32| {
            let mut bytes = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert_eq!(error_code(&acknowledgement(0)), Some(0));
        assert_eq!(error_code(&acknowledgement(-22)), Some(-22));
        assert_eq!(error_code(&queued(&[])), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = (packets(&bytes), error_code(&bytes));
            let _whole = packets(&queued(&bytes));
        }
    }
}
