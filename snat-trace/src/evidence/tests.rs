use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::audit::{self, Audit, Look};
use crate::counters::figures::Tally;
use crate::output::Sink;
use crate::output::golden;
use crate::output::json::JsonSink;
use crate::output::text::{Style, TextSink};
use crate::race::event::NetnsInum;
use crate::summary::Summary;

/// What a sink wrote, to be looked at while the sink is elsewhere.
#[derive(Clone, Debug, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shown {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn sinks() -> [(Box<dyn Sink + Send>, Shown); 2] {
    let style = Style { width: None, colour: false, verbose: true, zone: jiff::tz::TimeZone::UTC };
    let (json, text) = (Shown::default(), Shown::default());
    [(Box::new(JsonSink::new(json.clone())), json), (Box::new(TextSink::new(text.clone(), style)), text)]
}

/// Every namespace has the same rules.
fn home(_: NetnsInum) -> Look {
    audit::tests::home()
}

/// Everything the golden outputs have, each event in a frame of its own; `None` for a recording that is killed.
fn show(sink: &mut (dyn Sink + Send), summary: Option<&Summary>) {
    let clock = golden::clock();
    sink.session(&golden::session()).unwrap();
    sink.pause().unwrap();
    for race in golden::every_kind() {
        sink.race(&race, clock).unwrap();
        sink.pause().unwrap();
    }
    for failure in golden::failures() {
        sink.failure(&failure, clock).unwrap();
    }
    let counters = Tally { insert_failed: Some(5), drop: None, ..Tally::default() };
    let time = golden::session().started;
    sink.sample(&Sample { time, netns: NetnsInum(7), counters, left_out: 2 }, clock).unwrap();
    sink.pause().unwrap();
    if let Some(summary) = summary {
        sink.summary(summary).unwrap();
    }
}

/// A recording of it; the file and what was shown.
fn recorded(folder: &Path, summary: Option<&Summary>) -> (PathBuf, [String; 2]) {
    let mut shown = [String::new(), String::new()];
    let mut path = folder.join("none");
    for (number, (sink, out)) in sinks().into_iter().enumerate() {
        path = folder.join(format!("evidence-{number}"));
        let mut recorder = Recorder::open(&path, Existing::Refuse, Limits::default(), false, home, sink).unwrap();
        show(&mut recorder, summary);
        shown[number] = out.text();
    }
    (path, shown)
}

fn replay(sink: &mut (dyn Sink + Send), bytes: &[u8]) -> (Result<(), ReadError>, Cut) {
    let mut evidence = read(bytes);
    let result = evidence.try_for_each(|item| {
        match item? {
            Item::Session(session) => sink.session(&session),
            Item::Race(race) => sink.race(&race, clock()),
            Item::Failure(failure) => sink.failure(&failure, clock()),
            Item::Summary(summary) => sink.summary(&summary),
            Item::Node(_) | Item::Rules(_) | Item::Sample(_) => Ok(()),
        }
        .map_err(ReadError::Io)
    });
    (result, evidence.cut())
}

fn replayed(bytes: &[u8]) -> [String; 2] {
    sinks().map(|(mut sink, out)| {
        let (result, _) = replay(&mut *sink, bytes);
        result.unwrap();
        out.text()
    })
}

#[test]
fn a_replay_is_what_was_shown() {
    for (name, summary) in golden::summaries() {
        let folder = tempfile::tempdir().unwrap();
        let (path, shown) = recorded(folder.path(), Some(&summary));
        let bytes = fs::read(path).unwrap();
        assert_eq!(replayed(&bytes), shown, "{name}");
        let items: Vec<Item> = read(&bytes[..]).collect::<Result<_, _>>().unwrap();
        let samples: Vec<_> = items.iter().filter(|item| matches!(item, Item::Sample(_))).collect();
        let [Item::Sample(sample)] = samples[..] else { panic!("{samples:?}") };
        assert_eq!((sample.netns, sample.counters.insert_failed, sample.counters.drop), (NetnsInum(7), Some(5), None));
        assert_eq!(sample.left_out, 2);
        // The machine at both ends.
        let [_, Item::Node(first), .., Item::Node(last), Item::Summary(_)] = items.as_slice() else {
            panic!("{items:?}")
        };
        assert_eq!(first.modules, last.modules);
    }
}

