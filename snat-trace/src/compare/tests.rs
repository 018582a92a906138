use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::audit;
use crate::evidence::{Existing, Item, Limits, Recorder, read};
use crate::output::json::JsonSink;
use crate::output::{Sink as _, golden};
use crate::race::event::{Class, Race, Verdict};
use crate::race::time::KernelTime;
use crate::summary::{Span, Summary};

/// Seconds that a recording below watches.
const WATCHED: u64 = 60;

fn at(nanoseconds: u64) -> KernelTime {
    KernelTime::from_record(nanoseconds).unwrap()
}

/// What a recording is to be.
#[derive(Clone, Debug)]
struct Recording {
    /// Seconds after the start at which races are, in nanoseconds.
    races: Vec<u64>,
    connections: Option<u64>,
    has_summary: bool,
    kernel: &'static str,
}

/// So many races, one after the other at the same distance.
fn evenly(count: u64, connections: u64) -> Recording {
    let races = (0..count).map(|race| race * WATCHED * 1_000_000_000 / count.max(1)).collect();
    Recording { races, connections: Some(connections), has_summary: true, kernel: "6.12.1-test" }
}

impl Recording {
    /// As `record` would write it, so many seconds after the first one, after what is there.
    fn write(&self, path: &std::path::Path, later: u64, limits: Limits) {
        let shown = Box::new(JsonSink::new(std::io::sink()));
        let home = |_| audit::tests::home();
        let mut recorder = Recorder::open(path, Existing::Append, limits, false, home, shown).unwrap();
        let mut session = golden::session();
        session.kernel = self.kernel.to_owned();
        session.started = at(session.started.nanoseconds() + later * 1_000_000_000);
        recorder.session(&session).unwrap();
        // Of no namespace: the rules of one would be read at a time of this machine's.
        let race = Race { netns: None, ..golden::every_kind()[0].clone() };
        assert_eq!((race.class, race.verdict), (Class::SnatPortCollision, Some(Verdict::Dropped)));
        for after in &self.races {
            let race = Race { time: at(session.started.nanoseconds() + after), ..race.clone() };
            recorder.race(&race, session.clock).unwrap();
            recorder.pause().unwrap();
        }
        if self.has_summary {
            let ended = at(session.started.nanoseconds() + WATCHED * 1_000_000_000);
            let count = self.races.len() as u64;
            let (_, closed) = golden::summaries().into_iter().find(|(name, _)| *name == "closed").unwrap();
            let summary = Summary {
                span: Span { started: session.started, ended, clock: session.clock },
                connections: self.connections,
                dropped: count,
                resolved: 0,
                undecided: 0,
                classes: vec![(Class::SnatPortCollision, count)],
                ..closed
            };
            recorder.summary(&summary).unwrap();
        }
    }
}

fn side(recordings: &[Recording]) -> Side {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    for (later, recording) in (0..).step_by(100).zip(recordings) {
        recording.write(&path, later, Limits::default());
    }
    Side::read(read(std::fs::File::open(path).unwrap())).unwrap()
}

/// The files of a rotation, joined, are one recording, as their report has it.
#[test]
fn joined_files_of_a_rotation_are_one_recording() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    let recording = evenly(40, 1000);
    recording.write(&path, 0, Limits { size: Some(8192), age: None, keep: 1 });
    let bytes = |path: &std::path::Path| std::fs::read(path).unwrap();
    let both = [bytes(&path.with_extension("1")), bytes(&path)].concat();
    let count = |bytes: &[u8]| read(bytes).filter(|item| matches!(item, Ok(Item::Session(_)))).count();
    assert_eq!((count(&both), count(&bytes(&path))), (2, 1));
    let joined = Side::read(read(both.as_slice())).unwrap();
    assert_eq!((joined.recordings, joined.unfinished, joined.races(Kind::Dropped)), (1, 0, 40));
    assert_eq!((joined.watched, joined.connections), (Duration::from_secs(WATCHED), Some(1000)));
    assert!(joined.told(Kind::Dropped) > Side::read(read(bytes(&path).as_slice())).unwrap().told(Kind::Dropped));
}

fn compared(before: &[Recording], after: &[Recording]) -> Comparison {
    Comparison::new(side(before), side(after))
}

fn json(comparison: &Comparison) -> Value {
    let mut out = Vec::new();
    comparison.write_json(&mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn verdicts_in_words() {
    let before = [evenly(412, 10_000)];
    let bursts = Recording { races: (0..412).map(|race| race / 103 * 14_000_000_000).collect(), ..evenly(412, 10_000) };
    let killed = Recording { has_summary: false, ..evenly(412, 10_000) };
    let other = Recording { kernel: "7.0.0-other\x1b[2J", ..evenly(3, 5012) };
    let cases = [
        ("fixed", compared(&before, &[evenly(0, 5012)])),
        ("better, on another kernel", compared(&before, &[other])),
        ("no change, in two recordings", compared(&before, &[evenly(200, 5012), evenly(190, 4990)])),
        ("worse", compared(&[evenly(0, 5012)], &before)),
        ("bursts", compared(&[bursts], &[evenly(0, 5012)])),
        ("killed", compared(&[killed], &[evenly(0, 5012)])),
        ("nothing", compared(&[evenly(0, 10)], &[evenly(0, 10)])),
    ];
    let text: Vec<String> = cases.iter().map(|(name, comparison)| format!("== {name}\n{comparison}")).collect();
    let text = text.join("\n");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    insta::assert_snapshot!("text", text);
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&json(&cases[1].1)).unwrap());
}

