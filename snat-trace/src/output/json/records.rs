//! The records of the JSON output, one object per line: made of events here, and made into events again by
//! [`evidence`](crate::evidence).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::audit::{Audit, Finding, RuleShown};
use crate::counters::account::Account;
use crate::counters::figures::Tally;
use crate::evidence::node::NodeRecord;
use crate::evidence::{Rules, Sample};
use crate::owner::{Behind, Container, Owner, Pod, Program};
use crate::probe::{AttachedHook, HookState};
use crate::race::event::{Flow, NetnsInum, Race, Verdict};
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, Protocol};
use crate::session::Session;
use crate::summary::{PortChoice, Summary};

/// Version of the records; grows only when a field changes its meaning.
pub(crate) const SCHEMA: u32 = 1;

/// A line of the output, or of evidence, which has more kinds of them.
#[derive(Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Line<'a> {
    /// The first.
    #[serde(borrow)]
    Session(SessionRecord<'a>),
    /// Of evidence only: the machine.
    Node(Box<NodeRecord>),
    /// One clash.
    Race(Box<RaceRecord<'a>>),
    /// One connection that did not come into the table for another reason.
    InsertFailure(Box<FailureRecord<'a>>),
    /// Of evidence only: the NAT rules of a network namespace that had a race.
    Rules(Box<RulesRecord<'a>>),
    /// Of evidence only: what a network namespace counted so far.
    Sample(SampleRecord),
    /// The last.
    Summary(Box<SummaryRecord<'a>>),
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// A moment: RFC 3339, UTC, nine digits of a second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Time(pub(crate) Timestamp);

impl Time {
    /// Of a kernel time.
    pub(crate) fn of(clock: WallClock, time: KernelTime) -> Self {
        Self(clock.wall(time))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.9}", self.0))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct SessionRecord<'a> {
    pub(crate) schema: u32,
    #[serde(borrow)]
    pub(crate) tool: Cow<'a, str>,
    pub(crate) time: Time,
    #[serde(borrow)]
    pub(crate) kernel: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) machine: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) boot_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) hooks: Vec<HookRecord<'a>>,
    #[serde(borrow)]
    pub(crate) options: OptionsRecord<'a>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct HookRecord<'a> {
    #[serde(borrow)]
    pub(crate) role: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) symbol: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) mechanism: Cow<'a, str>,
    pub(crate) attached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct OptionsRecord<'a> {
    #[serde(borrow)]
    pub(crate) detail: Cow<'a, str>,
    pub(crate) failures: bool,
    /// Executables and command lines of senders were not to be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) no_cmdline: bool,
}

impl<'a> SessionRecord<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self {
            schema: SCHEMA,
            tool: session.tool.as_str().into(),
            time: Time::of(session.clock, session.started),
            kernel: session.kernel.as_str().into(),
            machine: session.machine.as_str().into(),
            boot_id: session.boot_id.as_deref().map(Cow::from),
            hooks: session.hooks.iter().map(HookRecord::new).collect(),
            options: OptionsRecord {
                detail: session.request.detail.name().into(),
                failures: session.request.failures,
                no_cmdline: !session.request.commands,
            },
        }
    }
}

