//! The limits that the operator sets, and the denial of requests that exceed them. What peers have used is not checked
//! here.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use paramedic_link::PeerText;
use paramedic_link::message::{Denial, DenialReason};
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};

use super::decision::millis;
use crate::descriptors;

/// How much longer than its duration a phase may take: to open its streams, and to drain bytes in flight.
const PHASE_ALLOWANCE: Duration = Duration::from_secs(6);
/// How much longer than its phases a session may take: to open, for its first and last messages, and for a slow disk.
const SESSION_ALLOWANCE: Duration = Duration::from_secs(15);
/// How much longer than its duration a phase usually takes. Used for the expected wait in the queue.
const USUAL_PHASE_OVERHEAD: Duration = Duration::from_secs(1);

/// The limits that the operator sets.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The number of tests that may run at once.
    pub max_concurrent_tests: u32,
    /// The longest duration of a session: all its phases together.
    pub max_test_duration: Duration,
    /// The number of streams that a session may have in each direction.
    pub max_streams: u16,
    /// The number of tests that one peer may start within any hour.
    pub max_tests_per_hour: u32,
    /// The payload bytes that may be charged to one peer on one UTC day.
    pub max_bytes_per_day: u64,
    /// The payload bytes that may be charged to all peers together on one UTC day.
    pub max_bytes_per_day_total: u64,
    /// The number of requests that may be queued at once.
    pub max_queue: usize,
    /// The number of requests of one peer that may be queued at once, over all its links.
    pub max_queue_per_peer: usize,
    /// The number of monitor sessions that may run at once.
    pub max_monitors: usize,
    /// The number of monitor sessions of one peer that may run at once, over all its links.
    pub max_monitors_per_peer: usize,
    /// The number of file descriptors that all sessions together may use.
    pub descriptors: usize,
    /// The ports for direct sessions; `None` if direct sessions are not offered.
    pub data_ports: Option<RangeInclusive<u16>>,
    /// The data modes that are offered.
    pub data_modes: Vec<DataMode>,
    /// The engines that are offered.
    pub engines: Vec<EngineId>,
    /// The data modes that each engine supports. An engine without an entry supports all of them.
    pub engine_modes: BTreeMap<EngineId, Vec<DataMode>>,
}

impl Default for Limits {
    /// Limits that offer and allow nothing. The configuration has the defaults of the settings; only limits without a
    /// setting get their value here.
    fn default() -> Self {
        Self {
            max_concurrent_tests: 0,
            max_test_duration: Duration::ZERO,
            max_streams: 0,
            max_tests_per_hour: 0,
            max_bytes_per_day: 0,
            max_bytes_per_day_total: 0,
            max_queue: 0,
            // An appliance needs one for its schedule, and a few more for manual tests.
            max_queue_per_peer: 4,
            max_monitors: 0,
            // Enough for a few programs that share a key, and for dead links that are not detected yet.
            max_monitors_per_peer: 4,
            // The program that starts the server sets the limit of the host.
            descriptors: usize::MAX,
            data_ports: None,
            data_modes: Vec::new(),
            engines: Vec::new(),
            engine_modes: BTreeMap::new(),
        }
    }
}

