//! Everything known of one race, or of one failure.

use std::fmt;

use super::{clock_time, duration};
use crate::output::escape;
use crate::owner::{Behind, CommandLine, Container, Owner, OwnerSource, Pod, Program};
use crate::race::event::{Flow, NatRule, PortUse, Race, Verdict};
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, Protocol};

/// Bytes of a packet in a line of 80 columns.
const PACKET_LINE: usize = 32;

/// The block below a race's line.
pub(crate) struct Block<'a> {
    pub(crate) race: &'a Race,
    pub(crate) clock: WallClock,
    pub(crate) zone: &'a jiff::tz::TimeZone,
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Race { class, verdict, protocol, zone, winner_zone, contested, overlap, nat, winner, loser, .. } =
            self.race;
        let verdict = verdict.map_or("verdict unknown", Verdict::name);
        let netns = self.race.netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string());
        line(f, "class", format_args!("{class}, {verdict}"))?;
        let winners = if zone == winner_zone { String::new() } else { format!(", the winner's {winner_zone}") };
        line(f, "where", format_args!("netns {netns}, conntrack zone {zone}{winners}"))?;
        line(f, "contested", format_args!("{protocol} {}", ends(contested.ends(), *protocol)))?;
        if let Some(NatRule { random, ports }) = nat {
            let random = if *random { "random" } else { "no random flag" };
            match ports {
                Some((min, max)) => line(f, "rule", format_args!("ports {min}-{max}, {random}"))?,
                None => line(f, "rule", format_args!("any port, {random}"))?,
            }
        }
        if let Some(PortUse { in_range, in_use }) = self.race.port_use {
            let in_use = in_use.map_or_else(|| "unknown".to_owned(), |in_use| in_use.to_string());
            let destination = contested.ends().destination;
            line(f, "ports", format_args!("{in_use} of {in_range} in use toward {destination}"))?;
        }
        let when = When { clock: self.clock, zone: self.zone };
        write_flow(f, "loser", loser, *protocol, when)?;
        write_flow(f, "winner", winner, *protocol, when)?;
        if let Some(overlap) = overlap {
            let overlap = duration(*overlap);
            line(f, "overlap", format_args!("{overlap}, from the later request for a port to the winner's insert"))?;
        }
        for (index, bytes) in self.race.packet.chunks(PACKET_LINE).enumerate() {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            line(f, if index == 0 { "packet" } else { "" }, format_args!("{hex}"))?;
        }
        Ok(())
    }
}

/// The block below a failure's line.
pub(super) struct FailureBlock<'a> {
    pub(super) failure: &'a Failure,
    pub(super) clock: WallClock,
    pub(super) zone: &'a jiff::tz::TimeZone,
}

impl fmt::Display for FailureBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { reason, errno, protocol, netns, zone, flow, .. } = self.failure;
        let error = errno.map_or_else(String::new, |errno| format!(" (error {errno})"));
        let netns = netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string());
        line(f, "failure", format_args!("{reason}{error}: {}", reason.text()))?;
        line(f, "where", format_args!("netns {netns}, conntrack zone {zone}"))?;
        write_flow(f, "flow", flow, *protocol, When { clock: self.clock, zone: self.zone })
    }
}

/// How times are told.
#[derive(Clone, Copy)]
struct When<'a> {
    clock: WallClock,
    zone: &'a jiff::tz::TimeZone,
}

impl When<'_> {
    /// A time of day to the nanosecond.
    fn moment(self, time: KernelTime) -> String {
        clock_time(self.clock.wall(time), self.zone, "%H:%M:%S%.9f")
    }
}

fn write_flow(f: &mut fmt::Formatter<'_>, side: &str, flow: &Flow, protocol: Protocol, when: When<'_>) -> fmt::Result {
    line(f, side, format_args!("{}", ends(flow.original.ends(), protocol)))?;
    if let Some(allocated) = flow.allocated {
        let cpu = flow.cpu.map_or_else(String::new, |cpu| format!(" on CPU {cpu}"));
        line(f, "", format_args!("asked for a port {}{cpu}", when.moment(allocated)))?;
    }
    if let Some(inserted) = flow.inserted {
        line(f, "", format_args!("inserted         {}", when.moment(inserted)))?;
    }
    match &flow.owner {
        Some(owner) => sender(f, owner, when.zone),
        None => {
            line(f, "", format_args!("sender unknown"))?;
            flow.behind.as_ref().map_or(Ok(()), |behind| write_behind(f, behind))
        }
    }
}

