//! Decides which requests for sessions are granted, queued or denied, and what sessions are charged. This is a state
//! machine without I/O: the caller passes in the time and new ids, and carries out the actions that the calls return.
//! Calls that decide also return the audit events of their decisions, in order.

mod counts;
mod decision;
mod fallback;
mod limits;
mod monitors;
#[cfg(test)]
mod orders;
mod ports;
mod queue;
mod quota;
mod recorded_use;
#[cfg(test)]
mod rules;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use paramedic_link::message::{Denial, DenialReason, EndReason};
use paramedic_link::test_spec::{DataMode, TestSpec};
use paramedic_link::{EndpointId, SessionId};

use crate::descriptors;
use crate::event::AuditEvent;
pub use counts::{LeaseCounts, SessionCounts};
use decision::millis;
pub use decision::{
    Answer, Lease, LinkId, MonitorStatus, Now, PastUsage, PeerStatus, QueueStatus, Reservation, SessionAccounts,
    SessionAction, SessionPurpose, SessionStatus, Snapshot,
};
use fallback::{EndedSession, Fallbacks};
use limits::denial;
pub use limits::{Limits, span};
use ports::Ports;
use queue::{Occupancy, Queue};
pub use quota::DAYS_KEPT;
pub use recorded_use::{RecordedUse, UseRecorder, charged_after_crash};
use session::{HeldSession, PendingEnd, START_TIMEOUT};

/// While the audit log or the database cannot be written, an appliance is told to retry after this time.
const RETRY_FAULTED: Duration = Duration::from_secs(5);
/// While other programs use every port, an appliance is told to retry after this time.
const RETRY_HELD: Duration = Duration::from_secs(60);

/// A lease takes at most 1/16 of the bytes that are left of the day's byte quota.
const PARTS_OF_THE_DAY: u64 = 16;
/// A lease of up to this size, in bytes, is allowed even if it exceeds the limit that [`PARTS_OF_THE_DAY`] sets.
const SMALL_LEASE: u64 = 16 << 20;

/// All sessions and requests of a reflector, and what peers have used of their quotas. No other code knows which
/// sessions exist. `H` is the server's handle of a running session.
#[derive(Debug)]
pub struct Sessions<H> {
    limits: Limits,
    ports: Ports,
    queue: Queue,
    fallbacks: Fallbacks,
    tests: quota::Tests,
    bytes: quota::ChargedBytes,
    /// The reserved and the running sessions. Each test among them holds a slot. There can be more tests than slots for
    /// a while, after [`Sessions::set_limits`] lowered the number of slots.
    held: BTreeMap<SessionId, HeldSession<H>>,
    counts: SessionCounts,
    draining: bool,
    faulted: bool,
    /// Whether something changed since the last `poll`, so that `poll` is due now.
    changed: bool,
}

impl<H> Sessions<H> {
    /// A state without sessions. `past` has what peers used before the server started.
    pub fn new(limits: Limits, past: PastUsage, now: Now) -> Self {
        let mut sessions = Self {
            ports: Ports::new(limits.data_ports.clone()),
            limits,
            queue: Queue::default(),
            fallbacks: Fallbacks::default(),
            tests: quota::Tests::new(past.tests),
            bytes: quota::ChargedBytes::new(past.bytes),
            held: BTreeMap::new(),
            counts: SessionCounts::default(),
            draining: false,
            faulted: false,
            changed: false,
        };
        sessions.pass_time(now);
        sessions
    }

