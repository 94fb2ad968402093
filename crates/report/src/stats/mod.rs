//! Numbers out of readings: goodput out of samples, latency out of probes. Pure: values in, values out.

mod latency;
mod sufficiency;
mod throughput;

pub use latency::{Grade, LatencySummary, RoundTrips, grade, latency, percentile};
pub use sufficiency::{Statement, is_enough, is_mostly_answered};
pub use throughput::{Throughput, throughput};
