//! Offsets of kernel structure fields. The loader takes them from the running kernel's BTF and patches them into
//! the programs' read-only data, where the verifier sees constants.

/// Value of an offset whose field this kernel does not have.
pub const ABSENT: u16 = u16::MAX;

/// One of the offsets that are patched into the BPF object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offset {
    /// Its name in the programs.
    pub symbol: &'static str,
    /// Kernel structure, or enumeration.
    pub structure: &'static str,
    /// Path of the field, dots between nested members; empty for the size of the structure. A field that was renamed has
    /// its names in a row, `|` between them. Of an enumeration the enumerator, whose value is meant.
    pub field: &'static str,
    /// What it means that a kernel does not have it.
    pub need: Need,
}

/// What it means that a kernel does not have a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// Tracing is impossible.
    Required,
    /// It was compiled out by the configuration, and something is not reported.
    Optional,
    /// Without any of these what senders run is not recorded, and is looked for in `/proc` while they are there.
    Processes,
    /// Without any of these the paths of cgroups that were removed are not known, nor those of version 1 afterwards.
    Cgroups,
    /// Without any of these who sends a datagram is not recorded when its flow asks for a port, and the sockets are looked
    /// for after the clash.
    Senders,
    /// The same of datagrams over IPv6.
    Senders6,
    /// The kernel does not work that way, and that is worth knowing.
    Telling,
}

/// What every socket begins with: the kernel's `struct sock_common` (include/net/sock.h), the same from 5.10 to 7.3.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketHead {
    /// IPv4 address it is connected to, 0 for none, in network byte order. With the next, `skc_addrpair`.
    pub daddr_be: u32,
    /// IPv4 address it is bound to, 0 for none, in network byte order.
    pub rcv_saddr_be: u32,
    /// `skc_hash`
    pub hash: u32,
    /// Port it is connected to, in network byte order. With the next, `skc_portpair`.
    pub dport_be: u16,
    /// Port it is bound to, in the machine's byte order.
    pub num: u16,
    /// `skc_family`
    pub family: u16,
    /// State, flags and interface.
    pub state: [u16; 3],
    /// Links of tables, and the protocol's functions.
    pub links: [u64; 3],
    /// Address of its `struct net` (`skc_net`).
    pub net: u64,
}

