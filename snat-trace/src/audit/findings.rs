//! What was read, judged.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::census::{Toward, odds};
use super::fixes::{self, Edit};
use super::node::Namespace;
use super::owners::{Owner, has_docker, owner};
use super::reach::{SourceNat, dns, source_nat};
use super::rules::{Choice, Family, Ports, Tool};
use super::settings::{ephemeral_ranges, table_nearly_full};
use super::shown::RuleShown;
use crate::race::event::NetnsInum;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are being lost, or will be as soon as two flows meet.
    High,
    /// They will be under load.
    Medium,
    /// They may be, if something else comes to it.
    Low,
    /// Something to know.
    Info,
}

/// What was found.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A rule leaves flows their source port.
    NoRandomFully,
    /// A rule chooses by a hash, on a kernel that may be old enough to do so.
    RandomOnly,
    /// A rule allows one port.
    SinglePort,
    /// A rule allows few ports.
    NarrowRange,
    /// Most ports of a range are taken toward one destination.
    RangeNearlyFull,
    /// The connection tracking table is nearly full.
    TableNearlyFull,
    /// Senders choose their source ports among few.
    EphemeralRange,
    /// Questions to DNS over UDP get another destination, on a kernel that may drop one of two.
    DnsOverDnat,
    /// A rule translates where it may not be needed.
    PrivateDestinations,
}

/// One finding.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", rename = "audit-finding")]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What it is.
    pub finding: Kind,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The program that made the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Cow<'static, str>>,
    /// What was found, in a sentence.
    pub what: String,
    /// What it does.
    pub why: String,
    /// What to change.
    pub fix: String,
    /// The command that does, word by word, each quoted for a shell; in JSON one line.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "command")]
    pub command: Option<Vec<String>>,
    /// The rule it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleShown>,
}

/// A command as one line.
mod command {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::fixes::words;

    pub(super) fn serialize<S: Serializer>(command: &Option<Vec<String>>, serializer: S) -> Result<S::Ok, S::Error> {
        command.as_ref().map(|words| words.join(" ")).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(|line| words(&line)))
    }
}

/// Ports a source may get where the rule names none and its own is not below (net/netfilter/nf_nat_core.c,
/// `nf_nat_l4proto_unique_tuple`).
const UNNAMED: RangeInclusive<u16> = 1024..=65535;
/// A range of no more ports gives two flows of one instant the same one in a case out of a hundred, empty as it is; of no
/// more than the second number, in one out of a thousand.
pub(super) const NARROW: [u32; 2] = [100, 1024];
/// Parts of a range or table in use, in percent. Above the first, a port takes several times as long to find and races are
/// several times as likely as in an empty range; above the second, the next burst exhausts it.
pub(super) const NEARLY_FULL: [u64; 2] = [75, 90];

/// How destinations are exempted from a rule of nobody's.
pub(super) const EXEMPT: &str = "leave them out of the rule, or accept them ahead of it";

/// Judges namespaces, of which one may be the caller's own; the most severe first, then in the order they were read. Also the
/// rules that translate sources.
pub(super) fn judge(namespaces: &[Namespace], own: Option<NetnsInum>) -> (Vec<Finding>, Vec<RuleShown>) {
    let mut findings = Vec::new();
    let (mut rules, mut prone) = (Vec::new(), false);
    for namespace in namespaces {
        let netns = namespace.inum;
        for table in &namespace.tables {
            let docker = has_docker(table.chains.iter().map(|chain| chain.name.as_str()));
            for rule in source_nat(table) {
                let elsewhere = own != Some(netns);
                let owner = owner(&rule, docker);
                let judged = Judged { netns, owner, rule, elsewhere, modern: namespace.counts_clashes };
                rules.push(RuleShown::new(&judged.rule, owner.map(|owner| owner.name)));
                prone |= judged.keeps_ports();
                judged.flags(&mut findings);
                judged.range(&namespace.towards, &mut findings);
                judged.private(&mut findings);
            }
            // Kernels from 5.10 on count the clashes they resolve; those from 5.6 on resolve them all.
            if namespace.counts_clashes == Some(false)
                && let Some((chain, rule)) = dns(table)
            {
                findings.push(dns_over_dnat(netns, table.tool, table.family, &chain.name, &rule.text));
            }
        }
        whole_ranges(namespace, &mut findings);
        findings.extend(table_nearly_full(namespace));
    }
    if prone {
        findings.extend(ephemeral_ranges(namespaces));
    }
    findings.sort_by_key(|finding| (finding.severity, finding.finding));
    (findings, rules)
}

