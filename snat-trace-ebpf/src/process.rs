//! What a sender runs: noted once for each program of each process, so that one that has ended meanwhile is named too.

use aya_ebpf::{
    Global,
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_smp_processor_id, bpf_ktime_get_ns,
        generated::bpf_probe_read_user,
    },
    macros::kprobe,
    programs::ProbeContext,
};
use snat_trace_common::{ABSENT, ARGUMENTS_LEN, OwnerFact, PathFact, ProcessFact, ProcessKey, RecordHeader, kind};

use crate::{
    cgroup::CGROUP_FACTS,
    maps::{CONTINUATIONS, PROCESS, PROCESSES, RING},
    path,
    read::{
        Address, CGROUP_KN, CONTROLLER_CPU, CONTROLLER_DEVICES, CONTROLLER_MEMORY, CONTROLLER_PIDS, CSS_CGROUP,
        CSS_SET_SUBSYS, DENTRY_NAME, DENTRY_PARENT, FILE_DENTRY, FILE_MNT, KERNFS_ID, MM_ARG_END, MM_ARG_START,
        MM_EXE_FILE, MOUNT_MNT, MOUNT_MOUNTPOINT, MOUNT_PARENT, PID_LEVEL, PID_NUMBERS, TASK_CSS_SET, TASK_EXEC_ID,
        TASK_FLAGS, TASK_LEADER, TASK_MM, TASK_PID, TASK_START, Typed, UPID_NR, UPID_SIZE, Unreadable, VFSMOUNT_ROOT,
    },
};

/// Whether this kernel has every field that is read here, but for those of cgroups.
#[unsafe(no_mangle)]
static PROCESS_FACTS: Global<u8> = Global::new(0);

/// Whether command lines and executables may be read.
#[unsafe(no_mangle)]
static COMMANDS: Global<u8> = Global::new(0);

/// Which hierarchy of version 1 tells containers apart: 0 none, else that of a controller, in the order of
/// [`legacy_cgroup_id`].
#[unsafe(no_mangle)]
static LEGACY_CONTROLLER: Global<u8> = Global::new(0);

/// Whether the ring is so large that processes leave room for clashes.
#[unsafe(no_mangle)]
static RING_HAS_ROOM: Global<u8> = Global::new(0);

/// How many steps lead from a program's file to the root: its directories, and mounts between them.
const DEEPEST: usize = 32;

/// The current task.
#[inline(always)]
pub(crate) fn current() -> Address {
    // SAFETY: the helper takes no argument and touches no memory.
    Address::new(unsafe { bpf_get_current_task() })
}

/// Whether the current task is a thread of the kernel: `PF_KTHREAD` (include/linux/sched.h).
///
/// It connects and sends for others: MPTCP's subflows, NFS, and io_uring's poller before Linux 5.12, which made that a
/// thread of the process itself.
#[inline(always)]
pub(crate) fn is_kernel_thread() -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let flags: u32 = match Typed::current() {
        Some(task) => task.load(TASK_FLAGS),
        None => current().field(TASK_FLAGS).read_or_zero(),
    };
    flags & PF_KTHREAD != 0
}

/// The program that the current task runs, of which `ids` is process and thread id in one number; a start of 0 when it cannot
/// be read.
#[inline(always)]
pub(crate) fn key_of(ids: u64) -> ProcessKey {
    // Two numbers of 32 bits in one of 64.
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    if PROCESS_FACTS.load() == 0 {
        return ProcessKey { start_ns: 0, tgid, exec_id: 0 };
    }
    if tgid == tid
        && let Some(task) = Typed::current()
    {
        return ProcessKey { start_ns: task.load(TASK_START), tgid, exec_id: task.load(TASK_EXEC_ID) };
    }
    let task = current();
    let leader = if tgid == tid { task } else { task.field(TASK_LEADER).follow_or_zero() };
    ProcessKey {
        start_ns: leader.field(TASK_START).read_or_zero(),
        tgid,
        exec_id: task.field(TASK_EXEC_ID).read_or_zero(),
    }
}

/// Id of the current task's cgroup in the chosen hierarchy of version 1; 0 when there is none.
#[inline(always)]
pub(crate) fn legacy_cgroup_id() -> u64 {
    // Asked twice, as a compiler that knows they are one asks for what is the rule last.
    if LEGACY_CONTROLLER.load() == 0 {
        return 0;
    }
    let controller = match LEGACY_CONTROLLER.load() {
        1 => CONTROLLER_PIDS.load(),
        2 => CONTROLLER_MEMORY.load(),
        3 => CONTROLLER_CPU.load(),
        4 => CONTROLLER_DEVICES.load(),
        _ => ABSENT,
    };
    if controller == ABSENT || CGROUP_FACTS.load() == 0 {
        return 0;
    }
    let states = current().field(TASK_CSS_SET).follow_or_zero().field(CSS_SET_SUBSYS);
    let state = states.plus(u64::from(controller) * size_of::<u64>() as u64).follow_or_zero();
    let node = state.field(CSS_CGROUP).follow_or_zero().field(CGROUP_KN).follow_or_zero();
    node.field(KERNFS_ID).read_or_zero()
}

/// Whether what a process runs is still to be noted.
#[inline(always)]
pub(crate) fn is_new(key: &ProcessKey) -> bool {
    key.start_ns != 0 && PROCESSES.get_ptr(key).is_none()
}

