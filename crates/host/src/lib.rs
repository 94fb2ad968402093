//! Code that both programs share and that belongs neither to a test nor to the protocol: the list of engines, the
//! configuration, opening a database, failed commands, the log, the text of metrics, unix sockets, the self-test, the
//! diagnosis and the version. This crate never prints.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod config;
pub mod database;
pub mod doctor;
pub mod engines;
pub mod failure;
pub mod log;
pub mod metrics;
pub mod runtime;
pub mod self_test;
#[cfg(test)]
mod test_files;
pub mod unix_socket;
pub mod version;
