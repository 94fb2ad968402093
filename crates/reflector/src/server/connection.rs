//! One link of a paired appliance, from its welcome to the last message: reads what the appliance says, carries it to
//! the decisions, and carries their answers back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::admission::{SESSION_EXPORTER_LABEL, SessionKeys};
use paramedic_link::feature::Feature;
use paramedic_link::framed::{Framed, LinkError};
use paramedic_link::measurement::Sample;
use paramedic_link::message::{
    self, CloseReason, END_AFTER_SILENCE, EndReason, HEARTBEAT, ToAppliance, ToReflector, Welcome,
};
use paramedic_link::test_spec::Direction;
use paramedic_link::{EndpointId, PeerText, SessionId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::server::TlsStream;

use super::grant::{self, Asker, NotClaimed};
use super::test_run::{self, PhaseEvent, RunEvent, Running};
use super::{Order, Server, Stage, lock};
use crate::connection_limiter::Prefix;
use crate::event::{Event, RefusalReason};
use crate::message_budget::Cost;
use crate::sessions::{Answer, LinkId, Reservation};

/// A peer that doesn't take what we write for this long is as good as gone.
const WRITE: Duration = END_AFTER_SILENCE;
/// How long a link waits for what has to reach the disk first: longer than the store waits for another process, and
/// shorter than an appliance waits for an answer.
const DISK: Duration = Duration::from_secs(8);
/// How long a closing link waits for the other side to read and hang up.
pub(super) const GOODBYE: Duration = Duration::from_secs(1);

pub(super) type Stream = TlsStream<TcpStream>;

/// A link of a known peer.
pub(super) struct Connection {
    server: Arc<Server>,
    framed: Framed<Stream>,
    id: LinkId,
    peer: EndpointId,
    from: IpAddr,
    local: SocketAddr,
    orders: mpsc::UnboundedReceiver<Order>,
    run_events: (mpsc::UnboundedSender<RunEvent>, mpsc::UnboundedReceiver<RunEvent>),
    running: Option<Granted>,
    /// When something last came over this link. What is heard of its session, its tether knows.
    heard: Instant,
    /// When the next message is read: later than now where the device has used up its budget.
    read_from: Option<Instant>,
}

/// This link's session.
struct Granted {
    running: Arc<Running>,
    /// The phase that is being run.
    phase: Option<u8>,
    next_phase: u8,
}

/// How a link goes on.
enum Next {
    Go,
    /// Say goodbye and close.
    Close(CloseReason, &'static str),
    /// The other side is gone or does not listen.
    Gone,
}

impl Connection {
    pub(super) fn open(
        server: Arc<Server>,
        framed: Framed<Stream>,
        id: LinkId,
        peer: EndpointId,
        from: IpAddr,
        local: SocketAddr,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        // A wildcard listener: the address that the link really came in on is where its data must go.
        let local = framed.stream().get_ref().0.local_addr().unwrap_or(local);
        server.places.limiter().link_opened(Prefix::of(from));
        let run_events = mpsc::unbounded_channel();
        Self {
            server,
            framed,
            id,
            peer,
            from,
            local,
            orders,
            run_events,
            running: None,
            heard: Instant::now(),
            read_from: None,
        }
    }

    pub(super) async fn serve(mut self, versions: &[u16], paired: Option<ToAppliance>) {
        let next = match self.enter() {
            Next::Go => {
                self.server.note_known(self.peer, Prefix::of(self.from));
                let opened = Event::LinkOpened { peer: self.peer, from: self.from };
                // While the log can't be written links go on, as running tests do; only grants don't.
                let recorded = tokio::spawn(self.server.record(vec![opened]));
                let _ = tokio::time::timeout(HEARTBEAT, recorded).await;
                self.greet(versions, paired).await
            }
            other => other,
        };
        let next = match next {
            Next::Go => self.talk().await,
            other => other,
        };
        let reason = match &next {
            Next::Close(CloseReason::PeerRemoved, _) => EndReason::PeerRemoved,
            Next::Close(CloseReason::Shutdown, _) => EndReason::Shutdown,
            _ => EndReason::LinkClosed,
        };
        if let Some(granted) = self.running.take() {
            test_run::end(&self.server, granted.running.session, reason).await;
        }
        if let Next::Close(reason, detail) = next {
            let _ = self.send(&ToAppliance::Close { reason, detail: PeerText::new(detail) }).await;
            let _ = tokio::time::timeout(GOODBYE, async {
                let _ = self.framed.finish().await;
                while let Ok(Some(_)) = self.framed.receive::<ToReflector>().await {}
            })
            .await;
        }
    }

    /// Whether this link may stand, now that it is in the list of links.
    fn enter(&self) -> Next {
        // Whoever was removed between being judged and standing in the list was not cut off by it.
        if !self.server.peers.is_paired(self.peer) {
            return Next::Close(CloseReason::PeerRemoved, "this device is no longer paired");
        }
        Next::Go
    }

    /// The first answer: whether we speak one language, and what is offered.
    async fn greet(&mut self, versions: &[u16], paired: Option<ToAppliance>) -> Next {
        let Some(version) = message::common_version(versions) else {
            return Next::Close(CloseReason::Version, "no protocol version in common; this reflector speaks 1");
        };
        if let Some(paired) = paired
            && self.send(&paired).await.is_err()
        {
            return Next::Gone;
        }
        let (data_modes, engines, max_streams, max_duration) = {
            let sessions = self.server.sessions();
            let limits = sessions.limits();
            (limits.data_modes.clone(), limits.engines.clone(), limits.max_streams, limits.max_test_duration)
        };
        let welcome = ToAppliance::Welcome(Welcome {
            version,
            software: PeerText::new(env!("CARGO_PKG_VERSION")),
            name: self.server.config.name.clone(),
            data_modes,
            engines,
            max_streams,
            max_duration_ms: u64::try_from(max_duration.as_millis()).unwrap_or(u64::MAX),
            features: Feature::own(),
        });
        if self.send(&welcome).await.is_ok() { Next::Go } else { Next::Gone }
    }

    async fn talk(&mut self) -> Next {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stage = self.server.stage.subscribe();
        self.spend(Cost::Link);
        loop {
            let read_from = self.read_from;
            let next = tokio::select! {
                message = self.framed.receive::<ToReflector>(), if read_from.is_none() => match message {
                    Ok(Some(message)) => {
                        self.note_heard();
                        self.spend(Cost::Message);
                        self.hear(message).await
                    }
                    Ok(None) | Err(LinkError::Io(_) | LinkError::Torn) => Next::Gone,
                    Err(LinkError::Frame(error)) => {
                        if self.server.may_log(self.peer) {
                            tracing::info!(%error, "not a message");
                        }
                        self.spend(Cost::Fault);
                        self.server.refuse(self.from, RefusalReason::Protocol, Some(self.peer));
                        Next::Close(CloseReason::Protocol, "what came is no message of this protocol")
                    }
                },
                () = tokio::time::sleep_until(read_from.unwrap_or_else(Instant::now)), if read_from.is_some() => {
                    self.read_from = None;
                    // It was we who did not listen.
                    self.note_heard();
                    Next::Go
                }
                Some(order) = self.orders.recv() => self.obey(order).await,
                Some(event) = self.run_events.1.recv() => self.report(event).await,
                _ = heartbeat.tick() => self.beat().await,
                () = stopping(&mut stage) => Next::Close(CloseReason::Shutdown, "the reflector is shutting down"),
            };
            if !matches!(next, Next::Go) {
                return next;
            }
        }
    }

    /// Charges the device's budget, which its other links share, and reads on no earlier than that allows.
    fn spend(&mut self, cost: Cost) {
        let wait = lock(&self.server.budgets).charge(self.peer, cost, self.server.now().mono);
        if !wait.is_zero() {
            self.read_from = Some(Instant::now() + wait);
        }
    }

    fn note_heard(&mut self) {
        self.heard = Instant::now();
        if let Some(granted) = &self.running {
            granted.running.tether.heard();
        }
    }

    /// Says that we live; notices that the other side doesn't.
    async fn beat(&mut self) -> Next {
        if self.running.is_none() && self.heard.elapsed() > END_AFTER_SILENCE {
            // A device that lost its network, or one that holds a place with half a message.
            self.server.refuse(self.from, RefusalReason::Silent, Some(self.peer));
            return Next::Gone;
        }
        self.say(&ToAppliance::Ping).await
    }

    /// Waits for what another task does, which goes on whatever becomes of the wait. The link lives meanwhile: no disk
    /// may silence it. `None`: it took too long.
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let until = Instant::now() + DISK;
        let mut beat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break Some(done),
                () = tokio::time::sleep_until(until) => break None,
                _ = beat.tick() => {
                    // An appliance that is gone is noticed by what reads.
                    let _ = self.say(&ToAppliance::Ping).await;
                }
            }
        };
        // Nothing was read meanwhile.
        self.heard = Instant::now();
        done
    }

    /// Records events before they are told of.
    async fn record(&mut self, events: Vec<Event>) {
        let recorded = tokio::spawn(self.server.record(events));
        let _ = self.beside(recorded).await;
    }

    async fn hear(&mut self, message: ToReflector) -> Next {
        match message {
            ToReflector::Request { spec, wait } => {
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
                    self.spend(Cost::Fault);
                }
                self.server.due.notify_one();
                self.answer(answer, events).await
            }
            ToReflector::Withdraw => {
                let undone = self.server.sessions().withdraw(self.id);
                self.server.due.notify_one();
                self.record(undone).await;
                Next::Go
            }
            ToReflector::Start { phase } => self.start(phase).await,
            ToReflector::Finish => self.end_session(EndReason::Finished, "finished").await,
            ToReflector::Facts => match self.server.facts.facts(self.local.ip()).await {
                Some(facts) => self.say(&ToAppliance::Facts(facts)).await,
                None => Next::Go,
            },
            ToReflector::Ping => self.say(&ToAppliance::Pong).await,
            ToReflector::Close { reason } => {
                tracing::debug!(%reason, "the appliance says goodbye");
                Next::Gone
            }
            ToReflector::Pong | ToReflector::Unknown => Next::Go,
            ToReflector::Hello { .. } | ToReflector::Pair { .. } => {
                Next::Close(CloseReason::Protocol, "the link is already open")
            }
        }
    }

    async fn obey(&mut self, order: Order) -> Next {
        match order {
            Order::Reserved(reservation) => self.answer(Answer::Reserved(reservation), vec![]).await,
            Order::Place { place, expected_wait } => self.answer(Answer::Queued { place, expected_wait }, vec![]).await,
            Order::Denied(denial) => self.answer(Answer::Denied(denial), vec![]).await,
            Order::Ended { session, reason } => {
                match self.running.take_if(|granted| granted.running.session == session) {
                    Some(_) => self.say_ended(reason, in_words(reason)).await,
                    None => Next::Go,
                }
            }
            Order::PeerRemoved => Next::Close(CloseReason::PeerRemoved, "this device is no longer paired"),
        }
    }

    /// Carries a decision out: what was reserved becomes a grant, everything else is recorded and told.
    async fn answer(&mut self, answer: Answer, events: Vec<Event>) -> Next {
        match answer {
            Answer::Queued { place, expected_wait } => {
                self.record(events).await;
                let expected_wait_ms = u64::try_from(expected_wait.as_millis()).unwrap_or(u64::MAX);
                self.say(&ToAppliance::Queued { place, expected_wait_ms }).await
            }
            Answer::Denied(denial) => {
                self.record(events).await;
                self.say(&ToAppliance::Denied(denial)).await
            }
            Answer::Reserved(reservation) => self.grant(reservation, events).await,
        }
    }

    /// Claims, records and promises what was reserved.
    async fn grant(&mut self, reservation: Reservation, mut events: Vec<Event>) -> Next {
        let session = reservation.session;
        let (claimed, of_claim) = tokio::task::block_in_place(|| {
            let asker = Asker { local: self.local, from: self.from, keys: &|session| self.session_keys(session) };
            grant::claim(&self.server, reservation, &asker)
        });
        events.extend(of_claim);
        let denial = match claimed {
            Ok(claim) => match self.beside(grant::record(claim, events)).await {
                Some(Ok((running, promise))) => {
                    self.running = Some(Granted { running, phase: None, next_phase: 0 });
                    return self.say(&ToAppliance::Granted(promise)).await;
                }
                Some(Err(_)) => return self.say(&ToAppliance::Denied(grant::not_recorded())).await,
                None => {
                    if self.server.may_log(self.peer) {
                        tracing::error!(%session, "the disk is too slow for a grant, which is taken back");
                    }
                    return self.say(&ToAppliance::Denied(grant::not_recorded())).await;
                }
            },
            Err(NotClaimed::Withdrawn) => {
                self.record(events).await;
                return Next::Go;
            }
            Err(NotClaimed::Denied(denial)) => denial,
            Err(NotClaimed::Failed(denial)) => {
                self.spend(Cost::Fault);
                denial
            }
        };
        self.record(events).await;
        self.say(&ToAppliance::Denied(denial)).await
    }

    fn session_keys(&self, session: SessionId) -> io::Result<SessionKeys> {
        let tls = self.framed.stream().get_ref().1;
        let secret = tls.export_keying_material([0; 32], SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
        Ok(SessionKeys::derive(session, secret.map_err(io::Error::other)?.into()))
    }

    async fn start(&mut self, phase: u8) -> Next {
        let Some(granted) = &mut self.running else { return Next::Go };
        let known = usize::from(phase) < granted.running.spec.phases.len();
        // In order, each once: only the streams of the next phase are let in.
        if !known || granted.phase.is_some() || phase != granted.next_phase {
            return self.end_session(EndReason::Failed, "that phase can't be started").await;
        }
        granted.phase = Some(phase);
        granted.next_phase = phase + 1;
        self.server.sessions().started(granted.running.session);
        if let Err(error) = granted.running.start(phase, self.run_events.0.clone()) {
            if self.server.may_log(self.peer) {
                tracing::error!(%error, "no thread for a phase");
            }
            return self.end_session(EndReason::Failed, "no thread could be started").await;
        }
        Next::Go
    }

    /// Sends what happened in a phase. Samples that were measured while the link was busy go together in one message.
    async fn report(&mut self, first: RunEvent) -> Next {
        let mut next = Some(first);
        while let Some(event) = next.take() {
            let Some(granted) = self.running.as_mut().filter(|granted| granted.running.session == event.session) else {
                // A late event of a session that is over.
                continue;
            };
            let sent = match event.what {
                PhaseEvent::Started(phase) => self.say(&ToAppliance::Started { phase }).await,
                PhaseEvent::Sample(phase, direction, sample) => {
                    let mut samples = vec![sample];
                    next = take_samples(&mut samples, (event.session, phase, direction), &mut self.run_events.1);
                    self.say(&ToAppliance::Samples { phase, direction, samples }).await
                }
                // The session is being ended, and its phase with it: the reason comes next, and is the one that counts.
                PhaseEvent::Done(..) if granted.running.tether.is_cut() => Next::Go,
                PhaseEvent::Done(phase, tally) => {
                    granted.phase = None;
                    self.say(&ToAppliance::PhaseDone { phase, tally: *tally }).await
                }
            };
            if !matches!(sent, Next::Go) {
                return sent;
            }
        }
        Next::Go
    }

    /// Ends the session, if there is one, and says so.
    async fn end_session(&mut self, reason: EndReason, detail: &str) -> Next {
        let Some(granted) = self.running.take() else { return Next::Go };
        let (server, session) = (Arc::clone(&self.server), granted.running.session);
        let ended = tokio::spawn(async move { test_run::end(&server, session, reason).await });
        let _ = self.beside(ended).await;
        self.say_ended(reason, detail).await
    }

    async fn say_ended(&mut self, reason: EndReason, detail: &str) -> Next {
        self.say(&ToAppliance::Ended { reason, detail: PeerText::new(detail) }).await
    }

    async fn say(&mut self, message: &ToAppliance) -> Next {
        if self.send(message).await.is_ok() { Next::Go } else { Next::Gone }
    }

    async fn send(&mut self, message: &ToAppliance) -> Result<(), LinkError> {
        match tokio::time::timeout(WRITE, self.framed.send(message)).await {
            Ok(sent) => sent,
            Err(_) => Err(LinkError::Io(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.server.links).remove(&self.id);
        self.server.places.limiter().link_closed(Prefix::of(self.from));
        let undone = self.server.sessions().link_closed(self.id, self.server.now());
        self.server.record_soon(undone);
        self.server.made_room();
    }
}

/// Moves further samples of the same session, phase and direction from `events` to `samples`, as many as one message
/// carries. Returns the event that ended this, where there was one.
fn take_samples(
    samples: &mut Vec<Sample>,
    of: (SessionId, u8, Direction),
    events: &mut mpsc::UnboundedReceiver<RunEvent>,
) -> Option<RunEvent> {
    while samples.len() < message::MAX_SAMPLES {
        let event = events.try_recv().ok()?;
        match event.what {
            PhaseEvent::Sample(phase, direction, sample) if (event.session, phase, direction) == of => {
                samples.push(sample);
            }
            _ => return Some(event),
        }
    }
    None
}

/// Waits until everything is to end. The watched value is let go of at once: it must not be held across an await.
async fn stopping(stage: &mut tokio::sync::watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| *stage == Stage::Stopping).await.map(drop);
}

/// Why a session was ended, for the peer's eyes.
fn in_words(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Finished => "finished",
        EndReason::Deadline => "its time was over",
        EndReason::Silence => "nothing was heard for 10 s",
        EndReason::NotStarted => "its first phase did not begin within 30 s",
        EndReason::LinkClosed => "the link closed",
        EndReason::BytesPerDay => "the bytes of this day are used up",
        EndReason::PeerRemoved => "this device is no longer paired",
        EndReason::Shutdown => "the reflector is shutting down",
        EndReason::Failed | EndReason::Unknown => "something failed at the reflector",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_wait_go_together_up_to_the_limit_of_a_message() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let session = SessionId::from_bytes([1; 16]);
        let send = |what| sender.send(RunEvent { session, what }).unwrap();
        let sample = |at_us| Sample { at_us, bytes: 0 };
        let of = (session, 0, Direction::Download);
        for at in 1..=70 {
            send(PhaseEvent::Sample(0, Direction::Download, sample(at)));
        }
        send(PhaseEvent::Sample(0, Direction::Upload, sample(71)));
        send(PhaseEvent::Done(0, Box::default()));

        let mut samples = vec![sample(0)];
        assert!(take_samples(&mut samples, of, &mut events).is_none());
        assert!(samples.iter().map(|sample| sample.at_us).eq(0..64));

        let mut samples = vec![];
        let next = take_samples(&mut samples, of, &mut events).unwrap();
        assert!(samples.iter().map(|sample| sample.at_us).eq(64..=70));
        assert!(matches!(next.what, PhaseEvent::Sample(0, Direction::Upload, _)), "another direction ends it");

        let mut samples = vec![];
        let next = take_samples(&mut samples, (session, 0, Direction::Upload), &mut events).unwrap();
        assert!(samples.is_empty() && matches!(next.what, PhaseEvent::Done(0, _)));
    }
}
