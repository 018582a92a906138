//! Why two entries claimed one translated tuple: the rules, over what is known of both.

use std::ops::RangeInclusive;
use std::time::Duration;

use snat_trace_common::FlowFact;

use super::classify::reply_zone;
use super::event::{Class, Flow, NatRule, NetnsInum, PortUse, Race};
use super::time::KernelTime;
use super::tuple::{OriginalTuple, Protocol};
use crate::counters::ports::Range;

/// How close an insert and a request for a port may lie for their order not to be known: both hooks take the time at the
/// entry of their function, and the entry becomes visible, or the port is looked for, only some instructions later.
pub(super) const TOO_CLOSE: Duration = Duration::from_micros(100);

/// How long an entry may take from its request for a port to the table. Nothing between the two waits for anything but
/// a queue to user space (nfqueue), and one that holds packets longer is broken.
pub(super) const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Of fewer ports one picked blindly is too often the original one for that to prove anything.
const MANY_PORTS: u32 = 1024;

/// Two entries that claimed one translated tuple.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contest<'a> {
    pub(super) protocol: Protocol,
    /// What the rule allowed the loser; `None` when its allocation is not known.
    pub(super) rule: Option<NatRule>,
    /// The loser was given its original port.
    pub(super) kept_port: bool,
    pub(super) loser: &'a Flow,
    pub(super) winner: &'a Flow,
    /// The winner is translated and there is no trace of its request for a port, not even of an earlier entry at its
    /// address, so that the request was before [`Self::since`], or so long ago that it was forgotten.
    pub(super) winner_unseen: bool,
    /// When the last hook was attached.
    pub(super) since: KernelTime,
}

impl Contest<'_> {
    /// A clash over a translated tuple is a race iff loser.allocated < winner.inserted < the clash. When the winner was in
    /// the table before the loser asked, the allocator knew it and had no other port to give. Where the two are too close
    /// to tell, a loser that kept its original port found it free: it is kept for no other reason
    /// (net/netfilter/nf_nat_core.c, `get_unique_tuple`). With many ports to choose from that is certain enough to stand
    /// against times further apart: a virtual processor may be stopped between the stamp of an insert and the insert. On
    /// 5.10 in a busy machine a port was found free 0.65 ms after the stamp of the entry that had it. Where no time is known at all (minimal detail), the tuples
    /// decide: one that kept its port found it free here too, and of any other it is not known whether there was a free one.
    /// Where it is not known when the winner went in, see [`Self::without_insertion`].
    pub(super) fn class(&self) -> Class {
        if self.no_choice() {
            return Class::FixedPort;
        }
        match (self.loser.allocated, self.winner.inserted) {
            (Some(allocated), Some(inserted)) if inserted <= allocated => {
                let untold = if self.found_free() { ON_ITS_WAY } else { TOO_CLOSE };
                if self.kept_port && allocated.since(inserted) < untold {
                    Class::SnatPortCollision
                } else {
                    Class::PortExhaustion
                }
            }
            (Some(_), Some(_)) => Class::SnatPortCollision,
            (Some(allocated), None) => self.without_insertion(allocated),
            (None, None) if self.winner.allocated.is_none() && self.kept_port => Class::SnatPortCollision,
            (None, _) => Class::Unclassified,
        }
    }

    /// Whether there was but one port to give. Then the kernel does not look whether it is free (`get_unique_tuple`:
    /// `min_proto == max_proto`), or looks and gives it all the same.
    fn no_choice(&self) -> bool {
        let candidates = self.rule.and_then(|rule| candidates(self.protocol, rule, self.loser.original));
        !has_ports(self.protocol) || candidates.is_some_and(|ports| count(&ports) == 1)
    }

    /// The class when it is not known when the winner went in: mostly one that was there before us.
    ///
    /// A loser that kept its port found it free, and so it was a race; but with few ports it may have been given its own
    /// as blindly as any other, and with a random flag it always was. Else, a winner that asked long before the loser did
    /// was in by then. This rests on three things: nothing holds a packet between its translation and the table for as
    /// long as [`ON_ITS_WAY`]; a translated entry, one made over ctnetlink too, has passed `nf_nat_setup_info`
    /// (the only place that sets `IPS_NAT_DONE_MASK`), where our hook saw it; and the kernel did not pass that hook over,
    /// as it does where an interrupt finds another BPF program running. For the last of them a count of the ports
    /// in use stands witness, where there is one ([`set_in_use`]).
    fn without_insertion(&self, loser_asked: KernelTime) -> Class {
        if self.kept_port && self.found_free() {
            return Class::SnatPortCollision;
        }
        let latest = self.winner.allocated.or_else(|| self.winner_unseen.then_some(self.since));
        match latest {
            Some(latest) if loser_asked.since(latest) > ON_ITS_WAY => Class::PortExhaustion,
            _ => Class::Unclassified,
        }
    }

    /// Whether a port that was kept was looked at first and found free.
    fn found_free(&self) -> bool {
        self.rule.is_some_and(|rule| {
            let candidates = candidates(self.protocol, rule, self.loser.original);
            !rule.random && candidates.is_some_and(|ports| count(&ports) >= MANY_PORTS)
        })
    }

    /// The range of a class that is about its size. That all of one port are in use is plain: the winner has it.
    pub(super) fn port_use(&self, class: Class) -> Option<PortUse> {
        if !matches!(class, Class::PortExhaustion | Class::FixedPort) {
            return None;
        }
        let in_range = count(&candidates(self.protocol, self.rule?, self.loser.original)?);
        Some(PortUse { in_range, in_use: (in_range == 1).then_some(1) })
    }
}

