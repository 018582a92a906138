//! A rule that translates sources, as it is told and as evidence keeps it.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::findings::EXEMPT;
use super::fixes;
use super::owners::exempt;
use super::reach::SourceNat;
use super::rules::{Choice, Family, Matches, Ports, Target, Tool};
use super::spans::{Span, common, without};
use crate::race::event::{NatRule, Race};
use crate::race::tuple::Protocol;

/// A rule, for people and programs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RuleShown {
    /// Which tool's it is.
    pub tool: Tool,
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its place in the chain, from 1.
    pub position: usize,
    /// The hook that leads to its chain, where that is seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// By what nft knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// The program that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Cow<'static, str>>,
    /// What it does.
    pub target: Target,
    /// How it chooses a port.
    pub choice: Choice,
    /// Lowest and highest port it allows, where it names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// First and last address the source gets, where it names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Addresses of senders that it takes no others of, each one or the first and the last, where it names them itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
    /// The same of destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<String>>,
    /// The only protocol it takes, where it names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// Packets it has matched, where it counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// As its tool prints it; not escaped.
    pub text: String,
}

/// What is known of how a race's port was chosen: all that speaks for one rule or another.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Translated {
    protocol: Protocol,
    /// Who sent, as rules saw it.
    sender: IpAddr,
    /// The address the source got.
    source: IpAddr,
    /// Where it went, as rules saw it: another destination is given before another source is.
    destination: IpAddr,
    /// Whether its rule has a random flag, and the ports that it names.
    rule: Option<(bool, Option<(u16, u16)>)>,
}

impl Translated {
    /// Of the flow that lost a race.
    #[must_use]
    pub fn of(race: &Race) -> Self {
        let rule = race.nat.map(|NatRule { random, ports }| (random, ports));
        let (sender, contested) = (race.loser.original.ends().source.ip(), race.contested.ends());
        let (source, destination) = (contested.source.ip(), contested.destination.ip());
        Self { protocol: race.protocol, sender, source, destination, rule }
    }
}

/// The destinations that a rule takes, where it is known to take no others.
fn destinations(matches: &Matches, family: Family) -> Option<Vec<Span>> {
    let (four, six) = (vec![Span::four()], without(&[Span::ALL], &[Span::four()]));
    let its = match family {
        Family::Ip => four.clone(),
        Family::Ip6 => six.clone(),
        Family::Inet => vec![Span::ALL],
    };
    let takes = common(&its, &matches.takes());
    // All of one version of IP say nothing.
    (!matches.changing && ![its, four, six].contains(&takes)).then_some(takes)
}

fn told(spans: &[Span]) -> Vec<String> {
    spans.iter().map(Span::to_string).collect()
}

/// Whether an address may be one of those a rule takes.
fn may_be_in(known: Option<&Vec<String>>, address: IpAddr) -> bool {
    let may_be = |span: &String| Span::parse(span).is_none_or(|span| span.contains(address));
    known.is_none_or(|spans| spans.iter().any(may_be))
}

impl RuleShown {
    pub(super) fn new(rule: &SourceNat<'_>, owner: Option<&'static str>) -> Self {
        let SourceNat { tool, family, table, chain, position, hook, rule, translation, .. } = rule;
        Self {
            tool: *tool,
            family: *family,
            table: (*table).to_owned(),
            chain: (*chain).to_owned(),
            position: *position,
            hook: hook.map(str::to_owned),
            handle: rule.handle,
            owner: owner.map(Cow::from),
            target: translation.target,
            choice: translation.choice,
            ports: match &translation.ports {
                Ports::Range(range) => Some((*range.start(), *range.end())),
                Ports::Any | Ports::Unknown => None,
            },
            addresses: translation.addresses,
            sources: rule.matches.sources.as_deref().filter(|_| !rule.matches.changing).map(told),
            destinations: destinations(&rule.matches, *family).as_deref().map(told),
            protocol: rule.matches.protocol.map(|protocol| protocol.to_string().into()),
            packets: rule.packets,
            text: rule.text.clone(),
        }
    }

    /// How destinations that need no translation are kept from it: the setting of the program that made it, or for a rule of
    /// nobody's the command that accepts these ahead of it, where that is known.
    #[must_use]
    pub fn exempting(&self, destinations: &[IpAddr]) -> (&'static str, Option<Vec<String>>) {
        if let Some(owner) = &self.owner {
            return (exempt(owner).unwrap_or(EXEMPT), None);
        }
        let program = match (self.tool, self.family) {
            (Tool::Nft, _) => "nft",
            (Tool::IptablesNft, Family::Ip6) => "ip6tables-nft",
            (Tool::IptablesNft, _) => "iptables-nft",
            (Tool::IptablesLegacy, Family::Ip6) => "ip6tables-legacy",
            (Tool::IptablesLegacy, _) => "iptables-legacy",
        };
        let destinations: Vec<_> = destinations.iter().map(IpAddr::to_string).collect();
        let destinations: Vec<_> = destinations.iter().map(String::as_str).collect();
        (EXEMPT, fixes::exempting(self, program, &destinations))
    }

