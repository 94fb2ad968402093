//! The siege: attacks on both real programs, and faults that are injected into them. Each row of its table checks one
//! promise of safety. The code of each row is a file in `rows/`; code that several rows share is in this folder. The
//! siege is for development only and is not shipped.

#![forbid(unsafe_code)]

mod attack;
mod books;
mod cli;
mod measured;
mod observe;
mod page;
mod rows;
mod scale;
mod target;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
