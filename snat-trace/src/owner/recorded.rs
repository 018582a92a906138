//! What the kernel recorded of a flow's sender, and what can be believed of it.

use snat_trace_common::{FlowFact, OwnerFact, flow_flags, owner_flags};

use crate::kernel::Role;
use crate::race::tuple::Protocol;

/// How long before an entry asks for its port its packet can have been sent: the way from the sender's socket to the node's
/// NAT, without a queue that holds packets back longer.
const ON_THE_WAY: u64 = 250_000_000;
/// The same for TCP, whose SYN is sent again for up to 127 s (net.ipv4.tcp_syn_retries) by a socket that keeps its port.
const ON_THE_WAY_TCP: u64 = 130_000_000_000;
/// `AF_INET6`.
const AF_INET6: u16 = 10;

/// Which senders are recorded: those whose hooks are attached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Recording {
    ipv4: bool,
    ipv6: bool,
}

impl Recording {
    /// By the roles of the hooks that are attached.
    #[must_use]
    pub fn by(attached: impl IntoIterator<Item = Role>) -> Self {
        let mut recording = Self::default();
        for role in attached {
            recording.ipv4 |= role == Role::OwnerIpv4;
            recording.ipv6 |= role == Role::OwnerIpv6;
        }
        recording
    }

    /// Whether the sender of this flow would have been recorded, had it sent through a socket of the flow's protocol.
    ///
    /// Not so for TCP: its connections live longer than their record, and ask for a port again where their entry was
    /// removed.
    fn covers(self, flow: &FlowFact) -> bool {
        let socket = Protocol(flow.original.protonum) == Protocol::UDP;
        socket && if flow.original.l3num == AF_INET6 { self.ipv6 } else { self.ipv4 }
    }
}

/// Where to find a flow's sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sender<'a> {
    /// The kernel recorded it, and it can be no other.
    Recorded(&'a OwnerFact),
    /// Not recorded, or a thread of the kernel sent for somebody: the socket may still be there.
    LookUp,
    /// Through the translation of another namespace, if at all: the sender's own socket would have been recorded.
    Behind,
    /// Nowhere: it can be one of several.
    Unknown,
}

