//! What each command does.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal as _, StdoutLock, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use snat_trace::audit::look_at;
use snat_trace::evidence::{Cut, Item, Recorder, clock, read};
use snat_trace::kernel::{CannotTrace, Detail, KernelFacts, MissingReason, Report, plan};
use snat_trace::live::{LiveSink, Log, Look};
use snat_trace::output::json::{JsonSink, to_line};
use snat_trace::output::text::{Style, TextSink};
use snat_trace::output::{Sink, escape_path};
use snat_trace::probe::Sizes;
use snat_trace::watch::{Options, Prepared, Stop, give_way, watch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::{Cli, Command, DoctorArgs, Format, ReplayArgs, ShowArgs, TraceArgs, WatchArgs, WatchCommand};
use crate::{audit, compare, export, lab, manual, report};

/// Races were seen and `--fail-on-race` was given.
const RACES_SEEN: u8 = 10;

/// What failed when standard output takes no more.
const OUTPUT: &str = "cannot write the output";

/// Runs the command.
pub(crate) fn run(cli: Cli, log: &Log) -> Result<ExitCode> {
    let Cli { command, watch, log_level: _ } = cli;
    match command.unwrap_or(Command::Watch(watch)) {
        Command::Watch(WatchCommand { tui, watch }) => {
            let show = watch.trace.show;
            let sink = if tui { live(show, log.clone())? } else { sink(show) };
            let ended = runtime()?.block_on(run_watch(&watch, sink));
            // What is said now is for the normal screen, also where the view has not ended.
            snat_trace::live::leave();
            log.release();
            ended
        }
        Command::Record(args) => {
            let shown = sink(args.watch.trace.show);
            let recorder = Recorder::open(&args.output, args.existing(), args.limits(), args.redact, look_at, shown)?;
            runtime()?.block_on(run_watch(&args.watch, Box::new(recorder)))
        }
        Command::Replay(args) => replay(&args),
        Command::Export(args) => export::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Lab(args) => runtime()?.block_on(lab::run(&args)),
        Command::Doctor(args) => doctor(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(&folder),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}

async fn run_watch(args: &WatchArgs, sink: Box<dyn Sink + Send>) -> Result<ExitCode> {
    give_way();
    let mut stop = std::pin::pin!(stopped()?);
    let options = Options {
        request: args.trace.request(),
        sizes: sizes(args.trace),
        duration: args.duration,
        count: args.count,
        filter: args.filter.to_filter(),
        ready_file: args.ready_file.as_deref(),
        namespaces: &[],
    };
    let prepared = if args.wait {
        tokio::select! {
            facts = conntrack_loaded(args.trace.detail) => facts?.into(),
            _ = &mut stop => return Ok(ExitCode::SUCCESS),
        }
    } else {
        Prepared::gather(Path::new("/"), &options)?
    };
    let summary = watch(prepared, &options, sink, stop).await?;
    if !summary.hooks_gone.is_empty() {
        bail!(
            "{} was unloaded, and the hooks in it are gone: start again, or with --wait",
            summary.hooks_gone.join(" and ")
        );
    }
    Ok(if args.fail_on_race && summary.races() > 0 { RACES_SEEN.into() } else { ExitCode::SUCCESS })
}

fn replay(args: &ReplayArgs) -> Result<ExitCode> {
    let (mut sink, filter) = (sink(args.show), args.filter.to_filter());
    for_each(&args.file, |item| {
        match item {
            Item::Session(session) => sink.session(&session),
            Item::Race(race) if filter.shows(&race) => sink.race(&race, clock()),
            Item::Failure(failure) if filter.shows_failure(&failure) => sink.failure(&failure, clock()),
            Item::Summary(summary) => sink.summary(&summary),
            Item::Node(_) | Item::Rules(_) | Item::Sample(_) | Item::Race(_) | Item::Failure(_) => Ok(()),
        }
        .context(OUTPUT)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what a command has to say; an error tells that it was this.
pub(crate) fn print(write: impl FnOnce(&mut StdoutLock<'_>) -> io::Result<()>) -> Result<()> {
    let mut out = io::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).context(OUTPUT)
}

/// Hands over everything a file of evidence has; says and returns how it ends.
pub(crate) fn for_each(path: &Path, mut take: impl FnMut(Item) -> Result<()>) -> Result<Cut> {
    let name = escape_path(path);
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut evidence = read(file);
    for item in &mut evidence {
        take(item.with_context(|| name.clone())?)?;
    }
    say_how_it_ends(&name, evidence.cut());
    Ok(evidence.cut())
}

/// A warning where evidence does not end as it should.
pub(crate) fn say_how_it_ends(name: &impl Display, cut: Cut) {
    match cut {
        Cut::No => {}
        Cut::NoSummary => tracing::warn!("{name} ends without a summary: its recording was killed, or goes on"),
        Cut::Torn => tracing::warn!("{name} is cut short or damaged: what stands behind the last line is not known"),
    }
}

/// The facts of this kernel once connection tracking is loaded, and NAT too when its hook is asked for.
async fn conntrack_loaded(detail: Detail) -> Result<KernelFacts> {
    let mut said = false;
    loop {
        let facts = KernelFacts::gather(Path::new("/"))?;
        let missing = match plan(&facts, detail) {
            Err(CannotTrace::ConntrackNotLoaded) => "nf_conntrack",
            Ok(plan) if plan.missing.iter().any(|hook| matches!(hook.reason, MissingReason::NotLoaded { .. })) => {
                "nf_nat"
            }
            _ => return Ok(facts),
        };
        if !said {
            tracing::info!("{missing} is not loaded yet; waiting for it");
            said = true;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let report = Report::new(&facts, args.detail);
    print(|out| match args.format {
        Format::Text => write!(out, "{report}"),
        Format::Json => to_line(out, &report),
    })?;
    Ok(report.exit_code().into())
}

pub(crate) fn sizes(args: TraceArgs) -> Sizes {
    Sizes { ring_bytes: args.ring_bytes, flows: args.flows }
}

/// Standard output in the format asked for.
pub(crate) fn sink(args: ShowArgs) -> Box<dyn Sink + Send> {
    let out = io::stdout();
    match args.format {
        Format::Json => Box::new(JsonSink::new(out)),
        Format::Text => {
            let terminal = out.is_terminal();
            let width =
                if terminal { rustix::termios::tcgetwinsize(&out).ok().map(|size| size.ws_col.into()) } else { None };
            let style = Style {
                width: width.filter(|&columns| columns > 0),
                colour: terminal && colour(),
                verbose: args.verbose,
                zone: jiff::tz::TimeZone::system(),
            };
            Box::new(TextSink::new(out, style))
        }
    }
}

/// What the live view cannot be drawn for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CannotDraw {
    /// It is a screen and keys.
    #[error("--tui needs a terminal as standard input and output")]
    NoTerminal,
    /// It is no list of objects.
    #[error("--tui is for people: leave --format json out")]
    Json,
}

/// The terminal as a picture; a summary as text after that.
fn live(args: ShowArgs, log: Log) -> Result<Box<dyn Sink + Send>, CannotDraw> {
    if args.format == Format::Json {
        return Err(CannotDraw::Json);
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(CannotDraw::NoTerminal);
    }
    let look = Look { colour: colour(), zone: jiff::tz::TimeZone::system() };
    Ok(Box::new(LiveSink::new(look, log, look_at, sink(args))))
}

/// Whether the user has nothing against colours.
fn colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Resolves at the first signal that asks us to end. The second one ends us at once, whatever we are at: nothing stays
/// attached, but the summary is not printed. Needs a tokio runtime.
pub(crate) fn stopped() -> Result<impl Future<Output = Stop>> {
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
        terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
        hangup: signal(SignalKind::hangup()).context("cannot catch SIGHUP")?,
    };
    let (tell, first) = oneshot::channel();
    tokio::spawn(async move {
        signals.next().await;
        // Nobody waits for it any more when we are about to end anyway.
        let _ = tell.send(Stop::Now);
        signals.next().await;
        snat_trace::live::leave();
        eprintln!("snat-trace: ended at the second signal");
        std::process::exit(1);
    });
    Ok(async { first.await.unwrap_or(Stop::Now) })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
