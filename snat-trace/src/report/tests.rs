//! Reports of golden events: every class, every outcome, every end.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::audit::{self, Audit};
use crate::counters::figures::Tally;
use crate::evidence::{Cut, Item, Redactor, Rules, Sample};
use crate::output::{escape, golden};
use crate::owner::{Behind, Container, Pod};
use crate::race::event::{NetnsInum, Race};
use crate::race::time::KernelTime;
use crate::race::tuple::{Ends, OriginalTuple, TranslatedTuple};
use crate::session::Session;
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
            redacted: false,
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

#[test]
fn what_is_behind_an_unknown_sender_is_told_beside_it() {
    let race = golden::forwarded();
    assert_eq!(case::sender(&race.loser), "unknown, at 10.244.1.9, via vnet3");
    assert_eq!(case::sender(&race.winner), "unknown, at 10.244.1.7, in shop/cart-7d4b9c6f5-x2k4q");
}

#[test]
fn namespaces_that_went_away_are_told() {
    let (_, quiet) = golden::summaries().into_iter().find(|(name, _)| *name == "no races").unwrap();
    for (ended, words) in
        [(0, None), (1, Some("1 network namespace went away")), (6, Some("6 network namespaces went away"))]
    {
        let summary = Summary { ended, ..quiet.clone() };
        let document = text(&case(items(Some(summary)), Cut::No)).split_whitespace().collect::<Vec<_>>().join(" ");
        // In the verdict and where the account is.
        assert_eq!(words.map_or(0, |words| document.matches(words).count()), if ended > 0 { 2 } else { 0 });
        assert_eq!(document.contains("The kernel counted no failed insert"), ended == 0, "{document}");
    }
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
    let able = able(&race);
    assert!(able.len() > 1);
    let said = |rules: Vec<audit::RuleShown>, own: Option<bool>, summary: Option<Summary>| {
        let audit = Audit { rules, ..home.clone() };
        let read = Rules { time: race.time, netns: NetnsInum(7), entries: None, own, redacted: false, audit };
        let mut items = vec![
            Item::Session(Box::new(golden::session())),
            Item::Race(Box::new(race.clone())),
            Item::Race(Box::new(race.clone())),
            Item::Rules(Box::new(read)),
        ];
        items.extend(summary.map(|summary| Item::Summary(Box::new(summary))));
        text(&case(items, Cut::No)).contains("2 of 2 port collisions came by one")
    };
    let own = Some(true);
    assert!(said(vec![able[0].clone()], own, None));
    assert!(!said(vec![able[0].clone(), able[1].clone()], own, None));
    assert!(!said(Vec::new(), own, None));
    // The number may have gone to another namespace, and without an end nobody knows.
    let (_, mut summary) = golden::summaries().into_iter().find(|(name, _)| *name == "closed").unwrap();
    summary.accounts[0].netns = Some(NetnsInum(7));
    assert!(said(vec![able[0].clone()], None, Some(summary.clone())));
    assert!(!said(vec![able[0].clone()], Some(false), None));
    summary.accounts[0].complete = false;
    assert!(!said(vec![able[0].clone()], None, Some(summary.clone())));
    summary.accounts.clear();
    assert!(!said(vec![able[0].clone()], None, Some(summary)));
}

/// Rules that may have made the golden collision, whatever addresses they take.
fn able(race: &Race) -> Vec<audit::RuleShown> {
    let translated = audit::Translated::of(race);
    let rules = Audit::new(&audit::tests::home()).rules.into_iter();
    let rules = rules.map(|rule| audit::RuleShown { sources: None, destinations: None, ..rule });
    rules.filter(|rule| rule.may_have_made(&translated)).collect()
}

/// Two rules of which one may have made the golden collision, by the addresses that they name.
fn by_addresses() -> (Vec<Item>, Race) {
    let race = collision();
    let (home, able) = (Audit::new(&audit::tests::home()), able(&race).remove(0));
    let rule = |position, first: &str, last: &str| audit::RuleShown {
        position,
        addresses: Some((first.parse().unwrap(), last.parse().unwrap())),
        ..able.clone()
    };
    let rules = vec![rule(1, "192.0.2.1", "192.0.2.200"), rule(2, "198.51.100.1", "198.51.100.200")];
    let audit = Audit { rules, ..home };
    let rules = Rules { time: race.time, netns: NetnsInum(7), entries: None, own: Some(true), redacted: false, audit };
    let session = Item::Session(Box::new(golden::session()));
    (vec![session, Item::Race(Box::new(race.clone())), Item::Rules(Box::new(rules))], race)
}

