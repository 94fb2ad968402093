//! The benchmark: our engines and iperf3 in turn, what both cost, and what was promised beside it. Development only;
//! nothing of it ships. It starts the real programs (through `lab`) and judges what they print; it moves no bytes itself.

#![forbid(unsafe_code)]

pub mod cli;

mod alone;
mod bed;
mod cells;
mod machine;
mod pairs;
mod pin;
mod process;
mod promises;
mod readings;
mod record;
mod render;
mod statistics;