    /// Whether this rule, of those in the race's network namespace, may have done so: nothing that is known speaks against it.
    #[must_use]
    pub fn may_have_made(&self, translated: &Translated) -> bool {
        let &Translated { protocol, sender, source, destination, rule } = translated;
        let family = match self.family {
            Family::Ip => source.is_ipv4(),
            Family::Ip6 => source.is_ipv6(),
            Family::Inet => true,
        };
        let protocol = self.protocol.as_ref().is_none_or(|name| name.parse::<Protocol>() == Ok(protocol));
        let address = self.addresses.is_none_or(|(first, last)| (first..=last).contains(&source));
        let rule = rule.is_none_or(|(random, ports)| {
            let choice = match self.choice {
                Choice::Kept => !random,
                Choice::Random | Choice::FullyRandom => random,
                Choice::Unknown => true,
            };
            choice && ports == self.ports
        });
        let sender = may_be_in(self.sources.as_ref(), sender);
        let destination = may_be_in(self.destinations.as_ref(), destination);
        family && protocol && address && sender && destination && rule
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{Rule, Translation};
    use super::*;
    use crate::race::classify::classify;
    use crate::race::classify::tests::{clash, since};

    /// A rule that may have translated `race`.
    fn rule(race: &Race) -> RuleShown {
        let translation = Translation {
            target: Target::Masquerade,
            addresses: None,
            ports: Ports::Any,
            choice: Choice::Kept,
            one_to_one: false,
        };
        let rule = Rule {
            text: "masquerade".to_owned(),
            handle: Some(3),
            packets: None,
            matches: Matches::default(),
            action: super::super::rules::Action::Translate(translation.clone()),
        };
        let shown = RuleShown::new(
            &SourceNat {
                tool: Tool::Nft,
                program: "nft",
                family: Family::Ip,
                table: "nat",
                chain: "postrouting",
                position: 1,
                hook: Some("postrouting"),
                rule: &rule,
                translation: &translation,
                private: Vec::new(),
            },
            None,
        );
        assert!(shown.may_have_made(&Translated::of(race)));
        shown
    }

    #[test]
    fn what_is_known_of_a_race_speaks_for_or_against_a_rule() {
        let kept = NatRule { random: false, ports: None };
        let race = Race { nat: Some(kept), ..classify(&clash(), since()).unwrap() };
        let source = race.contested.ends().source.ip();
        assert!(source.is_ipv4() && race.protocol == Protocol::UDP);
        let rule = rule(&race);
        let other: IpAddr = "192.0.2.77".parse().unwrap();
        let sender = race.loser.original.ends().source.ip();
        let destination = race.contested.ends().destination.ip();
        let only = |address: IpAddr| Some(vec!["203.0.113.0-203.0.113.9".to_owned(), address.to_string()]);
        for (changed, expected) in [
            (RuleShown { family: Family::Inet, ..rule.clone() }, true),
            (RuleShown { family: Family::Ip6, ..rule.clone() }, false),
            (RuleShown { protocol: Some("udp".into()), ..rule.clone() }, true),
            (RuleShown { protocol: Some("tcp".into()), ..rule.clone() }, false),
            (RuleShown { addresses: Some((source, source)), ..rule.clone() }, true),
            (RuleShown { addresses: Some((other, other)), ..rule.clone() }, false),
            (RuleShown { sources: only(sender), ..rule.clone() }, true),
            (RuleShown { sources: only(other), ..rule.clone() }, false),
            (RuleShown { destinations: only(destination), ..rule.clone() }, true),
            (RuleShown { destinations: only(other), ..rule.clone() }, false),
            (RuleShown { choice: Choice::FullyRandom, ..rule.clone() }, false),
            (RuleShown { choice: Choice::Unknown, ..rule.clone() }, true),
            (RuleShown { ports: Some((1, 9)), ..rule.clone() }, false),
        ] {
            assert_eq!(changed.may_have_made(&Translated::of(&race)), expected, "{changed:?}");
        }
        // At minimal detail nothing is known of the rule.
        let unknown = Race { nat: None, ..race };
        assert!(
            RuleShown { choice: Choice::FullyRandom, ports: Some((1, 9)), ..rule }
                .may_have_made(&Translated::of(&unknown))
        );
    }
}
