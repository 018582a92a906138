//! Reports of golden events: every class, every outcome, every end.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::audit::{self, Audit};
use crate::counters::figures::Tally;
use crate::evidence::{Cut, Item, Rules, Sample};
use crate::output::{escape, golden};
use crate::owner::{Behind, Container, Pod};
use crate::race::event::{NetnsInum, Race};
use crate::race::time::KernelTime;
use crate::summary::Summary;

/// Evidence of the golden events, in the order in which a recording has them.
fn items(summary: Option<Summary>) -> Vec<Item> {
    let mut items = vec![Item::Session(Box::new(golden::session()))];
    items.extend(golden::every_kind().into_iter().map(|race| Item::Race(Box::new(race))));
    items.extend(golden::failures().into_iter().map(|failure| Item::Failure(Box::new(failure))));
    let netns: BTreeSet<_> = golden::every_kind().iter().filter_map(|race| race.netns).collect();
    for netns in netns {
        let entries = Some((250, 262_144));
        let rules = Rules { time: golden::session().started, netns, entries, audit: Audit::new(&audit::tests::home()) };
        items.push(Item::Rules(Box::new(rules)));
    }
    items.extend(summary.map(|summary| Item::Summary(Box::new(summary))));
    items
}

fn case(items: Vec<Item>, cut: Cut) -> Case {
    let mut case = Case::default();
    items.into_iter().for_each(|item| case.add(item));
    case.end(cut);
    case
}

fn golden_case() -> Case {
    let (_, summary) = golden::summaries().into_iter().find(|(name, _)| *name == "closed").unwrap();
    case(items(Some(summary)), Cut::No)
}

#[test]
fn every_format() {
    let case = golden_case();
    insta::assert_snapshot!("text", text(&case));
    insta::assert_snapshot!("markdown", markdown(&case));
    insta::assert_snapshot!("html", html(&case));
    insta::assert_snapshot!("json", json(&case).unwrap());
    assert!(text(&case).lines().filter(|line| !line.contains('$')).all(|line| line.chars().count() <= 80));
}

#[test]
fn every_end_has_its_words() {
    let words: String = golden::summaries()
        .into_iter()
        .map(|(name, summary)| {
            let recorded = vec![Item::Session(Box::new(golden::session())), Item::Summary(Box::new(summary))];
            format!("## {name}\n{}\n", verdict::verdict(&case(recorded, Cut::No)).join("\n"))
        })
        .collect();
    insta::assert_snapshot!("verdicts", words);
}

#[test]
fn a_recording_without_an_end_says_so() {
    for cut in [Cut::NoSummary, Cut::Torn] {
        let case = case(items(None), cut);
        let text = text(&case);
        assert!(text.contains("THE ACCOUNT IS OPEN") && !text.contains("all are explained"), "{text}");
        assert!(json(&case).unwrap().contains("\"complete\":false"));
    }
    assert!(text(&case(Vec::new(), Cut::NoSummary)).contains("No connection is known to have lost a packet"));
}

#[test]
fn what_is_behind_an_unknown_sender_is_told_beside_it() {
    let race = golden::forwarded();
    assert_eq!(case::sender(&race.loser), "unknown, at 10.244.1.9, via vnet3");
    assert_eq!(case::sender(&race.winner), "unknown, at 10.244.1.7, in shop/cart-7d4b9c6f5-x2k4q");
}

/// One golden collision, and the rule that made it.
fn collision() -> Race {
    let (netns, nat) = (Some(NetnsInum(7)), Some(crate::race::event::NatRule { random: false, ports: None }));
    Race { netns, nat, ..golden::every_kind().remove(0) }
}

#[test]
fn a_rule_is_named_only_where_no_other_can_have_been_it() {
    let race = collision();
    let home = Audit::new(&audit::tests::home());
    let able: Vec<_> = home.rules.iter().filter(|rule| rule.may_have_translated(&race)).cloned().collect();
    assert!(able.len() > 1);
    let said = |rules: Vec<audit::RuleShown>, summary: Option<Summary>| {
        let audit = Audit { rules, ..home.clone() };
        let read = Rules { time: race.time, netns: NetnsInum(7), entries: None, audit };
        let mut items = vec![
            Item::Session(Box::new(golden::session())),
            Item::Race(Box::new(race.clone())),
            Item::Race(Box::new(race.clone())),
            Item::Rules(Box::new(read)),
        ];
        items.extend(summary.map(|summary| Item::Summary(Box::new(summary))));
        text(&case(items, Cut::No)).contains("2 of 2 port collisions came by one")
    };
    assert!(said(vec![able[0].clone()], None));
    assert!(!said(vec![able[0].clone(), able[1].clone()], None));
    assert!(!said(Vec::new(), None));
    // The number went to another namespace.
    let (_, mut summary) = golden::summaries().into_iter().find(|(name, _)| *name == "closed").unwrap();
    summary.accounts[0].netns = Some(NetnsInum(7));
    assert!(said(vec![able[0].clone()], Some(summary.clone())));
    summary.accounts[0].complete = false;
    assert!(!said(vec![able[0].clone()], Some(summary)));
}

