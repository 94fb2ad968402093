//! One session, and when it must end. Other modules manage slots, ports and quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use paramedic_link::message::{END_AFTER_SILENCE, END_MONITOR_AFTER_SILENCE, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use paramedic_link::{EndpointId, SessionId};

use super::decision::{LinkId, MonitorStatus, Reservation, SessionPurpose, SessionStatus, millis};
use super::limits;

/// How often the end of a session is reported again until it is torn down.
const END_REPEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The longest time from the grant of a session to its first phase. It is short, because other requests wait for the
/// slot.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// One session, from its reservation until its accounts are settled.
#[derive(Debug)]
pub(super) struct HeldSession<H> {
    pub(super) purpose: SessionPurpose,
    pub(super) link: LinkId,
    pub(super) peer: EndpointId,
    pub(super) spec: TestSpec,
    pub(super) port: Option<u16>,
    /// The ports that were tried and that other programs use.
    pub(super) tried: BTreeSet<u16>,
    pub(super) reserved_at: Duration,
    pub(super) deadline: Duration,
    pub(super) expected_end: Duration,
    /// Whether all resources are open. From then on the session is granted, and ends only through `ended`.
    pub(super) opened: bool,
    /// The server's handle of the session. It is set while the session runs: from its recorded grant until its teardown
    /// begins.
    pub(super) handle: Option<H>,
    /// When to check the session for silence. Only the server knows when the session last received a message.
    pub(super) silence_check_at: Duration,
    /// The latest time for the first phase to begin. `None` before the session is opened, and once the phase has begun.
    pub(super) start_by: Option<Duration>,
    /// The bytes that are leased on each day.
    pub(super) leased: BTreeMap<u32, u64>,
    pub(super) ending: Option<PendingEnd>,
    /// Whether the session counts for the limit of tests per hour.
    pub(super) counts_as_test: bool,
    /// Whether the streams of a phase with load arrived.
    pub(super) had_streams: bool,
}

#[derive(Debug)]
pub(super) struct PendingEnd {
    pub(super) reason: EndReason,
    /// When the end of the session was last reported to the server.
    pub(super) reported_at: Option<Duration>,
}

impl<H> HeldSession<H> {
    pub(super) fn new(link: LinkId, peer: EndpointId, spec: TestSpec, port: Option<u16>, mono: Duration) -> Self {
        Self {
            purpose: SessionPurpose::Test,
            link,
            peer,
            port,
            tried: BTreeSet::new(),
            reserved_at: mono,
            deadline: mono.saturating_add(limits::longest(&spec)),
            expected_end: mono.saturating_add(limits::usual(&spec)),
            spec,
            opened: false,
            handle: None,
            silence_check_at: mono.saturating_add(END_AFTER_SILENCE),
            start_by: None,
            leased: BTreeMap::new(),
            ending: None,
            counts_as_test: true,
            had_streams: false,
        }
    }

    /// A monitor session, which has no deadline.
    pub(super) fn monitor(link: LinkId, peer: EndpointId, mono: Duration) -> Self {
        Self {
            purpose: SessionPurpose::Monitor,
            deadline: Duration::MAX,
            expected_end: Duration::MAX,
            counts_as_test: false,
            ..Self::new(link, peer, no_phases(), None, mono)
        }
    }

    pub(super) fn is_monitor(&self) -> bool {
        self.purpose == SessionPurpose::Monitor
    }

    /// How long the reflector may receive nothing from the appliance before the session ends.
    pub(super) fn silence_limit(&self) -> Duration {
        match self.purpose {
            SessionPurpose::Test => END_AFTER_SILENCE,
            SessionPurpose::Monitor => END_MONITOR_AFTER_SILENCE,
        }
    }

    pub(super) fn reservation(&self, session: SessionId) -> Reservation {
        Reservation {
            purpose: self.purpose,
            session,
            link: self.link,
            peer: self.peer,
            spec: self.spec.clone(),
            port: self.port,
            expires_in: limits::longest(&self.spec),
            counts_as_test: self.counts_as_test,
        }
    }

    /// The reason why the session must end, if its end must be reported to the server now. `None` before the session is
    /// opened: until then the server still opens its resources, and the appliance has no answer yet.
    pub(super) fn end_if_due(&mut self, mono: Duration, last_heard: &dyn Fn(&H) -> Duration) -> Option<EndReason> {
        if self.next_deadline()? > mono {
            return None;
        }
        let because = if self.deadline <= mono {
            EndReason::Deadline
        } else if self.start_by.is_some_and(|start_by| start_by <= mono) {
            EndReason::NotStarted
        } else {
            EndReason::Silence
        };
        if self.ending.is_none() && because == EndReason::Silence {
            let limit = self.silence_limit();
            let silent_at = self.handle.as_ref().map(|handle| last_heard(handle).saturating_add(limit));
            if let Some(later) = silent_at.filter(|at| *at > mono) {
                self.silence_check_at = later;
                return None;
            }
        }
        let ending = self.ending.get_or_insert(PendingEnd { reason: because, reported_at: None });
        ending.reported_at = Some(mono);
        Some(ending.reason)
    }

    /// When [`HeldSession::end_if_due`] must be called next.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.opened.then(|| match &self.ending {
            None => {
                let deadline = self.deadline.min(self.silence_check_at);
                self.start_by.map_or(deadline, |start_by| deadline.min(start_by))
            }
            Some(PendingEnd { reported_at: Some(at), .. }) => at.saturating_add(END_REPEAT_INTERVAL),
            Some(PendingEnd { reported_at: None, .. }) => Duration::ZERO,
        })
    }

    pub(super) fn monitor_status(&self, session: SessionId, mono: Duration) -> MonitorStatus {
        MonitorStatus {
            session,
            peer: self.peer,
            elapsed_ms: millis(mono.saturating_sub(self.reserved_at)),
            leased_bytes: self.leased_bytes(),
        }
    }

    fn leased_bytes(&self) -> u64 {
        self.leased.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    pub(super) fn status(&self, session: SessionId, mono: Duration) -> SessionStatus {
        SessionStatus {
            session,
            peer: self.peer,
            engine: self.spec.engine.clone(),
            data_mode: self.spec.data_mode,
            port: self.port,
            elapsed_ms: millis(mono.saturating_sub(self.reserved_at)),
            expires_in_ms: millis(self.deadline.saturating_sub(mono)),
            leased_bytes: self.leased_bytes(),
        }
    }
}

/// The spec of a monitor session. It has no phases, so no phase can start; its probes use the port of the link.
fn no_phases() -> TestSpec {
    // The name is valid: it is that of an engine without load.
    let engine = EngineId::try_from("echo").unwrap_or_else(|_| unreachable!("a valid name"));
    TestSpec::new(engine, DataMode::Tunneled, Vec::new(), 1)
}
