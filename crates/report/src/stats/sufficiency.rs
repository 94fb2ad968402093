//! How many samples each statement about latency needs. All grades, percentiles, thresholds, sentences, lists and
//! progress displays use these limits. Pure: no I/O, no clock.

/// A statement about the round trips of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The median of the round trips.
    P50,
    /// The 90th percentile of the round trips.
    P90,
    /// The 95th percentile of the round trips.
    P95,
    /// The 99th percentile of the round trips.
    P99,
    /// The 99.9th percentile of the round trips.
    P999,
    /// An assessment of the median: a grade, a comparison with a threshold, or a sentence. An assessment is about all
    /// probes of the phase, so at least half of the probes must have been answered.
    Assessment,
}

impl Statement {
    /// The number of round trips that the statement needs: with so many, at least two lie beyond its percentile.
    pub fn least_samples(self) -> u64 {
        match self {
            Self::P50 | Self::Assessment => 20,
            Self::P90 => 50,
            Self::P95 => 100,
            Self::P99 => 200,
            Self::P999 => 2_000,
        }
    }
}

/// Whether `received` round trips of `sent` probes are enough for `statement`.
pub fn is_enough(statement: Statement, received: u64, sent: u64) -> bool {
    let is_answered = statement != Statement::Assessment || is_mostly_answered(received, sent);
    received >= statement.least_samples() && is_answered
}

/// Whether at least half of the probes were answered. If not, the answered probes are not representative.
pub fn is_mostly_answered(received: u64, sent: u64) -> bool {
    received.saturating_mul(2) >= sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_statement_has_its_least_number_of_samples() {
        let least = [
            (Statement::P50, 20),
            (Statement::P90, 50),
            (Statement::P95, 100),
            (Statement::P99, 200),
            (Statement::P999, 2_000),
            (Statement::Assessment, 20),
        ];
        for (statement, least) in least {
            assert!(is_enough(statement, least, least) && !is_enough(statement, least - 1, least - 1), "{statement:?}");
        }
    }

    #[test]
    fn an_assessment_needs_half_of_the_probes() {
        assert!(is_enough(Statement::Assessment, 200, 400));
        assert!(!is_enough(Statement::Assessment, 199, 400));
        assert!(is_enough(Statement::P50, 199, 400), "the round trips themselves were measured");
        assert!(!is_enough(Statement::Assessment, 0, 0));
        assert!(is_enough(Statement::Assessment, u64::MAX, u64::MAX));
    }
}
