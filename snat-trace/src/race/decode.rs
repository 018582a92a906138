//! From the bytes of the ring to a record.

use snat_trace_common::{
    CgroupKey, ClashRecord, FailureRecord, OwnerFact, PathFact, ProcessFact, ProcessKey, RecordHeader, Tuple,
    VerdictRecord, kind,
};

/// What the ring brings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A clash.
    Clash(Box<ClashRecord>),
    /// What became of one that came before.
    Verdict(VerdictRecord),
    /// A connection that did not come into the table without a clash.
    Failure(Box<FailureRecord>),
    /// What the sender of a clash or a failure runs.
    Process(Box<ProcessFact>),
}

/// Why bytes are no record. Such bytes are counted by [`Undecodable::reason`], never fatal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Undecodable {
    /// Fewer bytes than the record's kind has.
    #[error("a record of {len} bytes is too short")]
    Short {
        /// How many there were.
        len: usize,
    },
    /// No time, which every hook writes first.
    #[error("a record has no time")]
    Untimed,
    /// A kind this version does not know.
    #[error("record kind {kind} is unknown")]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// A tuple of neither IPv4 nor IPv6.
    #[error("address family {l3num} is unknown")]
    UnknownFamily {
        /// `nf_conntrack_tuple.src.l3num`.
        l3num: u16,
    },
}

impl Undecodable {
    /// Under which name it is counted as lost.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Short { .. } => "short-record",
            Self::Untimed => "untimed-record",
            Self::UnknownKind { .. } => "unknown-record-kind",
            Self::UnknownFamily { .. } => "unknown-address-family",
        }
    }
}

/// Decodes one record. Bytes behind its end are ignored, so that records may grow.
///
/// # Errors
///
/// [`Undecodable::Short`] and [`Undecodable::UnknownKind`].
pub fn decode(bytes: &[u8]) -> Result<Record, Undecodable> {
    let short = Undecodable::Short { len: bytes.len() };
    let header: RecordHeader = read(bytes).ok_or(short)?;
    match header.kind {
        kind::CLASH => read(bytes).map(|clash| Record::Clash(Box::new(clash))).ok_or(short),
        kind::VERDICT => read(bytes).map(Record::Verdict).ok_or(short),
        kind::FAILURE => read(bytes).map(|failure| Record::Failure(Box::new(failure))).ok_or(short),
        kind::PROCESS => read(bytes).map(|process| Record::Process(Box::new(process))).ok_or(short),
        kind => Err(Undecodable::UnknownKind { kind }),
    }
}

/// Decodes a value of a map.
pub(crate) fn decode_value<T: Plain>(bytes: &[u8]) -> Option<T> {
    read(bytes)
}

