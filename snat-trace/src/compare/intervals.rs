//! Confidence intervals that are exact, so that they hold for few races and for none: of a count (Garwood, Biometrika 28, 1936)
//! and of the ratio of two rates (the one count given their sum is binomial: Przyborowski and Wilenski, Biometrika 31, 1940; its
//! limits after Clopper and Pearson, Biometrika 26, 1934). Formulas are named as in the NIST Digital Library of Mathematical
//! Functions (DLMF).
//!
//! Counts need not be whole: bursts make a count worth fewer races than it has.

/// How sure an interval is, in percent.
pub(super) const LEVEL: u8 = 95;
/// Probability on either side of an interval.
const TAIL: f64 = (100.0 - LEVEL as f64) / 200.0;
/// Counts are no larger: a sum or fraction below takes steps as the root of it.
pub(super) const LARGEST: f64 = 1e8;
/// Halvings of a bracket, after which nothing of a number is left to halve.
const HALVINGS: usize = 120;
/// Steps at most; some times the root of [`LARGEST`].
const STEPS: u32 = 300_000;
/// When a sum or fraction no longer changes.
const PRECISION: f64 = 1e-15;

/// From `low` to `high`, which may be infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    /// Both ends times a number.
    pub(super) fn times(self, factor: f64) -> Self {
        Self { low: self.low * factor, high: self.high * factor }
    }
}

/// What a count of rare events may have been on average.
pub(super) fn of_count(count: f64) -> Interval {
    let low = if count > 0.0 { gamma_quantile(count, TAIL) } else { 0.0 };
    Interval { low, high: gamma_quantile(count + 1.0, 1.0 - TAIL) }
}

/// How many times the rate of `before` that of `after` may be, if both had the same time or number of trials; everything
/// from 0 on where neither counted anything.
pub(super) fn of_ratio(before: f64, after: f64) -> Interval {
    let odds = |share: f64| share / (1.0 - share);
    let low = if after > 0.0 { odds(beta_quantile(after, before + 1.0, TAIL)) } else { 0.0 };
    let high = if before > 0.0 { odds(beta_quantile(after + 1.0, before, 1.0 - TAIL)) } else { f64::INFINITY };
    Interval { low, high }
}

/// Where the gamma distribution of this shape has the probability `wanted` below it.
fn gamma_quantile(shape: f64, wanted: f64) -> f64 {
    // Ten standard deviations, and enough for the smallest shapes.
    quantile(shape + 10.0 * shape.sqrt() + 20.0, wanted, |x| gamma(shape, x))
}

fn beta_quantile(a: f64, b: f64, wanted: f64) -> f64 {
    quantile(1.0, wanted, |x| beta(a, b, x))
}

/// Where a rising function from 0 to `end` has a value.
fn quantile(end: f64, wanted: f64, function: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, end);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if function(middle) < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// Regularised lower incomplete gamma function P(a, x), by its series (DLMF 8.7.1 and 8.2.4), all of whose terms are positive.
fn gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let (mut term, mut sum) = (1.0, 1.0);
    for step in 1..STEPS {
        term *= x / (a + f64::from(step));
        sum += term;
        if term < sum * PRECISION {
            break;
        }
    }
    (a * x.ln() - x - ln_gamma(a + 1.0)).exp() * sum
}

/// Regularised incomplete beta function (DLMF 8.17.2), by its continued fraction (8.17.22), which converges fast on this side of
/// the mean (8.17.4 is for the other), evaluated from its head (3.10(iii), Lentz's way).
fn beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta(b, a, 1.0 - x);
    }
    let away_from_zero = |value: f64| if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value };
    let mut denominator = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let (mut numerator, mut fraction) = (1.0, denominator);
    for step in 1..STEPS {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for coefficient in [even, odd] {
            denominator = 1.0 / away_from_zero(1.0 + coefficient * denominator);
            numerator = away_from_zero(1.0 + coefficient / numerator);
            change = numerator * denominator;
            fraction *= change;
        }
        if (change - 1.0).abs() < PRECISION {
            break;
        }
    }
    let ln_beta = ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
    (a * x.ln() + b * (-x).ln_1p() - ln_beta).exp() * fraction / a
}

