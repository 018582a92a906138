//! What the kernel recorded of a flow's sender, and what can be believed of it.

use snat_trace_common::{FlowFact, OwnerFact, Tuple, flow_flags, owner_flags};

use crate::race::tuple::Protocol;

/// How long before an entry asks for its port its packet can have been sent: the way from the sender's socket to the node's
/// NAT, without a queue that holds packets back longer.
const ON_THE_WAY: u64 = 250_000_000;
/// The same for TCP, whose SYN is sent again for up to 127 s (net.ipv4.tcp_syn_retries) by a socket that keeps its port.
const ON_THE_WAY_TCP: u64 = 130_000_000_000;

/// Where to find a flow's sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sender<'a> {
    /// The kernel recorded it, and it can be no other.
    Recorded(&'a OwnerFact),
    /// By the socket, which may still be there; held by this process, if another would contradict what was recorded.
    LookUp { by: Option<u32> },
    /// By the socket, held by the process of this record; else it is that process, if the socket is gone and was its alone.
    LookUpElse(&'a OwnerFact),
    /// Nowhere: it can be one of several.
    Unknown,
}

/// What is known of the sender of a flow that clashed at `clash_ns`.
///
/// Of a datagram's flow it is for certain who was seen sending it as it asked for a port. Where nobody was, its packet came
/// there by itself, and whoever sent or connected lately is only who is to be expected.
///
/// Any other recorded sender is believed if it sent shortly before the entry asked for its port (`clash_ns` where that is not
/// known) or since, and no other did. A sender is missed by the hooks where it sends by a way they do not cover; whoever
/// sent the same tuple long before must not be taken for it.
///
/// Of one tuple there can be several senders, one after another or in network namespaces with the same addresses. Of TCP
/// only one socket of a namespace has it at a time (net/ipv4/inet_hashtables.c, `__inet_check_established`), so that one
/// who has it now was not preceded by a SYN that is still to come; the socket of another namespace may send its SYN again
/// at any time.
pub(crate) fn sender(flow: &FlowFact, clash_ns: u64) -> Sender<'_> {
    let seen = (flow.sender != 0).then_some(process_of(flow.sender));
    if flow.flags & flow_flags::OWNER == 0 {
        return Sender::LookUp { by: seen };
    }
    let OwnerFact { sent_ns, before_ns, elsewhere_ns, flags, sends, process, .. } = flow.owner;
    let tgid = process.tgid;
    if let Some(seen) = seen {
        return if seen == tgid { Sender::Recorded(&flow.owner) } else { Sender::LookUp { by: Some(seen) } };
    }

    let asked = (flow.flags & flow_flags::ALLOCATION != 0).then_some(flow.allocated_ns);
    let tcp = Protocol(flow.original.protonum) == Protocol::TCP;
    let before = |span| asked.unwrap_or(clash_ns).saturating_sub(span);
    let (lately, earliest) = (before(ON_THE_WAY), before(if tcp { ON_THE_WAY_TCP } else { ON_THE_WAY }));
    let raw_syn = flags & owner_flags::RAW_SYN != 0;
    let by_another = before_ns >= if raw_syn { earliest } else { lately }.max(1);
    let by_another_namespace = if tcp { elsewhere_ns != 0 } else { elsewhere_ns >= lately.max(1) };
    if by_another || by_another_namespace {
        return Sender::Unknown;
    }
    let only_since = sends == 1 && asked.is_some_and(|asked| sent_ns > asked);
    let datagrams = flags & (owner_flags::CONNECTED | owner_flags::SENDING) != 0;
    let sender = if sent_ns < earliest {
        if tcp || datagrams { Sender::LookUp { by: None } } else { Sender::Unknown }
    } else if flags & owner_flags::KERNEL_THREAD != 0 {
        Sender::LookUp { by: None }
    } else if !datagrams {
        Sender::Recorded(&flow.owner)
    } else if flags & owner_flags::CONNECTED != 0 {
        Sender::LookUpElse(&flow.owner)
    } else {
        Sender::LookUp { by: Some(tgid) }
    };
    match sender {
        Sender::LookUpElse(_) if only_since => Sender::LookUp { by: Some(tgid) },
        Sender::Recorded(_) if only_since => Sender::Unknown,
        sender => sender,
    }
}

/// The flow that another namespace made into this one, of which the kernel recorded this sender, if any. It left its sender
/// when this one asked for its port, but for the way between the two.
pub(crate) fn behind(mut flow: FlowFact, inner: Tuple, recorded: Option<OwnerFact>) -> FlowFact {
    flow.original = inner;
    flow.sender = 0;
    flow.flags &= !flow_flags::OWNER;
    flow.owner = OwnerFact::default();
    if let Some(owner) = recorded {
        flow.flags |= flow_flags::OWNER;
        flow.owner = owner;
        let OwnerFact { sent_ns, before_ns, elsewhere_ns, .. } = owner;
        let on_the_way = flow.allocated_ns.saturating_sub(ON_THE_WAY).max(1)..=flow.allocated_ns;
        if owner.flags & owner_flags::SENDING != 0
            && on_the_way.contains(&sent_ns)
            && before_ns.max(elsewhere_ns) < *on_the_way.start()
        {
            flow.sender = u64::from(owner.process.tgid) << 32 | u64::from(owner.tid);
        }
    }
    flow
}

