//! What the recordings of a file say, added up. Its size grows with the number of different places and senders, and by some
//! bytes for each race.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::attribution::{Attribution, Cause};
use crate::audit::Finding;
use crate::evidence::node::NodeRecord;
use crate::evidence::{Cut, Item, Redactor, Rules, Sample};
use crate::owner::{Container, Owner};
use crate::race::event::{Class, Flow, NetnsInum, Race, Verdict};
use crate::race::failure::Reason;
use crate::race::time::KernelTime;
use crate::race::tuple::Protocol;
use crate::session::Session;
use crate::summary::Summary;

/// So many races are told one by one.
const EXAMPLES: usize = 10;

/// What a file of evidence comes to.
#[derive(Debug, Default)]
pub struct Case {
    pub(super) recordings: Vec<Recording>,
    /// The machine, as the last recording found it.
    pub(super) node: Option<Box<NodeRecord>>,
    pub(super) classes: BTreeMap<(Class, Outcome), u64>,
    pub(super) failures: BTreeMap<Reason, u64>,
    /// When each race was, and whether its packet was dropped.
    pub(super) times: Vec<(KernelTime, Outcome)>,
    /// How long both flows of each race had the port.
    pub(super) overlaps: Vec<Duration>,
    pub(super) destinations: HashMap<(Protocol, SocketAddr), u64>,
    pub(super) contested: HashMap<(Protocol, SocketAddr), u64>,
    /// Losers and winners, as far as they are known.
    pub(super) pairs: HashMap<(String, String), u64>,
    /// Races toward addresses that sites use within themselves (RFC 1918, RFC 4193).
    pub(super) private: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) rules: Vec<Rules>,
    /// What port collisions came by, the most frequent first.
    pub(super) by_rule: Vec<(Cause, u64)>,
    pub(super) examples: Vec<Race>,
    /// How the file ends.
    pub(super) cut: Option<Cut>,
    attribution: Attribution,
    /// Exchanges what is told, so that it names nobody.
    redactor: Option<Redactor>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Outcome {
    Dropped,
    Resolved,
    Unknown,
}

/// One run of the tracer.
#[derive(Debug)]
pub(super) struct Recording {
    pub session: Session,
    /// Absent where the recording has no end.
    pub summary: Option<Summary>,
    /// The last moment anything is known of.
    pub last: KernelTime,
}

impl Recording {
    pub(super) fn duration(&self) -> Duration {
        self.last.since(self.session.started)
    }
}

impl Case {
    /// One whose documents name nobody.
    #[must_use]
    pub fn redacted(redactor: Redactor) -> Self {
        Self { redactor: Some(redactor), ..Self::default() }
    }

    /// Takes in the next item of a file.
    pub fn add(&mut self, item: Item) {
        // Which address is in which range is known before they are exchanged.
        let mut read = Vec::new();
        match &item {
            Item::Race(race) => self.attribution.race(race),
            Item::Rules(rules) => read.clone_from(&rules.audit.rules),
            _ => {}
        }
        let item = match &self.redactor {
            Some(redactor) => redactor.item(item),
            None => item,
        };
        match item {
            Item::Session(session) => self.begin(*session),
            Item::Node(node) => self.node = Some(node),
            Item::Race(race) => self.add_race(*race),
            Item::Failure(failure) => {
                self.reach(failure.time);
                *self.failures.entry(failure.reason).or_default() += 1;
            }
            Item::Rules(rules) => {
                self.attribution.rules(rules.netns, read, &rules);
                self.rules.push(*rules);
            }
            Item::Sample(sample) => {
                self.reach(sample.time);
                self.samples.push(sample);
            }
            Item::Summary(summary) => {
                self.reach(summary.span.ended);
                if let Some(recording) = self.recordings.last_mut() {
                    recording.summary = Some(*summary);
                }
                self.attribute();
            }
        }
    }

    /// Says how the file ended.
    pub fn end(&mut self, cut: Cut) {
        self.cut = Some(cut);
        self.attribute();
    }

    fn begin(&mut self, session: Session) {
        let last = session.started;
        if self.recordings.last().is_none_or(|before| !before.session.is_same_run(&session)) {
            self.attribute();
            self.recordings.push(Recording { session, summary: None, last });
        }
    }

    fn reach(&mut self, time: KernelTime) {
        if let Some(recording) = self.recordings.last_mut() {
            recording.last = recording.last.max(time);
        }
    }

