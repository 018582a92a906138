//! Netlink as the kernel speaks it: framing of messages and attributes, and the two questions asked of it: for a dump, and
//! for one object.
//!
//! A few small requests (conntrack statistics and entries, addresses, links, sockets) need forty lines of this; the formats are UAPI
//! (include/uapi/linux/netlink.h) and everything is in host byte order unless the family says otherwise.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x001 | 0x300;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_ACK: u16 = 0x001 | 0x004;
/// `NLM_F_EXCL | NLM_F_CREATE`.
const NEW_ONLY: u16 = 0x200 | 0x400;
/// Set on the messages of a dump that did not see one consistent state.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Size of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Size of `struct nlattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// `NLA_F_NESTED`, without which the kernel refuses some attributes of attributes.
pub(crate) const NESTED: u16 = 0x8000;
/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`: bits of an attribute's type that are no part of it.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
/// The kernel never makes a larger buffer for a dump (net/netlink/af_netlink.c, `netlink_recvmsg`).
const RECEIVE_LEN: usize = 32 * 1024;
/// A dump that saw changes is asked again this often.
const ATTEMPTS: u32 = 4;
/// The kernel answers a dump in the reader's own context, so waiting at all means something is wrong.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a dump gave nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum DumpError {
    /// The socket could not be made, written or read.
    #[error("netlink socket: {0}")]
    Socket(Errno),
    /// The kernel answered with an error.
    #[error("{0}")]
    Refused(Errno),
    /// A message was cut short or does not add up.
    #[error("malformed netlink message")]
    Malformed,
    /// Every attempt saw the table change.
    #[error("the kernel's table changed during each of {ATTEMPTS} attempts to read it")]
    Interrupted,
    /// The answer was longer than there was time for.
    #[error("the answer did not end in time")]
    TooLong,
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: rustix::fd::OwnedFd,
    deadline: Option<Instant>,
}

impl Socket {
    /// Opens one that takes messages from the kernel only: a connected netlink socket refuses other senders
    /// (net/netlink/af_netlink.c, `netlink_getsockbyportid`).
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self, DumpError> {
        let open = || {
            let socket =
                rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
            Ok(Self { fd: socket, deadline: None })
        };
        open().map_err(DumpError::Socket)
    }

    /// The same, for a dump that is given up when it has not ended by `deadline`; there is no other after that one.
    pub(crate) fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Asks for a dump and hands over each message as (type, payload). When the kernel says that the table changed
    /// meanwhile the dump is asked again, so `start` is called before each attempt.
    pub(crate) fn dump<T>(
        &self,
        message_type: u16,
        body: &[u8],
        mut start: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, DumpError> {
        for attempt in 1..=ATTEMPTS {
            let mut collected = start();
            if self.dump_once(attempt, message_type, body, |kind, payload| each(&mut collected, kind, payload))? {
                return Ok(collected);
            }
        }
        Err(DumpError::Interrupted)
    }

    /// Asks for one object and gives its message's payload. The socket must be a new one.
    pub(crate) fn get(&self, message_type: u16, body: &[u8]) -> Result<Vec<u8>, DumpError> {
        let mut answer = None;
        self.exchange(&request(message_type, REQUEST_ACK, 1, body)?, 1, |_, payload| answer = Some(payload.to_vec()))?;
        answer.ok_or(DumpError::Malformed)
    }

    /// Asks for an object to be made that must not exist yet.
    pub(crate) fn create(&self, message_type: u16, body: &[u8]) -> Result<(), DumpError> {
        self.exchange(&request(message_type, REQUEST_ACK | NEW_ONLY, 1, body)?, 1, |_, _| {}).map(drop)
    }

    /// Asks for objects to be removed.
    pub(crate) fn remove(&self, message_type: u16, body: &[u8]) -> Result<(), DumpError> {
        self.exchange(&request(message_type, REQUEST_ACK, 1, body)?, 1, |_, _| {}).map(drop)
    }

    /// One attempt; `false` when it was interrupted by a change.
    fn dump_once(
        &self,
        sequence: u32,
        message_type: u16,
        body: &[u8],
        each: impl FnMut(u16, &[u8]),
    ) -> Result<bool, DumpError> {
        self.exchange(&request(message_type, REQUEST_DUMP, sequence, body)?, sequence, each)
    }

    /// Sends a request and hands over each message of the answer, up to the kernel's word that it is complete.
    fn exchange(&self, request: &[u8], sequence: u32, mut each: impl FnMut(u16, &[u8])) -> Result<bool, DumpError> {
        rustix::net::send(&self.fd, request, SendFlags::empty()).map_err(DumpError::Socket)?;
        let mut buffer = vec![0; RECEIVE_LEN];
        let mut consistent = true;
        loop {
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(DumpError::TooLong);
            }
            let received = match rustix::net::recv(&self.fd, buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((_, length)) => buffer.get(..length).ok_or(DumpError::Malformed)?,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(DumpError::Socket(error)),
            };
            if received.is_empty() {
                return Err(DumpError::Malformed);
            }
            for message in Messages(received) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return status(message.payload).map(|()| consistent);
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }
}

/// The error that the payload of `NLMSG_ERROR` and `NLMSG_DONE` begins with: negative errno, 0 for success. The kernel
/// knows none beyond 4095 (include/linux/err.h, `MAX_ERRNO`), nor does `Errno`.
fn status(mut payload: &[u8]) -> Result<(), DumpError> {
    match payload.try_get_i32_ne() {
        Ok(0) => Ok(()),
        Ok(error @ -4095..=-1) => Err(DumpError::Refused(Errno::from_raw_os_error(-error))),
        Ok(_) | Err(_) => Err(DumpError::Malformed),
    }
}

fn request(message_type: u16, flags: u16, sequence: u32, body: &[u8]) -> Result<BytesMut, DumpError> {
    let length = u32::try_from(HEADER_LEN + body.len()).map_err(|_| DumpError::Malformed)?;
    let mut request = BytesMut::with_capacity(HEADER_LEN + body.len());
    request.put_u32_ne(length);
    request.put_u16_ne(message_type);
    request.put_u16_ne(flags);
    request.put_u32_ne(sequence);
    request.put_u32_ne(0);
    request.put_slice(body);
    Ok(request)
}

/// One message without its header.
#[derive(Debug, Eq, PartialEq)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages of a buffer; the first that does not add up is the last.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DumpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let Some((message, rest)) = split_message(whole) else { return Some(Err(DumpError::Malformed)) };
        self.0 = rest;
        Some(Ok(message))
    }
}

fn split_message(whole: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let mut header = whole.get(..HEADER_LEN)?;
    let length = usize::try_from(header.get_u32_ne()).ok()?;
    let (kind, flags, sequence) = (header.get_u16_ne(), header.get_u16_ne(), header.get_u32_ne());
    let payload = whole.get(HEADER_LEN..length)?;
    Some((Message { kind, flags, sequence, payload }, after(whole, length)))
}

/// The attributes of a payload, as (type, value); ends at the first that does not add up.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let whole = std::mem::take(&mut self.0);
        let mut header = whole.get(..ATTRIBUTE_HEADER_LEN)?;
        let length = usize::from(header.get_u16_ne());
        let kind = header.get_u16_ne() & !ATTRIBUTE_FLAGS;
        let value = whole.get(ATTRIBUTE_HEADER_LEN..length)?;
        self.0 = after(whole, length);
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first one of a type.
    pub(crate) fn value(&self, wanted: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(kind, value)| (kind == wanted).then_some(value))
    }
}

/// Appends an attribute, padded to a multiple of four. A value of ours is tens of bytes long.
pub(crate) fn put_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.put_u16_ne(u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).unwrap_or(u16::MAX));
    to.put_u16_ne(kind);
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// One attribute by itself.
#[cfg(test)]
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_attribute(&mut bytes, kind, value);
    bytes
}

/// What follows an item of `length` bytes; items begin at multiples of four.
fn after(whole: &[u8], length: usize) -> &[u8] {
    whole.get(length.next_multiple_of(4)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    /// An address dump's start: one message of 20 bytes of payload with two attributes, then `NLMSG_DONE`.
    fn two_messages() -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.put_u32_ne(16 + 12);
        bytes.put_u16_ne(20);
        bytes.put_u16_ne(2);
        bytes.put_u32_ne(1);
        bytes.put_u32_ne(0);
        bytes.put_slice(&[5, 0, 1, 0, 0xaa, 0, 0, 0, 4, 0, 2, 0xc0]);
        bytes.put_u32_ne(20);
        bytes.put_u16_ne(NLMSG_DONE);
        bytes.put_u16_ne(2);
        bytes.put_u32_ne(1);
        bytes.put_u32_ne(0);
        bytes.put_i32_ne(0);
        bytes.to_vec()
    }

    #[test]
    fn messages_and_attributes_come_apart() {
        let bytes = two_messages();
        let messages: Vec<_> = Messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(messages.iter().map(|message| message.kind).collect::<Vec<_>>(), [20, NLMSG_DONE]);
        let attributes: Vec<_> = Attributes(messages[0].payload).collect();
        assert_eq!(attributes, [(1, &[0xaa][..]), (2, &[][..])]);
        assert_eq!(status(messages[1].payload), Ok(()));
    }

    #[test]
    fn an_error_is_its_errno() {
        assert_eq!(status(&(-1i32).to_ne_bytes()), Err(DumpError::Refused(Errno::PERM)));
        assert_eq!(status(&0i32.to_ne_bytes()), Ok(()));
        for no_error in [&1i32.to_ne_bytes()[..], &(-4096i32).to_ne_bytes(), &i32::MIN.to_ne_bytes(), &[1], &[]] {
            assert_eq!(status(no_error), Err(DumpError::Malformed));
        }
    }

    #[test]
    fn a_message_longer_than_its_buffer_is_malformed() {
        let mut bytes = two_messages();
        bytes.truncate(30);
        let last = Messages(&bytes).last();
        assert_eq!(last, Some(Err(DumpError::Malformed)));
    }

    #[test]
    fn a_message_shorter_than_its_header_is_malformed() {
        let mut bytes = two_messages();
        bytes[0] = 3;
        let messages: Vec<_> = Messages(&bytes).collect();
        assert_eq!(messages, [Err(DumpError::Malformed)]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len());
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn the_kernel_answers_an_address_dump() {
        let socket = Socket::open(None).unwrap();
        // RTM_GETADDR with an all-zero `struct ifaddrmsg`; RTM_NEWADDR is 20.
        let kinds = socket.dump(22, &[0; 8], Vec::new, |kinds, kind, _| kinds.push(kind)).unwrap();
        assert!(!kinds.is_empty() && kinds.iter().all(|&kind| kind == 20), "{kinds:?}");
        // The same socket again: nothing of the first dump is left in it.
        let again = socket.dump(22, &[0; 8], Vec::new, |kinds, kind, _| kinds.push(kind)).unwrap();
        assert_eq!(again, kinds);
    }

    #[test]
    fn a_refusal_is_told() {
        let socket = Socket::open(Some(rustix::net::netlink::NETFILTER)).unwrap();
        let refused = socket.dump(0xfe << 8, &[0; 4], || (), |(), _, _| ());
        assert!(matches!(refused, Err(DumpError::Refused(_))), "{refused:?}");
    }

    /// However a dump is framed, what it says of lengths is never believed beyond its end, and it comes to one.
    #[test]
    fn mutated_dumps_are_survived() {
        survives("netlink", &[], |bytes| {
            let mut payloads = 0;
            for message in Messages(bytes) {
                let Ok(message) = message else { break };
                payloads += message.payload.len();
                let _ = status(message.payload);
                assert!(
                    Attributes(message.payload).map(|(_, value)| value.len()).sum::<usize>() <= message.payload.len()
                );
            }
            assert!(payloads <= bytes.len());
        });
    }
}