/// Where answers to a flow go.
fn write_behind(f: &mut fmt::Formatter<'_>, behind: &Behind) -> fmt::Result {
    let Behind { interface, port, netns, container, pod } = behind;
    let port = port.as_deref().map_or_else(String::new, |port| format!(", port {}", escape(port)));
    let netns = netns.map_or_else(String::new, |netns| format!(", into netns {}", netns.0));
    line(f, "", format_args!("answers go to {}{port}{netns}", escape(interface)))?;
    place(f, container.as_ref(), pod.as_ref())
}

fn sender(f: &mut fmt::Formatter<'_>, owner: &Owner, zone: &jiff::tz::TimeZone) -> fmt::Result {
    let Owner { pid, tid, comm, netns, cgroup_id, cgroup, container, pod, program, source } = owner;
    let thread = tid.filter(|tid| tid != pid).map_or_else(String::new, |tid| format!(" thread {tid}"));
    let netns = netns.map_or_else(String::new, |netns| format!(", netns {}", netns.0));
    let source = match source {
        OwnerSource::Socket => "seen sending",
        OwnerSource::SocketConnect => "seen connecting its socket, which is gone",
        OwnerSource::SocketLookup => "looked up by its socket after the clash",
    };
    line(f, "", format_args!("{}[{pid}]{thread}{netns}; {source}", escape(comm)))?;
    runs(f, *pid, program, zone)?;
    match (cgroup, cgroup_id) {
        (Some(path), _) => line(f, "", format_args!("cgroup {}", escape(path)))?,
        (None, Some(id)) => line(f, "", format_args!("cgroup with id {id}, gone"))?,
        (None, None) => {}
    }
    place(f, container.as_ref(), pod.as_ref())
}

fn place(f: &mut fmt::Formatter<'_>, container: Option<&Container>, pod: Option<&Pod>) -> fmt::Result {
    if let Some(Pod { namespace, name, uid }) = pod {
        line(f, "", format_args!("pod {}/{}, uid {}", escape(namespace), escape(name), escape(uid)))?;
    }
    if let Some(Container { runtime, id, name, image }) = container {
        line(f, "", format_args!("{} {}", escape(runtime), escape(id)))?;
        let name = name.as_deref().map(|name| format!("container {}", escape(name)));
        let image = image.as_deref().map(|image| format!("image {}", escape(image)));
        let words: Vec<String> = [name, image].into_iter().flatten().collect();
        if !words.is_empty() {
            line(f, "", format_args!("{}", words.join(", ")))?;
        }
    }
    Ok(())
}

/// What the process runs, as whom, since when.
fn runs(f: &mut fmt::Formatter<'_>, pid: u32, program: &Program, zone: &jiff::tz::TimeZone) -> fmt::Result {
    let Program { uid, started, own_pid, executable, command_line } = program;
    let facts = [
        executable.as_deref().map(|path| format!("runs {}", escape(path))),
        uid.map(|uid| format!("uid {uid}")),
        started.map(|started| format!("since {}", started.to_zoned(zone.clone()).strftime("%F %H:%M:%S%.3f"))),
        own_pid.filter(|&own| own != pid).map(|own| format!("pid {own} in its own namespace")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    if !facts.is_empty() {
        line(f, "", format_args!("{}", facts.join(", ")))?;
    }
    match command_line {
        Some(CommandLine { words, cut }) => {
            let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
            let more = if *cut { " (and more)" } else { "" };
            line(f, "", format_args!("called as {}{more}", words.join(" ")))
        }
        None => Ok(()),
    }
}

/// A word of a command line, told apart from its neighbours.
fn quoted(word: &str) -> String {
    let plain = escape(word).to_string();
    if word.is_empty() || word.contains(char::is_whitespace) { format!("\"{plain}\"") } else { plain }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, what: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "    {name:<9}  {what}")
}

/// ICMP has an id and no ports.
fn ends(Ends { source, destination }: Ends, protocol: Protocol) -> String {
    if protocol.is_icmp() {
        format!("{} > {}, id {}", source.ip(), destination.ip(), source.port())
    } else {
        format!("{source} > {destination}")
    }
}
