//! The appliance as a library: the command line, the reflector's client, the runner, the history.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod failure;
pub mod history;
pub mod providers;
pub mod reflector_client;
pub mod runner;
pub mod targets;
pub mod waiting;