/// A rule and what is known besides.
struct Judged<'a> {
    netns: NetnsInum,
    rule: SourceNat<'a>,
    owner: Option<&'static Owner>,
    /// Not known to be in the namespace the audit was asked for in.
    elsewhere: bool,
    /// Whether the kernel is one that certainly chooses at random when told `random`.
    modern: Option<bool>,
}

impl Judged<'_> {
    fn finding(&self, severity: Severity, finding: Kind, what: String, why: String, fix: String) -> Finding {
        Finding {
            severity,
            finding,
            netns: self.netns.0,
            owner: self.owner.map(|owner| owner.name.into()),
            what,
            why,
            fix,
            command: None,
            rule: Some(RuleShown::new(&self.rule, self.owner.map(|owner| owner.name))),
        }
    }

    /// The ports the rule names.
    fn ports(&self) -> Option<&RangeInclusive<u16>> {
        match &self.rule.translation.ports {
            Ports::Range(range) => Some(range),
            Ports::Any | Ports::Unknown => None,
        }
    }

    fn keeps_ports(&self) -> bool {
        self.rule.translation.choice == Choice::Kept && self.ports().is_none_or(|range| range.len() > 1)
    }

    /// Whether nothing has matched it yet, so that it loses nothing yet; where it does not count, it is taken to be in use.
    fn is_idle(&self) -> bool {
        self.rule.rule.packets == Some(0)
    }

    /// What is known of a rule in use matters so much; of one that is not, little.
    fn in_use(&self, severity: Severity) -> Severity {
        if self.is_idle() { Severity::Low } else { severity }
    }

    /// Few ports to choose from need no random choice alone.
    fn edit(&self) -> Edit {
        let few = self.ports().is_some_and(|range| size(range) <= NARROW[1]);
        if few { Edit::RandomOfAll } else { Edit::Random }
    }

    /// Where a command is to be run, if there is one and that is not where the caller is.
    fn place(&self, command: Option<&Vec<String>>) -> String {
        let away = command.is_some() && self.elsewhere;
        if away { format!("; to be run in network namespace {}", self.netns.0) } else { String::new() }
    }

    /// What to change in the rule itself, and the command that does; of a program's rule it is said whose it is.
    fn by_hand(&self, edit: Edit, fix: &str) -> (String, Option<Vec<String>>) {
        let command = fixes::edited(&self.rule, edit);
        let place = self.place(command.as_ref());
        let fix = match self.owner {
            Some(owner) if command.is_some() => {
                let until =
                    "no setting of it is known here; until it makes its rules anew this changes the one there is";
                format!("made by {}: {until}{place}", owner.name)
            }
            _ => format!("{fix}{place}"),
        };
        (fix, command)
    }

    fn flag(&self) -> &'static str {
        if self.rule.tool == Tool::Nft { "fully-random" } else { "--random-fully" }
    }

    /// Whether ports are chosen at random.
    fn flags(&self, findings: &mut Vec<Finding>) {
        let target = self.rule.translation.target.name();
        let (severity, kind, what, why) = if self.keeps_ports() {
            let why = "Two new flows that have one source port toward one destination are both given it while neither is \
                       in the table yet, and one loses its first packet. Of flows sent at one instant 19 to 58 % collided \
                       where that was measured, with random ports none or two of 20000.";
            let unused = if self.is_idle() { "; no packet has matched it so far" } else { "" };
            let what = format!("{target} without {}: flows keep their source port if it is free{unused}", self.flag());
            (self.in_use(Severity::High), Kind::NoRandomFully, what, why)
        } else if self.rule.translation.choice == Choice::Random && self.modern != Some(true) {
            // Since 5.0 both flags mean the same (nf_nat_core.c, `nf_nat_l4proto_unique_tuple`).
            let why = "Kernels before 5.0 choose the first port to try by a hash of addresses and a port, from which flows \
                       to one destination may follow one another.";
            let what = format!("{target} with random alone, on a kernel not known to choose at random then");
            (Severity::Low, Kind::RandomOnly, what, why)
        } else {
            return;
        };
        let (fix, command) = match self.owner {
            Some(Owner { random_fully: Some(setting), command, .. }) => {
                let words = command.map(|words| words.iter().map(|&word| word.to_owned()).collect());
                ((*setting).to_owned(), words)
            }
            _ => {
                let edit = self.edit();
                let ports = if edit == Edit::RandomOfAll { ", and name no ports in it" } else { "" };
                self.by_hand(edit, &format!("add {} to the rule{ports}", self.flag()))
            }
        };
        findings.push(Finding { command, ..self.finding(severity, kind, what, why.to_owned(), fix) });
    }

    /// How many ports there are, and how many are left.
    fn range(&self, towards: &[Toward], findings: &mut Vec<Finding>) {
        let Some(range) = self.ports() else { return };
        let shown = format!("{}-{}", range.start(), range.end());
        let size = size(range);
        if size == 1 {
            let what = format!("the rule allows one port, {}", range.start());
            let why = "Of the flows toward one destination only one can be translated at a time; each other loses its \
                       packets until the first one's entry has gone.";
            let (fix, command) = self.by_hand(Edit::RandomOfAll, "give the rule a range of ports, or name none");
            let finding = self.finding(self.in_use(Severity::High), Kind::SinglePort, what, why.into(), fix);
            findings.push(Finding { command, ..finding });
            return;
        }
        if let Some(row) = NARROW.iter().position(|&narrow| size <= narrow) {
            let severity = self.in_use(if row == 0 { Severity::High } else { Severity::Medium });
            let what = format!("the rule allows {size} ports, {shown}");
            let why = format!(
                "From one address toward one destination two flows of one instant get the same port in {} of cases, with \
                 {} too, and more often as ports are taken: of 64 ports, 1.4 % were measured where all were free, 18.5 % \
                 with a quarter and 65.5 % with four of them free. More than {size} flows do not fit.",
                percent(1.0 / f64::from(size)),
                self.flag()
            );
            let (fix, command) = self.by_hand(Edit::RandomOfAll, "widen the range, or name no ports");
            findings.push(Finding { command, ..self.finding(severity, Kind::NarrowRange, what, why, fix) });
        }
        let (protocol, addresses) = (self.rule.rule.matches.protocol, self.rule.translation.addresses);
        let matters = |toward: &&Toward| {
            protocol.is_none_or(|protocol| protocol == toward.protocol)
                && addresses.is_none_or(|(first, last)| between(first, toward.translated, last))
                && self.rule.rule.matches.takes().iter().any(|span| span.contains(toward.destination.ip()))
        };
        for toward in towards.iter().filter(matters) {
            if let Some((severity, what, why)) = nearly_full(range, toward) {
                let fix = "widen the range, name no ports, add addresses, or spread the flows over more destinations";
                let (fix, command) = self.by_hand(Edit::RandomOfAll, fix);
                findings.push(Finding { command, ..self.finding(severity, Kind::RangeNearlyFull, what, why, fix) });
            }
        }
    }

    /// Whether destinations are translated that may need none.
    fn private(&self, findings: &mut Vec<Finding>) {
        if !self.keeps_ports() || self.rule.private.is_empty() {
            return;
        }
        let what = format!("destinations in {} are translated as well", self.rule.private.join(", "));
        let why = "A flow that is not translated cannot race for a port. Destinations that have a route back to the \
                   senders need no translation.";
        let exempt = self.owner.and_then(|owner| owner.exempt);
        let mut finding = self.finding(Severity::Info, Kind::PrivateDestinations, what, why.into(), String::new());
        if let (None, Some(rule)) = (self.owner, &finding.rule) {
            finding.command = fixes::exempting(rule, self.rule.program, &self.rule.private);
        }
        let place = self.place(finding.command.as_ref());
        let all = if finding.command.is_some() { ", as here all of them" } else { "" };
        finding.fix = format!("for those that have a route back: {}{all}{place}", exempt.unwrap_or(EXEMPT));
        findings.push(finding);
    }
}

