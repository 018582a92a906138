//! Who sends: recorded in the sender's own context, by the tuple its packets have before any translation.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_get_current_comm,
    },
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{ABSENT, COMM_LEN, Counter, OwnerFact, Tuple, owner_flags};

use crate::{
    failure,
    maps::{OWNERS, count},
    packet::{AF_INET, AF_INET6, TCP, UDP, UDPLITE, ipv4_address, ports, transport_header},
    process,
    read::{
        Address, FLOWI4_DADDR, FLOWI4_PROTO, FLOWI4_SADDR, FLOWI6_DADDR, FLOWI6_PROTO, FLOWI6_SADDR, NET_NS_INUM,
        Place, SOCK_DADDR6, SOCK_FLOW6, SOCK_PROTOCOL, SOCK_SADDR6, SOCK_WRITE_QUEUE, Socket, Unreadable,
    },
    sending,
};

/// Entry of `tcp_connect(sk)` (net/ipv4/tcp_output.c): the port is bound and the SYN not yet made.
#[kprobe]
fn owner_tcp(ctx: ProbeContext) -> u32 {
    keep(&ctx, tcp_tuple, |_| 0)
}

/// Entry of `reuseport_has_conns_set(sk)` (net/core/sock_reuseport.c), which connecting a socket for datagrams calls when its
/// addresses and ports are set (net/ipv4/datagram.c, `__ip4_datagram_connect`). Who sends through it later is seen then, unless its
/// packet was handed on. Or, where that is inlined, of `ip4_datagram_release_cb(sk)` (net/ipv4/datagram.c), which ends all that
/// holds the socket's lock.
///
/// A socket of IPv6 that connects to an IPv4-mapped address comes by here before it has all of its addresses.
#[kprobe]
fn owner_ipv4(ctx: ProbeContext) -> u32 {
    keep(&ctx, |sk, tuple| datagram_tuple(sk, tuple, ipv4_tuple), |_| owner_flags::CONNECTED)
}

/// Entry of `ip6_datagram_release_cb(sk)` (net/ipv6/datagram.c), which ends what holds the lock of such a socket: binding it,
/// setting it up, and connecting it, to an IPv4-mapped address too.
#[kprobe]
fn owner_ipv6(ctx: ProbeContext) -> u32 {
    keep(&ctx, |sk, tuple| datagram_tuple(sk, tuple, connected_tuple), |_| owner_flags::CONNECTED)
}

/// Entry of `ip_push_pending_frames(sk, fl4)` (net/ipv4/ip_output.c): ICMP and raw sockets, which come to `ip_send_skb`
/// inside it where that is inlined. The IP header is not made yet; what it will say of the addresses stands in the flow.
#[kprobe]
fn owner_raw(ctx: ProbeContext) -> u32 {
    let Some(flow) = ctx.arg::<u64>(1) else { return 0 };
    keep(&ctx, |sk, tuple| pending_tuple(sk, Address::new(flow), tuple), flags_of)
}

/// Entry of `ip6_push_pending_frames(sk)` (net/ipv6/ip6_output.c): the same for IPv6, whose flow is kept with the socket.
#[kprobe]
fn owner_raw6(ctx: ProbeContext) -> u32 {
    keep(&ctx, pending_tuple6, flags_of)
}

/// Writes the original tuple of the packet an IPv4 socket has put together (net/ipv4/ip_output.c, `__ip_make_skb`).
#[inline(always)]
fn pending_tuple(sk: Socket<'_>, flow: Address, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    tuple.src = ipv4_address(flow.field(FLOWI4_SADDR).read()?);
    tuple.dst = ipv4_address(flow.field(FLOWI4_DADDR).read()?);
    tuple.l3num = AF_INET;
    tuple.protonum = flow.field(FLOWI4_PROTO).read()?;
    pending_ports(sk, tuple)
}

