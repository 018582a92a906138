//! Senders of a network namespace that no look at its TCP and UDP sockets finds.

use std::fs;
use std::io;
use std::path::Path;

use super::links::Link;
use crate::counters::wire::DumpError;

/// Whether the calling thread's namespace has sockets that can send with another's port: raw ones and packet sockets.
pub(super) fn has_raw_sockets() -> io::Result<bool> {
    for table in ["raw", "raw6", "packet"] {
        match fs::read_to_string(Path::new("/proc/thread-self/net").join(table)) {
            // The first line names the columns.
            Ok(table) if table.lines().nth(1).is_some() => return Ok(true),
            Ok(_) => {}
            // Compiled out.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether the calling thread's namespace has devices that send UDP with a source port they choose by themselves, so that a
/// process can have that port too (net/ipv4/udp_tunnel_core.c; `udp_flow_src_port`).
pub(super) fn has_udp_tunnels() -> Result<bool, DumpError> {
    Ok(Link::all()?.iter().any(|link| link.sends_udp))
}
