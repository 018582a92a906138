//! The command line.

mod evidence;
mod lab;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use snat_trace::kernel::{Detail, Request};
use snat_trace::probe::Sizes;
use snat_trace::race::event::{Class, NetnsInum};
use snat_trace::race::filter::{Filter, OwnerFilter, Prefix};
use snat_trace::race::tuple::Protocol;

pub(crate) use evidence::{CompareArgs, ExportArgs, RecordArgs, ReplayArgs, ReportArgs, ReportFormat};
pub(crate) use lab::LabArgs;

/// Names both flows, processes and containers of every SNAT port race on this node
///
/// Linux gives a new connection its translated source port first and puts the connection into the conntrack table later.
/// In between, another CPU can give the same port to another connection. Whichever comes second to the table loses its
/// first packet, and its sender waits for a retransmit. snat-trace says so as it happens.
///
/// Without a command it watches: start it as root, and end it with Ctrl-C for the summary.
#[derive(Debug, Parser)]
#[command(name = "snat-trace", version, args_conflicts_with_subcommands = true)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// What snat-trace says of itself, on standard error
    // Stands before the filters: what stands after them has their heading.
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true, hide_short_help = true)]
    pub(crate) log_level: LogLevel,
    #[command(flatten)]
    pub(crate) watch: WatchCommand,
}

const AFTER_HELP: &str = "\
Examples:
  sudo snat-trace                               every race, until Ctrl-C
  sudo snat-trace --tui                         the same as a picture: rates, tops, details
  sudo snat-trace --detail minimal              the same, at no cost until two flows clash
  sudo snat-trace --duration 10m --format json  for a script
  sudo snat-trace record -o evidence.zst        every race, kept for others to see
  snat-trace report --format html evidence.zst  what it comes to, for a bug report
  sudo snat-trace lab                           real races, made here in namespaces of its own

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not enough privilege; 4 this kernel cannot be traced; \
10 races were seen and --fail-on-race was given.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print races as they happen, then a summary (the default)
    #[command(after_long_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not enough privilege; 4 this kernel \
                                 cannot be traced; 10 races were seen and --fail-on-race was given.")]
    Watch(WatchCommand),
    /// The same, and write evidence of it: what the machine is, every event, the counters, the summary
    ///
    /// Prints what watch prints. A reader of that who goes away does not end the recording. The file is compressed and
    /// readable by its owner alone; replay prints it, and one that was cut short is good up to where it was cut. What the
    /// filters leave out is not in it. A full disk ends nothing: evidence waits in memory for room, and what is lost is
    /// counted.
    #[command(after_long_help = "Exit codes: as of watch; 1 also when the evidence is incomplete.")]
    Record(RecordArgs),
    /// Print evidence as watch printed it
    ///
    /// Byte for byte, where text is read in the time zone it was printed in: to have the same on another machine, set the same
    /// TZ. JSON has times of UTC.
    #[command(after_long_help = "Exit codes: 0 done, whether the recording came to its end or not; 1 failed, or this \
                                 is no evidence; 2 wrong usage.")]
    Replay(ReplayArgs),
    /// Make a document of evidence, to attach to a bug report
    ///
    /// The verdict in plain words and what to change come first; then what they stand on: races over time beside the kernel's
    /// counters, how long flows had a port in common, destinations, ports, who lost to whom, the rules, the machine, and what
    /// is not known. Times are UTC. One file of html needs no network and no script.
    #[command(after_long_help = "Exit codes: as of replay.")]
    Report(ReportArgs),
    /// Write the packets that lost, for Wireshark
    ///
    /// One packet for each loser whose first bytes were recorded, as it was translated, at the time it lost, with a comment
    /// that names both flows and their senders. Each network namespace is an interface, each recording a section.
    #[command(after_long_help = "Exit codes: as of replay; 1 also when the new file exists already.")]
    Export(ExportArgs),
    /// Say whether a change helped, from the evidence before and after it
    ///
    /// Compares the rates of races, per new connection where both recordings counted those (at full detail), else per hour,
    /// with 95 % intervals. The verdict is on races that dropped a packet: fixed, better, no change, worse, or not enough
    /// data. What else differs between the two is told as well.
    #[command(
        after_long_help = "Exit codes: 0 compared, whatever the verdict; 1 failed, or one of them is no evidence; 2 \
                                 wrong usage."
    )]
    Compare(CompareArgs),
    /// Make real races in namespaces of its own, trace them, and compare
    ///
    /// Builds pods, a node that masquerades, and an external host as network namespaces of its own; has the pods send at
    /// one instant from one source port; and compares every race traced with what senders, receiver and counters know.
    /// Nothing outside these namespaces is touched, and nothing of them remains. Needs the commands ip and nft.
    #[command(
        after_long_help = "Exit codes: 0 tracing told the truth; 1 it did not, the account does not close, or the \
                                 lab failed; 2 wrong usage; 3 not enough privilege; 4 this kernel cannot be traced."
    )]
    Lab(LabArgs),
    /// Say whether this node can be traced, and what is missing if not
    ///
    /// Says which hooks would be attached where, and what is not known without those that cannot be. Attaches and
    /// changes nothing.
    #[command(
        after_long_help = "Exit codes: 0 it can be traced, perhaps with less detail; 1 failed; 2 wrong usage; 3 not \
                                 enough privilege; 4 it cannot be traced."
    )]
    Doctor(DoctorArgs),
    /// Say what makes races likely on this node: its NAT rules and settings, with the fix for each
    ///
    /// Reads the rules of nft and iptables, of both backends, by these tools themselves, in every network namespace found;
    /// how full the connection tracking table and the ranges of ports are; and some sysctls. Changes nothing.
    #[command(
        after_long_help = "Exit codes: 0 the node was looked at, whatever was found; 1 failed; 2 wrong usage; 3 not \
                                 enough privilege."
    )]
    Audit(AuditArgs),
    /// Print completions for a shell
    ///
    /// For the shell at hand: source <(snat-trace completions bash), snat-trace completions fish | source; zsh wants a file
    /// _snat-trace in a folder of its fpath.
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages, one for each command
    Man {
        /// Where to: a folder that is there
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
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

/// Shells whose completions are made.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs: one object per line
    Json,
}

