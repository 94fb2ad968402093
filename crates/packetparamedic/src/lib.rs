//! The command line of the appliance, and the HTTP API and web pages of its service. All of them use the library
//! `paramedic-appliance`.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod cli;
pub mod config;
pub mod network;
mod report_file;
mod web;
