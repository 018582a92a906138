//! What else is not the same on both sides, and what to know before believing a verdict.

use std::collections::{BTreeMap, BTreeSet};

use super::{Basis, Comparison, Kind, Side};
use crate::evidence::Cut;
use crate::evidence::node::{Cni, CniPlugin, NodeRecord};

/// Settings that are no settings: they change as the node is used.
const USE: [&str; 1] = ["net.netfilter.nf_conntrack_count"];
/// From how many races a burst on it is worth saying.
const BURSTY: f64 = 1.5;

/// Something that differs. Text in it comes from outside and is not escaped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Difference {
    pub(super) what: String,
    pub(super) before: String,
    pub(super) after: String,
}

impl Comparison {
    /// Everything that differs and may have made the difference.
    pub(super) fn differences(&self) -> Vec<Difference> {
        let of = |side: &Side| {
            let mut facts = BTreeMap::from([
                ("kernel".to_owned(), list(&side.kernels)),
                ("level of detail".to_owned(), list(&side.details)),
            ]);
            if let Some(node) = &side.node {
                facts.extend(settings(node));
            }
            facts
        };
        let (before, after) = (of(&self.before), of(&self.after));
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let value =
            |facts: &BTreeMap<String, String>, name| facts.get(name).cloned().unwrap_or_else(|| "none".to_owned());
        let facts = names.into_iter().map(|name| Difference {
            what: name.clone(),
            before: value(&before, name),
            after: value(&after, name),
        });
        let sets = [
            ("hooks", Some((&self.before.hooks, &self.after.hooks))),
            ("modules", self.nodes().map(|(before, after)| (&before.modules, &after.modules))),
            ("container networks", self.nodes().map(|(before, after)| (&before.networks, &after.networks))),
        ];
        let only = |these: &BTreeSet<String>, those| list(&these.difference(those).collect());
        let sets = sets.into_iter().filter_map(|(what, sets)| {
            let (before, after) = sets?;
            Some(Difference {
                what: format!("{what} only there"),
                before: only(before, after),
                after: only(after, before),
            })
        });
        facts.chain(sets).filter(|difference| difference.before != difference.after).collect()
    }

    fn nodes(&self) -> Option<(&NodeRecord, &NodeRecord)> {
        Some((self.before.node.as_deref()?, self.after.node.as_deref()?))
    }

    /// What makes the verdict less than it seems, one sentence each.
    pub(super) fn cautions(&self) -> Vec<String> {
        let mut cautions = Vec::new();
        if self.basis == Basis::Hours {
            let unknown: Vec<_> =
                self.sides().into_iter().filter(|(_, side)| side.connections.is_none()).map(|(name, _)| name).collect();
            let why = if unknown.is_empty() {
                "there were none on one side".to_owned()
            } else {
                format!("not counted {} (minimal detail, or no summary)", unknown.join(" and "))
            };
            cautions.push(format!(
                "How many new connections there were is not known, {why}: a rate per hour changes with the traffic too."
            ));
        }
        if let Some(burst) = self.dropped().and_then(|rates| rates.burst).filter(|&burst| burst >= BURSTY) {
            cautions.push(format!(
                "Races came in bursts: {burst:.1} of them tell as much as one that comes by itself, which the intervals allow for."
            ));
        }
        for (name, side) in self.sides() {
            cautions.extend(side.cautions(name));
        }
        cautions
    }
}

impl Side {
    fn cautions(&self, name: &str) -> Vec<String> {
        let mut cautions = Vec::new();
        if self.cut == Cut::Torn {
            cautions.push(format!("The file {name} is cut short or damaged: what came after that is not counted."));
        }
        if self.unfinished > 0 {
            let Self { unfinished, recordings, .. } = self;
            cautions.push(format!(
                "{unfinished} of {recordings} recordings {name} end without a summary: what they tell is counted, up to \
                 their last line."
            ));
        }
        if !self.open.is_empty() {
            cautions.push(format!("The account {name} does not close: {}.", self.open.join("; ")));
        }
        let (races, told) = (self.races(Kind::All), self.told(Kind::All));
        if told < races {
            cautions.push(format!(
                "Only {told} of {races} races {name} are in the file (filters, rotation): counted are all, and how they \
                 come in bursts is judged by these."
            ));
        }
        if self.undecided > 0 {
            cautions.push(format!(
                "Of {} races {name} it is not known whether they dropped a packet: they are not counted as dropped.",
                self.undecided
            ));
        }
        cautions
    }
}

/// What may be different on another machine, or on this one at another time.
fn settings(node: &NodeRecord) -> impl Iterator<Item = (String, String)> {
    let NodeRecord { distribution, cpus, clocksource, sysctls, rps, cni, kube_proxy, .. } = node;
    let named = [("distribution", distribution), ("CPUs", cpus), ("clocksource", clocksource)];
    let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    let sysctls = sysctls.iter().filter(|(name, _)| !USE.contains(&name.as_str()));
    let sysctls = sysctls.map(|(name, value)| (name.clone(), value.clone()));
    let queues = rps.iter().map(|(queue, cpus)| (format!("CPUs of queue {queue}"), cpus.clone()));
    let proxy = kube_proxy.iter().map(|proxy| ("mode of kube-proxy".to_owned(), proxy.mode.clone()));
    let networks = cni.iter().map(|Cni { file, cni_version, plugins }| {
        let plugins = plugins.iter().map(|CniPlugin { kind, ip_masq }| match ip_masq {
            Some(ip_masq) => format!("{kind} (ipMasq {ip_masq})"),
            None => kind.clone(),
        });
        let version = cni_version.iter().map(|version| format!("CNI {version}"));
        (file.clone(), version.chain(plugins).collect::<Vec<_>>().join(", "))
    });
    named.chain(sysctls).chain(queues).chain(proxy).chain(networks)
}

fn list<S: AsRef<str>>(all: &BTreeSet<S>) -> String {
    if all.is_empty() {
        return "none".to_owned();
    }
    all.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}
