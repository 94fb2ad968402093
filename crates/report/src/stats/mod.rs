//! Numbers out of readings: goodput out of samples, latency out of probes. Pure: values in, values out.

mod latency;
mod throughput;

pub use latency::{Grade, LatencySummary, RoundTrips, grade, latency, percentile};
pub use throughput::{Throughput, throughput};
