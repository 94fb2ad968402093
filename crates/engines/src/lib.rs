//! The engines. Each engine loads or probes a path, and turns counts into measurements. This crate has both ends of
//! each engine: the reflector's and the appliance's. Blocking threads move the bytes, without an async runtime.

#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod bind;
pub mod clock;
pub mod data_listener;
pub mod data_stream;
pub mod dialer;
pub mod echo;
pub mod engine;
pub mod host_facts;
pub mod interface;
pub mod loopback;
pub mod memory;
pub mod metered_stream;
pub mod origin;
pub mod phase;
pub mod ping;
pub mod quota;
pub mod session_control;
pub mod socket;
pub mod sys;
pub mod tcp;
pub mod thread_limit;
pub mod udp;
pub mod udp_port;

mod byte_budget;

pub use engine::Engine;
pub use socket::check_congestion_control;