/// What is known of the sender of a flow that clashed at `clash_ns`.
///
/// A recorded sender is believed if it sent shortly before the entry asked for its port (`clash_ns` where that is not
/// known) or since, and no other did. A sender is missed by the hooks where it sends by a way they do not cover; whoever
/// sent the same tuple long before must not be taken for it.
///
/// Of one tuple there can be several senders, one after another or in network namespaces with the same addresses. Of TCP
/// only one socket of a namespace has it at a time (net/ipv4/inet_hashtables.c, `__inet_check_established`), so that one
/// who has it now was not preceded by a SYN that is still to come; the socket of another namespace may send its SYN again
/// at any time.
pub(crate) fn sender<'a>(flow: &'a FlowFact, clash_ns: u64, recording: Recording) -> Sender<'a> {
    let asked = (flow.flags & flow_flags::ALLOCATION != 0).then_some(flow.allocated_ns);
    let tcp = Protocol(flow.original.protonum) == Protocol::TCP;
    if flow.flags & flow_flags::OWNER == 0 {
        return if asked.is_some() && recording.covers(flow) { Sender::Behind } else { Sender::LookUp };
    }

    let OwnerFact { sent_ns, before_ns, elsewhere_ns, flags, sends, .. } = flow.owner;
    let before = |span| asked.unwrap_or(clash_ns).saturating_sub(span);
    let (lately, earliest) = (before(ON_THE_WAY), before(if tcp { ON_THE_WAY_TCP } else { ON_THE_WAY }));
    let raw_syn = flags & owner_flags::RAW_SYN != 0;
    let by_another = before_ns >= if raw_syn { earliest } else { lately }.max(1);
    let by_another_namespace = if tcp { elsewhere_ns != 0 } else { elsewhere_ns >= lately.max(1) };
    let only_since = sends == 1 && asked.is_some_and(|asked| sent_ns > asked);
    if by_another || by_another_namespace || only_since {
        Sender::Unknown
    } else if sent_ns < earliest {
        if tcp { Sender::LookUp } else { Sender::Unknown }
    } else if flags & owner_flags::KERNEL_THREAD != 0 {
        Sender::LookUp
    } else {
        Sender::Recorded(&flow.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::race::classify::tests::clash;

    const MS: i64 = 1_000_000;
    const ASKED: u64 = 500_000_000_000;

    /// A flow that asked at [`ASKED`], and whose sender sent so many milliseconds before (negative: after).
    fn flow(protocol: Protocol, sent: i64) -> FlowFact {
        let mut flow = clash().loser;
        flow.original.protonum = protocol.0;
        flow.allocated_ns = ASKED;
        flow.owner.sent_ns = ms_before(sent);
        flow.owner.sends = 2;
        flow
    }

    fn ms_before(ms: i64) -> u64 {
        ASKED.saturating_add_signed(-ms * MS)
    }

    fn recording() -> Recording {
        Recording::by([Role::OwnerTcp, Role::OwnerIpv4, Role::OwnerIpv6])
    }

    fn where_from(flow: &FlowFact) -> &'static str {
        match sender(flow, ASKED, recording()) {
            Sender::Recorded(_) => "recorded",
            Sender::LookUp => "look-up",
            Sender::Behind => "behind",
            Sender::Unknown => "unknown",
        }
    }

    #[test]
    fn a_recorded_sender_is_named_only_when_it_can_be_no_other() {
        let never = None;
        // Protocol, sent before the ask (negative: after); another process there and a socket elsewhere did; what comes of it.
        let cases = [
            (Protocol::UDP, 0, never, never, "recorded"),
            (Protocol::UDP, 249, never, never, "recorded"),
            (Protocol::UDP, 251, never, never, "unknown"),
            (Protocol::UDP, -10_000, never, never, "recorded"),
            (Protocol::UDP, 1, Some(251), never, "recorded"),
            (Protocol::UDP, 1, Some(249), never, "unknown"),
            (Protocol::UDP, 1, never, Some(251), "recorded"),
            (Protocol::UDP, 1, never, Some(249), "unknown"),
            (Protocol::UDP, -1, Some(-1), never, "unknown"),
            (Protocol::UDP, -1, never, Some(-1), "unknown"),
            (Protocol::ICMP, 1, never, never, "recorded"),
            (Protocol::ICMP, 251, never, never, "unknown"),
            (Protocol::TCP, 7_000, never, never, "recorded"),
            (Protocol::TCP, 129_000, never, never, "recorded"),
            (Protocol::TCP, 131_000, never, never, "look-up"),
            // A socket of the same namespace that had the tuple before sends no SYN any more.
            (Protocol::TCP, 1, Some(251), never, "recorded"),
            (Protocol::TCP, 1, Some(249), never, "unknown"),
            // One of another namespace may.
            (Protocol::TCP, 1, never, Some(100_000), "unknown"),
            (Protocol::TCP, 1, never, Some(499_000), "unknown"),
        ];
        for (protocol, sent, before, elsewhere, expected) in cases {
            let mut flow = flow(protocol, sent);
            flow.owner.before_ns = before.map_or(0, ms_before);
            flow.owner.elsewhere_ns = elsewhere.map_or(0, ms_before);
            let case = (protocol, sent, before, elsewhere);
            assert_eq!(where_from(&flow), expected, "{case:?}");
            flow.flags &= !flow_flags::ALLOCATION;
            assert_eq!(where_from(&flow), expected, "by the clash: {case:?}");
        }
    }

    #[test]
    fn who_sent_for_the_first_time_afterwards_is_not_the_sender() {
        for (sends, sent, expected) in [(1, -1, "unknown"), (1, 0, "recorded"), (1, 1, "recorded"), (2, -1, "recorded")]
        {
            let mut flow = flow(Protocol::UDP, sent);
            flow.owner.sends = sends;
            assert_eq!(where_from(&flow), expected, "{sends} {sent}");
        }
    }

    #[test]
    fn a_thread_of_the_kernel_is_not_named() {
        for protocol in [Protocol::UDP, Protocol::TCP] {
            let mut flow = flow(protocol, 1);
            flow.owner.flags = owner_flags::KERNEL_THREAD;
            assert_eq!(where_from(&flow), "look-up");
        }
    }

    #[test]
    fn a_raw_syn_keeps_no_connection_from_sending_again() {
        let mut flow = flow(Protocol::TCP, 1);
        flow.owner.flags = owner_flags::RAW_SYN;
        assert_eq!(where_from(&flow), "recorded");
        flow.owner.before_ns = ms_before(100_000);
        assert_eq!(where_from(&flow), "unknown");
    }

    #[test]
    fn without_a_record_a_socket_is_looked_for_where_none_is_made() {
        let without = |protocol, l3num, change: fn(&mut FlowFact), recording| {
            let mut flow = flow(protocol, 0);
            flow.flags &= !flow_flags::OWNER;
            flow.original.l3num = l3num;
            change(&mut flow);
            sender(&flow, ASKED, recording) == Sender::LookUp
        };
        let as_it_is: fn(&mut FlowFact) = |_| {};
        assert!(!without(Protocol::UDP, 2, as_it_is, recording()));
        assert!(!without(Protocol::UDP, AF_INET6, as_it_is, recording()));
        // A hook is missing.
        assert!(without(Protocol::UDP, AF_INET6, as_it_is, Recording::by([Role::OwnerIpv4])));
        assert!(without(Protocol::UDP, 2, as_it_is, Recording::by([Role::OwnerIpv6])));
        // It asked before the hooks were there.
        assert!(without(Protocol::UDP, 2, |flow| flow.flags &= !flow_flags::ALLOCATION, recording()));
        // It may have connected before.
        assert!(without(Protocol::TCP, 2, as_it_is, recording()));
    }
}
