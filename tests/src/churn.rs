//! Connections, entries and namespaces that come and go faster than anybody can follow: what is told of a race must be of
//! that race, and of nothing that had its address or its number before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use snat_trace::kernel::{Detail, KernelFacts};
use snat_trace::output::Sink;
use snat_trace::probe::Sizes;
use snat_trace::race::event::{Class, NetnsInum, Race};
use snat_trace::race::failure::Failure;
use snat_trace::race::filter::Filter;
use snat_trace::race::time::{KernelTime, WallClock};
use snat_trace::session::Session;
use snat_trace::summary::Summary;
use snat_trace::watch::{Options, Stop, watch};
use tokio::sync::oneshot;

use crate::output::Lines;
use crate::places::watching;
use crate::process::Usage;
use crate::scenario::{Numbers, Row, Scenario, whole};
use crate::storm::{PORT, Sent, Storm, send};

/// In the order they run.
pub const SCENARIOS: &[Scenario] = &[
    whole("addresses reused, 50000 connections", addresses_reused),
    whole("64 flows remembered of 10000", few_flows),
    whole("namespaces come and go", namespaces),
    whole("300 idle namespaces", idle_namespaces),
];

/// A watch in this process: its races as they are, with the kernel's times.
fn watched<T: Send>(sizes: Sizes, traffic: impl FnOnce() -> Result<T> + Send) -> Result<(T, Vec<Race>, Summary)> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let ((attached, ready), (seen, races), (over, done)) = (mpsc::channel(), mpsc::channel(), oneshot::channel());
    let options = Options {
        request: Detail::Full.into(),
        sizes,
        duration: None,
        count: None,
        filter: Filter::default(),
        ready_file: None,
        namespaces: &[],
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (told, summary) = thread::scope(|scope| {
        let traffic = scope.spawn(move || {
            // Gone when the watch has failed, of which is told below.
            let told = ready.recv().map_err(Into::into).and_then(|()| traffic());
            let _watch_has_ended = over.send(());
            told
        });
        let stop = async {
            let _over = done.await;
            Stop::Over
        };
        let sink = Box::new(Keep { attached: Some(attached), seen });
        let summary = runtime.block_on(watch(facts, &options, sink, stop));
        (traffic.join(), summary)
    });
    let summary = summary?;
    Ok((told.unwrap_or_else(|_| bail!("a thread panicked"))?, races.try_iter().collect(), summary))
}

/// Keeps the races.
struct Keep {
    attached: Option<mpsc::Sender<()>>,
    seen: mpsc::Sender<Race>,
}

