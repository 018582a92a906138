//! Records as they lie in the ring buffer and values as they lie in the maps.

/// Bytes of `task_struct.comm`, the final NUL included (include/linux/sched.h, `TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Bytes of the loser's packet kept in a record, from the network header on.
pub const PACKET_LEN: usize = 128;

/// Bytes of a command line kept.
pub const ARGUMENTS_LEN: usize = 256;

/// Bytes of a path's component, the final NUL included (include/uapi/linux/limits.h, `NAME_MAX`).
pub const COMPONENT_LEN: usize = 256;

/// Which of the two hash entries of a connection, the kernel's `enum ip_conntrack_dir`.
pub type TupleDirection = u8;

/// A conntrack tuple, laid out as the kernel's `struct nf_conntrack_tuple`
/// (include/net/netfilter/nf_conntrack_tuple.h; the inner layout has not changed from 4.19 to 7.3).
///
/// Used as a map key as well, so every byte counts: an IPv4 address is followed by twelve zero bytes. Aligned to
/// eight so that BPF code copies and compares it by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tuple {
    /// Source address in network byte order; IPv4 in the first four bytes, the rest zero.
    pub src: [u8; 16],
    /// Source port, or the id of an ICMP echo.
    pub src_port_be: u16,
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub l3num: u16,
    /// Destination address, as `src`.
    pub dst: [u8; 16],
    /// Destination port; for ICMP the type in the first byte and the code in the second.
    pub dst_port_be: u16,
    /// IP protocol number.
    pub protonum: u8,
    /// 0 original, 1 reply.
    pub dir: TupleDirection,
}

/// The port range and flags of a NAT rule, from `struct nf_nat_range2` (include/uapi/linux/netfilter/nf_nat.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NatRange {
    /// `NF_NAT_RANGE_*` bits.
    pub flags: u32,
    /// Lowest port allowed, 0 when the rule names none.
    pub min_port_be: u16,
    /// Highest port allowed, 0 when the rule names none.
    pub max_port_be: u16,
}

/// What the allocation and insertion hooks know of an entry: the value of a map keyed by the entry's address.
///
/// The address of a freed entry is reused at once (the slab is `SLAB_TYPESAFE_BY_RCU`), so the original tuple
/// stands here too: an `Allocation` whose tuple differs from the entry's belongs to an earlier life, and so does any for an
/// entry that has not asked for a port, which its status tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Allocation {
    /// Original direction of the connection when it asked for a port.
    pub original: Tuple,
    /// When it asked, in nanoseconds of `CLOCK_MONOTONIC`.
    pub allocated_ns: u64,
    /// When it went into the table, in nanoseconds of `CLOCK_MONOTONIC`; 0 when it has not.
    pub inserted_ns: u64,
    /// What the rule allowed.
    pub range: NatRange,
    /// CPU on which it asked.
    pub allocated_cpu: u32,
    /// CPU on which it went in.
    pub inserted_cpu: u32,
    /// See [`FlowFact::sender`].
    pub sender: u64,
}

/// Who sends with an original tuple, recorded in the sender's own context: the value of a map keyed by the tuple.
///
/// A tuple changes hands: network namespaces may have the same addresses, and a port is used again. That it did, and when
/// the one before sent last, is kept; what it means is for user space to judge.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OwnerFact {
    /// When it sent last, in nanoseconds of `CLOCK_MONOTONIC`; 0 in a record whose flow has no known owner.
    pub sent_ns: u64,
    /// When another process of the same network namespace sent this tuple last, same clock; 0 when none did.
    pub before_ns: u64,
    /// When a socket of another network namespace sent this tuple last, same clock; 0 when none did.
    pub elsewhere_ns: u64,
    /// How often it sent since the tuple came into its hands.
    pub sends: u64,
    /// Who is taking the tuple over, which ends this record's life: process and thread id in one number. 0 in a record that
    /// is current.
    pub taker: u64,
    /// Id of the task's cgroup in the unified hierarchy (`bpf_get_current_cgroup_id`).
    pub cgroup_id: u64,
    /// Id of its cgroup in the hierarchy of version 1 that the loader chose; 0 when it chose none.
    pub legacy_cgroup_id: u64,
    /// What it runs.
    pub process: ProcessKey,
    /// Thread id in the root pid namespace.
    pub tid: u32,
    /// Inode number of the network namespace of the socket.
    pub netns: u32,
    /// [`owner_flags`] bits.
    pub flags: u32,
    /// Real user id in the root user namespace (`bpf_get_current_uid_gid`).
    pub uid: u32,
    /// `task_struct.comm`, NUL-terminated.
    pub comm: [u8; COMM_LEN],
}

