//! What the lab, its pods and its receiver say to each other: eight words per message, one message per packet.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// What a message is made of.
type Words = [u32; 8];
/// The same in little-endian bytes.
type Message = [u8; 32];

/// A pair of connected ends that keep message boundaries and show the other end's close as an end of file.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Lab to pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    /// Send one datagram that is no test traffic, to see whether the way is open.
    Probe,
    /// Send `background` datagrams, each of a flow of its own that nobody waits for. Then open a socket on `port`, wait until
    /// `barrier` pods have ever come to this point, send the first packet.
    Round { round: u32, port: u16, barrier: u32, background: u32 },
}

/// Pod to lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Report {
    /// Ready for orders; sends come from this thread, and in some scenarios from a second one, else 0.
    Ready { tid: u32, twin: u32 },
    /// The first packet was given to the kernel, which answered with this errno, 0 for none; by this process, 0 for the
    /// pod itself.
    Sent { round: u32, errno: u32, sender: u32 },
    /// The connection is up, after this many retransmitted segments.
    Connected { round: u32, retransmits: u32 },
    /// The connection failed with this errno.
    Refused { round: u32, errno: u32 },
    /// The other pod's packet came, from this port.
    Heard { round: u32, port: u16 },
}

/// Receiver to lab, and inside a datagram or hello to the receiver (without the source).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Arrival {
    pub(super) stamp: Stamp,
    /// Who sent it, as the external host sees it.
    pub(super) source: SocketAddr,
    /// The port it came to.
    pub(super) at: u16,
}

/// What a datagram or hello says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    /// [`PROBE`] or the round's number.
    pub(super) round: u32,
    pub(super) pod: u32,
}

/// The round of what is no test traffic.
pub(super) const PROBE: u32 = u32::MAX;

impl Stamp {
    /// Bytes of a datagram or hello.
    pub(super) const LENGTH: usize = 8;

    pub(super) fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.round.to_le_bytes());
        bytes[4..].copy_from_slice(&self.pod.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = *bytes else { return None };
        Some(Self { round: u32::from_le_bytes([a, b, c, d]), pod: u32::from_le_bytes([e, f, g, h]) })
    }
}

/// A message of fixed size.
pub(super) trait Wire: Sized {
    fn words(self) -> Words;
    fn from_words(words: Words) -> Option<Self>;
}

/// A message that needs no more than four words.
fn words([a, b, c, d]: [u32; 4]) -> Words {
    [a, b, c, d, 0, 0, 0, 0]
}

fn first_four(words: Words) -> Option<[u32; 4]> {
    let [a, b, c, d, 0, 0, 0, 0] = words else { return None };
    Some([a, b, c, d])
}

impl Wire for Order {
    fn words(self) -> Words {
        match self {
            Self::Probe => words([0, 0, 0, 0]),
            Self::Round { round, port, barrier, background } => [1, round, port.into(), barrier, background, 0, 0, 0],
        }
    }

    fn from_words(words: Words) -> Option<Self> {
        match words {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Probe),
            [1, round, port, barrier, background, 0, 0, 0] => {
                Some(Self::Round { round, port: u16::try_from(port).ok()?, barrier, background })
            }
            _ => None,
        }
    }
}

impl Wire for Report {
    fn words(self) -> Words {
        match self {
            Self::Ready { tid, twin } => words([0, tid, twin, 0]),
            Self::Sent { round, errno, sender } => words([1, round, errno, sender]),
            Self::Connected { round, retransmits } => words([2, round, retransmits, 0]),
            Self::Refused { round, errno } => words([3, round, errno, 0]),
            Self::Heard { round, port } => words([4, round, port.into(), 0]),
        }
    }

    fn from_words(words: Words) -> Option<Self> {
        match first_four(words)? {
            [0, tid, twin, 0] => Some(Self::Ready { tid, twin }),
            [1, round, errno, sender] => Some(Self::Sent { round, errno, sender }),
            [2, round, retransmits, 0] => Some(Self::Connected { round, retransmits }),
            [3, round, errno, 0] => Some(Self::Refused { round, errno }),
            [4, round, port, 0] => Some(Self::Heard { round, port: u16::try_from(port).ok()? }),
            _ => None,
        }
    }
}

