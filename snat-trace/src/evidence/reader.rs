//! From a file to its events. Whatever bytes it has, what can be read is, and what cannot be is said.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};

use super::node::NodeRecord;
use super::restore::{self, NotKnown};
use super::rules::Rules;
use crate::counters::figures::Tally;
use crate::output::json::records::Line;
use crate::race::event::{NetnsInum, Race};
use crate::race::failure::Failure;
use crate::race::time::KernelTime;
use crate::session::Session;
use crate::summary::Summary;

/// No frame is longer; what claims to be is not read into memory.
const LONGEST_FRAME: u64 = 64 << 20;

/// What a frame begins with, the lowest byte first.
const MAGIC: u32 = zstd::zstd_safe::MAGICNUMBER;

/// One line of evidence.
#[derive(Debug)]
pub enum Item {
    /// A recording begins.
    Session(Box<Session>),
    /// The machine it was made on: as it was at the start and, where there is a summary, as it was at the end.
    Node(Box<NodeRecord>),
    /// A race.
    Race(Box<Race>),
    /// A failure that is no race.
    Failure(Box<Failure>),
    /// The rules of a network namespace that had a race.
    Rules(Box<Rules>),
    /// Counters on the way.
    Sample(Sample),
    /// The recording ends.
    Summary(Box<Summary>),
}

/// What a network namespace had counted since it was first read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sample {
    /// When it was read.
    pub time: KernelTime,
    /// Which.
    pub netns: NetnsInum,
    /// Its figures.
    pub counters: Tally<Option<u64>>,
    /// How many readings were left out since the sample before: of too many namespaces, or for want of time.
    pub left_out: u64,
}

/// Why reading ended before the file did.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read the evidence: {0}")]
    Io(#[source] io::Error),
    /// It is something else.
    #[error("this is no evidence file")]
    NotEvidence,
    /// It begins as evidence does, and nothing of it can be read.
    #[error("it was cut short or damaged within its first records: nothing of it can be read")]
    CutAtOnce,
    /// A line that no snat-trace writes.
    #[error("line {line} cannot be understood: {why}")]
    Malformed {
        /// Which, from 1 on.
        line: u64,
        /// Why.
        why: String,
    },
    /// A line of a later version.
    #[error("line {line}: {why}")]
    NotKnown {
        /// Which, from 1 on.
        line: u64,
        /// What.
        why: NotKnown,
    },
}

/// How a file ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// With a summary, as it should.
    No,
    /// Without one: the recording was killed, or goes on, or its disk was full.
    NoSummary,
    /// In the midst of a frame, or what is there is damaged.
    Torn,
}

/// What there was to read, item by item. Ends at the first error; [`cut`](Self::cut) tells how the file ended.
#[derive(Debug)]
pub struct Evidence<R> {
    file: BufReader<R>,
    /// What is left of the frame at hand.
    lines: VecDeque<Vec<u8>>,
    line: u64,
    ended: bool,
    cut: Cut,
}

/// Reads a file.
pub fn read<R: Read>(file: R) -> Evidence<R> {
    Evidence { file: BufReader::new(file), lines: VecDeque::new(), line: 0, ended: false, cut: Cut::NoSummary }
}

