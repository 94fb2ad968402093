//! The command line: one file per subcommand, and how everything is shown to people. Nothing is measured here.

pub mod lines;
pub mod output;
mod progress;
pub mod quantity;
pub mod report;
