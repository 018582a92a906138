//! Reading the counters of every network namespace at the right moments: before, meanwhile and after.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::account::{Caveat, Delta};
use super::figures::{Reading, Tally, add, delta, went_back};
use super::netlink::{self, CtnetlinkError};
use super::netns::{self, Depth, Netns};
use super::procfs::{self, ProcfsError};
use super::window::{Taken, Window, Windows};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// Of so many network namespaces at most the counters are sampled without a race in them.
pub const SAMPLED: usize = 64;

/// Why the counters of a network namespace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// Network namespaces cannot be found.
    #[error("network namespaces cannot be found: {0} (is /proc mounted?)")]
    Enumerate(#[source] io::Error),
    /// Neither source has them.
    #[error("{0}; {1}")]
    NoSource(CtnetlinkError, ProcfsError),
}

/// Reads the counters of the calling thread's network namespace: over ctnetlink, or else from `/proc`.
///
/// # Errors
/// Neither source has them.
pub fn read() -> Result<Reading, CountersError> {
    netlink::read().or_else(|ctnetlink| procfs::read().map_err(|procfs| CountersError::NoSource(ctnetlink, procfs)))
}

/// The counters of every network namespace since they were first read. Holds no namespace alive.
#[derive(Debug, Default)]
pub struct Accounts {
    watched: BTreeMap<NetnsInum, Watched>,
    /// Those that had races and are not known to be gone.
    involved: BTreeSet<NetnsInum>,
    /// Others that were read with them the last time.
    sampled: Vec<NetnsInum>,
    /// How many were not, because there are too many.
    left_out: u64,
    /// Numbers that even a search through every open file did not find, not to be searched for again until they turn up.
    lost: BTreeSet<NetnsInum>,
    /// How many namespaces went away and left their number to another.
    replaced: u64,
}

/// What came of an [`Accounts`].
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// What each namespace counted.
    pub deltas: Vec<Delta>,
    /// When it was first and last read.
    pub windows: Windows,
    /// How many namespaces went away meanwhile.
    pub ended: u64,
}

/// One namespace.
#[derive(Debug)]
struct Watched {
    netns: Netns,
    /// What was counted so far; or why it cannot be known.
    counted: Result<Counted, String>,
    /// It was not there when last looked for.
    gone: bool,
    /// See [`Caveat::Restarted`].
    restarted: bool,
    window: Window,
}

#[derive(Debug)]
struct Counted {
    cookie: Option<u64>,
    last: Reading,
    sum: Tally<Option<u64>>,
}

impl Watched {
    fn new(netns: Netns, counted: Result<Counted, String>, window: Window) -> Self {
        Self { netns, counted, gone: false, restarted: false, window }
    }

    fn caveat(&self) -> Option<Caveat> {
        match (self.gone, self.restarted) {
            (true, _) => Some(Caveat::Ended),
            (false, true) => Some(Caveat::Restarted),
            (false, false) => None,
        }
    }
}

/// A reading; or why there is none.
type Sample = Result<Sampled, String>;

/// A reading of a namespace.
#[derive(Debug)]
struct Sampled {
    cookie: Option<u64>,
    reading: Reading,
    taken: Taken,
}

impl Accounts {
    /// Reads every namespace that can be found, and takes that as the baseline. The one look through every open file
    /// of every process happens here, so that what is found later is known to be new.
    ///
    /// # Errors
    /// Namespaces cannot be found at all. One that cannot be read is no error: its account says why.
    pub fn open() -> Result<Self, CountersError> {
        Self::open_with(&[])
    }