/// How events are printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ShowArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
    /// Below each line, print everything known of that race
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// What every command that traces takes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TraceArgs {
    /// How much to hook; minimal costs nothing until two flows clash
    #[arg(long, value_name = "LEVEL", default_value_t = Detail::Full)]
    pub(crate) detail: Detail,
    /// Also tell of every connection that did not come into the table without a clash, and why
    ///
    /// A full table, a hash chain too long, an entry that died, a refusal through ctnetlink. Costs probes at the entry and
    /// return of two functions for every new connection, one of them where flows race.
    #[arg(long)]
    pub(crate) failures: bool,
    /// Leave out what senders run: executables and command lines, which may hold secrets. They are not read then
    #[arg(long)]
    pub(crate) no_cmdline: bool,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// Size of the kernel's ring buffer, rounded up to a power of two of pages; more is needed when the summary says
    /// ring-full
    #[arg(long, value_name = "BYTES", default_value_t = Sizes::default().ring_bytes, hide_short_help = true, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub(crate) ring_bytes: u32,
    /// How many new flows and senders are remembered in the kernel, the least recently used going first
    #[arg(long, value_name = "N", default_value_t = Sizes::default().flows, hide_short_help = true, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) flows: u32,
}

impl TraceArgs {
    pub(crate) fn request(self) -> Request {
        Request { failures: self.failures, commands: !self.no_cmdline, ..self.detail.into() }
    }
}

#[derive(Args, Debug)]
pub(crate) struct WatchCommand {
    /// Show a picture on this terminal: rates, the account so far, what is contested most, who loses most, details of each race
    ///
    /// Press ? there for what keys do. Of races the last 1000 are kept; counting goes on whatever is shown. The summary follows.
    #[arg(long, conflicts_with = "verbose")]
    pub(crate) tui: bool,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// Stop after this long, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Stop after showing this many races
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Create this file once every hook is attached
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) ready_file: Option<PathBuf>,
    /// Wait for connection tracking to be loaded, rather than fail
    #[arg(long, hide_short_help = true)]
    pub(crate) wait: bool,
    /// Exit with 10 when a race was seen
    #[arg(long)]
    pub(crate) fail_on_race: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// Which races to show: all that is given holds of one of both flows. The summary counts all.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Filters (all must hold of the loser, or of the winner; the summary counts everything)")]
pub(crate) struct FilterArgs {
    /// Network namespace of the conntrack entries, by inode number (lsns -t net)
    #[arg(long, value_name = "INUM")]
    netns: Option<u32>,
    /// Protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<Protocol>,
    /// Original source of the flow, an address or prefix
    #[arg(long, value_name = "ADDRESS")]
    src: Option<Prefix>,
    /// Original destination of the flow, an address or prefix
    #[arg(long, value_name = "ADDRESS")]
    dst: Option<Prefix>,
    /// Process id of the sender
    #[arg(long)]
    pid: Option<u32>,
    /// Name of the thread that sent, or of the process where it was found by its socket (ps -L -o comm)
    #[arg(long, value_name = "NAME")]
    comm: Option<String>,
    /// Part of the sender's cgroup path
    #[arg(long, value_name = "TEXT")]
    cgroup: Option<String>,
    /// Name of the sender's container, or the beginning of its id; of a sender that is not known, of what is behind its address
    ///
    /// A race whose name did not come in time has none and is not shown. So it is with --pod and --namespace.
    #[arg(long, value_name = "NAME|ID")]
    container: Option<String>,
    /// Part of the name of the sender's pod, or of the pod behind the address of one that is not known
    #[arg(long, value_name = "TEXT")]
    pod: Option<String>,
    /// Namespace of that pod
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Class of the race
    #[arg(long, value_parser = class_parser())]
    class: Option<Class>,
}

impl FilterArgs {
    pub(crate) fn to_filter(&self) -> Filter {
        let Self { netns, proto, src, dst, pid, comm, cgroup, container, pod, namespace, class } = self.clone();
        Filter {
            netns: netns.map(NetnsInum),
            protocol: proto,
            class,
            source: src,
            destination: dst,
            owner: OwnerFilter { pid, comm, cgroup, container, pod, namespace },
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// How much is to be hooked
    #[arg(long, value_name = "LEVEL", default_value_t = Detail::Full)]
    pub(crate) detail: Detail,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct AuditArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text:?} is not a time such as 30s, 5m or 1h");
    let span: jiff::SignedDuration = text.parse().map_err(wrong)?;
    Duration::try_from(span).map_err(wrong)
}

fn protocol(text: &str) -> Result<Protocol, String> {
    text.parse().map_err(|error| format!("{text:?} is {error}"))
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
        assert_eq!(cli.watch.watch.duration, Some(Duration::from_secs(30)));
        assert_eq!(cli.watch.watch.filter.to_filter().class, Some(Class::FixedPort));
        assert_eq!(cli.watch.watch.trace.detail, Detail::Full);
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
