//! The reflector as a library. `sessions`, `connection_limiter` and `pairing` make decisions without I/O; `server` has
//! the sockets, files and tasks.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod audit;
pub mod cli;
pub mod config;
pub mod connection_limiter;
pub mod descriptors;
pub mod duration_counts;
pub mod event;
pub mod event_throttle;
pub mod failure;
pub mod known_prefixes;
pub mod message_budget;
pub mod metrics;
pub mod pairing;
pub mod server;
pub mod sessions;
pub mod status;
pub mod store;
