//! Who sends a datagram, seen when its flow asks for a port: the current task, in the middle of the system call that sends.
//!
//! From the socket through the links of pods to the NAT of the node a packet stays in the context of its sender, unless it
//! is put off (`ksoftirqd`) or handed to another CPU (RPS); then any task may be current. So the current task is the sender
//! only if the system call it is in, the socket this is about, and where that sends from and to, all say so.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_user, bpf_task_pt_regs},
};
use snat_trace_common::{ABSENT, Tuple};

use crate::{
    packet::{AF_INET, AF_INET6, UDP, UDPLITE},
    read::{
        Address, DEVICE_IPV4, DEVICE_IPV6, DEVICE_LIST, FDTABLE_FD, FILE_PRIVATE, FILES_FDT, HELPER_TASK_PT_REGS,
        IN_ADDRESS_LOCAL, IN_ADDRESS_NEXT, IN_DEVICE_ADDRESSES, INET6_ADDRESS_ADDR, INET6_ADDRESS_LIST,
        INET6_DEVICE_ADDRESSES, NET_DEVICES, PT_REGS_R8, PT_REGS_SIZE, Place, SOCK_DADDR6, SOCK_PROTOCOL, SOCK_SADDR6,
        SOCKET_SK, Socket, TASK_FILES, TASK_STACK, Unreadable, halves,
    },
};

/// Whether this kernel has every field that is read here, but for those of IPv6.
#[unsafe(no_mangle)]
static SENDERS: Global<u8> = Global::new(0);

/// Bytes of a task's kernel stack, below the end of which its registers in user space stand
/// (arch/x86/include/asm/page_64_types.h, `THREAD_SIZE`). For kernels before 5.15, which do not tell where.
const THREAD_SIZE: u64 = 16 << 10;

/// Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl), whose first argument is the socket's descriptor.
const WRITE: u64 = 1;
const WRITEV: u64 = 20;
const SENDTO: u64 = 44;
const SENDMSG: u64 = 46;
const SENDMMSG: u64 = 307;

/// How many network devices of a namespace are asked for an address, and how many addresses of each.
const DEVICES: usize = 4;
const ADDRESSES: usize = 2;

/// The third word of an IPv6 address that means an IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// A system call that sends.
pub(crate) struct Call {
    descriptor: u32,
    /// Where in user space it is said where to send to; 0 when that is where the socket is connected to.
    name: Address,
}

/// Whether senders of such tuples are seen on this kernel.
#[inline(always)]
pub(crate) fn is_seen(tuple: &Tuple) -> bool {
    SENDERS.load() != 0 && matches!(tuple.protonum, UDP | UDPLITE)
}

/// The socket through which a task is sending a datagram with this original tuple; an error when it does not or cannot be
/// seen to. What cannot be read is zero here, and says nothing of the tuple.
#[inline(always)]
pub(crate) fn socket<'a>(
    task: Address,
    call: &Call,
    tuple: &Tuple,
    place: &'a mut Place,
) -> Result<Socket<'a>, Unreadable> {
    let descriptors = task.field(TASK_FILES).follow_or_zero().field(FILES_FDT).follow_or_zero().field(FDTABLE_FD);
    let file = descriptors.follow_or_zero().plus(u64::from(call.descriptor) * size_of::<u64>() as u64).follow_or_zero();
    // Of what is no socket's file something else stands there, in which not all of this is found.
    let sk = place.read(file.field(FILE_PRIVATE).follow_or_zero().field(SOCKET_SK).follow_or_zero())?;
    let [dst_port_be, src_port] = sk.ports();
    let sends = src_port.to_be() == tuple.src_port_be
        && sk.field(SOCK_PROTOCOL).read_or_zero::<u16>() == u16::from(tuple.protonum)
        && if tuple.l3num == AF_INET {
            sends_ipv4(sk, dst_port_be, call, tuple)?
        } else {
            sends_ipv6(sk, dst_port_be, call, tuple)?
        };
    if sends { Ok(sk) } else { Err(Unreadable) }
}

/// The system call a task is in, if that sends. An interrupted task is in none: its number is -1 then
/// (arch/x86/include/asm/idtentry.h).
#[inline(always)]
pub(crate) fn call(task: Address) -> Result<Call, Unreadable> {
    let registers = if HELPER_TASK_PT_REGS.load() == ABSENT {
        task.field(TASK_STACK).follow()?.plus(THREAD_SIZE - u64::from(PT_REGS_SIZE.load()))
    } else {
        // SAFETY: the helpers hand out the current task and an address, which is not followed unchecked.
        Address::new(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) }.cast_unsigned())
    };
    // Their order is user-space API (arch/x86/include/uapi/asm/ptrace.h).
    let [r8, _ax, _cx, _dx, si, di, orig_ax] = registers.field(PT_REGS_R8).read::<[u64; 7]>()?;
    let name = match orig_ax {
        SENDTO => r8,
        // The first of `struct user_msghdr`, with which `struct mmsghdr` begins.
        SENDMSG | SENDMMSG => read_user::<u64>(Address::new(si))?,
        WRITE | WRITEV => 0,
        _ => return Err(Unreadable),
    };
    // The descriptor is in the lower half.
    Ok(Call { descriptor: di as u32, name: Address::new(name) })
}

impl Call {
    /// Whether it says where to send to.
    #[inline(always)]
    pub(crate) fn is_named(&self) -> bool {
        self.name.as_key() != 0
    }
}

