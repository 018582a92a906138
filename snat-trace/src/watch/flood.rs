//! Floods of collisions through the live loop's own way, without a kernel: what they take of memory, and what gets through.

#[path = "../../benches/made/ring.rs"]
mod ring;

use std::fs::{self, File};
use std::io::LineWriter;

use super::*;
use crate::kernel::{Detail, Hierarchies};
use crate::output::golden;
use crate::output::text::{Style, TextSink};
use crate::probe::KernelCounts;

/// How often the ring is read when something is in it all the time.
const READ: Duration = Duration::from_millis(1);
/// Clashes taken at most when it is.
const AT_ONCE: u64 = 2048;

/// What came of one.
struct Outcome {
    summary: Summary,
    seconds: f64,
    /// `VmRSS` when the last record had come.
    resident_kib: u64,
}

/// So many clashes a second for a while; without a rate as many as there is room for.
async fn flood(rate: Option<u32>, lasting: Duration) -> Outcome {
    let options = Options {
        request: Detail::Full.into(),
        sizes: Sizes::default(),
        duration: None,
        count: None,
        filter: Filter::default(),
        ready_file: None,
        namespaces: &[],
    };
    let session = Session { started: KernelTime::now(), ..golden::session() };
    // Where nothing has to be looked for: of no sender is a cgroup known.
    let cgroups = Hierarchies { unified: Some("/sys/fs/cgroup".into()), ..Hierarchies::default() };
    let owners = Owners::new(Sources { senders: None, cgroups, commands: true });
    let mut pipeline = Pipeline::new(&options, &session, owners);
    // As standard output is, and nobody's.
    let out = LineWriter::new(File::create("/dev/null").unwrap());
    let style = Style { width: Some(120), colour: false, verbose: false, zone: jiff::tz::TimeZone::UTC };
    let mut writer = Writer::start(Box::new(TextSink::new(out, style))).unwrap();

    let start = Instant::now();
    let (mut release, mut read) = (ticks(REORDERING_BOUND / 2), ticks(READ));
    let mut taken = 0;
    while start.elapsed() < lasting {
        tokio::select! {
            advanced = pipeline.advance(&mut writer, &mut release) => advanced.unwrap(),
            _ = read.tick() => {
                let due = match rate {
                    Some(rate) => u64::try_from(start.elapsed().as_millis()).unwrap() * u64::from(rate) / 1000 - taken,
                    None => pipeline.room(),
                };
                let now = KernelTime::now().nanoseconds();
                let due = due.min(AT_ONCE);
                ring::records(now, 1, due as u32).iter().for_each(|record| pipeline.take(record));
                taken += due;
            }
        }
    }
    let resident_kib = status("VmRSS:");
    pipeline.drain(&mut writer, std::future::pending()).await.unwrap();
    writer.finish().await.unwrap();
    let span = Span { started: session.started, ended: KernelTime::now(), clock: session.clock };
    let summary = pipeline.totals.close(span, KernelCounts::default(), &Closed::default());
    assert_eq!(summary.races() + summary.lost(), taken, "every clash is shown or counted as lost: {:?}", summary.lost);
    Outcome { summary, seconds: start.elapsed().as_secs_f64(), resident_kib }
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn run(rate: Option<u32>, lasting: Duration) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(flood(rate, lasting))
}

#[test]
fn of_a_flood_nothing_goes_uncounted() {
    let Outcome { summary, .. } = run(Some(100_000), Duration::from_millis(300));
    assert!(summary.races() > 0);
}

#[test]
#[ignore = "measures, for `cargo xtask bench`, in a process of its own"]
fn measured() {
    let rate = std::env::var("SNAT_TRACE_FLOOD").ok().map(|rate| rate.parse().unwrap());
    let Outcome { summary, seconds, resident_kib } = run(rate, Duration::from_secs(5));
    let shown = summary.races();
    let figures = match rate {
        Some(rate) => format!(
            "\"kind\":\"memory\",\"when\":\"user side without a kernel, {shown} races shown and {} counted as lost\",\
             \"collisions_per_second\":{rate},\"resident_kib\":{resident_kib},\"peak_kib\":{}",
            summary.lost(),
            status("VmHWM:")
        ),
        None => format!(
            "\"kind\":\"user\",\"what\":\"ring to printed line, senders named\",\"per_second\":{}",
            shown as f64 / seconds
        ),
    };
    println!("\nfigure {{{figures}}}");
}
