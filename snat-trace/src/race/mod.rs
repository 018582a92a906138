//! From records to race events: decode, order, classify. Pure, and the same for a live and a replayed source.

pub mod event;
pub mod time;
pub mod tuple;
