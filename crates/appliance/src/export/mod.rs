//! What other programs are told about the line: the metrics for Prometheus, the messages for Home Assistant. Pure: no sockets, no
//! clock, no SQL.

pub mod metrics;
pub mod snapshot;
