//! The program behind `script/lab`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    truth::cli::run()
}
