//! What benchmarks and tests of the way through user space take in.

pub(crate) mod ring;

use std::fs::File;
use std::hint::black_box;

use snat_trace::evidence::{Item, read};
use snat_trace::race::classify::classify;
use snat_trace::race::decode::{Record, decode};
use snat_trace::race::event::Race;
use snat_trace::race::order::{Next, Reorder};
use snat_trace::race::time::KernelTime;
use snat_trace::race::verdict::decided;

/// Clashes at a time, with a verdict each: as many records as are taken from the ring before others have their turn.
pub(crate) const CLASHES: u16 = 2048;

/// As the ring has them, a microsecond apart.
pub(crate) fn ring() -> Vec<Vec<u8>> {
    ring::records(1_000_000, 1000, u32::from(CLASHES))
}

/// Everything between the ring and the naming of senders; how many races came of it.
pub(crate) fn correlate(records: &[Vec<u8>], since: KernelTime) -> usize {
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
pub(crate) fn named() -> Vec<Race> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/evidence/7.zst");
    let items = File::open(path).map(read).into_iter().flatten();
    let races = items.filter_map(|item| if let Ok(Item::Race(race)) = item { Some(*race) } else { None });
    let races: Vec<Race> = races.collect();
    assert!(!races.is_empty(), "no races in {path}");
    races.into_iter().cycle().take(usize::from(CLASHES)).collect()
}
