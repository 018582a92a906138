//! The live loop: ring, order, classes, owners, output; and the account around it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use snat_trace_common::ClashRecord;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::counters::accounts::{Accounts, CountersError};
use crate::kernel::{CannotTrace, Detail, KernelFacts, Plan, plan};
use crate::output::Sink;
use crate::owner::{Owners, Query, recorded_sender};
use crate::probe::{AttachedHook, HookState, ProbeError, Sizes, Tracer};
use crate::race::classify::classify;
use crate::race::decode::decode;
use crate::race::event::Race;
use crate::race::filter::Filter;
use crate::race::order::{REORDERING_BOUND, Reorder};
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::{Span, Summary, Totals};

/// Most records held in user space; more are lost, and counted as such.
const PENDING: usize = 16_384;
/// Most races whose owners are looked for at once.
const BATCH: usize = 256;
/// How often the counters of namespaces that had races are read, so that one that goes away has its last figures.
const SAMPLE: Duration = Duration::from_secs(1);

/// What to watch and for how long.
#[derive(Debug)]
pub struct Options<'a> {
    /// Which hooks.
    pub detail: Detail,
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

/// Attaches, hands every race to `sink` until `stop`, detaches and closes the account.
///
/// # Errors
///
/// See [`WatchError`]. Whatever the end, nothing stays attached.
pub async fn watch(
    facts: &KernelFacts,
    options: &Options<'_>,
    sink: &mut dyn Sink,
    stop: impl Future<Output = ()>,
) -> Result<Summary, WatchError> {
    let plan = plan(facts, options.detail)?;
    let mut tracer = Tracer::attach(&plan, options.sizes)?;
    // The counters are read while the hooks run, at both ends: what is counted was seen.
    let mut accounts = Some(Accounts::open_with(options.namespaces)?);
    let session = Session::start(facts, options.detail, tracer.hooks().to_vec());
    say_what_is_missing(&plan, &session.hooks);
    sink.session(&session)?;
    if let Some(path) = options.ready_file {
        std::fs::write(path, b"").map_err(|error| WatchError::ReadyFile { path: path.display().to_string(), error })?;
    }

    let mut pipeline = Pipeline::new(options, &session);
    let mut stop = pin!(stop);
    let mut sampling: Option<JoinHandle<Result<Accounts, CountersError>>> = None;
    let deadline = options.duration.map(|duration| Instant::now() + duration);
    let mut release = ticks(REORDERING_BOUND / 2);
    let mut sample = ticks(SAMPLE);
    while !pipeline.enough() {
        tokio::select! {
            () = &mut stop => break,
            () = until(deadline) => break,
            batch = joined(&mut pipeline.naming), if pipeline.naming.is_some() => pipeline.emit(batch?, sink)?,
            readable = tracer.readable() => {
                readable?;
                tracer.drain(|bytes| pipeline.take(bytes));
            }
            _ = release.tick(), if pipeline.can_name() => pipeline.name(KernelTime::now()),
            _ = sample.tick(), if sampling.is_none() && pipeline.totals.involved().next().is_some() => {
                let involved: Vec<_> = pipeline.totals.involved().collect();
                sampling = accounts.take().map(|mut accounts| spawn_blocking(move || {
                    accounts.sample(&involved)?;
                    Ok(accounts)
                }));
            }
            sampled = joined(&mut sampling), if sampling.is_some() => accounts = Some(sampled??),
        }
    }

    if let Some(sampling) = sampling {
        accounts = Some(sampling.await??);
    }
    let deltas = match accounts {
        Some(accounts) => spawn_blocking(|| accounts.close()).await??,
        None => Vec::new(),
    };
    let ended = KernelTime::now();
    tracer.detach();
    tracer.drain(|bytes| pipeline.take(bytes));
    pipeline.drain(sink).await?;
    let span = Span { started: session.started, ended, clock: session.clock };
    let summary = pipeline.totals.close(span, tracer.counts()?, &deltas);
    sink.summary(&summary)?;
    Ok(summary)
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
    tracing::info!("watching with {attached} hooks ({}); Ctrl-C ends it", plan.detail);
}

