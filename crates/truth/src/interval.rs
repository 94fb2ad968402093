//! The 99 % confidence interval of a proportion. Pure.

/// The two-sided quantile of the normal distribution for 99 %.
const Z: f64 = 2.575_829;

/// Computes the 99 % Wilson score interval of a proportion: `hits` of `trials` have the property. Without trials, the
/// interval is 0 to 1.
pub(crate) fn of_share(hits: u64, trials: u64) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    let (n, share) = (trials as f64, hits as f64 / trials as f64);
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    // Rounding must not exclude the sample's own share.
    [(centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_just_significant_at_each_end_of_the_interval() {
        for (hits, trials) in [(10_u32, 100_u32), (1, 300), (299, 300)] {
            let share = f64::from(hits) / f64::from(trials);
            for end in of_share(hits.into(), trials.into()) {
                let deviation = (end * (1.0 - end) / f64::from(trials)).sqrt();
                assert!(((share - end).abs() / deviation - Z).abs() < 1e-6, "{hits} of {trials}: {end}");
            }
        }
        assert_eq!(of_share(0, 100)[0], 0.0);
        assert_eq!(of_share(0, 0), [0.0, 1.0]);
        assert_eq!(of_share(100, 100)[1], 1.0);
    }
}
