//! Senders of a network namespace that no look at its TCP and UDP sockets finds.

use std::fs;
use std::io;
use std::path::Path;

use crate::counters::wire::{Attributes, DumpError, Socket};

/// `RTM_GETLINK`.
pub(super) const RTM_GETLINK: u16 = 18;
/// Size of `struct ifinfomsg`.
pub(super) const IFINFOMSG_LEN: usize = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// `TUNNEL_ENCAP_NONE` is 0, the others are kinds of UDP (include/uapi/linux/if_tunnel.h).
const IFLA_IPTUN_ENCAP_TYPE: u16 = 15;
const IFLA_GRE_ENCAP_TYPE: u16 = 14;

/// Whether the calling thread's namespace has sockets that can send with another's port: raw ones and packet sockets.
pub(super) fn has_raw_sockets() -> io::Result<bool> {
    for table in ["raw", "raw6", "packet"] {
        match fs::read_to_string(Path::new("/proc/thread-self/net").join(table)) {
            // The first line names the columns.
            Ok(table) if table.lines().nth(1).is_some() => return Ok(true),
            Ok(_) => {}
            // Compiled out.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether the calling thread's namespace has devices that send UDP with a source port they choose by themselves, so that a
/// process can have that port too (net/ipv4/udp_tunnel_core.c; `udp_flow_src_port`).
pub(super) fn has_udp_tunnels() -> Result<bool, DumpError> {
    Socket::open(None)?.dump(
        RTM_GETLINK,
        &[0; IFINFOMSG_LEN],
        || false,
        |any, _, payload| *any |= is_udp_tunnel(payload),
    )
}

/// `struct ifinfomsg` and its attributes.
fn is_udp_tunnel(payload: &[u8]) -> bool {
    let links = payload.get(IFINFOMSG_LEN..).and_then(|attributes| Attributes(attributes).value(IFLA_LINKINFO));
    let Some(info) = links.map(Attributes) else { return false };
    let encapsulated = |attribute| {
        let data = info.value(IFLA_INFO_DATA).map(Attributes);
        data.and_then(|data| data.value(attribute)).is_some_and(|kind| kind.iter().any(|&byte| byte != 0))
    };
    match info.value(IFLA_INFO_KIND).unwrap_or_default().strip_suffix(b"\0") {
        Some(b"vxlan" | b"geneve" | b"bareudp" | b"amt" | b"gtp") => true,
        Some(b"ipip" | b"sit" | b"ip6tnl") => encapsulated(IFLA_IPTUN_ENCAP_TYPE),
        Some(b"gre" | b"gretap" | b"ip6gre" | b"ip6gretap" | b"erspan" | b"ip6erspan") => {
            encapsulated(IFLA_GRE_ENCAP_TYPE)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counters::wire::attribute;

    fn link(kind: &[u8], data: &[u8]) -> Vec<u8> {
        let info = [attribute(IFLA_INFO_KIND, kind), attribute(IFLA_INFO_DATA, data)].concat();
        [vec![0; IFINFOMSG_LEN], attribute(3, b"name\0"), attribute(IFLA_LINKINFO, &info)].concat()
    }

    #[test]
    fn which_links_are_udp_tunnels() {
        let none = attribute(IFLA_IPTUN_ENCAP_TYPE, &[0, 0]);
        let fou = attribute(IFLA_IPTUN_ENCAP_TYPE, &[1, 0]);
        let gue = attribute(IFLA_GRE_ENCAP_TYPE, &[2, 0]);
        let cases: [(&[u8], &[u8], bool); 8] = [
            (b"vxlan\0", &[], true),
            (b"geneve\0", &[], true),
            (b"veth\0", &[], false),
            // Every namespace has one of these once the module is loaded.
            (b"ipip\0", &none, false),
            (b"ipip\0", &fou, true),
            (b"gre\0", &gue, true),
            (b"gre\0", &[], false),
            (b"bridge\0", &gue, false),
        ];
        for (kind, data, expected) in cases {
            assert_eq!(is_udp_tunnel(&link(kind, data)), expected, "{kind:?} {data:?}");
        }
        assert!(!is_udp_tunnel(&[0; IFINFOMSG_LEN]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = is_udp_tunnel(&bytes);
        }
    }
}
