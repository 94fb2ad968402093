//! What both programs need and is neither a test nor a word of the protocol: the list of engines, the configuration, how
//! a command fails, the log and the self-test. Never prints.

#![forbid(unsafe_code)]

pub mod config;
pub mod engines;
pub mod failure;
pub mod log;
pub mod self_test;
