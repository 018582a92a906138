//! Who sends: recorded in the sender's own context, by the tuple its packets have before any translation.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{ABSENT, Counter, OwnerFact, Tuple};

use crate::{
    maps::{OWNERS, count},
    packet::{AF_INET, AF_INET6, TCP, ipv4_address, ipv4_tuple, ipv6_tuple, network_header},
    read::{
        Address, SK_BUFF_SK, SOCK_DADDR, SOCK_DADDR6, SOCK_DPORT, SOCK_FAMILY, SOCK_NET, SOCK_SADDR, SOCK_SADDR6,
        SOCK_SPORT, Unreadable, netns_at,
    },
};

/// Entry of `tcp_connect(sk)` (net/ipv4/tcp_output.c): the port is bound and the SYN not yet made.
#[kprobe]
fn owner_tcp(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg::<u64>(0) {
        let sk = Address::new(sk);
        let mut tuple = Tuple::default();
        match tcp_tuple(sk, &mut tuple) {
            Ok(true) => keep(&tuple, sk),
            Ok(false) => {}
            Err(Unreadable) => count(Counter::OwnerUnreadable),
        }
    }
    0
}

/// Entry of `ip_send_skb(net, skb)` (net/ipv4/ip_output.c), headers made: UDP. ICMP and raw sockets come to it inside
/// `ip_push_pending_frames`, which has it inlined on the kernels tried.
#[kprobe]
fn owner_ipv4(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(1) {
        sent(Address::new(skb), ipv4_tuple);
    }
    0
}

/// Entry of `ip6_send_skb(skb)` (net/ipv6/ip6_output.c), headers made: UDP, ICMP and raw sockets.
#[kprobe]
fn owner_ipv6(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(0) {
        sent(Address::new(skb), ipv6_tuple);
    }
    0
}

/// Keeps the sender of a packet whose headers are made.
#[inline(always)]
fn sent(skb: Address, fill: impl Fn(Address, &mut Tuple) -> Result<bool, Unreadable>) {
    let (Ok(header), Ok(sk)) = (network_header(skb), skb.field(&SK_BUFF_SK).follow()) else {
        count(Counter::OwnerUnreadable);
        return;
    };
    let mut tuple = Tuple::default();
    match fill(header, &mut tuple) {
        Ok(true) => keep(&tuple, sk),
        Ok(false) => {}
        Err(Unreadable) => count(Counter::OwnerUnreadable),
    }
}

/// Keeps the sender of a tuple. Two network namespaces may have the same addresses, so a tuple may have two senders: that
/// it changed hands is kept too, and user space judges.
#[expect(clippy::needless_borrows_for_generic_args, reason = "copies of the owner would not fit on the stack")]
#[inline(always)]
fn keep(tuple: &Tuple, sk: Address) {
    // SAFETY: the helpers take no argument and touch no memory.
    let (task, now) = (bpf_get_current_pid_tgid(), unsafe { bpf_ktime_get_ns() });
    let owner = &mut OwnerFact {
        sent_ns: now,
        contested_ns: 0,
        // SAFETY: the helper takes no argument and touches no memory.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        // Two numbers of 32 bits in one of 64.
        tgid: (task >> 32) as u32,
        tid: task as u32,
        netns: netns_of(sk).unwrap_or(0),
        reserved: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    // Two CPUs may send one tuple at once: whoever comes second must find the first.
    let known = match OWNERS.get_ptr_mut(tuple) {
        None if OWNERS.insert(tuple, &*owner, BPF_NOEXIST.into()).is_ok() => return,
        None => OWNERS.get_ptr_mut(tuple),
        known => known,
    };
    if let Some(known) = known {
        // SAFETY: the pointer is into a map value; only its own process writes to it in place.
        let known = unsafe { &mut *known };
        if known.tgid == owner.tgid && known.netns == owner.netns {
            // In place, so that a sender who takes the tuple over on another CPU meanwhile is not overwritten.
            known.sent_ns = now;
            known.cgroup_id = owner.cgroup_id;
            known.tid = owner.tid;
            known.comm = owner.comm;
            return;
        }
        owner.contested_ns = now;
    }
    if OWNERS.insert(tuple, &*owner, BPF_ANY.into()).is_err() {
        count(Counter::OwnerNotKept);
    }
}

/// Network namespace of a socket.
#[inline(always)]
fn netns_of(sk: Address) -> Result<u32, Unreadable> {
    if SOCK_NET.load() == ABSENT {
        return Err(Unreadable);
    }
    netns_at(sk.field(&SOCK_NET))
}

/// Writes the original tuple of a connecting TCP socket; `false` when it is neither IPv4 nor IPv6. A socket of IPv6 that
/// connects to an IPv4-mapped address sends IPv4 and has its IPv4 addresses too (net/ipv6/tcp_ipv6.c, `tcp_v6_connect`).
#[inline(always)]
fn tcp_tuple(sk: Address, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    let family = sk.field(&SOCK_FAMILY).read::<u16>()?;
    tuple.src_port_be = sk.field(&SOCK_SPORT).read::<u16>()?.to_be();
    tuple.dst_port_be = sk.field(&SOCK_DPORT).read()?;
    tuple.l3num = family;
    tuple.protonum = TCP;
    if family == AF_INET6 {
        if SOCK_SADDR6.load() == ABSENT || SOCK_DADDR6.load() == ABSENT {
            return Ok(false);
        }
        tuple.dst = sk.field(&SOCK_DADDR6).read()?;
        if tuple.dst[..12] != MAPPED {
            tuple.src = sk.field(&SOCK_SADDR6).read()?;
            return Ok(true);
        }
        tuple.l3num = AF_INET;
    } else if family != AF_INET {
        return Ok(false);
    }
    tuple.src = ipv4_address(sk.field(&SOCK_SADDR).read()?);
    tuple.dst = ipv4_address(sk.field(&SOCK_DADDR).read()?);
    Ok(true)
}
