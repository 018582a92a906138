//! Which ports are taken toward which destination, and how likely two flows are to be given the same one of the rest.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Instant;

use bytes::Buf;
use rustix::net::netlink::NETFILTER;

use crate::counters::ctnetlink::{self, CT_GET, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE, Tuple};
use crate::counters::wire::{DumpError, Socket};
use crate::race::tuple::{Ends, Protocol};

/// The ports of one translated address that are taken toward one destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Toward {
    pub protocol: Protocol,
    pub translated: IpAddr,
    pub destination: SocketAddr,
    pub taken: BTreeSet<u16>,
}

/// What entries have in common whose ports are looked for in one another's way: protocol, translated address, destination,
/// and zone of the reply direction.
type Key = (Protocol, IpAddr, SocketAddr, u16);

/// Reads the table of the calling thread's namespace: every destination toward which some source is translated, with all
/// ports that are taken there, by whomever.
pub(super) fn census(deadline: Instant) -> Result<Vec<Toward>, DumpError> {
    // AF_UNSPEC: entries of both versions of IP.
    let found = Socket::open(Some(NETFILTER))?.until(deadline).dump(
        CT_GET,
        &[0; 4],
        HashMap::<Key, (bool, BTreeSet<u16>)>::new,
        |found, _, payload| {
            if let Some((key, port, translated)) = entry(payload) {
                let (any, taken) = found.entry(key).or_default();
                *any |= translated;
                taken.insert(port);
            }
        },
    )?;
    let mut towards: Vec<_> = found
        .into_iter()
        .filter(|(_, (translated, _))| *translated)
        .map(|((protocol, translated, destination, _), (_, taken))| Toward { protocol, translated, destination, taken })
        .collect();
    towards.sort_unstable_by_key(|toward| (toward.protocol.0, toward.translated, toward.destination));
    Ok(towards)
}

/// What one entry takes, and whether its source is translated.
fn entry(payload: &[u8]) -> Option<(Key, u16, bool)> {
    let (mut original, mut reply, mut zone) = (Tuple::default(), Tuple::default(), 0);
    for (kind, mut value) in ctnetlink::attributes(payload)? {
        match kind {
            CTA_TUPLE_ORIG => original = Tuple::parse(value),
            CTA_TUPLE_REPLY => reply = Tuple::parse(value),
            CTA_ZONE => zone = value.try_get_u16().ok()?,
            _ => {}
        }
    }
    let (sent, Ends { source, destination }) = (original.ends()?, reply.ends()?);
    let key = (reply.protocol?, destination.ip(), source, reply.zone.unwrap_or(zone));
    Some((key, destination.port(), sent.source != destination))
}

/// How likely it is, from 0 to 1, that two flows which ask at one instant are given the same port of a range when both
/// choose at random; `None` when no port is free.
///
/// The kernel begins at a random port and takes the next free one (net/netfilter/nf_nat_core.c,
/// `nf_nat_l4proto_unique_tuple`), so a port that follows taken ones is the more likely for it. After 128 ports it begins
/// anew elsewhere, which is not reckoned with here.
pub(super) fn odds(range: &RangeInclusive<u16>, taken: &BTreeSet<u16>) -> Option<f64> {
    let size = f64::from(*range.end()) - f64::from(*range.start()) + 1.0;
    let mut free = range.clone().filter(|port| !taken.contains(port)).map(f64::from);
    let first = free.next()?;
    let (mut last, mut sum) = (first, 0.0);
    for port in free {
        sum += ((port - last) / size).powi(2);
        last = port;
    }
    // From the last free one around to the first.
    Some(sum + ((first + size - last) / size).powi(2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every pair of beginnings, each followed by hand.
    fn counted(range: &RangeInclusive<u16>, taken: &BTreeSet<u16>) -> f64 {
        let given =
            |begin: u16| (begin..=*range.end()).chain(range.clone()).find(|port| !taken.contains(port)).unwrap();
        let pairs = range.clone().flat_map(|one| range.clone().map(move |other| (one, other)));
        let same = pairs.clone().filter(|&(one, other)| given(one) == given(other)).count();
        same as f64 / pairs.count() as f64
    }

    #[test]
    fn the_odds_are_those_of_the_kernels_search() {
        let range = 100..=163;
        assert_eq!(odds(&range, &BTreeSet::new()), Some(1.0 / 64.0));
        assert_eq!(odds(&range, &range.clone().collect()), None);
        assert_eq!(odds(&range, &(101..=163).collect()), Some(1.0));
        assert_eq!(odds(&(0..=65535), &BTreeSet::new()), Some(1.0 / 65536.0));
        assert_eq!(odds(&(7..=7), &BTreeSet::new()), Some(1.0));
        for taken in [vec![100, 101, 102, 163], vec![130], (100..163).step_by(2).collect(), vec![5, 99, 164]] {
            let taken = taken.into_iter().collect();
            let (said, counted) = (odds(&range, &taken).unwrap(), counted(&range, &taken));
            assert!((said - counted).abs() < 1e-9, "{taken:?}: {said} {counted}");
        }
    }

    /// Measured: of two flows sent at one instant, through a fully-random range of 64 ports of which this many
    /// were held by earlier flows, so many percent collided.
    const MEASURED: [(usize, f64); 6] = [(0, 1.4), (16, 3.2), (32, 4.4), (48, 18.5), (56, 39.6), (60, 65.5)];

    /// Ranges filled as the kernel fills them, by a search from a random port, have the odds that were measured.
    #[test]
    fn the_odds_are_those_measured() {
        const RUNS: u32 = 3000;
        let (range, mut dice) = (0..=63, 1_u64);
        for (used, measured) in MEASURED {
            let mut sum = 0.0;
            for _ in 0..RUNS {
                let mut taken = BTreeSet::new();
                while taken.len() < used {
                    // Knuth's MMIX, whose upper bits are the random ones.
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let begin = u16::try_from(dice >> 58).unwrap();
                    let free = (begin..=63).chain(range.clone()).find(|port| !taken.contains(port));
                    taken.insert(free.unwrap());
                }
                sum += odds(&range, &taken).unwrap();
            }
            let percent = 100.0 * sum / f64::from(RUNS);
            assert!((percent - measured).abs() < 2.0, "{used} ports: {percent} %, measured {measured} %");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = entry(&bytes);
        }
    }
}
