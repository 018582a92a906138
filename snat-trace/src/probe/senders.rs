//! What the programs remember of senders: who sent a tuple, what they run, and the cgroups that are gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use aya::maps::{Map, MapData};
use snat_trace_common::{CgroupKey, OwnerFact, PathFact, ProcessFact, ProcessKey, Tuple};

use super::error::ProbeError;
use crate::race::decode::{Plain, bytes_of, decode_value};

/// A map whose keys and values are plain.
type Bytes<const KEY: usize, const VALUE: usize> = aya::maps::HashMap<MapData, [u8; KEY], [u8; VALUE]>;

/// Processes kept here at most.
const KEPT: usize = 4096;

/// Reads the maps. They stay readable when the programs are gone.
///
/// While a map is read the kernel runs no probe's program on that CPU, so that an event there would be missed: what is known
/// is kept.
pub struct Senders {
    owners: Bytes<{ size_of::<Tuple>() }, { size_of::<OwnerFact>() }>,
    processes: Bytes<{ size_of::<ProcessKey>() }, { size_of::<ProcessFact>() }>,
    /// Those told of or read.
    known: HashMap<ProcessKey, ProcessFact>,
    removed_cgroups: Bytes<{ size_of::<CgroupKey>() }, { size_of::<PathFact>() }>,
}

impl fmt::Debug for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Senders").finish_non_exhaustive()
    }
}

impl Senders {
    /// Of the maps that `take` takes out of the object by their names.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<Map, ProbeError>) -> Result<Self, ProbeError> {
        Ok(Self {
            owners: open("OWNERS", &mut take)?,
            processes: open("PROCESSES", &mut take)?,
            known: HashMap::new(),
            removed_cgroups: open("REMOVED_CGROUPS", &mut take)?,
        })
    }

    /// Who sent this tuple last, if that is remembered.
    #[must_use]
    pub fn of(&self, original: &Tuple) -> Option<OwnerFact> {
        get(&self.owners, original)
    }

    /// Keeps what a record says.
    pub fn learn(&mut self, fact: ProcessFact) {
        self.make_room(&fact.key);
        self.known.insert(fact.key, fact);
    }

    fn make_room(&mut self, key: &ProcessKey) {
        if self.known.len() >= KEPT && !self.known.contains_key(key) {
            self.known.clear();
        }
    }

    /// What a process runs, if that is remembered.
    pub fn process(&mut self, key: &ProcessKey) -> Option<&ProcessFact> {
        self.make_room(key);
        match self.known.entry(*key) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => get(&self.processes, key).map(|fact| place.insert(fact) as &_),
        }
    }

    /// The path of a cgroup that was removed, if that is remembered.
    #[must_use]
    pub fn removed_cgroup(&self, key: &CgroupKey) -> Option<PathFact> {
        get(&self.removed_cgroups, key)
    }
}

fn open<const KEY: usize, const VALUE: usize>(
    name: &'static str,
    take: &mut impl FnMut(&'static str) -> Result<Map, ProbeError>,
) -> Result<Bytes<KEY, VALUE>, ProbeError> {
    aya::maps::HashMap::try_from(take(name)?).map_err(|error| ProbeError::Map { name, error: Box::new(error) })
}

fn get<K: Plain, V: Plain, const KEY: usize, const VALUE: usize>(map: &Bytes<KEY, VALUE>, key: &K) -> Option<V> {
    decode_value(&map.get(bytes_of(key).first_chunk()?, 0).ok()?)
}
