//! Forces a race: holds the first packets of a round until all are there, then lets them go one after another.
//!
//! By then each has chosen its port and none is in the table, so the first to go wins, whatever the timing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use super::addresses::marked_pod;
use super::queue::{Queue, Queued};

/// The packets held of one round, by pod.
#[derive(Debug)]
struct Held {
    ids: Vec<Option<u32>>,
    /// Rounds let go so far.
    round: usize,
}

impl Held {
    fn new(pods: usize) -> Self {
        Self { ids: vec![None; pods], round: 0 }
    }

    /// The packets to let go now that this one came, in order. The first of a full round is another pod's each time.
    fn take(&mut self, packet: Queued) -> Vec<u32> {
        let slot = packet.ttl.and_then(marked_pod).and_then(|pod| self.ids.get_mut(pod));
        let Some(slot) = slot.filter(|slot| slot.is_none()) else { return vec![packet.id] };
        *slot = Some(packet.id);
        let Some(mut ids) = self.ids.iter().copied().collect::<Option<Vec<u32>>>() else { return Vec::new() };
        self.ids.fill(None);
        let first = self.round % ids.len();
        self.round += 1;
        ids.rotate_left(first);
        ids
    }
}

/// Serves the queue until `stop` is closed at its other end; `released` are the rounds whose packets have gone all their way.
pub(super) fn serve(queue: &Queue, pods: usize, released: &AtomicUsize, stop: BorrowedFd<'_>) -> io::Result<()> {
    let mut held = Held::new(pods);
    loop {
        let mut fds = [PollFd::new(queue, PollFlags::IN), PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::empty())];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        for packet in queue.receive()? {
            for id in held.take(packet) {
                queue.accept(id)?;
            }
            released.store(held.round, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::addresses::mark;
    use super::*;

    fn first_of(pod: usize, id: u32) -> Queued {
        Queued { id, ttl: Some(mark(pod)) }
    }

    #[test]
    fn a_full_round_goes_at_once_and_the_winner_changes() {
        let mut held = Held::new(3);
        let orders = [[10, 11, 12], [11, 12, 10], [12, 10, 11], [10, 11, 12]];
        for expected in orders {
            assert!(held.take(first_of(2, 12)).is_empty());
            assert!(held.take(first_of(0, 10)).is_empty());
            assert_eq!(held.take(first_of(1, 11)), expected);
        }
    }

    #[test]
    fn whatever_is_no_first_packet_goes_at_once() {
        let mut held = Held::new(2);
        assert!(held.take(first_of(0, 1)).is_empty());
        for packet in [Queued { id: 2, ttl: Some(63) }, Queued { id: 2, ttl: None }, first_of(5, 2), first_of(0, 2)] {
            assert_eq!(held.take(packet), [2]);
        }
        assert_eq!(held.take(first_of(1, 3)), [1, 3]);
    }
}
