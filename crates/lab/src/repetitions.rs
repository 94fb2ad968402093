//! Settings of the tests that inject a cause which limits the rate: how often a test repeats its measurement, and where
//! it records the causes that the results name.

use std::io::Write;

/// The value of the environment variable `LIMIT_REPETITIONS`: how often a test repeats its measurement; 1 if it is not
/// set.
pub fn limit_repetitions() -> usize {
    std::env::var("LIMIT_REPETITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Appends a line to the file that the environment variable `LIMIT_RECORD` names; does nothing if it is not set. The
/// line has the injected cause and the end where it was injected, the measured direction, and the cause that the result
/// names. `script/limits` counts the lines.
pub fn record_limit(injected: &str, direction: &str, named: &str) {
    let Some(path) = std::env::var_os("LIMIT_RECORD") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{injected}|{direction}|{named}"));
    written.expect("the file of LIMIT_RECORD can be written");
}