impl Sink for Keep {
    fn session(&mut self, _: &Session) -> io::Result<()> {
        match self.attached.take() {
            Some(attached) => attached.send(()).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    fn race(&mut self, race: &Race, _: WallClock) -> io::Result<()> {
        self.seen.send(race.clone()).map_err(io::Error::other)
    }

    fn failure(&mut self, _failure: &Failure, _clock: WallClock) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

/// One packet that was sent, and when.
#[derive(Clone, Copy, Debug)]
struct Shot {
    port: u16,
    began: KernelTime,
    ended: KernelTime,
}

impl Shot {
    /// Sends it; whether it went out.
    fn fire(socket: &UdpSocket, number: u16) -> Result<(Self, bool)> {
        let port = socket.local_addr()?.port();
        let began = KernelTime::now();
        let passed = send(socket, number, &mut Sent::default())?;
        Ok((Self { port, began, ended: KernelTime::now() }, passed))
    }

    fn covers(self, time: KernelTime) -> bool {
        self.began <= time && time <= self.ended
    }
}

/// Winner and loser of each clash, by the number of its destination.
type Truth = BTreeMap<u16, (Shot, Shot)>;

/// `connections` to as many destinations by two senders at once, and a second flow to every twentieth of them: a clash.
/// Meanwhile everything is flushed again and again, and others without translation use the memory that it leaves, with the
/// same addresses and ports.
fn churn(storm: &Storm, other: &Storm, connections: u16) -> Result<Truth> {
    const LANES: u16 = 2;
    const EVERY: u16 = 20;

    let halt = AtomicBool::new(false);
    thread::scope(|scope| {
        let halt = &halt;
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                scope.spawn(move || {
                    let sockets = [storm.socket(1000 + lane)?, storm.socket(2000 + lane)?];
                    let mut truth = Truth::new();
                    for number in (lane..connections).step_by(LANES.into()) {
                        // Who comes first is not always the same.
                        let first = usize::from((number / LANES).is_multiple_of(3));
                        let (winner, passed) = Shot::fire(&sockets[first], number)?;
                        ensure!(passed, "the first packet to {number} was refused");
                        if (number / LANES).is_multiple_of(EVERY) {
                            let (loser, passed) = Shot::fire(&sockets[1 - first], number)?;
                            // Not when the first was flushed already.
                            if !passed {
                                truth.insert(number, (winner, loser));
                            }
                        }
                    }
                    Ok(truth)
                })
            })
            .collect();
        scope.spawn(move || twice(other, connections, halt));
        let flusher = scope.spawn(move || {
            let mut flushed = 0;
            while !halt.load(Ordering::Relaxed) {
                storm.run("conntrack", &["-F"])?;
                other.run("conntrack", &["-F"])?;
                flushed += 1;
            }
            Ok(flushed)
        });
        let mut truth = Truth::new();
        for lane in lanes {
            let lane: Result<Truth> = lane.join().unwrap_or_else(|_| bail!("a sender panicked"));
            // All must end, also when one has failed.
            halt.store(lane.is_err(), Ordering::Relaxed);
            truth.extend(lane?);
        }
        halt.store(true, Ordering::Relaxed);
        let flushed = flusher.join().unwrap_or_else(|_| bail!("the flusher panicked"))?;
        ensure!(flushed > 3, "flushed only {flushed} times");
        Ok(truth)
    })
}

/// Sends every packet twice at once from one socket until `halt`: each makes an entry, and one of the two clashes with the
/// other, where nothing asks for a port.
fn twice(other: &Storm, connections: u16, halt: &AtomicBool) -> Result<()> {
    let socket = other.socket(1000)?;
    let (round, over) = (AtomicU16::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                let now = round.load(Ordering::Relaxed);
                if now == last {
                    std::hint::spin_loop();
                    continue;
                }
                last = now;
                send(&socket, now, &mut Sent::default())?;
            }
            Ok(())
        });
        let first = (1..connections).cycle().take_while(|_| !halt.load(Ordering::Relaxed)).try_for_each(|number| {
            round.store(number, Ordering::Relaxed);
            send(&socket, number, &mut Sent::default()).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        first.and(second.join().unwrap_or_else(|_| bail!("a sender panicked")))
    })
}

/// Holds each race against what its senders know; how many flows have no times, and how many should have none.
fn judge(truth: &Truth, races: &[Race], other: &Storm) -> Result<(u64, u64)> {
    let other = Some(NetnsInum(other.inum()?));
    for flow in races.iter().flat_map(|race| [&race.winner, &race.loser]) {
        let sent_by_us = flow.owner.as_ref().is_none_or(|owner| owner.pid == std::process::id());
        ensure!(sent_by_us, "another's owner: {flow:?}");
    }
    let (duplicates, races): (Vec<&Race>, Vec<&Race>) = races.iter().partition(|race| race.netns == other);
    for race in &duplicates {
        ensure!(race.class == Class::DuplicateFlow, "no flow was sent twice: {race:?}");
        for flow in [&race.winner, &race.loser] {
            ensure!(flow.allocated.is_none() && flow.inserted.is_none(), "times of another entry: {race:?}");
        }
    }
    ensure!(races.len() == truth.len(), "{} races, but {} packets were refused", races.len(), truth.len());
    let mut without = 0;
    for race in races {
        let destination = race.loser.original.ends().destination.port();
        let shots = destination.checked_sub(PORT).and_then(|number| truth.get(&number));
        let &(winner, loser) = shots.with_context(|| format!("nothing was refused there: {race:?}"))?;
        let told = || format!("winner {winner:?}, loser {loser:?}: {race:?}");
        for (flow, shot) in [(&race.winner, winner), (&race.loser, loser)] {
            let ends = flow.original.ends();
            ensure!(ends.source.port() == shot.port && ends.destination.port() == destination, "{}", told());
            ensure!(flow.allocated.is_none_or(|time| shot.covers(time)), "another's allocation: {}", told());
            without += u64::from(flow.allocated.is_none());
        }
        let (allocated, inserted) = (race.winner.allocated, race.winner.inserted);
        ensure!(inserted.is_none_or(|time| winner.covers(time)), "another's insertion: {}", told());
        ensure!(inserted.is_none() || allocated < inserted, "inserted before it was allocated: {}", told());
        ensure!(loser.covers(race.time) && race.loser.inserted.is_none() && race.overlap.is_none(), "{}", told());
        let expected = if race.nat.is_some() { Class::FixedPort } else { race.class };
        ensure!(race.class == expected, "class: {}", told());
    }
    Ok((without, 2 * u64::try_from(duplicates.len())?))
}

