//! Two clocks that must not be mixed: the kernel's monotonic time in records, the wall clock in output.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` gives them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct KernelTime(u64);

impl KernelTime {
    /// From nanoseconds of `CLOCK_MONOTONIC`; the kernel's 0 means "never" and becomes `None`.
    #[must_use]
    pub fn from_record(nanoseconds: u64) -> Option<Self> {
        (nanoseconds != 0).then_some(Self(nanoseconds))
    }

    /// The clock now.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is in fact later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Turns kernel times into wall times, by the difference of the two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Wall minus monotonic time, nanoseconds.
    offset: i128,
}

impl WallClock {
    /// Of `CLOCK_MONOTONIC`, read now.
    #[must_use]
    pub fn now() -> Self {
        Self::of(ClockId::Monotonic)
    }

    /// Reads both clocks now: the wall clock between two looks at the other, the closest of some attempts, as time may pass
    /// between two looks (20 to 50 us on an emulated CPU).
    pub(crate) fn of(clock: ClockId) -> Self {
        const ATTEMPTS: usize = 16;

        let nanoseconds = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        let attempt = || {
            let before = nanoseconds(clock);
            let wall = nanoseconds(ClockId::Realtime);
            let apart = nanoseconds(clock) - before;
            (apart, wall - before - apart / 2)
        };
        let closest = (0..ATTEMPTS).map(|_| attempt()).min_by_key(|&(apart, _)| apart);
        Self { offset: closest.map_or(0, |(_, offset)| offset) }
    }

    /// A clock whose monotonic zero is `offset` nanoseconds after the Unix epoch.
    #[must_use]
    pub fn from_offset(offset: i128) -> Self {
        Self { offset }
    }

    /// Wall minus monotonic time, nanoseconds; the nearest there is where 64 bits do not hold it.
    #[must_use]
    pub fn offset_ns(self) -> i64 {
        i64::try_from(self.offset).unwrap_or(if self.offset < 0 { i64::MIN } else { i64::MAX })
    }

    /// The wall time of a kernel time. A time outside the range of the calendar gives the epoch.
    #[must_use]
    pub fn wall(self, time: KernelTime) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(self.offset + i128::from(time.0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}
