//! Events made again of the lines of evidence. Times are then those of the wall clock from the epoch on, so that they print
//! as they did.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::reader::Sample;
use super::rules::Rules;
use crate::audit::Audit;
use crate::counters::account::Account;
use crate::counters::figures::Tally;
use crate::kernel::{Detail, Mechanism, Request, Role};
use crate::output::json::records::{
    AccountRecord, BehindRecord, ContainerRecord, EndsRecord, FailureRecord, FlowRecord, HookRecord, Map, NatRecord,
    OwnerRecord, PodRecord, PortChoiceRecord, RaceRecord, RulesRecord, SampleRecord, SessionRecord, SummaryRecord,
    Time,
};
use crate::owner::{Behind, CommandLine, Container, Owner, OwnerSource, Pod, Program};
use crate::probe::{AttachedHook, HookState};
use crate::race::event::{Class, Flow, NatRule, NetnsInum, PortUse, Race, Verdict};
use crate::race::failure::{Failure, Reason};
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};
use crate::session::Session;
use crate::summary::{PortChoice, Span, Summary};

/// What a line says that this version does not understand.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{what} {value:?} is not known to this version")]
pub struct NotKnown {
    what: &'static str,
    value: String,
}

/// The clock that turns restored times into the wall times they were.
#[must_use]
pub fn clock() -> WallClock {
    WallClock::from_offset(0)
}

/// The head of a recording.
pub(super) fn session(record: SessionRecord<'_>) -> Result<Session, NotKnown> {
    Ok(Session {
        tool: record.tool.into_owned(),
        clock: clock(),
        started: moment(record.time)?,
        kernel: record.kernel.into_owned(),
        machine: record.machine.into_owned(),
        boot_id: record.boot_id.map(Cow::into_owned),
        request: Request {
            detail: named("level of detail", &Detail::ALL, Detail::name, &record.options.detail)?,
            failures: record.options.failures,
            commands: !record.options.no_cmdline,
        },
        hooks: record.hooks.into_iter().map(hook).collect::<Result<_, _>>()?,
    })
}

fn hook(record: HookRecord<'_>) -> Result<AttachedHook, NotKnown> {
    let HookRecord { role, symbol, mechanism, attached, reason } = record;
    Ok(AttachedHook {
        role: named("hook", &Role::ALL, Role::name, &role)?,
        symbol: symbol.into_owned().into(),
        mechanism: named("mechanism", &Mechanism::ALL, Mechanism::name, &mechanism)?,
        state: if attached {
            HookState::Attached
        } else {
            // What it cost is said when it is not attached, not afterwards.
            HookState::NotAttached { reason: reason.unwrap_or_default().into_owned(), cost: "" }
        },
    })
}

/// A race.
pub(super) fn race(record: RaceRecord<'_>) -> Result<Race, NotKnown> {
    let (nat, port_use) = record.nat.map(nat).unzip();
    Ok(Race {
        time: moment(record.time)?,
        class: named("class", &Class::ALL, Class::name, &record.class)?,
        verdict: record.verdict.map(|verdict| named("verdict", &Verdict::ALL, Verdict::name, &verdict)).transpose()?,
        protocol: protocol(&record.protocol)?,
        netns: record.netns.map(NetnsInum),
        zone: record.zone,
        winner_zone: record.winner.zone,
        contested: TranslatedTuple::from_ends(ends(&record.contested)),
        overlap: record.overlap_ns.map(Duration::from_nanos),
        nat,
        port_use: port_use.flatten(),
        winner: flow(record.winner)?,
        loser: flow(record.loser)?,
        packet: record.packet.map(|packet| unhex(&packet)).transpose()?.unwrap_or_default(),
    })
}

fn nat(record: NatRecord) -> (NatRule, Option<PortUse>) {
    let NatRecord { random, min_port, max_port, in_range, in_use } = record;
    (NatRule { random, ports: min_port.zip(max_port) }, in_range.map(|in_range| PortUse { in_range, in_use }))
}

