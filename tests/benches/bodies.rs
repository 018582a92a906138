//! What the bodies of hooks take on this machine's own kernel, which need not have kprobes: each is loaded as if it were for a raw
//! tracepoint, which the kernel runs when asked to (`BPF_PROG_TEST_RUN`), and times.
//!
//! `cargo xtask bench` runs this; the figures are for `docs/COST.md`.

use std::fs;
use std::mem::offset_of;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData, ProgramArray};
use aya::programs::raw_trace_point::RawTracePoint;
use aya::programs::{RawTracePointRunOptions, TestRun};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, Pod};
use object::build::elf::{Builder, SectionData};
use snat_trace::kernel::{Detail, KernelFacts};
use snat_trace::probe::{Loaded, OBJECT, Sizes};
use snat_trace_common::{Allocation, OwnerFact, ProcessKey, Tuple};
use snat_trace_tests::measure::figure::Figure;

/// How often each is run.
const RUNS: u32 = 5000;

/// As the kernel has them in its maps.
type TupleBytes = [u8; size_of::<Tuple>()];
type OwnerBytes = [u8; size_of::<OwnerFact>()];
type AllocationBytes = [u8; size_of::<Allocation>()];

const PORT: u16 = 9;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn main() -> Result<()> {
    let offsets = KernelFacts::gather(Path::new("/"))?.offsets.context("the offsets of this kernel")?;
    let object = for_raw_tracepoints(OBJECT)?;
    let mut object = Loaded::of(&object, &offsets, None, Detail::Full.into(), Sizes::default())?.into_inner();
    note_processes(&mut object)?;
    let _counted = enable_stats(Stats::RunTime).context("cannot have the kernel time programs")?;

    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", PORT))?;
    let sk = address_of(&socket)?;
    let port = socket.local_addr()?.port();

    for (program, protocol) in [("owner_tcp", TCP), ("owner_ipv4", UDP)] {
        let key = tuple(port, protocol);
        body(&mut object, program, [sk, 0, 0], |object| forget::<_, OwnerBytes>(object, "OWNERS", &key))?;
        let owner = map::<TupleBytes, OwnerBytes>(&mut object, "OWNERS")?.get(&key, 0).context("nobody sends")?;
        let at = offset_of!(OwnerFact, process) + offset_of!(ProcessKey, tgid);
        ensure!(owner[at..at + 4] == std::process::id().to_ne_bytes(), "{program} found another sender");
    }
    // Any memory can be an entry that is no datagram's, and a rule's range.
    body(&mut object, "allocation", [sk, sk, 0], |object| forget::<_, AllocationBytes>(object, "ALLOCATIONS", &sk))?;
    body(&mut object, "insertion", [sk, 0, 0], |_| Ok(()))?;
    let allocation = map::<u64, AllocationBytes>(&mut object, "ALLOCATIONS")?.get(&sk, 0).context("nothing asked")?;
    let at = offset_of!(Allocation, inserted_ns);
    ensure!(allocation[at..at + 8] != [0; 8], "the entry did not go in");
    Ok(())
}

/// Runs a program often, each time with the same arguments after `before`, and tells what one run took.
fn body(
    object: &mut Ebpf,
    name: &str,
    arguments: [u64; 3],
    mut before: impl FnMut(&mut Ebpf) -> Result<()>,
) -> Result<()> {
    program(object, name)?.load()?;
    for _ in 0..RUNS {
        before(object)?;
        let mut options = RawTracePointRunOptions::new();
        options.args[..arguments.len()].copy_from_slice(&arguments);
        program(object, name)?.test_run(options)?;
    }
    let info = program(object, name)?.info()?;
    ensure!(info.run_count() == u64::from(RUNS), "{name} ran {} times", info.run_count());
    let ns_per_run = info.run_time().as_secs_f64() * 1e9 / f64::from(RUNS);
    Figure::Body { program: name.to_owned(), runs: RUNS, ns_per_run }.tell()
}