    fn add_race(&mut self, race: Race) {
        self.reach(race.time);
        let outcome = match race.verdict {
            Some(Verdict::Dropped) => Outcome::Dropped,
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => Outcome::Resolved,
            None => Outcome::Unknown,
        };
        *self.classes.entry((race.class, outcome)).or_default() += 1;
        self.times.push((race.time, outcome));
        self.overlaps.extend(race.overlap);
        let contested = race.contested.ends();
        let asked = race.loser.original.ends().destination;
        *self.destinations.entry((race.protocol, contested.destination)).or_default() += 1;
        *self.contested.entry((race.protocol, contested.source)).or_default() += 1;
        *self.pairs.entry((sender(&race.loser), sender(&race.winner))).or_default() += 1;
        self.private += u64::from(is_private(asked.ip()));
        if self.examples.len() < EXAMPLES {
            self.examples.push(race);
        }
    }

    /// Says what the collisions of a recording came by.
    fn attribute(&mut self) {
        let summary = self.recordings.last().and_then(|recording| recording.summary.as_ref());
        for (cause, count) in self.attribution.end(summary) {
            match self.by_rule.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, sum)) => *sum += count,
                None => self.by_rule.push((cause, count)),
            }
        }
        self.by_rule.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    }

    /// Whether a network namespace is known to be the one that was recorded from.
    pub(super) fn is_own(&self, netns: NetnsInum) -> bool {
        self.rules.iter().any(|rules| rules.netns == netns && rules.own == Some(true))
    }

    /// Whether a network namespace is known to have gone away.
    pub(super) fn is_gone(&self, netns: NetnsInum) -> bool {
        let mut accounts = self.summaries().flat_map(|summary| &summary.accounts);
        accounts.any(|account| account.netns == Some(netns) && !account.complete)
    }

    /// Private addresses that contested flows went to, the most frequent first.
    pub(super) fn private_destinations(&self) -> Vec<IpAddr> {
        let mut counts = BTreeMap::<IpAddr, u64>::new();
        for ((_, to), count) in self.destinations.iter().filter(|((_, to), _)| is_private(to.ip())) {
            *counts.entry(to.ip()).or_default() += count;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(address, count)| (std::cmp::Reverse(count), address));
        counts.into_iter().map(|(address, _)| address).collect()
    }

    /// How long was watched, over all recordings.
    pub(super) fn watched(&self) -> Duration {
        self.recordings.iter().map(Recording::duration).sum()
    }

    /// Ends of recordings that have one.
    pub(super) fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.recordings.iter().filter_map(|recording| recording.summary.as_ref())
    }

    /// New connections meanwhile; `None` where not every recording knows.
    pub(super) fn connections(&self) -> Option<u64> {
        self.recordings.iter().map(|recording| recording.summary.as_ref()?.connections).sum()
    }

    /// Packets of which it is known that races cost them: by the summaries where not all races are in the file.
    pub(super) fn dropped(&self) -> u64 {
        match self.left_out() {
            0 => self.races(|_, outcome| outcome == Outcome::Dropped),
            _ => self.summaries().map(|summary| summary.dropped).sum(),
        }
    }

    /// Races in the file: of some class, with some outcome.
    pub(super) fn races(&self, which: impl Fn(Class, Outcome) -> bool) -> u64 {
        self.classes.iter().filter(|&(&(class, outcome), _)| which(class, outcome)).map(|(_, count)| count).sum()
    }

    /// Races that were counted and are not in the file: a filter left them out, or they are in earlier files of a rotation.
    pub(super) fn left_out(&self) -> u64 {
        let counted: u64 = self.summaries().map(Summary::races).sum();
        counted.saturating_sub(self.races(|_, _| true))
    }

    /// What the audit found where races were, the most severe first, each once.
    pub(super) fn findings(&self) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> = Vec::new();
        for finding in self.rules.iter().flat_map(|rules| &rules.audit.findings) {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        findings.sort_by_key(|finding| finding.severity);
        findings
    }
}

/// Who sent a flow, in as many words as tell a workload from others; not escaped. Where that is not known, where answers go
/// is told beside the address.
pub(super) fn sender(flow: &Flow) -> String {
    let Some(owner) = &flow.owner else {
        let behind = flow.behind.as_ref().map_or_else(String::new, |behind| format!(", {}", behind.words()));
        return format!("unknown, at {}{behind}", flow.original.ends().source.ip());
    };
    let Owner { comm, container, pod, cgroup, .. } = owner;
    let workload = owner.workload();
    match (pod, container, cgroup) {
        (Some(_), Some(Container { name: Some(name), .. }), _) => format!("{comm}, pod {workload}, container {name}"),
        (Some(_), ..) => format!("{comm}, pod {workload}"),
        (None, Some(Container { runtime, .. }), _) => format!("{comm}, {runtime} {workload}"),
        (None, None, Some(cgroup)) => format!("{comm}, cgroup {cgroup}"),
        (None, None, None) => comm.clone(),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}
