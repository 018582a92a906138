//! What a race costs in user space: from the bytes of the ring to a race, and from a race to what is printed.
//!
//! `cargo bench --package snat-trace`, on one core. Names of senders are not in it: they are looked for in batches beside all
//! this, and cost what `/proc` costs.

use std::fs::File;
use std::hint::black_box;
use std::io;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use snat_trace::evidence::{Item, clock, read};
use snat_trace::output::Sink;
use snat_trace::output::json::JsonSink;
use snat_trace::output::text::{Style, TextSink};
use snat_trace::race::classify::classify;
use snat_trace::race::decode::{Record, decode};
use snat_trace::race::event::Race;
use snat_trace::race::order::{Next, Reorder};
use snat_trace::race::time::KernelTime;
use snat_trace::race::verdict::decided;
use snat_trace_common::{ClashRecord, FlowFact, PACKET_LEN, RecordHeader, Tuple, VerdictRecord, flow_flags, kind};

/// Clashes at a time, with a verdict each: as many records as are taken from the ring before others have their turn.
const CLASHES: u16 = 2048;

/// `IPS_SRC_NAT` and `IPS_SRC_NAT_DONE` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const TRANSLATED: u64 = 1 << 4 | 1 << 7;

/// Between pods, node and server, in the order of the kernel's tuple.
fn tuple([from, to]: [u8; 2], [source, destination]: [u16; 2], dir: u8) -> Tuple {
    let address = |last| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[10, 99, 0, last]);
        bytes
    };
    Tuple {
        src: address(from),
        src_port_be: source.to_be(),
        l3num: 2,
        dst: address(to),
        dst_port_be: destination.to_be(),
        protonum: 17,
        dir,
    }
}

/// A flow of a pod that the node masquerades, whose port stays.
fn flow(pod: u8, port: u16, allocated_ns: u64, inserted_ns: u64) -> FlowFact {
    FlowFact {
        original: tuple([pod, 53], [port, 53], 0),
        reply: tuple([53, 1], [53, port], 1),
        status: TRANSLATED,
        allocated_ns,
        inserted_ns,
        flags: flow_flags::ALLOCATION,
        ..FlowFact::default()
    }
}

/// Clashes of two pods, a microsecond apart, each followed by its verdict, as the ring has them.
fn ring() -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for number in 0..CLASHES {
        let time_ns = 1_000_000 + 1000 * u64::from(number);
        let (port, loser_entry) = (10_000 + number, 0xffff_8880_0000_0000 + 0x100 * u64::from(number));
        let clash = ClashRecord {
            header: RecordHeader { kind: kind::CLASH, len: len_of::<ClashRecord>(), cpu: 1, time_ns },
            netns: 4_026_531_840,
            flags: 0,
            matched: 1,
            reserved: [0; 5],
            packet_len: 28,
            loser_entry,
            loser: flow(11, port, time_ns - 900, 0),
            winner: flow(10, port, time_ns - 950, time_ns - 400),
            packet: [0x45; PACKET_LEN],
        };
        let verdict = VerdictRecord {
            header: RecordHeader {
                kind: kind::VERDICT,
                len: len_of::<VerdictRecord>(),
                cpu: 1,
                time_ns: time_ns + 200,
            },
            clash_ns: time_ns,
            loser_entry,
            entry: loser_entry,
            status: TRANSLATED,
            returned: 0,
            reserved: 0,
        };
        // SAFETY: both are integers and bytes without padding, as `snat-trace-common` asserts, and live until they are copied.
        records.extend(unsafe { [bytes_of(&clash).to_vec(), bytes_of(&verdict).to_vec()] });
    }
    records
}

fn len_of<T>() -> u16 {
    u16::try_from(size_of::<T>()).unwrap_or(u16::MAX)
}

/// # Safety
///
/// `T` has no padding.
unsafe fn bytes_of<T>(record: &T) -> &[u8] {
    // SAFETY: the bytes are those of `record`, all initialised as there is no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

/// Everything between the ring and the naming of senders; how many races came of it.
fn correlate(records: &[Vec<u8>], since: KernelTime) -> usize {
    let (mut order, mut races) = (Reorder::default(), 0);
    for bytes in records {
        match decode(black_box(bytes)) {
            Ok(Record::Clash(clash)) => order.push(clash),
            Ok(Record::Verdict(verdict)) => order.decide(verdict),
            Ok(Record::Failure(_) | Record::Process(_)) | Err(_) => {}
        }
    }
    while let Some(next) = order.pop_last() {
        if let Next::Clash { clash, verdict } = next
            && let Ok(mut race) = classify(&clash, since)
        {
            race.verdict = verdict.as_ref().and_then(decided).or(race.verdict);
            races += usize::from(black_box(race).verdict.is_some());
        }
    }
    races
}

/// Real races with everything known of them, over and over.
fn named() -> Vec<Race> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/evidence/7.zst");
    let items = File::open(path).map(read).into_iter().flatten();
    let races = items.filter_map(|item| if let Ok(Item::Race(race)) = item { Some(*race) } else { None });
    let races: Vec<Race> = races.collect();
    assert!(!races.is_empty(), "no races in {path}");
    races.into_iter().cycle().take(usize::from(CLASHES)).collect()
}

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
