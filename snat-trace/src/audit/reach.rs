//! The rules of a table that translate sources: where they stand, and which private destinations they are known to reach.

use std::collections::{HashMap, HashSet};

use super::rules::{Action, Chain, Family, Matches, Rule, Table, Tool, Translation};
use super::spans::{PRIVATE, Span, common, without};
use crate::race::tuple::Protocol;

/// How many rules are walked for one table, and how many jumps deep (the kernel takes 16: `NFT_JUMP_STACK_SIZE` of
/// include/net/netfilter/nf_tables.h). What lies behind is not known.
const STEPS: usize = 100_000;
const DEEP: usize = 16;

/// A rule that translates sources.
#[derive(Clone, Debug)]
pub(super) struct SourceNat<'a> {
    pub tool: Tool,
    pub program: &'static str,
    pub family: Family,
    pub table: &'a str,
    pub chain: &'a str,
    /// Its place among the rules of its chain, from 1.
    pub position: usize,
    /// The hook from which a packet may come to it, where jumps are seen to lead to it.
    pub hook: Option<&'a str>,
    pub rule: &'a Rule,
    pub translation: &'a Translation,
    /// Whether packets without a mark that go to these are known to be translated by it.
    pub private: Vec<&'static str>,
}

/// Every rule of a table that gives sources another port.
pub(super) fn source_nat(table: &Table) -> Vec<SourceNat<'_>> {
    let chains: HashMap<&str, &Chain> = table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
    let mut walk = Walk { chains: &chains, steps: STEPS, reached: HashMap::new() };
    for base in table.chains.iter().filter(|chain| chain.hook.as_deref() == Some("postrouting")) {
        walk.chain(base, &[Span::ALL], 0);
    }
    let hooks = hooks(table, &chains);
    let private = |chain: &str, position| {
        let reached = walk.reached.get(&(chain, position)).map_or(&[][..], Vec::as_slice);
        let within = |text: &&str| {
            let matters = match table.family {
                Family::Ip => !text.contains(':'),
                Family::Ip6 => text.contains(':'),
                Family::Inet => true,
            };
            matters && Span::parse(text).is_some_and(|range| !common(&[range], reached).is_empty())
        };
        PRIVATE.into_iter().filter(within).collect()
    };
    let mut found = Vec::new();
    for chain in &table.chains {
        for (position, rule) in (1..).zip(&chain.rules) {
            if let Action::Translate(translation) = &rule.action
                && !translation.one_to_one
            {
                found.push(SourceNat {
                    tool: table.tool,
                    program: table.program,
                    family: table.family,
                    table: &table.name,
                    chain: &chain.name,
                    position,
                    hook: hooks.get(chain.name.as_str()).copied(),
                    rule,
                    translation,
                    private: private(chain.name.as_str(), position),
                });
            }
        }
    }
    found
}

/// The chain and rule that sends questions to DNS over UDP elsewhere, if there is one.
pub(super) fn dns(table: &Table) -> Option<(&Chain, &Rule)> {
    const DNS: u16 = 53;
    let is_dns = |rule: &&Rule| {
        let Action::Dnat { port } = rule.action else { return false };
        let asked = rule.matches.ports.contains(&(DNS..=DNS));
        rule.matches.protocol == Some(Protocol::UDP) && (asked || port == Some(DNS))
    };
    table.chains.iter().find_map(|chain| Some((chain, chain.rules.iter().find(is_dns)?)))
}

/// The hook each chain is reached from; the first one found.
fn hooks<'a>(table: &'a Table, chains: &HashMap<&str, &'a Chain>) -> HashMap<&'a str, &'a str> {
    let mut hooks = HashMap::new();
    for base in &table.chains {
        let Some(hook) = base.hook.as_deref() else { continue };
        let (mut next, mut seen) = (vec![base], HashSet::new());
        while let Some(chain) = next.pop() {
            if !seen.insert(chain.name.as_str()) {
                continue;
            }
            hooks.entry(chain.name.as_str()).or_insert(hook);
            for rule in &chain.rules {
                if let Action::Jump { chains: to, .. } = &rule.action {
                    next.extend(to.iter().filter_map(|name| chains.get(name.as_str())));
                }
            }
        }
    }
    hooks
}

/// Follows packets that have no mark, by their destinations, through chains. Where it is not known whether a rule takes
/// them they are given up, so that nothing is said of what comes after.
struct Walk<'a, 'c> {
    chains: &'c HashMap<&'a str, &'a Chain>,
    steps: usize,
    /// Destinations each rule is known to translate, by chain and position.
    reached: HashMap<(&'a str, usize), Vec<Span>>,
}

/// Destinations that go no further, if they come from these sources.
type Gone<'a> = Vec<(Option<&'a [Span]>, Vec<Span>)>;

impl<'a> Walk<'a, '_> {
    /// Those of `entering` that come back to where the chain was jumped to.
    fn chain(&mut self, chain: &'a Chain, entering: &[Span], depth: usize) -> Vec<Span> {
        if depth == DEEP {
            return Vec::new();
        }
        let mut gone = Gone::new();
        let mut returned = Vec::new();
        for (position, rule) in (1..).zip(&chain.rules) {
            if self.steps == 0 {
                return Vec::new();
            }
            self.steps -= 1;
            let Rule { matches, action, .. } = rule;
            if matches.marked || matches!(action, Action::Other | Action::Dnat { .. }) {
                continue;
            }
            if matches.unknown {
                gone.push((None, vec![Span::ALL]));
                continue;
            }
            let sources = matches.sources.as_deref();
            let taken = common(&left(entering, &gone, matches), &matches.takes());
            let stays = match action {
                Action::Translate(_) => {
                    // One that names its destinations means them.
                    if matches.destinations.is_none() {
                        self.reached.entry((&chain.name, position)).or_default().extend(&taken);
                    }
                    Vec::new()
                }
                Action::Return => {
                    returned.extend(&taken);
                    Vec::new()
                }
                Action::Jump { chains, goto } => {
                    let back = match chains.as_slice() {
                        [one] => self.chains.get(one.as_str()).map(|chain| self.chain(chain, &taken, depth + 1)),
                        _ => None,
                    };
                    let back = back.unwrap_or_default();
                    if *goto {
                        returned.extend(&back);
                        Vec::new()
                    } else {
                        back
                    }
                }
                Action::End | Action::Other | Action::Dnat { .. } => Vec::new(),
            };
            gone.push((sources, without(&taken, &stays)));
        }
        returned.extend(left(entering, &gone, &Matches::default()));
        returned
    }
}

/// What a rule that takes these sources may still see.
fn left(entering: &[Span], gone: &Gone<'_>, matches: &Matches) -> Vec<Span> {
    let touches = |sources: Option<&[Span]>| match (sources, matches.sources.as_deref()) {
        (Some(sources), Some(ours)) => !common(sources, ours).is_empty(),
        _ => true,
    };
    let holes = gone.iter().filter(|(sources, _)| touches(*sources)).flat_map(|(_, spans)| spans);
    without(entering, &holes.copied().collect::<Vec<_>>())
}