/// Has what processes run noted, once for each, as the hooks of senders do.
fn note_processes(object: &mut Ebpf) -> Result<()> {
    let note = program(object, "note_process")?;
    note.load()?;
    let note = note.fd()?.try_clone()?;
    let continuations = object.map_mut("CONTINUATIONS").context("no map of continuations")?;
    Ok(ProgramArray::try_from(continuations)?.set(0, &note, 0)?)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn map<'a, K: Pod, V: Pod>(object: &'a mut Ebpf, name: &str) -> Result<HashMap<&'a mut MapData, K, V>> {
    Ok(HashMap::try_from(object.map_mut(name).with_context(|| format!("no map {name}"))?)?)
}

/// So that the next is new.
fn forget<K: Pod, V: Pod>(object: &mut Ebpf, name: &str, key: &K) -> Result<()> {
    // The first time it is not there.
    let _ = map::<K, V>(object, name)?.remove(key);
    Ok(())
}

/// The object with its kprobes for raw tracepoints, whose context is the arguments alone (include/trace/bpf_probe.h) and not
/// registers with the arguments in them.
fn for_raw_tracepoints(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(object)?;
    let section =
        elf.sections.iter_mut().find(|section| *section.name == *b"kprobe").context("no section of kprobes")?;
    section.name = "raw_tp".into();
    let SectionData::Data(code) = &mut section.data else { anyhow::bail!("the section of kprobes has no code") };
    for instruction in code.to_mut().chunks_exact_mut(8) {
        // A load of 64 bits by the register that has the context, at first and then for good.
        let &mut [0x79, registers, low, high, ..] = instruction else { continue };
        if !matches!(registers >> 4, 1 | 6) {
            continue;
        }
        // Where `struct pt_regs` has the first three arguments (arch/x86/include/asm/ptrace.h).
        let argument: i16 = match i16::from_le_bytes([low, high]) {
            112 => 0,
            104 => 1,
            96 => 2,
            _ => continue,
        };
        instruction[2..4].copy_from_slice(&(argument * 8).to_le_bytes());
    }
    let mut patched = Vec::new();
    elf.write(&mut patched)?;
    Ok(patched)
}

/// Where the kernel has a socket: its tables in /proc tell root, if they are to hide it from all others only.
fn address_of(socket: &UdpSocket) -> Result<u64> {
    const HIDES: &str = "/proc/sys/kernel/kptr_restrict";
    let inode = rustix::fs::fstat(socket)?.st_ino.to_string();
    let hides = fs::read_to_string(HIDES)?;
    fs::write(HIDES, "1").with_context(|| format!("cannot write {HIDES}"))?;
    let table = fs::read_to_string("/proc/self/net/udp");
    fs::write(HIDES, hides)?;
    let table = table?;
    let mut rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.get(9).is_some_and(|of| *of == inode)).context("the socket is not in the table")?;
    let address = row.get(11).context("the table has no addresses")?;
    u64::from_str_radix(address, 16).ok().filter(|address| *address > u64::MAX / 2).context("no kernel's address")
}

/// What the socket's packets would have.
fn tuple(port: u16, protocol: u8) -> TupleBytes {
    const LOCALHOST: [u8; 4] = [127, 0, 0, 1];
    let mut bytes = [0; size_of::<Tuple>()];
    for (at, value) in [
        (offset_of!(Tuple, src), &LOCALHOST[..]),
        (offset_of!(Tuple, src_port_be), &port.to_be_bytes()),
        (offset_of!(Tuple, l3num), &2_u16.to_ne_bytes()),
        (offset_of!(Tuple, dst), &LOCALHOST),
        (offset_of!(Tuple, dst_port_be), &PORT.to_be_bytes()),
        (offset_of!(Tuple, protonum), &[protocol]),
    ] {
        bytes[at..at + value.len()].copy_from_slice(value);
    }
    bytes
}
