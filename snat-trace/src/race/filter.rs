//! Which races to show.

use std::net::IpAddr;
use std::str::FromStr;

use super::event::{Class, Flow, NetnsInum, Race};
use super::failure::Failure;
use super::tuple::Protocol;

/// Everything given must hold, what is about a flow of the loser or of the winner.
///
/// Races are chosen here and not in the kernel: nothing but what clashed or failed comes up from there, and the summary counts
/// what is not shown too.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Network namespace of the entries.
    pub netns: Option<NetnsInum>,
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// Class.
    pub class: Option<Class>,
    /// Original source.
    pub source: Option<Prefix>,
    /// Original destination.
    pub destination: Option<Prefix>,
    /// Its sender.
    pub owner: OwnerFilter,
}

/// What must hold of one sender, all at once; of one that is not known, what is behind its address. Nothing that is not known
/// is ever meant.
#[derive(Clone, Debug, Default)]
pub struct OwnerFilter {
    /// Process id.
    pub pid: Option<u32>,
    /// Name of the thread or process, whole.
    pub comm: Option<String>,
    /// Part of the cgroup path.
    pub cgroup: Option<String>,
    /// The container's name, whole, or the beginning of its id.
    pub container: Option<String>,
    /// Part of the pod's name.
    pub pod: Option<String>,
    /// The pod's namespace, whole.
    pub namespace: Option<String>,
}

impl Filter {
    /// Whether a race is to be shown.
    #[must_use]
    pub fn shows(&self, race: &Race) -> bool {
        self.class.is_none_or(|class| race.class == class)
            && self.shows_flows(race.netns, race.protocol, &[&race.loser, &race.winner])
    }

    /// Whether a failure is to be shown. It has no class, so a filter on that shows none.
    #[must_use]
    pub fn shows_failure(&self, failure: &Failure) -> bool {
        self.class.is_none() && self.shows_flows(failure.netns, failure.protocol, &[&failure.flow])
    }

    fn shows_flows(&self, of_netns: Option<NetnsInum>, of_protocol: Protocol, flows: &[&Flow]) -> bool {
        let Self { netns, protocol, class: _, source, destination, owner } = self;
        netns.is_none_or(|netns| of_netns == Some(netns))
            && protocol.is_none_or(|protocol| of_protocol == protocol)
            && flows.iter().any(|flow| {
                let ends = flow.original.ends();
                source.is_none_or(|prefix| prefix.contains(ends.source.ip()))
                    && destination.is_none_or(|prefix| prefix.contains(ends.destination.ip()))
                    && owner.means(flow)
            })
    }
}

impl OwnerFilter {
    fn means(&self, flow: &Flow) -> bool {
        let Self { pid, comm, cgroup, container, pod, namespace } = self;
        let (owner, (of_container, of_pod)) = (flow.owner.as_ref(), flow.place());
        /// Whether a condition holds, if there is one, of what is known.
        fn holds<T>(wanted: Option<&String>, known: Option<&T>, holds: impl Fn(&str, &T) -> bool) -> bool {
            wanted.is_none_or(|wanted| known.is_some_and(|known| holds(wanted, known)))
        }
        pid.is_none_or(|pid| owner.is_some_and(|owner| owner.pid == pid))
            && holds(comm.as_ref(), owner, |comm, owner| owner.comm == comm)
            && holds(cgroup.as_ref(), owner.and_then(|owner| owner.cgroup.as_ref()), |part, path| path.contains(part))
            && holds(container.as_ref(), of_container, |wanted, container| {
                container.name.as_deref() == Some(wanted) || container.id.starts_with(wanted)
            })
            && holds(pod.as_ref(), of_pod, |part, pod| pod.name.contains(part))
            && holds(namespace.as_ref(), of_pod, |wanted, pod| pod.namespace == wanted)
    }
}

/// An address with the number of its bits that count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix {
    address: IpAddr,
    bits: u32,
}

