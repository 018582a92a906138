//! What this kernel has and which hooks that allows.
