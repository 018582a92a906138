//! `snat-trace lab`: races of our own, traced, and compared with what really happened.

mod stall;

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use anyhow::{Context as _, Result};
use serde::Serialize;
use snat_trace::kernel::{Detail, KernelFacts, plan};
use snat_trace::lab::{Comparison, Lab, LabError, Life, Progress, Setup, compare_lives, run_lives};
use snat_trace::output::Sink;
use snat_trace::output::json::to_line;
use snat_trace::race::event::{NetnsInum, Race};
use snat_trace::race::failure::Failure;
use snat_trace::race::filter::Filter;
use snat_trace::race::time::WallClock;
use snat_trace::session::Session;
use snat_trace::summary::Summary;
use snat_trace::watch::{Options, Stop, watch};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::cli::{Format, LabArgs};
use crate::run::{sink, sizes, stopped};
use stall::Stall;

/// Runs the lab and says whether tracing told the truth.
pub(crate) async fn run(args: &LabArgs) -> Result<ExitCode> {
    let setup = args.to_setup();
    setup.check()?;
    if setup.unloads().is_some() && args.trace.detail == Detail::Minimal {
        let why = "at minimal detail there is no hook in nf_nat, so that nothing is missed when it goes".to_owned();
        return Err(LabError::Setup(why).into());
    }
    if setup.scenario.dies() && !args.trace.failures {
        let why = "what dies on its way into the table is told by --failures alone: give that too".to_owned();
        return Err(LabError::Setup(why).into());
    }
    let facts = KernelFacts::gather(Path::new("/"))?;
    // Before anything is built: can it be traced at all?
    plan(&facts, args.trace.detail)?;
    let signal = stopped()?;
    let lab = spawn_blocking(move || Lab::build(&setup.first_life())).await??;
    tracing::info!(
        "lab: {} pods, node namespace {}, {} rounds of {}",
        setup.pods,
        lab.node_inum().0,
        setup.rounds,
        setup.scenario.name()
    );
    if let Some(reason) = lab.without_cgroups() {
        tracing::warn!("lab: the pods have no cgroups of their own: {reason}");
    }

    // One that is to go away nobody may hold, and those that come are not known yet.
    let (stays, netns) = (!setup.goes(), lab.node_inum());
    let node = stays.then(|| lab.node_netns().try_clone_to_owned()).transpose();
    let node: Option<OwnedFd> = node.context("cannot keep the node's namespace")?;
    let filter = Filter { netns: stays.then_some(netns), ..Filter::default() };
    let halt = Arc::new(AtomicBool::new(false));
    let (attached, ready) = mpsc::channel();
    let (over, done) = oneshot::channel();
    let stop_traffic = Arc::clone(&halt);
    let (stall, stalled, unread) = Stall::new();
    let stall = setup.scenario.stalls().then_some(stall);
    let traffic = spawn_blocking(move || {
        let mut lab = Some(lab);
        let lives = run_traffic(&mut lab, &setup, &ready, stall, &stop_traffic);
        // Nobody listens any more when watching has ended for a reason of its own.
        let _ = over.send(());
        (lab, lives)
    });

    let ((seen, races), (told, failures)) = (mpsc::channel(), mpsc::channel());
    let sink = Box::new(LabSink { inner: sink(args.trace.show), attached: Some(attached), seen, told });
    let options = Options {
        request: args.trace.request(),
        sizes: sizes(args.trace),
        duration: None,
        count: None,
        filter,
        ready_file: None,
        namespaces: &node.iter().map(|node| node.as_fd()).collect::<Vec<_>>(),
    };
    let stop = async {
        tokio::select! {
            _ = done => Stop::Over,
            how = signal => how,
            never = stalled => match never {},
        }
    };
    let summary = watch(facts, &options, sink, stop).await;
    halt.store(true, Ordering::Relaxed);
    // The lab is taken down only now: as long as races are named, the sockets of lost flows are looked for.
    let (lab, lives) = traffic.await?;
    drop(lab);
    let summary = summary?;
    let Some(lives) = lives? else { return Ok(ExitCode::FAILURE) };

    let (races, failures) = (races.try_iter().collect::<Vec<_>>(), failures.try_iter().collect::<Vec<_>>());
    let failures = args.trace.failures.then_some(failures.as_slice());
    let mut comparison = compare_lives(&lives, &races, failures, args.trace.detail, &summary);
    if setup.scenario.may_be_too_much() {
        comparison = comparison.with_lost(summary.lost());
    }
    if setup.scenario.stalls() {
        comparison = comparison.with_unread(unread.load(Ordering::Relaxed));
    }
    if let Some(module) = setup.unloads() {
        comparison = comparison.without_module(module, &summary);
    }
    let untold_drops: u64 = lives.iter().map(|life| life.truth.untold_drops(args.trace.failures)).sum();
    let account = |untold_drops| match comparison.counted_as_lost {
        Some(lost) if lost > 0 => lacks(&summary, netns, lost),
        // Those of several labs have been compared.
        _ if !stays => summary.lost() == 0,
        _ => closes(&summary, netns, untold_drops),
    };
    let ok = comparison.ok() && account(untold_drops);
    report(args, &comparison, if stays { closes(&summary, netns, 0) } else { summary.closes() }, ok)?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lab's traffic, once the hooks are attached; `None` when they never were.
fn run_traffic(
    lab: &mut Option<Lab>,
    setup: &Setup,
    attached: &mpsc::Receiver<()>,
    mut stall: Option<Stall>,
    halt: &AtomicBool,
) -> Result<Option<Vec<Life>>, LabError> {
    if attached.recv().is_err() {
        return Ok(None);
    }
    let progress = |Progress { rounds, lost }| {
        if let Some(stall) = &mut stall {
            stall.sent(rounds);
        }
        if rounds % 50 == 0 {
            tracing::info!("lab: {rounds} rounds, {lost} packets lost");
        }
    };
    run_lives(lab, setup, halt, progress).map(Some)
}

/// Whether everything the node's namespace counted is explained but so many drops, and nothing was lost.
fn closes(summary: &Summary, netns: NetnsInum, untold_drops: u64) -> bool {
    let mut accounts = summary.accounts.iter().filter(|account| account.netns == Some(netns)).peekable();
    let nothing_missing = untold_drops == 0 || accounts.peek().is_some();
    summary.lost() == 0 && nothing_missing && accounts.all(|account| account.closes_but_for_drops(untold_drops))
}

/// Whether just what was lost on the way is what the account of a namespace lacks.
fn lacks(summary: &Summary, netns: NetnsInum, lost: u64) -> bool {
    let lacking = |unexplained: Option<i64>| unexplained.is_some_and(|rest| u64::try_from(rest) == Ok(lost));
    let mut accounts = summary.accounts.iter().filter(|account| account.netns == Some(netns));
    accounts.next().is_some_and(|account| {
        account.complete && lacking(account.unexplained.insert_failed) && lacking(account.unexplained.drop)
    })
}

/// Passes everything on, keeps the races and failures, and says when the hooks are attached.
struct LabSink {
    inner: Box<dyn Sink + Send>,
    attached: Option<mpsc::Sender<()>>,
    seen: mpsc::Sender<Race>,
    told: mpsc::Sender<Failure>,
}

impl Sink for LabSink {
    fn session(&mut self, session: &Session) -> io::Result<()> {
        self.inner.session(session)?;
        if let Some(attached) = self.attached.take() {
            // Gone only when the traffic has panicked, which is told when it is joined.
            let _ = attached.send(());
        }
        Ok(())
    }

    fn failure(&mut self, failure: &Failure, clock: WallClock) -> io::Result<()> {
        self.inner.failure(failure, clock)?;
        // As of races.
        let _ = self.told.send(failure.clone());
        Ok(())
    }

    fn race(&mut self, race: &Race, clock: WallClock) -> io::Result<()> {
        self.inner.race(race, clock)?;
        // Heard for as long as the lab's command runs.
        let _ = self.seen.send(race.clone());
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.inner.summary(summary)
    }
}

/// The last record of a lab in JSON.
#[derive(Serialize)]
struct LabRecord<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    comparison: &'a Comparison,
    account_closes: bool,
    ok: bool,
}

fn report(args: &LabArgs, comparison: &Comparison, account_closes: bool, ok: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match args.trace.show.format {
        Format::Json => to_line(&mut out, &LabRecord { r#type: "lab", comparison, account_closes, ok }),
        Format::Text => {
            let verdict = if ok { "tracing told the truth" } else { "tracing and truth DIFFER" };
            writeln!(out, "Compared with what the senders, the receiver and the counters know: {verdict}.")?;
            write!(out, "{comparison}")
        }
    }
}
