//! What other programs are told about the line: the metrics for Prometheus, the messages for Home Assistant. Pure: no sockets, no
//! clock, no SQL.

pub mod broker;
pub mod home_assistant;
pub mod metrics;
pub mod snapshot;