/// Records on their way to the output.
struct Pipeline<'a> {
    options: &'a Options<'a>,
    session: &'a Session,
    order: Reorder,
    /// `None` while a batch is being named.
    owners: Option<Owners>,
    naming: Option<JoinHandle<Named>>,
    totals: Totals,
    shown: u64,
}

/// A batch with its owners, and the finder of owners for the next.
type Named = (Owners, Vec<Race>);

impl<'a> Pipeline<'a> {
    fn new(options: &'a Options<'a>, session: &'a Session) -> Self {
        Self {
            options,
            session,
            order: Reorder::default(),
            owners: Some(Owners::default()),
            naming: None,
            totals: Totals::default(),
            shown: 0,
        }
    }

    /// Whether as many races were shown as were asked for.
    fn enough(&self) -> bool {
        self.options.count.is_some_and(|count| self.shown >= count)
    }

    /// Takes the bytes of one record.
    fn take(&mut self, bytes: &[u8]) {
        match decode(bytes) {
            Ok(_) if self.order.len() >= PENDING => self.totals.lose("queue-full"),
            Ok(record) => self.order.push(record),
            Err(undecodable) => self.totals.lose(undecodable.reason()),
        }
    }

    fn can_name(&self) -> bool {
        self.naming.is_none() && !self.order.is_empty()
    }

    /// Starts naming what no earlier record can precede any more at `now`.
    fn name(&mut self, now: KernelTime) {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(record) = self.order.pop(now)
        {
            self.classify(&record, &mut batch);
        }
        self.start_naming(batch);
    }

    fn classify(&mut self, record: &ClashRecord, batch: &mut Vec<(ClashRecord, Race)>) {
        match classify(record) {
            Ok(race) => batch.push((*record, race)),
            Err(undecodable) => self.totals.lose(undecodable.reason()),
        }
    }

    fn start_naming(&mut self, batch: Vec<(ClashRecord, Race)>) {
        if batch.is_empty() {
            return;
        }
        if let Some(owners) = self.owners.take() {
            self.naming = Some(spawn_blocking(move || name_all(owners, batch)));
        }
    }

    /// Shows a named batch.
    fn emit(&mut self, (owners, races): Named, sink: &mut dyn Sink) -> io::Result<()> {
        self.naming = None;
        self.owners = Some(owners);
        for race in &races {
            self.totals.add(race, self.options.detail);
            if !self.enough() && self.options.filter.shows(race) {
                sink.race(race, self.session.clock)?;
                self.shown += 1;
            }
        }
        Ok(())
    }

    /// Names and shows everything left: no record comes any more.
    async fn drain(&mut self, sink: &mut dyn Sink) -> Result<(), WatchError> {
        loop {
            if self.naming.is_some() {
                let batch = joined(&mut self.naming).await?;
                self.emit(batch, sink)?;
            }
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(record) = self.order.pop_last()
            {
                self.classify(&record, &mut batch);
            }
            if batch.is_empty() && self.order.is_empty() {
                return Ok(());
            }
            self.start_naming(batch);
        }
    }
}

/// Names the owners of a batch: as the kernel recorded them, and by their sockets where it did not.
fn name_all(mut owners: Owners, batch: Vec<(ClashRecord, Race)>) -> Named {
    let mut races = Vec::with_capacity(batch.len());
    for (record, mut race) in batch {
        for (fact, flow) in [(&record.loser, &mut race.loser), (&record.winner, &mut race.winner)] {
            flow.owner = recorded_sender(fact, record.header.time_ns).map(|sender| owners.from_fact(sender));
        }
        races.push(race);
    }
    let unknown: Vec<_> = races
        .iter()
        .flat_map(|race| [&race.loser, &race.winner].map(|flow| (race, flow)))
        .filter(|(_, flow)| flow.owner.is_none())
        .map(|(race, flow)| Query { protocol: race.protocol, original: flow.original, time: race.time })
        .collect();
    if !unknown.is_empty() {
        let mut found = owners.look_up(&unknown).into_iter();
        for race in &mut races {
            for flow in [&mut race.loser, &mut race.winner] {
                if flow.owner.is_none() {
                    flow.owner = found.next().flatten();
                }
            }
        }
    }
    (owners, races)
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
