//! From the bytes of the ring to a record.

use snat_trace_common::{ClashRecord, RecordHeader, kind};

/// Why bytes are no record. Such bytes are counted by [`Undecodable::reason`], never fatal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Undecodable {
    /// Fewer bytes than the record's kind has.
    #[error("a record of {len} bytes is too short")]
    Short {
        /// How many there were.
        len: usize,
    },
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
pub fn decode(bytes: &[u8]) -> Result<ClashRecord, Undecodable> {
    let short = Undecodable::Short { len: bytes.len() };
    let header: RecordHeader = read(bytes).ok_or(short)?;
    match header.kind {
        kind::CLASH => read(bytes).ok_or(short),
        kind => Err(Undecodable::UnknownKind { kind }),
    }
}

/// What a record consists of.
///
/// # Safety
///
/// Every bit pattern is a value of the type.
unsafe trait Plain: Copy {}
// SAFETY: integers only.
unsafe impl Plain for RecordHeader {}
// SAFETY: integers only.
unsafe impl Plain for ClashRecord {}

fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, they need not be aligned, and every bit pattern is a `T`.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::race::classify::{
        self,
        tests::{clash, since},
    };

    fn bytes_of(record: &ClashRecord) -> Vec<u8> {
        // SAFETY: a record is initialised bytes without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<ClashRecord>()) }.to_vec()
    }

    #[test]
    fn what_the_kernel_wrote_comes_back() {
        let record = clash();
        assert_eq!(decode(&bytes_of(&record)), Ok(record));
    }

    #[test]
    fn a_longer_record_is_a_newer_one() {
        let mut bytes = bytes_of(&clash());
        bytes.extend([7; 24]);
        assert_eq!(decode(&bytes), Ok(clash()));
    }

    #[test]
    fn a_cut_record_is_short_at_every_length() {
        let bytes = bytes_of(&clash());
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), Err(Undecodable::Short { len }));
        }
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let mut bytes = bytes_of(&clash());
        bytes[..2].copy_from_slice(&999_u16.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(Undecodable::UnknownKind { kind: 999 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1024), clash in any::<bool>()) {
            if clash && bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind::CLASH.to_ne_bytes());
            }
            if let Ok(record) = decode(&bytes) {
                let _ = classify::classify(&record, since());
            }
        }
    }
}
