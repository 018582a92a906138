//! Scenarios of snat-trace against real kernels.

pub mod verifier;