#[test]
fn no_other_rule_is_blamed_in_what_names_nobody() {
    for _ in 0..20 {
        let (items, race) = by_addresses();
        assert!("192.0.2.1".parse::<std::net::IpAddr>().unwrap() < race.contested.ends().source.ip());
        let mut shown = Case::redacted(Redactor::new().unwrap());
        items.into_iter().for_each(|item| shown.add(item));
        shown.end(Cut::NoSummary);
        let [(cause, 1)] = &shown.by_rule[..] else { panic!("{:?}", shown.by_rule) };
        assert_eq!(cause.rule().map(|(_, rule)| (rule.position, rule.addresses)), Some((1, None)));
        // As it was recorded so, which of the two cannot be known.
        let (redactor, (items, _)) = (Redactor::new().unwrap(), by_addresses());
        let recorded = case(items.into_iter().map(|item| redactor.item(item)).collect(), Cut::NoSummary);
        assert_eq!(recorded.by_rule, [(attribution::Cause::Several, 1)]);
    }
}

#[test]
fn a_rule_is_known_by_whom_it_takes() {
    let docker = audit::tests::of("docker");
    for (sender, network) in [("172.17.0.9", "-s 172.17.0.0/16"), ("172.18.0.9", "-s 172.18.0.0/16")] {
        let mut race = collision();
        let from = |ends: Ends| Ends { source: std::net::SocketAddr::new(sender.parse().unwrap(), 40_000), ..ends };
        race.loser.original = OriginalTuple::from_ends(from(race.loser.original.ends()));
        let read = Rules {
            time: race.time,
            netns: NetnsInum(7),
            entries: None,
            own: Some(true),
            redacted: false,
            audit: docker.clone(),
        };
        let items = || {
            let rules = Item::Rules(Box::new(read.clone()));
            vec![Item::Session(Box::new(golden::session())), Item::Race(Box::new(race.clone())), rules]
        };
        let text_of = |case: &Case| case.by_rule[0].0.rule().map(|(_, rule)| rule.text.clone());
        assert!(text_of(&case(items(), Cut::NoSummary)).is_some_and(|text| text.contains(network)));
        let redacted = || {
            let mut redacted = Case::redacted(Redactor::new().unwrap());
            items().into_iter().for_each(|item| redacted.add(item));
            redacted.end(Cut::NoSummary);
            text_of(&redacted).expect("a rule is known")
        };
        // Of 16 such networks one becomes itself, by right.
        assert!((0..32).map(|_| redacted()).filter(|text| text.contains(network)).count() < 20);
        let redactor = Redactor::new().unwrap();
        let recorded = case(items().into_iter().map(|item| redactor.item(item)).collect(), Cut::NoSummary);
        assert_eq!(recorded.by_rule, [(attribution::Cause::Several, 1)]);
    }
}

#[test]
fn rules_of_another_recording_are_not_those_of_this_one() {
    let race = collision();
    let audit = Audit { rules: vec![able(&race).remove(0)], ..Audit::new(&audit::tests::home()) };
    let rules = || Rules {
        time: race.time,
        netns: NetnsInum(7),
        entries: None,
        own: Some(true),
        redacted: false,
        audit: audit.clone(),
    };
    let later = KernelTime::from_record(race.time.nanoseconds() + 1).unwrap();
    for (started, known) in [(golden::session().started, true), (later, false)] {
        let next = Session { started, ..golden::session() };
        let items = vec![
            Item::Session(Box::new(golden::session())),
            Item::Rules(Box::new(rules())),
            Item::Session(Box::new(next)),
            Item::Race(Box::new(race.clone())),
        ];
        let case = case(items, Cut::NoSummary);
        assert_eq!(case.by_rule[0].0.rule().is_some(), known, "the next file of a rotation knows them: {known}");
    }
}

#[test]
fn each_reason_that_no_rule_is_named_has_its_words() {
    let race = collision();
    let home = Audit::new(&audit::tests::home());
    let translated = audit::Translated::of(&race);
    let others = home.rules.iter().filter(|rule| !rule.may_have_made(&translated)).cloned().collect();
    let able = able(&race);
    let said = |rules: Option<Vec<audit::RuleShown>>, own| {
        let read = |rules| {
            let audit = Audit { rules, not_read: Vec::new(), ..home.clone() };
            Item::Rules(Box::new(Rules {
                time: race.time,
                netns: NetnsInum(7),
                entries: None,
                own,
                redacted: false,
                audit,
            }))
        };
        let items = [Item::Session(Box::new(golden::session())), Item::Race(Box::new(race.clone()))];
        let case = case(items.into_iter().chain(rules.map(read)).collect(), Cut::NoSummary);
        let words = text(&case).split_whitespace().collect::<Vec<_>>().join(" ");
        let object: serde_json::Value = serde_json::from_str(&json(&case).unwrap()).unwrap();
        (words, object["not_attributed"].to_string())
    };
    let own = Some(true);
    for (rules, own, words, reason) in [
        (Some(able.clone()), own, "may have come by more than one rule", "several-rules"),
        (Some(others), own, "can have come by no rule that was read", "no-rule"),
        (None, own, "came where no rules could be read", "not-read"),
        (
            Some(able),
            None,
            "came where it is not known that the rules which were read are those of then",
            "netns-not-certain",
        ),
    ] {
        let (said, told) = said(rules, own);
        assert!(said.contains(&format!("1 collision {words}")), "{words}: {said}");
        assert_eq!(told, format!("{{\"{reason}\":1}}"));
    }
}

