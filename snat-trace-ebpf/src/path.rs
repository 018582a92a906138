//! Paths, component by component from the last to the first: a program cannot know beforehand where one begins.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use snat_trace_common::{COMPONENT_LEN, PathFact};

use crate::read::{Address, Unreadable};

/// Begins a path.
#[inline(always)]
pub(crate) fn begin(path: &mut PathFact) {
    path.len = 0;
    path.whole = 0;
}

/// Adds the component whose name stands at `name`; `false` when there is no room for it.
#[inline(always)]
pub(crate) fn add(path: &mut PathFact, name: Address) -> Result<bool, Unreadable> {
    let at = path.len as usize;
    if at >= COMPONENT_LEN {
        return Ok(false);
    }
    // SAFETY: the helper writes at most as many bytes as are behind any place in the first half, and checks the address
    // it reads.
    let written = unsafe {
        let to = path.components.as_mut_ptr().add(at);
        bpf_probe_read_kernel_str(to.cast(), COMPONENT_LEN as u32, name.as_ptr())
    };
    // With the NUL; a name of no bytes is that of a root, or of what is none.
    if written <= 1 {
        return Err(Unreadable);
    }
    path.len += written.unsigned_abs() as u32;
    Ok(true)
}
