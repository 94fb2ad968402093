//! How often a test repeats what it measures: once in the gate, more often where the share of right answers is counted.

/// The number in the environment variable `LIMIT_REPETITIONS`; 1 without it.
pub fn limit_repetitions() -> usize {
    std::env::var("LIMIT_REPETITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
