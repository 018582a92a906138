//! Labs one after another, while one watch goes on: pods, node and external host are gone, and made anew.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::compare::{Comparison, Difference, compare};
use super::error::LabError;
use super::run::Progress;
use super::setup::Setup;
use super::truth::Truth;
use super::{Lab, modules};
use crate::counters::account::Account;
use crate::kernel::Detail;
use crate::race::event::{NetnsInum, Race};
use crate::race::failure::Failure;
use crate::summary::Summary;

/// Rounds of one lab of several. Few enough that most are gone before anybody has had a second look at them.
const LIFE: u32 = 4;

/// What happened in one lab.
#[derive(Clone, Debug)]
pub struct Life {
    /// The node's network namespace. Another's can have had the number before, and can have it later.
    pub netns: NetnsInum,
    /// Of its rounds.
    pub truth: Truth,
    setup: Setup,
}

impl Setup {
    /// Whether the first lab's node is gone before the watch ends.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.scenario.comes_and_goes() || self.unloads().is_some()
    }

    /// The lab to begin with: of all rounds, or where labs come and go of the first few.
    #[must_use]
    pub fn first_life(&self) -> Self {
        self.life(0)
    }

    fn life(&self, first: u32) -> Self {
        let rounds = self.rounds.saturating_sub(first);
        let rounds = if self.scenario.comes_and_goes() { rounds.min(LIFE) } else { rounds };
        Self { first_round: first, rounds, ..*self }
    }
}

/// Runs a lab that was built as the [first](Setup::first_life) of a setup, and those that come after it. Each is gone before
/// the next is made; the last stays, but where a module goes that its rules need. Then it is waited for `stop`.
///
/// # Errors
/// As [`Lab::build`] and [`Lab::run`].
pub fn run_lives(
    lab: &mut Option<Lab>,
    setup: &Setup,
    stop: &AtomicBool,
    mut progress: impl FnMut(Progress),
) -> Result<Vec<Life>, LabError> {
    let mut lives: Vec<Life> = Vec::new();
    let (mut begun, mut lost) = (0, 0);
    while begun < setup.rounds {
        let own = setup.life(begun);
        if begun > 0 {
            drop(lab.take());
            *lab = Some(Lab::build(&own)?);
        }
        let running = lab.as_mut().ok_or(LabError::Ended("namespaces"))?;
        let so_far = |now: Progress| Progress { rounds: begun + now.rounds, lost: lost + now.lost };
        let truth = running.run(stop, |now| progress(so_far(now)))?;
        lost += truth.packets_lost();
        begun += own.rounds;
        lives.push(Life { netns: running.node_inum(), truth, setup: own });
    }
    if let Some(module) = setup.unloads() {
        drop(lab.take());
        modules::unload_and_load(module, stop)?;
    }
    Ok(lives)
}

/// Compares each lab with what was seen of it, and adds up. Of several labs, races and failures may be those of the whole node.
#[must_use]
pub fn compare_lives(
    lives: &[Life],
    races: &[Race],
    failures: Option<&[Failure]>,
    detail: Detail,
    summary: &Summary,
) -> Comparison {
    if let [life] = lives {
        return compare(&life.truth, races, failures, detail);
    }
    let mut seen: Vec<(&Life, Vec<Race>)> = lives.iter().map(|life| (life, Vec::new())).collect();
    for race in races {
        let ends = race.loser.original.ends();
        if lives.first().is_none_or(|life| life.setup.destination() != ends.destination) {
            continue;
        }
        // One that is of none of them stands out in any.
        let own =
            seen.iter().position(|(life, _)| race.netns == Some(life.netns) && life.sends_from(ends.source.port()));
        if let Some((_, races)) = seen.get_mut(own.unwrap_or(0)) {
            races.push(race.clone());
        }
    }
    let failures = failures.map(|failures| {
        let ours = |failure: &&Failure| lives.iter().any(|life| failure.netns == Some(life.netns));
        failures.iter().filter(ours).cloned().collect::<Vec<_>>()
    });
    let compared = seen.iter().enumerate().map(|(number, (life, races))| {
        let failures = failures.as_deref().map(|failures| if number == 0 { failures } else { &[] });
        compare(&life.truth, races, failures, detail)
    });
    let mut all = compared.reduce(Comparison::plus).unwrap_or_default();
    all.labs = Some(lives.len());
    all.differences.extend(compare_accounts(lives, &summary.accounts, summary.outside));
    all
}

impl Comparison {
    /// Of two labs, one after the other, of one setup.
    fn plus(mut self, other: Self) -> Self {
        let both = |one: Option<usize>, other: Option<usize>| one.zip(other).map(|(one, other)| one + other);
        self.rounds += other.rounds;
        self.packets_lost += other.packets_lost;
        self.insert_failed += other.insert_failed;
        self.counted_lost += other.counted_lost;
        self.resolved += other.resolved;
        self.seen += other.seen;
        self.classes_right += other.classes_right;
        self.tuples_right += other.tuples_right;
        self.ports_right = both(self.ports_right, other.ports_right);
        self.pids_right += other.pids_right;
        self.cgroups_right = both(self.cgroups_right, other.cgroups_right);
        self.differences.extend(other.differences);
        self
    }
}