/// Calls `$callback!` with one `NAME = "structure" . "field", Need;` line per offset. The BPF crate makes its
/// constants from it and [`OFFSETS`] is made from it, so the two cannot differ.
#[macro_export]
macro_rules! for_each_offset {
    ($callback:ident) => {
        $callback! {
            NF_CONN_TUPLEHASH = "nf_conn"."tuplehash", Required;
            NF_CONN_STATUS = "nf_conn"."status", Required;
            NF_CONN_ZONE = "nf_conn"."zone", Optional;
            NF_CONN_CT_NET = "nf_conn"."ct_net", Optional;
            TUPLE_HASH_SIZE = "nf_conntrack_tuple_hash"."", Required;
            TUPLE_HASH_TUPLE = "nf_conntrack_tuple_hash"."tuple", Required;
            SK_BUFF_NFCT = "sk_buff"."_nfct", Required;
            SK_BUFF_HEAD = "sk_buff"."head", Required;
            SK_BUFF_TAIL = "sk_buff"."tail", Required;
            SK_BUFF_NETWORK_HEADER = "sk_buff"."network_header", Required;
            SK_BUFF_TRANSPORT_HEADER = "sk_buff"."transport_header", Required;
            NET_NS_INUM = "net"."ns.inum", Required;
            SOCK_SADDR6 = "sock"."__sk_common.skc_v6_rcv_saddr", Senders6;
            SOCK_DADDR6 = "sock"."__sk_common.skc_v6_daddr", Senders6;
            SOCK_WRITE_QUEUE = "sock"."sk_write_queue", Required;
            SOCK_PROTOCOL = "sock"."sk_protocol", Senders;
            SOCKET_SK = "socket"."sk", Senders;
            FILE_PRIVATE = "file"."private_data", Senders;
            TASK_FILES = "task_struct"."files", Senders;
            FILES_FDT = "files_struct"."fdt", Senders;
            FDTABLE_FD = "fdtable"."fd", Senders;
            TASK_STACK = "task_struct"."stack", Senders;
            PT_REGS_SIZE = "pt_regs"."", Senders;
            PT_REGS_R8 = "pt_regs"."r8", Senders;
            HELPER_TASK_PT_REGS = "bpf_func_id"."BPF_FUNC_task_pt_regs", Telling;
            NET_DEVICES = "net"."dev_base_head", Senders;
            DEVICE_LIST = "net_device"."dev_list", Senders;
            DEVICE_IPV4 = "net_device"."ip_ptr", Senders;
            IN_DEVICE_ADDRESSES = "in_device"."ifa_list", Senders;
            IN_ADDRESS_NEXT = "in_ifaddr"."ifa_next", Senders;
            IN_ADDRESS_LOCAL = "in_ifaddr"."ifa_local", Senders;
            DEVICE_IPV6 = "net_device"."ip6_ptr", Senders6;
            INET6_DEVICE_ADDRESSES = "inet6_dev"."addr_list", Senders6;
            INET6_ADDRESS_LIST = "inet6_ifaddr"."if_list", Senders6;
            INET6_ADDRESS_ADDR = "inet6_ifaddr"."addr", Senders6;
            FLOWI4_PROTO = "flowi4"."__fl_common.flowic_proto", Required;
            FLOWI4_SADDR = "flowi4"."saddr", Required;
            FLOWI4_DADDR = "flowi4"."daddr", Required;
            SOCK_FLOW6 = "inet_sock"."cork.fl.u.ip6", Optional;
            FLOWI6_PROTO = "flowi6"."__fl_common.flowic_proto", Optional;
            FLOWI6_SADDR = "flowi6"."saddr", Optional;
            FLOWI6_DADDR = "flowi6"."daddr", Optional;
            TASK_FLAGS = "task_struct"."flags", Required;
            TASK_LEADER = "task_struct"."group_leader", Processes;
            TASK_START = "task_struct"."start_boottime", Processes;
            TASK_EXEC_ID = "task_struct"."self_exec_id", Processes;
            TASK_MM = "task_struct"."mm", Processes;
            TASK_PID = "task_struct"."thread_pid", Processes;
            TASK_CSS_SET = "task_struct"."cgroups", Cgroups;
            PID_LEVEL = "pid"."level", Processes;
            PID_NUMBERS = "pid"."numbers", Processes;
            UPID_SIZE = "upid"."", Processes;
            UPID_NR = "upid"."nr", Processes;
            MM_ARG_START = "mm_struct"."arg_start", Processes;
            MM_ARG_END = "mm_struct"."arg_end", Processes;
            MM_EXE_FILE = "mm_struct"."exe_file", Processes;
            FILE_MNT = "file"."f_path.mnt", Processes;
            FILE_DENTRY = "file"."f_path.dentry", Processes;
            DENTRY_PARENT = "dentry"."d_parent", Processes;
            DENTRY_NAME = "dentry"."d_name.name", Processes;
            VFSMOUNT_ROOT = "vfsmount"."mnt_root", Processes;
            MOUNT_MNT = "mount"."mnt", Processes;
            MOUNT_PARENT = "mount"."mnt_parent", Processes;
            MOUNT_MOUNTPOINT = "mount"."mnt_mountpoint", Processes;
            CSS_SET_SUBSYS = "css_set"."subsys", Cgroups;
            CONTROLLER_PIDS = "cgroup_subsys_id"."pids_cgrp_id", Telling;
            CONTROLLER_MEMORY = "cgroup_subsys_id"."memory_cgrp_id", Telling;
            CONTROLLER_CPU = "cgroup_subsys_id"."cpu_cgrp_id", Telling;
            CONTROLLER_DEVICES = "cgroup_subsys_id"."devices_cgrp_id", Telling;
            CSS_CGROUP = "cgroup_subsys_state"."cgroup", Cgroups;
            CGROUP_KN = "cgroup"."kn", Cgroups;
            CGROUP_ROOT = "cgroup"."root", Cgroups;
            CGROUP_ROOT_HIERARCHY = "cgroup_root"."hierarchy_id", Cgroups;
            KERNFS_ID = "kernfs_node"."id", Cgroups;
            KERNFS_NAME = "kernfs_node"."name", Cgroups;
            KERNFS_PRIV = "kernfs_node"."priv", Cgroups;
            KERNFS_PARENT = "kernfs_node"."parent|__parent", Cgroups;
            NF_CONN_EXT = "nf_conn"."ext", Optional;
            NF_CT_EXT_GEN_ID = "nf_ct_ext"."gen_id", Telling;
            STAT_CHAINTOOLONG = "ip_conntrack_stat"."chaintoolong", Telling;
        }
    };
}

macro_rules! table {
    ($($symbol:ident = $structure:literal . $field:literal, $need:ident;)*) => {
        /// Every offset the programs want, in the order in which the object has them.
        pub const OFFSETS: &[Offset] = &[$(Offset {
            symbol: stringify!($symbol),
            structure: $structure,
            field: $field,
            need: Need::$need,
        },)*];
    };
}
for_each_offset!(table);
