//! The benchmark: runs our engines and iperf3 in turn, and compares the costs of both with what was promised.
//! Development only; nothing of it is shipped. It starts the real programs (through `lab`) and judges their output; it
//! transfers no bytes itself.

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
