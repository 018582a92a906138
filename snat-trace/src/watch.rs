//! The live loop: ring, order, classes, owners, output; and the account around it.

#[cfg(test)]
mod flood;
mod pipeline;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::counters::account::Delta;
use crate::counters::accounts::{Accounts, Closed, CountersError};
use crate::counters::figures::Tally;
use crate::kernel::{
    CannotTrace, FactsError, Hierarchies, KernelFacts, ModuleNews, ModuleWatch, Offsets, Plan, Request, plan,
};
use crate::output::Sink;
use crate::owner::{Owners, Sources};
use crate::probe::{AttachedHook, HookState, Loaded, ProbeError, Sizes, Tracer};
use crate::race::event::NetnsInum;
use crate::race::filter::Filter;
use crate::race::order::REORDERING_BOUND;
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::{Span, Summary};

use pipeline::Pipeline;
use writer::{Message, Samples, Writer};

/// How often the counters of namespaces that had races are read, so that one that goes away has its last figures; and of all
/// where the sink wants them.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long races that were seen in time are still shown when the end is wanted at once.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How an end is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// At once: what is not shown a second later is counted as lost.
    Now,
    /// When everything that was seen is shown: nothing more will come.
    Over,
}

/// What to watch and for how long.
#[derive(Debug)]
pub struct Options<'a> {
    /// Which hooks.
    pub request: Request,
    /// Bounds of what the kernel keeps.
    pub sizes: Sizes,
    /// Stop after this long.
    pub duration: Option<Duration>,
    /// Stop after this many races were shown.
    pub count: Option<u64>,
    /// Which races to show. The account is made of all.
    pub filter: Filter,
    /// Created once every hook is attached.
    pub ready_file: Option<&'a Path>,
    /// Network namespaces that no search would find, kept open by the caller.
    pub namespaces: &'a [BorrowedFd<'a>],
}

/// What is known of this kernel, and what is in it already.
#[derive(Debug)]
pub struct Prepared {
    facts: KernelFacts,
    /// `None` where the maps are still to be made.
    loaded: Option<Result<Loaded, ProbeError>>,
}

impl Prepared {
    /// Reads what this kernel has below `root`, and makes the maps while functions are still being looked for, which takes
    /// longest.
    ///
    /// # Errors
    ///
    /// As [`KernelFacts::gather`]. Why no maps could be made is told by [`watch`], after what is wrong with the kernel.
    pub fn gather(root: &Path, options: &Options<'_>) -> Result<Self, FactsError> {
        let load = |offsets: &Offsets, cgroups: &Hierarchies| {
            Loaded::new(offsets, cgroups.controller(), options.request, options.sizes)
        };
        KernelFacts::gather_and(root, load).map(|(facts, loaded)| Self { facts, loaded })
    }
}

impl From<KernelFacts> for Prepared {
    fn from(facts: KernelFacts) -> Self {
        Self { facts, loaded: None }
    }
}

