//! The BPF object: patched with a plan and loaded.

use std::fmt;

use aya::programs::{KProbe, Program};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};

use snat_trace_common::Need;

use super::error::{ProbeError, reason};
use crate::kernel::{Detail, LegacyController, Offsets, Request, programs};

/// The BPF object as it was built, without the plan of any kernel in it.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snat-trace-ebpf"));

/// Bounds of what the kernel keeps for us.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the ring buffer; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Entries and senders remembered; the least recently used goes first. A sixteenth of it are the processes and the
    /// removed cgroups that are.
    pub flows: u32,
}

impl Default for Sizes {
    /// The ring has room for some 1600 clashes and their verdicts, and is twice in the memory of who reads it, as the kernel maps
    /// it twice.
    fn default() -> Self {
        Self { ring_bytes: 1 << 20, flows: 65_536 }
    }
}

/// From this size on a ring has records of processes in it too, each of 840 bytes.
const ROOM: u32 = 256 << 10;

/// Calls in flight, with room for returns that are missed: some for every CPU.
const CALLS: u32 = 4096;

/// The object, with its maps in the kernel. No program is yet.
pub struct Loaded(pub(super) Ebpf);

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl Loaded {
    /// Makes the maps, for programs that are patched with where fields are on this kernel and by which hierarchy of version 1
    /// containers are told apart.
    ///
    /// # Errors
    ///
    /// The kernel does not make them.
    pub fn new(
        offsets: &Offsets,
        legacy: Option<LegacyController>,
        request: Request,
        sizes: Sizes,
    ) -> Result<Self, ProbeError> {
        Self::of(OBJECT, offsets, legacy, request, sizes)
    }

    /// The same of an object that was made of [`OBJECT`].
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), or it is none.
    pub fn of(
        object: &[u8],
        offsets: &Offsets,
        legacy: Option<LegacyController>,
        request: Request,
        sizes: Sizes,
    ) -> Result<Self, ProbeError> {
        // Before Linux 5.11 maps count against this limit; from then on a refusal is harmless.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited) {
            tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
        }

        let (flows, few) = match request.detail {
            Detail::Minimal => (1, 1),
            Detail::Full => (sizes.flows, (sizes.flows / 16).max(1)),
        };
        let full = u8::from(request.detail == Detail::Full);
        let (failures, calls) = if request.failures { (1_u8, CALLS) } else { (0, 1) };
        let has = |need| u8::from(offsets.has_all(need));
        let (processes, cgroups) = (has(Need::Processes), has(Need::Cgroups));
        let (senders, senders6) = (has(Need::Senders), has(Need::Senders6));
        let commands = u8::from(request.commands);
        let legacy = legacy.map_or(0, |controller| controller as u8);
        let room = u8::from(sizes.ring_bytes >= ROOM);
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .verifier_log_level(VerifierLogLevel::STATS | VerifierLogLevel::DEBUG)
            .map_max_entries("RING", sizes.ring_bytes)
            .map_max_entries("ALLOCATIONS", flows)
            .map_max_entries("OWNERS", flows)
            .map_max_entries("PROCESSES", few)
            .map_max_entries("REMOVED_CGROUPS", few)
            .map_max_entries("CALLS", calls)
            .map_max_entries("CLASHED", calls)
            .map_max_entries("FOUND_FULL", calls)
            .override_global("FULL", &full, true)
            .override_global("FAILURES", &failures, true)
            .override_global("PROCESS_FACTS", &processes, true)
            .override_global("CGROUP_FACTS", &cgroups, true)
            .override_global("SENDERS", &senders, true)
            .override_global("SENDERS6", &senders6, true)
            .override_global("RING_HAS_ROOM", &room, true)
            .override_global("COMMANDS", &commands, true)
            .override_global("LEGACY_CONTROLLER", &legacy, true)
            .override_global("FIELDS", offsets.values(), true);
        Ok(Self(loader.load(object).map_err(Box::new)?))
    }

    /// As aya has it.
    #[must_use]
    pub fn into_inner(self) -> Ebpf {
        self.0
    }
}

/// Passes one program through the verifier: that of this name, if there is one.
pub(super) fn verify<'a>(name: &'static str, program: Option<&'a mut Program>) -> Result<&'a mut KProbe, ProbeError> {
    let missing = || ProbeError::NotInObject { kind: "program", name };
    let kprobe: &mut KProbe = program.ok_or_else(missing)?.try_into().map_err(|_wrong_type| missing())?;
    kprobe.load().map_err(|error| ProbeError::Refused { program: name, reason: reason(&error) })?;
    Ok(kprobe)
}

/// Detaches one program, if it is attached.
pub(super) fn detach(object: &mut Ebpf, program: &str) {
    if let Some(Ok(kprobe)) = object.program_mut(program).map(<&mut KProbe>::try_from) {
        // What was not loaded cannot be unloaded.
        let _ = kprobe.unload();
    }
}

/// Passes every program of the object through this kernel's verifier, attaching none, and says how many instructions it
/// walked for each; `None` where the kernel does not tell (before 5.16).
///
/// # Errors
///
/// [`ProbeError::Refused`] with the verifier's log.
pub fn verified_instructions(
    offsets: &Offsets,
    request: Request,
) -> Result<Vec<(&'static str, Option<u32>)>, ProbeError> {
    // A controller, so that no branch is dead.
    let Loaded(mut object) = Loaded::new(offsets, Some(LegacyController::Pids), request, Sizes::default())?;
    programs(request)
        .map(|program| {
            let info = verify(program, object.program_mut(program))?
                .info()
                .map_err(|error| ProbeError::Refused { program, reason: reason(&error) })?;
            Ok((program, info.verified_instruction_count()))
        })
        .collect()
}