/// The bytes of a record, or of a map's key.
pub(crate) fn bytes_of<T: Plain>(record: &T) -> &[u8] {
    // SAFETY: it is initialised bytes without padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

/// What a record consists of, and a map's keys and values.
///
/// # Safety
///
/// Every bit pattern is a value of the type, and it has no padding.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers only.
unsafe impl Plain for RecordHeader {}
// SAFETY: integers only.
unsafe impl Plain for ClashRecord {}
// SAFETY: integers only.
unsafe impl Plain for VerdictRecord {}
// SAFETY: integers only.
unsafe impl Plain for OwnerFact {}
// SAFETY: integers only.
unsafe impl Plain for FailureRecord {}
// SAFETY: integers only.
unsafe impl Plain for Tuple {}
// SAFETY: integers only.
unsafe impl Plain for ProcessKey {}
// SAFETY: integers only.
unsafe impl Plain for ProcessFact {}
// SAFETY: integers only.
unsafe impl Plain for CgroupKey {}
// SAFETY: integers only.
unsafe impl Plain for PathFact {}

fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, they need not be aligned, and every bit pattern is a `T`.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;
    use crate::output::Sink;
    use crate::output::golden::owner;
    use crate::output::json::JsonSink;
    use crate::output::text::{Style, TextSink};
    use crate::owner::recorded::{Sender, sender};
    use crate::owner::{Owner, OwnerSource, Program, StartClock, worker};
    use crate::race::classify::{
        classify,
        tests::{clash, since},
    };
    use crate::race::failure::{judge, tests::refused};
    use crate::race::time::WallClock;
    use crate::race::verdict::{decided, tests::verdict_on};

    /// One record of each kind, as the kernel would write it.
    fn of_each_kind() -> [(Vec<u8>, Record); 4] {
        let clash = clash();
        let verdict = verdict_on(&clash);
        let failure = refused();
        let process = worker();
        [
            (bytes_of(&clash).to_vec(), Record::Clash(Box::new(clash))),
            (bytes_of(&verdict).to_vec(), Record::Verdict(verdict)),
            (bytes_of(&failure).to_vec(), Record::Failure(Box::new(failure))),
            (bytes_of(&process).to_vec(), Record::Process(Box::new(process))),
        ]
    }

    #[test]
    fn what_the_kernel_wrote_comes_back() {
        for (bytes, record) in of_each_kind() {
            assert_eq!(decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn a_longer_record_is_a_newer_one() {
        for (mut bytes, record) in of_each_kind() {
            bytes.extend([7; 24]);
            assert_eq!(decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn a_cut_record_is_short_at_every_length() {
        for (bytes, _) in of_each_kind() {
            for len in 0..bytes.len() {
                assert_eq!(decode(&bytes[..len]), Err(Undecodable::Short { len }));
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let mut bytes = bytes_of(&clash()).to_vec();
        bytes[..2].copy_from_slice(&999_u16.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(Undecodable::UnknownKind { kind: 999 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1024),
            known in proptest::option::of(kind::CLASH..=kind::PROCESS),
        ) {
            if let Some(kind) = known && bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind.to_ne_bytes());
            }
            match decode(&bytes) {
                Ok(Record::Clash(clash)) => {
                    let _ = classify(&clash, since());
                }
                Ok(Record::Verdict(verdict)) => {
                    let _ = decided(&verdict);
                }
                Ok(Record::Failure(failure)) => {
                    let _ = judge(&failure);
                }
                Ok(Record::Process(process)) => {
                    let _ = ran(&process);
                }
                Err(_) => {}
            }
        }
    }

    /// What a sender runs, of which the kernel noted this.
    fn ran(process: &ProcessFact) -> Program {
        let key = ProcessKey { start_ns: 1, ..ProcessKey::default() };
        Program::recorded(&OwnerFact { process: key, ..OwnerFact::default() }, Some(process), StartClock::now())
    }

    /// Has something printed every way there is, and looks at it.
    fn printed(print: impl Fn(&mut dyn Sink) -> std::io::Result<()>) {
        let zone = jiff::tz::TimeZone::UTC;
        let style = |width, verbose| Style { width, colour: false, verbose, zone: zone.clone() };
        let (mut json, mut text, mut verbose) = (Vec::new(), Vec::new(), Vec::new());
        print(&mut JsonSink::new(&mut json)).unwrap();
        print(&mut TextSink::new(&mut text, style(Some(80), false))).unwrap();
        print(&mut TextSink::new(&mut verbose, style(None, true))).unwrap();
        assert!(json.ends_with(b"}\n") && json.iter().filter(|&&byte| byte == b'\n').count() == 1);
        drop(serde_json::from_slice::<serde_json::Value>(&json).unwrap());
        for line in [text, verbose] {
            let line = String::from_utf8(line).unwrap();
            assert!(!line.contains(|character: char| character.is_control() && character != '\n'), "{line:?}");
        }
    }

    /// Whatever comes out of the ring, what is printed of it is one line of JSON, and text without control characters.
    #[test]
    fn mutated_records_are_survived() {
        let clock = WallClock::from_offset(1_772_366_400_000_000_000);
        let [(clash, _), (verdict, _), (failure, _), (process, _)] = of_each_kind();
        survives("record", &[&clash, &verdict, &failure, &process], |bytes| {
            let record = match decode(bytes) {
                Ok(Record::Clash(record)) => record,
                Ok(Record::Verdict(verdict)) => {
                    let _ = decided(&verdict);
                    return;
                }
                Ok(Record::Failure(failure)) => {
                    let Ok(failure) = judge(&failure) else { return };
                    printed(|sink| sink.failure(&failure, clock));
                    return;
                }
                Ok(Record::Process(process)) => {
                    let mut race = classify(&crate::race::classify::tests::clash(), since()).unwrap();
                    race.loser.owner = Some(Owner { program: ran(&process), ..owner("nginx", 4711, None) });
                    printed(|sink| sink.race(&race, clock));
                    return;
                }
                Err(_) => return,
            };
            let Ok(mut race) = classify(&record, since()) else { return };
            for (fact, flow) in [(&record.loser, &mut race.loser), (&record.winner, &mut race.winner)] {
                let Sender::Recorded(owner) = sender(fact, record.header.time_ns) else {
                    continue;
                };
                flow.owner = Some(Owner {
                    pid: owner.process.tgid,
                    tid: Some(owner.tid),
                    comm: String::from_utf8_lossy(&owner.comm).into_owned(),
                    netns: None,
                    cgroup_id: None,
                    cgroup: Some(String::from_utf8_lossy(&record.packet).into_owned()),
                    container: None,
                    pod: None,
                    program: Program::default(),
                    source: OwnerSource::Socket,
                });
            }
            printed(|sink| sink.race(&race, clock));
        });
    }
}
