//! Compares the results of network test programs with what an emulated link did to their packets. Development only; not
//! shipped.

#![forbid(unsafe_code)]

pub mod cells;
pub mod checks;
pub mod cli;
mod coverage;
mod cross_check;
mod early_ends;
mod interval;
mod observed;
mod page;
mod peer_output;
mod peers;
mod random_paths;
pub mod reading;
pub mod record;
pub mod run;
mod watched;

pub use observed::{LinkRecords, Observed};
