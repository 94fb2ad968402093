//! The `packetparamedic` program: a thin door to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    packetparamedic::cli::run()
}
