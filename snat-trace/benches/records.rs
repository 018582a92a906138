//! What a race costs in user space: from the bytes of the ring to a race, and from a race to what is printed.
//!
//! `cargo bench --package snat-trace`, on one core. Names of senders are not in it: they are looked for in batches beside all
//! this, and cost what `/proc` costs.

mod made;

use std::hint::black_box;
use std::io;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use made::{CLASHES, correlate, named, ring};
use snat_trace::evidence::clock;
use snat_trace::output::Sink;
use snat_trace::output::json::JsonSink;
use snat_trace::output::text::{Style, TextSink};
use snat_trace::race::decode::decode;
use snat_trace::race::time::KernelTime;

fn records(criterion: &mut Criterion) {
    let records = ring();
    let since = KernelTime::from_record(1).expect("not 0");
    assert_eq!(correlate(&records, since), usize::from(CLASHES), "every clash becomes a race with a verdict");
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Elements(u64::try_from(records.len()).unwrap_or(u64::MAX)));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| records.iter().filter(|bytes| black_box(decode(bytes)).is_ok()).count());
    });
    group.bench_function("decode and correlate", |bencher| bencher.iter(|| correlate(&records, since)));
    group.finish();
}

fn printed(criterion: &mut Criterion) {
    let races = named();
    let clock = clock();
    let mut group = criterion.benchmark_group("races");
    group.throughput(Throughput::Elements(u64::from(CLASHES)));
    let mut print = |name: &str, sink: &dyn Fn() -> Box<dyn Sink>| {
        group.bench_function(name, |bencher| {
            let all = |mut sink: Box<dyn Sink>| races.iter().try_for_each(|race| sink.race(race, clock));
            bencher.iter_batched(sink, all, BatchSize::LargeInput);
        });
    };
    let style = |verbose| Style { width: Some(120), colour: false, verbose, zone: jiff::tz::TimeZone::UTC };
    print("text", &|| Box::new(TextSink::new(io::sink(), style(false))));
    print("text, verbose", &|| Box::new(TextSink::new(io::sink(), style(true))));
    print("json", &|| Box::new(JsonSink::new(io::sink())));
    group.finish();
}

criterion_group!(benches, records, printed);
criterion_main!(benches);
