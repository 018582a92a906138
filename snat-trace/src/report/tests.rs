//! Reports of golden events: every class, every outcome, every end.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::audit::{self, Audit};
use crate::counters::figures::Tally;
use crate::evidence::{Cut, Item, Rules, Sample};
use crate::output::golden;
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
        let rules = Rules {
            time: golden::session().started,
            netns,
            entries,
            own: Some(true),
            audit: Audit::new(&audit::tests::home()),
        };
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
        let read = Rules { time: race.time, netns: NetnsInum(7), entries: None, own: None, audit };
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
fn a_change_names_the_namespace_it_is_for() {
    let said = |own| {
        let audit = Audit::new(&audit::tests::home());
        let rules = Rules { time: golden::session().started, netns: audit::tests::HOST, entries: None, own, audit };
        let case = case(vec![Item::Session(Box::new(golden::session())), Item::Rules(Box::new(rules))], Cut::NoSummary);
        let document = text(&case);
        let (_, changes) = document.split_once("WHAT TO CHANGE").unwrap();
        let changes = changes.split("\nRULES\n").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(changes.contains("when they were read, from 1970-01-01 00:03:31 on"), "{changes}");
        let named = changes.matches("; netns 4026531840):").count();
        (named, changes.matches("$ ").count(), changes.contains("nsenter -t PID -n"), json(&case).unwrap())
    };
    let (named, commands, entered, json) = said(Some(true));
    assert!(named == 0 && commands > 0 && !entered && json.contains("\"netns\":4026531840,\"read\":"), "{json}");
    for own in [Some(false), None] {
        let (named, commands, entered, _) = said(own);
        assert!(named > commands && entered, "{own:?}: {named} of {commands}");
    }
}

#[test]
fn counters_are_added_up_over_recordings_that_each_begin_at_zero() {
    let at = |seconds: u64| KernelTime::from_record(seconds * 1_000_000_000).unwrap();
    let session =
        |seconds| Item::Session(Box::new(crate::session::Session { started: at(seconds), ..golden::session() }));
    let sample = |seconds, failed| {
        let counters = Tally { insert_failed: Some(failed), ..Tally::default() };
        Item::Sample(Sample { time: at(seconds), netns: NetnsInum(7), counters })
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
    fn hostile_names_are_text(name in "[<>&\"'`|*_\\[\\]\\\\\u{0}-\u{1f}\u{202e}a-z]{1,30}", days in 0_u64..5000) {
        let mut race = collision();
        if let Some(owner) = &mut race.loser.owner {
            owner.comm = format!("<script>{name}");
        }
        let late = race.time.nanoseconds() + days * 86_400_000_000_000;
        let later = Race { time: KernelTime::from_record(late).unwrap(), ..race.clone() };
        let items = vec![Item::Session(Box::new(golden::session())), Item::Race(Box::new(race)), Item::Race(Box::new(later))];
        let case = case(items, Cut::NoSummary);
        for document in [text(&case), markdown(&case), html(&case)] {
            prop_assert!(!document.contains(|character: char| character.is_control() && character != '\n'));
            let reorders = document.contains('\u{202e}');
            prop_assert!(!reorders);
        }
        prop_assert!(!html(&case).contains("<script") && !markdown(&case).contains("<script"));
        let rows = markdown(&case).lines().filter(|line| line.starts_with("| ")).map(|line| line.replace("\\|", "").matches('|').count()).collect::<BTreeSet<_>>();
        prop_assert!(rows.iter().all(|&bars| [3, 4, 6, 7].contains(&bars)), "{:?}", rows);
        prop_assert!(series::Timeline::new(&case).unwrap().steps.len() <= 60);
    }
}
