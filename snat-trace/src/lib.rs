//! snat-trace as a library: from kernel facts to race events.
//!
//! The data goes one way: [`kernel`] says which hooks this kernel takes, [`probe`] attaches them and reads their
//! records, [`race`] turns records into events, [`owner`] names who is behind them, [`counters`] holds the other side
//! of the account, [`output`] prints, [`live`] draws, [`evidence`] keeps, [`export`] and [`compare`] read what was kept. [`audit`] says what makes races likely, and [`lab`] makes real ones
//! to prove it all on.

pub mod audit;
pub mod compare;
pub mod counters;
pub mod evidence;
pub mod export;
pub mod kernel;
pub mod lab;
pub mod live;
#[cfg(test)]
mod mutate;
pub mod output;
pub mod owner;
pub mod probe;
pub mod race;
pub mod report;
pub mod session;
#[cfg(test)]
mod skipped;
pub mod summary;
pub mod watch;
