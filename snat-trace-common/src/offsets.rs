//! Offsets of kernel structure fields. The loader takes them from the running kernel's BTF and patches them into
//! the programs' read-only data, where the verifier sees constants.

/// Value of an offset whose field this kernel does not have.
pub const ABSENT: u16 = u16::MAX;

/// One patched global of the BPF object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offset {
    /// Name of the global in the object.
    pub symbol: &'static str,
    /// Kernel structure.
    pub structure: &'static str,
    /// Path of the field, dots between nested members; empty for the size of the structure.
    pub field: &'static str,
    /// Whether tracing is impossible without it (an optional field is compiled out by some configurations).
    pub required: bool,
}

/// Calls `$callback!` with one `NAME = "structure" . "field", required;` line per offset. The BPF crate makes its
/// globals from it and [`OFFSETS`] is made from it, so the two cannot differ.
#[macro_export]
macro_rules! for_each_offset {
    ($callback:ident) => {
        $callback! {
            NF_CONN_TUPLEHASH = "nf_conn"."tuplehash", true;
            NF_CONN_STATUS = "nf_conn"."status", true;
            NF_CONN_ZONE = "nf_conn"."zone", false;
            NF_CONN_CT_NET = "nf_conn"."ct_net", false;
            TUPLE_HASH_SIZE = "nf_conntrack_tuple_hash"."", true;
            TUPLE_HASH_TUPLE = "nf_conntrack_tuple_hash"."tuple", true;
            SK_BUFF_NFCT = "sk_buff"."_nfct", true;
            SK_BUFF_SK = "sk_buff"."sk", true;
            SK_BUFF_HEAD = "sk_buff"."head", true;
            SK_BUFF_TAIL = "sk_buff"."tail", true;
            SK_BUFF_NETWORK_HEADER = "sk_buff"."network_header", true;
            SK_BUFF_TRANSPORT_HEADER = "sk_buff"."transport_header", true;
            NET_NS_INUM = "net"."ns.inum", true;
            SOCK_FAMILY = "sock"."__sk_common.skc_family", true;
            SOCK_NET = "sock"."__sk_common.skc_net", false;
            SOCK_SADDR = "sock"."__sk_common.skc_rcv_saddr", true;
            SOCK_DADDR = "sock"."__sk_common.skc_daddr", true;
            SOCK_SADDR6 = "sock"."__sk_common.skc_v6_rcv_saddr", false;
            SOCK_DADDR6 = "sock"."__sk_common.skc_v6_daddr", false;
            SOCK_SPORT = "sock"."__sk_common.skc_num", true;
            SOCK_DPORT = "sock"."__sk_common.skc_dport", true;
            SOCK_WRITE_QUEUE = "sock"."sk_write_queue", true;
            FLOWI4_PROTO = "flowi4"."__fl_common.flowic_proto", true;
            FLOWI4_SADDR = "flowi4"."saddr", true;
            FLOWI4_DADDR = "flowi4"."daddr", true;
            TASK_FLAGS = "task_struct"."flags", true;
        }
    };
}

macro_rules! table {
    ($($symbol:ident = $structure:literal . $field:literal, $required:literal;)*) => {
        /// Every offset the BPF object may want. An object refers only to those its programs use.
        pub const OFFSETS: &[Offset] = &[$(Offset {
            symbol: stringify!($symbol),
            structure: $structure,
            field: $field,
            required: $required,
        },)*];
    };
}
for_each_offset!(table);
