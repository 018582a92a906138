//! Cgroups that go away, so that those of senders which have ended are still named.

use aya_ebpf::{Global, bindings::BPF_ANY, macros::kprobe, programs::ProbeContext};
use snat_trace_common::{CgroupKey, PathFact};

use crate::{
    maps::{REMOVED_CGROUP, REMOVED_CGROUPS},
    path,
    read::{
        Address, CGROUP_ROOT, CGROUP_ROOT_HIERARCHY, KERNFS_ID, KERNFS_NAME, KERNFS_PARENT, KERNFS_PRIV, Unreadable,
    },
};

/// Whether this kernel has every field that is read here.
#[unsafe(no_mangle)]
pub(crate) static CGROUP_FACTS: Global<u8> = Global::new(0);

/// How deep a cgroup's path may be.
const DEEPEST: usize = 24;

/// Entry of `cgroup_rmdir(kn)` (kernel/cgroup/cgroup.c), of either version: the cgroup is still whole. It may stay, if it is
/// not empty, which does no harm.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy of the path would not fit on the stack")]
#[kprobe]
fn cgroup_removed(ctx: ProbeContext) -> u32 {
    if CGROUP_FACTS.load() == 0 {
        return 0;
    }
    if let (Some(node), Some(path)) = (ctx.arg::<u64>(0), REMOVED_CGROUP.get_ptr_mut(0)) {
        // SAFETY: the slot is this CPU's own, see `PROCESS`.
        let path = unsafe { &mut *path };
        let node = Address::new(node);
        if let (Ok(key), Ok(())) = (key_of(node), fill(path, node)) {
            // One that is not kept has no path, and is told without.
            let _ = REMOVED_CGROUPS.insert(key, &*path, BPF_ANY.into());
        }
    }
    0
}

#[inline(always)]
fn key_of(node: Address) -> Result<CgroupKey, Unreadable> {
    let root = node.field(KERNFS_PRIV).follow()?.field(CGROUP_ROOT).follow()?;
    Ok(CgroupKey {
        id: node.field(KERNFS_ID).read()?,
        hierarchy: root.field(CGROUP_ROOT_HIERARCHY).read()?,
        reserved: 0,
    })
}

/// Up to the root, which has no parent.
#[inline(always)]
fn fill(to: &mut PathFact, mut node: Address) -> Result<(), Unreadable> {
    path::begin(to);
    for _ in 0..DEEPEST {
        let parent = node.field(KERNFS_PARENT).follow()?;
        if parent.as_key() == 0 {
            to.whole = 1;
            break;
        }
        if !path::add(to, node.field(KERNFS_NAME).follow()?)? {
            break;
        }
        node = parent;
    }
    Ok(())
}
