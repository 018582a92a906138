//! Reading the counters of every network namespace at the right moments: before, meanwhile and after.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::account::{Caveat, Delta};
use super::figures::{Reading, Tally, add, delta, went_back};
use super::netlink::{self, CtnetlinkError};
use super::netns::{self, Depth, Netns};
use super::procfs::{self, ProcfsError};
use crate::race::event::NetnsInum;

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
#[derive(Debug)]
pub struct Accounts {
    watched: BTreeMap<NetnsInum, Watched>,
    /// Numbers that even a search through every open file did not find, not to be searched for again until they turn up.
    lost: BTreeSet<NetnsInum>,
}

/// One namespace.
#[derive(Debug)]
struct Watched {
    netns: Netns,
    /// What was counted so far; or why it cannot be known.
    counted: Result<Counted, String>,
    caveat: Option<Caveat>,
}

#[derive(Debug)]
struct Counted {
    cookie: Option<u64>,
    last: Reading,
    sum: Tally<Option<u64>>,
}

/// A reading, with the cookie of the namespace it is of; or why there is none.
type Sample = Result<(Option<u64>, Reading), String>;

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
            let counted = sample.map(|(cookie, last)| {
                let sum = delta(&last, &last);
                Counted { cookie, last, sum }
            });
            watched.insert(netns.inum, Watched { netns, counted, caveat: None });
        }
        Ok(Self { watched, lost: BTreeSet::new() })
    }

    /// Reads the given namespaces again, so that one that goes away keeps its last figures. To be called about once a
    /// second with those that have had races.
    ///
    /// # Errors
    /// Namespaces cannot be found at all.
    pub fn sample(&mut self, involved: &[NetnsInum]) -> Result<(), CountersError> {
        let missing: BTreeSet<_> = involved.iter().copied().filter(|&inum| !self.read_known(inum)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let listed = netns::enumerate(Depth::Threads).map_err(CountersError::Enumerate)?;
        self.find(missing, &listed)
    }

    /// Reads everything again, namespaces made since the start included, and gives what was counted in each.
    ///
    /// # Errors
    /// Namespaces cannot be found at all.
    pub fn close(mut self) -> Result<Vec<Delta>, CountersError> {
        let listed = netns::enumerate(Depth::Threads).map_err(CountersError::Enumerate)?;
        let known: Vec<_> = self.watched.keys().copied().collect();
        let missing = known.into_iter().filter(|&inum| !self.read_known(inum)).collect();
        for netns in &listed {
            if !self.watched.contains_key(&netns.inum) {
                self.read(netns);
            }
        }
        self.find(missing, &listed)?;
        let delta = |(inum, watched): (NetnsInum, Watched)| Delta {
            netns: inum,
            counters: watched.counted.map(|counted| counted.sum),
            caveat: watched.caveat,
        };
        Ok(self.watched.into_iter().map(delta).collect())
    }

    /// Reads a namespace where it was last found; `false` when it is not there.
    fn read_known(&mut self, inum: NetnsInum) -> bool {
        let Some(netns) = self.watched.get(&inum).map(|watched| watched.netns.clone()) else { return false };
        self.read(&netns)
    }

    /// Reads those of `missing` that are listed, and searches for the rest once.
    fn find(&mut self, mut missing: BTreeSet<NetnsInum>, listed: &[Netns]) -> Result<(), CountersError> {
        for netns in listed {
            if missing.contains(&netns.inum) && self.read(netns) {
                missing.remove(&netns.inum);
            }
        }
        let unsearched: BTreeSet<_> = missing.difference(&self.lost).copied().collect();
        if !unsearched.is_empty() {
            for netns in netns::search(&unsearched).map_err(CountersError::Enumerate)? {
                if self.read(&netns) {
                    missing.remove(&netns.inum);
                }
            }
        }
        for inum in missing {
            self.lost.insert(inum);
            if let Some(watched) = self.watched.get_mut(&inum) {
                watched.caveat.get_or_insert(Caveat::Ended);
            }
        }
        Ok(())
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
            let counted = sample.map(|(cookie, last)| Counted { cookie, sum: delta(&Reading::new(), &last), last });
            self.watched.insert(netns.inum, Watched { netns: netns.clone(), counted, caveat: None });
            return;
        };
        watched.netns = netns.clone();
        // Without a baseline, or without a reading, what was counted stays unknown.
        let Ok(counted) = &mut watched.counted else { return };
        let (cookie, now) = match sample {
            Ok(sample) => sample,
            Err(why) => {
                watched.counted = Err(why);
                return;
            }
        };
        let another = counted.cookie.zip(cookie).is_some_and(|(before, now)| before != now);
        if another || went_back(&counted.last, &now) {
            counted.last.clear();
            watched.caveat = Some(Caveat::Restarted);
        } else if watched.caveat == Some(Caveat::Ended) {
            watched.caveat = None;
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
        let reading = read().map_err(|error| error.to_string())?;
        Ok((netns::cookie(), reading))
    });
    Some(inside.unwrap_or_else(|error| Err(format!("the network namespace cannot be entered: {error}"))))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    use super::super::netns::tests::{alone, new_netns};
    use super::*;

    /// Two ends of a veth pair, and a rule that leaves every flow to port 53 the same single source port.
    const ONE_PORT: &str = "
        ip link set lo up && ip link add va type veth peer name vb && ip addr add 192.0.2.1/24 dev va &&
        ip link set vb up && ip link set va up && ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va &&
        nft 'add table ip t; add chain ip t p { type nat hook postrouting priority 100; };
             add rule ip t p udp dport 53 snat to 192.0.2.1:5000'";

    /// A namespace in which the first flow is sent and each further one fails to be inserted; `None` says why it skips.
    fn one_port() -> Option<OwnedFd> {
        if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: nft is not installed");
            return None;
        }
        let fd = new_netns();
        let made = netns::in_netns(fd.as_fd(), || Command::new("sh").args(["-c", ONE_PORT]).status());
        assert!(made.unwrap().unwrap().success());
        Some(fd)
    }

    /// Sends one datagram of `count` new flows each.
    fn send(fd: &OwnedFd, count: usize) {
        let sent = netns::in_netns(fd.as_fd(), || {
            for _ in 0..count {
                // The loser's own send fails with EPERM; the counters are what this is about.
                let _ = UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.9:53");
            }
        });
        sent.unwrap();
    }

    fn inum(fd: &OwnedFd) -> NetnsInum {
        Netns::of(fd.as_fd()).unwrap().inum
    }

    fn of(deltas: &[Delta], inum: NetnsInum) -> Delta {
        deltas.iter().find(|delta| delta.netns == inum).cloned().unwrap()
    }

    fn failed_and_dropped(delta: &Delta) -> (Option<u64>, Option<u64>) {
        let counters = delta.counters.as_ref().unwrap();
        (counters.insert_failed, counters.drop)
    }

    #[test]
    fn only_what_happens_after_opening_counts() {
        let Some(_alone) = alone() else { return };
        let Some(fd) = one_port() else { return };
        send(&fd, 4);
        let mut accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
        send(&fd, 2);
        accounts.sample(&[inum(&fd)]).unwrap();
        send(&fd, 3);
        let delta = of(&accounts.close().unwrap(), inum(&fd));
        assert_eq!(failed_and_dropped(&delta), (Some(5), Some(5)));
        assert_eq!(delta.caveat, None);
    }

    #[test]
    fn both_sources_agree() {
        let Some(_alone) = alone() else { return };
        let Some(fd) = one_port() else { return };
        send(&fd, 3);
        let (ctnetlink, procfs) = netns::in_netns(fd.as_fd(), || (netlink::read(), procfs::read())).unwrap();
        let ctnetlink = ctnetlink.unwrap();
        assert_eq!(delta(&Reading::new(), &ctnetlink).insert_failed, Some(2));
        match procfs {
            Ok(procfs) => assert_eq!(procfs, ctnetlink),
            Err(error) => eprintln!("only one source here: {error}"),
        }
    }

    #[test]
    fn a_namespace_made_later_counts_from_zero() {
        let Some(_alone) = alone() else { return };
        let mut accounts = Accounts::open().unwrap();
        let Some(fd) = one_port() else { return };
        send(&fd, 3);
        accounts.sample(&[inum(&fd)]).unwrap();
        assert_eq!(failed_and_dropped(&of(&accounts.close().unwrap(), inum(&fd))), (Some(2), Some(2)));
    }

    #[test]
    fn a_namespace_that_goes_keeps_its_last_figures() {
        let Some(_alone) = alone() else { return };
        let Some(fd) = one_port() else { return };
        let inum = inum(&fd);
        let mut accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
        send(&fd, 3);
        accounts.sample(&[inum]).unwrap();
        drop(fd);
        // Nothing of ours may keep it alive; its number may go to another test's namespace, so ask for what was held.
        let delta = of(&accounts.close().unwrap(), inum);
        assert_eq!(failed_and_dropped(&delta), (Some(2), Some(2)));
        assert!(delta.caveat.is_some());
    }

    #[test]
    fn another_namespace_with_the_same_number_starts_at_zero() {
        let netns = Netns::current().unwrap();
        let with = |insert_failed| {
            let tally = Tally { insert_failed: Some(insert_failed), ..Tally::default() };
            let counters = super::super::figures::CpuCounters { tally, ..Default::default() };
            Reading::from([(0, counters)])
        };
        let mut accounts = Accounts { watched: BTreeMap::new(), lost: BTreeSet::new() };
        accounts.record(&netns, Ok((Some(1), with(10))));
        accounts.record(&netns, Ok((Some(1), with(12))));
        accounts.record(&netns, Ok((Some(2), with(13))));
        let watched = &accounts.watched[&netns.inum];
        assert_eq!(watched.counted.as_ref().unwrap().sum.insert_failed, Some(12 + 13));
        assert_eq!(watched.caveat, Some(Caveat::Restarted));
        // Without cookies, going back tells.
        accounts.record(&netns, Ok((None, with(1))));
        assert_eq!(accounts.watched[&netns.inum].counted.as_ref().unwrap().sum.insert_failed, Some(12 + 13 + 1));
    }

    #[test]
    fn without_a_baseline_there_are_no_figures() {
        let netns = Netns::current().unwrap();
        let mut accounts = Accounts { watched: BTreeMap::new(), lost: BTreeSet::new() };
        accounts.record(&netns, Err("no".into()));
        accounts.record(&netns, Ok((None, Reading::new())));
        assert_eq!(accounts.watched[&netns.inum].counted.as_ref().unwrap_err(), "no");
    }

    #[test]
    fn nothing_is_held_open() {
        let Some(_alone) = alone() else { return };
        let fd = new_netns();
        let inum = inum(&fd);
        let accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
        drop(fd);
        assert_eq!(netns::search(&BTreeSet::from([inum])).unwrap(), []);
        drop(accounts);
    }
}
