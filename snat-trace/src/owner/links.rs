//! Network devices of a namespace, and which namespaces they lead to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use bytes::{Buf, BufMut};

use crate::counters::netns::{self, Depth, in_netns};
use crate::counters::wire::{Attributes, DumpError, Socket, put_attribute};
use crate::race::event::NetnsInum;

/// `RTM_GETLINK` (include/uapi/linux/rtnetlink.h).
const RTM_GETLINK: u16 = 18;
/// Size of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;
/// `IFLA_*` (include/uapi/linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_LINK_NETNSID: u16 = 37;
/// `TUNNEL_ENCAP_NONE` is 0, the others are kinds of UDP (include/uapi/linux/if_tunnel.h).
const IFLA_IPTUN_ENCAP_TYPE: u16 = 15;
const IFLA_GRE_ENCAP_TYPE: u16 = 14;
/// `IFF_*` (include/uapi/linux/if.h).
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
/// `RTM_GETNSID`, `NETNSA_*` (include/uapi/linux/net_namespace.h).
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// A network device.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) name: String,
    /// As `ip -d link` has it; empty for one that is no software's.
    pub(super) kind: Vec<u8>,
    /// Its namespace's own number of the one where what it is linked to is.
    pub(super) nsid: Option<i32>,
    /// Whether it sends UDP with a source port it chooses by itself, so that a process can have that port too
    /// (net/ipv4/udp_tunnel_core.c; `udp_flow_src_port`).
    pub(super) sends_udp: bool,
    flags: u32,
}

impl Link {
    /// Of the calling thread's namespace.
    pub(super) fn of(index: u32) -> Result<Self, DumpError> {
        let mut request = vec![0; 4];
        request.put_u32_ne(index);
        request.resize(IFINFOMSG_LEN, 0);
        Self::parse(&Socket::open(None)?.get(RTM_GETLINK, &request)?).ok_or(DumpError::Malformed)
    }

    /// All of the calling thread's namespace.
    pub(super) fn all() -> Result<Vec<Self>, DumpError> {
        let all: Option<Vec<Self>> = Socket::open(None)?.dump(
            RTM_GETLINK,
            &[0; IFINFOMSG_LEN],
            || Some(Vec::new()),
            |all, _, payload| match (all.as_mut(), Self::parse(payload)) {
                (Some(links), Some(link)) => links.push(link),
                _ => *all = None,
            },
        )?;
        all.ok_or(DumpError::Malformed)
    }

    /// `struct ifinfomsg` and its attributes.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(IFINFOMSG_LEN)?;
        let attributes = Attributes(attributes);
        let text = |value: &[u8]| value.strip_suffix(b"\0").unwrap_or(value).to_vec();
        let info = Attributes(attributes.value(IFLA_LINKINFO).unwrap_or_default());
        let kind = info.value(IFLA_INFO_KIND).map(text).unwrap_or_default();
        let data = Attributes(info.value(IFLA_INFO_DATA).unwrap_or_default());
        Some(Self {
            name: String::from_utf8_lossy(&text(attributes.value(IFLA_IFNAME)?)).into_owned(),
            sends_udp: sends_udp(&kind, &data),
            kind,
            nsid: attributes.value(IFLA_LINK_NETNSID).and_then(|mut value| value.try_get_i32_ne().ok()),
            flags: header.get(8..).and_then(|mut rest| rest.try_get_u32_ne().ok())?,
        })
    }

    /// Whether nothing can leave by it but to the namespace it is linked to: not through hardware, a tunnel or a program.
    fn leads_nowhere_else(&self) -> bool {
        let inside = matches!(self.kind.as_slice(), b"veth" | b"bridge" | b"dummy");
        inside || self.flags & IFF_UP == 0 || self.flags & IFF_LOOPBACK != 0
    }
}

/// Whether a device of this kind, with these attributes of its own, sends UDP by itself.
fn sends_udp(kind: &[u8], data: &Attributes<'_>) -> bool {
    let encapsulates =
        |attribute| data.value(attribute).is_some_and(|encapsulation| encapsulation.iter().any(|&byte| byte != 0));
    match kind {
        b"vxlan" | b"geneve" | b"bareudp" | b"amt" | b"gtp" => true,
        b"ipip" | b"sit" | b"ip6tnl" => encapsulates(IFLA_IPTUN_ENCAP_TYPE),
        b"gre" | b"gretap" | b"ip6gre" | b"ip6gretap" | b"erspan" | b"ip6erspan" => encapsulates(IFLA_GRE_ENCAP_TYPE),
        _ => false,
    }
}