fn flow(record: FlowRecord<'_>) -> Result<Flow, NotKnown> {
    Ok(Flow {
        original: OriginalTuple::from_ends(ends(&record.original)),
        allocated: record.allocated.map(moment).transpose()?,
        inserted: record.inserted.map(moment).transpose()?,
        cpu: record.cpu,
        owner: record.owner.map(owner).transpose()?,
        behind: record.behind.map(behind),
    })
}

fn behind(BehindRecord { interface, port, netns, container, pod }: BehindRecord<'_>) -> Behind {
    Behind {
        interface: interface.into_owned(),
        port: port.map(Cow::into_owned),
        netns: netns.map(NetnsInum),
        container: container.map(self::container),
        pod: pod.map(self::pod),
    }
}

fn container(ContainerRecord { runtime, id, name, image }: ContainerRecord<'_>) -> Container {
    Container {
        runtime: runtime.into_owned().into(),
        id: id.into_owned(),
        name: name.map(Cow::into_owned),
        image: image.map(Cow::into_owned),
    }
}

fn pod(PodRecord { namespace, name, uid }: PodRecord<'_>) -> Pod {
    Pod { namespace: namespace.into_owned(), name: name.into_owned(), uid: uid.into_owned() }
}

fn owner(record: OwnerRecord<'_>) -> Result<Owner, NotKnown> {
    let OwnerRecord { pid, tid, comm, netns, cgroup_id, cgroup, container, pod, .. } = record;
    let OwnerRecord { uid, started, own_pid, exe, cmdline, cmdline_cut, source, .. } = record;
    Ok(Owner {
        pid,
        tid,
        comm: comm.into_owned(),
        netns: netns.map(NetnsInum),
        cgroup_id,
        cgroup: cgroup.map(Cow::into_owned),
        container: container.map(self::container),
        pod: pod.map(self::pod),
        program: Program {
            uid,
            started: started.map(|Time(started)| started),
            own_pid,
            executable: exe.map(Cow::into_owned),
            command_line: cmdline.map(|words| CommandLine { words: words.into_owned(), cut: cmdline_cut }),
        },
        source: named("source of an owner", &OwnerSource::ALL, OwnerSource::name, &source)?,
    })
}

/// A failure that is no race. How the kernel counted it is in the summary's account, no longer here.
pub(super) fn failure(record: FailureRecord<'_>) -> Result<Failure, NotKnown> {
    let reason = named("reason", &Reason::ALL, Reason::name, &record.reason)?;
    Ok(Failure {
        time: moment(record.time)?,
        reason,
        errno: record.errno,
        protocol: protocol(&record.protocol)?,
        netns: record.netns.map(NetnsInum),
        zone: record.zone,
        flow: flow(record.flow)?,
        by_packet: reason != Reason::Ctnetlink,
        counted: Tally::default(),
    })
}

