//! Decides whether a share of lost packets is significantly above a bound. Pure: no I/O, no clock.

/// The lower bound of a 95 % confidence interval is above the true value with this probability: half of 5 %.
const TAIL: f64 = 0.025;

/// Whether the share `lost` / `of` is significantly above `bound`: whether the lower bound of the 95 % confidence
/// interval of this share (Clopper and Pearson, 1934) is above `bound`.
///
/// This is the case if a path with a loss of exactly `bound` would lose `lost` or more packets in at most 2.5 % of such
/// tests. So the code does not compute the interval, but the probability of so many lost packets: the upper tail of the
/// binomial distribution.
///
/// `periods` is the number of loss periods (RFC 3357). The packets of one period were lost for the same reason, so they
/// are not independent. Therefore each period counts as one lost packet.
pub fn is_share_above(bound: f64, lost: u64, of: u64, periods: u64) -> bool {
    if lost == 0 || of == 0 || lost as f64 <= bound * of as f64 {
        return false;
    }
    let periods = periods.clamp(1, lost);
    let of = (u128::from(of) * u128::from(periods)).div_ceil(u128::from(lost));
    let of = u64::try_from(of).unwrap_or(u64::MAX).max(periods);
    upper_tail(bound, periods, of) <= TAIL
}

/// The probability of at least `least` successes in `of` trials, each of which succeeds with `probability`. `least`
/// must not be below the mean number of successes.
fn upper_tail(probability: f64, least: u64, of: u64) -> f64 {
    if probability <= 0.0 || probability >= 1.0 {
        return if probability >= 1.0 { 1.0 } else { 0.0 };
    }
    let (successes, trials) = (least as f64, of as f64);
    // The probability of exactly `least`, as a logarithm: its factors may underflow.
    let mut logarithm = (trials - successes) * (-probability).ln_1p();
    for factor in 1..=least {
        let factor = factor as f64;
        logarithm += ((trials - successes + factor) / factor * probability).ln();
    }
    let mut term = logarithm.exp();
    let mut sum = 0.0;
    let mut at = successes;
    // Above the mean, each term is smaller than the term before it.
    while term > sum * f64::EPSILON && at <= trials {
        sum += term;
        term *= (trials - at) / (at + 1.0) * probability / (1.0 - probability);
        at += 1.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_the_binomial_distribution_is_right() {
        // Two or more sixes in three throws: 16 of 216.
        assert!((upper_tail(1.0 / 6.0, 2, 3) - 16.0 / 216.0).abs() < 1e-12);
        assert!((upper_tail(0.5, 10, 10) - 0.5f64.powi(10)).abs() < 1e-15);
        assert_eq!((upper_tail(0.0, 1, 5), upper_tail(1.0, 1, 5)), (0.0, 1.0));
    }

    #[test]
    fn few_lost_packets_are_not_significant() {
        // Lower bounds of the intervals: 0.12 %, 0.82 %, 1.1 %, 1.9 %.
        let above = [(2, 200), (5, 200), (6, 200), (40, 1_500)].map(|(lost, of)| is_share_above(0.01, lost, of, lost));
        assert_eq!(above, [false, false, true, true]);
        assert!(!is_share_above(0.01, 0, 200, 0) && !is_share_above(0.01, 0, 0, 0));
        assert!(is_share_above(0.01, 200, 200, 200));
    }

    #[test]
    fn one_burst_is_no_rate() {
        assert!(!is_share_above(0.01, 40, 400, 1));
        assert!(is_share_above(0.01, 40, 400, 40));
        assert!(is_share_above(0.01, 400, 4_000, 200));
    }

    #[test]
    fn large_numbers_are_fast_and_overflow_no_sum() {
        assert!(is_share_above(0.01, 90_000, 8_640_000, 90_000));
        assert!(!is_share_above(0.01, 86_500, 8_640_000, 86_500));
        assert!(is_share_above(0.01, 1_000, 1_000, u64::MAX));
    }
}
