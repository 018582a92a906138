//! One JSON object per line.

use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use super::Sink;
use crate::owner::Owner;
use crate::probe::HookState;
use crate::race::event::{Flow, Race};
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
        serde_json::to_writer(&mut self.out, record)?;
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
                HookRecord { role: hook.role.name(), symbol: hook.symbol, mechanism: "kprobe", attached, reason }
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
            options: OptionsRecord { detail: session.detail.name() },
        })
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        self.line(&RaceRecord::new(race, clock))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&SummaryRecord::new(summary))
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
        let flow = |flow: &'a Flow| FlowRecord {
            original: EndsRecord::new(flow.original.ends(), race.protocol),
            allocated: flow.allocated.map(|time| wall(clock, time)),
            inserted: flow.inserted.map(|time| wall(clock, time)),
            cpu: flow.cpu,
            owner: flow.owner.as_ref().map(OwnerRecord::new),
        };
        Self {
            r#type: "race",
            time: wall(clock, race.time),
            class: race.class.name(),
            verdict: race.verdict.map(|verdict| verdict.name()),
            protocol: race.protocol.to_string(),
            netns: race.netns.map(|netns| netns.0),
            zone: race.zone,
            contested: EndsRecord::new(race.contested.ends(), race.protocol),
            overlap_ns: race.overlap.map(|overlap| u64::try_from(overlap.as_nanos()).unwrap_or(u64::MAX)),
            nat: race.nat.map(|rule| NatRecord {
                random: rule.random,
                min_port: rule.ports.map(|(min, _)| min),
                max_port: rule.ports.map(|(_, max)| max),
            }),
            winner: flow(&race.winner),
            loser: flow(&race.loser),
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
}

#[derive(Serialize)]
struct FlowRecord<'a> {
    original: EndsRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inserted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerRecord<'a>>,
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