/// Why watching ended early or never began.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// This kernel, or this user, cannot trace.
    #[error(transparent)]
    CannotTrace(#[from] CannotTrace),
    /// The programs could not be loaded or attached.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The counters could not be read.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// The ready file could not be created.
    #[error("cannot create the ready file {path}: {error}")]
    ReadyFile {
        /// Where.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The output takes no more. A closed pipe is a normal end.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A part of the loop ended in a panic, which is a bug.
    #[error("internal error: {0}")]
    Internal(#[from] JoinError),
}

/// Attaches, hands every race to `sink` until `stop`, detaches and closes the account. Ends early when a module is
/// unloaded and its hooks with it; [`Summary::hooks_gone`] tells. When it ends for another reason than `stop`, that still
/// says how long the last races may take.
///
/// # Errors
///
/// See [`WatchError`]. Whatever the end, nothing stays attached.
pub async fn watch(
    prepared: impl Into<Prepared>,
    options: &Options<'_>,
    sink: Box<dyn Sink + Send>,
    stop: impl Future<Output = Stop>,
) -> Result<Summary, WatchError> {
    let Prepared { facts, loaded } = prepared.into();
    let plan = plan(&facts, options.request)?;
    let mut writer = Writer::start(sink)?;
    // Those that are unloaded take our hooks with them.
    let (mut modules, mut news) = (ModuleWatch::start(Path::new("/"), &plan), ModuleNews::listen());
    let load = || Loaded::new(&plan.offsets, plan.legacy, options.request, options.sizes);
    let mut tracer = Tracer::attach(loaded.unwrap_or_else(load)?, &plan, options.sizes)?;
    // The counters are read while the hooks run, at both ends: what is counted was seen, and what was seen before the
    // first reading or after the last is known by its time.
    let mut accounts = Some(Accounts::open_with(options.namespaces)?);
    let windows = accounts.as_ref().map(Accounts::windows).unwrap_or_default();
    let session = Session::start(&facts, options.request, tracer.hooks().to_vec());
    say_what_is_missing(&plan, &session.hooks);
    give_memory_back();
    writer.room_at_last().await?.send(Message::Session(Box::new(session.clone())));
    if let Some(path) = options.ready_file {
        // Never somebody else's file, nor one of an earlier run that told too early.
        std::fs::File::create_new(path)
            .map_err(|error| WatchError::ReadyFile { path: path.display().to_string(), error })?;
    }

    let owners = Owners::new(Sources {
        senders: tracer.take_senders(),
        cgroups: facts.cgroups,
        commands: options.request.commands,
    });
    let mut pipeline = Pipeline::new(options, &session, owners);
    pipeline.totals.within(windows);
    let (follows, all) = (writer.follows(), writer.wants_samples());
    let mut stop = pin!(stop);
    let mut asked = None;
    let mut sampling: Option<JoinHandle<Result<Accounts, CountersError>>> = None;
    let (mut samples, mut latest, mut before, mut so_far) = (None, Vec::new(), Vec::new(), None);
    let deadline = options.duration.map(|duration| Instant::now() + duration);
    let mut release = ticks(REORDERING_BOUND / 2);
    let (mut sample, mut told) = (ticks(SAMPLE), ticks(SAMPLE));
    while !pipeline.enough() {
        tokio::select! {
            how = &mut stop => {
                asked = Some(how);
                break;
            }
            () = until(deadline) => break,
            advanced = pipeline.advance(&mut writer, &mut release) => advanced?,
            readable = tracer.readable() => {
                readable?;
                tracer.drain(|bytes| pipeline.take(bytes));
            }
            _ = told.tick(), if follows => {
                let span = Span { started: session.started, ended: KernelTime::now(), clock: session.clock };
                so_far = Some(pipeline.totals.close(span, tracer.counts()?, &counted(&before)));
            }
            _ = sample.tick(), if accounts.as_ref().is_some_and(|accounts| all || accounts.involved() || pipeline.involved()) => {
                let involved = pipeline.take_involved();
                sampling = accounts.take().map(|mut accounts| spawn_blocking(move || {
                    let sampled = if all { accounts.sample_all(involved) } else { accounts.sample(involved) };
                    sampled?;
                    Ok(accounts)
                }));
            }
            heard = news.next() => if modules.hear(heard) {
                break;
            },
            sampled = joined(&mut sampling), if sampling.is_some() => {
                let sampled = sampled??;
                let (time, read, left_out) = (KernelTime::now(), sampled.so_far(), sampled.left_out());
                before = std::mem::replace(&mut latest, read.clone());
                samples = Some(Box::new(Samples { time, read, left_out }).instead_of(samples.take()));
                accounts = Some(sampled);
            }
        }
        if let Some(summary) = so_far.take() {
            // The next one has all that this one has.
            let _full = writer.offer(Message::SoFar(Box::new(summary)));
        }
        if let Some(waiting) = samples.take() {
            samples = match writer.offer(Message::Samples(waiting, session.clock)) {
                Some(Message::Samples(waiting, _)) => Some(waiting),
                _ => None,
            };
        }
    }

    if let Some(sampling) = sampling {
        accounts = Some(sampling.await??);
    }
    tracer.drain(|bytes| pipeline.take(bytes));
    let involved = pipeline.take_involved();
    let mut closing = accounts.map(|accounts| spawn_blocking(|| accounts.close(involved)));
    let mut closed = Closed::default();
    while closing.is_some() {
        tokio::select! {
            result = joined(&mut closing) => closed = result??,
            // There may be many namespaces, and the ring is no larger than it is.
            readable = tracer.readable() => {
                readable?;
                tracer.drain(|bytes| pipeline.take(bytes));
            }
        }
    }
    pipeline.totals.within(closed.windows.clone());
    let ended = KernelTime::now();
    tracer.detach();
    while tracer.drain(|bytes| pipeline.take(bytes)) {}
    let enough = async {
        let how = match asked {
            Some(how) => how,
            None => stop.await,
        };
        match how {
            Stop::Now => sleep(LAST_WORDS).await,
            Stop::Over => std::future::pending().await,
        }
    };
    pipeline.drain(&mut writer, enough).await?;
    pipeline.totals.miss_hooks_of(modules.gone());
    let span = Span { started: session.started, ended, clock: session.clock };
    let summary = pipeline.totals.close(span, tracer.counts()?, &closed);
    if let Some(waiting) = samples {
        writer.room_at_last().await?.send(Message::Samples(waiting, session.clock));
    }
    writer.room_at_last().await?.send(Message::Summary(Box::new(summary.clone())));
    writer.finish().await?;
    Ok(summary)
}

/// A reading as an account of so far.
fn counted(reading: &[(NetnsInum, Tally<Option<u64>>)]) -> Closed {
    let deltas = reading.iter().map(|&(netns, counters)| Delta { netns, counters: Ok(counters), caveat: None });
    Closed { deltas: deltas.collect(), ..Closed::default() }
}

/// No partial silence: what runs and what does not, and what that costs.
fn say_what_is_missing(plan: &Plan, hooks: &[AttachedHook]) {
    for capability in &plan.missing_capabilities {
        tracing::warn!("without {}: {}", capability.name(), capability.cost());
    }
    for hook in &plan.hooks {
        if let Some(drawback) = hook.drawback {
            tracing::warn!("{} is hooked at {}: {drawback}", hook.role, hook.symbol);
        }
    }
    let mut attached = 0;
    for hook in hooks {
        match &hook.state {
            HookState::Attached => attached += 1,
            HookState::NotAttached { reason, cost } => {
                tracing::warn!("no {} hook: {reason}; {cost}", hook.role);
            }
        }
    }
    let failures = if plan.request.failures { ", failures" } else { "" };
    tracing::info!("watching with {attached} hooks ({}{failures}); Ctrl-C ends it", plan.request.detail);
}

/// Waits for a task that is there, and takes it away.
async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(handle) => {
            let result = handle.await;
            *task = None;
            result
        }
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Reading the kernel's types and symbols takes megabytes that are not needed again, and that the allocator would keep. What is
/// left between them the kernel would sooner or later put together, holes and all, to pages of 2 MiB (mm/khugepaged.c).
fn give_memory_back() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages are not turned off");
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but memory that the allocator has to itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the calling thread, and those it starts, never push another off its CPU by waking up (`SCHED_BATCH`; its share of the
/// CPU stays): with a watch that did, senders on the same CPU met each other in fewer rounds than without.
pub fn give_way() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call, which reads them only.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if result != 0 {
        tracing::debug!("cannot give way to others: {}", io::Error::last_os_error());
    }
}
