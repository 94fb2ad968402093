//! Statistics of many pairs: median, range, and the confidence interval of the mean ratio. Pure.

use serde::{Deserialize, Serialize};

/// The median and the range of several values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The median of the values.
    pub(crate) median: f64,
    /// The lowest value.
    pub(crate) lowest: f64,
    /// The highest value.
    pub(crate) highest: f64,
}

/// Statistics of the ratios between two sides, one ratio for each pair of runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// The median and the range of the ratios.
    pub(crate) spread: Spread,
    /// The geometric mean of the ratios.
    pub(crate) mean: f64,
    /// The 95 % confidence interval of the geometric mean; absent for a single pair.
    pub(crate) ci95: Option<(f64, f64)>,
}

/// The median and the range of `readings`; `None` if there are none, or if one of them is infinite or not a number.
pub(crate) fn spread(readings: &[f64]) -> Option<Spread> {
    if readings.is_empty() || readings.iter().any(|reading| !reading.is_finite()) {
        return None;
    }
    let mut sorted = readings.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
    Some(Spread { median, lowest: sorted[0], highest: sorted[sorted.len() - 1] })
}

/// The statistics of our value divided by theirs. Each element of `pairs` is `(theirs, ours)`. `None` if there are no
/// pairs, or if a value is not above zero.
pub(crate) fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    if pairs.iter().any(|(theirs, ours)| !(*theirs > 0.0 && *ours > 0.0)) {
        return None;
    }
    let ratios = pairs.iter().map(|(theirs, ours)| ours / theirs).collect::<Vec<_>>();
    let spread = spread(&ratios)?;
    // Use the logarithms of the ratios, which are symmetric: twice as fast is as far from equal as half as fast.
    let logarithms = ratios.iter().map(|ratio| ratio.ln()).collect::<Vec<_>>();
    let n = logarithms.len() as f64;
    let mean = logarithms.iter().sum::<f64>() / n;
    let ci95 = student(logarithms.len() - 1).map(|t| {
        let variance = logarithms.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = t * (variance / n).sqrt();
        ((mean - half).exp(), (mean + half).exp())
    });
    Some(Ratio { spread, mean: mean.exp(), ci95 })
}

/// The two-sided 95 % quantile of Student's t distribution for this many degrees of freedom; `None` for 0. Above 30
/// degrees it returns the last value of the table, which is slightly too large.
fn student(degrees: usize) -> Option<f64> {
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    Some(T[degrees.checked_sub(1)?.min(T.len() - 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one_or_lies_between_the_middle_two() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, lowest: 1.0, highest: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, lowest: 1.0, highest: 4.0 }));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn a_mean_of_ratios_does_not_care_which_side_is_on_top() {
        let pairs = [(1.0, 2.0), (1.0, 4.0), (2.0, 4.0), (3.0, 9.0)];
        let turned = pairs.map(|(theirs, ours)| (ours, theirs));
        let (ours, theirs) = (ratio(&pairs).unwrap(), ratio(&turned).unwrap());
        assert!((ours.mean * theirs.mean - 1.0).abs() < 1e-12);
        let ((low, high), (low_turned, high_turned)) = (ours.ci95.unwrap(), theirs.ci95.unwrap());
        assert!((low * high_turned - 1.0).abs() < 1e-12 && (high * low_turned - 1.0).abs() < 1e-12);
        assert!(low < ours.mean && ours.mean < high);
    }

    #[test]
    fn an_interval_is_that_of_student() {
        // The logarithms are 0 and 2: mean 1, standard error 1, one degree of freedom.
        let found = ratio(&[(1.0, 1.0), (1.0, 2.0_f64.exp())]).unwrap();
        assert!((found.mean.ln() - 1.0).abs() < 1e-12);
        let (low, high) = found.ci95.unwrap();
        assert!((low.ln() - (1.0 - 12.706)).abs() < 1e-9 && (high.ln() - (1.0 + 12.706)).abs() < 1e-9);
    }

    #[test]
    fn equal_pairs_leave_no_doubt_and_a_single_one_leaves_all() {
        let (low, high) = ratio(&[(2.0, 3.0); 10]).unwrap().ci95.unwrap();
        assert!((low - 1.5).abs() < 1e-12 && (high - 1.5).abs() < 1e-12);
        assert_eq!(ratio(&[(2.0, 3.0)]).unwrap().ci95, None);
        assert_eq!(ratio(&[]), None);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert_eq!(ratio(&[(0.0, 1.0)]), None);
        assert_eq!(ratio(&[(1.0, 0.0)]), None);
        assert_eq!(ratio(&[(f64::NAN, 1.0)]), None);
    }

    #[test]
    fn the_table_of_student_falls() {
        let values = (1..40).filter_map(student).collect::<Vec<_>>();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        assert_eq!(student(0), None);
    }
}