fn incomplete(summary: &Summary) -> u64 {
    let count = summary.incomplete.iter().find(|(reason, _)| *reason == "flow-without-allocation");
    count.map_or(0, |&(_, count)| count)
}

/// Memory of entries is used again within microseconds, and no race has anything of the entry that was there before.
fn addresses_reused() -> Result<Row> {
    let (storm, other) = (Storm::new()?, Storm::without_nat()?);
    let start = Instant::now();
    let (truth, races, summary) = watched(Sizes::default(), || churn(&storm, &other, 50_000))?;
    let (without, never) = judge(&truth, &races, &other)?;
    ensure!(without == 0 && incomplete(&summary) == never, "{without} flows without times: {:?}", summary.incomplete);
    ensure!(summary.closes(), "{summary:?}");
    row(&truth, never, &summary, &format!("{:.1?}", start.elapsed()))
}

/// Where most is forgotten before it is asked for, times are absent, and counted as such; those that are there are right.
fn few_flows() -> Result<Row> {
    let (storm, other) = (Storm::new()?, Storm::without_nat()?);
    let sizes = Sizes { flows: 64, ..Sizes::default() };
    let (truth, races, summary) = watched(sizes, || churn(&storm, &other, 10_000))?;
    let (without, never) = judge(&truth, &races, &other)?;
    ensure!(without + never == incomplete(&summary), "{without} flows without times: {:?}", summary.incomplete);
    ensure!(summary.closes(), "{summary:?}");
    row(&truth, never, &summary, &format!("{without} flows without times"))
}

fn row(truth: &Truth, never: u64, summary: &Summary, text: &str) -> Result<Row> {
    let expected = u64::try_from(truth.len())?;
    ensure!(expected > 100, "too few clashes to tell: {expected}");
    // Each was found in the other's place.
    let numbers =
        Numbers { expected: Some(expected), seen: Some(expected), lost: Some(summary.lost()), ..Numbers::default() };
    Ok(Row { text: format!("{text}, {never} flows that never asked for a port"), numbers })
}

