//! Tuples from packet headers, as conntrack would make them (net/netfilter/nf_conntrack_core.c, `nf_ct_get_tuple`).

use snat_trace_common::Tuple;

use crate::read::{Address, SK_BUFF_HEAD, SK_BUFF_NETWORK_HEADER, SK_BUFF_TRANSPORT_HEADER, Unreadable};

/// `AF_INET`.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`.
pub(crate) const AF_INET6: u16 = 10;

/// `IPPROTO_TCP`.
pub(crate) const TCP: u8 = 6;
const ICMP: u8 = 1;
/// `IPPROTO_UDP`.
pub(crate) const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// `IPPROTO_UDPLITE`.
pub(crate) const UDPLITE: u8 = 136;

/// Where a packet's network header stands.
#[inline(always)]
pub(crate) fn network_header(skb: Address) -> Result<Address, Unreadable> {
    let offset = skb.field(SK_BUFF_NETWORK_HEADER).read::<u16>()?;
    Ok(skb.field(SK_BUFF_HEAD).follow()?.plus(u64::from(offset)))
}

/// Where a packet's transport header stands.
#[inline(always)]
pub(crate) fn transport_header(skb: Address) -> Result<Address, Unreadable> {
    let offset = skb.field(SK_BUFF_TRANSPORT_HEADER).read::<u16>()?;
    Ok(skb.field(SK_BUFF_HEAD).follow()?.plus(u64::from(offset)))
}

/// An IPv4 address as it stands in a tuple: its bytes, in their order, and zeros. By one number, as the compiler would store
/// bytes one by one.
#[inline(always)]
pub(crate) fn ipv4_address(address: u32) -> [u8; 16] {
    u128::from(address).to_le_bytes()
}

/// Writes the port fields of a tuple; `false` when the packet starts no flow of interest.
///
/// Into a tuple of the caller's: a large value handed back in an `Option` lies half uninitialised on the stack when it is
/// `None`, and the verifier of 5.10 does not let the compiler copy that.
///
/// Of TCP only a SYN, which a raw socket sends: the kernel's own come from `tcp_connect`, and what else it sends this way
/// are resets in an unrelated task's context.
#[inline(always)]
pub(crate) fn ports(transport: Address, tuple: &mut Tuple) -> Result<bool, Unreadable> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    match tuple.protonum {
        TCP | UDP | UDPLITE => {
            [tuple.src_port_be, tuple.dst_port_be] = transport.read::<[u16; 2]>()?;
            Ok(tuple.protonum != TCP || transport.plus(13).read::<u8>()? & (SYN | ACK) == SYN)
        }
        ICMP | ICMPV6 => {
            let [kind_and_code, _checksum, id] = transport.read::<[u16; 3]>()?;
            let [kind, _code] = kind_and_code.to_ne_bytes();
            tuple.src_port_be = id;
            tuple.dst_port_be = kind_and_code;
            Ok(starts_flow(tuple.protonum, kind))
        }
        _ => Ok(false),
    }
}

/// The requests: what else ICMP sends answers somebody, in an unrelated task's context
/// (net/netfilter/nf_conntrack_proto_icmp.c and _icmpv6.c, `valid_new`).
#[inline(always)]
fn starts_flow(protonum: u8, kind: u8) -> bool {
    if protonum == ICMP { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) }
}
