//! Packets as fast as the pods can send them: nobody waits for a round to end.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::Lab;
use super::error::LabError;
use super::log::Log;
use super::run::{DEADLINE, LOOK, Progress, check};
use super::stat::Stat;
use super::wire::Order;

/// How many rounds the pods may be behind with: what a socket holds of orders, and of reports.
const BEHIND: usize = 64;
/// How many packets are to lose for a cause that takes luck.
const ENOUGH: u64 = 3;

impl Lab {
    /// Runs all rounds, or as many as it takes. Who lost is known when the counters say how many.
    pub(super) fn storm(
        &self,
        log: &mut Log,
        stop: &AtomicBool,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), LabError> {
        let before = Stat::read(self.node.tid())?;
        let cause = self.setup.scenario.cause();
        let lost = || Ok(Stat::read(self.node.tid())?.since(before).lost(cause));
        let most = BEHIND * self.setup.pods;
        for round in 0..self.setup.rounds {
            log.begin(round);
            for pod in 0..self.setup.pods {
                self.tell(pod, Order::Round { round, port: self.setup.port(round, pod), barrier: 0, background: 0 })?;
            }
            log.close(Stat::default());
            self.hear(log, Duration::ZERO)?;
            self.until(log, stop, |log| Ok(log.unsent <= most))?;
            // What is rare and has happened need not happen more often.
            if cause.is_rare() && lost()? >= ENOUGH {
                break;
            }
            progress(Progress { rounds: round + 1, lost: log.missing.saturating_sub(log.unsent) });
        }
        self.until(log, stop, |log| {
            let lost = usize::try_from(lost()?);
            Ok(log.unsent == 0 && lost.is_ok_and(|lost| lost >= log.missing))
        })
    }

    /// Hears what is said until it is enough. What must happen has [`DEADLINE`] to go on in.
    fn until(
        &self,
        log: &mut Log,
        stop: &AtomicBool,
        enough: impl Fn(&Log) -> Result<bool, LabError>,
    ) -> Result<(), LabError> {
        let (mut began, mut left) = (Instant::now(), log.unsent + log.missing);
        while !enough(log)? {
            check(stop)?;
            self.hear(log, LOOK)?;
            if log.unsent + log.missing < left {
                (began, left) = (Instant::now(), log.unsent + log.missing);
            }
            if began.elapsed() > DEADLINE {
                let missing =
                    format!("{} packets were not sent, or {} neither arrived nor lost", log.unsent, log.missing);
                return Err(LabError::Deadline { after: DEADLINE, missing });
            }
        }
        Ok(())
    }
}
