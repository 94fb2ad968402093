//! The median of values, with a confidence interval that does not assume a certain distribution of the values.

/// The median of several values, with its confidence interval. All numbers but `count` are in the unit of the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The number of values from which the median was computed.
    pub count: usize,
    /// The median: the middle value, or the mean of the two middle values.
    pub value: f64,
    /// The lowest and the highest of the values.
    pub range: [f64; 2],
    /// The 95 % confidence interval of the median; absent with fewer than 6 values.
    pub interval: Option<[f64; 2]>,
}

impl Median {
    /// The lowest number of values for which reports state a median.
    pub const LEAST: usize = 5;

    /// The median of `values`; `None` with fewer than [`Median::LEAST`] values. Ignores values that are not finite.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values = values.into_iter().filter(|value| value.is_finite()).collect::<Vec<_>>();
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len();
        if count < Self::LEAST {
            return None;
        }
        let middle = f64::midpoint(*values.get((count - 1) / 2)?, *values.get(count / 2)?);
        let interval = rank(count).and_then(|rank| Some([*values.get(rank - 1)?, *values.get(count - rank)?]));
        Some(Self { count, value: middle, range: [*values.first()?, *values.last()?], interval })
    }

    /// The bounds of the confidence interval. If there is no interval, both bounds are the median itself.
    pub fn bounds(&self) -> [f64; 2] {
        self.interval.unwrap_or([self.value; 2])
    }
}

/// The largest rank `r` for which the true median lies between the r-th lowest and the r-th highest of `count`
/// independent values with a probability of at least 95 %. `None` if there is no such rank. The number of values below
/// the true median has a binomial distribution.
fn rank(count: usize) -> Option<usize> {
    if count > 200 {
        // The normal approximation. For fewer values, the sum below is exact and fast enough.
        let half = 1.96 * (count as f64).sqrt() / 2.0;
        return Some((count as f64 / 2.0 - half).floor().max(1.0) as usize);
    }
    let (mut term, mut sum, mut rank) = (0.5_f64.powi(i32::try_from(count).ok()?), 0.0, 0);
    for at in 0..count {
        sum += term;
        if sum > 0.025 {
            break;
        }
        rank = at + 1;
        term *= (count - at) as f64 / (at + 1) as f64;
    }
    (rank > 0).then_some(rank)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // https://www.itl.nist.gov/div898/software/dataplot/refman1/auxillar/signtest.htm and any table of the sign test.
        for (count, expected) in
            [(5, None), (6, Some(1)), (8, Some(1)), (9, Some(2)), (20, Some(6)), (50, Some(18)), (100, Some(40))]
        {
            assert_eq!(rank(count), expected, "{count}");
        }
        assert_eq!(rank(1000), Some(469));
    }

    #[test]
    fn too_few_values_have_no_median() {
        assert_eq!(Median::of([1.0, 2.0, 3.0, 4.0]), None);
        assert_eq!(Median::of([1.0, 2.0, 3.0, 4.0, f64::NAN]), None);
        let five = Median::of([3.0, 1.0, 2.0, 5.0, 4.0]).unwrap();
        assert_eq!((five.count, five.value, five.range, five.interval), (5, 3.0, [1.0, 5.0], None));
        let six = Median::of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]).unwrap();
        assert_eq!((six.value, six.interval), (3.5, Some([1.0, 6.0])));
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_median(values in proptest::collection::vec(0.0..1e12_f64, 5..400)) {
            let median = Median::of(values).unwrap();
            let [low, high] = median.bounds();
            prop_assert!(median.range[0] <= low && low <= median.value);
            prop_assert!(median.value <= high && high <= median.range[1]);
        }
    }
}
