//! The running tracer: attached programs and the ring they write to.

use std::path::Path;
use std::time::Duration;
use std::{fmt, io};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::attach::{AttachedHook, Programs, attach};
use super::error::ProbeError;
use super::losses::KernelCounts;
use super::missed;
use super::object::{Loaded, Sizes, detach};
use super::senders::Senders;
use crate::kernel::{CLASH_PROGRAM, Plan, Role};

/// Most records taken before others have their turn.
const AT_ONCE: usize = 4096;

/// How long a ring of this size is left to fill before it is drained: 10 ms at the usual 1 MiB, of which 50 000 clashes a second
/// fill a third; far less than records are held back for their order.
fn pause(ring_bytes: u32) -> Duration {
    const PER_MIB: Duration = Duration::from_millis(10);
    const MOST: Duration = Duration::from_millis(20);

    (PER_MIB * (ring_bytes >> 20)).min(MOST)
}

/// Attached programs. Dropping it detaches them, and so does the kernel when the process dies.
pub struct Tracer {
    /// `None` once detached.
    object: Option<Ebpf>,
    /// The kernel empties it when its last descriptor is closed.
    _continuations: ProgramArray<MapData>,
    ring: AsyncFd<RingBuf<MapData>>,
    /// How long it is left to fill, and until when: `None` while there is nothing in it that is known of.
    pause: Duration,
    fills_until: Option<Instant>,
    /// The ring was left before it was empty.
    more: bool,
    counters: PerCpuArray<MapData, u64>,
    /// `None` once taken.
    senders: Option<Senders>,
    hooks: Vec<AttachedHook>,
    /// Those attached.
    programs: Programs,
    /// What they had missed when they were detached.
    missed: [u64; Role::ALL.len()],
    #[cfg(feature = "log")]
    log: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Passes the programs of `plan` through the verifier and attaches them. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the clash hook cannot be attached. Any other hook that cannot is told by [`Self::hooks`].
    pub fn attach(loaded: Loaded, plan: &Plan, sizes: Sizes) -> Result<Self, ProbeError> {
        let Loaded(mut object) = loaded;
        let mut take = |name| object.take_map(name).ok_or(ProbeError::NotInObject { kind: "map", name });
        let (ring, counters) = (take("RING")?, take("COUNTERS")?);
        let (extensions, continuations) = (take("EXT_GENID")?, take("CONTINUATIONS")?);
        let senders = Senders::new(take)?;
        let map_error = |name| move |error| ProbeError::Map { name, error: Box::new(error) };
        let ring = RingBuf::try_from(ring).map_err(map_error("RING"))?;
        let counters = PerCpuArray::try_from(counters).map_err(map_error("COUNTERS"))?;
        let mut extensions: Array<_, u64> = extensions.try_into().map_err(map_error("EXT_GENID"))?;
        if let Some(address) = plan.ext_generation {
            extensions.set(0, address, 0).map_err(map_error("EXT_GENID"))?;
        }
        let mut continuations = ProgramArray::try_from(continuations).map_err(map_error("CONTINUATIONS"))?;
        // SAFETY: the ring owns its descriptor and keeps it open and the same as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)?;
        #[cfg(feature = "log")]
        let log = aya_log::EbpfLogger::init(&mut object)
            .map_err(|_no_map| ProbeError::NotInObject { kind: "map", name: "AYA_LOGS" })?;
        let (hooks, programs) = attach(&mut object, &mut continuations, plan)?;
        Ok(Self {
            object: Some(object),
            _continuations: continuations,
            ring,
            pause: pause(sizes.ring_bytes),
            fills_until: None,
            more: false,
            counters,
            senders: Some(senders),
            hooks,
            programs,
            missed: [0; Role::ALL.len()],
            #[cfg(feature = "log")]
            log,
        })
    }

    /// How each hook of the plan fared.
    #[must_use]
    pub fn hooks(&self) -> &[AttachedHook] {
        &self.hooks
    }

    /// The senders the programs remember; `None` when asked again.
    pub fn take_senders(&mut self) -> Option<Senders> {
        self.senders.take()
    }

    /// Waits until the ring has records, and a moment longer for more. Whoever is told so must [`drain`](Self::drain) it.
    /// Dropped before its end, it has lost nothing.
    ///
    /// # Errors
    ///
    /// When the ring can no longer be waited for.
    pub async fn readable(&mut self) -> Result<(), ProbeError> {
        if self.more {
            return Ok(());
        }
        let until = match self.fills_until {
            Some(until) => until,
            None => {
                // Cleared before the ring is drained, so that what comes in meanwhile wakes us again.
                self.ring.readable_mut().await?.clear_ready();
                *self.fills_until.insert(Instant::now() + self.pause)
            }
        };
        // Programs wake us for the first record only of those that are left to lie (kernel/bpf/ringbuf.c,
        // `bpf_ringbuf_commit`), in the middle of the packet they look at.
        sleep_until(until).await;
        Ok(())
    }

    /// Hands over the records of the ring, but not for ever: where clashes come faster than they are taken, `true` says that
    /// there are more.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        #[cfg(feature = "log")]
        self.log.flush();
        self.fills_until = None;
        self.more = true;
        for _ in 0..AT_ONCE {
            let Some(record) = self.ring.get_mut().next() else {
                self.more = false;
                break;
            };
            take(&record);
        }
        self.more
    }

    /// Detaches every hook, the clash hook first, so that each clash still has its verdict. After this no record comes;
    /// the ring may still hold some.
    pub fn detach(&mut self) {
        self.missed = self.missed();
        if let Some(object) = &mut self.object {
            detach(object, CLASH_PROGRAM);
        }
        self.object = None;
    }

    /// What the programs counted so far.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counts(&self) -> Result<KernelCounts, ProbeError> {
        KernelCounts::read(&self.counters, self.missed())
    }

    /// How many runs each hook missed so far. What cannot be read is not known to be missed.
    fn missed(&self) -> [u64; Role::ALL.len()] {
        if self.object.is_none() {
            return self.missed;
        }
        let mut missed = [0; Role::ALL.len()];
        for (program, count) in missed::by_program(Path::new("/proc/self/fdinfo")).unwrap_or_default() {
            let role = self.programs.get(&program);
            if let Some(place) = role.and_then(|&role| missed.get_mut(role as usize)) {
                *place += count;
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_ring_is_not_left_to_fill() {
        let milliseconds = [4096, 256 << 10, 1 << 20, 4 << 20, 64 << 20].map(|bytes| pause(bytes).as_millis());
        assert_eq!(milliseconds, [0, 0, 10, 20, 20]);
    }
}
