//! One JSON object per line.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use super::Sink;
use super::escape::steers;
use crate::counters::account::Account;
use crate::counters::figures::Tally;
use crate::owner::Owner;
use crate::probe::HookState;
use crate::race::event::{Flow, Race, Verdict};
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, Protocol};
use crate::session::Session;
use crate::summary::Summary;

/// Version of the records; grows only when a field changes its meaning.
const SCHEMA: u32 = 1;

/// Writes JSON lines.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
}

impl<W: Write> JsonSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        record.serialize(&mut serde_json::Serializer::with_formatter(&mut self.out, Harmless))?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn session(&mut self, session: &Session) -> io::Result<()> {
        let hooks = session
            .hooks
            .iter()
            .map(|hook| {
                let (attached, reason) = match &hook.state {
                    HookState::Attached => (true, None),
                    HookState::NotAttached { reason, cost: _ } => (false, Some(reason.as_str())),
                };
                HookRecord {
                    role: hook.role.name(),
                    symbol: hook.symbol,
                    mechanism: hook.mechanism.name(),
                    attached,
                    reason,
                }
            })
            .collect();
        self.line(&SessionRecord {
            r#type: "session",
            schema: SCHEMA,
            tool: concat!("snat-trace ", env!("CARGO_PKG_VERSION")),
            time: wall(session.clock, session.started),
            kernel: &session.kernel,
            machine: &session.machine,
            boot_id: session.boot_id.as_deref(),
            hooks,
            options: OptionsRecord { detail: session.request.detail.name(), failures: session.request.failures },
        })
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        self.line(&RaceRecord::new(race, clock))
    }

    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()> {
        self.line(&FailureRecord::new(failure, clock))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&SummaryRecord::new(summary))
    }
}

/// Writes what could steer a terminal as JSON's own escapes, so that a line may be looked at as it is. Control
/// characters below the space serde_json escapes itself.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for piece in fragment.split_inclusive(steers) {
            let plain = piece.trim_end_matches(steers);
            writer.write_all(plain.as_bytes())?;
            for unit in piece[plain.len()..].encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct SessionRecord<'a> {
    r#type: &'static str,
    schema: u32,
    tool: &'static str,
    time: String,
    kernel: &'a str,
    machine: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<&'a str>,
    hooks: Vec<HookRecord<'a>>,
    options: OptionsRecord,
}

#[derive(Serialize)]
struct HookRecord<'a> {
    role: &'static str,
    symbol: &'static str,
    mechanism: &'static str,
    attached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct OptionsRecord {
    detail: &'static str,
    failures: bool,
}

#[derive(Serialize)]
struct RaceRecord<'a> {
    r#type: &'static str,
    time: String,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    zone: u16,
    contested: EndsRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<NatRecord>,
    winner: FlowRecord<'a>,
    loser: FlowRecord<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<String>,
}

impl<'a> RaceRecord<'a> {
    fn new(race: &'a Race, clock: WallClock) -> Self {
        let flow = |flow: &'a Flow, zone| FlowRecord::new(flow, zone, race.protocol, clock);
        Self {
            r#type: "race",
            time: wall(clock, race.time),
            class: race.class.name(),
            verdict: race.verdict.map(Verdict::name),
            protocol: race.protocol.to_string(),
            netns: race.netns.map(|netns| netns.0),
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
            packet: (!race.packet.is_empty()).then(|| hex(&race.packet)),
        }
    }
}

#[derive(Serialize)]
struct EndsRecord {
    src: IpAddr,
    sport: u16,
    dst: IpAddr,
    /// ICMP has no ports; its id stands in `sport`.
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
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

#[derive(Serialize)]
struct NatRecord {
    random: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_port: Option<u16>,
    /// How many ports there were to choose from, where the class is about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_range: Option<u32>,
    /// How many of them were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<u32>,
}

#[derive(Serialize)]
struct FlowRecord<'a> {
    original: EndsRecord,
    zone: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inserted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerRecord<'a>>,
}

impl<'a> FlowRecord<'a> {
    fn new(flow: &'a Flow, zone: u16, protocol: Protocol, clock: WallClock) -> Self {
        Self {
            original: EndsRecord::new(flow.original.ends(), protocol),
            zone,
            allocated: flow.allocated.map(|time| wall(clock, time)),
            inserted: flow.inserted.map(|time| wall(clock, time)),
            cpu: flow.cpu,
            owner: flow.owner.as_ref().map(OwnerRecord::new),
        }
    }
}