impl<R: Read> Evidence<R> {
    /// How the file ended; to be asked at its end.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// The next line; `None` at the end, or where the file is torn.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        while self.lines.is_empty() {
            let may_be = self.line > 0 || begins_as_evidence(self.file.fill_buf().map_err(ReadError::Io)?);
            match next_frame(&mut self.file).map_err(ReadError::Io)? {
                Frame::Whole(content) => {
                    self.lines = content.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
                }
                Frame::Torn if self.line == 0 && may_be => return Err(ReadError::CutAtOnce),
                _ if self.line == 0 => return Err(ReadError::NotEvidence),
                Frame::End => return Ok(None),
                Frame::Torn => {
                    self.cut = Cut::Torn;
                    return Ok(None);
                }
            }
        }
        self.line += 1;
        Ok(self.lines.pop_front())
    }

    fn next_item(&mut self) -> Result<Option<Item>, ReadError> {
        loop {
            let Some(bytes) = self.next_line()? else { return Ok(None) };
            let line = self.line;
            let malformed = |error: serde_json::Error| ReadError::Malformed { line, why: error.to_string() };
            let not_known = |why| ReadError::NotKnown { line, why };
            let parsed: Line<'_> = match serde_json::from_slice(&bytes) {
                Err(_) if line == 1 => return Err(ReadError::NotEvidence),
                parsed => parsed.map_err(malformed)?,
            };
            self.cut = if matches!(parsed, Line::Summary(_)) { Cut::No } else { Cut::NoSummary };
            return Ok(Some(match parsed {
                Line::Session(session) => Item::Session(Box::new(restore::session(session).map_err(not_known)?)),
                Line::Node(node) => Item::Node(node),
                Line::Race(race) => Item::Race(Box::new(restore::race(*race).map_err(not_known)?)),
                Line::InsertFailure(failure) => Item::Failure(Box::new(restore::failure(*failure).map_err(not_known)?)),
                Line::Rules(rules) => Item::Rules(Box::new(restore::rules(*rules).map_err(not_known)?)),
                Line::Sample(sample) => Item::Sample(restore::sample(&sample).map_err(not_known)?),
                Line::Summary(summary) => Item::Summary(Box::new(restore::summary(*summary).map_err(not_known)?)),
                Line::Unknown => continue,
            }));
        }
    }
}

impl<R: Read> Iterator for Evidence<R> {
    type Item = Result<Item, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_item().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// What stands next in a file.
enum Frame {
    /// A frame whose checksum is right.
    Whole(Vec<u8>),
    /// One that is not all there, or damaged, or something else.
    Torn,
    /// Nothing more.
    End,
}

/// Reads a frame. Nothing of one that is not whole is used: without its checksum nobody knows whether it is right.
fn next_frame(file: &mut impl BufRead) -> io::Result<Frame> {
    if file.fill_buf()?.is_empty() {
        return Ok(Frame::End);
    }
    let mut content = Vec::new();
    let decoder = zstd::Decoder::with_buffer(file)?.single_frame();
    match decoder.take(LONGEST_FRAME).read_to_end(&mut content) {
        Ok(_) if content.last() == Some(&b'\n') => Ok(Frame::Whole(content)),
        // The decoder's own errors have no number.
        Err(error) if error.raw_os_error().is_some() => Err(error),
        Ok(_) | Err(_) => Ok(Frame::Torn),
    }
}

/// Whether bytes may be the first ones of a frame, as far as there are any.
pub(super) fn begins_as_evidence(bytes: &[u8]) -> bool {
    let magic = MAGIC.to_le_bytes();
    bytes.iter().zip(magic).all(|(&byte, expected)| byte == expected)
}

/// Whether a whole frame stands anywhere behind the first one that is not, which stands at `from`.
pub(super) fn has_frame_behind(mut file: &File, from: u64) -> io::Result<bool> {
    let mut at = file.seek(SeekFrom::Start(from + 1))?;
    'seek: loop {
        let mut last = 0_u32;
        for byte in BufReader::new(file).bytes() {
            // Oldest byte lowest, as the magic number is written.
            last = last >> 8 | u32::from(byte?) << 24;
            at += 1;
            if last == MAGIC && at - 4 > from {
                file.seek(SeekFrom::Start(at - 4))?;
                if let Frame::Whole(_) = next_frame(&mut BufReader::new(file))? {
                    return Ok(true);
                }
                file.seek(SeekFrom::Start(at))?;
                continue 'seek;
            }
        }
        return Ok(false);
    }
}

/// Length of the whole frames a file begins with.
pub(super) fn good_length(file: impl BufRead) -> io::Result<u64> {
    let mut file = Counted { inner: file, count: 0 };
    let mut good = 0;
    while let Frame::Whole(_) = next_frame(&mut file)? {
        good = file.count;
    }
    Ok(good)
}

/// Counts what is consumed.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.count += amount as u64;
    }
}
