//! What one clash was: the rules, as pure functions of its record.

use std::time::Duration;

use bytes::Bytes;
use snat_trace_common::{ClashRecord, FlowFact, Tuple, TupleDirection, flow_flags};

use super::class::Contest;
use super::decode::Undecodable;
use super::event::{Class, Flow, NatRule, NetnsInum, Race, Verdict};
use super::time::KernelTime;
use super::tuple::{OriginalTuple, Protocol, TranslatedTuple};

/// Bits of `nf_conn.status` (include/uapi/linux/netfilter/nf_conntrack_common.h).
mod ips {
    /// `IPS_NAT_DONE_MASK`: translation was decided in either direction.
    pub(super) const NAT_DONE: u64 = 1 << 7 | 1 << 8;
    /// `IPS_DYING`.
    pub(super) const DYING: u64 = 1 << 9;
}

/// Bits of `nf_nat_range2.flags` (include/uapi/linux/netfilter/nf_nat.h).
mod range {
    /// `NF_NAT_RANGE_PROTO_SPECIFIED`: the rule names ports.
    pub(super) const PORTS: u32 = 1 << 1;
    /// `NF_NAT_RANGE_PROTO_RANDOM` and `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    pub(super) const RANDOM: u32 = 1 << 2 | 1 << 4;
}

/// The race a clash was, without its owners. The hooks had all been attached at `since`.
///
/// # Errors
///
/// [`Undecodable::Untimed`], and [`Undecodable::UnknownFamily`] when the entries are neither IPv4 nor IPv6.
pub fn classify(record: &ClashRecord, since: KernelTime) -> Result<Race, Undecodable> {
    let (loser, winner) = (&record.loser, &record.winner);
    let unknown = Undecodable::UnknownFamily { l3num: loser.original.l3num };
    let shape = Shape::of(loser, winner);
    let time = KernelTime::from_record(record.header.time_ns).ok_or(Undecodable::Untimed)?;
    let protocol = Protocol(loser.original.protonum);

    let mut loser_flow = flow(loser).ok_or(unknown)?;
    // A loser never goes in; what the hook saw was the attempt.
    loser_flow.inserted = None;
    loser_flow.cpu = loser_flow.cpu.or(Some(record.header.cpu));
    let winner_flow = flow(winner).ok_or(unknown)?;
    let rule = nat_rule(loser);
    let contested = contested(shape, loser, winner).ok_or(unknown)?;
    let contest = Contest {
        protocol,
        rule,
        kept_port: contested.keeps_port_of(loser_flow.original),
        loser: &loser_flow,
        winner: &winner_flow,
        winner_unseen: unseen(winner),
        since,
    };
    let class = class(shape, &contest);
    let port_use = contest.port_use(class);

    Ok(Race {
        time,
        class,
        verdict: verdict(shape, protocol, winner),
        protocol,
        netns: (record.netns != 0).then_some(NetnsInum(record.netns)),
        zone: loser.zone,
        winner_zone: winner.zone,
        contested,
        overlap: overlap(&loser_flow, &winner_flow),
        nat: rule,
        port_use,
        winner: winner_flow,
        loser: loser_flow,
        packet: Bytes::copy_from_slice(record.packet.get(..usize::from(record.packet_len)).unwrap_or(&record.packet)),
    })
}

/// How the tuples of two entries meet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    /// The same flow twice, translated alike.
    SameFlow,
    /// The same original tuple, translated differently (two backends).
    SameOriginal,
    /// Different flows, one translated tuple.
    SameTranslated,
    /// One is the other's answer.
    Crossed,
    /// None of these.
    Other,
}

impl Shape {
    fn of(loser: &FlowFact, winner: &FlowFact) -> Self {
        let same = |a: &Tuple, b: &Tuple, direction| {
            Tuple { dir: 0, ..*a } == Tuple { dir: 0, ..*b } && zone(loser, direction) == zone(winner, direction)
        };
        let original = same(&loser.original, &winner.original, ORIGINAL);
        let reply = same(&loser.reply, &winner.reply, REPLY);
        if original && reply {
            Self::SameFlow
        } else if original {
            Self::SameOriginal
        } else if reply {
            Self::SameTranslated
        } else if same(&loser.original, &winner.reply, REPLY) || same(&loser.reply, &winner.original, ORIGINAL) {
            Self::Crossed
        } else {
            Self::Other
        }
    }
}

