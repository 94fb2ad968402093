//! The `packetparamedic` program. Runs the command line that the library defines.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    packetparamedic::cli::run()
}
