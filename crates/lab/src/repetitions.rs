//! Tests that inject what limits a rate: how often they repeat the measurement, and where they record the answers.

use std::io::Write;

/// The value of the environment variable `LIMIT_REPETITIONS`: how often a test repeats its measurement; 1 if it is not
/// set.
pub fn limit_repetitions() -> usize {
    std::env::var("LIMIT_REPETITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Appends an answer to the file that the environment variable `LIMIT_RECORD` names, if it is set: the injected cause
/// with the end at which it was injected, the measured direction, and the cause that the result names. `script/limits`
/// counts the lines.
pub fn record_limit(injected: &str, direction: &str, named: &str) {
    let Some(path) = std::env::var_os("LIMIT_RECORD") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{injected}|{direction}|{named}"));
    written.expect("the file of LIMIT_RECORD can be written");
}