/// The same of an IPv6 socket (net/ipv6/ip6_output.c, `__ip6_make_skb`).
#[inline(always)]
fn pending_tuple6(sk: Socket<'_>, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    let known = [SOCK_FLOW6, FLOWI6_PROTO, FLOWI6_SADDR, FLOWI6_DADDR];
    if known.iter().any(|offset| offset.load() == ABSENT) {
        return Ok(false);
    }
    let flow = sk.field(SOCK_FLOW6);
    flow.field(FLOWI6_SADDR).read_into(&mut tuple.src)?;
    flow.field(FLOWI6_DADDR).read_into(&mut tuple.dst)?;
    tuple.l3num = AF_INET6;
    tuple.protonum = flow.field(FLOWI6_PROTO).read()?;
    pending_ports(sk, tuple)
}

/// Writes the ports of the first packet that waits to be sent; `false` when none does.
#[inline(always)]
fn pending_ports(sk: Socket<'_>, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    // `struct sk_buff_head` begins with the first packet, or with itself when it has none.
    let queue = sk.field(SOCK_WRITE_QUEUE);
    let skb = queue.follow()?;
    if skb.as_key() == queue.as_key() { Ok(false) } else { ports(transport_header(skb)?, tuple) }
}

/// What a packet that did not come from `tcp_connect` says of its sender.
#[inline(always)]
fn flags_of(tuple: &Tuple) -> u32 {
    if tuple.protonum == TCP { owner_flags::RAW_SYN } else { 0 }
}