/// One program that a process runs: a later process may have the same id, and the same process may execute another
/// program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ProcessKey {
    /// When the process started, in nanoseconds of `CLOCK_BOOTTIME` (`task_struct.start_boottime` of the leader of its
    /// threads); 0 when unknown.
    pub start_ns: u64,
    /// Process id in the root pid namespace.
    pub tgid: u32,
    /// How many programs it and those it came from have executed (`task_struct.self_exec_id`, the lower half).
    pub exec_id: u32,
}

/// What a process runs, recorded when it sends for the first time: the value of a map by [`ProcessKey`], and a record that
/// goes to user space as it is when the process is first met in a clash or a failure.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcessFact {
    /// When it was recorded, and where.
    pub header: RecordHeader,
    /// Its key.
    pub key: ProcessKey,
    /// Whether it went to user space.
    pub told: u32,
    /// Always zero.
    pub reserved: u32,
    /// Process id in the innermost pid namespace it is in; 0 when unknown.
    pub own_pid: u32,
    /// Bytes of the command line, of which `arguments` has the first; 0 when unknown.
    pub arguments_len: u32,
    /// The program's file, as seen from the root of the mount namespace it is in (`mm_struct.exe_file`).
    pub executable: PathFact,
    /// The command line as the process has it, a NUL behind each argument (`mm_struct.arg_start`).
    pub arguments: [u8; ARGUMENTS_LEN],
}

/// A path as the kernel has it: its components from the last to the first, a NUL behind each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PathFact {
    /// How many bytes of `components` are meant.
    pub len: u32,
    /// Whether the first component is among them.
    pub whole: u32,
    /// No component is longer than [`COMPONENT_LEN`], and none begins behind the first half.
    pub components: [u8; 2 * COMPONENT_LEN],
}

/// A cgroup of any hierarchy: each hierarchy has ids of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct CgroupKey {
    /// `kernfs_node.id`.
    pub id: u64,
    /// `cgroup_root.hierarchy_id`, 0 for the unified hierarchy.
    pub hierarchy: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Bits of [`OwnerFact::flags`].
pub mod owner_flags {
    /// The sender is a thread of the kernel (`PF_KTHREAD`), which sends for itself or for somebody else.
    pub const KERNEL_THREAD: u32 = 1;
    /// More than one thread of the process sent this tuple; `tid` and `comm` are the last one's.
    pub const SEVERAL_THREADS: u32 = 1 << 1;
    /// It sent a SYN by a raw socket, which keeps no other socket from sending the same.
    pub const RAW_SYN: u32 = 1 << 2;
    /// It connected a socket for datagrams, through which it or another may have sent since.
    pub const CONNECTED: u32 = 1 << 3;
    /// It was seen sending a datagram whose flow asked for a port.
    pub const SENDING: u32 = 1 << 4;
}

/// One side of a clash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowFact {
    /// As the sender made it.
    pub original: Tuple,
    /// As the answer must look; its destination is the translated source.
    pub reply: Tuple,
    /// `IPS_*` bits of `nf_conn.status`.
    pub status: u64,
    /// See [`Allocation::allocated_ns`]; 0 when unknown.
    pub allocated_ns: u64,
    /// See [`Allocation::inserted_ns`]; 0 when unknown or never.
    pub inserted_ns: u64,
    /// See [`Allocation::range`]; meaningful with [`flow_flags::ALLOCATION`].
    pub range: NatRange,
    /// See [`Allocation::allocated_cpu`]; meaningful with [`flow_flags::ALLOCATION`].
    pub allocated_cpu: u32,
    /// See [`Allocation::inserted_cpu`]; meaningful when `inserted_ns` is not 0.
    pub inserted_cpu: u32,
    /// [`flow_flags`] bits.
    pub flags: u32,
    /// Conntrack zone id (`nf_conn.zone.id`).
    pub zone: u16,
    /// Directions the zone applies to (`nf_conn.zone.dir`): bit 0 original, bit 1 reply. In the other the entry is in the
    /// default zone, 0.
    pub zone_dir: u8,
    /// Always zero.
    pub reserved: u8,
    /// Which task was in the middle of the system call that sent this flow's first packet when it asked for a port:
    /// process and thread id in one number; 0 when the packet was not in its sender's hands any more, or cannot be told to
    /// be.
    pub sender: u64,
    /// Meaningful with [`flow_flags::OWNER`].
    pub owner: OwnerFact,
}