/// Notes what the current task runs: by another program, which this one goes over to and never comes back from. It is
/// large, and the verifier has to walk it but once.
#[inline(always)]
pub(crate) fn note(ctx: &ProbeContext) {
    // SAFETY: nothing here is to be dropped. Where the other program was not loaded this one goes on.
    unsafe { CONTINUATIONS.tail_call(ctx, 0) };
}

/// Goes on where the hooks of senders end, and notes what the current task runs. What cannot be read is absent.
#[kprobe]
fn note_process(_ctx: ProbeContext) -> u32 {
    fill(current(), &key_of(bpf_get_current_pid_tgid()));
    0
}

/// Puts together what is noted.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would not fit on the stack")]
#[inline(always)]
fn fill(task: Address, key: &ProcessKey) {
    let Some(fact) = PROCESS.get_ptr_mut(0) else { return };
    // SAFETY: the slot is this CPU's own, see `PROCESS`.
    let fact = unsafe { &mut *fact };
    const LEN: u16 = size_of::<ProcessFact>() as u16;
    // SAFETY: the helpers take no argument and touch no memory.
    let (cpu, time_ns) = unsafe { (bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    fact.header = RecordHeader { kind: kind::PROCESS, len: LEN, cpu, time_ns };
    fact.key = *key;
    fact.told = 0;
    fact.reserved = 0;
    fact.own_pid = own_pid(task).unwrap_or(0);
    path::begin(&mut fact.executable);
    fact.arguments_len = 0;
    if COMMANDS.load() != 0
        && let Ok(memory) = task.field(TASK_MM).follow()
        && memory.as_key() != 0
    {
        // A path that is not whole says so itself.
        let _ = fill_executable(&mut fact.executable, memory);
        fact.arguments_len = fill_arguments(&mut fact.arguments, memory).unwrap_or(0);
    }
    // What is not noted is looked for in /proc, while it is there.
    let _ = PROCESSES.insert(key, &*fact, BPF_NOEXIST.into());
}

/// Hands on what a sender of a clash or a failure runs, if that has not been done yet. User space can look into the map
/// instead, but while it does no probe's program runs on its CPU (kernel/bpf/syscall.c, `bpf_disable_instrumentation`).
#[inline(always)]
pub(crate) fn tell(owner: &OwnerFact) {
    if RING_HAS_ROOM.load() == 0 {
        return;
    }
    if let Some(fact) = PROCESSES.get_ptr_mut(owner.process) {
        // SAFETY: the pointer is into a map value. Another CPU may hand it on too, which does no harm.
        let fact = unsafe { &mut *fact };
        if fact.told == 0 && RING.output_untyped::<ProcessFact>(&*fact, 0).is_ok() {
            fact.told = 1;
        }
    }
}

/// Process id in the innermost pid namespace (include/linux/pid.h, `struct pid`).
#[inline(always)]
fn own_pid(task: Address) -> Result<u32, Unreadable> {
    let pid = task.field(TASK_LEADER).follow()?.field(TASK_PID).follow()?;
    let level = pid.field(PID_LEVEL).read::<u32>()?;
    pid.field(PID_NUMBERS).plus(u64::from(level) * u64::from(UPID_SIZE.load())).field(UPID_NR).read()
}

/// The program's file, up through directories and mounts (fs/d_path.c, `prepend_path`).
#[inline(always)]
fn fill_executable(to: &mut PathFact, memory: Address) -> Result<(), Unreadable> {
    let file = memory.field(MM_EXE_FILE).follow()?;
    let mut mount = file.field(FILE_MNT).follow()?.plus(u64::from(MOUNT_MNT.load()).wrapping_neg());
    let mut dentry = file.field(FILE_DENTRY).follow()?;
    for _ in 0..DEEPEST {
        let parent = dentry.field(DENTRY_PARENT).follow()?;
        let root = mount.field(MOUNT_MNT).field(VFSMOUNT_ROOT).follow()?;
        if dentry.as_key() == root.as_key() || dentry.as_key() == parent.as_key() {
            let below = mount.field(MOUNT_PARENT).follow()?;
            if below.as_key() == mount.as_key() {
                to.whole = 1;
                break;
            }
            dentry = mount.field(MOUNT_MOUNTPOINT).follow()?;
            mount = below;
        } else {
            if !path::add(to, dentry.field(DENTRY_NAME).follow()?)? {
                break;
            }
            dentry = parent;
        }
    }
    Ok(())
}

/// The first bytes of the command line, and how many it has. Fails where its page is not in memory.
#[inline(always)]
fn fill_arguments(to: &mut [u8; ARGUMENTS_LEN], memory: Address) -> Result<u32, Unreadable> {
    let (start, end) = (memory.field(MM_ARG_START).read::<u64>()?, memory.field(MM_ARG_END).read::<u64>()?);
    let len = end.wrapping_sub(start);
    if len == 0 || len > u64::from(u32::MAX) {
        return Err(Unreadable);
    }
    // At most 256 from here on.
    let part = if len > ARGUMENTS_LEN as u64 { ARGUMENTS_LEN as u32 } else { len as u32 };
    // SAFETY: the helper writes at most `part` bytes, which `to` has, and checks the address it reads.
    let failed = unsafe { bpf_probe_read_user(to.as_mut_ptr().cast(), part, Address::new(start).as_ptr()) };
    if failed == 0 { Ok(len as u32) } else { Err(Unreadable) }
}