/// The process id of process and thread id in one number (`bpf_get_current_pid_tgid`).
fn process_of(task: u64) -> u32 {
    u32::try_from(task >> 32).unwrap_or(u32::MAX)
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

    fn where_from(flow: &FlowFact) -> &'static str {
        match sender(flow, ASKED) {
            Sender::Recorded(_) => "recorded",
            Sender::LookUp { by: None } => "look-up",
            Sender::LookUp { by: Some(tgid) } if tgid == flow.owner.process.tgid => "look-up of that process",
            Sender::LookUp { .. } => "look-up of another process",
            Sender::LookUpElse(_) => "look-up or that process",
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
    fn who_was_seen_sending_is_the_sender() {
        let mut flow = flow(Protocol::UDP, 0);
        let task = |tgid: u32| u64::from(tgid) << 32 | 7;
        flow.owner.flags = owner_flags::SENDING;
        flow.sender = task(flow.owner.process.tgid);
        assert_eq!(where_from(&flow), "recorded");
        // Whoever sends the same before or afterwards did not send this.
        flow.owner.before_ns = ms_before(1);
        flow.owner.elsewhere_ns = ms_before(1);
        flow.owner.sent_ns = ms_before(-10_000);
        assert_eq!(where_from(&flow), "recorded");
        flow.sender = task(flow.owner.process.tgid + 1);
        assert_eq!(where_from(&flow), "look-up of another process");
        flow.flags &= !flow_flags::OWNER;
        assert_eq!(where_from(&flow), "look-up of another process");
    }

    #[test]
    fn a_datagram_that_nobody_was_seen_sending_is_looked_up() {
        use owner_flags::{CONNECTED, KERNEL_THREAD as KERNEL, SENDING};
        let never = None;
        // Flags, how often and when it sent before the ask, another process, a socket elsewhere; what comes of it.
        let cases = [
            (SENDING, 2, 1, never, never, "look-up of that process"),
            (CONNECTED, 2, 1, never, never, "look-up or that process"),
            (CONNECTED | SENDING, 2, 1, never, never, "look-up or that process"),
            (CONNECTED, 1, 1, never, never, "look-up or that process"),
            (CONNECTED, 1, -1, never, never, "look-up of that process"),
            (SENDING, 1, -1, never, never, "look-up of that process"),
            (CONNECTED, 2, 251, never, never, "look-up"),
            (SENDING, 2, 251, never, never, "look-up"),
            (CONNECTED | KERNEL, 2, 1, never, never, "look-up"),
            (CONNECTED, 2, 1, Some(1), never, "unknown"),
            (CONNECTED, 2, 1, never, Some(1), "unknown"),
            (SENDING, 2, 1, Some(251), Some(251), "look-up of that process"),
        ];
        for (flags, sends, sent, before, elsewhere, expected) in cases {
            let mut flow = flow(Protocol::UDP, sent);
            flow.owner.flags = flags;
            flow.owner.sends = sends;
            flow.owner.before_ns = before.map_or(0, ms_before);
            flow.owner.elsewhere_ns = elsewhere.map_or(0, ms_before);
            assert_eq!(where_from(&flow), expected, "{flags} {sends} {sent} {before:?} {elsewhere:?}");
        }
    }

    #[test]
    fn what_was_not_recorded_is_looked_up() {
        for protocol in [Protocol::UDP, Protocol::TCP] {
            let mut flow = flow(protocol, 0);
            flow.flags &= !flow_flags::OWNER;
            assert_eq!(where_from(&flow), "look-up");
        }
    }

    #[test]
    fn behind_a_translation_is_who_sent_just_before() {
        let outer = flow(Protocol::UDP, 0);
        let inner = Tuple { src_port_be: 7, ..outer.original };
        let owner = OwnerFact { flags: owner_flags::SENDING, sent_ns: ms_before(1), ..outer.owner };
        let behind = |owner| {
            let flow = behind(FlowFact { sender: 99 << 32, ..outer }, inner, owner);
            assert_eq!(flow.original, inner);
            where_from(&flow)
        };
        assert_eq!(behind(Some(owner)), "recorded");
        assert_eq!(behind(None), "look-up");
        assert_eq!(behind(Some(OwnerFact { flags: owner_flags::CONNECTED, ..owner })), "look-up or that process");
        for (change, expected) in [
            (OwnerFact { sent_ns: ms_before(-1), ..owner }, "look-up of that process"),
            (OwnerFact { sent_ns: ms_before(251), ..owner }, "look-up"),
            (OwnerFact { before_ns: ms_before(1), ..owner }, "unknown"),
            (OwnerFact { elsewhere_ns: ms_before(1), ..owner }, "unknown"),
        ] {
            assert_eq!(behind(Some(change)), expected, "{change:?}");
        }
    }
}
