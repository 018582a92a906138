//! What the BPF programs counted, and what the kernel counted of them.

use aya::maps::{MapData, PerCpuArray};
use snat_trace_common::Counter;

use super::error::ProbeError;
use crate::kernel::Role;

/// Every [`Counter`], summed over CPUs, and the runs that each hook missed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelCounts {
    counters: [u64; Counter::ALL.len()],
    missed: [u64; Role::ALL.len()],
}

impl KernelCounts {
    /// Counts as they are: counters in slot order, and what hooks missed in the order of [`Role::ALL`].
    #[must_use]
    pub fn new(counters: [u64; Counter::ALL.len()], missed: [u64; Role::ALL.len()]) -> Self {
        Self { counters, missed }
    }

    /// Reads the counters from the map.
    pub(super) fn read(map: &PerCpuArray<MapData, u64>, missed: [u64; Role::ALL.len()]) -> Result<Self, ProbeError> {
        let mut counters = [0; Counter::ALL.len()];
        for (counter, sum) in Counter::ALL.into_iter().zip(&mut counters) {
            let slot = map
                .get(&(counter as u32), 0)
                .map_err(|error| ProbeError::Map { name: "COUNTERS", error: Box::new(error) })?;
            *sum = slot.iter().sum();
        }
        Ok(Self { counters, missed })
    }

    /// One of the counters.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or_default()
    }

    /// How many runs a hook missed, as far as this kernel tells.
    #[must_use]
    pub fn missed(&self, role: Role) -> u64 {
        self.missed.get(role as usize).copied().unwrap_or_default()
    }
}
