//! Scenarios of snat-trace against real kernels: each runs the real binary and holds what it says against what others
//! know.

pub mod fallback;
pub mod loading;
pub mod output;
pub mod places;
pub mod races;
pub mod verifier;
