//! How often a test repeats its measurement: once in the normal test run, more often to count the share of right
//! answers.

/// The value of the environment variable `LIMIT_REPETITIONS`; 1 if it is not set.
pub fn limit_repetitions() -> usize {
    std::env::var("LIMIT_REPETITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
