//! Serves one link of a paired appliance from `welcome` to its end: passes the appliance's messages to the code that
//! decides on them, and sends the answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_host::version;
use paramedic_link::admission::{SESSION_EXPORTER_LABEL, SessionKeys};
use paramedic_link::feature::Feature;
use paramedic_link::framed::{Framed, LinkError};
use paramedic_link::message::{
    self, CloseReason, END_AFTER_SILENCE, EndReason, Grant, HEARTBEAT, MAX_MONITOR_PROBES_PER_S, MONITOR_PING,
    MonitorGrant, PathFacts, ToAppliance, ToReflector, Welcome,
};
use paramedic_link::{EndpointId, PeerText, SessionId};
use socket2::SockRef;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::server::TlsStream;

use super::bounded_socket::BoundedSocket;
use super::grant::{self, AT_REFLECTOR, ClaimError, RequestingLink};
use super::running_session::{self, PhaseEvent, RunningSession, SessionEvent};
use super::sample_queue::SampleQueue;
use super::{Lifecycle, LinkCommand, Server, lock};
use crate::connection_limiter::Prefix;
use crate::event::{AuditEvent, RefusalReason};
use crate::message_budget::Cost;
use crate::sessions::{Answer, LinkId, Reservation, SessionPurpose};

/// The longest time that a write to the link may take. After that, the link counts as dead.
const WRITE_TIMEOUT: Duration = END_AFTER_SILENCE;
/// The longest time that a write to disk may take. It is longer than the store waits for another process, and shorter
/// than an appliance waits for an answer.
const DISK_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a closing link waits for the other side to read and close.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) type LinkStream = TlsStream<BoundedSocket>;

/// One link of a paired appliance.
pub(super) struct Connection {
    server: Arc<Server>,
    framed: Framed<LinkStream>,
    id: LinkId,
    peer: EndpointId,
    from: IpAddr,
    local: SocketAddr,
    commands: mpsc::UnboundedReceiver<LinkCommand>,
    session_events: (mpsc::UnboundedSender<SessionEvent>, mpsc::UnboundedReceiver<SessionEvent>),
    session: Option<LinkSession>,
    /// The protocol features that both ends announced.
    features: Vec<Feature>,
    /// When the last message arrived on this link. If the link has a session, `SessionControl` has the time of the last
    /// message on any connection of the session.
    last_message_at: Instant,
    /// When the last ping was sent.
    pinged_at: Instant,
    /// Until when no message is read, because the device used up its message budget.
    read_paused_until: Option<Instant>,
}

/// What the task of a link knows about the link's session.
struct LinkSession {
    running: Arc<RunningSession>,
    /// The number of the running phase; `None` between phases.
    phase: Option<u8>,
    next_phase: u8,
    samples: SampleQueue,
}

/// How the task of a link continues after a step.
enum LinkFlow {
    Continue,
    /// The reflector sends `close` with this reason and text, then closes the link.
    Close(CloseReason, &'static str),
    /// The other side has closed the link, or does not read what the reflector writes.
    Gone,
}

impl Connection {
    pub(super) fn open(
        server: Arc<Server>,
        framed: Framed<LinkStream>,
        id: LinkId,
        peer: EndpointId,
        from: IpAddr,
        local: SocketAddr,
        commands: mpsc::UnboundedReceiver<LinkCommand>,
    ) -> Self {
        // A listener may be bound to every address, but data must go to the local address of this link.
        let local = framed.stream().get_ref().0.socket().local_addr().unwrap_or(local);
        server.connection_slots.limiter().link_opened(Prefix::of(from));
        let session_events = mpsc::unbounded_channel();
        Self {
            server,
            framed,
            id,
            peer,
            from,
            local,
            commands,
            session_events,
            session: None,
            features: vec![],
            last_message_at: Instant::now(),
            pinged_at: Instant::now(),
            read_paused_until: None,
        }
    }

