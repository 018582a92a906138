//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use snat_trace::kernel::Detail;
use snat_trace::lab::{Control, Mode, Scenario, Setup};
use snat_trace::race::event::{Class, NetnsInum};
use snat_trace::race::filter::{Filter, Prefix};
use snat_trace::race::tuple::Protocol;

/// Names both flows, processes and containers of every SNAT port race on this node.
///
/// Linux gives a new connection its translated source port and only later puts the connection into the conntrack table.
/// Two connections on two CPUs can be given the same port in between; the second insert fails, its first packet is
/// dropped, and the sender waits for a retransmit. snat-trace says so as it happens.
#[derive(Debug, Parser)]
#[command(name = "snat-trace", version, args_conflicts_with_subcommands = true)]
#[command(
    after_long_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not enough privilege; 4 this kernel cannot \
                             be traced; 10 races were seen and --fail-on-race was given."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
    /// What snat-trace says of itself, on standard error
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true)]
    pub(crate) log_level: LogLevel,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print races as they happen, then a summary; what snat-trace does without a command
    Watch(WatchArgs),
    /// Make real races in network namespaces of its own, trace them, and compare with what really happened
    Lab(LabArgs),
    /// Say whether this node can be traced, by which hooks, and what is missing; changes nothing
    Doctor(DoctorArgs),
    /// A pod of a lab; started by the lab only
    #[command(hide = true)]
    LabPod {
        #[arg(hide = true)]
        words: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// One aligned line per race
    Text,
    /// One JSON object per line
    Json,
}

/// What every command that traces takes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TraceArgs {
    /// Which hooks: the clash hook alone (free), or allocations, insertions and senders too
    #[arg(long, value_name = "LEVEL", default_value_t = Detail::Full)]
    pub(crate) detail: Detail,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
    /// Print everything known of each race below its line
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Size of the kernel's ring buffer in bytes; rounded up to a power of two of pages
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub(crate) ring_bytes: u32,
    /// How many entries and senders the kernel remembers; the least recently used goes first
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) flows: u32,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// Stop after this long, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Stop after this many races were shown
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Create this file once every hook is attached
    #[arg(long, value_name = "PATH")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Wait for connection tracking to be loaded, rather than fail
    #[arg(long)]
    pub(crate) wait: bool,
    /// Exit with 10 when a race was seen
    #[arg(long)]
    pub(crate) fail_on_race: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// Which races to show; the summary counts all.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filters (what is shown; the summary counts all)")]
pub(crate) struct FilterArgs {
    /// Network namespace of the entries, by inode number
    #[arg(long, value_name = "INUM")]
    netns: Option<u32>,
    /// Protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<Protocol>,
    /// Original source of either flow, an address or prefix
    #[arg(long, value_name = "ADDRESS")]
    src: Option<Prefix>,
    /// Original destination of either flow, an address or prefix
    #[arg(long, value_name = "ADDRESS")]
    dst: Option<Prefix>,
    /// Process id of either sender
    #[arg(long)]
    pid: Option<u32>,
    /// Part of the cgroup path of either sender
    #[arg(long, value_name = "TEXT")]
    cgroup: Option<String>,
    /// Class of the race
    #[arg(long, value_parser = class_parser())]
    class: Option<Class>,
}

impl FilterArgs {
    pub(crate) fn to_filter(&self) -> Filter {
        let Self { netns, proto, src, dst, pid, cgroup, class } = self;
        Filter {
            netns: netns.map(NetnsInum),
            protocol: *proto,
            source: *src,
            destination: *dst,
            pid: *pid,
            cgroup: cgroup.clone(),
            class: *class,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Which hooks to ask for
    #[arg(long, value_name = "LEVEL", default_value_t = Detail::Full)]
    pub(crate) detail: Detail,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct LabArgs {
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// What the pods send: a datagram each (snat-udp) or a connection each (snat-tcp), all from one source port
    #[arg(long, value_name = "NAME", default_value = "snat-udp", value_parser = scenario_parser())]
    pub(crate) scenario: Scenario,
    /// How many pods
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) pods: usize,
    /// How many rounds, each with a new source port
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) rounds: u32,
    /// Widen nothing: leave it to two CPUs whether they race
    #[arg(long, conflicts_with = "control")]
    pub(crate) natural: bool,
    /// Change the one thing without which there is no race
    #[arg(long, value_name = "WHAT")]
    pub(crate) control: Option<ControlArg>,
    /// Show the fix: masquerade with fully-random
    #[arg(long)]
    pub(crate) random_fully: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ControlArg {
    /// Every pod has a source port of its own
    DifferentPorts,
    /// All pods send from one CPU
    OneCpu,
    /// Each pod sends after the one before has arrived
    Sequential,
}

impl LabArgs {
    pub(crate) fn to_setup(&self) -> Setup {
        let mode = match self.control {
            Some(ControlArg::DifferentPorts) => Mode::Control(Control::DifferentPorts),
            Some(ControlArg::OneCpu) => Mode::Control(Control::OneCpu),
            Some(ControlArg::Sequential) => Mode::Control(Control::Sequential),
            None if self.natural => Mode::Natural,
            None => Mode::Forced,
        };
        Setup { scenario: self.scenario, pods: self.pods, rounds: self.rounds, mode, random_fully: self.random_fully }
    }
}

fn scenario_parser() -> impl clap::builder::TypedValueParser<Value = Scenario> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new([Scenario::SnatUdp, Scenario::SnatTcp].map(Scenario::name))
        .map(|name| Scenario::from_name(&name).unwrap_or(Scenario::SnatUdp))
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text:?} is not a time such as 30s, 5m or 1h");
    let span: jiff::SignedDuration = text.parse().map_err(wrong)?;
    Duration::try_from(span).map_err(wrong)
}

fn protocol(text: &str) -> Result<Protocol, String> {
    text.parse().map(Protocol).or_else(|_| {
        [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::DCCP, Protocol::ICMP, Protocol::ICMPV6]
            .into_iter()
            .find(|protocol| protocol.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no protocol known by name; give its number"))
    })
}

fn class_parser() -> impl clap::builder::TypedValueParser<Value = Class> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(Class::ALL.map(Class::name))
        .map(|name| Class::ALL.into_iter().find(|class| class.name() == name).unwrap_or(Class::Unclassified))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_watch() {
        let cli = Cli::try_parse_from(["snat-trace", "--duration", "30s", "--class", "fixed-port"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.watch.duration, Some(Duration::from_secs(30)));
        assert_eq!(cli.watch.filter.to_filter().class, Some(Class::FixedPort));
        assert_eq!(cli.watch.trace.detail, Detail::Full);
    }

    #[test]
    fn values_are_read_as_meant() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("-1s").is_err() && duration("soon").is_err());
        assert_eq!(protocol("udp"), Ok(Protocol::UDP));
        assert_eq!(protocol("47"), Ok(Protocol(47)));
        assert!(protocol("http").is_err() && protocol("256").is_err());
    }
}
