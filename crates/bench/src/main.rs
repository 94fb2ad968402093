//! The `bench` program: a thin door to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bench::cli::run()
}