/// What to count, and where, to say how many ports of the loser's range are in use: `None` where that is known already or
/// the class is not about it.
#[must_use]
pub fn exhausted_range(race: &Race, loser: &FlowFact) -> Option<(NetnsInum, Range)> {
    let PortUse { in_use: None, .. } = race.port_use? else { return None };
    let contested = race.contested.ends();
    let range = Range {
        protocol: race.protocol,
        translated: contested.source.ip(),
        destination: contested.destination,
        zone: reply_zone(loser),
        ports: candidates(race.protocol, race.nat?, race.loser.original)?,
    };
    Some((race.netns?, range))
}

/// Says how many ports of the range were in use. An exhaustion that only the absence of the winner's times speaks for does
/// not stand against a range of which more than half is free: the kernel looks at every port of 128, or at 248 of more
/// (net/netfilter/nf_nat_core.c, `nf_nat_l4proto_unique_tuple`).
pub fn set_in_use(race: &mut Race, in_use: u32) {
    let Some(ports) = &mut race.port_use else { return };
    ports.in_use = Some(in_use);
    if race.class == Class::PortExhaustion && race.winner.inserted.is_none() && in_use < ports.in_range / 2 {
        race.class = Class::Unclassified;
    }
}

/// The ports, or ids of an echo, that the kernel had to choose from; `None` for a protocol that has none. What a rule
/// leaves open depends on the original port (`nf_nat_l4proto_unique_tuple`).
#[must_use]
pub fn candidates(protocol: Protocol, rule: NatRule, original: OriginalTuple) -> Option<RangeInclusive<u16>> {
    let defaults = || match original.ends().source.port() {
        _ if protocol.is_icmp() => 0..=u16::MAX,
        0..512 => 1..=511,
        512..1024 => 600..=1023,
        1024.. => 1024..=u16::MAX,
    };
    has_ports(protocol).then(|| rule.ports.map_or_else(defaults, |(min, max)| min.min(max)..=max.max(min)))
}

/// Whether the kernel can change something of the protocol to make a tuple unique (`nf_nat_l4proto_unique_tuple`; GRE
/// only as part of a PPTP session, which does not get here).
fn has_ports(protocol: Protocol) -> bool {
    /// UDP-Lite.
    const UDPLITE: Protocol = Protocol(136);
    protocol.is_icmp()
        || matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::DCCP | Protocol::SCTP)
        || protocol == UDPLITE
}

