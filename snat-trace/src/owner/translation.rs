//! Asking the calling thread's network namespace which flow it turned into another.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, BytesMut};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::counters::wire::{Attributes, DumpError, Socket};
use crate::race::tuple::{Ends, OriginalTuple, Protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET` (include/uapi/linux/netfilter/nfnetlink_conntrack.h, as all below).
const CT_GET: u16 = 1 << 8 | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The flow that left this namespace as `flow`, as its sender made it: `flow` itself where it was not translated here.
/// `None` when the namespace does not track it, which is so of all flows where no rule needs tracking.
///
/// # Errors
///
/// The kernel was not asked, or its answer was not understood.
pub(super) fn untranslated(protocol: Protocol, flow: OriginalTuple) -> Result<Option<OriginalTuple>, DumpError> {
    let request = request(protocol, flow);
    match Socket::open(Some(NETFILTER))?.get(CT_GET, &request) {
        Ok(answer) => parse(&answer).map(Some).ok_or(DumpError::Malformed),
        Err(DumpError::Refused(Errno::NOENT)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct nfgenmsg`, and the reply the flow would be given.
fn request(protocol: Protocol, flow: OriginalTuple) -> BytesMut {
    let Ends { source, destination } = flow.ends();
    let mut addresses = BytesMut::new();
    let family = match (destination.ip(), source.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            put(&mut addresses, CTA_IP_V4_SRC, &from.octets());
            put(&mut addresses, CTA_IP_V4_DST, &to.octets());
            AF_INET
        }
        (from, to) => {
            put(&mut addresses, CTA_IP_V6_SRC, &six(from));
            put(&mut addresses, CTA_IP_V6_DST, &six(to));
            AF_INET6
        }
    };
    let mut ports = BytesMut::new();
    put(&mut ports, CTA_PROTO_NUM, &[protocol.0]);
    put(&mut ports, CTA_PROTO_SRC_PORT, &destination.port().to_be_bytes());
    put(&mut ports, CTA_PROTO_DST_PORT, &source.port().to_be_bytes());
    let mut tuple = BytesMut::new();
    put(&mut tuple, CTA_TUPLE_IP | NLA_F_NESTED, &addresses);
    put(&mut tuple, CTA_TUPLE_PROTO | NLA_F_NESTED, &ports);
    let mut request = BytesMut::new();
    request.put_slice(&[family, 0, 0, 0]);
    put(&mut request, CTA_TUPLE_REPLY | NLA_F_NESTED, &tuple);
    request
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// One `struct nlattr` with its value, padded. Values here are tens of bytes.
fn put(to: &mut BytesMut, kind: u16, value: &[u8]) {
    let length = 4 + value.len();
    to.put_u16_ne(u16::try_from(length).unwrap_or(u16::MAX));
    to.put_u16_ne(kind);
    to.put_slice(value);
    to.put_bytes(0, length.next_multiple_of(4) - length);
}

/// The original tuple of an entry: `struct nfgenmsg` and attributes.
fn parse(entry: &[u8]) -> Option<OriginalTuple> {
    let find = |attributes: Attributes<'_>, wanted| -> Option<Vec<u8>> {
        attributes.into_iter().find(|&(kind, _)| kind == wanted).map(|(_, value)| value.to_vec())
    };
    let tuple = find(Attributes(entry.get(4..)?), CTA_TUPLE_ORIG)?;
    let (addresses, ports) = (find(Attributes(&tuple), CTA_TUPLE_IP)?, find(Attributes(&tuple), CTA_TUPLE_PROTO)?);
    let address = |four, six| -> Option<IpAddr> {
        let value = find(Attributes(&addresses), four).or_else(|| find(Attributes(&addresses), six))?;
        let value = value.as_slice();
        <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
    };
    let port = |kind| Some(u16::from_be_bytes(find(Attributes(&ports), kind)?.try_into().ok()?));
    Some(OriginalTuple::from_ends(Ends {
        source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(source: &str, destination: &str) -> OriginalTuple {
        OriginalTuple::from_ends(Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    #[test]
    fn the_reply_is_asked_for() {
        // What `conntrack -G -p udp -r 9.9.9.9 -q 10.0.0.1 --reply-port-src 53 --reply-port-dst 5` sends, but for the
        // order of the ports.
        let expected = [
            "02000000 3400 0280 1400 0180 08000100 09090909 08000200 0a000001 1c00 0280 05000100 11000000",
            "06000200 00350000 06000300 00050000",
        ];
        let expected: String = expected.concat().replace(' ', "");
        let sent: String =
            request(Protocol::UDP, flow("10.0.0.1:5", "9.9.9.9:53")).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sent, expected);
    }

    #[test]
    fn an_entry_tells_its_sender() {
        for (source, destination) in [("10.0.0.1:5", "9.9.9.9:53"), ("[fd00::1]:5", "[fd00::9]:53")] {
            // A reply asked for by the flow that goes the other way, as an original tuple.
            let mut entry = request(Protocol::UDP, flow(destination, source));
            entry[6] = CTA_TUPLE_ORIG.to_ne_bytes()[0];
            assert_eq!(parse(&entry), Some(flow(source, destination)));
        }
        assert_eq!(parse(&request(Protocol::UDP, flow("10.0.0.1:5", "9.9.9.9:53"))), None, "a reply tuple only");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn what_is_not_tracked_is_not_there() {
        match untranslated(Protocol::UDP, flow("192.0.2.1:5", "192.0.2.2:53")) {
            Ok(found) => assert_eq!(found, None),
            Err(error) => eprintln!("skipped: connection tracking cannot be asked here: {error}"),
        }
    }
}
