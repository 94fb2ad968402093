//! The reflector as a library: decisions in `sessions`, `door` and `pairing` (pure), the world in `server`.

pub mod audit;
pub mod chatter;
pub mod cli;
pub mod config;
pub mod door;
pub mod event;
pub mod failure;
pub mod pairing;
pub mod refusals;
pub mod server;
pub mod sessions;
pub mod store;
