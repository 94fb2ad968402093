//! Monitors: what they probe and how often, how they count probes, and when an outage begins and ends. Pure: the time,
//! randomness and observations are arguments.

pub mod backoff;
pub mod dating;
pub mod default_route;
mod definition;
pub mod dns_query;
mod histogram;
pub mod host_changes;
pub mod http_url;
pub mod minute;
pub mod open_probes;
pub mod outage;
mod pause;
pub mod series;
pub mod totals;

pub use definition::{Monitor, MonitorError, MonitorTarget};
pub use histogram::{DamagedHistogram, LatencyHistogram};
pub use minute::ProbeTally;
pub use pause::PauseReason;
pub use totals::ProbeTotals;

#[cfg(test)]
pub(crate) mod simulation;