#[test]
fn evidence_is_its_owners_alone_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let (path, _) = recorded(folder.path(), None);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let before = fs::read(&path).unwrap();
    let [(sink, _), _] = sinks();
    let refused = Recorder::open(&path, Existing::Refuse, Limits::default(), false, home, sink).unwrap_err();
    assert!(refused.to_string().contains("exists; --append"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
    // However it is made: by adding to nothing, and as the next of several.
    let [(sink, _), _] = sinks();
    let another = folder.path().join("another");
    let limits = Limits { size: Some(1), age: None, keep: 1 };
    let mut recorder = Recorder::open(&another, Existing::Append, limits, false, home, sink).unwrap();
    show(&mut recorder, None);
    drop(recorder);
    assert_eq!([mode(&another), mode(&another.with_extension("1"))], [0o600; 2]);
    // A run that never began leaves nothing.
    let [(sink, _), _] = sinks();
    let new = folder.path().join("new");
    drop(Recorder::open(&new, Existing::Refuse, Limits::default(), false, home, sink).unwrap());
    assert!(!new.exists());
}

/// Cut anywhere, a file is good up to its last whole frame, and what follows is said to be missing.
#[test]
fn cut_at_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (path, [json, _]) = recorded(folder.path(), Some(&golden::summaries()[1].1));
    let bytes = fs::read(path).unwrap();
    let mut most = 0;
    for length in 0..=bytes.len() {
        let [(mut sink, out), _] = sinks();
        let (result, cut) = replay(&mut *sink, &bytes[..length]);
        let shown = out.text();
        assert!(json.starts_with(&shown) && (shown.is_empty() || shown.ends_with('\n')), "{length}");
        match result {
            Ok(()) => assert_eq!(cut == Cut::No, length == bytes.len(), "{length}: {cut:?}"),
            Err(ReadError::NotEvidence) => assert_eq!((length, shown.as_str()), (0, "")),
            Err(error) => assert!(matches!(error, ReadError::CutAtOnce) && shown.is_empty(), "{length}: {error}"),
        }
        assert!(shown.len() >= most, "{length}");
        most = shown.len();
    }
    assert_eq!(most, json.len());
}

/// A cut file goes on where it is good.
#[test]
fn appended_after_every_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (path, [json, _]) = recorded(folder.path(), None);
    let bytes = fs::read(&path).unwrap();
    for length in (0..=bytes.len()).step_by(97).chain([bytes.len()]) {
        fs::write(&path, &bytes[..length]).unwrap();
        let [(sink, out), _] = sinks();
        let mut recorder = Recorder::open(&path, Existing::Append, Limits::default(), false, home, sink).unwrap();
        show(&mut recorder, Some(&golden::summaries()[1].1));
        let [again, _] = replayed(&fs::read(&path).unwrap());
        let before = again.strip_suffix(&out.text()).unwrap();
        assert!(json.starts_with(before) && (length < bytes.len() || before == json), "{length}");
    }
    // Not while somebody else does.
    let [(sink, _), (other, _)] = sinks();
    let recorder = Recorder::open(&path, Existing::Append, Limits::default(), false, home, sink).unwrap();
    let refused = Recorder::open(&path, Existing::Append, Limits::default(), false, home, other).unwrap_err();
    assert!(matches!(refused, OpenError::InUse(_)), "{refused}");
    drop(recorder);
    fs::write(&path, "something else").unwrap();
    let [(sink, _), _] = sinks();
    let refused = Recorder::open(&path, Existing::Append, Limits::default(), false, home, sink).unwrap_err();
    assert!(matches!(refused, OpenError::NotEvidence(_)), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), b"something else");
}

