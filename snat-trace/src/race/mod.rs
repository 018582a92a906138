//! From records to race events: decode, order, classify. Pure, and the same for a live and a replayed source.

pub mod class;
pub mod classify;
pub mod decode;
pub mod event;
pub mod failure;
pub mod filter;
pub mod order;
pub mod time;
pub mod tuple;
pub mod verdict;
