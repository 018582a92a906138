//! Which races to show.

use std::net::IpAddr;
use std::str::FromStr;

use super::event::{Class, Flow, NetnsInum, Race};
use super::failure::Failure;
use super::tuple::Protocol;

/// Everything given must hold; an owner's or an address's condition holds when it does for the loser or the winner.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Network namespace of the entries.
    pub netns: Option<NetnsInum>,
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// Original source.
    pub source: Option<Prefix>,
    /// Original destination.
    pub destination: Option<Prefix>,
    /// Process id.
    pub pid: Option<u32>,
    /// Part of the cgroup path.
    pub cgroup: Option<String>,
    /// Class.
    pub class: Option<Class>,
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
        let Self { netns, protocol, source, destination, pid, cgroup, class: _ } = self;
        let either = |holds: &dyn Fn(&Flow) -> bool| flows.iter().any(|flow| holds(flow));
        netns.is_none_or(|netns| of_netns == Some(netns))
            && protocol.is_none_or(|protocol| of_protocol == protocol)
            && source.is_none_or(|prefix| either(&|flow| prefix.contains(flow.original.ends().source.ip())))
            && destination.is_none_or(|prefix| either(&|flow| prefix.contains(flow.original.ends().destination.ip())))
            && pid.is_none_or(|pid| either(&|flow| flow.owner.as_ref().is_some_and(|owner| owner.pid == pid)))
            && cgroup.as_ref().is_none_or(|part| {
                let path = |flow: &Flow| flow.owner.as_ref().and_then(|owner| owner.cgroup.clone());
                either(&|flow| path(flow).is_some_and(|path| path.contains(part)))
            })
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
        assert!(!shows(&|filter| filter.pid = Some(1)), "no owner is no match");
        assert!(!shows(&|filter| filter.netns = Some(NetnsInum(1))));
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
