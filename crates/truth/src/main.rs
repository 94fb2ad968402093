//! Starts the program `truth`, which `script/lab` builds and runs.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    truth::cli::run()
}