#[test]
fn a_change_names_the_namespace_it_is_for() {
    let said = |own| {
        let audit = Audit::new(&audit::tests::home());
        let rules = Rules {
            time: golden::session().started,
            netns: audit::tests::HOST,
            entries: None,
            own,
            redacted: false,
            audit,
        };
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
fn private_destinations_are_kept_from_the_rule_races_came_by() {
    let race = collision();
    let (home, able) = (Audit::new(&audit::tests::home()), able(&race).remove(0));
    let said = |to: &str, owner: Option<&'static str>, redacted| {
        let to = std::net::SocketAddr::new(to.parse().unwrap(), 443);
        let mut race = race.clone();
        let towards = |ends: Ends| Ends { destination: to, ..ends };
        race.contested = TranslatedTuple::from_ends(towards(race.contested.ends()));
        race.loser.original = OriginalTuple::from_ends(towards(race.loser.original.ends()));
        let rule =
            audit::RuleShown { owner: owner.map(Into::into), text: "oifname \"x0\" masquerade".into(), ..able.clone() };
        let audit = Audit { rules: vec![rule], findings: Vec::new(), ..home.clone() };
        let rules = Rules { time: race.time, netns: NetnsInum(7), entries: None, own: None, redacted, audit };
        let items =
            vec![Item::Session(Box::new(golden::session())), Item::Race(Box::new(race)), Item::Rules(Box::new(rules))];
        text(&case(items, Cut::NoSummary)).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let command = "$ nft insert rule ip home postrouting handle";
    let unowned = said("10.1.2.3", None, false);
    assert!(unowned.contains(command) && unowned.contains("oifname '\"x0\"' ip daddr 10.1.2.3 accept"), "{unowned}");
    assert!(
        unowned.contains("as here all of them (nft, table ip home, chain postrouting; netns 7) $ nft insert"),
        "{unowned}"
    );
    let calico = said("10.1.2.3", Some("calico"), false);
    assert!(calico.contains("make an IPPool with disabled: true") && !calico.contains(command), "{calico}");
    assert!(!said("198.51.100.7", None, false).contains("private destinations"));
    let redacted = said("10.1.2.3", None, true);
    assert!(redacted.contains("accept them ahead of it") && !redacted.contains(command), "{redacted}");
}

#[test]
fn every_document_has_what_the_audit_found_and_why() {
    let case = golden_case();
    let spaces = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for document in [text(&case), markdown(&case), html(&case)] {
        let document = spaces(&document);
        let words = ["AUDIT", "## Audit", "<h2>Audit</h2>"].iter().any(|heading| document.contains(heading));
        assert!(words, "{document}");
        for word in ["HIGH", "LOW", "INFO", "Two new flows that have one source port toward one destination"] {
            assert!(document.contains(word), "{word}: {document}");
        }
    }
}

#[test]
fn races_stand_beside_what_the_kernel_counted_in_every_document() {
    let at = |seconds: u64| KernelTime::from_record(seconds * 1_000_000_000).unwrap();
    let race = |seconds| Item::Race(Box::new(Race { time: at(seconds), ..collision() }));
    let sample = |seconds, failed| {
        let counters = Tally { insert_failed: Some(failed), ..Tally::default() };
        Item::Sample(Sample { time: at(seconds), netns: NetnsInum(7), counters, left_out: 0 })
    };
    let session = || Item::Session(Box::new(Session { started: at(1000), ..golden::session() }));
    let items = vec![session(), race(1001), race(1001), sample(1002, 1), race(1005), sample(1006, 4)];
    let case = case(items, Cut::NoSummary);
    let row = |cells: [&str; 5]| (cells.join(" "), format!("| {} |", cells.join(" | ")));
    for (text_row, markdown_row) in [
        row(["00:16:41", "2", "0", "2", "0"]),
        row(["00:16:42", "0", "1", "2", "1"]),
        row(["00:16:45", "1", "0", "3", "1"]),
        row(["00:16:46", "0", "3", "3", "4"]),
    ] {
        let lines = text(&case);
        let mut lines = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(lines.any(|line| line == text_row), "{text_row}: {}", text(&case));
        assert!(markdown(&case).contains(&markdown_row), "{markdown_row}");
    }
    // However long it was.
    let late = (0..3600).map(|second| sample(1007 + second, 5 + second));
    let items: Vec<_> = [session(), race(1001)].into_iter().chain(late).collect();
    let long = markdown(&self::case(items, Cut::NoSummary));
    let (_, figures) = long.split_once("| from | races |").unwrap();
    let rows = figures.lines().skip(2).take_while(|line| line.starts_with('|')).count();
    assert!((10..=20).contains(&rows), "{rows}: {figures}");
}

#[test]
fn counters_are_added_up_over_recordings_that_each_begin_at_zero() {
    let at = |seconds: u64| KernelTime::from_record(seconds * 1_000_000_000).unwrap();
    let session = |seconds| Item::Session(Box::new(Session { started: at(seconds), ..golden::session() }));
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
