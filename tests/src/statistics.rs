//! What a few measurements come to.

/// A mean and the bounds of its 95 % interval.
pub type Interval = [f64; 3];

/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_964;

/// Mean and interval of a sample of at least two, by Student's t. Of one there is no interval: all three are that one.
#[must_use]
pub fn interval(sample: &[f64]) -> Interval {
    let mean = mean(sample);
    let half = if sample.len() < 2 { 0.0 } else { t(count(sample) - 1.0) * deviation(sample) / count(sample).sqrt() };
    [mean, mean - half, mean + half]
}

/// The mean.
#[must_use]
pub fn mean(sample: &[f64]) -> f64 {
    sample.iter().sum::<f64>() / count(sample)
}

/// Standard deviation of a sample.
#[must_use]
pub fn deviation(sample: &[f64]) -> f64 {
    let mean = mean(sample);
    let squares = sample.iter().map(|number| (number - mean).powi(2)).sum::<f64>();
    (squares / (count(sample) - 1.0)).sqrt()
}

/// Median, least and largest. Of nothing there is none.
#[must_use]
pub fn median_and_range(sample: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) };
    Some([median, *sorted.first()?, *sorted.last()?])
}

#[expect(clippy::cast_precision_loss, reason = "a few measurements")]
fn count(sample: &[f64]) -> f64 {
    sample.len() as f64
}

/// Two-sided 95 % quantile of Student's t, from the normal one by its expansion in powers of 1/freedom (Cornish and Fisher):
/// right to 1 % from 4 degrees of freedom on.
fn t(freedom: f64) -> f64 {
    let first = (Z.powi(3) + Z) / 4.0;
    let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0;
    let third = (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0;
    Z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, published) in [(4.0, 2.776), (9.0, 2.262), (19.0, 2.093), (39.0, 2.023), (100.0, 1.984)] {
            assert!((t(freedom) / published - 1.0).abs() < 0.01, "{freedom}: {}", t(freedom));
        }
    }

    #[test]
    fn an_interval_is_about_the_mean() {
        // Deviation 1, so 2.262 / sqrt(10) either way.
        let sample: Vec<f64> = (0..10).map(|n| 5.0 + if n % 2 == 0 { 0.948_683 } else { -0.948_683 }).collect();
        let [mean, low, high] = interval(&sample);
        assert!((mean - 5.0).abs() < 1e-9 && (high - 5.0 - 0.7153).abs() < 1e-3 && (5.0 - low - 0.7153).abs() < 1e-3);
        assert_eq!(interval(&[3.0]).map(f64::to_bits), [3.0f64; 3].map(f64::to_bits));
        assert!((deviation(&[1.0, 2.0, 3.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median_and_range(&[3.0, 1.0, 2.0]), Some([2.0, 1.0, 3.0]));
        assert_eq!(median_and_range(&[4.0, 1.0, 2.0, 3.0]), Some([2.5, 1.0, 4.0]));
        assert_eq!(median_and_range(&[]), None);
    }
}
