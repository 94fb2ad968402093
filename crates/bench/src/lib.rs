//! The benchmark: runs our engines and iperf3 in turn, compares the rates and costs of both, and checks the promises
//! about them. It is for development only and is not shipped. It starts the real programs through the crate `lab` and
//! evaluates their output.

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
