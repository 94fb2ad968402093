//! The program `bench`, which only calls the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bench::cli::run()
}