/// Namespaces are made, have a race or two, and are gone. Every race is told; the accounts of those that stay are exact, and
/// those that cannot be are not closed. Nothing of the namespaces stays behind in the tracer.
fn namespaces() -> Result<Row> {
    const NAMESPACES: u64 = 60;
    const STAY: u64 = 4;

    let mut watch = watching(&[], Path::new("/tmp/ready-namespaces"))?;
    let pid = watch.child()?.id();
    let open = || -> Result<Vec<PathBuf>> {
        let links = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().map(|fd| fs::read_link(fd.path()));
        Ok(links.flatten().collect())
    };
    let (mut files, mut staying, mut refused) = (0, Vec::new(), 0);
    let mut of_number = BTreeMap::<u64, u64>::new();
    for number in 0..NAMESPACES {
        // Whoever names senders has started long before.
        if number == NAMESPACES / 2 {
            files = open()?.len();
        }
        let storm = Storm::new()?;
        let sent = storm.rage(1, |clashes| clashes > number % 2)?;
        refused += sent.refused;
        *of_number.entry(storm.inum()?.into()).or_default() += sent.refused;
        if number % (NAMESPACES / STAY) == 0 {
            staying.push((u64::from(storm.inum()?), sent.refused, storm));
        }
    }
    // Those of a look for senders that is still going on are closed with it.
    let (most, deadline) = (files + usize::try_from(STAY)?, Instant::now() + Duration::from_secs(20));
    while let links = open()?
        && links.len() > most
    {
        ensure!(Instant::now() < deadline, "{files} open files have become {}: {links:?}", links.len());
        thread::yield_now();
    }
    watch.signal(Signal::INT)?;
    let output = watch.wait()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));

    let lines = Lines::parse(&output)?;
    let summary = lines.only("summary")?;
    ensure!(lines.races() == refused && lines.lost_in_all()? == 0, "{} races of {refused}: {summary}", lines.races());
    let mut races = BTreeMap::<u64, u64>::new();
    for race in lines.all("race") {
        *races.entry(race["netns"].as_u64().context("a race without a namespace")?).or_default() += 1;
    }
    ensure!(races == of_number, "races {races:?}, refused {of_number:?}");
    lines.sent_by_us()?;
    let accounts = summary["accounts"].as_array().context("no accounts")?;
    let explained: u64 = accounts.iter().filter_map(|account| account["explained"]["insert_failed"].as_u64()).sum();
    let outside = summary["outside"].as_u64().unwrap_or(0);
    ensure!(explained + outside == refused, "explained {explained} of {refused}: {summary}");
    for (inum, refused, _) in &staying {
        let account = accounts.iter().find(|account| account["netns"] == *inum).context("no account")?;
        // A number can have been another's before.
        let same = of_number.get(inum) == Some(refused);
        let counted = &account["counters"]["insert_failed"];
        ensure!(!same || *counted == *refused, "refused {refused}: {account}");
    }
    ensure!(summary["closes"] == false, "what went away unread is in an account that closes: {summary}");
    let numbers = Numbers { expected: Some(refused), seen: Some(lines.races()), lost: Some(0), ..Numbers::default() };
    Ok(Row { text: format!("{NAMESPACES} namespaces, {} numbers", of_number.len()), numbers })
}

/// Many namespaces in which nothing happens cost a moment at the start and at the end, and nothing meanwhile.
fn idle_namespaces() -> Result<Row> {
    const IDLE: usize = 300;

    let without = idle_watch()?;
    let idle: Vec<_> = (0..IDLE).map(|_| Storm::empty()).collect::<Result<_>>()?;
    let with = idle_watch()?;
    drop(idle);
    ensure!(
        with.used <= without.used * 2 + Duration::from_millis(100),
        "{without:?} without, {with:?} with {IDLE} idle namespaces"
    );
    Ok(Row::said(format!(
        "start {:.1?}, with them {:.1?}; end {:.1?}, {:.1?}; {:.1?} and {:.1?} of CPU time in 3 s",
        without.ready, with.ready, without.ended, with.ended, without.used, with.used
    )))
}

/// What a watch costs.
#[derive(Debug)]
struct Cost {
    ready: Duration,
    ended: Duration,
    /// Of CPU time.
    used: Duration,
}

/// A watch in which there is one namespace with a few clashes.
fn idle_watch() -> Result<Cost> {
    let storm = Storm::new()?;
    let start = Instant::now();
    let mut watch = watching(&[], Path::new("/tmp/ready-idle"))?;
    let ready = start.elapsed();
    let pid = watch.child()?.id();
    let sent = storm.rage(1, |clashes| clashes >= 3)?;
    let before = Usage::of(pid)?;
    // What it does in that time is the question, not what it waits for.
    thread::sleep(Duration::from_secs(3));
    let used = Usage::of(pid)?.since(before).cpu;
    let start = Instant::now();
    let output = watch.interrupt()?;
    let ended = start.elapsed();
    let lines = Lines::parse(&output)?;
    let summary = lines.only("summary")?;
    ensure!(lines.races() == sent.refused && summary["closes"] == true, "{} races: {summary}", lines.races());
    Ok(Cost { ready, ended, used })
}