    /// Serves the link until it ends. `versions` and `features` are those of the appliance. `paired` is the answer to a
    /// pairing, if the link began with one.
    pub(super) async fn serve(mut self, versions: &[u16], features: &[Feature], paired: Option<ToAppliance>) {
        self.features = Feature::common(features);
        let next = match self.pay_for_welcome().await {
            LinkFlow::Continue => self.check_still_paired(),
            other => other,
        };
        let next = match next {
            LinkFlow::Continue => {
                self.server.note_prefix(self.peer, Prefix::of(self.from));
                let opened = AuditEvent::LinkOpened { peer: self.peer, from: self.from };
                // While the audit log can't be written, links and running tests continue; only grants stop.
                let recorded = tokio::spawn(self.server.record(vec![opened]));
                tokio::time::timeout(HEARTBEAT, recorded).await.ok();
                self.welcome(versions, paired).await
            }
            other => other,
        };
        let next = match next {
            LinkFlow::Continue => self.serve_messages().await,
            other => other,
        };
        let reason = match &next {
            LinkFlow::Close(CloseReason::PeerRemoved, _) => EndReason::PeerRemoved,
            LinkFlow::Close(CloseReason::Shutdown, _) => EndReason::Shutdown,
            _ => EndReason::LinkClosed,
        };
        if let Some(granted) = self.session.take() {
            running_session::end(&self.server, granted.running.session, reason).await;
        }
        if let LinkFlow::Close(reason, detail) = next {
            // Best effort, with a timeout: the appliance may be gone.
            self.write(&ToAppliance::Close { reason, detail: PeerText::new(detail) }).await.ok();
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, async {
                self.framed.finish().await.ok();
                while let Ok(Some(_)) = self.framed.receive::<ToReflector>().await {}
            });
            closed.await.ok();
        }
    }

    /// Charges the budget for the welcome. Waits if the device has just opened many links.
    async fn pay_for_welcome(&mut self) -> LinkFlow {
        let wait = lock(&self.server.budgets).charge(self.peer, Cost::Welcome, self.server.now().mono);
        if wait.is_zero() {
            return LinkFlow::Continue;
        }
        let mut lifecycle = self.server.lifecycle.subscribe();
        tokio::select! {
            () = tokio::time::sleep(wait) => {
                // No message was read in the meantime.
                self.note_activity();
                LinkFlow::Continue
            }
            () = stopping(&mut lifecycle) => LinkFlow::Close(CloseReason::Shutdown, "the reflector is shutting down"),
        }
    }

    /// Checks again that the device is paired. If it was removed between the first check and the registration of the
    /// link, the removal did not close the link.
    fn check_still_paired(&self) -> LinkFlow {
        if !self.server.peers.is_paired(self.peer) {
            return LinkFlow::Close(CloseReason::PeerRemoved, "this device is no longer paired");
        }
        LinkFlow::Continue
    }

    /// Sends `welcome`, and after a pairing `paired` before it. If both ends share no protocol version, closes the link
    /// instead.
    async fn welcome(&mut self, versions: &[u16], paired: Option<ToAppliance>) -> LinkFlow {
        let Some(version) = message::common_version(versions) else {
            return LinkFlow::Close(CloseReason::Version, "no common protocol version; this reflector has version 1");
        };
        if let Some(paired) = paired
            && self.write(&paired).await.is_err()
        {
            return LinkFlow::Gone;
        }
        let (data_modes, engines, max_streams, max_duration) = {
            let sessions = self.server.sessions();
            let limits = sessions.limits();
            (limits.data_modes.clone(), limits.engines.clone(), limits.max_streams, limits.max_test_duration)
        };
        let welcome = ToAppliance::Welcome(Welcome {
            version,
            software: PeerText::new(version::VERSION),
            name: self.server.config().name.clone(),
            data_modes,
            engines,
            max_streams,
            max_duration_ms: u64::try_from(max_duration.as_millis()).unwrap_or(u64::MAX),
            features: Feature::own(),
        });
        if self.write(&welcome).await.is_ok() { LinkFlow::Continue } else { LinkFlow::Gone }
    }

