//! The appliance's end of `echo`: sends probes on an absolute schedule, whatever comes back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::admission::SessionKeys;

use super::probes::{Probes, Transport};
use crate::data_stream::DataStream;
use crate::tether::Tether;

/// What a [`Prober`] works with.
pub struct ProbeOrder {
    /// Where the probes go, over UDP.
    pub target: SocketAddr,
    /// What they are proven with.
    pub keys: Arc<SessionKeys>,
    /// The distance between two of them.
    pub interval: Duration,
    /// What ends it.
    pub tether: Arc<Tether>,
    /// Opens the data connection that probes take where UDP does not come back.
    pub fall_back: Box<dyn FnOnce() -> io::Result<DataStream> + Send>,
    /// The address to send from.
    pub local: Option<IpAddr>,
}

/// Probes a path until it is finished or dropped.
pub struct Prober(());

impl Prober {
    /// Starts to probe.
    pub fn start(_order: ProbeOrder) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits until it is known what the probes take.
    pub fn ready(&self) -> io::Result<Transport> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        Duration::ZERO
    }

    /// The latest round trip.
    pub fn recent(&self) -> Option<Duration> {
        None
    }

    /// Stops, waits at most a second for stragglers, and says what was seen.
    pub fn finish(self) -> Probes {
        Probes { transport: None, duplicates: 0, skipped: 0, book: super::probes::Book::new(0, 1) }
    }
}