#[test]
fn several_recordings_are_one() {
    let two = side(&[evenly(30, 1000), evenly(10, 500)]);
    assert_eq!((two.races(Kind::Dropped), two.connections, two.recordings), (40, Some(1500), 2));
    assert_eq!(two.watched, Duration::from_secs(2 * WATCHED));
    // One that was killed has its races and the time to the last of them, and nobody knows its connections.
    let killed = Recording { has_summary: false, ..evenly(30, 1000) };
    let with_killed = side(&[killed, evenly(10, 500)]);
    assert_eq!((with_killed.races(Kind::Dropped), with_killed.connections, with_killed.unfinished), (40, None, 1));
    assert_eq!(with_killed.watched, Duration::from_secs(58 + WATCHED));
}

/// By hand: 30 of 1500 connections are 20 of 1000, and 30 in a minute 1800 in an hour.
#[test]
fn both_bases_are_told() {
    let both = json(&compared(&[evenly(30, 1500)], &[evenly(0, 500)]));
    let rate = |rates: &Value| rates[0]["before"]["rate"].as_f64().unwrap();
    assert_eq!((both["per"].as_str(), both["by_time"]["per"].as_str()), (Some("1000-connections"), Some("hour")));
    assert!((rate(&both["rates"]) - 20.0).abs() < 1e-9 && (rate(&both["by_time"]["rates"]) - 1800.0).abs() < 1e-6);
    // Where time is the only one it is there once.
    let minimal = Recording { connections: None, ..evenly(30, 0) };
    let one = json(&compared(&[minimal], &[evenly(0, 500)]));
    assert_eq!((one["per"].as_str(), one.get("by_time")), (Some("hour"), None));
}

#[test]
fn less_traffic_is_no_cure() {
    let comparison = compared(&[evenly(400, 8000)], &[evenly(40, 800)]);
    assert_ne!(comparison.judgement(), Judgement::Better);
    let minimal = |races| Recording { connections: None, ..evenly(races, 0) };
    let per_hour = compared(&[minimal(400)], &[minimal(40)]);
    assert_eq!((json(&per_hour)["per"].as_str(), per_hour.judgement()), (Some("hour"), Judgement::Better));
    assert!(json(&per_hour)["cautions"][0].as_str().unwrap().contains("changes with the traffic"));
}

/// 400 races in 4 instants are worth about four, and in 200 as many as those are.
#[test]
fn bursts_are_worth_what_they_are() {
    let every = |distance: u64, size: u64| Recording {
        races: (0..400).map(|race| race / size * distance * 1_000_000_000).collect(),
        ..evenly(400, 8000)
    };
    let burst = |recording: Recording| side(&[recording]).burst(Kind::Dropped).unwrap();
    assert!((85.0..115.0).contains(&burst(every(14, 100))), "{}", burst(every(14, 100)));
    assert!((burst(evenly(400, 8000)) - 1.0).abs() < 1e-9);
    let none = [evenly(0, 8000)];
    assert_eq!(compared(&[every(14, 100)], &none).judgement(), Judgement::NotEnoughData);
    assert_eq!(compared(&[evenly(400, 8000)], &none).judgement(), Judgement::Fixed);
}

#[test]
fn a_moment_tells_nothing_of_bursts() {
    let short =
        Recording { has_summary: false, races: (0..400).map(|race| race * 10_000_000).collect(), ..evenly(0, 0) };
    let comparison = compared(&[short], &[evenly(0, 100)]);
    assert_eq!(comparison.judgement(), Judgement::NotEnoughData);
    assert!(comparison.to_string().contains("record 10 s or more"), "{comparison}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same file on both sides never shows a change, and whatever there is can be printed.
    #[test]
    fn a_file_is_like_itself(
        races in proptest::collection::vec(0..WATCHED * 1_000_000_000, 0..200), connections in proptest::option::of(0..10_000_u64),
        has_summary: bool,
    ) {
        let recording = [Recording { races, connections, has_summary, kernel: "k" }];
        let comparison = compared(&recording, &recording);
        prop_assert!(matches!(comparison.judgement(), Judgement::NoChange | Judgement::NotEnoughData), "{}", comparison);
        prop_assert!(comparison.differences().is_empty());
        prop_assert!(json(&comparison)["cautions"].is_array());
    }
}