/// What stands behind a damaged frame is kept: nothing is added where it would be cut off. Behind a damaged last one there is
/// nothing to keep.
#[test]
fn appended_to_a_damaged_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, [json, _]) = recorded(folder.path(), Some(&golden::summaries()[1].1));
    let whole = fs::read(&path).unwrap();
    let append = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let [(sink, out), _] = sinks();
        let recorder = Recorder::open(&path, Existing::Append, Limits::default(), false, home, sink);
        (recorder, out, bytes)
    };
    for at in [10, whole.len() / 2] {
        let (refused, _, bytes) = append(at);
        let error = refused.unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }) && error.to_string().contains("another file"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let (recorder, out, _) = append(whole.len() - 1);
    let mut recorder = recorder.unwrap();
    recorder.session(&golden::session()).unwrap();
    recorder.pause().unwrap();
    let [(mut sink, again), _] = sinks();
    let (result, cut) = replay(&mut *sink, &fs::read(&path).unwrap());
    result.unwrap();
    assert_eq!(cut, Cut::NoSummary);
    assert!(json.starts_with(again.text().strip_suffix(&out.text()).unwrap()));
}

#[test]
fn a_large_recording_is_several_files_each_good_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    let limits = Limits { size: Some(4096), age: None, keep: 2 };
    let [(sink, out), _] = sinks();
    let mut recorder = Recorder::open(&path, Existing::Refuse, limits, false, home, sink).unwrap();
    recorder.session(&golden::session()).unwrap();
    for _ in 0..20 {
        for race in golden::every_kind() {
            recorder.race(&race, golden::clock()).unwrap();
        }
        recorder.pause().unwrap();
    }
    recorder.summary(&golden::summaries()[1].1).unwrap();
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["evidence", "evidence.1", "evidence.2"]);
    let shown = out.text();
    let session = format!("{}\n", shown.lines().next().unwrap());
    let mut rest = shown;
    for name in files {
        let [(mut sink, out), _] = sinks();
        let (result, cut) = replay(&mut *sink, &fs::read(folder.path().join(&name)).unwrap());
        result.unwrap();
        // The youngest has the end, and each before it what came before.
        assert_eq!(cut == Cut::No, name == "evidence");
        let replayed = out.text();
        let events = replayed.strip_prefix(&session).unwrap();
        rest = rest.strip_suffix(events).unwrap().to_owned();
    }
    assert!(rest.len() > session.len(), "the oldest are gone");
}

/// Where events never end, no pause does what is due.
#[test]
fn a_storm_is_several_files_too_and_has_its_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    let limits = Limits { size: Some(4096), age: None, keep: 1 };
    let [(sink, _), _] = sinks();
    let mut recorder = Recorder::open(&path, Existing::Refuse, limits, false, home, sink).unwrap();
    recorder.session(&golden::session()).unwrap();
    let mut races = golden::every_kind().into_iter().cycle();
    let first = path.with_extension("1");
    while !first.exists() {
        recorder.race(&races.next().unwrap(), golden::clock()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20, "one file grows without a bound");
    }
    // Its rules come when they are read, on a thread of their own.
    while rules(&fs::read(&first).unwrap()).is_empty() {
        recorder.race(&races.next().unwrap(), golden::clock()).unwrap();
    }
}

/// Nothing that names anybody is in the file, in whatever form, and it is evidence like any other.
#[test]
fn redacted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    let [(sink, out), _] = sinks();
    let mut recorder = Recorder::open(&path, Existing::Refuse, Limits::default(), true, home, sink).unwrap();
    show(&mut recorder, Some(&golden::summaries()[1].1));
    let (shown, [hidden, _]) = (out.text(), replayed(&fs::read(&path).unwrap()));
    let secrets =
        ["10.244.1.9", "10.244.1.7", "198.51.100.", "fd00:10:244", "curl", "node\"", "5e3fa1c0d2b4", "101ee274"];
    for secret in secrets {
        assert!(shown.contains(secret) && !hidden.contains(secret), "{secret}: {hidden}");
    }
    let packets = |text: &str| text.matches("\"packet\"").count();
    assert_eq!((hidden.lines().count(), packets(&hidden)), (shown.lines().count(), packets(&shown)));
}

