//! Loading, attaching, and reading what the BPF programs say.
