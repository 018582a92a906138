//! Which races can stand in the counters of a network namespace: those between its first and its last reading.

use std::collections::BTreeMap;

use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// A clash is counted within so many nanoseconds of the hook's look at the clock: both happen in one call of
/// `nf_ct_resolve_clash`, with bottom halves off, so only the hook's own work and hard interrupts lie between, unless a
/// hypervisor takes the CPU away just there: 100 us were too few for one reading in fifteen on an emulated CPU.
const COUNTED_WITHIN: u64 = 10_000_000;

/// When a reading was taken. It looks at one CPU's counters after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Taken {
    /// Before the first counter was read.
    pub began: KernelTime,
    /// After the last.
    pub ended: KernelTime,
}

impl Taken {
    /// Whether a clash seen at `time` is in the reading; `None` when it may or may not be.
    fn has(self, time: KernelTime) -> Option<bool> {
        if time > self.ended {
            Some(false)
        } else if time.nanoseconds().saturating_add(COUNTED_WITHIN) < self.began.nanoseconds() {
            Some(true)
        } else {
            None
        }
    }
}

/// Where a race lies to the readings of its namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Between the first and the last: it was counted.
    Inside,
    /// During one of them: it may have been counted.
    Edge,
    /// Before the first or after the last: it was not counted.
    Outside,
}

/// The first and the last reading of one namespace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// `None` when it counted from zero, being made while we watched.
    pub from: Option<Taken>,
    /// `None` as long as it is not taken, and for a namespace that was gone by then.
    pub to: Option<Taken>,
}

impl Window {
    /// Where a race at `time` lies.
    #[must_use]
    pub fn place(self, time: KernelTime) -> Place {
        let in_first = self.from.map_or(Some(false), |reading| reading.has(time));
        let in_last = self.to.map_or(Some(true), |reading| reading.has(time));
        match (in_first, in_last) {
            (Some(true), _) | (_, Some(false)) => Place::Outside,
            (Some(false), Some(true)) => Place::Inside,
            (None, _) | (_, None) => Place::Edge,
        }
    }
}

/// The window of every namespace that was read.
#[derive(Clone, Debug, Default)]
pub struct Windows(BTreeMap<NetnsInum, Window>);

impl Windows {
    /// That of one namespace; open at both ends when it was not read.
    #[must_use]
    pub fn of(&self, netns: NetnsInum) -> Window {
        self.0.get(&netns).copied().unwrap_or_default()
    }

    /// Where a race or failure at `time` lies.
    #[must_use]
    pub fn place(&self, netns: Option<NetnsInum>, time: KernelTime) -> Place {
        netns.map_or_else(Window::default, |netns| self.of(netns)).place(time)
    }
}

impl FromIterator<(NetnsInum, Window)> for Windows {
    fn from_iter<I: IntoIterator<Item = (NetnsInum, Window)>>(windows: I) -> Self {
        Self(windows.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In hundredths of [`COUNTED_WITHIN`].
    fn at(hundredths: u64) -> KernelTime {
        KernelTime::from_record(hundredths * (COUNTED_WITHIN / 100)).unwrap()
    }

    fn taken(began: u64, ended: u64) -> Option<Taken> {
        Some(Taken { began: at(began), ended: at(ended) })
    }

    #[test]
    fn places() {
        let both = Window { from: taken(1000, 1020), to: taken(5000, 5020) };
        let table = [
            (1, Place::Outside),
            (899, Place::Outside),
            // Seen before the reading, perhaps counted after it.
            (900, Place::Edge),
            (1020, Place::Edge),
            (1021, Place::Inside),
            (4899, Place::Inside),
            (4900, Place::Edge),
            (5020, Place::Edge),
            (5021, Place::Outside),
        ];
        for (time, place) in table {
            assert_eq!(both.place(at(time)), place, "{time}");
        }
    }

    #[test]
    fn an_end_that_is_open() {
        let new = Window { from: None, to: taken(5000, 5020) };
        assert_eq!([1, 5010, 5021].map(|time| new.place(at(time))), [Place::Inside, Place::Edge, Place::Outside]);
        let unread = Window { from: taken(1000, 1020), to: None };
        assert_eq!([1, 1010, 9999].map(|time| unread.place(at(time))), [Place::Outside, Place::Edge, Place::Inside]);
        assert_eq!(Window::default().place(at(1)), Place::Inside);
    }

    #[test]
    fn readings_so_close_that_they_touch() {
        let both = Window { from: taken(1000, 1020), to: taken(1050, 1060) };
        assert_eq!(
            [899, 1000, 1030, 1061].map(|time| both.place(at(time))),
            [Place::Outside, Place::Edge, Place::Edge, Place::Outside]
        );
    }
}