    async fn serve_messages(&mut self) -> LinkFlow {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lifecycle = self.server.lifecycle.subscribe();
        self.charge_budget(Cost::Link);
        loop {
            let read_paused_until = self.read_paused_until;
            let next = tokio::select! {
                message = self.framed.receive::<ToReflector>(), if read_paused_until.is_none() => match message {
                    Ok(Some(message)) => {
                        self.note_activity();
                        self.charge_message();
                        self.handle(message).await
                    }
                    Ok(None) | Err(LinkError::Io(_) | LinkError::Torn) => LinkFlow::Gone,
                    Err(LinkError::Frame(error)) => {
                        if self.server.may_log(self.peer) {
                            tracing::info!(%error, "not a message");
                        }
                        self.charge_budget(Cost::Fault);
                        self.server.refuse(self.from, RefusalReason::Protocol, Some(self.peer));
                        LinkFlow::Close(CloseReason::Protocol, "the data is not a message of this protocol")
                    }
                },
                () = tokio::time::sleep_until(read_paused_until.unwrap_or_else(Instant::now)), if read_paused_until.is_some() => {
                    self.read_paused_until = None;
                    // No message was read in the meantime.
                    self.note_activity();
                    LinkFlow::Continue
                }
                Some(command) = self.commands.recv() => self.execute(command).await,
                Some(event) = self.session_events.1.recv() => self.send_session_events(event).await,
                _ = heartbeat.tick() => self.heartbeat().await,
                () = stopping(&mut lifecycle) => LinkFlow::Close(CloseReason::Shutdown, "the reflector is shutting down"),
            };
            if !matches!(next, LinkFlow::Continue) {
                return next;
            }
        }
    }

    /// Charges the budget for the message that was just received.
    fn charge_message(&mut self) {
        let arrived = self.framed.stream_mut().get_mut().0.message_taken();
        self.charge_budget(Cost::Message { arrived });
    }

    /// Charges the device's budget, which all its links share. Pauses reading if the budget is used up.
    fn charge_budget(&mut self, cost: Cost) {
        let wait = lock(&self.server.budgets).charge(self.peer, cost, self.server.now().mono);
        if !wait.is_zero() {
            self.read_paused_until = Some(Instant::now() + wait);
        }
    }

    fn note_activity(&mut self) {
        self.last_message_at = Instant::now();
        if let Some(granted) = &self.session {
            granted.running.control.heard();
        }
    }

    /// Sends a ping. Closes a link without a session if the other side was silent for too long.
    async fn heartbeat(&mut self) -> LinkFlow {
        if self.session.is_none() && self.last_message_at.elapsed() > END_AFTER_SILENCE {
            // The device lost its network, or keeps the link open with half a message.
            self.server.refuse(self.from, RefusalReason::Silent, Some(self.peer));
            return LinkFlow::Gone;
        }
        if self.has_monitor() && self.pinged_at.elapsed() < MONITOR_PING {
            return LinkFlow::Continue;
        }
        self.pinged_at = Instant::now();
        self.send(&ToAppliance::Ping).await
    }

    fn has_monitor(&self) -> bool {
        self.session.as_ref().is_some_and(|granted| granted.running.purpose == SessionPurpose::Monitor)
    }

