//! Statistics of samples and probes: goodput and latency. Pure: takes values and returns values; no I/O, no clock.

mod byte_intervals;
mod latency;
mod mean_interval;
mod one_way;
mod path_change;
mod processor;
mod proportion;
mod stability;
mod startup;
mod steadiness;
mod sufficiency;
mod throughput;

pub use latency::{Grade, LatencySummary, LossPeriods, RoundTrips, grade, latency, percentile, round_trips_per_minute};
pub use mean_interval::{Confidence, LEAST_MEASURED, LEAST_STEADY};
pub use one_way::{ClockFit, ClockJump, DelaySpread, OneWayDelay, QueueEstimate, StandingQueue, clock_fit, clock_jump};
pub use path_change::PathChange;
pub use processor::{ProcessorLimit, processor_limit};
pub use proportion::is_share_above;
pub use stability::{LOOKS, Unstable, check_latency, check_rate};
pub use steadiness::{are_level, begin_of_thirds, is_steady, thirds};
pub use sufficiency::{Statement, is_enough, is_mostly_answered};
pub use throughput::{Throughput, throughput, throughput_with};
