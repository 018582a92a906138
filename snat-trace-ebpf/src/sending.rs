//! Who sends a datagram, seen when its flow asks for a port: the current task, in the middle of the system call that sends.
//!
//! From the socket through the links of pods to the NAT of the node a packet stays in the context of its sender, unless it
//! is put off (`ksoftirqd`) or handed to another CPU (RPS); then any task may be current. So the current task is the sender
//! only if the system call it is in, the socket this is about, and where that sends from and to, all say so.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_user};
use snat_trace_common::Tuple;

use crate::{
    packet::{AF_INET, AF_INET6, UDP, UDPLITE},
    process,
    read::{
        Address, DEVICE_IPV4, DEVICE_IPV6, DEVICE_LIST, FDTABLE_FD, FILE_PRIVATE, FILES_FDT, IN_ADDRESS_LOCAL,
        IN_ADDRESS_NEXT, IN_DEVICE_ADDRESSES, INET6_ADDRESS_ADDR, INET6_ADDRESS_LIST, INET6_DEVICE_ADDRESSES,
        NET_DEVICES, PT_REGS_R8, PT_REGS_SIZE, Place, SOCK_DADDR6, SOCK_PROTOCOL, SOCK_SADDR6, SOCKET_SK, Socket,
        TASK_FILES, TASK_STACK, Typed, Unreadable,
    },
};

/// Whether this kernel has every field that is read here of senders of IPv4.
#[unsafe(no_mangle)]
static SENDERS: Global<u8> = Global::new(0);

/// The same of those of IPv6.
#[unsafe(no_mangle)]
static SENDERS6: Global<u8> = Global::new(0);

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

/// The socket through which the current task is sending a datagram with this original tuple; an error when it does not or
/// cannot be seen to. What cannot be read is zero here, and says nothing of the tuple.
#[inline(always)]
pub(crate) fn socket<'a>(call: &Call, tuple: &Tuple, place: &'a mut Place) -> Result<Socket<'a>, Unreadable> {
    let files = process::current().field(TASK_FILES).follow_or_zero();
    let descriptors = files.field(FILES_FDT).follow_or_zero().field(FDTABLE_FD).follow_or_zero();
    let file = descriptors.plus(u64::from(call.descriptor) * size_of::<u64>() as u64).follow_or_zero();
    // Of what is no socket's file something else stands there, in which not all of this is found.
    let sk = place.read(file.field(FILE_PRIVATE).follow_or_zero().field(SOCKET_SK).follow_or_zero())?;
    let sends = sk.head.num.to_be() == tuple.src_port_be
        && sk.field(SOCK_PROTOCOL).read_or_zero::<u16>() == u16::from(tuple.protonum)
        && if tuple.l3num == AF_INET { sends_ipv4(sk, call, tuple)? } else { sends_ipv6(sk, call, tuple)? };
    if sends { Ok(sk) } else { Err(Unreadable) }
}

/// The system call the current task is in, if that sends. An interrupted task is in none: its number is -1 then
/// (arch/x86/include/asm/idtentry.h).
#[inline(always)]
pub(crate) fn call() -> Result<Call, Unreadable> {
    // From r8 on their order is user-space API (arch/x86/include/uapi/asm/ptrace.h).
    if let Some(task) = Typed::current() {
        let registers = task.registers().behind(PT_REGS_R8);
        return Call::of(|number| registers.word(number));
    }
    let end = process::current().field(TASK_STACK).follow()?.plus(THREAD_SIZE);
    let registers = end.plus(u64::from(PT_REGS_SIZE.load()).wrapping_neg()).field(PT_REGS_R8).read::<[u64; 7]>()?;
    Call::of(|number| registers[number])
}

/// Where to send to over IPv4: the begin of `struct sockaddr_in` (include/uapi/linux/in.h), and of `struct sockaddr_in6`,
/// which has something else for the address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Name {
    family: u16,
    port_be: u16,
    address: u32,
}

/// Where to send to over IPv6: the begin of `struct sockaddr_in6` (include/uapi/linux/in6.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Name6 {
    start: Name,
    address: [u32; 4],
}

impl Call {
    /// That of the registers from r8 on.
    #[inline(always)]
    fn of(register: impl Fn(usize) -> u64) -> Result<Self, Unreadable> {
        const R8: usize = 0;
        const SI: usize = 4;
        const DI: usize = 5;
        const ORIG_AX: usize = 6;
        let name = match register(ORIG_AX) {
            SENDTO => register(R8),
            // The first of `struct user_msghdr`, with which `struct mmsghdr` begins.
            SENDMSG | SENDMMSG => read_user::<u64>(Address::new(register(SI)))?,
            WRITE | WRITEV => 0,
            _ => return Err(Unreadable),
        };
        // The descriptor is in the lower half.
        Ok(Self { descriptor: register(DI) as u32, name: Address::new(name) })
    }