    /// Waits for `work` of another task. Sends pings meanwhile, so that a slow disk does not make the link silent.
    /// `None` if it takes longer than [`DISK_TIMEOUT`]; the other task then continues.
    async fn wait_with_heartbeat<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let until = Instant::now() + DISK_TIMEOUT;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break Some(done),
                () = tokio::time::sleep_until(until) => break None,
                _ = heartbeat.tick() => {
                    // The next read detects a closed link.
                    let _ = self.send(&ToAppliance::Ping).await;
                }
            }
        };
        // No message was read in the meantime.
        self.last_message_at = Instant::now();
        done
    }

    /// Writes events to the audit log before the appliance is answered.
    async fn record(&mut self, events: Vec<AuditEvent>) {
        let recorded = tokio::spawn(self.server.record(events));
        let _ = self.wait_with_heartbeat(recorded).await;
    }

    async fn handle(&mut self, message: ToReflector) -> LinkFlow {
        match message {
            ToReflector::Request { spec, wait } => {
                let spec = spec.with_features(&self.features);
                let refused = tokio::task::block_in_place(|| grant::not_supported(&spec));
                let (answer, events) = {
                    let mut sessions = self.server.sessions();
                    let id = SessionId::new(uuid::Uuid::now_v7());
                    match refused {
                        Some(denial) => sessions.refuse(self.peer, denial),
                        None => sessions.request(self.id, self.peer, spec, wait, id, self.server.now()),
                    }
                };
                if let Answer::Denied(denial) = &answer
                    && !denial.reason.is_worth_a_retry()
                {
                    self.charge_budget(Cost::Fault);
                }
                self.server.due.notify_one();
                self.carry_out(answer, events).await
            }
            ToReflector::Monitor => {
                let id = SessionId::new(uuid::Uuid::now_v7());
                let (answer, events) =
                    self.server.sessions().request_monitor(self.id, self.peer, id, self.server.now());
                self.server.due.notify_one();
                self.carry_out(answer, events).await
            }
            ToReflector::Withdraw => {
                let undone = self.server.sessions().withdraw(self.id);
                self.server.due.notify_one();
                self.record(undone).await;
                LinkFlow::Continue
            }
            ToReflector::Start { phase } => self.start(phase).await,
            ToReflector::StopPhase { phase } => {
                self.stop_phase(phase);
                LinkFlow::Continue
            }
            ToReflector::Finish => self.end_session(EndReason::Finished, "finished").await,
            ToReflector::Facts => match self.server.facts.facts(self.local.ip()).await {
                Some(facts) => self.send(&ToAppliance::Facts(facts)).await,
                None => LinkFlow::Continue,
            },
            ToReflector::PathFacts if !Feature::is_in(Feature::PATH_FACTS, &self.features) => LinkFlow::Continue,
            ToReflector::PathFacts => match self.path_facts() {
                Some(facts) => self.send(&ToAppliance::PathFacts(facts)).await,
                None => LinkFlow::Continue,
            },
            ToReflector::Ping => self.send(&ToAppliance::Pong).await,
            ToReflector::Close { reason } => {
                tracing::debug!(%reason, "the appliance closed the link");
                LinkFlow::Gone
            }
            ToReflector::Pong | ToReflector::Unknown => LinkFlow::Continue,
            ToReflector::Hello { .. } | ToReflector::Pair { .. } => {
                LinkFlow::Close(CloseReason::Protocol, "the link is already open")
            }
        }
    }

    /// What the reflector knows about the network path to the appliance; `None` once the connection is closed.
    fn path_facts(&self) -> Option<PathFacts> {
        let socket = self.framed.stream().get_ref().0.socket();
        let observed = socket.peer_addr().ok()?;
        let observed_address = SocketAddr::new(observed.ip().to_canonical(), observed.port());
        Some(PathFacts { observed_address, max_segment_bytes: SockRef::from(socket).tcp_mss().ok() })
    }

    async fn execute(&mut self, command: LinkCommand) -> LinkFlow {
        match command {
            LinkCommand::Reserved(reservation) => self.carry_out(Answer::Reserved(reservation), vec![]).await,
            LinkCommand::Place { place, expected_wait } => {
                self.carry_out(Answer::Queued { place, expected_wait }, vec![]).await
            }
            LinkCommand::Denied(denial) => self.carry_out(Answer::Denied(denial), vec![]).await,
            LinkCommand::Ended { session, reason } => {
                match self.session.take_if(|granted| granted.running.session == session) {
                    Some(granted) => self.send_ended(reason, end_reason_text(reason), granted).await,
                    None => LinkFlow::Continue,
                }
            }
            LinkCommand::PeerRemoved => LinkFlow::Close(CloseReason::PeerRemoved, "this device is no longer paired"),
        }
    }

    /// Carries out a decision: turns a reservation into a grant, or records a denial or queue position and then sends
    /// it.
    async fn carry_out(&mut self, answer: Answer, events: Vec<AuditEvent>) -> LinkFlow {
        match answer {
            Answer::Queued { place, expected_wait } => {
                self.record(events).await;
                let expected_wait_ms = u64::try_from(expected_wait.as_millis()).unwrap_or(u64::MAX);
                self.send(&ToAppliance::Queued { place, expected_wait_ms }).await
            }
            Answer::Denied(denial) => {
                self.record(events).await;
                self.send(&ToAppliance::Denied(denial)).await
            }
            Answer::Reserved(reservation) => self.grant(reservation, events).await,
        }
    }

    /// Turns a reservation into a grant, and sends it. Sends a denial if that fails.
    async fn grant(&mut self, reservation: Reservation, mut events: Vec<AuditEvent>) -> LinkFlow {
        let session = reservation.session;
        let (claimed, of_claim) = tokio::task::block_in_place(|| {
            let link =
                RequestingLink { local: self.local, from: self.from, keys: &|session| self.session_keys(session) };
            grant::claim(&self.server, reservation, &link)
        });
        events.extend(of_claim);
        let denial = match claimed {
            Ok(claim) => match self.wait_with_heartbeat(grant::record(claim, events)).await {
                Some(Ok((running, promise))) => {
                    let answer = granted(running.purpose, promise);
                    self.session =
                        Some(LinkSession { running, phase: None, next_phase: 0, samples: SampleQueue::default() });
                    return self.send(&answer).await;
                }
                Some(Err(_)) => return self.send(&ToAppliance::Denied(grant::not_recorded())).await,
                None => {
                    if self.server.may_log(self.peer) {
                        tracing::error!(%session, "the disk is too slow for a grant, which is taken back");
                    }
                    return self.send(&ToAppliance::Denied(grant::not_recorded())).await;
                }
            },
            Err(ClaimError::Withdrawn) => {
                self.record(events).await;
                return LinkFlow::Continue;
            }
            Err(ClaimError::Denied(denial)) => denial,
            Err(ClaimError::Failed(denial)) => {
                self.charge_budget(Cost::Fault);
                denial
            }
        };
        self.record(events).await;
        self.send(&ToAppliance::Denied(denial)).await
    }

    fn session_keys(&self, session: SessionId) -> io::Result<SessionKeys> {
        let tls = self.framed.stream().get_ref().1;
        let secret = tls.export_keying_material([0; 32], SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
        Ok(SessionKeys::derive(session, secret.map_err(io::Error::other)?.into()))
    }

    async fn start(&mut self, phase: u8) -> LinkFlow {
        let Some(granted) = &mut self.session else { return LinkFlow::Continue };
        let known = usize::from(phase) < granted.running.spec.phases.len();
        // Phases run in order, each once: only streams of the next phase are accepted.
        if !known || granted.phase.is_some() || phase != granted.next_phase {
            return self.end_session(EndReason::Failed, "this phase cannot start now").await;
        }
        granted.phase = Some(phase);
        granted.next_phase = phase + 1;
        self.server.sessions().started(granted.running.session);
        if let Err(error) = granted.running.start(phase, self.session_events.0.clone()) {
            if self.server.may_log(self.peer) {
                tracing::error!(%error, "no thread for a phase");
            }
            let refused = ThreadLimitReached::of(&error).map(|refused| refused.at(AT_REFLECTOR));
            let detail = refused.as_deref().unwrap_or("the reflector cannot start a thread");
            return self.end_session(EndReason::Failed, detail).await;
        }
        LinkFlow::Continue
    }

    /// Ends a phase before its time. Does nothing if the phase has ended by itself in the meantime, or if the test does
    /// not permit this.
    fn stop_phase(&self, phase: u8) {
        if let Some(granted) = &self.session
            && granted.phase == Some(phase)
            && granted.running.spec.may_stop
        {
            granted.running.control.stop_phase();
        }
    }

    /// Sends the events of a phase. Samples that were taken while the link was busy are sent together.
    async fn send_session_events(&mut self, first: SessionEvent) -> LinkFlow {
        let mut next = Some(first);
        while let Some(event) = next.take() {
            let Some(granted) = self.session.as_mut().filter(|granted| granted.running.session == event.session) else {
                // A late event of a session that is over.
                continue;
            };
            let messages = match event.what {
                PhaseEvent::Started(phase) => vec![ToAppliance::Started { phase }],
                PhaseEvent::Sample(phase, direction, sample) => {
                    granted.samples.push(direction, sample);
                    next = self.session_events.1.try_recv().ok();
                    let has_more = next.as_ref().is_some_and(|next| matches!(next.what, PhaseEvent::Sample(..)));
                    let load = granted.running.spec.phases[usize::from(phase)].load;
                    match granted.samples.is_full() || !has_more && granted.samples.is_due(load) {
                        true => granted.samples.take(phase),
                        false => vec![],
                    }
                }
                PhaseEvent::Detail(phase, direction, samples) => {
                    let mut messages = granted.samples.take(phase);
                    messages.push(ToAppliance::PhaseDetail { phase, direction, samples });
                    messages
                }
                // The session is being ended, and its phase with it. The reason of the end is sent next and replaces
                // the tally.
                PhaseEvent::Done(..) if granted.running.control.is_cancelled() => vec![],
                PhaseEvent::Done(phase, tally) => {
                    granted.phase = None;
                    // The tally would report failed connections, which are only a consequence of the refused thread.
                    if let Some(refused) = granted.running.control.refused_thread() {
                        let detail = refused.at(AT_REFLECTOR);
                        return self.end_session(EndReason::Failed, &detail).await;
                    }
                    let mut messages = granted.samples.take(phase);
                    messages.push(ToAppliance::PhaseDone { phase, tally });
                    messages
                }
            };
            let sent = self.send_all(&messages).await;
            if !matches!(sent, LinkFlow::Continue) {
                return sent;
            }
        }
        LinkFlow::Continue
    }

    /// Ends the session of the link, if there is one, and sends `ended`.
    async fn end_session(&mut self, reason: EndReason, detail: &str) -> LinkFlow {
        let Some(granted) = self.session.take() else { return LinkFlow::Continue };
        let (server, session) = (Arc::clone(&self.server), granted.running.session);
        let ended = tokio::spawn(async move { running_session::end(&server, session, reason).await });
        let _ = self.wait_with_heartbeat(ended).await;
        self.send_ended(reason, detail, granted).await
    }

    /// Sends `ended`, and before it the samples of a phase that the end interrupts.
    async fn send_ended(&mut self, reason: EndReason, detail: &str, mut session: LinkSession) -> LinkFlow {
        let mut messages = session.phase.map(|phase| session.samples.take(phase)).unwrap_or_default();
        let (detail, datagrams) = (PeerText::new(detail), Some(session.running.datagrams()));
        messages.push(ToAppliance::Ended { reason, detail, datagrams });
        self.send_all(&messages).await
    }

    async fn send_all(&mut self, messages: &[ToAppliance]) -> LinkFlow {
        for message in messages {
            let sent = self.send(message).await;
            if !matches!(sent, LinkFlow::Continue) {
                return sent;
            }
        }
        LinkFlow::Continue
    }

    async fn send(&mut self, message: &ToAppliance) -> LinkFlow {
        if self.write(message).await.is_ok() { LinkFlow::Continue } else { LinkFlow::Gone }
    }

    async fn write(&mut self, message: &ToAppliance) -> Result<(), LinkError> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.framed.send(message)).await {
            Ok(sent) => sent,
            Err(_) => Err(LinkError::Io(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.server.links).remove(&self.id);
        self.server.connection_slots.limiter().link_closed(Prefix::of(self.from));
        let undone = self.server.sessions().link_closed(self.id, self.server.now());
        self.server.record_soon(undone);
        self.server.capacity_freed();
    }
}