fn rules(bytes: &[u8]) -> Vec<Rules> {
    let rules = |item| if let Item::Rules(rules) = item { Some(*rules) } else { None };
    read(bytes).map(Result::unwrap).filter_map(rules).collect()
}

/// Rules of each namespace with a race are there once, in each file; and those that name nobody name nobody.
#[test]
fn rules_are_those_that_were_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = recorded(folder.path(), Some(&golden::summaries()[1].1));
    let involved: BTreeSet<_> = golden::every_kind().iter().filter_map(|race| race.netns).collect();
    let found = rules(&fs::read(path).unwrap());
    assert_eq!(found.iter().map(|rules| rules.netns).collect::<BTreeSet<_>>(), involved);
    assert_eq!(found.len(), involved.len());
    let expected = Audit::new(&audit::tests::home());
    assert!(expected.findings.len() > 5 && expected.rules.len() > 5);
    let entries = audit::tests::home().entries();
    assert!(entries.is_some() && found.iter().all(|rules| rules.audit == expected && rules.entries == entries));

    let path = folder.path().join("redacted");
    let [(sink, _), _] = sinks();
    let mut recorder = Recorder::open(&path, Existing::Refuse, Limits::default(), true, home, sink).unwrap();
    show(&mut recorder, Some(&golden::summaries()[1].1));
    let hidden = rules(&fs::read(path).unwrap()).remove(0).audit;
    let counts = |audit: &Audit| (audit.findings.len(), audit.rules.len(), audit.not_read.len());
    assert_eq!(counts(&hidden), counts(&expected));
    let (open, hidden) = (format!("{expected:?}"), format!("{hidden:?}"));
    // No private network of a short prefix: one in 256 becomes the next one's.
    for secret in ["192.0.2.60", "from the lan", "lan0", "fd00:1::", "2001:db8::1", "\"home\"", "servers"] {
        assert!(open.contains(secret) && !hidden.contains(secret), "{secret}: {hidden}");
    }
}

/// What ends a run before its time does not take its last lines along.
#[test]
fn an_output_that_fails_leaves_what_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    let [(sink, out), _] = sinks();
    let mut recorder = Recorder::open(&path, Existing::Refuse, Limits::default(), false, home, sink).unwrap();
    recorder.session(&golden::session()).unwrap();
    recorder.race(&golden::every_kind()[0], golden::clock()).unwrap();
    drop(recorder);
    assert_eq!(replayed(&fs::read(path).unwrap())[0], out.text());
}

#[test]
fn a_reader_who_goes_away_ends_no_recording() {
    struct Gone;

    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let (_, [json, _]) = recorded(folder.path(), Some(&golden::summaries()[1].1));
    let path = folder.path().join("evidence");
    let mut recorder =
        Recorder::open(&path, Existing::Refuse, Limits::default(), false, home, Box::new(JsonSink::new(Gone))).unwrap();
    show(&mut recorder, Some(&golden::summaries()[1].1));
    assert_eq!(replayed(&fs::read(path).unwrap())[0], json);
}

proptest! {
    /// Whatever happens to its bytes, a file tells nothing that was not recorded.
    #[test]
    fn damaged_files_tell_no_lies(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, [json, _]) = recorded(folder.path(), Some(&golden::summaries()[1].1));
        let mut bytes = fs::read(path).unwrap();
        let whole = bytes.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let [(mut sink, out), _] = sinks();
        let (result, cut) = replay(&mut *sink, &bytes);
        prop_assert!(json.starts_with(&out.text()));
        prop_assert_eq!(result.is_ok() && cut == Cut::No, bytes == whole);
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let [(mut sink, _), _] = sinks();
        let _ = replay(&mut *sink, &bytes);
    }

    /// Lines that no snat-trace wrote, in frames as it writes them.
    #[test]
    fn any_lines_are_survived(lines in "([{}\":,a-z0-9]{0,20}|\"(type|session|race|summary|time|hooks)\"|\\{|\\}|:|,|\n){0,60}") {
        let [(mut sink, _), _] = sinks();
        let _ = replay(&mut *sink, &zstd::encode_all(lines.as_bytes(), 0).unwrap());
    }
}