impl<'a> HookRecord<'a> {
    fn new(hook: &'a AttachedHook) -> Self {
        let (attached, reason) = match &hook.state {
            HookState::Attached => (true, None),
            HookState::NotAttached { reason, cost: _ } => (false, Some(reason.as_str().into())),
        };
        Self {
            role: hook.role.name().into(),
            symbol: hook.symbol.as_ref().into(),
            mechanism: hook.mechanism.name().into(),
            attached,
            reason,
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct RaceRecord<'a> {
    pub(crate) time: Time,
    #[serde(borrow)]
    pub(crate) class: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) protocol: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<u32>,
    pub(crate) zone: u16,
    pub(crate) contested: EndsRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlap_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nat: Option<NatRecord>,
    #[serde(borrow)]
    pub(crate) winner: FlowRecord<'a>,
    #[serde(borrow)]
    pub(crate) loser: FlowRecord<'a>,
    /// Hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) packet: Option<Cow<'a, str>>,
}

impl<'a> RaceRecord<'a> {
    pub(crate) fn new(race: &'a Race, clock: WallClock) -> Self {
        let flow = |flow: &'a Flow, zone| FlowRecord::new(flow, zone, race.protocol, clock);
        Self {
            time: Time::of(clock, race.time),
            class: race.class.name().into(),
            verdict: race.verdict.map(|verdict| Verdict::name(verdict).into()),
            protocol: race.protocol.to_string().into(),
            netns: number(race.netns),
            zone: race.zone,
            contested: EndsRecord::new(race.contested.ends(), race.protocol),
            overlap_ns: race.overlap.map(nanoseconds),
            nat: race.nat.map(|rule| NatRecord {
                random: rule.random,
                min_port: rule.ports.map(|(min, _)| min),
                max_port: rule.ports.map(|(_, max)| max),
                in_range: race.port_use.map(|ports| ports.in_range),
                in_use: race.port_use.and_then(|ports| ports.in_use),
            }),
            winner: flow(&race.winner, race.winner_zone),
            loser: flow(&race.loser, race.zone),
            packet: (!race.packet.is_empty()).then(|| hex(&race.packet).into()),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct EndsRecord {
    pub(crate) src: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dst: IpAddr,
    /// ICMP has no ports; its id stands in `sport`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dport: Option<u16>,
}

impl EndsRecord {
    fn new(Ends { source, destination }: Ends, protocol: Protocol) -> Self {
        Self {
            src: source.ip(),
            sport: source.port(),
            dst: destination.ip(),
            dport: (!protocol.is_icmp()).then(|| destination.port()),
        }
    }
}

#[derive(Clone, Copy, Deserialize, Serialize)]
pub(crate) struct NatRecord {
    pub(crate) random: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_port: Option<u16>,
    /// How many ports there were to choose from, where the class is about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_range: Option<u32>,
    /// How many of them were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_use: Option<u32>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct FlowRecord<'a> {
    pub(crate) original: EndsRecord,
    pub(crate) zone: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allocated: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inserted: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<OwnerRecord<'a>>,
    /// Where answers go, where the owner is not known.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) behind: Option<BehindRecord<'a>>,
}

impl<'a> FlowRecord<'a> {
    fn new(flow: &'a Flow, zone: u16, protocol: Protocol, clock: WallClock) -> Self {
        Self {
            original: EndsRecord::new(flow.original.ends(), protocol),
            zone,
            allocated: flow.allocated.map(|time| Time::of(clock, time)),
            inserted: flow.inserted.map(|time| Time::of(clock, time)),
            cpu: flow.cpu,
            owner: flow.owner.as_ref().map(OwnerRecord::new),
            behind: flow.behind.as_ref().map(BehindRecord::new),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct FailureRecord<'a> {
    pub(crate) time: Time,
    #[serde(borrow)]
    pub(crate) reason: Cow<'a, str>,
    /// What the kernel returned, as in errno(3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errno: Option<i32>,
    #[serde(borrow)]
    pub(crate) protocol: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<u32>,
    pub(crate) zone: u16,
    #[serde(borrow)]
    pub(crate) flow: FlowRecord<'a>,
}

impl<'a> FailureRecord<'a> {
    pub(crate) fn new(failure: &'a Failure, clock: WallClock) -> Self {
        Self {
            time: Time::of(clock, failure.time),
            reason: failure.reason.name().into(),
            errno: failure.errno,
            protocol: failure.protocol.to_string().into(),
            netns: number(failure.netns),
            zone: failure.zone,
            flow: FlowRecord::new(&failure.flow, failure.zone, failure.protocol, clock),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct OwnerRecord<'a> {
    pub(crate) pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tid: Option<u32>,
    #[serde(borrow)]
    pub(crate) comm: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<ContainerRecord<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<PodRecord<'a>>,
    /// Real user id in the root user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    /// When the process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<Time>,
    /// Process id in the innermost pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) own_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exe: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmdline: Option<Cow<'a, [String]>>,
    /// Whether there is more of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cmdline_cut: bool,
    #[serde(borrow)]
    pub(crate) source: Cow<'a, str>,
}

impl<'a> OwnerRecord<'a> {
    fn new(owner: &'a Owner) -> Self {
        let Owner { pid, tid, comm, netns, cgroup_id, cgroup, container, pod, program, source } = owner;
        let Program { uid, started, own_pid, executable, command_line } = program;
        Self {
            pid: *pid,
            tid: *tid,
            comm: comm.as_str().into(),
            netns: number(*netns),
            cgroup_id: *cgroup_id,
            cgroup: cgroup.as_deref().map(Cow::from),
            container: container.as_ref().map(ContainerRecord::new),
            pod: pod.as_ref().map(PodRecord::new),
            uid: *uid,
            started: started.map(Time),
            own_pid: *own_pid,
            exe: executable.as_deref().map(Cow::from),
            cmdline: command_line.as_ref().map(|line| line.words.as_slice().into()),
            cmdline_cut: command_line.as_ref().is_some_and(|line| line.cut),
            source: source.name().into(),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct ContainerRecord<'a> {
    #[serde(borrow)]
    pub(crate) runtime: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<Cow<'a, str>>,
}

impl<'a> ContainerRecord<'a> {
    fn new(Container { runtime, id, name, image }: &'a Container) -> Self {
        Self {
            runtime: runtime.as_ref().into(),
            id: id.as_str().into(),
            name: name.as_deref().map(Cow::from),
            image: image.as_deref().map(Cow::from),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct PodRecord<'a> {
    #[serde(borrow)]
    pub(crate) namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) uid: Cow<'a, str>,
}

impl<'a> PodRecord<'a> {
    fn new(Pod { namespace, name, uid }: &'a Pod) -> Self {
        Self { namespace: namespace.as_str().into(), name: name.as_str().into(), uid: uid.as_str().into() }
    }
}

/// What answers to a flow go to.
#[derive(Deserialize, Serialize)]
pub(crate) struct BehindRecord<'a> {
    #[serde(borrow)]
    pub(crate) interface: Cow<'a, str>,
    /// Of that interface, a bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Cow<'a, str>>,
    /// At the other end of that interface or port, a veth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<ContainerRecord<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<PodRecord<'a>>,
}

impl<'a> BehindRecord<'a> {
    fn new(Behind { interface, port, netns, container, pod }: &'a Behind) -> Self {
        Self {
            interface: interface.as_str().into(),
            port: port.as_deref().map(Cow::from),
            netns: number(*netns),
            container: container.as_ref().map(ContainerRecord::new),
            pod: pod.as_ref().map(PodRecord::new),
        }
    }
}

/// What one network namespace counted since it was first read.
#[derive(Deserialize, Serialize)]
pub(crate) struct SampleRecord {
    pub(crate) time: Time,
    pub(crate) netns: u32,
    pub(crate) counters: Map<u64>,
    /// Readings that are missing since the one before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left_out: u64,
}

impl SampleRecord {
    pub(crate) fn new(sample: &Sample, clock: WallClock) -> Self {
        let Sample { time, netns, counters, left_out } = *sample;
        Self { time: Time::of(clock, time), netns: netns.0, counters: known(counters), left_out }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What translates sources in one network namespace, and what of it makes races likely.
#[derive(Deserialize, Serialize)]
pub(crate) struct RulesRecord<'a> {
    pub(crate) time: Time,
    pub(crate) netns: u32,
    /// Of the connection tracking table, and how many there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_entries: Option<u64>,
    /// Whether the recorder ran in it; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) own: Option<bool>,
    /// Whether names and addresses are exchanged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) redacted: bool,
    pub(crate) rules: Cow<'a, [RuleShown]>,
    pub(crate) findings: Cow<'a, [Finding]>,
    /// What could not be read, and why.
    pub(crate) not_read: Cow<'a, [String]>,
}

impl<'a> RulesRecord<'a> {
    pub(crate) fn new(time: Time, rules: &'a Rules) -> Self {
        let Rules { time: _, netns, entries, own, redacted, audit } = rules;
        let Audit { findings, rules, namespaces: _, not_read } = audit;
        let (entries, max_entries) = entries.unzip();
        Self {
            time,
            netns: netns.0,
            entries,
            max_entries,
            own: *own,
            redacted: *redacted,
            rules: rules.into(),
            findings: findings.into(),
            not_read: not_read.into(),
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct SummaryRecord<'a> {
    pub(crate) time: Time,
    pub(crate) duration_ns: u64,
    /// That came to source NAT; absent where allocations were not traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<u64>,
    pub(crate) races: RacesRecord,
    pub(crate) classes: Map<u64>,
    /// How the races of class `snat-port-collision` came by their port.
    pub(crate) port_choice: PortChoiceRecord,
    #[serde(borrow)]
    pub(crate) accounts: Vec<AccountRecord<'a>>,
    /// Races in no account, as they came before the first or after the last reading of the counters.
    pub(crate) outside: u64,
    /// Network namespaces that went away while watched.
    pub(crate) ended: u64,
    /// Modules that were unloaded while watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) hooks_gone: Vec<Cow<'a, str>>,
    /// Failures that are no race, by reason; absent where they were not traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<Map<u64>>,
    pub(crate) lost: Map<u64>,
    /// Facts absent from events, by reason.
    pub(crate) incomplete: Map<u64>,
    pub(crate) closes: bool,
    pub(crate) advice: Vec<Cow<'a, str>>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct RacesRecord {
    pub(crate) dropped: u64,
    pub(crate) resolved: u64,
    pub(crate) undecided: u64,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct PortChoiceRecord {
    /// By a rule with a random flag.
    pub(crate) random: u64,
    /// By a rule without one that allows few ports.
    pub(crate) narrow: u64,
    /// By another rule without one, the loser keeping its original port.
    pub(crate) kept: u64,
    /// By a rule that is not known, the loser keeping its original port.
    pub(crate) kept_rule_unknown: u64,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct AccountRecord<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) counters: Option<Map<u64>>,
    /// Why there are no counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Cow<'a, str>>,
    pub(crate) explained: Map<u64>,
    pub(crate) unexplained: Map<i64>,
    /// Whether the counters are those of the whole time.
    pub(crate) complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Cow<'a, str>>,
}

impl<'a> SummaryRecord<'a> {
    pub(crate) fn new(summary: &'a Summary) -> Self {
        let PortChoice { random, narrow, kept, kept_rule_unknown } = summary.port_choice;
        let named = |(name, count): (&'static str, u64)| (Cow::from(name), count);
        Self {
            time: Time::of(summary.span.clock, summary.span.ended),
            duration_ns: nanoseconds(summary.span.duration()),
            connections: summary.connections,
            races: RacesRecord { dropped: summary.dropped, resolved: summary.resolved, undecided: summary.undecided },
            classes: Map(summary.classes.iter().map(|&(class, count)| named((class.name(), count))).collect()),
            port_choice: PortChoiceRecord { random, narrow, kept, kept_rule_unknown },
            accounts: summary.accounts.iter().map(AccountRecord::new).collect(),
            outside: summary.outside,
            ended: summary.ended,
            hooks_gone: summary.hooks_gone.iter().map(|module| module.as_str().into()).collect(),
            failures: summary
                .failures
                .as_ref()
                .map(|failures| Map(failures.iter().map(|&(reason, count)| named((reason.name(), count))).collect())),
            lost: Map(summary.lost.clone()),
            incomplete: Map(summary.incomplete.clone()),
            closes: summary.closes(),
            advice: summary.advice().into_iter().map(Cow::from).collect(),
        }
    }
}

impl<'a> AccountRecord<'a> {
    fn new(account: &'a Account) -> Self {
        let explained = account.explained.named().into_iter().map(|(name, count)| (name.into(), count)).collect();
        Self {
            netns: number(account.netns),
            counters: account.counters.as_ref().ok().map(|&counters| known(counters)),
            error: account.counters.as_ref().err().map(|error| error.as_str().into()),
            explained: Map(explained),
            unexplained: known(account.unexplained),
            complete: account.complete,
            note: account.note.as_deref().map(Cow::from),
        }
    }
}

/// The counters this kernel has.
fn known<V>(tally: Tally<Option<V>>) -> Map<V> {
    Map(tally.named().into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect())
}

/// Names and numbers as a JSON object, in their order.
#[derive(Debug)]
pub(crate) struct Map<V>(pub(crate) Vec<(Cow<'static, str>, V)>);

impl<V: Copy> Map<V> {
    /// The number of a name.
    pub(crate) fn get(&self, name: &str) -> Option<V> {
        self.0.iter().find(|(known, _)| known == name).map(|&(_, value)| value)
    }
}

impl<V: Serialize> Serialize for Map<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Map<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = Map<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    pairs.push((name.into(), value));
                }
                Ok(Map(pairs))
            }
        }

        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

fn number(netns: Option<NetnsInum>) -> Option<u32> {
    netns.map(|netns| netns.0)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