/// `IP_CT_DIR_ORIGINAL`.
const ORIGINAL: TupleDirection = 0;
/// `IP_CT_DIR_REPLY`.
const REPLY: TupleDirection = 1;

/// The zone an entry is in, in one direction (include/net/netfilter/nf_conntrack_zones.h, `nf_ct_zone_id`).
fn zone(flow: &FlowFact, direction: TupleDirection) -> u16 {
    if flow.zone_dir & 1 << direction != 0 { flow.zone } else { 0 }
}

/// The zone of an entry's reply tuple, in which its translated source must be unique.
pub(super) fn reply_zone(flow: &FlowFact) -> u16 {
    zone(flow, REPLY)
}

fn class(shape: Shape, contest: &Contest<'_>) -> Class {
    match shape {
        Shape::SameFlow | Shape::SameOriginal => Class::DuplicateFlow,
        Shape::Crossed => Class::CrossedFlow,
        Shape::Other => Class::Unclassified,
        Shape::SameTranslated => contest.class(),
    }
}

/// See [`Contest::winner_unseen`].
fn unseen(winner: &FlowFact) -> bool {
    winner.status & ips::NAT_DONE != 0 && winner.flags & (flow_flags::ALLOCATION | flow_flags::STALE_ALLOCATION) == 0
}

/// What the tuples prove of the kernel's decision (net/netfilter/nf_conntrack_core.c, `nf_ct_resolve_clash`).
///
/// Everything else depends on the kernel's version or on entries not seen here, and is left open.
fn verdict(shape: Shape, protocol: Protocol, winner: &FlowFact) -> Option<Verdict> {
    match protocol {
        // Their trackers never set `allow_clash`.
        Protocol::TCP | Protocol::SCTP | Protocol::DCCP => Some(Verdict::Dropped),
        // The reply tuple is taken and the two do not match: neither way of resolving applies. Before 6.12 a winner
        // without any NAT decision was merged with all the same.
        _ if shape == Shape::SameTranslated && winner.status & ips::NAT_DONE != 0 => Some(Verdict::Dropped),
        Protocol::UDP if shape == Shape::SameFlow && winner.status & ips::DYING == 0 => Some(Verdict::Resolved),
        _ => None,
    }
}

/// The tuple both claimed, as the loser's packet bears it. Of a flow claimed twice with two translations, and of one that
/// is the winner's answer, it is the original one: the loser may have been given another port (before kernels had
/// `nf_nat_used_tuple_new`, net/netfilter/nf_nat_core.c, an answer that was taken counted as a port that is not free).
fn contested(shape: Shape, loser: &FlowFact, winner: &FlowFact) -> Option<TranslatedTuple> {
    let original = || OriginalTuple::new(&loser.original).map(|tuple| TranslatedTuple::from_ends(tuple.ends()));
    let is_answer = || Tuple { dir: 0, ..loser.original } == Tuple { dir: 0, ..winner.reply };
    match shape {
        Shape::SameOriginal => original(),
        Shape::Crossed if is_answer() => original(),
        Shape::SameFlow | Shape::SameTranslated | Shape::Crossed | Shape::Other => TranslatedTuple::new(&loser.reply),
    }
}

/// From the later allocation to the winner's insert; `None` when the winner was in before.
fn overlap(loser: &Flow, winner: &Flow) -> Option<Duration> {
    let opened = loser.allocated?.max(winner.allocated?);
    let closed = winner.inserted?;
    (closed > opened).then(|| closed.since(opened))
}

fn nat_rule(loser: &FlowFact) -> Option<NatRule> {
    let rule = loser.range;
    (loser.flags & flow_flags::ALLOCATION != 0).then(|| NatRule {
        random: rule.flags & range::RANDOM != 0,
        ports: (rule.flags & range::PORTS != 0)
            .then(|| (u16::from_be(rule.min_port_be), u16::from_be(rule.max_port_be))),
    })
}

