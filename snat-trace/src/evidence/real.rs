//! Files that were recorded in guests with real kernels, whole, cut and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::compare::{Comparison, Side};
use crate::output::Sink;
use crate::output::json::JsonSink;
use crate::report::{Case, html, json, markdown, text};

/// By the kernel: a lab each of UDP, TCP over IPv6, ICMP, a rule of one port, a duplicate flow and a refusal through ctnetlink,
/// traced with failures.
const KERNELS: [&str; 3] = ["5.10", "6.12", "7"];

fn file(kernel: &str) -> Vec<u8> {
    let name = format!("tests/data/evidence/{kernel}.zst");
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Everything that can be read, and how that ended.
fn items(bytes: &[u8]) -> (Vec<Item>, Option<ReadError>, Cut) {
    let (mut evidence, mut items, mut error) = (read(bytes), Vec::new(), None);
    for item in &mut evidence {
        match item {
            Ok(item) => items.push(item),
            Err(why) => error = Some(why),
        }
    }
    (items, error, evidence.cut())
}

fn case(items: Vec<Item>, cut: Cut) -> Case {
    let mut case = Case::default();
    items.into_iter().for_each(|item| case.add(item));
    case.end(cut);
    case
}

#[test]
fn each_line_is_replayed_as_it_stands() {
    for kernel in KERNELS {
        let (items, error, cut) = items(&file(kernel));
        assert!(error.is_none() && cut == Cut::No, "{kernel}: {error:?}");
        let mut replayed = JsonSink::new(Vec::new());
        for item in items {
            match item {
                Item::Session(session) => replayed.session(&session).unwrap(),
                Item::Race(race) => replayed.race(&race, clock()).unwrap(),
                Item::Failure(failure) => replayed.failure(&failure, clock()).unwrap(),
                Item::Summary(summary) => replayed.summary(&summary).unwrap(),
                Item::Node(_) | Item::Rules(_) | Item::Sample(_) => {}
            }
        }
        let recorded = String::from_utf8(zstd::decode_all(file(kernel).as_slice()).unwrap()).unwrap();
        let only_here = |line: &&str| {
            ["node", "rules", "sample"].iter().any(|kind| line.contains(&format!("{{\"type\":\"{kind}\"")))
        };
        let expected: String =
            recorded.lines().filter(|line| !only_here(line)).map(|line| format!("{line}\n")).collect();
        assert_eq!(String::from_utf8_lossy(replayed.get_mut()), expected, "{kernel}");
    }
}

#[test]
fn reports() {
    for kernel in KERNELS {
        let (items, _, cut) = items(&file(kernel));
        insta::assert_snapshot!(format!("report_{kernel}"), text(&case(items, cut)));
    }
}

/// Collisions by the rule they are known to have come by.
fn blamed(case: &Case) -> BTreeMap<String, u64> {
    let report: serde_json::Value = serde_json::from_str(&json(case).unwrap()).unwrap();
    let rules = report["rules"].as_array().unwrap().iter();
    let blamed = rules.map(|rule| {
        let place = ["netns", "tool", "table", "chain", "position", "handle", "text"].map(|field| &rule[field]);
        (format!("{place:?}"), rule["races"].as_u64().unwrap())
    });
    blamed.filter(|(_, races)| *races > 0).collect()
}

/// What is read of a file that was cut is what stands before the cut, and nobody takes it for the whole.
#[test]
fn cut_at_every_byte() {
    for kernel in KERNELS {
        let whole = file(kernel);
        let (all, _, _) = items(&whole);
        let known_by_all = {
            let (items, _, cut) = items(&whole);
            blamed(&case(items, cut))
        };
        let mut before = 0;
        for length in 0..whole.len() {
            let (some, error, cut) = items(&whole[..length]);
            let known = some.len();
            assert!(before <= known && known < all.len() && cut != Cut::No, "{kernel}, {length} bytes: {known} items");
            assert!(
                matches!(error, None | Some(ReadError::CutAtOnce)) || length == 0,
                "{kernel}, {length} bytes: {error:?}"
            );
            if known > before {
                // Another frame is whole. Nothing is made up for what is missing.
                let case = case(some, cut);
                for (rule, races) in blamed(&case) {
                    let by_all = known_by_all.get(&rule).copied().unwrap_or(0);
                    assert!(races <= by_all, "{kernel}, {length} bytes: {races} by {rule}, {by_all} of the whole file");
                }
                let report = text(&case);
                assert!(!report.contains("all are explained"), "{kernel}, {length} bytes: {report}");
                before = known;
            }
        }
    }
}

proptest! {
    /// Whatever happens to its bytes, a file is read up to there, and everything made of it holds what it has.
    #[test]
    fn damaged_anywhere(
        kernel in prop::sample::select(KERNELS.to_vec()),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let whole = file(kernel);
        let mut bytes = whole.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (some, error, cut) = items(&bytes);
        let (all, _, _) = items(&whole);
        let (all, some_of_it) = (format!("{all:?}"), format!("{some:?}"));
        prop_assert!(all.starts_with(some_of_it.trim_end_matches(']')));
        // A frame's head has bits that mean nothing to what is in it, such as the size of its window.
        let unharmed = error.is_none() && cut == Cut::No;
        prop_assert!(!unharmed || some_of_it == all);
        prop_assert!(unharmed || bytes != whole);
        let case = case(some, cut);
        for document in [text(&case), markdown(&case), html(&case), json(&case).unwrap()] {
            prop_assert!(!document.is_empty());
        }
        if let (Ok(damaged), Ok(whole)) = (Side::read(read(bytes.as_slice())), Side::read(read(whole.as_slice()))) {
            prop_assert!(!Comparison::new(whole, damaged).to_string().is_empty());
        }
    }
}