/// Logarithm of the gamma function of a positive number, by Stirling's series (DLMF 5.11.1), where that is good, and by recurrence
/// (5.5.1) below.
fn ln_gamma(x: f64) -> f64 {
    const GOOD: f64 = 15.0;

    let (mut x, mut below) = (x, 0.0);
    while x < GOOD {
        below += x.ln();
        x += 1.0;
    }
    let square = (x * x).recip();
    let series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - below
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn near(is: f64, expected: f64, within: f64) {
        assert!((is - expected).abs() <= within, "{is} is not {expected}");
    }

    /// Limits as Garwood tabulates them, also got by adding up the probabilities of the Poisson
    /// distribution, one by one, in another language.
    #[test]
    fn limits_of_a_count_are_those_of_the_table() {
        for (count, low, high) in [
            (0.0, 0.0, 3.6889),
            (1.0, 0.0253, 5.5716),
            (2.0, 0.2422, 7.2247),
            (5.0, 1.6235, 11.6683),
            (10.0, 4.7954, 18.3904),
            (20.0, 12.2165, 30.8884),
            (50.0, 37.1110, 65.9188),
            (100.0, 81.3640, 121.6268),
        ] {
            let interval = of_count(count);
            near(interval.low, low, 6e-5);
            near(interval.high, high, 6e-5);
        }
    }

    /// Limits of a binomial share as Clopper and Pearson tabulate them for 95 %.
    #[test]
    fn limits_of_a_share_are_those_of_the_table() {
        for (count, of, low, high) in [
            (0.0, 10.0, 0.0, 0.3085),
            (1.0, 10.0, 0.0025, 0.4450),
            (5.0, 10.0, 0.1871, 0.8129),
            (3.0, 20.0, 0.0321, 0.3789),
            (50.0, 100.0, 0.3983, 0.6017),
        ] {
            let share = |odds: f64| if odds.is_finite() { odds / (1.0 + odds) } else { 1.0 };
            let interval = of_ratio(of - count, count);
            near(share(interval.low), low, 6e-5);
            near(share(interval.high), high, 6e-5);
        }
        // None of n: (TAIL / 2) ^ (1 / n) by hand.
        near(of_ratio(40.0, 0.0).high, 0.025_f64.powf(-1.0 / 40.0) - 1.0, 1e-12);
        assert_eq!(of_ratio(0.0, 0.0), Interval { low: 0.0, high: f64::INFINITY });
    }

    /// Large counts are as the normal distribution has them.
    #[test]
    fn the_largest_counts_are_good_too() {
        for count in [1e4, 1e6, LARGEST] {
            let interval = of_count(count);
            near((interval.low - count) / count.sqrt(), -1.959_964, 0.02);
            near((interval.high - count) / count.sqrt(), 1.959_964, 0.03);
            let ratio = of_ratio(count, count);
            near(ratio.high.ln() / (2.0 / count).sqrt(), 1.959_964, 0.02);
            near(of_ratio(count, 5.0).high, 11.6683 / count, 0.01 / count);
        }
    }

    #[test]
    fn known_values() {
        near(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln(), 1e-13);
        near(ln_gamma(11.0), 3_628_800_f64.ln(), 1e-12);
        near(gamma(1.0, 2.0), 1.0 - (-2.0_f64).exp(), 1e-12);
        near(beta(2.0, 3.0, 0.4), 0.5248, 1e-12);
        near(beta(1.0, 1.0, 0.3), 0.3, 1e-12);
    }

    proptest! {
        #[test]
        fn an_interval_contains_what_was_counted(before in 0.0..1e5_f64, after in 0.0..1e5_f64) {
            let count = of_count(before);
            prop_assert!(count.low <= before && before <= count.high, "{:?}", count);
            let ratio = of_ratio(before, after);
            prop_assert!(ratio.low * before <= after && after <= ratio.high * before + 1e-9, "{:?}", ratio);
        }

        /// The other way round it is the inverse.
        #[test]
        fn a_ratio_turned_round_is_its_inverse(before in 0.5..1e4_f64, after in 0.5..1e4_f64) {
            let (there, back) = (of_ratio(before, after), of_ratio(after, before));
            prop_assert!((there.low * back.high - 1.0).abs() < 1e-6, "{:?} {:?}", there, back);
        }

        #[test]
        fn more_after_is_a_higher_ratio(before in 0.0..1e4_f64, after in 0.0..1e4_f64, more in 0.1..100.0_f64) {
            let (fewer, more) = (of_ratio(before, after), of_ratio(before, after + more));
            prop_assert!(fewer.low < more.low && fewer.high <= more.high, "{:?} {:?}", fewer, more);
        }
    }
}
