//! The senders the programs remember, by original tuple.

use std::fmt;

use aya::maps::{HashMap, Map, MapData};
use snat_trace_common::{OwnerFact, Tuple};

use super::error::ProbeError;
use crate::race::decode::decode_owner;

type Key = [u8; size_of::<Tuple>()];
type Value = [u8; size_of::<OwnerFact>()];

/// Reads the map. It stays readable when the programs are gone.
pub struct Senders(HashMap<MapData, Key, Value>);

impl fmt::Debug for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Senders").finish_non_exhaustive()
    }
}

impl Senders {
    pub(super) fn new(map: Map) -> Result<Self, ProbeError> {
        HashMap::try_from(map).map(Self).map_err(|error| ProbeError::Map { name: "OWNERS", error: Box::new(error) })
    }

    /// Who sent this tuple last, if that is remembered.
    #[must_use]
    pub fn of(&self, original: &Tuple) -> Option<OwnerFact> {
        decode_owner(&self.0.get(&key(original), 0).ok()?)
    }
}

/// The bytes of a tuple, which has no padding.
fn key(tuple: &Tuple) -> Key {
    let Tuple { src, src_port_be, l3num, dst, dst_port_be, protonum, dir } = *tuple;
    let mut key = [0; size_of::<Tuple>()];
    let parts: [&[u8]; 6] =
        [&src, &src_port_be.to_ne_bytes(), &l3num.to_ne_bytes(), &dst, &dst_port_be.to_ne_bytes(), &[protonum, dir]];
    for (to, from) in key.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_tuple_as_it_lies_in_memory() {
        let tuple = Tuple {
            src: *b"abcdefghijklmnop",
            src_port_be: 0x0102,
            l3num: 10,
            dst: *b"ABCDEFGHIJKLMNOP",
            dst_port_be: 0x0304,
            protonum: 17,
            dir: 1,
        };
        // SAFETY: both are 40 bytes, without padding.
        let bytes: Key = unsafe { std::mem::transmute(tuple) };
        assert_eq!(key(&tuple), bytes);
    }
}