fn count(ports: &RangeInclusive<u16>) -> u32 {
    u32::from(*ports.end()) - u32::from(*ports.start()) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::race::classify::classify;
    use crate::race::classify::tests::clash;
    use crate::race::tuple::Ends;
    use snat_trace_common::{ClashRecord, NatRange, flow_flags};

    const SECOND: u64 = 1_000_000_000;
    /// `NF_NAT_RANGE_PROTO_SPECIFIED` and `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    const PORTS: u32 = 2;
    const RANDOM: u32 = 16;

    fn at(nanoseconds: u64) -> KernelTime {
        KernelTime::from_record(nanoseconds).unwrap()
    }

    /// The hooks attached at one second, the loser asking at ten seconds, of a winner only its entry known.
    fn old_winner() -> ClashRecord {
        let mut record = clash();
        record.loser.allocated_ns = 10 * SECOND;
        record.header.time_ns = 10 * SECOND + 5000;
        record.winner.flags &= !flow_flags::ALLOCATION;
        record.loser.original.src_port_be = 7_u16.to_be();
        record
    }

    fn judged(change: impl FnOnce(&mut ClashRecord)) -> Race {
        let mut record = old_winner();
        change(&mut record);
        classify(&record, at(SECOND)).unwrap()
    }

    fn ports(record: &mut ClashRecord, min: u16, max: u16) {
        let range = &mut record.loser.range;
        (range.flags, range.min_port_be, range.max_port_be) = (range.flags | PORTS, min.to_be(), max.to_be());
    }

    /// The default range of ports from 1024, of which the loser kept its own.
    fn keeps(record: &mut ClashRecord) {
        record.loser.original.src_port_be = record.loser.reply.dst_port_be;
    }

    #[test]
    fn a_winner_from_before_the_hooks_was_in_before_the_loser_asked() {
        use Class::{PortExhaustion, SnatPortCollision, Unclassified};
        type Case<'a> = (&'a str, &'a dyn Fn(&mut ClashRecord), Class);
        let cases: &[Case<'_>] = &[
            ("nothing known of it", &|_| {}, PortExhaustion),
            ("asked when the hooks were just there", &|r| r.loser.allocated_ns = 2 * SECOND, Unclassified),
            ("a nanosecond later", &|r| r.loser.allocated_ns = 2 * SECOND + 1, PortExhaustion),
            ("asked before the hooks were there", &|r| r.loser.allocated_ns = SECOND / 2, Unclassified),
            (
                "an entry at its address was seen before it",
                &|r| r.winner.flags |= flow_flags::STALE_ALLOCATION,
                Unclassified,
            ),
            ("not translated", &|r| r.winner.status = 0, Unclassified),
            ("the loser kept its port", &keeps, SnatPortCollision),
            (
                "kept, out of few",
                &|r| {
                    keeps(r);
                    ports(r, 39_000, 40_022);
                },
                PortExhaustion,
            ),
            (
                "kept, out of enough",
                &|r| {
                    keeps(r);
                    ports(r, 39_000, 40_023);
                },
                SnatPortCollision,
            ),
            (
                "kept, though chosen at random",
                &|r| {
                    keeps(r);
                    r.loser.range.flags = RANDOM;
                },
                PortExhaustion,
            ),
            (
                "its request known and long ago, its insert not",
                &|r| {
                    r.winner.flags |= flow_flags::ALLOCATION;
                    (r.winner.allocated_ns, r.winner.inserted_ns) = (8 * SECOND, 0);
                },
                PortExhaustion,
            ),
            (
                "its request known and recent, its insert not",
                &|r| {
                    r.winner.flags |= flow_flags::ALLOCATION;
                    (r.winner.allocated_ns, r.winner.inserted_ns) = (9 * SECOND, 0);
                },
                Unclassified,
            ),
            (
                "only the winner's request known",
                &|r| {
                    r.loser.flags &= !flow_flags::ALLOCATION;
                    r.winner.flags |= flow_flags::ALLOCATION;
                    r.winner.inserted_ns = 0;
                },
                Unclassified,
            ),
        ];
        for (name, change, expected) in cases {
            assert_eq!(judged(change).class, *expected, "{name}");
        }
    }

    #[test]
    fn a_port_found_free_is_not_taken_by_a_stamp() {
        // A natural race on 5.10: the loser asked 0.65 ms after the stamp of the winner's insert.
        let class = |change: &dyn Fn(&mut ClashRecord)| {
            let mut record = clash();
            record.loser.allocated_ns = record.winner.inserted_ns + 646_000;
            record.header.time_ns = record.loser.allocated_ns + 6_145_000;
            change(&mut record);
            classify(&record, at(1)).unwrap().class
        };
        assert_eq!(class(&|_| ()), Class::SnatPortCollision);
        assert_eq!(class(&|record| record.loser.original.src_port_be = 7_u16.to_be()), Class::PortExhaustion);
        assert_eq!(class(&|record| ports(record, 40_000, 40_009)), Class::PortExhaustion);
        assert_eq!(class(&|record| record.loser.range.flags = RANDOM), Class::PortExhaustion);
        assert_eq!(class(&|record| record.loser.allocated_ns += SECOND), Class::PortExhaustion);
    }

    #[test]
    fn one_port_or_none_is_no_choice() {
        let protocol = |record: &mut ClashRecord, protonum| {
            for flow in [&mut record.loser, &mut record.winner] {
                (flow.original.protonum, flow.reply.protonum) = (protonum, protonum);
            }
        };
        for icmp in [1, 58] {
            let race = judged(|record| {
                protocol(record, icmp);
                ports(record, 40_000, 40_000);
            });
            assert_eq!((race.class, race.port_use), (Class::FixedPort, Some(PortUse { in_range: 1, in_use: Some(1) })));
        }
        // GRE and ESP have nothing that could be changed, whatever the level of detail.
        for portless in [47, 50] {
            let race = judged(|record| protocol(record, portless));
            assert_eq!((race.class, race.port_use), (Class::FixedPort, None));
            let minimal = judged(|record| {
                protocol(record, portless);
                record.loser.flags = 0;
            });
            assert_eq!(minimal.class, Class::FixedPort);
        }
        // In time it was a race, but any second flow would have lost.
        let mut record = clash();
        ports(&mut record, 40_000, 40_000);
        assert_eq!(classify(&record, at(1)).unwrap().class, Class::FixedPort);
    }

    #[test]
    fn candidates_are_those_of_the_kernel() {
        let of = |protocol, port, ports| {
            let ends = |text: &str| text.parse().unwrap();
            let mut original = Ends { source: ends("10.0.0.1:1"), destination: ends("10.0.0.2:53") };
            original.source.set_port(port);
            candidates(protocol, NatRule { random: false, ports }, OriginalTuple::from_ends(original))
        };
        for (port, expected) in [
            (0, 1..=511),
            (511, 1..=511),
            (512, 600..=1023),
            (1023, 600..=1023),
            (1024, 1024..=65_535),
            (65_535, 1024..=65_535),
        ] {
            assert_eq!(of(Protocol::TCP, port, None), Some(expected), "{port}");
        }
        assert_eq!(of(Protocol::ICMP, 7, None), Some(0..=65_535));
        assert_eq!(of(Protocol::UDP, 7, Some((40, 50))), Some(40..=50));
        assert_eq!(of(Protocol::UDP, 7, Some((50, 40))), Some(40..=50), "the kernel swaps them");
        assert_eq!(of(Protocol(47), 7, Some((40, 50))), None);
    }

    #[test]
    fn a_count_is_set_where_the_class_is_about_ports() {
        let mut race = judged(|record| ports(record, 40_000, 40_015));
        assert_eq!(race.port_use, Some(PortUse { in_range: 16, in_use: None }));
        let mut loser = old_winner().loser;
        (loser.zone, loser.zone_dir) = (5, 2);
        let (netns, range) = exhausted_range(&race, &loser).unwrap();
        let expected = Range {
            protocol: Protocol::UDP,
            translated: "10.99.1.1".parse().unwrap(),
            destination: "10.99.1.2:53".parse().unwrap(),
            zone: 5,
            ports: 40_000..=40_015,
        };
        assert_eq!((Some(netns), range), (race.netns, expected));
        set_in_use(&mut race, 16);
        assert_eq!(exhausted_range(&race, &loser), None, "it is known");
        assert_eq!(race.port_use, Some(PortUse { in_range: 16, in_use: Some(16) }));
        let mut collision = classify(&clash(), at(1)).unwrap();
        assert_eq!(exhausted_range(&collision, &clash().loser), None);
        set_in_use(&mut collision, 3);
        assert_eq!((collision.class, collision.port_use), (Class::SnatPortCollision, None));
    }

    #[test]
    fn a_range_half_free_is_not_exhausted_for_want_of_times() {
        for (in_use, expected) in [(8, Class::PortExhaustion), (7, Class::Unclassified)] {
            let mut race = judged(|record| ports(record, 40_000, 40_015));
            set_in_use(&mut race, in_use);
            assert_eq!((race.class, race.port_use.unwrap().in_use), (expected, Some(in_use)));
        }
        // The times said it: entries may have gone since.
        let mut record = clash();
        record.loser.range = NatRange { flags: PORTS, min_port_be: 1_u16.to_be(), max_port_be: 16_u16.to_be() };
        record.loser.allocated_ns = SECOND;
        let mut race = classify(&record, at(1)).unwrap();
        set_in_use(&mut race, 0);
        assert_eq!(race.class, Class::PortExhaustion);
    }
}
