//! The siege: attacks and faults against both real programs. Each row of its table checks one promise of safety; its
//! code is a file in `rows/`, and code that several rows share is in this folder. Development only; not shipped.

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