impl Wire for Arrival {
    fn words(self) -> Words {
        // An IPv4 address as an IPv4-mapped one.
        let address = match self.source.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let [a, b, c, d, e, f, g, h] = address.segments().map(u32::from);
        let pair = |high: u32, low: u32| high << 16 | low;
        let port = self.source.port().into();
        [self.stamp.round, self.stamp.pod, port, pair(a, b), pair(c, d), pair(e, f), pair(g, h), self.at.into()]
    }

    fn from_words([round, pod, port, a, b, c, d, at]: Words) -> Option<Self> {
        let bits = [a, b, c, d].into_iter().fold(0, |bits, word| bits << 32 | u128::from(word));
        let address = Ipv6Addr::from_bits(bits).to_canonical();
        let source = SocketAddr::new(address, u16::try_from(port).ok()?);
        Some(Self { stamp: Stamp { round, pod }, source, at: u16::try_from(at).ok()? })
    }
}

/// Sends one message.
pub(super) fn tell(to: impl AsFd, message: impl Wire) -> io::Result<()> {
    let mut bytes: Message = [0; size_of::<Words>()];
    for (slot, word) in bytes.chunks_exact_mut(4).zip(message.words()) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    // NOSIGNAL: an end that is gone is an error here, not a signal to the whole program.
    send(to, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message, waiting for it; `None` when the other end is gone.
pub(super) fn hear<W: Wire>(from: impl AsFd) -> io::Result<Option<W>> {
    hear_with(from, RecvFlags::empty())
}

/// Receives one message that is already there: [`io::ErrorKind::WouldBlock`] when none is.
pub(super) fn hear_now<W: Wire>(from: impl AsFd) -> io::Result<Option<W>> {
    hear_with(from, RecvFlags::DONTWAIT)
}

fn hear_with<W: Wire>(from: impl AsFd, flags: RecvFlags) -> io::Result<Option<W>> {
    let mut bytes: Message = [0; size_of::<Words>()];
    let length = match rustix::io::retry_on_intr(|| recv(&from, bytes.as_mut_slice(), flags)) {
        Ok((length, _)) => length,
        // It went while messages of ours lay unread: gone all the same.
        Err(Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if length == 0 {
        return Ok(None);
    }
    let mut words: Words = [0; 8];
    for (word, slot) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = slot.try_into().map_or(0, u32::from_le_bytes);
    }
    let whole = length == bytes.len();
    whole.then(|| W::from_words(words)).flatten().map(Some).ok_or_else(|| io::Error::other("a message nobody sends"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let (one, other) = pair().unwrap();
        let order = Order::Round { round: 7, port: 10_007, barrier: 16, background: 125 };
        tell(&one, order).unwrap();
        assert_eq!(hear(&other).unwrap(), Some(order));
        for report in [
            Report::Ready { tid: 5, twin: 6 },
            Report::Sent { round: 1, errno: 0, sender: 9 },
            Report::Connected { round: 2, retransmits: 1 },
            Report::Refused { round: 3, errno: 111 },
            Report::Heard { round: 4, port: 10_004 },
        ] {
            tell(&other, report).unwrap();
            assert_eq!(hear(&one).unwrap(), Some(report));
        }
        for source in ["10.99.1.1:10000", "[fd99::1:0:0:0:1]:10000"].map(|text| text.parse().unwrap()) {
            let arrival = Arrival { stamp: Stamp { round: 3, pod: 1 }, source, at: 20_000 };
            tell(&other, arrival).unwrap();
            assert_eq!(hear(&one).unwrap(), Some(arrival));
        }
        assert_eq!(hear_now::<Report>(&one).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(other);
        assert_eq!(hear::<Report>(&one).unwrap(), None);
        tell(&one, Order::Probe).unwrap_err();
    }

    #[test]
    fn a_stamp_is_eight_bytes() {
        let stamp = Stamp { round: 3, pod: 1 };
        assert_eq!(Stamp::decode(&stamp.encode()), Some(stamp));
        assert_eq!(Stamp::decode(&[0; 7]), None);
    }
}