    /// The limits that the operator set.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes the limits for later requests and leases. Running sessions continue, even if they exceed the new limits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.changed = true;
    }

    /// Decides on a request. Denies it if it exceeds a limit. If it can begin now, reserves everything that it needs.
    /// If it must wait, queues it, or denies it if `wait` is `false` or the queue is full. `id` becomes the id of a
    /// session that is reserved now; it must be new.
    #[must_use]
    pub fn request(
        &mut self,
        link: LinkId,
        peer: EndpointId,
        spec: TestSpec,
        wait: bool,
        id: SessionId,
        now: Now,
    ) -> (Answer, Vec<AuditEvent>) {
        let answer = self.answer(link, peer, spec, wait, id, now);
        self.with_event(peer, answer)
    }

    fn answer(
        &mut self,
        link: LinkId,
        peer: EndpointId,
        spec: TestSpec,
        wait: bool,
        id: SessionId,
        now: Now,
    ) -> Answer {
        self.pass_time(now);
        if let Err(denial) = self.check_link(link) {
            return Answer::Denied(denial);
        }
        let is_fallback = self.fallbacks.is_fallback(link, &spec, now.mono);
        if let Err(denial) = self.check(peer, &spec, is_fallback, now) {
            return Answer::Denied(denial);
        }
        // Queue it first: a request ahead of it that could begin now begins first.
        self.queue.push(link, peer, spec.clone(), is_fallback, now.mono);
        if self.ready_links().contains(&link) {
            self.queue.remove(link);
            return match self.reserve(link, peer, spec, is_fallback, id, now) {
                Ok(reservation) => {
                    self.counts.waits.note(Duration::ZERO);
                    Answer::Reserved(reservation)
                }
                Err(denial) => Answer::Denied(denial),
            };
        }
        let (place, expected_wait) = self.queue_position(link, now.mono);
        if let Some(denial) = self.queue_denial(peer, &spec, is_fallback, wait, expected_wait) {
            self.queue.remove(link);
            return Answer::Denied(denial);
        }
        if let Some(waiting) = self.queue.find(link) {
            waiting.note_update(place, expected_wait, now.mono);
        }
        self.changed = true;
        Answer::Queued { place, expected_wait }
    }

    /// Denies a request that this host cannot run, before anything is reserved for it.
    #[must_use]
    pub fn refuse(&mut self, peer: EndpointId, denial: Denial) -> (Answer, Vec<AuditEvent>) {
        self.with_event(peer, Answer::Denied(denial))
    }

    /// Records that another program uses the reserved port. Reserves another port of the range instead. Undoes the
    /// reservation if every other port is in use or was already tried for it. Call this only before
    /// [`Sessions::opened`].
    #[must_use]
    pub fn port_is_held(&mut self, session: SessionId, now: Now) -> (Answer, Vec<AuditEvent>) {
        let held = self.held.get_mut(&session).filter(|session| !session.opened);
        let Some((held, port)) = held.and_then(|held| held.port.map(|port| (held, port))) else {
            let gone = denial(DenialReason::Faulted, "the reservation is gone", Some(RETRY_FAULTED));
            return (Answer::Denied(gone), Vec::new());
        };
        self.changed = true;
        self.ports.give_back_held(port, now.mono);
        let peer = held.peer;
        let mut events = vec![AuditEvent::PortHeld { port, peer }];
        held.tried.insert(port);
        held.port = self.ports.take(&held.tried, now.mono);
        if held.port.is_some() {
            return (Answer::Reserved(held.reservation(session)), events);
        }
        self.take_back(session);
        let detail = "every port of the range is in use, or held by other programs on the reflector's host";
        let (answer, denied) =
            self.with_event(peer, Answer::Denied(denial(DenialReason::NoPort, detail, Some(RETRY_HELD))));
        events.extend(denied);
        (answer, events)
    }

    /// Records that the server has opened everything that was reserved. From now on the session is a grant, which the
    /// server must record and then send. Returns `false` if the reservation was taken back in the meantime: then the
    /// server must close everything that it opened.
    #[must_use]
    pub fn opened(&mut self, session: SessionId, now: Now) -> (bool, Vec<AuditEvent>) {
        let Some(held) = self.held.get_mut(&session) else { return (false, Vec::new()) };
        if held.opened {
            return (true, Vec::new());
        }
        held.opened = true;
        held.silence_check_at = now.mono.saturating_add(held.silence_limit());
        if held.is_monitor() {
            return (true, vec![AuditEvent::MonitorGranted { session, peer: held.peer }]);
        }
        held.start_by = Some(now.mono.saturating_add(START_TIMEOUT));
        let granted = AuditEvent::SessionGranted {
            session,
            peer: held.peer,
            engine: held.spec.engine.clone(),
            data_mode: held.spec.data_mode,
            port: held.port,
            expires_in_ms: millis(limits::longest(&held.spec)),
        };
        (true, vec![granted])
    }

    /// Records that the grant is on disk. From now on, [`Sessions::handle`] returns `handle` for the session.
    pub fn granted(&mut self, session: SessionId, handle: H) {
        if let Some(held) = self.held.get_mut(&session) {
            match held.purpose {
                SessionPurpose::Test => self.counts.note_granted(&held.spec.engine),
                SessionPurpose::Monitor => self.counts.monitors_granted += 1,
            }
            held.handle = Some(handle);
        }
    }

    /// The handle of a running session. `None` before it is granted, and once its teardown has begun.
    pub fn handle(&self, session: SessionId) -> Option<&H> {
        self.held.get(&session)?.handle.as_ref()
    }

    /// The handles of all running sessions.
    pub fn handles(&self) -> impl Iterator<Item = &H> {
        self.held.values().filter_map(|held| held.handle.as_ref())
    }

    /// The ids of all running sessions.
    pub fn running(&self) -> impl Iterator<Item = SessionId> {
        self.held.iter().filter(|(_, held)| held.handle.is_some()).map(|(id, _)| *id)
    }

    /// Takes a reservation back, because a resource could not be opened or the grant could not be recorded. Frees its
    /// slot and its port. The session no longer counts as a test.
    #[must_use]
    pub fn undo(&mut self, session: SessionId, now: Now) -> Vec<AuditEvent> {
        self.pass_time(now);
        self.undone(session).into_iter().collect()
    }

    /// Withdraws the request of the link: removes it from the queue, or takes its reservation back. A granted session
    /// continues.
    #[must_use]
    pub fn withdraw(&mut self, link: LinkId) -> Vec<AuditEvent> {
        if self.queue.remove(link).is_some() {
            self.changed = true;
        }
        let unopened = self.held.iter().find(|(_, held)| held.link == link && !held.opened).map(|(id, _)| *id);
        unopened.and_then(|session| self.undone(session)).into_iter().collect()
    }

    /// Records that the link closed: withdraws its request and ends its session.
    #[must_use]
    pub fn link_closed(&mut self, link: LinkId, now: Now) -> Vec<AuditEvent> {
        self.pass_time(now);
        let events = self.withdraw(link);
        self.fallbacks.forget(link);
        self.end_where(EndReason::LinkClosed, |held| held.link == link);
        events
    }

    /// Ends the sessions and drops the requests of a peer that was removed. What the peer used stays charged.
    pub fn peer_removed(&mut self, peer: EndpointId, now: Now) {
        self.pass_time(now);
        self.queue.remove_peer(peer);
        self.changed = true;
        self.end_where(EndReason::PeerRemoved, |held| held.peer == peer);
    }

    /// Makes the reflector grant no new sessions from now on. Running tests continue. Monitor sessions end, because
    /// they have no end of their own. The next `poll` denies queued requests.
    pub fn drain(&mut self) {
        self.draining = true;
        self.changed = true;
        self.end_where(EndReason::Shutdown, HeldSession::is_monitor);
    }

    /// Records whether the audit log or the database has a fault, so that it cannot be written. As long as `faulted` is
    /// set, no session is granted.
    pub fn set_faulted(&mut self, faulted: bool) {
        self.changed |= self.faulted != faulted;
        self.faulted = faulted;
    }

    /// Records that the first phase of the session began. From now on, the start timeout no longer ends the session.
    /// Its deadline and silence can still end it.
    pub fn started(&mut self, session: SessionId) {
        if let Some(held) = self.held.get_mut(&session) {
            held.start_by = None;
        }
    }

    /// Records that the streams of a phase with load arrived. This proves that the appliance can reach the session. So
    /// if the appliance repeats the test through the tunnel, the repetition counts as another test.
    pub fn streams_arrived(&mut self, session: SessionId) {
        if let Some(held) = self.held.get_mut(&session) {
            held.had_streams = true;
        }
    }

    /// Charges up to `wanted` more bytes to the session before they are moved. Charges less if little is left of the
    /// day's byte quota: other sessions may need bytes, and a crash may charge the whole lease. The bytes count for the
    /// day of the lease. Fails if the session may not lease bytes; the error is the reason with which to end the
    /// session.
    pub fn lease(&mut self, session: SessionId, wanted: u64, now: Now) -> Result<Lease, EndReason> {
        let day = now.day();
        // No bytes before the session is opened.
        let held = self.held.get_mut(&session).filter(|held| held.opened).ok_or(EndReason::Failed)?;
        if let Some(ending) = &held.ending {
            return Err(ending.reason);
        }
        let of_peer = self.limits.max_bytes_per_day.saturating_sub(self.bytes.of_peer(held.peer, day));
        let of_all = self.limits.max_bytes_per_day_total.saturating_sub(self.bytes.of_all(day));
        let left = of_peer.min(of_all);
        let bytes = wanted.clamp(1, (left / PARTS_OF_THE_DAY).max(SMALL_LEASE)).min(left);
        if bytes == 0 {
            self.counts.leases.refused += 1;
            return Err(EndReason::BytesPerDay);
        }
        self.counts.leases.granted += 1;
        self.bytes.charge(held.peer, day, bytes);
        let leased = held.leased.entry(day).or_default();
        *leased = leased.saturating_add(bytes);
        Ok(Lease { bytes, day })
    }

    /// Returns a lease that could not be written to disk. None of its bytes was moved.
    pub fn return_lease(&mut self, session: SessionId, lease: Lease) {
        if let Some(held) = self.held.get_mut(&session)
            && let Some(leased) = held.leased.get_mut(&lease.day)
        {
            *leased = leased.saturating_sub(lease.bytes);
            self.bytes.refund(held.peer, lease.day, lease.bytes);
            self.counts.leases.unwritten += 1;
        }
    }

    /// Begins the teardown of a session. If several causes come together, the first reason counts. The first caller
    /// gets the handle, tears the session down and calls [`Sessions::ended`]. Later callers get `None`.
    #[must_use]
    pub fn tear_down(&mut self, session: SessionId, reason: EndReason, now: Now) -> Option<H> {
        let held = self.held.get_mut(&session)?;
        held.ending.get_or_insert(PendingEnd { reason, reported_at: Some(now.mono) });
        held.handle.take()
    }

    /// Records that a session is torn down and has used `used_bytes`. Frees its slot and port, and refunds the leased
    /// bytes that it did not use. Returns what to charge; `None` if there is no such session, or if its end was already
    /// recorded.
    #[must_use]
    pub fn ended(
        &mut self,
        session: SessionId,
        used_bytes: u64,
        reason: EndReason,
        now: Now,
    ) -> (Option<SessionAccounts>, Vec<AuditEvent>) {
        self.pass_time(now);
        let Some(held) = self.held.remove(&session) else { return (None, Vec::new()) };
        self.changed = true;
        if let Some(port) = held.port {
            self.ports.give_back(port);
        }
        self.tests.settle(session);
        if held.counts_as_test {
            let ended = EndedSession { spec: held.spec.clone(), had_streams: held.had_streams };
            self.fallbacks.session_ended(held.link, ended, now.mono);
        }
        let bytes_by_day = self.settle(&held, used_bytes, now.day());
        let (peer, elapsed_ms) = (held.peer, millis(now.mono.saturating_sub(held.reserved_at)));
        let reason = held.ending.as_ref().map_or(reason, |ending| ending.reason);
        let ended = match held.purpose {
            SessionPurpose::Test => {
                self.counts.note_ended(&held.spec.engine, reason);
                AuditEvent::SessionEnded { session, peer, reason, bytes: used_bytes, elapsed_ms }
            }
            SessionPurpose::Monitor => {
                self.counts.note_monitor_ended(reason);
                AuditEvent::MonitorEnded { session, peer, reason, bytes: used_bytes, elapsed_ms }
            }
        };
        (Some(SessionAccounts { session, peer, bytes_by_day, reason }), vec![ended])
    }

    /// Returns the actions that are due now. `last_heard` returns the time, on the monotonic clock, at which a session
    /// last received something on any connection. It is only called if silence could end the session. `new_id` creates
    /// the ids of sessions, which must be new.
    #[must_use]
    pub fn poll(
        &mut self,
        now: Now,
        last_heard: &dyn Fn(&H) -> Duration,
        new_id: &mut dyn FnMut() -> SessionId,
    ) -> (Vec<SessionAction>, Vec<AuditEvent>) {
        self.pass_time(now);
        let mut actions = Vec::new();
        self.end_what_is_due(now.mono, last_heard, &mut actions);
        let events = self.serve_queue(now, new_id, &mut actions);
        self.queue_updates(now.mono, &mut actions);
        self.changed = false;
        (actions, events)
    }

    /// When `poll` is due, on the monotonic clock; a time in the past means now. `None` if `poll` is due only after a
    /// call of another method.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.changed {
            return Some(Duration::ZERO);
        }
        self.held.values().filter_map(HeldSession::next_deadline).min()
    }

    /// The present state of all sessions.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let day = now.day();
        let peers = self.tests.peers().chain(self.bytes.peers(day)).collect::<BTreeSet<_>>();
        let order = self.queue.in_order();
        let waits = queue::expected_waits(&order, &self.occupied(now.mono));
        Snapshot {
            slots: self.limits.max_concurrent_tests,
            draining: self.draining,
            faulted: self.faulted,
            sessions: self.tests_with_ids().map(|(id, held)| held.status(id, now.mono)).collect(),
            monitors: self.monitors_with_ids().map(|(id, held)| held.monitor_status(id, now.mono)).collect(),
            max_monitors: self.limits.max_monitors,
            queue: (1..)
                .zip(order.iter().zip(waits))
                .map(|(place, (waiting, wait))| QueueStatus {
                    peer: waiting.peer,
                    place,
                    expected_wait_ms: millis(wait),
                    waited_ms: millis(now.mono.saturating_sub(waiting.since)),
                })
                .collect(),
            peers: peers
                .into_iter()
                .map(|peer| PeerStatus {
                    peer,
                    tests_this_hour: self.tests.count(peer),
                    bytes_today: self.bytes.of_peer(peer, day),
                })
                .collect(),
            bytes_today: self.bytes.of_all(day),
            held_ports: self.ports.suspects(now.mono),
            counts: self.counts.clone(),
        }
    }

    fn pass_time(&mut self, now: Now) {
        self.tests.pass_time(now.unix_ms);
        self.bytes.pass_time(now.day());
        self.fallbacks.pass_time(now.mono);
    }

    /// Checks everything except whether a slot, a port and descriptors are free. Called when a request arrives, and
    /// again when it is next in the queue.
    fn check(&self, peer: EndpointId, spec: &TestSpec, is_fallback: bool, now: Now) -> Result<(), Denial> {
        self.limits.check(spec)?;
        self.check_open()?;
        let limit = self.limits.max_tests_per_hour;
        if !is_fallback && self.tests.count(peer) >= limit {
            let retry_after = self.tests.until_one_leaves(peer, limit, now.unix_ms);
            let detail = format!("limit of {limit} tests per hour and device reached");
            return Err(denial(DenialReason::TestsPerHour, &detail, retry_after));
        }
        self.check_bytes(peer, now)
    }

    /// Denies every request while the reflector is shutting down, or cannot write its audit log or database.
    fn check_open(&self) -> Result<(), Denial> {
        if self.draining {
            return Err(draining());
        }
        if self.faulted {
            let detail = "the audit log or the database cannot be written; no session is granted until both can";
            return Err(denial(DenialReason::Faulted, detail, Some(RETRY_FAULTED)));
        }
        Ok(())
    }

    /// Denies a request on a link that already has a request or a session.
    fn check_link(&self, link: LinkId) -> Result<(), Denial> {
        if self.queue.holds(link) || self.held.values().any(|session| session.link == link) {
            let detail = "this link already has a session or a request";
            return Err(denial(DenialReason::AlreadyAsked, detail, None));
        }
        Ok(())
    }

    /// Denies requests of a device if its byte quota of this day, or that of all devices together, is used up.
    fn check_bytes(&self, peer: EndpointId, now: Now) -> Result<(), Denial> {
        let spent = [
            (self.bytes.of_peer(peer, now.day()), self.limits.max_bytes_per_day, "and device"),
            (self.bytes.of_all(now.day()), self.limits.max_bytes_per_day_total, "for all devices together"),
        ];
        if let Some((_, limit, of_whom)) = spent.into_iter().find(|(used, limit, _)| used >= limit) {
            let detail = format!("limit of {} per UTC day {of_whom} reached", limits::bytes(limit));
            let retry_after = (limit > 0).then(|| now.until_tomorrow());
            return Err(denial(DenialReason::BytesPerDay, &detail, retry_after));
        }
        Ok(())
    }

    /// Why a request that cannot begin now cannot be queued either; `None` if it can be queued.
    fn queue_denial(
        &self,
        peer: EndpointId,
        spec: &TestSpec,
        is_fallback: bool,
        wait: bool,
        expected: Duration,
    ) -> Option<Denial> {
        let slots = self.limits.max_concurrent_tests;
        if slots == 0 {
            return Some(denial(DenialReason::Busy, "no tests are allowed", None));
        }
        let retry_after = Some(expected.max(Duration::from_secs(1)));
        if !wait {
            let slots_left = usize::try_from(slots).unwrap_or(usize::MAX) > self.tests_held().count();
            let lacks_port = slots_left && spec.data_mode == DataMode::DirectEphemeral && self.ports.free() == 0;
            return Some(if lacks_port {
                denial(DenialReason::NoPort, "every port of the range is in use", retry_after)
            } else {
                denial(DenialReason::Busy, &format!("all {slots} slots are in use"), retry_after)
            });
        }
        if is_fallback {
            return None;
        }
        // The request itself is already in the queue.
        if self.queue.len() > self.limits.max_queue {
            let detail = format!("the queue is full with {} requests", self.limits.max_queue);
            return Some(denial(DenialReason::QueueFull, &detail, retry_after));
        }
        if self.queue.len_of(peer) > self.limits.max_queue_per_peer {
            let allowed = self.limits.max_queue_per_peer;
            let detail = format!("limit of {allowed} queued requests per device reached");
            return Some(denial(DenialReason::QueueFull, &detail, retry_after));
        }
        None
    }

    /// The links whose queued requests can begin now, in order. If a request lacks only a port, requests after it can
    /// begin before it. They cannot delay it forever, because a port becomes free together with a slot.
    fn ready_links(&self) -> Vec<LinkId> {
        let slots = usize::try_from(self.limits.max_concurrent_tests).unwrap_or(usize::MAX);
        let room = slots.saturating_sub(self.tests_held().count());
        let mut ports = self.ports.free();
        let held = self.tests_held().map(|held| descriptors::of_session(&held.spec)).fold(0, usize::saturating_add);
        let mut descriptors = self.limits.descriptors.saturating_sub(held);
        // Descriptors are freed one session at a time: a request that needs many must not be overtaken forever.
        let fits = |waiting: &&queue::QueuedRequest| {
            let left = descriptors.checked_sub(descriptors::of_session(&waiting.spec));
            descriptors = left.unwrap_or(0);
            left.is_some()
        };
        let has_port = |waiting: &&queue::QueuedRequest| {
            let has = !waiting.needs_port() || ports > 0;
            ports -= usize::from(waiting.needs_port() && has);
            has
        };
        if room == 0 {
            return Vec::new();
        }
        let order = self.queue.in_order().into_iter();
        order.filter(has_port).take_while(fits).take(room).map(|waiting| waiting.link).collect()
    }

    /// Reserves a slot and, for direct mode, a port. Counts the session as a test of the peer, except a fallback (a
    /// direct test that the appliance repeats through the tunnel). The caller has checked that a slot is free.
    fn reserve(
        &mut self,
        link: LinkId,
        peer: EndpointId,
        spec: TestSpec,
        is_fallback: bool,
        id: SessionId,
        now: Now,
    ) -> Result<Reservation, Denial> {
        if self.held.contains_key(&id) {
            return Err(denial(DenialReason::Faulted, "the session's id is taken", Some(RETRY_FAULTED)));
        }
        let port = match spec.data_mode {
            DataMode::DirectEphemeral => {
                let detail = "every port of the range is in use";
                let port = self.ports.take(&BTreeSet::new(), now.mono);
                Some(port.ok_or_else(|| denial(DenialReason::NoPort, detail, Some(RETRY_HELD)))?)
            }
            DataMode::Tunneled | DataMode::Unknown => None,
        };
        self.fallbacks.forget(link);
        if !is_fallback {
            self.tests.charge(peer, id, now.unix_ms);
            self.queue.note_served(peer);
        }
        self.changed = true;
        let mut session = HeldSession::new(link, peer, spec, port, now.mono);
        session.counts_as_test = !is_fallback;
        let reservation = session.reservation(id);
        self.held.insert(id, session);
        Ok(reservation)
    }

    /// Frees everything that is reserved for a session. Its peer still counts as served, so a peer whose requests fail
    /// repeatedly is not always first in the queue.
    fn take_back(&mut self, session: SessionId) -> Option<HeldSession<H>> {
        let held = self.held.remove(&session)?;
        self.changed = true;
        if let Some(port) = held.port {
            self.ports.give_back(port);
        }
        self.tests.refund(held.peer, session);
        for (day, bytes) in &held.leased {
            self.bytes.refund(held.peer, *day, *bytes);
        }
        Some(held)
    }

    /// Takes a reservation back, and counts this. Returns the audit event that records it.
    fn undone(&mut self, session: SessionId) -> Option<AuditEvent> {
        let held = self.take_back(session)?;
        self.counts.undone += 1;
        Some(AuditEvent::SessionUndone { session, peer: held.peer })
    }

    /// Counts a denial. Returns its audit event.
    fn denied(&mut self, peer: EndpointId, denial: &Denial) -> AuditEvent {
        self.counts.note_denied(denial.reason);
        AuditEvent::SessionDenied { peer, reason: denial.reason }
    }

    /// Returns the answer to a request of `peer`, and the audit event that records it. A reservation has no event until
    /// it is opened.
    fn with_event(&mut self, peer: EndpointId, answer: Answer) -> (Answer, Vec<AuditEvent>) {
        let event = match &answer {
            Answer::Reserved(_) => None,
            Answer::Queued { place, .. } => Some(AuditEvent::SessionQueued { peer, place: *place }),
            Answer::Denied(denial) => Some(self.denied(peer, denial)),
        };
        (answer, event.into_iter().collect())
    }

    /// The sessions that hold a slot.
    fn tests_held(&self) -> impl Iterator<Item = &HeldSession<H>> {
        self.tests_with_ids().map(|(_, held)| held)
    }

    fn tests_with_ids(&self) -> impl Iterator<Item = (SessionId, &HeldSession<H>)> {
        self.held.iter().filter(|(_, held)| !held.is_monitor()).map(|(id, held)| (*id, held))
    }

    /// Charges the bytes that a session used, instead of its leases. Returns them by day.
    fn settle(&mut self, held: &HeldSession<H>, used_bytes: u64, today: u32) -> Vec<(u32, u64)> {
        for (day, leased) in &held.leased {
            self.bytes.refund(held.peer, *day, *leased);
        }
        let by_day = recorded_use::by_day(&held.leased, used_bytes, today);
        for (day, used) in &by_day {
            self.bytes.charge(held.peer, *day, *used);
        }
        by_day
    }

    fn end_where(&mut self, reason: EndReason, matches: impl Fn(&HeldSession<H>) -> bool) {
        for held in self.held.values_mut().filter(|held| held.ending.is_none() && matches(held)) {
            held.ending = Some(PendingEnd { reason, reported_at: None });
            self.changed = true;
        }
    }

    fn end_what_is_due(
        &mut self,
        mono: Duration,
        last_heard: &dyn Fn(&H) -> Duration,
        actions: &mut Vec<SessionAction>,
    ) {
        let held = self.held.iter_mut();
        let due = held.filter_map(|(id, held)| held.end_if_due(mono, last_heard).map(|reason| (*id, reason)));
        actions.extend(due.map(|(session, reason)| SessionAction::End { session, reason }));
    }

    /// Makes a reservation for each queued request that can begin, one after the other, because each reservation
    /// changes which request is next. Returns the audit events of the requests that are denied.
    fn serve_queue(
        &mut self,
        now: Now,
        new_id: &mut dyn FnMut() -> SessionId,
        actions: &mut Vec<SessionAction>,
    ) -> Vec<AuditEvent> {
        let mut events = Vec::new();
        if self.draining {
            for waiting in self.queue.clear() {
                let denial = draining();
                events.push(self.denied(waiting.peer, &denial));
                actions.push(SessionAction::Deny { link: waiting.link, denial });
            }
        }
        while let Some(link) = self.ready_links().first().copied() {
            let Some(waiting) = self.queue.remove(link) else { return events };
            let (peer, since) = (waiting.peer, waiting.since);
            let outcome = self
                .check(peer, &waiting.spec, waiting.is_fallback, now)
                .and_then(|()| self.reserve(link, peer, waiting.spec, waiting.is_fallback, new_id(), now));
            actions.push(match outcome {
                Ok(reservation) => {
                    self.counts.waits.note(now.mono.saturating_sub(since));
                    SessionAction::Reserve(reservation)
                }
                Err(denial) => {
                    events.push(self.denied(peer, &denial));
                    SessionAction::Deny { link, denial }
                }
            });
        }
        events
    }

    fn queue_updates(&mut self, mono: Duration, actions: &mut Vec<SessionAction>) {
        let order = self.queue.in_order();
        let waits = queue::expected_waits(&order, &self.occupied(mono));
        let links = order.iter().map(|waiting| waiting.link).collect::<Vec<_>>();
        for (place, (link, expected_wait)) in (1..).zip(links.into_iter().zip(waits)) {
            if self.queue.find(link).is_some_and(|waiting| waiting.note_update(place, expected_wait, mono)) {
                actions.push(SessionAction::Place { link, place, expected_wait });
            }
        }
    }

    /// The position of a queued request, from 1, and its expected wait.
    fn queue_position(&self, link: LinkId, mono: Duration) -> (u32, Duration) {
        let order = self.queue.in_order();
        let waits = queue::expected_waits(&order, &self.occupied(mono));
        let found = (1..).zip(order.iter().zip(waits)).find(|(_, (waiting, _))| waiting.link == link);
        found.map_or((1, Duration::ZERO), |(place, (_, wait))| (place, wait))
    }

    fn occupied(&self, mono: Duration) -> Occupancy {
        Occupancy {
            slots: self.limits.max_concurrent_tests,
            running: self
                .tests_held()
                .map(|held| (held.expected_end.saturating_sub(mono), held.port.is_some()))
                .collect(),
            free_ports: self.ports.free(),
        }
    }
}

fn draining() -> Denial {
    denial(DenialReason::Draining, "the reflector is shutting down; running tests finish, no new ones start", None)
}
