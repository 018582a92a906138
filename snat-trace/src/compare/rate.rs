//! Two rates, and what may be said of them.

use serde::Serialize;

use super::intervals::{Interval, LARGEST, of_count, of_ratio};

/// Rates further apart than this would not be called the same: nothing has changed when the ratio is surely within it and its
/// inverse.
const SAME: f64 = 2.0;
/// What is fixed comes at most so often as before: with no race at all, so much was watched that even a tenth of the races
/// before would have shown.
const FIXED: f64 = 0.1;

/// Whether a change helped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Races before, none after, and surely less than a tenth of what it was.
    Fixed,
    /// Surely less than before.
    Better,
    /// The rates may be equal, and are surely within a factor of two.
    NoChange,
    /// Surely more than before.
    Worse,
    /// None of these can be said.
    NotEnoughData,
}

impl Judgement {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Better => "better",
            Self::NoChange => "no change",
            Self::Worse => "worse",
            Self::NotEnoughData => "not enough data",
        }
    }
}

/// Races on one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Amount {
    /// How many.
    pub(super) races: u64,
    /// Among how many connections, or in how much time.
    pub(super) exposure: f64,
}

/// A rate with its interval, in races per exposure; absent where it is not known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) races: u64,
    pub(super) rate: Option<f64>,
    pub(super) interval: Option<Interval>,
}

/// Both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) before: Rate,
    pub(super) after: Rate,
    /// After by before; of counts that are zero only its interval is known.
    pub(super) ratio: Option<Interval>,
    /// Of how many races that come together each is one; absent where that is not known.
    pub(super) burst: Option<f64>,
    pub(super) judgement: Judgement,
}

impl Rates {
    /// Races that come in bursts tell less than so many that come by themselves, namely as much as there are bursts: the
    /// intervals are those of the counts divided by `burst` (a quasi-Poisson model: Wedderburn, Biometrika 61, 1974).
    pub(super) fn new(before: Amount, after: Amount, burst: Option<f64>) -> Self {
        let both_known = [before, after].iter().all(|amount| amount.exposure > 0.0 && amount.exposure.is_finite());
        let worth = worth(before, after, burst.unwrap_or(1.0));
        let ratio = (both_known && burst.is_some())
            .then(|| of_ratio(before.worth(worth), after.worth(worth)).times(before.exposure / after.exposure));
        let judgement = ratio.map_or(Judgement::NotEnoughData, |ratio| judge(before.races, after.races, ratio));
        let rate = |amount: Amount| amount.rate(burst.map(|_| worth));
        Self { before: rate(before), after: rate(after), ratio, burst, judgement }
    }
}

impl Amount {
    #[expect(clippy::cast_precision_loss, reason = "a count of that size needs no last digit")]
    fn worth(self, worth: f64) -> f64 {
        self.races as f64 / worth
    }

    fn rate(self, worth: Option<f64>) -> Rate {
        let known = self.exposure > 0.0 && self.exposure.is_finite();
        Rate {
            races: self.races,
            rate: known.then(|| self.worth(1.0) / self.exposure),
            interval: worth.filter(|_| known).map(|worth| of_count(self.worth(worth)).times(worth / self.exposure)),
        }
    }
}

/// How many races are worth one, so that no count is too large.
fn worth(before: Amount, after: Amount, burst: f64) -> f64 {
    let most = before.worth(1.0).max(after.worth(1.0));
    burst.max(most / LARGEST).max(1.0)
}