impl Life {
    /// Whether a round of this lab has a pod's port.
    fn sends_from(&self, port: u16) -> bool {
        let pods = self.setup.pods.saturating_sub(1);
        (self.setup.port(0, 0)..=self.setup.port(self.setup.rounds.saturating_sub(1), pods)).contains(&port)
    }
}

/// What accounts must say of namespaces that came and went: every race is in one, or is counted as outside; one that is gone
/// has no account that closes, and the last, which stays, has one that does or says why not.
fn compare_accounts(lives: &[Life], accounts: &[Account], outside: u64) -> Vec<Difference> {
    let mut lost = BTreeMap::<NetnsInum, u64>::new();
    for life in lives {
        *lost.entry(life.netns).or_default() += life.truth.insert_failed;
    }
    let mut differences = Vec::new();
    let mut wrong = |netns: NetnsInum, what: String| differences.push(Difference::Account { netns: netns.0, what });
    let mut explained = 0;
    for (&netns, &failed) in &lost {
        let account = accounts.iter().find(|account| account.netns == Some(netns));
        let closes = account.is_some_and(Account::closes);
        explained += account.map_or(0, |account| account.explained.insert_failed);
        let last = lives.last().filter(|life| life.netns == netns);
        let complete = account.is_none_or(|account| account.complete);
        match last.filter(|last| last.truth.insert_failed == failed) {
            // A number that another had before leaves the account incomplete, which it says.
            Some(_) if failed > 0 && !closes && complete => {
                wrong(netns, "does not close, and it was there to the end".to_owned());
            }
            None if failed > 0 && closes => wrong(netns, "closes, and who counted in it is gone".to_owned()),
            _ => {}
        }
        let counted = account.and_then(|account| account.counters.as_ref().ok()?.insert_failed).unwrap_or(0);
        if counted > failed {
            wrong(netns, format!("has {counted} failed inserts, and there were {failed}"));
        }
    }
    let all: u64 = lost.values().sum();
    if explained > all || explained + outside < all {
        let what = format!("of all labs explain {explained} failed inserts of {all}, and {outside} are outside");
        differences.push(Difference::Accounts { what });
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::super::Scenario;
    use super::super::compare::tests::{race, truth};
    use super::*;
    use crate::counters::figures::Tally;

    /// Two labs of four rounds, of which each had two failed inserts.
    fn lives(numbers: [u32; 2]) -> Vec<Life> {
        let whole = Setup { rounds: 8, ..Setup::new(Scenario::Namespaces) };
        let life = |(first, netns)| Life { netns: NetnsInum(netns), truth: truth(), setup: whole.life(first) };
        [0, 4].into_iter().zip(numbers).map(life).collect()
    }

    fn account(netns: u32, counted: u64, explained: u64, complete: bool) -> Account {
        let counted = Tally { insert_failed: counted, drop: counted, ..Tally::default() };
        let explained = Tally { insert_failed: explained, drop: explained, ..Tally::default() };
        let unexplained =
            counted.zip(explained, |counted, explained| Some(counted.cast_signed() - explained.cast_signed()));
        let counters = Ok(counted.zip(counted, |one, _| Some(one)));
        Account { netns: Some(NetnsInum(netns)), counters, explained, unexplained, complete, note: None }
    }

    fn differences(numbers: [u32; 2], accounts: &[Account], outside: u64) -> usize {
        compare_accounts(&lives(numbers), accounts, outside).len()
    }

    #[test]
    fn the_last_closes_and_those_that_are_gone_do_not() {
        let (gone, last) = (account(1, 0, 2, false), account(2, 2, 2, true));
        assert_eq!(differences([1, 2], &[gone.clone(), last.clone()], 0), 0);
        assert_eq!(differences([1, 2], &[account(1, 2, 2, true), last.clone()], 0), 1);
        assert_eq!(differences([1, 2], &[gone.clone(), account(2, 1, 2, true)], 0), 1);
        assert_eq!(differences([1, 2], &[gone.clone(), account(2, 1, 2, false)], 0), 0);
        // More than there were, and what is neither explained nor outside.
        assert_eq!(differences([1, 2], &[account(1, 3, 2, false), last.clone()], 0), 1);
        assert_eq!(differences([1, 2], std::slice::from_ref(&last), 0), 1);
        assert_eq!(differences([1, 2], &[last], 2), 0);
        // One number for both.
        assert_eq!(differences([1, 1], &[account(1, 2, 4, false)], 0), 0);
        assert_eq!(differences([1, 1], &[account(1, 4, 4, true)], 0), 1);
    }

    #[test]
    fn a_port_is_one_labs_alone() {
        let lives = lives([1, 2]);
        assert!((10_000..10_004).all(|port| lives[0].sends_from(port) && !lives[1].sends_from(port)));
        assert!((10_004..10_008).all(|port| lives[1].sends_from(port) && !lives[0].sends_from(port)));
    }

    #[test]
    fn two_labs_add_up() {
        let races = [race(0, 1, 0), race(2, 0, 1)];
        let one = compare(&truth(), &races, None, Detail::Full);
        let both = one.clone().plus(compare(&truth(), &races[1..], None, Detail::Full));
        assert!(one.ok() && !both.ok());
        assert_eq!((both.rounds, both.packets_lost, both.seen, both.cgroups_right), (6, 4, 3, Some(3)));
        assert_eq!(both.differences.len(), 1);
    }
}
