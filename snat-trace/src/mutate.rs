//! Fuzzing for tests: real inputs, and what becomes of them when bytes are flipped, cut out, doubled, moved and replaced.
//! Whatever a parser is given, it must not panic, and it must not ask for more memory than its input is worth.
//!
//! Real inputs lie in `tests/corpus/TARGET/`; one that made a parser fail is added there, so that every run tries it again.
//! A run is short and always the same, unless `SNAT_TRACE_FUZZ_SECONDS` says how long each target shall take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Bytes that may be allocated for each byte of input, and besides.
const WORTH: usize = 512;
const BESIDES: usize = 4 << 20;

/// How long a target takes in an ordinary run.
const ORDINARY: Duration = Duration::from_millis(400);
/// How many mutations at most in an ordinary run, to be always the same where the machine is fast.
const ORDINARY_CASES: u64 = 4000;

/// Tries `parse` with every input in the corpus, with `seeds`, and with what becomes of them.
///
/// # Panics
///
/// `parse` did, or it allocated too much. The input is then in the corpus.
pub(crate) fn survives(target: &str, seeds: &[&[u8]], parse: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut corpus: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    corpus.extend(files.iter().map(|path| fs::read(path).unwrap()));
    assert!(!corpus.is_empty(), "nothing to begin with: {}", directory.display());
    corpus.iter().for_each(|input| try_one(&directory, input, &parse));

    let long: Option<u64> = std::env::var("SNAT_TRACE_FUZZ_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let (time, cases, seed) = match long {
        Some(seconds) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            (Duration::from_secs(seconds), u64::MAX, u64::from(now.subsec_nanos()))
        }
        None => (ORDINARY, ORDINARY_CASES, 1),
    };
    let mut dice = Dice(hash(target.as_bytes()) ^ seed);
    let (start, mut case) = (Instant::now(), 0);
    while case < cases && start.elapsed() < time {
        let input = mutation(&corpus, &mut dice);
        try_one(&directory, &input, &parse);
        case += 1;
    }
    if long.is_some() {
        eprintln!("{target}: {case} mutations of {} inputs", corpus.len());
    }
}

fn try_one(directory: &Path, input: &[u8], parse: impl Fn(&[u8])) {
    let before = ALLOCATED.get();
    PEAK.set(before);
    let result = catch_unwind(AssertUnwindSafe(|| parse(input)));
    let used = PEAK.get().saturating_sub(before);
    let frugal = used <= BESIDES + WORTH * input.len();
    if result.is_err() || !frugal {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(format!("found-{:016x}", hash(input)));
        fs::write(&path, input).unwrap();
        assert!(frugal, "{} bytes of input took {used} bytes of memory; see {}", input.len(), path.display());
        panic!("an input was not survived; see {}", path.display());
    }
}

/// One of the inputs, changed up to eight times.
fn mutation(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(8) {
        let length = bytes.len();
        let at = dice.below(length + 1);
        let end = at + dice.below((length - at).min(64) + 1);
        match dice.below(10) {
            0 if length > 0 => bytes[at % length] ^= 1 << dice.below(8),
            1 if length > 0 => bytes[at % length] = dice.next().to_ne_bytes()[0],
            2 => {
                bytes.drain(at..end);
            }
            3 => bytes.truncate(at),
            4 => {
                let doubled = bytes[at..end].to_vec();
                let times = 1 + dice.below(32);
                bytes.splice(at..at, doubled.repeat(times));
            }
            // Numbers that are special to somebody, in words of one to eight bytes.
            5 | 6 => {
                const SPECIAL: [u64; 12] =
                    [0, 1, 2, 3, 4, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0x8000_0000, u64::MAX, u64::MAX >> 1];
                let word = SPECIAL[dice.below(SPECIAL.len())].to_ne_bytes();
                let width = (1 << dice.below(4)).min(length - at);
                bytes[at..at + width].copy_from_slice(&word[..width]);
            }
            // A part of another input.
            7 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len() + 1);
                let to = from + dice.below((other.len() - from).min(256) + 1);
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            // What texts are made of.
            8 => {
                const TEXT: &[u8] = b" \t\n\\/:,;.-_[]{}()0123456789azAZ\0\x1b\xff\xc3";
                bytes.insert(at, TEXT[dice.below(TEXT.len())]);
            }
            _ => bytes[at..end].reverse(),
        }
    }
    bytes
}

/// Numbers by chance: splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// At least 0 and less than `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or_default()
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Counts what each thread of a test allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(added: usize, removed: usize) {
    // Memory may be freed by another thread than had it.
    let allocated = ALLOCATED.get().saturating_add(added).saturating_sub(removed);
    ALLOCATED.set(allocated);
    PEAK.set(PEAK.get().max(allocated));
}

// SAFETY: everything is done by the system's allocator; the counters are thread-locals that need no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

mod tests {
    use super::*;

    fn fails(parse: impl Fn(&[u8])) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let mut dice = Dice(1);
        let corpus = [b"abc".to_vec()];
        let found = (0..2000).any(|_| {
            let input = mutation(&corpus, &mut dice);
            catch_unwind(AssertUnwindSafe(|| try_one(directory.path(), &input, &parse))).is_err()
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), usize::from(found));
        found
    }

    #[test]
    fn a_parser_that_is_careless_is_found_out() {
        assert!(!fails(|bytes| drop(bytes.to_vec())));
        assert!(fails(|bytes| assert!(!bytes.starts_with(b"a\\"))));
        assert!(fails(|bytes| assert!(bytes.len() < 100)));
        assert!(fails(|bytes| drop(Vec::<u8>::with_capacity(usize::from(bytes.len() > 9) << 25))));
    }
}