    /// Whether it says where to send to.
    #[inline(always)]
    pub(crate) fn is_named(&self) -> bool {
        self.name.as_key() != 0
    }
}

/// Whether a call sends over IPv4 from where and to where the tuple says. Pods that race for a port have the same, and only
/// their addresses tell them apart.
#[inline(always)]
fn sends_ipv4(sk: Socket<'_>, call: &Call, tuple: &Tuple) -> Result<bool, Unreadable> {
    let [&[src, ..], &[dst, ..]] = addresses(tuple);
    let there = if call.is_named() {
        let name: Name = read_user(call.name)?;
        name.port_be == tuple.dst_port_be
            && if name.family == AF_INET6 {
                read_user::<Name6>(call.name)?.address == [0, 0, MAPPED, dst]
            } else {
                name.address == dst
            }
    } else {
        sk.head.dport_be == tuple.dst_port_be && sk.head.daddr_be == dst
    };
    if !there {
        return Ok(false);
    }
    let bound = sk.head.rcv_saddr_be;
    Ok(if bound == 0 { has_ipv4(sk, src) } else { bound == src })
}

/// The same over IPv6.
#[inline(always)]
fn sends_ipv6(sk: Socket<'_>, call: &Call, tuple: &Tuple) -> Result<bool, Unreadable> {
    if SENDERS6.load() == 0 {
        return Ok(false);
    }
    let [src, dst] = addresses(tuple);
    let there = if call.is_named() {
        let Name6 { start, address } = read_user(call.name)?;
        start.family == AF_INET6 && start.port_be == tuple.dst_port_be && is_same(&address, dst)
    } else {
        sk.head.dport_be == tuple.dst_port_be && is_same(&sk.field(SOCK_DADDR6).read()?, dst)
    };
    if !there {
        return Ok(false);
    }
    let bound = sk.field(SOCK_SADDR6).read::<[u32; 4]>()?;
    Ok(if bound == [0; 4] { has_ipv6(sk, src) } else { is_same(&bound, src) })
}

/// Whether one of the first devices of a socket's namespace has this address (include/linux/inetdevice.h).
#[inline(always)]
fn has_ipv4(sk: Socket<'_>, wanted: u32) -> bool {
    for device in Devices::of(sk) {
        let mut address = device.field(DEVICE_IPV4).follow_or_zero().field(IN_DEVICE_ADDRESSES).follow_or_zero();
        for _ in 0..ADDRESSES {
            if address.field(IN_ADDRESS_LOCAL).read_or_zero::<u32>() == wanted {
                return true;
            }
            address = address.field(IN_ADDRESS_NEXT).follow_or_zero();
        }
    }
    false
}

/// The same for IPv6 (include/net/if_inet6.h).
#[inline(always)]
fn has_ipv6(sk: Socket<'_>, wanted: &[u32; 4]) -> bool {
    for device in Devices::of(sk) {
        let list = device.field(DEVICE_IPV6).follow_or_zero().field(INET6_DEVICE_ADDRESSES);
        let mut link = list.follow_or_zero();
        for _ in 0..ADDRESSES {
            // The list ends where it began, and there is no address.
            let address = link.plus(u64::from(INET6_ADDRESS_LIST.load()).wrapping_neg());
            if link.as_key() != list.as_key() && is_same(&address.field(INET6_ADDRESS_ADDR).read_or_zero(), wanted) {
                return true;
            }
            link = link.follow_or_zero();
        }
    }
    false
}

/// The first devices of a socket's namespace, behind the loopback.
struct Devices {
    list: Address,
    link: Address,
    left: usize,
}

impl Devices {
    #[inline(always)]
    fn of(sk: Socket<'_>) -> Self {
        let list = sk.netns().field(NET_DEVICES);
        // The first is the loopback (drivers/net/loopback.c, `loopback_net_init`), from which nothing is translated.
        Self { list, link: list.follow_or_zero(), left: DEVICES }
    }
}

impl Iterator for Devices {
    type Item = Address;

    #[inline(always)]
    fn next(&mut self) -> Option<Address> {
        self.link = self.link.follow_or_zero();
        if self.left == 0 || self.link.as_key() == self.list.as_key() {
            return None;
        }
        self.left -= 1;
        Some(self.link.plus(u64::from(DEVICE_LIST.load()).wrapping_neg()))
    }
}

/// The words of source and destination, as they lie in memory.
#[inline(always)]
fn addresses(tuple: &Tuple) -> [&[u32; 4]; 2] {
    const { assert!(offset_of!(Tuple, src) % 4 == 0 && offset_of!(Tuple, dst) % 4 == 0 && align_of::<Tuple>() >= 4) };
    // SAFETY: they are 16 bytes where words may stand, of which every bit pattern is one.
    [&tuple.src, &tuple.dst].map(|address| unsafe { &*core::ptr::from_ref(address).cast() })
}

/// Whether two addresses of IPv6 are the same, by words: by bytes they would be put together first.
#[inline(always)]
fn is_same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
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