/// Keeps the current task as the sender of the tuple that `write` makes of the hook's socket, and notes what it runs. `write`
/// says `false` where there is no flow of interest.
#[inline(always)]
fn keep(
    ctx: &ProbeContext,
    write: impl FnOnce(Socket<'_>, &mut Tuple) -> Result<bool, Unreadable>,
    flags: impl FnOnce(&Tuple) -> u32,
) -> u32 {
    let Some(sk) = ctx.arg::<u64>(0) else { return 0 };
    let mut tuple = Tuple::default();
    let mut place = Place::new();
    let Ok(sk) = place.read(Address::new(sk)) else {
        count(Counter::OwnerUnreadable);
        return 0;
    };
    match write(sk, &mut tuple) {
        Ok(true) => {}
        Ok(false) => return 0,
        Err(Unreadable) => {
            count(Counter::OwnerUnreadable);
            return 0;
        }
    }
    let kernel_thread = if process::is_kernel_thread() { owner_flags::KERNEL_THREAD } else { 0 };
    if keep_sender(&tuple, bpf_get_current_pid_tgid(), sk, failure::now(), flags(&tuple) | kernel_thread) {
        process::note(ctx);
    }
    0
}

/// How long ago a process connected that sends now, at most, for its id to be still its own: 250 ms.
const JUST_CONNECTED: u64 = 250_000_000;

/// Keeps the current task as the sender of the flow that asks for a port at `time_ns`, if it is seen to be, and says which it
/// is: process and thread id in one number, 0 for none. `is_new` becomes true where what it runs is to be noted.
#[inline(always)]
pub(crate) fn keep_sending(tuple: &Tuple, time_ns: u64, is_new: &mut bool) -> u64 {
    let Ok(call) = sending::call() else { return 0 };
    let ids = bpf_get_current_pid_tgid();
    if call.is_named() || !has_just_connected(tuple, ids, time_ns) {
        let mut place = Place::new();
        let Ok(sk) = sending::socket(&call, tuple, &mut place) else { return 0 };
        *is_new = keep_sender(tuple, ids, sk, time_ns, owner_flags::SENDING);
    }
    ids
}

/// Whether the current process, which is sending, is the one that connected just so, and is known by that.
#[inline(always)]
fn has_just_connected(tuple: &Tuple, ids: u64, time_ns: u64) -> bool {
    let Some(known) = OWNERS.get_ptr_mut(tuple) else { return false };
    // SAFETY: as in `take_over`.
    let known = unsafe { &mut *known };
    // Two numbers of 32 bits in one of 64.
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    if known.process.tgid != tgid
        || known.flags & owner_flags::CONNECTED == 0
        || time_ns.wrapping_sub(load(&known.sent_ns)) > JUST_CONNECTED
    {
        return false;
    }
    if known.tid != tid {
        known.flags |= owner_flags::SEVERAL_THREADS;
    }
    true
}

/// Keeps the current task, of which `ids` is process and thread id in one number, as the sender of a tuple, and when the one
/// before it sent last. Says whether what it runs is still to be noted.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy of the owner would not fit on the stack")]
#[inline(always)]
fn keep_sender(tuple: &Tuple, ids: u64, sk: Socket<'_>, time_ns: u64, flags: u32) -> bool {
    let owner = &mut OwnerFact {
        sent_ns: time_ns,
        before_ns: 0,
        elsewhere_ns: 0,
        sends: 1,
        taker: 0,
        // SAFETY: the helper takes no argument and touches no memory.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        legacy_cgroup_id: process::legacy_cgroup_id(),
        process: process::key_of(ids),
        // The lower of two numbers.
        tid: ids as u32,
        netns: sk.netns().field(NET_NS_INUM).read_or_zero(),
        flags,
        // The group's id is in the upper half.
        uid: bpf_get_current_uid_gid() as u32,
        comm: [0; COMM_LEN],
    };
    fill_comm(&mut owner.comm);
    // Hardly a tuple is known, so it is not looked for first. And two CPUs may send one at once: whoever comes second must
    // find the first.
    if OWNERS.insert(tuple, &*owner, BPF_NOEXIST.into()).is_err() {
        take_over(tuple, owner, ids);
    }
    process::is_new(&owner.process)
}

/// Makes the current task, whose record is `owner`, the sender of a tuple that has one.
///
/// There is no lock, and two may send one tuple at once. A sender that finds the tuple in other hands puts its name into
/// the record it is about to replace, and looks afterwards whether that record is still as it was and the name its own; one
/// that updates its own record looks for such a name afterwards. So at least the later of two sees the other, and says
/// that both sent now. Between writing and looking lies a map update, whose locks are barriers, or, where a sender
/// updates its own record, less time than the other's map update takes.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy of the owner would not fit on the stack")]
#[inline(always)]
fn take_over(tuple: &Tuple, owner: &mut OwnerFact, ids: u64) {
    let Some(known) = OWNERS.get_ptr_mut(tuple) else {
        count(Counter::OwnerNotKept);
        return;
    };
    if sent_again(known, owner) {
        return;
    }
    // SAFETY: the pointer is into a map value, which stays the map's memory for as long as this program runs. Other CPUs
    // may write to it; all of it is integers and bytes, which can be read in any state.
    let known = unsafe { &mut *known };
    let here = known.netns == owner.netns;
    let own = here && is_same_process(known, owner);
    store(&mut known.taker, ids);
    let sent_before = load(&known.sent_ns);
    let now = owner.sent_ns;
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
    if load(&known.sent_ns) != sent_before || load(&known.taker) != ids {
        store(&mut known.taker, ids);
        if let Some(current) = OWNERS.get_ptr_mut(tuple) {
            // SAFETY: as above.
            let current = unsafe { &mut *current };
            store(&mut current.before_ns, now);
            store(&mut current.elsewhere_ns, now);
        }
    }
}

/// Whether two records are of one process, whatever it ran.
#[inline(always)]
fn is_same_process(a: &OwnerFact, b: &OwnerFact) -> bool {
    a.process.tgid == b.process.tgid && a.process.start_ns == b.process.start_ns
}

/// Brings the record of a sender that sends again up to date; `false` when it is another's, or being taken over.
#[inline(always)]
fn sent_again(known: *mut OwnerFact, now: &OwnerFact) -> bool {
    // SAFETY: as in `take_over`.
    let known = unsafe { &mut *known };
    if known.netns != now.netns || !is_same_process(known, now) {
        return false;
    }
    known.flags |= if known.tid == now.tid { now.flags } else { now.flags | owner_flags::SEVERAL_THREADS };
    known.sends += 1;
    known.cgroup_id = now.cgroup_id;
    known.tid = now.tid;
    known.process.exec_id = now.process.exec_id;
    known.uid = now.uid;
    fill_comm(&mut known.comm);
    store(&mut known.sent_ns, now.sent_ns);
    load(&known.taker) == 0
}

/// Writes the current task's name in place: a copy of bytes would be made one by one.
#[inline(always)]
fn fill_comm(comm: &mut [u8; COMM_LEN]) {
    // SAFETY: the helper writes so many bytes, zeros where it fails (kernel/bpf/helpers.c, `bpf_get_current_comm`).
    unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_LEN as u32) };
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