/// How many ports a range has.
fn size(range: &RangeInclusive<u16>) -> u32 {
    u32::from(*range.end()).saturating_sub(u32::from(*range.start())) + 1
}

fn between(first: IpAddr, address: IpAddr, last: IpAddr) -> bool {
    (first..=last).contains(&address)
}

/// A range that is nearly full toward a destination.
fn nearly_full(range: &RangeInclusive<u16>, toward: &Toward) -> Option<(Severity, String, String)> {
    let size = u64::from(*range.end()) - u64::from(*range.start()) + 1;
    let taken = toward.taken.range(range.clone()).count() as u64;
    let severity = match taken * 100 / size {
        used if used >= NEARLY_FULL[1] => Severity::High,
        used if used >= NEARLY_FULL[0] => Severity::Medium,
        _ => return None,
    };
    let Toward { protocol, translated, destination, .. } = toward;
    let what = format!(
        "{taken} of the {size} ports {}-{} of {translated} are taken toward {protocol} {destination}",
        range.start(),
        range.end()
    );
    let why = match odds(range, &toward.taken) {
        Some(odds) => format!(
            "By the ports that are left, two flows of one instant get the same one in {} of cases, at random too.",
            percent(odds)
        ),
        None => {
            "No port is left: new flows to that destination are lost, or take one from a flow that is ending.".into()
        }
    };
    Some((severity, what, why))
}

