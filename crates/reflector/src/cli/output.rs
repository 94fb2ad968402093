//! The only code of the reflector that prints: answers on stdout, everything else on stderr.

use std::io::Write;

use serde::Serialize;

use crate::failure::{Exit, Failure};

pub(super) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    print_line(&serde_json::to_string_pretty(value).map_err(|error| broken(&error))?);
    Ok(())
}

pub(super) fn print_json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    print_line(&serde_json::to_string(value).map_err(|error| broken(&error))?);
    Ok(())
}

/// Prints one line of an answer on stdout. Ends the program if stdout is closed.
pub(super) fn print_line(line: &str) {
    print_text(&format!("{line}\n"));
}

#[expect(clippy::exit, reason = "no program reads the rest of the answer")]
pub(super) fn print_text(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush());
    if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        std::process::exit(0);
    }
}

/// Prints a line for a human reader on stderr.
pub(super) fn note(line: &str) {
    anstream::eprintln!("{}", harmless(line));
}

/// Removes control characters except newlines, so that `text` cannot move the cursor of the terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

/// The failure of a command that received no valid answer from the reflector.
pub(super) fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "admin",
        "the reflector did not answer as expected",
        error,
        "see the log of the reflector; `reflector health` shows whether it runs",
    )
}