/// Whether a call sends over IPv4 from where and to where the tuple says. Pods that race for a port have the same, and only
/// their addresses tell them apart.
#[inline(always)]
fn sends_ipv4(sk: Socket<'_>, dst_port_be: u16, call: &Call, tuple: &Tuple) -> Result<bool, Unreadable> {
    let [[src, ..], [dst, ..]] = addresses(tuple);
    let [connected, bound] = sk.ipv4_addresses();
    let there = if call.is_named() {
        // `struct sockaddr_in` and `struct sockaddr_in6` begin with family and port; then comes the address of IPv4.
        let [start, address] = read_user::<[u32; 2]>(call.name)?;
        let [family, port] = halves(start);
        port == tuple.dst_port_be
            && if family == AF_INET6 {
                read_user::<[u32; 4]>(call.name.plus(8))? == [0, 0, MAPPED, dst]
            } else {
                address == dst
            }
    } else {
        dst_port_be == tuple.dst_port_be && connected == dst
    };
    Ok(there && if bound == 0 { has_ipv4(sk, src) } else { bound == src })
}

/// The same over IPv6.
#[inline(always)]
fn sends_ipv6(sk: Socket<'_>, dst_port_be: u16, call: &Call, tuple: &Tuple) -> Result<bool, Unreadable> {
    if SOCK_SADDR6.load() == ABSENT || SOCK_DADDR6.load() == ABSENT {
        return Ok(false);
    }
    let [src, dst] = addresses(tuple);
    let there = if call.is_named() {
        let [start, _flowinfo, address @ ..] = read_user::<[u32; 6]>(call.name)?;
        halves(start) == [AF_INET6, tuple.dst_port_be] && address == dst
    } else {
        dst_port_be == tuple.dst_port_be && sk.field(SOCK_DADDR6).read::<[u32; 4]>()? == dst
    };
    let bound = sk.field(SOCK_SADDR6).read_or_zero::<[u32; 4]>();
    Ok(there && if bound == [0; 4] { has_ipv6(sk, src) } else { bound == src })
}

/// Whether one of the first devices of a socket's namespace has this address (include/linux/inetdevice.h).
#[inline(always)]
fn has_ipv4(sk: Socket<'_>, wanted: u32) -> bool {
    any_device(sk, |device| {
        let mut address = device.field(DEVICE_IPV4).follow_or_zero().field(IN_DEVICE_ADDRESSES).follow_or_zero();
        for _ in 0..ADDRESSES {
            if address.field(IN_ADDRESS_LOCAL).read_or_zero::<u32>() == wanted {
                return true;
            }
            address = address.field(IN_ADDRESS_NEXT).follow_or_zero();
        }
        false
    })
}

/// The same for IPv6 (include/net/if_inet6.h).
#[inline(always)]
fn has_ipv6(sk: Socket<'_>, wanted: [u32; 4]) -> bool {
    let known = [DEVICE_IPV6, INET6_DEVICE_ADDRESSES, INET6_ADDRESS_LIST, INET6_ADDRESS_ADDR];
    if known.iter().any(|offset| offset.load() == ABSENT) {
        return false;
    }
    any_device(sk, |device| {
        let list = device.field(DEVICE_IPV6).follow_or_zero().field(INET6_DEVICE_ADDRESSES);
        let mut link = list.follow_or_zero();
        for _ in 0..ADDRESSES {
            // The list ends where it began, and there is no address.
            let address = link.plus(u64::from(INET6_ADDRESS_LIST.load()).wrapping_neg());
            if link.as_key() != list.as_key() && address.field(INET6_ADDRESS_ADDR).read_or_zero::<[u32; 4]>() == wanted
            {
                return true;
            }
            link = link.follow_or_zero();
        }
        false
    })
}

/// Whether this is so of any of the first devices of a socket's namespace, behind the loopback.
#[inline(always)]
fn any_device(sk: Socket<'_>, is_it: impl Fn(Address) -> bool) -> bool {
    let list = sk.netns().field(NET_DEVICES);
    // The first is the loopback (drivers/net/loopback.c, `loopback_net_init`), from which nothing is translated.
    let mut link = list.follow_or_zero().follow_or_zero();
    for _ in 0..DEVICES {
        if link.as_key() == list.as_key() {
            return false;
        }
        if is_it(link.plus(u64::from(DEVICE_LIST.load()).wrapping_neg())) {
            return true;
        }
        link = link.follow_or_zero();
    }
    false
}

/// The words of source and destination, as they lie in memory: byte by byte they would be put together first.
#[inline(always)]
fn addresses(tuple: &Tuple) -> [[u32; 4]; 2] {
    const { assert!(offset_of!(Tuple, src) == 0 && offset_of!(Tuple, dst) == 20) };
    // SAFETY: a tuple is ten words, aligned to eight, of which every bit pattern is one.
    let [s0, s1, s2, s3, _, d0, d1, d2, d3, _] = unsafe { *core::ptr::from_ref(tuple).cast::<[u32; 10]>() };
    [[s0, s1, s2, s3], [d0, d1, d2, d3]]
}

/// What stands in the current task's user space. `T` is plain integers in every use.
#[inline(always)]
fn read_user<T: Copy>(from: Address) -> Result<T, Unreadable> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and writes all of `value`, zeros where it fails; every bit pattern is a `T`.
    unsafe {
        let failed = bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.as_ptr());
        if failed == 0 { Ok(value.assume_init()) } else { Err(Unreadable) }
    }
}