fn percent(part: f64) -> String {
    let percent = part * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// Destinations toward which the ports are scarce that rules without a range have. They share them, so no rule is named.
fn whole_ranges(namespace: &Namespace, findings: &mut Vec<Finding>) {
    for toward in &namespace.towards {
        if let Some((severity, what, why)) = nearly_full(&UNNAMED, toward) {
            let fix = "translate to more addresses, or spread the flows over more destinations";
            findings.push(plain(severity, Kind::RangeNearlyFull, namespace.inum, (what, why, fix.into())));
        }
    }
}

/// A finding about a namespace, by what was found, why it matters and what to change.
pub(super) fn plain(
    severity: Severity,
    finding: Kind,
    netns: NetnsInum,
    (what, why, fix): (String, String, String),
) -> Finding {
    Finding { severity, finding, netns: netns.0, owner: None, what, why, fix, command: None, rule: None }
}

fn dns_over_dnat(netns: NetnsInum, tool: Tool, family: Family, chain: &str, text: &str) -> Finding {
    let what = format!("DNS over UDP gets another destination, by {} {} {chain}: {text}", tool.name(), family.name());
    let why = "Two questions sent from one socket at one instant, such as A and AAAA, may get an entry each, and kernels \
               before 5.6 drop one of them; this one does not say that it is newer: it does not count the clashes it \
               resolves.";
    let fix = "update the kernel, ask a DNS cache on the node that is reached without DNAT, or set options \
               single-request-reopen in resolv.conf";
    plain(Severity::Medium, Kind::DnsOverDnat, netns, (what, why.into(), fix.into()))
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::High => "HIGH",
            Self::Medium => "MEDIUM",
            Self::Low => "LOW",
            Self::Info => "INFO",
        })
    }
}