/// The calling thread's namespace's number of another; -1 when it has none.
pub(super) fn nsid_of(netns: BorrowedFd<'_>) -> Result<i32, DumpError> {
    // `struct rtgenmsg`, padded.
    let mut request = vec![0; 4];
    put_attribute(&mut request, NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
    let answer = Socket::open(None)?.get(RTM_GETNSID, &request)?;
    let nsid = answer.get(4..).and_then(|attributes| Attributes(attributes).value(NETNSA_NSID));
    nsid.and_then(|mut nsid| nsid.try_get_i32_ne().ok()).ok_or(DumpError::Malformed)
}

/// A namespace, and its devices.
struct Place {
    inum: NetnsInum,
    fd: OwnedFd,
    links: Vec<Link>,
}

impl Place {
    /// `None` when it does not say.
    fn has_link_to(&self, other: &Self) -> Option<bool> {
        let nsid = in_netns(self.fd.as_fd(), || nsid_of(other.fd.as_fd())).ok()?.ok()?;
        Some(self.links.iter().any(|link| link.nsid == Some(nsid)))
    }
}

/// Those of these pairs of namespaces that are apart: what the second sends comes to the first through other namespaces or
/// not at all, as they share no link. `None` when not every namespace could be asked.
pub(super) fn apart(pairs: &[(NetnsInum, NetnsInum)], deadline: Instant) -> Option<Vec<(NetnsInum, NetnsInum)>> {
    let mut places: Vec<Place> = Vec::new();
    netns::visit(Depth::Threads, deadline, |inum, fd| {
        if pairs.iter().any(|&(to, from)| inum == to || inum == from) {
            let links = in_netns(fd, Link::all).ok()?.ok()?;
            places.push(Place { inum, fd: fd.try_clone_to_owned().ok()?, links });
        }
        Some(())
    })?;
    let place = |wanted| places.iter().find(|place| place.inum == wanted);
    let mut apart = Vec::new();
    for &(to, from) in pairs {
        // One that is gone says nothing.
        let (Some(here), Some(there)) = (place(to), place(from)) else { continue };
        if to != from
            && there.links.iter().all(Link::leads_nowhere_else)
            && !here.has_link_to(there)?
            && !there.has_link_to(here)?
        {
            apart.push((to, from));
        }
    }
    Some(apart)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counters::wire::attribute;

    fn link(kind: &[u8], data: &[u8], flags: u32) -> Link {
        let header = [[0; 8].as_slice(), &flags.to_ne_bytes(), &[0; 4]].concat();
        let info = [attribute(IFLA_INFO_KIND, kind), attribute(IFLA_INFO_DATA, data)].concat();
        let name = attribute(IFLA_IFNAME, b"name\0");
        Link::parse(&[header, name, attribute(IFLA_LINKINFO, &info)].concat()).unwrap()
    }

    #[test]
    fn what_sends_udp() {
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
            assert_eq!(link(kind, data, 0).sends_udp, expected, "{kind:?} {data:?}");
        }
    }

    #[test]
    fn what_leads_out_of_the_namespaces() {
        let cases: [(&[u8], u32, bool); 9] = [
            (b"veth\0", IFF_UP, true),
            (b"bridge\0", IFF_UP, true),
            (b"dummy\0", IFF_UP, true),
            (b"", IFF_UP | IFF_LOOPBACK, true),
            // A function of a network card, a virtual machine's end, an encrypted tunnel, and what another device carries.
            (b"", IFF_UP, false),
            (b"tun\0", IFF_UP, false),
            (b"wireguard\0", IFF_UP, false),
            (b"macvlan\0", IFF_UP, false),
            // Every namespace has one of these once the module is loaded.
            (b"ipip\0", 0, true),
        ];
        for (kind, flags, expected) in cases {
            assert_eq!(link(kind, &[], flags).leads_nowhere_else(), expected, "{kind:?} {flags}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = Link::parse(&bytes);
        }
    }
}
