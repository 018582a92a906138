//! A reader that stands still in the middle of the traffic.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// For how long.
const STALL: Duration = Duration::from_secs(1);

/// What the traffic knows of it.
pub(super) struct Stall {
    /// `None` once asked for.
    begin: Option<oneshot::Sender<()>>,
    begun: mpsc::Receiver<()>,
    rounds: Arc<AtomicU32>,
}

impl Stall {
    /// The traffic's side; the reader's, which never ends and is polled by the thread that reads; and where in the end stands
    /// how many rounds were sent meanwhile.
    pub(super) fn new() -> (Self, impl Future<Output = Infallible>, Arc<AtomicU32>) {
        let ((begin, asked), (told, begun)) = (oneshot::channel(), mpsc::channel());
        let (rounds, meanwhile) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (sent, counted) = (Arc::clone(&rounds), Arc::clone(&meanwhile));
        let reader = async move {
            if asked.await.is_ok() {
                let before = sent.load(Ordering::Relaxed);
                // Gone only when the traffic has failed, which is told when it is joined.
                let _ = told.send(());
                // To block the thread that reads, nothing else on it included, is the point.
                thread::sleep(STALL);
                counted.store(sent.load(Ordering::Relaxed).saturating_sub(before), Ordering::Relaxed);
            }
            pending().await
        };
        (Self { begin: Some(begin), begun, rounds }, reader, meanwhile)
    }

    /// So many rounds were sent. After the first nothing more is, until nobody reads.
    pub(super) fn sent(&mut self, rounds: u32) {
        self.rounds.store(rounds, Ordering::Relaxed);
        if let Some(begin) = self.begin.take() {
            // Nobody is there when watching has ended for a reason of its own.
            let _ = begin.send(()).map(|()| self.begun.recv());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_is_sent_while_the_reader_stands_still_is_counted() {
        let (mut stall, reader, meanwhile) = Stall::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let traffic = thread::spawn(move || {
            let start = Instant::now();
            (1..=5).for_each(|rounds| stall.sent(rounds));
            let fast = start.elapsed() < STALL;
            (fast, stall)
        });
        let start = Instant::now();
        runtime.block_on(async {
            tokio::select! {
                never = reader => match never {},
                () = tokio::time::sleep(STALL / 2) => {}
            }
        });
        assert!(start.elapsed() >= STALL, "the whole thread stands still");
        let (fast, _stall) = traffic.join().unwrap();
        assert!(fast, "the traffic does not wait for the end");
        assert_eq!(meanwhile.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn where_nobody_reads_any_more_the_traffic_goes_on() {
        let (mut stall, reader, meanwhile) = Stall::new();
        drop(reader);
        (1..=2).for_each(|rounds| stall.sent(rounds));
        assert_eq!(meanwhile.load(Ordering::Relaxed), 0);
    }
}