#[derive(Serialize)]
struct FailureRecord<'a> {
    r#type: &'static str,
    time: String,
    reason: &'static str,
    /// What the kernel returned, as in errno(3).
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    zone: u16,
    flow: FlowRecord<'a>,
}

impl<'a> FailureRecord<'a> {
    fn new(failure: &'a Failure, clock: WallClock) -> Self {
        Self {
            r#type: "insert-failure",
            time: wall(clock, failure.time),
            reason: failure.reason.name(),
            errno: failure.errno,
            protocol: failure.protocol.to_string(),
            netns: failure.netns.map(|netns| netns.0),
            zone: failure.zone,
            flow: FlowRecord::new(&failure.flow, failure.zone, failure.protocol, clock),
        }
    }
}

#[derive(Serialize)]
struct OwnerRecord<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u32>,
    comm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerRecord<'a>>,
    source: &'static str,
}

impl<'a> OwnerRecord<'a> {
    fn new(owner: &'a Owner) -> Self {
        let Owner { pid, tid, comm, netns, cgroup_id, cgroup, container, source } = owner;
        Self {
            pid: *pid,
            tid: *tid,
            comm,
            netns: netns.map(|netns| netns.0),
            cgroup_id: *cgroup_id,
            cgroup: cgroup.as_deref(),
            container: container
                .as_ref()
                .map(|container| ContainerRecord { runtime: container.runtime, id: &container.id }),
            source: source.name(),
        }
    }
}

#[derive(Serialize)]
struct ContainerRecord<'a> {
    runtime: &'static str,
    id: &'a str,
}

/// RFC 3339, UTC, nine digits of a second.
fn wall(clock: WallClock, time: KernelTime) -> String {
    format!("{:.9}", clock.wall(time))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Serialize)]
struct SummaryRecord<'a> {
    r#type: &'static str,
    time: String,
    duration_ns: u64,
    races: RacesRecord,
    classes: Map<u64>,
    accounts: Vec<AccountRecord<'a>>,
    /// Races in no account, as they came before the first or after the last reading of the counters.
    outside: u64,
    /// Network namespaces that went away while watched.
    ended: u64,
    /// Modules that were unloaded while watched.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    hooks_gone: &'a [String],
    /// Failures that are no race, by reason; absent where they were not traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<Map<u64>>,
    lost: Map<u64>,
    /// Facts absent from events, by reason.
    incomplete: Map<u64>,
    closes: bool,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct RacesRecord {
    dropped: u64,
    resolved: u64,
    undecided: u64,
}

#[derive(Serialize)]
struct AccountRecord<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<Map<u64>>,
    /// Why there are no counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    explained: Map<u64>,
    unexplained: Map<i64>,
    /// Whether the counters are those of the whole time.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

impl<'a> SummaryRecord<'a> {
    fn new(summary: &'a Summary) -> Self {
        Self {
            r#type: "summary",
            time: wall(summary.span.clock, summary.span.ended),
            duration_ns: nanoseconds(summary.span.duration()),
            races: RacesRecord { dropped: summary.dropped, resolved: summary.resolved, undecided: summary.undecided },
            classes: Map(summary.classes.iter().map(|&(class, count)| (class.name(), count)).collect()),
            accounts: summary.accounts.iter().map(AccountRecord::new).collect(),
            outside: summary.outside,
            ended: summary.ended,
            hooks_gone: &summary.hooks_gone,
            failures: summary
                .failures
                .as_ref()
                .map(|failures| Map(failures.iter().map(|&(reason, count)| (reason.name(), count)).collect())),
            lost: Map(summary.lost.clone()),
            incomplete: Map(summary.incomplete.clone()),
            closes: summary.closes(),
            advice: summary.advice(),
        }
    }
}

impl<'a> AccountRecord<'a> {
    fn new(account: &'a Account) -> Self {
        Self {
            netns: account.netns.map(|netns| netns.0),
            counters: account.counters.as_ref().ok().map(|&counters| Map(known(counters))),
            error: account.counters.as_ref().err().map(String::as_str),
            explained: Map(account.explained.named().to_vec()),
            unexplained: Map(known(account.unexplained)),
            complete: account.complete,
            note: account.note,
        }
    }
}

/// The counters this kernel has.
fn known<V>(tally: Tally<Option<V>>) -> Vec<(&'static str, V)> {
    tally.named().into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

/// Pairs as a JSON object, in their order.
struct Map<V>(Vec<(&'static str, V)>);

impl<V: Serialize> Serialize for Map<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
