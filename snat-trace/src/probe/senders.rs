//! What the programs remember of senders: who sent a tuple, what they run, and the cgroups that are gone.

use std::fmt;

use aya::maps::{HashMap, Map, MapData};
use snat_trace_common::{CgroupKey, OwnerFact, PathFact, ProcessFact, ProcessKey, Tuple};

use super::error::ProbeError;
use crate::race::decode::{Plain, bytes_of, decode_value};

/// A map whose keys and values are plain.
type Bytes<const KEY: usize, const VALUE: usize> = HashMap<MapData, [u8; KEY], [u8; VALUE]>;

/// Reads the maps. They stay readable when the programs are gone.
pub struct Senders {
    owners: Bytes<{ size_of::<Tuple>() }, { size_of::<OwnerFact>() }>,
    processes: Bytes<{ size_of::<ProcessKey>() }, { size_of::<ProcessFact>() }>,
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
            removed_cgroups: open("REMOVED_CGROUPS", &mut take)?,
        })
    }

    /// Who sent this tuple last, if that is remembered.
    #[must_use]
    pub fn of(&self, original: &Tuple) -> Option<OwnerFact> {
        get(&self.owners, original)
    }

    /// What a process runs, if that is remembered.
    #[must_use]
    pub fn process(&self, key: &ProcessKey) -> Option<ProcessFact> {
        get(&self.processes, key)
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
    HashMap::try_from(take(name)?).map_err(|error| ProbeError::Map { name, error: Box::new(error) })
}

fn get<K: Plain, V: Plain, const KEY: usize, const VALUE: usize>(map: &Bytes<KEY, VALUE>, key: &K) -> Option<V> {
    decode_value(&map.get(bytes_of(key).first_chunk()?, 0).ok()?)
}
