//! Set-up, builds, virtual machines and tests of snat-trace.

fn main() {}