#[test]
fn counters_are_added_up_over_recordings_that_each_begin_at_zero() {
    let at = |seconds: u64| KernelTime::from_record(seconds * 1_000_000_000).unwrap();
    let session =
        |seconds| Item::Session(Box::new(crate::session::Session { started: at(seconds), ..golden::session() }));
    let sample = |seconds, failed| {
        let counters = Tally { insert_failed: Some(failed), ..Tally::default() };
        Item::Sample(Sample { time: at(seconds), netns: NetnsInum(7), counters, left_out: 0 })
    };
    let items = vec![session(1000), sample(1001, 3), sample(1002, 5), session(1010), sample(1011, 2), sample(1012, 2)];
    let timeline = series::Timeline::new(&case(items, Cut::NoSummary)).unwrap();
    let counted: Vec<_> = timeline.steps.iter().map(|step| step.counted).collect();
    let [five, seven] = [Some(5), Some(7)];
    let expected = [None, Some(3), five, five, five, five, five, five, five, five, five, seven, seven];
    assert_eq!((timeline.length, counted.as_slice()), (1, expected.as_slice()));
}

proptest! {
    /// Whatever names are, they end nothing and begin nothing in any format.
    #[test]
    fn hostile_names_are_text(name in "[<>&\"'`|*_\\[\\]\\\\\u{0}-\u{1f}\u{7f}\u{9b}\u{200b}\u{2028}\u{202e}\u{2066}a-z]{1,30}", days in 0_u64..5000) {
        let name = format!("<script>{name}");
        let [by_pod, by_cgroup] = hostile(&name);
        let late = by_cgroup.time.nanoseconds() + days * 86_400_000_000_000;
        let later = Race { time: KernelTime::from_record(late).unwrap(), ..by_cgroup };
        let items = vec![Item::Session(Box::new(golden::session())), Item::Race(Box::new(by_pod)), Item::Race(Box::new(later))];
        let case = case(items, Cut::NoSummary);
        let json = json(&case).unwrap();
        for document in [text(&case), markdown(&case), html(&case), json.clone()] {
            let steers = document.lines().find(|line| escape(line) != *line);
            prop_assert_eq!(steers, None);
        }
        prop_assert_eq!(json.lines().count(), 1);
        let said: serde_json::Value = serde_json::from_str(&json).unwrap();
        let whole = |pair: &serde_json::Value| pair["lost"].as_str().is_some_and(|lost| lost.contains(&name));
        prop_assert!(said["pairs"].as_array().unwrap().iter().all(whole), "{}", said);
        prop_assert!(!html(&case).contains("<script") && !markdown(&case).contains("<script"));
        let rows = markdown(&case).lines().filter(|line| line.starts_with("| ")).map(|line| line.replace("\\|", "").matches('|').count()).collect::<BTreeSet<_>>();
        prop_assert!(rows.iter().all(|&bars| [3, 4, 6, 7].contains(&bars)), "{:?}", rows);
        prop_assert!(series::Timeline::new(&case).unwrap().steps.len() <= 60);
    }
}

/// Races whose every name is the same: of a pod and of what is behind the winner, and of a cgroup without either.
fn hostile(name: &str) -> [Race; 2] {
    let owned = || name.to_owned();
    let container = || Container { name: Some(owned()), image: Some(owned()), ..Container::of(owned(), owned()) };
    let pod = || Pod { namespace: owned(), name: owned(), uid: owned() };
    let mut race = collision();
    if let Some(owner) = &mut race.loser.owner {
        (owner.comm, owner.cgroup) = (owned(), Some(owned()));
        (owner.container, owner.pod) = (Some(container()), Some(pod()));
    }
    race.winner.owner = None;
    race.winner.behind = Some(Behind {
        interface: owned(),
        port: Some(owned()),
        netns: None,
        container: Some(container()),
        pod: Some(pod()),
    });
    let mut by_cgroup = race.clone();
    if let Some(owner) = &mut by_cgroup.loser.owner {
        (owner.container, owner.pod) = (None, None);
    }
    if let Some(behind) = &mut by_cgroup.winner.behind {
        (behind.container, behind.pod) = (None, None);
    }
    [race, by_cgroup]
}