/// Bits of [`FlowFact::flags`].
pub mod flow_flags {
    /// The allocation hook saw this entry in its present life.
    pub const ALLOCATION: u32 = 1;
    /// The owner hooks saw the sender.
    pub const OWNER: u32 = 1 << 1;
    /// An allocation was found at this address, but of an earlier life of it.
    pub const STALE_ALLOCATION: u32 = 1 << 2;
}

/// First bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecordHeader {
    /// One of [`kind`].
    pub kind: u16,
    /// Length of the whole record in bytes.
    pub len: u16,
    /// CPU the hook ran on.
    pub cpu: u32,
    /// When the hook ran, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
}

/// Values of [`RecordHeader::kind`].
pub mod kind {
    /// A [`ClashRecord`](crate::ClashRecord).
    pub const CLASH: u16 = 1;
    /// A [`VerdictRecord`](crate::VerdictRecord).
    pub const VERDICT: u16 = 2;
    /// A [`FailureRecord`](crate::FailureRecord).
    pub const FAILURE: u16 = 3;
    /// A [`ProcessFact`](crate::ProcessFact).
    pub const PROCESS: u16 = 4;
}

/// Bits of [`ClashRecord::flags`].
pub mod record_flags {
    /// The packet could not be read; `packet_len` is 0.
    pub const PACKET_UNREADABLE: u32 = 1;
    /// The network namespace could not be read; `netns` is 0.
    pub const NETNS_UNREADABLE: u32 = 1 << 1;
}

/// A failed insert because a tuple of the entry was in the table already: one call of `nf_ct_resolve_clash`
/// (net/netfilter/nf_conntrack_core.c).
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClashRecord {
    /// `kind` is [`kind::CLASH`].
    pub header: RecordHeader,
    /// Inode number of the network namespace of the entries, 0 when unknown.
    pub netns: u32,
    /// [`record_flags`] bits.
    pub flags: u32,
    /// Which tuple of the winner was found: 0 original, 1 reply.
    pub matched: TupleDirection,
    /// Always zero.
    pub reserved: [u8; 5],
    /// How many bytes of `packet` are the packet's.
    pub packet_len: u16,
    /// Address of the loser's entry: with the time it is the name by which a [`VerdictRecord`] calls this clash.
    pub loser_entry: u64,
    /// The entry that could not be inserted.
    pub loser: FlowFact,
    /// The entry that was there.
    pub winner: FlowFact,
    /// The loser's packet from its network header on, already translated.
    pub packet: [u8; PACKET_LEN],
}

/// A call of a kernel function in flight: no two at a time have the same stack address, and with the task it does not
/// matter who had that stack before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Frame {
    /// Address of the current `task_struct`.
    pub task: u64,
    /// Where the call's return address stands on the stack.
    pub stack: u64,
}

/// A clash the kernel is deciding on: the value of a map keyed by the [`Frame`] of `nf_ct_resolve_clash`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Deciding {
    /// `header.time_ns` of its [`ClashRecord`].
    pub clash_ns: u64,
    /// Its `loser_entry`.
    pub loser_entry: u64,
    /// Address of the loser's packet, a `struct sk_buff`.
    pub packet: u64,
}

/// What `nf_ct_resolve_clash` decided: one record at its return, after that of the clash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct VerdictRecord {
    /// `kind` is [`kind::VERDICT`].
    pub header: RecordHeader,
    /// `header.time_ns` of the clash it is about.
    pub clash_ns: u64,
    /// `loser_entry` of the clash it is about.
    pub loser_entry: u64,
    /// Address of the entry the packet belongs to now.
    pub entry: u64,
    /// `IPS_*` bits of that entry.
    pub status: u64,
    /// What the function returned: `NF_DROP` (0) or `NF_ACCEPT` (1).
    pub returned: u32,
    /// Always zero.
    pub reserved: u32,
}

/// A call in flight of a function by which a connection comes into the table: the value of a map keyed by its [`Frame`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Call {
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// Address of what it is about: the packet ([`function::CONFIRM`]), the original tuple ([`function::ALLOCATE`]) or the
    /// entry ([`function::CHECK_INSERT`]).
    pub subject: u64,
    /// `nf_conn.status` before ([`function::CONFIRM`]), or the address of the network namespace ([`function::ALLOCATE`]).
    pub before: u64,
    /// Address of the zone ([`function::ALLOCATE`]).
    pub zone: u64,
    /// Which one, of [`function`].
    pub function: u32,
    /// [`failure_flags`] that are known already.
    pub flags: u32,
}

