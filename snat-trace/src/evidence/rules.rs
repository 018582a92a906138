//! The rules of every network namespace that had a race, read in the background when its first one is seen.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::audit::{Audit, Look};
use crate::race::event::NetnsInum;
use crate::race::time::KernelTime;

/// Of so many namespaces at most the rules are kept.
const MOST: usize = 64;
/// How long the end of a recording waits for rules that are being read; less than a watch gives its output for its last words.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Reads the rules of one network namespace, and says of what could not be read why.
pub type LookAt = fn(NetnsInum) -> Look;

/// What translates sources in one network namespace, and what of it makes races likely.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// When they had been read.
    pub time: KernelTime,
    /// Where.
    pub netns: NetnsInum,
    /// How many entries its connection tracking table had, and how many it may have.
    pub entries: Option<(u64, u64)>,
    /// Whether it is the network namespace the recorder ran in, which is there as long as that is; `None` where that is not
    /// known.
    pub own: Option<bool>,
    /// Whether names and addresses in it are exchanged.
    pub redacted: bool,
    /// The rules, judged.
    pub audit: Audit,
}

/// A thread that reads them, one namespace after the other.
#[derive(Debug)]
pub(super) struct Reading {
    wanted: Sender<NetnsInum>,
    read: Receiver<Rules>,
    /// Namespaces that were asked for.
    asked: BTreeSet<NetnsInum>,
    /// How many answers are still to come.
    to_come: usize,
    /// Those that came, for heads of files to come.
    known: Vec<Rules>,
}

impl Reading {
    /// Starts the thread. It ends when nothing more is wanted of it.
    pub(super) fn start(look_at: LookAt) -> io::Result<Self> {
        let (wanted, asked) = mpsc::channel();
        let (answer, read) = mpsc::channel();
        thread::Builder::new().name("rules".into()).spawn(move || {
            for netns in asked {
                let look = look_at(netns);
                let (time, entries, own, audit) = (KernelTime::now(), look.entries(), look.is_own(), Audit::new(&look));
                if answer.send(Rules { time, netns, entries, own, redacted: false, audit }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { wanted, read, asked: BTreeSet::new(), to_come: 0, known: Vec::new() })
    }

    /// Has the rules of a namespace read, unless they were asked for before.
    pub(super) fn want(&mut self, netns: NetnsInum) {
        if self.asked.len() < MOST && self.asked.insert(netns) && self.wanted.send(netns).is_ok() {
            self.to_come += 1;
        }
    }

    /// What has come since this was last asked.
    pub(super) fn take(&mut self) -> Vec<Rules> {
        let come: Vec<_> = self.read.try_iter().collect();
        self.to_come -= come.len();
        self.known.extend(come.iter().cloned());
        come
    }

    /// What comes in time before a recording ends.
    pub(super) fn take_last(&mut self) -> Vec<Rules> {
        let deadline = Instant::now() + PATIENCE;
        let mut come = self.take();
        while self.to_come > 0
            && let Ok(rules) = self.read.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.to_come -= 1;
            come.push(rules);
        }
        if self.to_come > 0 {
            tracing::warn!("the NAT rules of {} network namespaces are not in the evidence: no time", self.to_come);
        }
        come
    }

    /// Everything that came before.
    pub(super) fn known(&self) -> &[Rules] {
        &self.known
    }
}
