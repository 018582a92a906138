//! Whether entries lay where others had lain: where more were made than there was ever room for, they did.

use std::fs;

use serde::Serialize;

/// Where the kernel says how many objects of each kind there is memory for; only root may read it (mm/slab_common.c).
const SLABS: &str = "/proc/slabinfo";

/// Entries that were made, and the room for them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Reuse {
    /// Connections of the run, each with an entry, those that lost too.
    pub connections: u64,
    /// For how many entries there was memory, of all network namespaces together, whenever it was looked.
    pub room: u64,
}

/// For how many entries there is memory now; `None` where that is not told.
pub(super) fn room() -> Option<u64> {
    parse(&fs::read_to_string(SLABS).ok()?)
}

/// Of each kind a line: its name, how many objects are in use, and how many there are.
fn parse(slabs: &str) -> Option<u64> {
    let mut kinds = slabs.lines().map(str::split_ascii_whitespace);
    kinds.find_map(|mut kind| (kind.next()? == "nf_conntrack").then(|| kind.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_objects_not_for_those_in_use() {
        let slabs = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount>
nf_conntrack_expect      0      0    208   19    1 : tunables    0    0    0 : slabdata      0      0      0
nf_conntrack          12    102    320   51    4 : tunables    0    0    0 : slabdata      2      2      0
";
        assert_eq!(parse(slabs), Some(102));
        assert_eq!(parse("slabinfo - version: 2.1\nnf_conntrack 12\n"), None);
        assert_eq!(parse(""), None);
    }
}