impl Prefix {
    /// Whether an address begins like this one.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differing >= self.bits
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is neither an address nor an address with a prefix length (10.0.0.0/8)");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(longest), str::parse).map_err(|_| wrong())?;
        if bits > longest { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::golden::owner;
    use crate::owner::{Behind, Owner, Pod};
    use crate::race::classify::{
        classify,
        tests::{clash, since},
    };
    use crate::race::failure::{judge, tests::refused};

    #[test]
    fn prefixes() {
        let cases = [
            ("10.99.0.11", "10.99.0.11", true),
            ("10.99.0.11", "10.99.0.12", false),
            ("10.99.0.0/24", "10.99.0.12", true),
            ("10.99.0.0/24", "10.99.1.12", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ];
        for (prefix, address, expected) in cases {
            let parsed: Prefix = prefix.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), expected, "{prefix} {address}");
        }
        for wrong in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_condition_must_hold_and_either_side_may_hold_it() {
        let race = classify(&clash(), since()).unwrap();
        let shows = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.shows(&race)
        };
        assert!(shows(&|_| {}));
        assert!(shows(&|filter| filter.source = "10.99.0.10".parse().ok()), "the winner's");
        assert!(shows(&|filter| filter.source = "10.99.0.11".parse().ok()), "the loser's");
        assert!(!shows(&|filter| filter.source = "10.99.0.12".parse().ok()));
        assert!(shows(&|filter| filter.protocol = Some(Protocol::UDP)));
        assert!(!shows(&|filter| {
            filter.protocol = Some(Protocol::UDP);
            filter.class = Some(Class::FixedPort);
        }));
        assert!(!shows(&|filter| filter.owner.pid = Some(1)), "no owner is no match");
        assert!(!shows(&|filter| filter.netns = Some(NetnsInum(1))));
    }

    /// One of a pod's container, or of a process outside any.
    fn sent(pid: u32, comm: &str, pod: Option<(&str, &str)>) -> Owner {
        let id = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
        let mut owner = owner(comm, pid, pod.map(|_| ("containerd", id)));
        if let Some((namespace, name)) = pod {
            owner.container.as_mut().unwrap().name = Some("app".to_owned());
            owner.pod = Some(Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: String::new() });
        }
        owner
    }

    #[test]
    fn conditions_on_a_sender_hold_of_one_sender() {
        let mut race = classify(&clash(), since()).unwrap();
        race.loser.owner = Some(sent(41, "curl", Some(("shop", "cart-x2k4q"))));
        race.winner.owner = Some(sent(42, "ntpd", None));
        let shown = |race: &Race, change: fn(&mut OwnerFilter)| {
            let mut filter = Filter::default();
            change(&mut filter.owner);
            filter.shows(race)
        };
        let shows = |change| shown(&race, change);
        for (change, expected) in [
            ((|_| {}) as fn(&mut OwnerFilter), true),
            (|of| of.pid = Some(42), true),
            (|of| of.pid = Some(43), false),
            (|of| of.comm = Some("curl".to_owned()), true),
            (|of| of.comm = Some("cur".to_owned()), false),
            (|of| of.cgroup = Some("kubepods".to_owned()), true),
            (|of| of.cgroup = Some("system.slice".to_owned()), false),
            (|of| of.container = Some("app".to_owned()), true),
            (|of| of.container = Some("ap".to_owned()), false),
            (|of| of.container = Some("5e3fa1c0d2b4".to_owned()), true),
            (|of| of.container = Some("d2b4".to_owned()), false),
            (|of| of.pod = Some("cart".to_owned()), true),
            (|of| of.pod = Some("shop".to_owned()), false),
            (|of| of.namespace = Some("shop".to_owned()), true),
            (|of| of.namespace = Some("sho".to_owned()), false),
        ] {
            let mut of = OwnerFilter::default();
            change(&mut of);
            assert_eq!(shows(change), expected, "{of:?}");
        }
        let both = |of: &mut OwnerFilter| {
            of.comm = Some("ntpd".to_owned());
            of.namespace = Some("shop".to_owned());
        };
        assert!(!shows(both), "each holds of another sender");
        let source = "10.99.0.10".parse().ok();
        let of_winner =
            |pid| Filter { source, owner: OwnerFilter { pid: Some(pid), ..Default::default() }, ..Default::default() };
        assert!(of_winner(42).shows(&race) && !of_winner(41).shows(&race), "so it is with an address");
        let loser = race.loser.owner.take().unwrap();
        let in_cart: [fn(&mut OwnerFilter); 2] =
            [|of| of.pod = Some("cart".to_owned()), |of| of.container = Some("app".to_owned())];
        assert!(in_cart.iter().all(|&change| !shown(&race, change)));
        race.loser.behind = Some(Behind { container: loser.container, pod: loser.pod, ..Behind::default() });
        assert!(in_cart.iter().all(|&change| shown(&race, change)), "so do those behind it");
    }

    #[test]
    fn a_failure_has_one_flow_and_no_class() {
        let failure = judge(&refused()).unwrap();
        let shows = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.shows_failure(&failure)
        };
        assert!(shows(&|_| {}));
        assert!(shows(&|filter| filter.source = "10.99.0.11".parse().ok()));
        assert!(!shows(&|filter| filter.source = "10.99.0.10".parse().ok()));
        assert!(!shows(&|filter| filter.protocol = Some(Protocol::TCP)));
        assert!(!shows(&|filter| filter.netns = Some(NetnsInum(1))));
        assert!(!shows(&|filter| filter.class = Some(Class::SnatPortCollision)));
    }
}