/// Values of [`Call::function`] and [`FailureRecord::function`], all in net/netfilter/nf_conntrack_core.c.
pub mod function {
    /// `__nf_conntrack_confirm`.
    pub const CONFIRM: u32 = 1;
    /// `__nf_conntrack_alloc`.
    pub const ALLOCATE: u32 = 2;
    /// `nf_conntrack_hash_check_insert`.
    pub const CHECK_INSERT: u32 = 3;
}

/// Bits of [`FailureRecord::flags`].
pub mod failure_flags {
    /// The network namespace could not be read; `netns` is 0.
    pub const NETNS_UNREADABLE: u32 = 1;
    /// This kernel limits the length of hash chains.
    pub const CHAIN_LIMITED: u32 = 1 << 1;
    /// This kernel compares the generation of an entry's extensions.
    pub const HAS_GENERATIONS: u32 = 1 << 2;
    /// Both generations are known; without this and with [`HAS_GENERATIONS`] they could not be read.
    pub const GENERATIONS: u32 = 1 << 3;
    /// The table was full, and no entry could be evicted.
    pub const TABLE_FULL: u32 = 1 << 4;
    /// No packet asked for the entry: ctnetlink or a BPF program did.
    pub const NO_PACKET: u32 = 1 << 5;
}

/// A connection that does not come into the table, without a clash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FailureRecord {
    /// `kind` is [`kind::FAILURE`]; the time is that of the call's begin.
    pub header: RecordHeader,
    /// Inode number of the network namespace, 0 when unknown.
    pub netns: u32,
    /// [`failure_flags`] bits.
    pub flags: u32,
    /// Which function failed, of [`function`].
    pub function: u32,
    /// Generation of the entry's extensions (`nf_ct_ext.gen_id`), with [`failure_flags::GENERATIONS`]; 0 without any.
    pub entry_generation: u32,
    /// Generation of extensions now (`nf_conntrack_ext_genid`), with [`failure_flags::GENERATIONS`].
    pub generation: u32,
    /// Always zero.
    pub reserved: u32,
    /// What the function returned: a verdict (`NF_DROP`), or a negative error.
    pub returned: i64,
    /// `nf_conn.status` at the begin of [`function::CONFIRM`]; that at its end is in `flow`.
    pub status_before: u64,
    /// The flow. Of one that was not given an entry the original tuple and the zone are all there is.
    pub flow: FlowFact,
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Tuple>() == 40);
    assert!(offset_of!(Tuple, src_port_be) == 16 && offset_of!(Tuple, l3num) == 18);
    assert!(offset_of!(Tuple, dst) == 20 && offset_of!(Tuple, dst_port_be) == 36);
    assert!(offset_of!(Tuple, protonum) == 38 && offset_of!(Tuple, dir) == 39);
    assert!(size_of::<NatRange>() == 8);
    assert!(size_of::<Allocation>() == 40 + 8 + 8 + 8 + 8 + 8);
    assert!(size_of::<OwnerFact>() == 8 * 8 + 6 * 4 + COMM_LEN);
    assert!(size_of::<ProcessKey>() == 16 && size_of::<CgroupKey>() == 16);
    assert!(size_of::<PathFact>() == 8 + 2 * COMPONENT_LEN);
    assert!(size_of::<ProcessFact>() == 2 * 16 + 4 * 4 + size_of::<PathFact>() + ARGUMENTS_LEN);
    assert!(size_of::<FlowFact>() == 80 + 3 * 8 + 8 + 3 * 4 + 4 + 8 + size_of::<OwnerFact>());
    assert!(size_of::<RecordHeader>() == 16);
    assert!(size_of::<ClashRecord>() == 16 + 24 + 2 * size_of::<FlowFact>() + PACKET_LEN);
    assert!(align_of::<ClashRecord>() == 8);
    assert!(size_of::<Frame>() == 16);
    assert!(size_of::<Call>() == 4 * 8 + 2 * 4);
    assert!(size_of::<FailureRecord>() == 16 + 6 * 4 + 2 * 8 + size_of::<FlowFact>());
    assert!(size_of::<VerdictRecord>() == 16 + 4 * 8 + 2 * 4);
};