fn judge(before: u64, after: u64, ratio: Interval) -> Judgement {
    match (before, after) {
        (0, 0) => Judgement::NotEnoughData,
        (_, 0) if ratio.high <= FIXED => Judgement::Fixed,
        _ if ratio.high < 1.0 => Judgement::Better,
        _ if ratio.low > 1.0 => Judgement::Worse,
        _ if ratio.low >= SAME.recip() && ratio.high <= SAME => Judgement::NoChange,
        _ => Judgement::NotEnoughData,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(before: (u64, f64), after: (u64, f64), burst: f64) -> Rates {
        let amount = |(races, exposure)| Amount { races, exposure };
        Rates::new(amount(before), amount(after), Some(burst))
    }

    #[test]
    fn judgements() {
        use Judgement::{Better, Fixed, NoChange, NotEnoughData, Worse};
        for (before, after, burst, expected) in [
            // 0.025^(1/n) - 1 is 0.1 at n = 38.7: one less does not do.
            ((39, 1000.0), (0, 1000.0), 1.0, Fixed),
            ((38, 1000.0), (0, 1000.0), 1.0, Better),
            // Half as long afterwards, half of them would have come.
            ((39, 1000.0), (0, 500.0), 1.0, Better),
            ((78, 1000.0), (0, 500.0), 1.0, Fixed),
            // 39 races in bursts of ten are four.
            ((39, 1000.0), (0, 1000.0), 10.0, NotEnoughData),
            ((390, 1000.0), (0, 1000.0), 10.0, Fixed),
            // None of five: with probability 1/32 by chance, on either side.
            ((5, 1.0), (0, 1.0), 1.0, NotEnoughData),
            ((6, 1.0), (0, 1.0), 1.0, Better),
            ((0, 1.0), (6, 1.0), 1.0, Worse),
            ((400, 800.0), (400, 800.0), 1.0, NoChange),
            ((400, 800.0), (800, 1600.0), 1.0, NoChange),
            ((400, 800.0), (400, 1600.0), 1.0, Better),
            ((5, 800.0), (5, 800.0), 1.0, NotEnoughData),
            ((400, 800.0), (600, 800.0), 1.0, Worse),
            ((0, 800.0), (0, 800.0), 1.0, NotEnoughData),
            ((400, 0.0), (0, 800.0), 1.0, NotEnoughData),
            ((400, 800.0), (0, 0.0), 1.0, NotEnoughData),
        ] {
            assert_eq!(rates(before, after, burst).judgement, expected, "{before:?} {after:?} {burst}");
        }
        let amount = Amount { races: 400, exposure: 1.0 };
        let unknown = Rates::new(amount, Amount { races: 0, ..amount }, None);
        assert_eq!((unknown.judgement, unknown.before.interval), (NotEnoughData, None));
        assert_eq!(unknown.before.rate, Some(400.0));
    }

    /// By hand: 100 races among 1000 connections, 81.364 to 121.627 in Garwood's table.
    #[test]
    fn a_rate_is_per_exposure() {
        let Rate { rate, interval, .. } = rates((100, 1000.0), (0, 1000.0), 1.0).before;
        let interval = interval.unwrap();
        assert_eq!(rate, Some(0.1));
        assert!((interval.low - 0.081_364).abs() < 1e-6 && (interval.high - 0.121_627).abs() < 1e-6, "{interval:?}");
    }

    proptest! {
        #[test]
        fn turned_round_it_is_the_opposite(
            before in (0..5000_u64, 1.0..1e5_f64), after in (0..5000_u64, 1.0..1e5_f64), burst in 1.0..20.0_f64,
        ) {
            use Judgement::{Better, Fixed, NoChange, NotEnoughData, Worse};
            let (there, back) = (rates(before, after, burst).judgement, rates(after, before, burst).judgement);
            let opposite = match back {
                Fixed | Better => vec![Worse],
                Worse => vec![Fixed, Better],
                NoChange | NotEnoughData => vec![back],
            };
            prop_assert!(opposite.contains(&there), "{:?} {:?}", there, back);
        }

        /// More races after are never better news, and bursts make nothing surer.
        #[test]
        fn more_is_never_better(
            before in (0..2000_u64, 1.0..1e4_f64), after in (0..2000_u64, 1.0..1e4_f64), more in 1..500_u64, burst in 1.0..20.0_f64,
        ) {
            let fewer = rates(before, after, 1.0);
            let more = rates(before, (after.0 + more, after.1), 1.0);
            let (low, high) = (fewer.ratio.unwrap(), more.ratio.unwrap());
            prop_assert!(low.low <= high.low && low.high <= high.high);
            prop_assert!(!(fewer.judgement == Judgement::Worse && more.judgement == Judgement::Better));
            let wider = rates(before, after, burst).ratio.unwrap();
            let within = |inner: f64, outer: f64| inner <= outer * (1.0 + 1e-9);
            prop_assert!(within(wider.low, low.low) && within(low.high, wider.high), "{:?} {:?}", low, wider);
        }

        /// Whatever a file may tell: from a nanosecond to all connections there can be.
        #[test]
        fn any_numbers_are_survived(
            before in (any::<u64>(), 1e-13..1e20_f64), after in (any::<u64>(), 1e-13..1e20_f64), burst in 1.0..1e20_f64,
        ) {
            let rates = rates(before, after, burst);
            if let Some(ratio) = rates.ratio {
                prop_assert!(ratio.low <= ratio.high, "{:?}", ratio);
            }
        }
    }
}
