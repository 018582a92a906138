//! Scenarios of snat-trace against real kernels.
