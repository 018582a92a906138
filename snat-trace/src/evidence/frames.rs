//! The file: frames of compressed lines, written so that a full disk, a crash and a large run leave what was written readable.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::reader::{begins_as_evidence, good_length, has_frame_behind};
use crate::output::escape_path;

/// Lines of so many bytes make a frame of their own even when more are on their way.
const FRAME: usize = 128 << 10;
/// How much may wait in memory for a disk that takes nothing.
const KEPT: usize = 16 << 20;
/// The level of compression: a line in about a third of its size, at a tenth of the time of printing it.
const LEVEL: i32 = 3;

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// Nothing: it is somebody's evidence.
    Refuse,
    /// Add to it. What does not end as it should, after a crash, is cut off.
    Append,
}

/// When a file is full, and how many there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Compressed bytes after which another file is begun.
    pub size: Option<u64>,
    /// Time after which another file is begun.
    pub age: Option<Duration>,
    /// How many full files are kept beside the one that is written, as `FILE.1`, the youngest, to `FILE.N`.
    pub keep: u32,
}

/// Why there is no file to record into.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is there already.
    #[error("{} exists; --append adds to it", escape_path(.0))]
    Exists(PathBuf),
    /// It is no evidence.
    #[error("{} is no evidence file: nothing is added to it", escape_path(.0))]
    NotEvidence(PathBuf),
    /// It is damaged, and not at its end.
    #[error(
        "{} is damaged at byte {good}, and there is more evidence behind that, which adding to it would cut off: record \
         into another file",
        escape_path(path)
    )]
    Damaged {
        /// It.
        path: PathBuf,
        /// Where what can be read of it ends.
        good: u64,
    },
    /// Another run records into it.
    #[error("{} is being written by another snat-trace", escape_path(.0))]
    InUse(PathBuf),
    /// There is nothing to redact with.
    #[error("cannot make a key to redact with: {0}")]
    NoKey(#[source] io::Error),
    /// The system refuses.
    #[error("cannot write {}: {}", escape_path(.0), .1)]
    Io(PathBuf, #[source] io::Error),
}

/// Writes lines as frames. Lines are lost only when the disk takes nothing and memory is full; how many is known.
#[derive(Debug)]
pub(super) struct Frames {
    path: PathBuf,
    file: File,
    /// Length of what is known to be written.
    length: u64,
    began: Instant,
    limits: Limits,
    /// Lines of the frame to come.
    lines: Vec<u8>,
    /// Frames that could not be written, with how many lines they have.
    kept: VecDeque<(Vec<u8>, usize)>,
    /// Why.
    trouble: Option<io::Error>,
    /// Lines that were given up.
    lost: usize,
}

impl Frames {
    /// Opens the file.
    pub(super) fn open(path: &Path, existing: Existing, limits: Limits) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Io(path.to_owned(), error);
        let (file, length) = match existing {
            Existing::Refuse => {
                let file = create(path)?;
                lock(&file);
                (file, 0)
            }
            Existing::Append => {
                let mut file = options().create(true).open(path).map_err(failed)?;
                if !lock(&file) {
                    return Err(OpenError::InUse(path.to_owned()));
                }
                let all = file.metadata().map_err(failed)?.len();
                let good = good_length(BufReader::new(&file)).map_err(failed)?;
                if all > 0 && good == 0 && !looks_like_evidence(&mut file).map_err(failed)? {
                    return Err(OpenError::NotEvidence(path.to_owned()));
                }
                if good < all && has_frame_behind(&file, good).map_err(failed)? {
                    return Err(OpenError::Damaged { path: path.to_owned(), good });
                }
                if good < all {
                    tracing::warn!("{} was cut short: {} bytes at its end are dropped", escape_path(path), all - good);
                }
                (file, good)
            }
        };
        let mut frames = Self {
            path: path.to_owned(),
            file,
            length,
            began: Instant::now(),
            limits,
            lines: Vec::new(),
            kept: VecDeque::new(),
            trouble: None,
            lost: 0,
        };
        frames.set_end().map_err(failed)?;
        Ok(frames)
    }

    /// Whether the file has reached a limit, so that [`rotate`](Self::rotate) is to be called.
    pub(super) fn is_full(&self) -> bool {
        let Limits { size, age, keep: _ } = self.limits;
        let has_any = self.length > 0 && self.trouble.is_none();
        has_any && (size.is_some_and(|size| self.length >= size) || age.is_some_and(|age| self.began.elapsed() >= age))
    }

    /// Begins another file, and removes the oldest when there are too many. On a failure the file goes on.
    pub(super) fn rotate(&mut self) {
        if let Err(error) = self.try_rotate() {
            self.in_trouble(error);
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        self.end_frame();
        let numbered = |number: u32| {
            let mut path = self.path.clone().into_os_string();
            path.push(format!(".{number}"));
            PathBuf::from(path)
        };
        if self.limits.keep == 0 {
            fs::remove_file(&self.path)?;
        }
        for number in (1..=self.limits.keep).rev() {
            let from = if number == 1 { self.path.clone() } else { numbered(number - 1) };
            // Replaces the one that is too old.
            match fs::rename(from, numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = options().create_new(true).open(&self.path)?;
        lock(&self.file);
        (self.length, self.began) = (0, Instant::now());
        Ok(())
    }

    /// Writes what has come so far as a frame, and frames that waited before it.
    pub(super) fn end_frame(&mut self) {
        if !self.lines.is_empty() {
            let count = self.lines.iter().filter(|&&byte| byte == b'\n').count();
            match compress(&self.lines) {
                Ok(frame) => self.kept.push_back((frame, count)),
                Err(error) => {
                    self.lost += count;
                    self.in_trouble(error);
                }
            }
            self.lines.clear();
        }
        while let Some((frame, _)) = self.kept.front() {
            let length = frame.len() as u64;
            if let Err(error) = self.file.write_all(frame) {
                self.in_trouble(error);
                // Half a frame is no frame: the next attempt writes over it.
                if let Err(error) = self.set_end() {
                    self.in_trouble(error);
                }
                break;
            }
            self.length += length;
            self.kept.pop_front();
        }
        if self.kept.is_empty() && self.trouble.take().is_some() && self.lost == 0 {
            tracing::warn!("{} takes evidence again, and nothing of it was lost", escape_path(&self.path));
        }
        while self.kept.iter().map(|(frame, _)| frame.len()).sum::<usize>() > KEPT {
            // The youngest goes: the head of the file tells what the rest means.
            self.lost += self.kept.pop_back().map_or(0, |(_, lines)| lines);
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    /// Not all of it could be; how much is missing is in the error.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.end_frame();
        let waiting: usize = self.kept.iter().map(|(_, lines)| lines).sum();
        let missing = self.lost + waiting;
        if missing == 0 {
            return self.file.sync_data();
        }
        let why = self.trouble.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
        let text = format!("{} is incomplete: {missing} records could not be written{why}", escape_path(&self.path));
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    }

    /// One clear sentence, the first time.
    fn in_trouble(&mut self, error: io::Error) {
        if self.trouble.is_none() {
            tracing::error!(
                "cannot write {}: {error}; up to {} MiB of evidence wait in memory",
                escape_path(&self.path),
                KEPT >> 20
            );
        }
        self.trouble = Some(error);
    }

    /// Cuts off whatever stands behind what is known to be good, and goes there.
    fn set_end(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(drop)
    }
}

impl Drop for Frames {
    /// A run that ends before its time has its last lines too. One that never began leaves no empty file behind, which the
    /// next would not write over.
    fn drop(&mut self) {
        self.end_frame();
        if self.length == 0 {
            let _already_gone = fs::remove_file(&self.path);
        }
    }
}

/// Takes lines in; never fails.
impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// At the end of a line.
    fn flush(&mut self) -> io::Result<()> {
        if self.lines.len() >= FRAME {
            self.end_frame();
        }
        Ok(())
    }
}

/// Keeps others from adding to the file; `false` when one of them does. A file system without locks keeps nobody.
fn lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

/// Evidence names processes and addresses: a file that is made is its user's alone.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn create(path: &Path) -> Result<File, OpenError> {
    options().create_new(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => OpenError::Exists(path.to_owned()),
        _ => OpenError::Io(path.to_owned(), error),
    })
}

/// One frame, which says how long its content is and has a checksum of it.
fn compress(lines: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(lines.len() as u64))?;
    encoder.write_all(lines)?;
    encoder.finish()
}

/// Whether a file without a whole frame is what is left of one: it begins as one does.
fn looks_like_evidence(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(4).read_to_end(&mut magic)?;
    Ok(begins_as_evidence(&magic))
}
