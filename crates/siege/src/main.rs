//! The siege: attacks and faults against both real programs, and what each promise of safety is worth. Development only;
//! nothing of it ships. A row of the table is a file in `rows/`; what several rows share lives beside them.

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