impl Limits {
    /// Denies a request that exceeds a limit or asks for something that is not offered, whatever the peer has used so
    /// far.
    pub(super) fn check(&self, spec: &TestSpec) -> Result<(), Denial> {
        let refuse = |reason, detail: String| Err(denial(reason, &detail, None));
        if let Err(bad) = spec.check() {
            return refuse(DenialReason::BadRequest, bad.to_string());
        }
        if !self.engines.contains(&spec.engine) {
            let offered = list(&self.engines);
            return refuse(
                DenialReason::EngineNotOffered,
                format!("engine {} is not offered here; offered: {offered}", spec.engine),
            );
        }
        let engine_takes = |mode| self.engine_modes.get(&spec.engine).is_none_or(|modes| modes.contains(&mode));
        let has_ports = self.data_ports.as_ref().is_some_and(|ports| !ports.is_empty());
        let is_offered = |mode: DataMode| {
            self.data_modes.contains(&mode)
                && engine_takes(mode)
                && match mode {
                    DataMode::Tunneled => true,
                    DataMode::DirectEphemeral => has_ports,
                    DataMode::Unknown => false,
                }
        };
        if !is_offered(spec.data_mode) {
            let offered = self.data_modes.iter().copied().filter(|mode| is_offered(*mode)).collect::<Vec<_>>();
            let (mode, engine) = (spec.data_mode, &spec.engine);
            let detail = format!("data mode {mode} is not offered here with {engine}; offered: {}", list(&offered));
            return refuse(DenialReason::ModeNotOffered, detail);
        }
        let engine = paramedic_host::engines::find(spec.engine.as_str());
        if let Some(not_done) = engine.and_then(|engine| engine.unsupported(spec)) {
            return refuse(DenialReason::BadRequest, not_done.to_owned());
        }
        if spec.streams > self.max_streams {
            let detail = format!("{} streams requested, limit {}", spec.streams, self.max_streams);
            return refuse(DenialReason::TooManyStreams, detail);
        }
        let (needed, allowed) = (descriptors::of_session(spec), self.descriptors);
        if needed > allowed {
            let streams = spec.streams;
            let detail = format!(
                "{streams} streams need {needed} open files, this reflector's host allows {allowed} for sessions (LimitNOFILE)"
            );
            return refuse(DenialReason::TooManyStreams, detail);
        }
        if spec.duration() > self.max_test_duration {
            let detail = format!("{} requested, limit {}", span(spec.duration()), span(self.max_test_duration));
            return refuse(DenialReason::TooLong, detail);
        }
        Ok(())
    }
}

/// The longest time that a session with this test may last, counted from its reservation.
pub(super) fn longest(spec: &TestSpec) -> Duration {
    spec.duration() + allowance(PHASE_ALLOWANCE, spec) + SESSION_ALLOWANCE
}

/// How long a session with this test usually lasts.
pub(super) fn usual(spec: &TestSpec) -> Duration {
    spec.duration() + allowance(USUAL_PHASE_OVERHEAD, spec)
}

fn allowance(each: Duration, spec: &TestSpec) -> Duration {
    // There are at most `TestSpec::MAX_PHASES` phases, which is checked first.
    each.saturating_mul(u32::try_from(spec.phases.len()).unwrap_or(u32::MAX))
}

/// Builds a denial with this reason and text. `retry_after` is the time after which the appliance may try again; `None`
/// if no time is known.
pub(super) fn denial(reason: DenialReason, detail: &str, retry_after: Option<Duration>) -> Denial {
    Denial { reason, detail: PeerText::new(detail), retry_after_ms: retry_after.map(millis) }
}

fn list(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Prints a duration for a human reader: `2 min`, `1 min 30 s`, `500 ms`. Rounds down to whole seconds from 1 s on.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{} ms", duration.as_millis());
    }
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n} {unit}")).collect::<Vec<_>>().join(" ")
}

/// Prints a number of bytes for a human reader, in SI units: `500 GB`, `1.5 TB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let at = (1..units.len()).rev().find(|at| count >= 1000u64.pow(*at as u32)).unwrap_or(0);
    let unit = 1000u64.pow(at as u32);
    match count % unit * 10 / unit {
        0 => format!("{} {}", count / unit, units[at]),
        tenth => format!("{}.{tenth} {}", count / unit, units[at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_printed_for_users() {
        assert_eq!(span(Duration::from_secs(600)), "10 min");
        assert_eq!(span(Duration::from_secs(3690)), "1 h 1 min 30 s");
        assert_eq!(span(Duration::from_millis(500)), "500 ms");
        assert_eq!(bytes(20_000_000_000_000), "20 TB");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
    }
}