/// Writes the original tuple of a connecting TCP socket; `false` when it is neither IPv4 nor IPv6.
#[inline(always)]
fn tcp_tuple(sk: Socket<'_>, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    tuple.protonum = TCP;
    connected_tuple(sk, tuple)
}

/// Writes the original tuple of what a socket for datagrams sends; `false` when it is not connected, or of no port. `write` adds
/// where from and where to.
#[inline(always)]
fn datagram_tuple(
    sk: Socket<'_>,
    tuple: &mut Tuple,
    write: impl FnOnce(Socket<'_>, &mut Tuple) -> Result<bool, Unreadable>,
) -> Result<bool, Unreadable> {
    if SOCK_PROTOCOL.load() == ABSENT || sk.head.dport_be == 0 {
        return Ok(false);
    }
    // A number of 16 bits that fits 8: no other's sockets send datagrams.
    tuple.protonum = sk.field(SOCK_PROTOCOL).read::<u16>()? as u8;
    if matches!(tuple.protonum, UDP | UDPLITE) { write(sk, tuple) } else { Ok(false) }
}

/// Writes the addresses and the ports of a connected socket; `false` when it is neither IPv4 nor IPv6. A socket of IPv6
/// that connects to an IPv4-mapped address sends IPv4 and has its IPv4 addresses too (net/ipv6/tcp_ipv6.c, `tcp_v6_connect`;
/// net/ipv6/datagram.c, `__ip6_datagram_connect`).
#[inline(always)]
fn connected_tuple(sk: Socket<'_>, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    let family = sk.head.family;
    if family == AF_INET6 {
        if SOCK_SADDR6.load() == ABSENT || SOCK_DADDR6.load() == ABSENT {
            return Ok(false);
        }
        sk.field(SOCK_DADDR6).read_into(&mut tuple.dst)?;
        if tuple.dst[..12] != MAPPED {
            sk.field(SOCK_SADDR6).read_into(&mut tuple.src)?;
            fill_ports(tuple, AF_INET6, sk);
            return Ok(true);
        }
    } else if family != AF_INET {
        return Ok(false);
    }
    fill_ipv4(tuple, sk);
    Ok(true)
}

/// The same of a socket of IPv4; `false` when it is another's.
#[inline(always)]
fn ipv4_tuple(sk: Socket<'_>, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    let is_ipv4 = sk.head.family == AF_INET;
    if is_ipv4 {
        fill_ipv4(tuple, sk);
    }
    Ok(is_ipv4)
}

#[inline(always)]
fn fill_ipv4(tuple: &mut Tuple, sk: Socket<'_>) {
    tuple.src = ipv4_address(sk.head.rcv_saddr_be);
    tuple.dst = ipv4_address(sk.head.daddr_be);
    fill_ports(tuple, AF_INET, sk);
}

#[inline(always)]
fn fill_ports(tuple: &mut Tuple, family: u16, sk: Socket<'_>) {
    tuple.src_port_be = sk.head.num.to_be();
    tuple.dst_port_be = sk.head.dport_be;
    tuple.l3num = family;
}
