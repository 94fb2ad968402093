//! Decides on requests for monitor sessions, and limits their number. Once granted, monitor sessions lease bytes, end
//! and are charged like tests.

use std::time::Duration;

use paramedic_link::message::{Denial, DenialReason};
use paramedic_link::{EndpointId, SessionId};

use super::decision::{Answer, LinkId, Now};
use super::limits::denial;
use super::session::HeldSession;
use super::{RETRY_FAULTED, Sessions};
use crate::event::AuditEvent;

/// While no further monitor session is allowed, an appliance is told to retry after this time.
const RETRY_MONITOR: Duration = Duration::from_secs(60);

impl<H> Sessions<H> {
    /// Decides on a request for a monitor session: reserves the session, or denies it. The request is never queued: it
    /// would have to wait until another device ends its monitor, which may never happen. `id` becomes the id of the
    /// session; it must be new.
    #[must_use]
    pub fn request_monitor(
        &mut self,
        link: LinkId,
        peer: EndpointId,
        id: SessionId,
        now: Now,
    ) -> (Answer, Vec<AuditEvent>) {
        self.pass_time(now);
        match self.reserve_monitor(link, peer, id, now) {
            Ok(answer) => (answer, Vec::new()),
            Err(denial) => {
                self.counts.note_denied(denial.reason);
                let event = AuditEvent::MonitorDenied { peer, reason: denial.reason };
                (Answer::Denied(denial), vec![event])
            }
        }
    }

    fn reserve_monitor(&mut self, link: LinkId, peer: EndpointId, id: SessionId, now: Now) -> Result<Answer, Denial> {
        self.check_link(link)?;
        self.check_open()?;
        let too_many = |detail: String| denial(DenialReason::TooManyMonitors, &detail, Some(RETRY_MONITOR));
        let of_peer = self.monitors_with_ids().filter(|(_, held)| held.peer == peer).count();
        let limit = self.limits.max_monitors_per_peer;
        if of_peer >= limit {
            return Err(too_many(format!("limit of {limit} monitor sessions per device reached")));
        }
        let limit = self.limits.max_monitors;
        if self.monitors_with_ids().count() >= limit {
            return Err(too_many(format!("limit of {limit} monitor sessions reached")));
        }
        self.check_bytes(peer, now)?;
        if self.held.contains_key(&id) {
            return Err(denial(DenialReason::Faulted, "the session's id is taken", Some(RETRY_FAULTED)));
        }
        let session = HeldSession::monitor(link, peer, now.mono);
        let reservation = session.reservation(id);
        self.held.insert(id, session);
        self.changed = true;
        Ok(Answer::Reserved(reservation))
    }

    pub(super) fn monitors_with_ids(&self) -> impl Iterator<Item = (SessionId, &HeldSession<H>)> {
        self.held.iter().filter(|(_, held)| held.is_monitor()).map(|(id, held)| (*id, held))
    }
}
