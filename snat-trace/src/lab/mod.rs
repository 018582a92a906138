//! Real races in namespaces of our own, to prove tracing on.
