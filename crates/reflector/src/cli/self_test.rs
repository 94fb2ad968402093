//! `reflector self-test`: measures what the host can carry and prints the result. `paramedic-report` judges the
//! numbers.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use paramedic_host::runtime;
use paramedic_host::self_test::{self, Step};
use paramedic_report::quantity;
use paramedic_report::self_test::{FactRow, Role, SelfTest, fact_rows, rate_note, rate_rows};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{harmless, print_json, print_line};
use crate::failure::{Exit, Failure};

/// The width in characters of the column of labels in the printed result.
const LABEL: usize = 14;

/// Parses the duration of each measurement: `2`, `2s`, `500ms`. A number without a unit is in seconds, as in a speed
/// test.
pub(super) fn parse_each(text: &str) -> Result<Duration, String> {
    let each = quantity::parse_seconds(text).map_err(|error| error.to_string())?;
    self_test::check_each(each)
}

/// Runs the self-test and prints its result. Returns [`Exit::Failed`] if no rate could be measured; the result is
/// printed even then.
pub(super) fn run(each: Duration, json: bool) -> Result<Exit, Failure> {
    let test = run_until_interrupted(each, !json && std::io::stderr().is_terminal())?;
    if json {
        print_json(&test)?;
    } else {
        print(&test);
    }
    Ok(if test.rates.is_empty() { Exit::Failed } else { Exit::Done })
}

/// Runs the self-test on its own thread. Ctrl-C or SIGTERM ends the self-test without leaving files or processes
/// behind.
fn run_until_interrupted(each: Duration, with_progress: bool) -> Result<SelfTest, Failure> {
    let runtime = runtime::start(&mut tokio::runtime::Builder::new_current_thread(), 1).map_err(|e| broken(&e))?;
    let test = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| broken(&e))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| broken(&e))?;
        let scratch = self_test::scratch().ok();
        // Only some engines need a folder; they report an error if there is none.
        let work_in = scratch.as_ref().map_or_else(PathBuf::new, |scratch| scratch.path().to_owned());
        let report = move |step: &Step| {
            if with_progress {
                progress(Some(step));
            }
        };
        let test = tokio::task::spawn_blocking(move || self_test::run(Role::Reflector, each, &work_in, &report));
        tokio::select! {
            test = test => test.map(Some).map_err(|e| broken(&e)),
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
        }
    });
    if with_progress {
        progress(None);
    }
    // The measuring thread ends with the process.
    runtime.shutdown_background();
    test?.ok_or_else(|| {
        Failure::new(
            Exit::Interrupted,
            "interrupted",
            "the self-test has no result",
            "Ctrl-C or SIGTERM interrupted the self-test",
            "run the self-test again; with the default -t it takes less than a minute",
        )
    })
}

/// Overwrites the progress line on the terminal; `None` clears it.
fn progress(step: Option<&Step>) {
    let line = step.map(|step| harmless(&step.to_string())).unwrap_or_default();
    let mut stderr = anstream::stderr().lock();
    // A failure to write the progress line has no consequence.
    write!(stderr, "\r\u{1b}[K{line}").and_then(|()| stderr.flush()).ok();
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "self_test",
        "the self-test cannot run",
        error,
        "check the free memory and the thread limit of this machine",
    )
}

fn print(test: &SelfTest) {
    print_line(&test.verdict.text);
    print_line("");
    print_rows(&rate_rows(test));
    if let Some(note) = rate_note(test) {
        print_line(&note);
    }
    print_line("");
    print_rows(&fact_rows(test));
    for weak in &test.weak_points {
        print_line("");
        print_line(&format!("weak: {}\nbecause: {}\ntry: {}", weak.what, weak.because, weak.try_));
    }
}

fn print_rows(rows: &[FactRow]) {
    for row in rows {
        print_line(&format!("{:<LABEL$}{}", row.label.to_lowercase(), row.text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_is_seconds() {
        let read = ["2", "0.5", "500ms", "10s"].map(|text| parse_each(text).unwrap().as_millis());
        assert_eq!(read, [2000, 500, 500, 10_000]);
        for bad in ["", "-1", "0", "99ms", "11s", "1e300", "nan", "long"] {
            assert!(parse_each(bad).is_err(), "{bad}");
        }
    }
}