/// The message that grants a session.
fn granted(purpose: SessionPurpose, promise: Grant) -> ToAppliance {
    match purpose {
        SessionPurpose::Test => ToAppliance::Granted(promise),
        SessionPurpose::Monitor => {
            let session = promise.session;
            ToAppliance::MonitorGranted(MonitorGrant { session, max_probes_per_s: MAX_MONITOR_PROBES_PER_S })
        }
    }
}

/// Waits until the server stops. Releases the lock of the watched value at once, because it must not be held across an
/// await.
async fn stopping(lifecycle: &mut tokio::sync::watch::Receiver<Lifecycle>) {
    lifecycle.wait_for(|lifecycle| *lifecycle == Lifecycle::Stopping).await.map(drop).ok();
}

/// The reason why a session ended, as text for the appliance.
fn end_reason_text(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Finished => "finished",
        EndReason::Deadline => "its time limit was reached",
        EndReason::Silence => "nothing arrived for too long",
        EndReason::NotStarted => "its first phase did not begin within 30 s",
        EndReason::LinkClosed => "the link closed",
        EndReason::BytesPerDay => "the byte limit of this day is used up",
        EndReason::PeerRemoved => "this device is no longer paired",
        EndReason::Shutdown => "the reflector is shutting down",
        EndReason::Failed | EndReason::Unknown => "the reflector failed",
    }
}
