//! Asking the calling thread's network namespace which flow it turned into another.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::counters::ctnetlink::{
    self, CT_GET, CTA_PROTO_DST_PORT, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_TUPLE_ORIG, CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY, Tuple,
};
use crate::counters::wire::{DumpError, NESTED, Socket, put_attribute};
use crate::race::tuple::{Ends, OriginalTuple, Protocol};

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

/// The reply the flow would be given.
fn request(protocol: Protocol, flow: OriginalTuple) -> Vec<u8> {
    let Ends { source, destination } = flow.ends();
    let mut tuple = Vec::new();
    ctnetlink::put_addresses(&mut tuple, destination.ip(), source.ip());
    let mut ports = Vec::new();
    put_attribute(&mut ports, CTA_PROTO_NUM, &[protocol.0]);
    put_attribute(&mut ports, CTA_PROTO_SRC_PORT, &destination.port().to_be_bytes());
    put_attribute(&mut ports, CTA_PROTO_DST_PORT, &source.port().to_be_bytes());
    put_attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &ports);
    let mut request = ctnetlink::header(source.ip());
    put_attribute(&mut request, CTA_TUPLE_REPLY | NESTED, &tuple);
    request
}

/// The original tuple of an entry.
fn parse(entry: &[u8]) -> Option<OriginalTuple> {
    let tuple = Tuple::parse(ctnetlink::attributes(entry)?.value(CTA_TUPLE_ORIG)?);
    tuple.ends().map(OriginalTuple::from_ends)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::skipped::skipped;

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
            Err(error) => skipped(format_args!("connection tracking cannot be asked here: {error}")),
        }
    }
}
