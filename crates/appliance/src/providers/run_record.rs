//! The record of a run with any provider. However the run ends, the record builds the result: it adds the times, the
//! facts about this host and the latency probes.

#![expect(clippy::disallowed_methods, reason = "the shell that dates a run")]

use std::net::IpAddr;
use std::time::Instant;

use jiff::Timestamp;
use paramedic_engines::echo::pacing::IP_BYTES;
use paramedic_engines::echo::{self, PACKET_LEN, Probes};
use paramedic_engines::engine::PhaseProgress;
use paramedic_engines::host_facts;
use paramedic_link::measurement::{HostFacts, Sample};
use paramedic_link::test_spec::Direction;
use paramedic_report::document::ProbeTransport;
use paramedic_report::fold::{DataEnd, FoldOptions, ProbeLog, ResultBuilder, RunEnd, RunIdentity};
use uuid::Uuid;

use super::{Outcome, TestJob};
use crate::error::ApplianceError;
use crate::request::TestRequest;
use crate::schedule::line_load;
use crate::store::DirectModeFinding;

/// The record of one run of a test.
pub(super) struct RunRecord {
    /// Builds the result of the run.
    pub(super) result: ResultBuilder,
    /// The latency probes of all phases.
    pub(super) probes: Option<Probes>,
    /// What the run found out about direct mode at the reflector; `None` if nothing.
    pub(super) finding: Option<DirectModeFinding>,
    /// When the run began, by the monotonic clock.
    begun: Instant,
}

impl RunRecord {
    /// Starts the record of a run that begins now.
    pub(super) fn begin(job: &TestJob, provider: &str) -> Self {
        let run = RunIdentity {
            id: Uuid::now_v7(),
            provider: provider.to_owned(),
            engine: job.request.spec.engine.clone(),
            peer: job.request.peer.clone(),
            started_at: Timestamp::now(),
            appliance: job.key.as_ref().map(|key| key.id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let TestRequest { omit, intervals, budget_bytes, .. } = job.request;
        let until_stable = job.request.spec.may_stop;
        let options = FoldOptions { omit, intervals, budget_bytes, until_stable };
        let mut result = ResultBuilder::new(run, options);
        result.set_default_interface(default_interface());
        Self { result, probes: None, finding: None, begun: Instant::now() }
    }

    /// Ends the record. `end` is how the run ended. Returns the outcome: the measurements, and why the run is not
    /// complete.
    pub(super) fn conclude(self, job: &TestJob, end: Result<(), ApplianceError>) -> Outcome {
        let Self { mut result, probes, finding, begun } = self;
        let finished_at = Timestamp::now();
        let by_wall_clock_ms = finished_at.as_millisecond().saturating_sub(result.run().started_at.as_millisecond());
        let elapsed_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        result.set_wall_clock_moved(by_wall_clock_ms.saturating_sub(elapsed_ms));
        let empty = result.directions_without_payload();
        let transport = job.request.transport;
        let failure = match end {
            Ok(()) if !empty.is_empty() => Some(ApplianceError::NothingArrived { directions: empty, transport }),
            end => end.err(),
        };
        let end = match &failure {
            None => RunEnd::Complete,
            Some(ApplianceError::Interrupted) => RunEnd::Interrupted,
            Some(failure) => RunEnd::Failed((job.describe)(failure)),
        };
        let probes = probes.as_ref().map(|probes| ProbeLog {
            transport: probes.transport.map(|transport| match transport {
                echo::EchoTransport::Udp => ProbeTransport::Udp,
                echo::EchoTransport::Tcp => ProbeTransport::Tcp,
            }),
            duplicates: probes.duplicates,
            packet_bits: IP_BYTES * 8,
            bytes: probe_bytes(probes),
            within: Box::new(move |from, until| Box::new(probes.within(from, until))),
            skipped_within: Box::new(move |from, until| probes.skipped_within(from, until).collect()),
        });
        let mut outcome = Outcome { result: result.finish(finished_at, end, probes.as_ref()), failure, finding };
        if outcome.failure.is_none() && !outcome.result.has_measurements() {
            let nothing = ApplianceError::NothingMeasured;
            outcome.result.complete = false;
            outcome.result.error = Some((job.describe)(&nothing));
            outcome.failure = Some(nothing);
        }
        outcome
    }
}

/// The payload bytes of all latency probes that were sent.
pub(super) fn probe_bytes(probes: &Probes) -> u64 {
    probes.iter().count() as u64 * PACKET_LEN as u64
}

/// Converts a reading of an engine to the form that the result uses. `None` for the start of a phase and for the
/// kernel's record of a stream.
pub(super) fn reading(progress: PhaseProgress) -> Option<(DataEnd, Direction, Sample)> {
    match progress {
        PhaseProgress::Started | PhaseProgress::Detail(..) => None,
        PhaseProgress::Sent(direction, sample) => Some((DataEnd::Sender, direction, sample)),
        PhaseProgress::Received(direction, sample) => Some((DataEnd::Receiver, direction, sample)),
    }
}

/// The interface of the IPv4 default route of this host; `None` if there is no such route.
pub(crate) fn default_interface() -> Option<String> {
    let routes = host_facts::text("/proc/net/route")?;
    line_load::default_interface(&routes).map(str::to_owned)
}

/// The current facts about this host. `local` is the local address of the connection to the other end.
pub(super) fn own_facts(local: Option<IpAddr>) -> HostFacts {
    HostFacts { version: env!("CARGO_PKG_VERSION").into(), ..host_facts::read(local) }
}