    /// As [`open`](Self::open), with namespaces that the caller holds and keeps holding.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(held: &[BorrowedFd<'_>]) -> Result<Self, CountersError> {
        let mut all =
            held.iter().map(|&fd| Netns::of(fd)).collect::<io::Result<Vec<_>>>().map_err(CountersError::Enumerate)?;
        all.extend(netns::enumerate(Depth::Descriptors).map_err(CountersError::Enumerate)?);
        let mut watched = BTreeMap::new();
        for netns in all {
            if watched.contains_key(&netns.inum) {
                continue;
            }
            // Gone since it was listed: should its number come again, it is a new one.
            let Some(sample) = sample(&netns) else { continue };
            let window = Window { from: sample.as_ref().ok().map(|sampled| sampled.taken), to: None };
            let counted = sample.map(|Sampled { cookie, reading: last, taken: _ }| {
                let sum = delta(&last, &last);
                Counted { cookie, last, sum }
            });
            watched.insert(netns.inum, Watched::new(netns, counted, window));
        }
        Ok(Self { watched, ..Self::default() })
    }

    /// From when each namespace was read. A race is judged by this while the last reading is still to come: what the
    /// reordering bound has let through by then is older than any reading that follows.
    #[must_use]
    pub fn windows(&self) -> Windows {
        let from = |(&inum, watched): (&NetnsInum, &Watched)| (inum, Window { to: None, ..watched.window });
        self.watched.iter().map(from).collect()
    }

    /// Whether there is anything to [`sample`](Self::sample).
    #[must_use]
    pub fn involved(&self) -> bool {
        !self.involved.is_empty()
    }

    /// Reads the given namespaces and those given before again, so that one that goes away keeps its last figures. To be
    /// called about once a second with those that have had races since. One that is not found is not looked for again
    /// until it is given again.
    ///
    /// # Errors
    /// Namespaces cannot be found at all.
    pub fn sample(&mut self, involved: impl IntoIterator<Item = NetnsInum>) -> Result<(), CountersError> {
        self.involved.extend(involved);
        let missing: BTreeSet<_> = self.involved.clone().into_iter().filter(|&inum| !self.read_known(inum)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let listed = netns::enumerate(Depth::Threads).map_err(CountersError::Enumerate)?;
        for gone in self.find(missing, &listed)? {
            self.involved.remove(&gone);
        }
        Ok(())
    }

    /// As [`sample`](Self::sample), and reads [`SAMPLED`] of the other namespaces that were there at the start. They are not
    /// searched for: one that is not where it was is left to the end.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_all(&mut self, involved: impl IntoIterator<Item = NetnsInum>) -> Result<(), CountersError> {
        self.sample(involved)?;
        let is_other = |&(inum, watched): &(&NetnsInum, &Watched)| {
            watched.counted.is_ok() && !watched.gone && !self.involved.contains(inum)
        };
        let others: Vec<_> = self.watched.iter().filter(is_other).map(|(&inum, _)| inum).collect();
        let mut rest = others.into_iter();
        self.sampled = rest.by_ref().filter(|&inum| self.read_known(inum)).take(SAMPLED).collect();
        self.left_out = rest.count() as u64;
        Ok(())
    }

    /// How many namespaces the last [`sample_all`](Self::sample_all) left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What those namespaces have counted since they were first read, as of the last reading.
    #[must_use]
    pub fn so_far(&self) -> Vec<(NetnsInum, Tally<Option<u64>>)> {
        let counted = |inum| Some((inum, self.watched.get(&inum)?.counted.as_ref().ok()?.sum));
        self.involved.iter().chain(&self.sampled).copied().filter_map(counted).collect()
    }

    /// Reads everything again, namespaces made since the start included, and gives what was counted in each. Those that have
    /// had races since the last [`sample`](Self::sample) are searched for as there.
    ///
    /// # Errors
    /// Namespaces cannot be found at all.
    pub fn close(mut self, involved: impl IntoIterator<Item = NetnsInum>) -> Result<Closed, CountersError> {
        let listed = netns::enumerate(Depth::Threads).map_err(CountersError::Enumerate)?;
        let known: BTreeSet<_> = self.watched.keys().copied().chain(involved).collect();
        let missing = known.into_iter().filter(|&inum| !self.read_known(inum)).collect();
        for netns in &listed {
            if !self.watched.contains_key(&netns.inum) {
                self.read(netns);
            }
        }
        self.find(missing, &listed)?;
        let gone = self.watched.values().map(|watched| u64::from(watched.gone)).sum::<u64>();
        Ok(Closed {
            windows: self.watched.iter().map(|(&inum, watched)| (inum, watched.window)).collect(),
            ended: self.replaced + gone,
            deltas: self
                .watched
                .into_iter()
                .map(|(netns, watched)| Delta {
                    netns,
                    caveat: watched.caveat(),
                    counters: watched.counted.map(|counted| counted.sum),
                })
                .collect(),
        })
    }

    /// Reads a namespace where it was last found; `false` when it is not there.
    fn read_known(&mut self, inum: NetnsInum) -> bool {
        let Some(netns) = self.watched.get(&inum).map(|watched| watched.netns.clone()) else { return false };
        self.read(&netns)
    }

    /// Reads those of `missing` that are listed, and searches for the rest once; those that are gone.
    fn find(
        &mut self,
        mut missing: BTreeSet<NetnsInum>,
        listed: &[Netns],
    ) -> Result<BTreeSet<NetnsInum>, CountersError> {
        for netns in listed {
            if missing.contains(&netns.inum) && self.read(netns) {
                missing.remove(&netns.inum);
            }
        }
        let unsearched: BTreeSet<_> = missing.difference(&self.lost).copied().collect();
        let read = |netns: &Netns| {
            let read = self.read(netns);
            if read {
                missing.remove(&netns.inum);
            }
            read
        };
        netns::search(unsearched, read).map_err(CountersError::Enumerate)?;
        for &inum in &missing {
            self.lost.insert(inum);
            if let Some(watched) = self.watched.get_mut(&inum) {
                watched.gone = true;
                // Which reading would be the last was not known when its races came.
                watched.window.to = None;
            }
        }
        Ok(missing)
    }

    /// Reads one; `false` when it is gone.
    fn read(&mut self, netns: &Netns) -> bool {
        let Some(sample) = sample(netns) else { return false };
        self.lost.remove(&netns.inum);
        self.record(netns, sample);
        true
    }

    /// Adds a sample to the account of its namespace.
    fn record(&mut self, netns: &Netns, sample: Sample) {
        let Some(watched) = self.watched.get_mut(&netns.inum) else {
            // Not there at the start, so it counted from zero.
            let window = Window { from: None, to: sample.as_ref().ok().map(|sampled| sampled.taken) };
            let counted = sample.map(|Sampled { cookie, reading: last, taken: _ }| Counted {
                cookie,
                sum: delta(&Reading::new(), &last),
                last,
            });
            self.watched.insert(netns.inum, Watched::new(netns.clone(), counted, window));
            return;
        };
        (watched.netns, watched.gone) = (netns.clone(), false);
        // Without a baseline, or without a reading, what was counted stays unknown.
        let Ok(counted) = &mut watched.counted else { return };
        let Sampled { cookie, reading: now, taken } = match sample {
            Ok(sampled) => sampled,
            Err(why) => {
                (watched.counted, watched.window.to) = (Err(why), None);
                return;
            }
        };
        watched.window.to = Some(taken);
        let same = counted.cookie.zip(cookie).map(|(before, now)| before == now);
        if same == Some(false) || went_back(&counted.last, &now) {
            self.replaced += u64::from(same != Some(true));
            counted.last.clear();
            watched.restarted = true;
        }
        counted.sum = counted.sum.zip(delta(&counted.last, &now), add);
        (counted.cookie, counted.last) = (cookie, now);
    }
}

/// Reads one namespace; `None` when it is gone.
fn sample(netns: &Netns) -> Option<Sample> {
    let fd = match netns.open() {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(format!("the network namespace cannot be opened: {error}"))),
    };
    let inside = netns::in_netns(fd.as_fd(), || {
        let began = KernelTime::now();
        let reading = read().map_err(|error| error.to_string())?;
        let taken = Taken { began, ended: KernelTime::now() };
        Ok(Sampled { cookie: netns::cookie(), reading, taken })
    });
    Some(inside.unwrap_or_else(|error| Err(format!("the network namespace cannot be entered: {error}"))))
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