/// A flow without its owner; `None` when it is neither IPv4 nor IPv6.
pub(super) fn flow(fact: &FlowFact) -> Option<Flow> {
    let known = fact.flags & flow_flags::ALLOCATION != 0;
    Some(Flow {
        original: OriginalTuple::new(&fact.original)?,
        allocated: KernelTime::from_record(fact.allocated_ns).filter(|_| known),
        inserted: KernelTime::from_record(fact.inserted_ns).filter(|_| known),
        cpu: known.then_some(fact.allocated_cpu),
        owner: None,
        behind: None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use snat_trace_common::{NatRange, OwnerFact, PACKET_LEN, ProcessKey, RecordHeader, kind};

    use super::*;

    fn tuple(protonum: u8, src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, dir: u8) -> Tuple {
        let address = |bytes: [u8; 4]| {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&bytes);
            address
        };
        Tuple {
            src: address(src),
            src_port_be: sport.to_be(),
            l3num: 2,
            dst: address(dst),
            dst_port_be: dport.to_be(),
            protonum,
            dir,
        }
    }

    const NODE: [u8; 4] = [10, 99, 1, 1];
    const SERVER: [u8; 4] = [10, 99, 1, 2];

    fn translated_flow(pod: u8, allocated_ns: u64, inserted_ns: u64) -> FlowFact {
        FlowFact {
            original: tuple(17, [10, 99, 0, pod], 40_000, SERVER, 53, 0),
            reply: tuple(17, SERVER, 53, NODE, 40_000, 1),
            status: ips::NAT_DONE,
            allocated_ns,
            inserted_ns,
            range: NatRange::default(),
            allocated_cpu: u32::from(pod % 2),
            inserted_cpu: 0,
            flags: flow_flags::ALLOCATION | flow_flags::OWNER,
            zone: 0,
            zone_dir: 3,
            reserved: 0,
            sender: 0,
            owner: OwnerFact {
                sent_ns: 900,
                before_ns: 0,
                elsewhere_ns: 0,
                cgroup_id: 7,
                legacy_cgroup_id: 0,
                process: ProcessKey { start_ns: 800, tgid: 4000 + u32::from(pod), exec_id: 3 },
                tid: 5000 + u32::from(pod),
                netns: 4_026_532_001,
                flags: 0,
                sends: 1,
                taker: 0,
                uid: 1000,
                comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            },
        }
    }

    /// Two pods whose UDP flows were given one translated tuple: asked at 1000 and 1100, winner in at 1500, clash at 2000.
    pub(crate) fn clash() -> ClashRecord {
        ClashRecord {
            header: RecordHeader {
                kind: kind::CLASH,
                len: u16::try_from(size_of::<ClashRecord>()).unwrap(),
                cpu: 1,
                time_ns: 2000,
            },
            netns: 4_026_531_840,
            flags: 0,
            matched: 1,
            reserved: [0; 5],
            packet_len: 28,
            loser_entry: 0xffff_8880_0000_1000,
            loser: translated_flow(11, 1100, 0),
            winner: translated_flow(10, 1000, 1500),
            packet: [0x45; PACKET_LEN],
        }
    }

    /// When the hooks were attached: just before.
    pub(crate) fn since() -> KernelTime {
        KernelTime::from_record(1).unwrap()
    }

    /// The clash, changed, and what it must become.
    fn judged(change: impl FnOnce(&mut ClashRecord)) -> (Class, Option<Verdict>) {
        let mut record = clash();
        change(&mut record);
        let race = classify(&record, since()).expect("IPv4");
        (race.class, race.verdict)
    }

    fn set_protocol(record: &mut ClashRecord, protocol: Protocol) {
        for flow in [&mut record.loser, &mut record.winner] {
            flow.original.protonum = protocol.0;
            flow.reply.protonum = protocol.0;
        }
    }

    #[test]
    fn the_race_names_both_flows() {
        let race = classify(&clash(), since()).expect("IPv4");
        assert_eq!(race.class, Class::SnatPortCollision);
        assert_eq!(race.verdict, Some(Verdict::Dropped));
        assert_eq!(race.contested.ends().source.to_string(), "10.99.1.1:40000");
        assert_eq!(race.contested.ends().destination.to_string(), "10.99.1.2:53");
        assert_eq!(race.loser.original.ends().source.to_string(), "10.99.0.11:40000");
        assert_eq!(race.winner.original.ends().source.to_string(), "10.99.0.10:40000");
        assert_eq!(race.overlap, Some(Duration::from_nanos(400)), "from the later allocation to the insert");
        assert_eq!(race.nat, Some(NatRule { random: false, ports: None }));
        assert_eq!(race.packet.len(), 28);
        assert_eq!((race.loser.cpu, race.winner.cpu), (Some(1), Some(0)));
    }

    #[test]
    fn classes_and_verdicts() {
        use Class::{CrossedFlow, DuplicateFlow, FixedPort, PortExhaustion, SnatPortCollision, Unclassified};
        use Verdict::{Dropped, Resolved};

        let forget = |flow: &mut FlowFact| flow.flags &= !flow_flags::ALLOCATION;
        let ports = |record: &mut ClashRecord, min: u16, max: u16| {
            record.loser.range = NatRange { flags: range::PORTS, min_port_be: min.to_be(), max_port_be: max.to_be() };
        };
        let few_ports_asked = |record: &mut ClashRecord, allocated_ns| {
            ports(record, 40_000, 40_009);
            record.loser.allocated_ns = allocated_ns;
        };
        type Case<'a> = (&'a str, &'a dyn Fn(&mut ClashRecord), (Class, Option<Verdict>));
        let cases: &[Case<'_>] = &[
            ("tcp", &|r| set_protocol(r, Protocol::TCP), (SnatPortCollision, Some(Dropped))),
            ("winner in before", &|r| r.loser.allocated_ns = 1_000_001_500, (PortExhaustion, Some(Dropped))),
            (
                "stamped before, port kept",
                &|r| r.loser.allocated_ns = 1_000_001_499,
                (SnatPortCollision, Some(Dropped)),
            ),
            ("winner in before, few ports", &|r| few_ports_asked(r, 101_500), (PortExhaustion, Some(Dropped))),
            ("winner in just before, few ports", &|r| few_ports_asked(r, 101_499), (SnatPortCollision, Some(Dropped))),
            ("winner in at once", &|r| r.loser.allocated_ns = 1500, (SnatPortCollision, Some(Dropped))),
            (
                "winner in at once, another port",
                &|r| {
                    r.loser.allocated_ns = 1500;
                    r.loser.original.src_port_be = 1;
                },
                (PortExhaustion, Some(Dropped)),
            ),
            ("winner in just after", &|r| r.loser.allocated_ns = 1499, (SnatPortCollision, Some(Dropped))),
            (
                "winner unknown, another port",
                &|r| {
                    forget(&mut r.winner);
                    r.loser.original.src_port_be = 1;
                },
                (Unclassified, Some(Dropped)),
            ),
            ("loser unknown", &|r| forget(&mut r.loser), (Unclassified, Some(Dropped))),
            (
                "minimal detail",
                &|r| {
                    forget(&mut r.loser);
                    forget(&mut r.winner);
                },
                (SnatPortCollision, Some(Dropped)),
            ),
            (
                "minimal detail, another port",
                &|r| {
                    forget(&mut r.loser);
                    forget(&mut r.winner);
                    r.loser.original.src_port_be = 1;
                },
                (Unclassified, Some(Dropped)),
            ),
            ("one port", &|r| ports(r, 5000, 5000), (FixedPort, Some(Dropped))),
            ("two ports", &|r| ports(r, 5000, 5001), (SnatPortCollision, Some(Dropped))),
            ("no NAT decision", &|r| r.winner.status = 0, (SnatPortCollision, None)),
            ("same flow", &|r| r.loser.original = r.winner.original, (DuplicateFlow, Some(Resolved))),
            (
                "same flow, winner dying",
                &|r| {
                    r.loser.original = r.winner.original;
                    r.winner.status |= ips::DYING;
                },
                (DuplicateFlow, None),
            ),
            (
                "same flow, tcp",
                &|r| {
                    r.loser.original = r.winner.original;
                    set_protocol(r, Protocol::TCP);
                },
                (DuplicateFlow, Some(Dropped)),
            ),
            (
                "two backends",
                &|r| {
                    r.loser.original = r.winner.original;
                    r.loser.reply.src[3] = 3;
                },
                (DuplicateFlow, None),
            ),
            (
                "crossed",
                &|r| {
                    r.loser.original = Tuple { dir: 0, ..r.winner.reply };
                    r.loser.reply = Tuple { dir: 1, ..r.winner.original };
                },
                (CrossedFlow, None),
            ),
            ("another zone", &|r| r.loser.zone = 5, (Unclassified, None)),
            (
                "another zone, in the original direction only",
                &|r| (r.loser.zone, r.loser.zone_dir) = (5, 1),
                (SnatPortCollision, Some(Dropped)),
            ),
            (
                "two zones, each in the original direction only",
                &|r| {
                    (r.loser.zone, r.loser.zone_dir) = (5, 1);
                    (r.winner.zone, r.winner.zone_dir) = (6, 1);
                    r.loser.original = r.winner.original;
                },
                (SnatPortCollision, Some(Dropped)),
            ),
            ("nothing in common", &|r| r.loser.reply.dst_port_be = 1, (Unclassified, None)),
        ];
        for (name, change, expected) in cases {
            assert_eq!(judged(change), *expected, "{name}");
        }
    }

    #[test]
    fn a_crossed_flow_contests_what_was_sent() {
        let mut record = clash();
        record.loser.original = Tuple { dir: 0, ..record.winner.reply };
        // Its answer was taken, so it was given another port.
        record.loser.reply = Tuple { dir: 1, dst_port_be: 77_u16.to_be(), ..record.winner.original };
        let race = classify(&record, since()).expect("IPv4");
        assert_eq!((race.class, race.contested.ends()), (Class::CrossedFlow, race.loser.original.ends()));
        // The other way round it is the answer that was there.
        record.loser.reply = Tuple { dir: 1, ..record.winner.original };
        record.loser.original.src_port_be = 77_u16.to_be();
        let race = classify(&record, since()).expect("IPv4");
        assert_eq!(race.class, Class::CrossedFlow);
        assert_eq!(race.contested.ends().source.to_string(), "10.99.1.2:53");
    }

    #[test]
    fn the_id_of_an_echo_is_its_source_port() {
        let mut record = clash();
        set_protocol(&mut record, Protocol::ICMP);
        for flow in [&mut record.loser, &mut record.winner] {
            flow.original.dst_port_be = u16::from_ne_bytes([8, 0]);
            flow.reply.src_port_be = 77_u16.to_be();
            flow.reply.dst_port_be = 0;
        }
        let race = classify(&record, since()).expect("IPv4");
        assert_eq!(race.contested.ends().source.to_string(), "10.99.1.1:77");
        assert_eq!(race.contested.ends().destination.port(), 0);
        assert_eq!(race.loser.original.ends().destination.port(), 0);
    }

    #[test]
    fn what_is_no_ip_is_not_named() {
        let mut record = clash();
        record.winner.reply.l3num = 7;
        record.loser.original.l3num = 7;
        assert_eq!(classify(&record, since()), Err(Undecodable::UnknownFamily { l3num: 7 }));
    }

    proptest! {
        /// The rule of the whole project, over every interleaving of two flows whose times tell.
        #[test]
        fn a_race_is_what_the_times_say(asked in 1_u64..1000, won in 1_u64..1000, inserted in 1_u64..2000) {
            let far = u64::try_from(crate::race::class::ON_ITS_WAY.as_nanos()).unwrap();
            let (class, _) = judged(|record| {
                record.loser.allocated_ns = asked * far;
                record.winner.allocated_ns = won * far;
                record.winner.inserted_ns = inserted * far + 1;
                record.header.time_ns = 3000 * far;
            });
            // In the table a nanosecond after the loser asked, or most of ON_ITS_WAY before: the port was kept.
            let race = asked * far < inserted * far + 1 || asked == inserted + 1;
            prop_assert_eq!(class == Class::SnatPortCollision, race);
            prop_assert_eq!(class == Class::PortExhaustion, !race);
        }
    }
}
