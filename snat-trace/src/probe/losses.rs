//! What the BPF programs counted.

use aya::maps::{MapData, PerCpuArray};
use snat_trace_common::Counter;

use super::error::ProbeError;

/// Every [`Counter`], summed over CPUs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelCounts([u64; Counter::ALL.len()]);

impl KernelCounts {
    /// Counts as they are, in slot order.
    #[must_use]
    pub fn new(counts: [u64; Counter::ALL.len()]) -> Self {
        Self(counts)
    }

    /// Reads them from the map.
    pub(super) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Self, ProbeError> {
        let mut counts = [0; Counter::ALL.len()];
        for (counter, sum) in Counter::ALL.into_iter().zip(&mut counts) {
            let slot = map
                .get(&(counter as u32), 0)
                .map_err(|error| ProbeError::Map { name: "COUNTERS", error: Box::new(error) })?;
            *sum = slot.iter().sum();
        }
        Ok(Self(counts))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or_default()
    }
}
