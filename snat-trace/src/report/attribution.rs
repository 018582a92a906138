//! The rule each port collision came by, where no other can have been it.

use std::collections::HashMap;

use crate::audit::{RuleShown, Translated};
use crate::evidence::Rules;
use crate::race::event::{Class, NetnsInum, Race};
use crate::summary::Summary;

/// What a collision came by, or why that is not known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// This rule.
    Rule(NetnsInum, Box<RuleShown>),
    /// One of several.
    Several,
    /// None of those that were read.
    Other,
    /// The rules of its network namespace were not read.
    NotRead,
    /// The number of its network namespace may have been another one's when the rules were read.
    Reused,
}

impl Cause {
    /// Its rule and where that is, if that is known.
    pub(super) fn rule(&self) -> Option<(NetnsInum, &RuleShown)> {
        match self {
            Self::Rule(netns, rule) => Some((*netns, rule)),
            Self::Several | Self::Other | Self::NotRead | Self::Reused => None,
        }
    }

    /// Why it is not known, for programs.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Rule(..) => None,
            Self::Several => Some("several-rules"),
            Self::Other => Some("no-rule"),
            Self::NotRead => Some("not-read"),
            Self::Reused => Some("netns-not-certain"),
        }
    }
}

/// Rules of a network namespace.
#[derive(Debug)]
struct Known {
    /// As they were read.
    rules: Vec<RuleShown>,
    /// As they are told.
    told: Vec<RuleShown>,
    /// Whether the recorder ran there.
    own: bool,
    /// Whether anything could be read there.
    read: bool,
}

/// Collisions of the recording at hand, by all that tells one rule from another, and the rules that were read in it.
#[derive(Debug, Default)]
pub(super) struct Attribution {
    collisions: HashMap<(NetnsInum, Translated), u64>,
    /// The last reading of each namespace.
    known: HashMap<NetnsInum, Known>,
}

impl Attribution {
    /// Takes in a race, as it was recorded.
    pub(super) fn race(&mut self, race: &Race) {
        if race.class == Class::SnatPortCollision
            && let Some(netns) = race.netns
        {
            *self.collisions.entry((netns, Translated::of(race))).or_default() += 1;
        }
    }

    /// Takes in rules, as they were recorded and as they are told.
    pub(super) fn rules(&mut self, netns: NetnsInum, rules: Vec<RuleShown>, told: &Rules) {
        let Rules { audit, own, .. } = told;
        let read = !audit.rules.is_empty() || audit.not_read.is_empty();
        let known = Known { rules, told: audit.rules.clone(), own: *own == Some(true), read };
        self.known.insert(netns, known);
    }

    /// Ends a recording: what its collisions came by. Before its summary nobody knows whether a namespace went away and left
    /// its number to another, but that the recorder's own did not.
    pub(super) fn end(&mut self, summary: Option<&Summary>) -> Vec<(Cause, u64)> {
        let known = std::mem::take(&mut self.known);
        let stayed = |netns| {
            let accounts = summary.into_iter().flat_map(|summary| &summary.accounts);
            let mut its = accounts.filter(|account| account.netns == Some(netns)).peekable();
            its.peek().is_some() && its.all(|account| account.complete)
        };
        let cause = |netns: NetnsInum, translated: &Translated| {
            let Some(Known { rules, told, own, .. }) = known.get(&netns).filter(|known| known.read) else {
                return Cause::NotRead;
            };
            if !own && !stayed(netns) {
                return Cause::Reused;
            }
            let mut able = rules.iter().zip(told).filter(|(rule, _)| rule.may_have_made(translated));
            match (able.next(), able.next()) {
                (Some((_, rule)), None) => Cause::Rule(netns, Box::new(rule.clone())),
                (Some(_), Some(_)) => Cause::Several,
                (None, _) => Cause::Other,
            }
        };
        self.collisions.drain().map(|((netns, translated), count)| (cause(netns, &translated), count)).collect()
    }
}