/// The end of a recording.
pub(super) fn summary(record: SummaryRecord<'_>) -> Result<Summary, NotKnown> {
    let ended = moment(record.time)?;
    let PortChoiceRecord { random, narrow, kept, kept_rule_unknown } = record.port_choice;
    let classes = record.classes.0.into_iter();
    let failures = record.failures.map(|failures| {
        let reason =
            |(name, count): (Cow<'_, str>, u64)| Ok((named("reason", &Reason::ALL, Reason::name, &name)?, count));
        failures.0.into_iter().map(reason).collect::<Result<_, _>>()
    });
    Ok(Summary {
        span: Span { started: earlier(ended, record.duration_ns)?, ended, clock: clock() },
        connections: record.connections,
        dropped: record.races.dropped,
        resolved: record.races.resolved,
        undecided: record.races.undecided,
        classes: classes
            .map(|(name, count)| Ok((named("class", &Class::ALL, Class::name, &name)?, count)))
            .collect::<Result<_, _>>()?,
        port_choice: PortChoice { random, narrow, kept, kept_rule_unknown },
        accounts: record.accounts.into_iter().map(account).collect(),
        outside: record.outside,
        ended: record.ended,
        hooks_gone: record.hooks_gone.into_iter().map(Cow::into_owned).collect(),
        failures: failures.transpose()?,
        lost: record.lost.0,
        incomplete: record.incomplete.0,
    })
}

/// Rules of a network namespace.
pub(super) fn rules(record: RulesRecord<'_>) -> Result<Rules, NotKnown> {
    let RulesRecord { time, netns, entries, max_entries, own, redacted, .. } = record;
    let RulesRecord { rules, findings, not_read, .. } = record;
    let (findings, rules, not_read) = (findings.into_owned(), rules.into_owned(), not_read.into_owned());
    let audit = Audit { findings, rules, namespaces: 1, not_read };
    Ok(Rules { time: moment(time)?, netns: NetnsInum(netns), entries: entries.zip(max_entries), own, redacted, audit })
}

/// Counters on the way.
pub(super) fn sample(record: &SampleRecord) -> Result<Sample, NotKnown> {
    let SampleRecord { time, netns, counters, left_out } = record;
    Ok(Sample { time: moment(*time)?, netns: NetnsInum(*netns), counters: tally(counters), left_out: *left_out })
}

fn account(record: AccountRecord<'_>) -> Account {
    let AccountRecord { netns, counters, error, explained, unexplained, complete, note } = record;
    Account {
        netns: netns.map(NetnsInum),
        counters: counters.map(|counters| tally(&counters)).ok_or_else(|| error.unwrap_or_default().into_owned()),
        explained: tally(&explained).zip(Tally::<()>::default(), |count, ()| count.unwrap_or(0)),
        unexplained: tally(&unexplained),
        complete,
        note: note.map(|note| note.into_owned().into()),
    }
}

/// Counters by name; one that is not there is not known.
fn tally<V: Copy>(map: &Map<V>) -> Tally<Option<V>> {
    Tally {
        insert_failed: map.get("insert_failed"),
        drop: map.get("drop"),
        clash_resolve: map.get("clash_resolve"),
        chaintoolong: map.get("chaintoolong"),
        early_drop: map.get("early_drop"),
    }
}

fn ends(record: &EndsRecord) -> Ends {
    let EndsRecord { src, sport, dst, dport } = *record;
    Ends { source: SocketAddr::new(src, sport), destination: SocketAddr::new(dst, dport.unwrap_or(0)) }
}

fn protocol(text: &str) -> Result<Protocol, NotKnown> {
    text.parse().map_err(|_| NotKnown { what: "protocol", value: text.to_owned() })
}

/// One of a kind by its name.
fn named<T: Copy>(what: &'static str, all: &[T], name: fn(T) -> &'static str, wanted: &str) -> Result<T, NotKnown> {
    let found = all.iter().copied().find(|&one| name(one) == wanted);
    found.ok_or_else(|| NotKnown { what, value: wanted.to_owned() })
}

/// A wall time as nanoseconds since the epoch.
fn moment(Time(time): Time) -> Result<KernelTime, NotKnown> {
    let since_epoch = u64::try_from(time.as_nanosecond()).ok().and_then(KernelTime::from_record);
    since_epoch.ok_or_else(|| NotKnown { what: "time", value: time.to_string() })
}

fn earlier(time: KernelTime, nanoseconds: u64) -> Result<KernelTime, NotKnown> {
    let start = time.nanoseconds().checked_sub(nanoseconds).and_then(KernelTime::from_record);
    start.ok_or_else(|| NotKnown { what: "duration", value: nanoseconds.to_string() })
}

fn unhex(text: &str) -> Result<Bytes, NotKnown> {
    let wrong = || NotKnown { what: "packet", value: text.to_owned() };
    let digits = text.as_bytes().chunks(2);
    let byte = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
    if text.len() % 2 == 1 {
        return Err(wrong());
    }
    digits.map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from).ok_or_else(wrong)
}
