//! How often user space asks for memory on the way from the ring to what is printed: no clock, so the same on every machine.
//!
//! The figures are for `docs/COST.md` too: `cargo xtask bench` reads them.

#[path = "../benches/made/mod.rs"]
mod made;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::io;

use made::{CLASHES, correlate, named, ring};
use snat_trace::evidence::clock;
use snat_trace::output::Sink;
use snat_trace::output::json::JsonSink;
use snat_trace::output::text::{Style, TextSink};
use snat_trace::race::decode::decode;
use snat_trace::race::time::KernelTime;

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    /// Times this thread asked for memory, or for more of it.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's; counting allocates nothing, as the counter is initialised before any code runs and has
// nothing to drop.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` asks for memory, by the clash.
fn per_clash(work: impl FnOnce()) -> f64 {
    let before = ASKED.get();
    work();
    (ASKED.get() - before) as f64 / f64::from(CLASHES)
}

#[test]
fn each_step_asks_for_memory_as_often_as_it_must() {
    let (records, races) = (ring(), named());
    let since = KernelTime::from_record(1).expect("not 0");
    let (style, clock) =
        (|verbose| Style { width: Some(120), colour: false, verbose, zone: jiff::tz::TimeZone::UTC }, clock());
    let print = |mut sink: Box<dyn Sink>| {
        // What is asked for once is nobody's in particular.
        sink.race(&races[0], clock).unwrap();
        per_clash(|| races.iter().for_each(|race| sink.race(race, clock).unwrap()))
    };
    let steps = [
        ("decode", 1.0, per_clash(|| records.iter().for_each(|bytes| drop(black_box(decode(bytes)))))),
        ("decode and correlate", 2.1, per_clash(|| assert_eq!(correlate(&records, since), usize::from(CLASHES)))),
        ("text", 53.0, print(Box::new(TextSink::new(io::sink(), style(false))))),
        ("text, verbose", 53.0, print(Box::new(TextSink::new(io::sink(), style(true))))),
        ("json", 3.0, print(Box::new(JsonSink::new(io::sink())))),
    ];
    for (what, _, count) in steps {
        println!("\nfigure {{\"kind\":\"allocations\",\"what\":\"{what}\",\"per_event\":{count}}}");
    }
    for (what, most, count) in steps {
        assert!(count <= most, "{what}: {count} allocations a race, and {most} were enough");
    }
}
