//! The data about the line that other programs get: the metrics for Prometheus, and the messages for Home Assistant.
//! Pure: no sockets, no clock, no SQL.

pub mod broker;
pub mod home_assistant;
pub mod metrics;
pub mod snapshot;
