//! Who sends: recorded in the sender's own context, by the tuple its packets have before any translation.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_ktime_get_ns,
    },
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{ABSENT, Counter, OwnerFact, Tuple, owner_flags};

use crate::{
    maps::{OWNERS, count},
    packet::{AF_INET, AF_INET6, TCP, ipv4_address, ipv4_tuple, ipv6_tuple, network_header, ports, transport_header},
    read::{
        Address, FLOWI4_DADDR, FLOWI4_PROTO, FLOWI4_SADDR, SK_BUFF_SK, SOCK_DADDR, SOCK_DADDR6, SOCK_DPORT,
        SOCK_FAMILY, SOCK_NET, SOCK_SADDR, SOCK_SADDR6, SOCK_SPORT, SOCK_WRITE_QUEUE, TASK_FLAGS, Unreadable, netns_at,
    },
};

/// Entry of `tcp_connect(sk)` (net/ipv4/tcp_output.c): the port is bound and the SYN not yet made.
#[kprobe]
fn owner_tcp(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg::<u64>(0) {
        let sk = Address::new(sk);
        let mut tuple = Tuple::default();
        match tcp_tuple(sk, &mut tuple) {
            Ok(true) => keep(&tuple, sk, 0),
            Ok(false) => {}
            Err(Unreadable) => count(Counter::OwnerUnreadable),
        }
    }
    0
}

/// Entry of `ip_send_skb(net, skb)` (net/ipv4/ip_output.c), headers made: UDP.
#[kprobe]
fn owner_ipv4(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(1) {
        sent(Address::new(skb), ipv4_tuple);
    }
    0
}

/// Entry of `ip_push_pending_frames(sk, fl4)` (net/ipv4/ip_output.c): ICMP and raw sockets, which come to `ip_send_skb`
/// inside it where that is inlined. The IP header is not made yet; what it will say of the addresses stands in the flow.
#[kprobe]
fn owner_raw(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(flow)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        let sk = Address::new(sk);
        let mut tuple = Tuple::default();
        match pending_tuple(sk, Address::new(flow), &mut tuple) {
            Ok(true) => keep(&tuple, sk, flags_of(&tuple)),
            Ok(false) => {}
            Err(Unreadable) => count(Counter::OwnerUnreadable),
        }
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

/// Writes the original tuple of the packet an IPv4 socket has put together (net/ipv4/ip_output.c, `__ip_make_skb`).
#[inline(always)]
fn pending_tuple(sk: Address, flow: Address, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    // `struct sk_buff_head` begins with the first packet, or with itself when it has none.
    let queue = sk.field(&SOCK_WRITE_QUEUE);
    let skb = queue.follow()?;
    if skb.as_key() == queue.as_key() {
        return Ok(false);
    }
    tuple.src = ipv4_address(flow.field(&FLOWI4_SADDR).read()?);
    tuple.dst = ipv4_address(flow.field(&FLOWI4_DADDR).read()?);
    tuple.l3num = AF_INET;
    tuple.protonum = flow.field(&FLOWI4_PROTO).read()?;
    ports(transport_header(skb)?, tuple)
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
        Ok(true) => keep(&tuple, sk, flags_of(&tuple)),
        Ok(false) => {}
        Err(Unreadable) => count(Counter::OwnerUnreadable),
    }
}

/// What a packet that did not come from `tcp_connect` says of its sender.
#[inline(always)]
fn flags_of(tuple: &Tuple) -> u32 {
    if tuple.protonum == TCP { owner_flags::RAW_SYN } else { 0 }
}

