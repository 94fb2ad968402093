//! The `reflector` program. Calls the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    reflector::cli::run()
}
