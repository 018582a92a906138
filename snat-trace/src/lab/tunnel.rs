//! Tunnels, by which the kernel sends for a pod: what a process sends inside goes out in a datagram of the kernel's own (vxlan).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Lab;
use super::addresses::first_ttl;
use super::error::LabError;
use super::setup::Setup;
use super::tools::Tools;
use super::topology::side_by_side;

/// A pod's address inside, and its only neighbour's.
pub(super) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// That neighbour's.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
/// What a datagram of the tunnel has before the one inside begins: a header of vxlan's, and of Ethernet, IPv4 and UDP.
pub(super) const HEADERS: usize = 8 + 14 + 20 + 8;

/// Where a pod sends inside, so that nothing but addresses tells that from what the kernel sends.
pub(super) fn peer(destination: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(PEER), destination.port())
}

/// Makes a tunnel in each pod that stays, as those of real networks do: a round's are gone before anybody looks for senders.
pub(super) fn build(lab: &Lab) -> Result<(), LabError> {
    let dstport = lab.setup.destination().port();
    let script = format!(
        "link add vx0 type vxlan id 8 dstport {dstport}\nlink set vx0 up\nlink add vx type vxlan id 7 dstport {dstport}\n"
    );
    in_pods(lab, &(0..lab.setup.pods).collect::<Vec<_>>(), |_| script.clone())
}

/// Makes the tunnels whose datagrams have these pods' ports of a round, in the place of those of the one before. Where a tunnel
/// has a range of two, kernels choose the first, and newer ones either, by what is inside, which is the same in all pods.
pub(super) fn renew(lab: &Lab, round: u32, pods: &[usize]) -> Result<(), LabError> {
    in_pods(lab, pods, |pod| script(&lab.setup, round, pod))
}

fn in_pods(lab: &Lab, pods: &[usize], script: impl Fn(usize) -> String) -> Result<(), LabError> {
    let netns = |&pod: &usize| Some((format!("pod {pod}"), lab.topology.pods.get(pod)?, script(pod)));
    let scripts: Vec<_> = pods.iter().filter_map(netns).collect();
    side_by_side(&Tools::find()?, &scripts)
}

fn script(setup: &Setup, round: u32, pod: usize) -> String {
    let (port, to) = (setup.port(round, pod), setup.destination());
    // A checksum around one that is left to the link the node's NAT would spoil (net/core/utils.c, `inet_proto_csum_replace4`).
    format!(
        "link del vx\n\
         link add vx type vxlan id 7 srcport {port} {after} dstport {dstport} local {own} remote {remote} ttl {ttl} noudpcsum\n\
         addr add {INSIDE}/24 dev vx\n\
         link set vx up\n\
         neigh replace {PEER} lladdr 02:00:0a:60:00:02 dev vx nud permanent\n",
        after = port + 1,
        dstport = to.port(),
        own = setup.own(pod),
        remote = to.ip(),
        ttl = first_ttl(pod, setup.hops()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Scenario, Senders};
    use super::*;

    #[test]
    fn all_pods_tunnels_have_a_rounds_port_and_the_next_that_no_other_round_has() {
        let setup = Setup { senders: Senders::Tunnel, ..Setup::new(Scenario::SnatUdp) };
        for (round, ports) in [(0, "srcport 10000 10001 "), (1, "srcport 10002 10003 ")] {
            for (pod, ttl) in [(0, "ttl 201 "), (1, "ttl 202 ")] {
                let script = script(&setup, round, pod);
                assert!(script.contains(ports) && script.contains(ttl), "{script}");
            }
        }
    }
}
