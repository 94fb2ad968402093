//! The appliance without its command line: the reflectors it knows, the providers of tests, one heavy test at a time, the
//! results it keeps. Never prints.

pub mod failure;
pub mod history;
pub mod providers;
pub mod reflector_client;
pub mod request;
pub mod runner;
pub mod targets;
pub mod waiting;
