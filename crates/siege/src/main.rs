//! The siege: attacks and faults against both real programs that check each promise of safety. Development only; not
//! shipped. Each row of the table is a file in `rows/`; code that several rows share is in this folder.

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