/// Keeps the sender of a tuple, and when the one before it sent last.
///
/// There is no lock, and two may send one tuple at once. A sender that finds the tuple in other hands puts its name into
/// the record it is about to replace, and looks afterwards whether that record is still as it was and the name its own; one
/// that updates its own record looks for such a name afterwards. So at least the later of two sees the other, and says
/// that both sent now. Between writing and looking lies a map update, whose locks are barriers, or, where a sender
/// updates its own record, less time than the other's map update takes.
#[expect(clippy::needless_borrows_for_generic_args, reason = "copies of the owner would not fit on the stack")]
#[inline(always)]
fn keep(tuple: &Tuple, sk: Address, flags: u32) {
    // SAFETY: the helpers take no argument and touch no memory.
    let (task, now) = (bpf_get_current_pid_tgid(), unsafe { bpf_ktime_get_ns() });
    let netns = netns_of(sk).unwrap_or(0);
    let known = OWNERS.get_ptr_mut(tuple);
    if let Some(known) = known
        && sent_again(known, task, netns, now)
    {
        return;
    }
    let owner = &mut OwnerFact {
        sent_ns: now,
        before_ns: 0,
        elsewhere_ns: 0,
        sends: 1,
        taker: 0,
        // SAFETY: the helper takes no argument and touches no memory.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        // Two numbers of 32 bits in one of 64.
        tgid: (task >> 32) as u32,
        tid: task as u32,
        netns,
        flags: if is_kernel_thread() { flags | owner_flags::KERNEL_THREAD } else { flags },
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    // Two CPUs may send one tuple at once: whoever comes second must find the first.
    let known = match known {
        None if OWNERS.insert(tuple, &*owner, BPF_NOEXIST.into()).is_ok() => return,
        None => OWNERS.get_ptr_mut(tuple),
        known => known,
    };
    let Some(known) = known else {
        count(Counter::OwnerNotKept);
        return;
    };
    if sent_again(known, task, netns, now) {
        return;
    }
    // SAFETY: the pointer is into a map value, which stays the map's memory for as long as this program runs. Other CPUs
    // may write to it; all of it is integers and bytes, which can be read in any state.
    let known = unsafe { &mut *known };
    let here = known.netns == owner.netns;
    let own = here && known.tgid == owner.tgid;
    store(&mut known.taker, task);
    let sent_before = load(&known.sent_ns);
    (owner.before_ns, owner.elsewhere_ns) = match (own, here) {
        (true, _) => (now, now),
        (false, true) => (sent_before, known.elsewhere_ns),
        // What was sent elsewhere than in the namespace before may have been sent in this one.
        (false, false) => (known.elsewhere_ns, sent_before),
    };
    if OWNERS.insert(tuple, &*owner, BPF_ANY.into()).is_err() {
        count(Counter::OwnerNotKept);
    }
    // A record that lives again for another tuple by now has changed too, and doubt does no harm.
    if load(&known.sent_ns) != sent_before || load(&known.taker) != task {
        store(&mut known.taker, task);
        if let Some(current) = OWNERS.get_ptr_mut(tuple) {
            // SAFETY: as above.
            let current = unsafe { &mut *current };
            store(&mut current.before_ns, now);
            store(&mut current.elsewhere_ns, now);
        }
    }
}

/// Brings the record of a sender that sends again up to date; `false` when it is another's, or being taken over.
#[inline(always)]
fn sent_again(known: *mut OwnerFact, task: u64, netns: u32, now: u64) -> bool {
    // SAFETY: as in `keep`.
    let known = unsafe { &mut *known };
    // Two numbers of 32 bits in one of 64.
    if known.tgid != (task >> 32) as u32 || known.netns != netns {
        return false;
    }
    if known.tid != task as u32 {
        known.flags |= owner_flags::SEVERAL_THREADS;
    }
    known.sends += 1;
    // SAFETY: the helper takes no argument and touches no memory.
    known.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    known.tid = task as u32;
    known.comm = bpf_get_current_comm().unwrap_or_default();
    store(&mut known.sent_ns, now);
    load(&known.taker) == 0
}

/// Reads what another CPU may be writing, here and now.
#[inline(always)]
fn load(value: &u64) -> u64 {
    // SAFETY: a reference can be read from; an aligned integer is read whole.
    unsafe { core::ptr::from_ref(value).read_volatile() }
}

/// Writes what another CPU may be reading, here and now.
#[inline(always)]
fn store(to: &mut u64, value: u64) {
    // SAFETY: a reference can be written to; an aligned integer is written whole.
    unsafe { core::ptr::from_mut(to).write_volatile(value) }
}

/// Whether the current task is a thread of the kernel: `PF_KTHREAD` (include/linux/sched.h).
///
/// It connects and sends for others: MPTCP's subflows, NFS, and io_uring's poller before Linux 5.12, which made that a
/// thread of the process itself.
#[inline(always)]
fn is_kernel_thread() -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    // SAFETY: the helper takes no argument and touches no memory.
    let task = Address::new(unsafe { bpf_get_current_task() });
    task.field(&TASK_FLAGS).read::<u32>().is_ok_and(|flags| flags & PF_KTHREAD != 0)
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
