//! Did a change help? Two files of evidence, and whether the races of one come more rarely than those of the other, with how sure
//! that is. Pure.
//!
//! The rate is in races per new connection where both files say how many there were, so that less traffic is not taken for a
//! cure, else per time. Whatever else differs between the two is told beside it.

mod differences;
mod intervals;
mod json;
mod rate;
mod report;
mod side;

use std::collections::BTreeSet;

pub use rate::Judgement;
pub use side::{Kind, Side};

use self::rate::{Amount, Rates};

/// What races are counted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Basis {
    /// A thousand new connections.
    Connections,
    /// An hour.
    Hours,
}

impl Basis {
    /// In words, after a number of races.
    fn name(self) -> &'static str {
        match self {
            Self::Connections => "per 1000 new connections",
            Self::Hours => "per hour",
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of that size needs no last digit")]
    fn exposure(self, side: &Side) -> f64 {
        match self {
            Self::Connections => side.connections.unwrap_or(0) as f64 / 1e3,
            Self::Hours => side.watched.as_secs_f64() / 3600.0,
        }
    }
}

/// Two files of evidence, compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    before: Side,
    after: Side,
    basis: Basis,
    /// Dropped first, then all, then each class there is.
    rows: Vec<(Kind, Rates)>,
    /// The same by time, where connections are the basis.
    by_time: Option<Vec<(Kind, Rates)>>,
}

impl Comparison {
    /// Compares them.
    #[must_use]
    pub fn new(before: Side, after: Side) -> Self {
        let counted = [&before, &after].iter().all(|side| side.connections.is_some_and(|count| count > 0));
        let basis = if counted { Basis::Connections } else { Basis::Hours };
        let kinds: BTreeSet<Kind> =
            [Kind::Dropped, Kind::All].into_iter().chain(before.kinds()).chain(after.kinds()).collect();
        let rates = |kind, basis: Basis| {
            let amount = |side: &Side| Amount { races: side.races(kind), exposure: basis.exposure(side) };
            // The burstier of the two: where no race came, nobody sees how they would have.
            let burst = before.burst(kind).zip(after.burst(kind)).map(|(before, after)| before.max(after));
            (kind, Rates::new(amount(&before), amount(&after), burst))
        };
        let rows = |basis| kinds.iter().map(|&kind| rates(kind, basis)).collect();
        let by_time = (basis == Basis::Connections).then(|| rows(Basis::Hours));
        let rows = rows(basis);
        Self { before, after, basis, rows, by_time }
    }

    /// Whether the change helped: by the races that dropped a packet.
    #[must_use]
    pub fn judgement(&self) -> Judgement {
        self.dropped().map_or(Judgement::NotEnoughData, |rates| rates.judgement)
    }

    fn dropped(&self) -> Option<&Rates> {
        self.rows.iter().find(|(kind, _)| *kind == Kind::Dropped).map(|(_, rates)| rates)
    }

    /// The two sides by their names.
    fn sides(&self) -> [(&'static str, &Side); 2] {
        [("before", &self.before), ("after", &self.after)]
    }
}

#[cfg(test)]
mod tests;
