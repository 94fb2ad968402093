//! Numbers out of readings: goodput out of samples, latency out of probes. Pure: values in, values out.

mod latency;
mod throughput;

pub(crate) use latency::percentile;
pub use latency::{Grade, LatencySummary, RoundTrips, grade, latency};
pub use throughput::{Throughput, throughput};
