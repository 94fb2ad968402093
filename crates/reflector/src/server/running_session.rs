//! A granted session while it runs: the reflector's end of its engine, its probes, keys and leases, and its teardown.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paramedic_engines::bind;
use paramedic_engines::data_stream::DataStream;
use paramedic_engines::echo::{self, DwellTimes, MonitorResponder, ProbeResponder};
use paramedic_engines::engine::{EngineServer, PhaseProgress, ServerSetup};
use paramedic_engines::interface::InterfaceClock;
use paramedic_engines::metered_stream::MeteredStream;
use paramedic_engines::phase::streams_of;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::thread_limit;
use paramedic_engines::udp_port::{DatagramCounts, DatagramHandler, Enrolment, UdpPort};
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::engine_terms::EngineTerms;
use paramedic_link::measurement::{DatagramsSeen, PhaseTally, Sample};
use paramedic_link::message::EndReason;
use paramedic_link::phase_detail::{PhaseDetail, TcpSample};
use paramedic_link::test_spec::{Direction, TestSpec};
use paramedic_link::{EndpointId, SessionId};
use tokio::sync::{Notify, mpsc, oneshot};

use super::connection_slot::SessionSlots;
use super::counts::{PhasePayload, ServerCounts};
use super::{LinkCommand, Server, lock};
use crate::descriptors;
use crate::sessions::{Lease, LinkId, Reservation, SessionPurpose, UseRecorder};
use crate::store::StoreError;

/// The largest lease, in bytes: more than a second at 400 Gbit/s. `sessions` may grant less. Writing a lease takes
/// processor and disk time, which disturbs the measurement, so leases are few and large.
const LARGEST_LEASE: u64 = 64 << 30;

/// The bytes of one lease of a monitor session: enough for more than an hour at one probe a second. A crash charges all
/// of them.
const MONITOR_LEASE: u64 = 1_000_000;

/// How long to wait before a failed write of a lease is retried, while bytes of an earlier lease are left.
const LEASE_RETRY: Duration = Duration::from_secs(1);

/// The kernel's record of the streams of a phase (`TCP_INFO` samples) may have at most 1/20 as many bytes as the
/// payload of the phase. Before it is sent, samples are left out until it fits.
const DETAIL_OF_PAYLOAD: u64 = 20;

/// A granted session.
pub(super) struct RunningSession {
    pub(super) session: SessionId,
    pub(super) link: LinkId,
    pub(super) peer: EndpointId,
    pub(super) purpose: SessionPurpose,
    pub(super) spec: TestSpec,
    /// The reflector's own address on the link.
    local: IpAddr,
    pub(super) keys: Arc<SessionKeys>,
    pub(super) control: Arc<SessionControl>,
    counts: Arc<ServerCounts>,
    /// The sockets and threads of the session; `None` once it is closed. A phase holds the read lock while it runs.
    resources: RwLock<Option<SessionResources>>,
    /// Whether the session already has its one connection for latency probes over TCP.
    has_probe_stream: AtomicBool,
    /// The thread that answers the latency probes over TCP.
    probe_thread: Mutex<Option<JoinHandle<()>>>,
    wants_lease: Arc<Notify>,
    datagrams: Arc<DatagramCounts>,
    /// Decides when the number of used bytes must be written to disk.
    use_recorder: Mutex<UseRecorder>,
    /// Whether the streams of a phase with load have arrived.
    had_streams: AtomicBool,
    /// Notified when a phase begins or ends, because the number of used bytes must then be read earlier.
    phase_changed: Notify,
    /// When the monotonic clock of `use_recorder` was zero.
    began: Instant,
    /// Whether leasing has stopped. Locked while leases and use are written, so that nothing is written after the final
    /// charge.
    is_over: tokio::sync::Mutex<bool>,
}

/// The sockets and threads that the reflector has open for a session.
struct SessionResources {
    server_end: Box<dyn EngineServer>,
    _enrolment: Enrolment,
    /// The UDP port of the session. In direct mode it belongs to this session alone, and is closed with it.
    _port: Arc<UdpPort>,
    _slots: SessionSlots,
}

/// An event of a phase, sent to the task of the link. The event names its session, because the link may already have
/// the next session.
#[derive(Debug)]
pub(super) struct SessionEvent {
    pub(super) session: SessionId,
    pub(super) what: PhaseEvent,
}

/// What happened in a phase.
#[derive(Debug)]
pub(super) enum PhaseEvent {
    Started(u8),
    Sample(u8, Direction, Sample),
    /// A part of the kernel's record of the streams, small enough for one message.
    Detail(u8, Direction, Vec<TcpSample>),
    Done(u8, Box<PhaseTally>),
}

impl RunningSession {
    /// Opens all resources of the session. Blocks while an engine starts a program. Fails with `AddrInUse` if another
    /// program uses the port.
    pub(super) fn open(
        server: &Server,
        reservation: &Reservation,
        keys: SessionKeys,
        local: SocketAddr,
        from: IpAddr,
    ) -> io::Result<Self> {
        let keys = Arc::new(keys);
        let wants_lease = Arc::new(Notify::new());
        let control = {
            let wants_lease = Arc::clone(&wants_lease);
            SessionControl::metered(move || wants_lease.notify_one())
        };
        // Only the port changes: the scope of a link-local address must be preserved.
        let claim = reservation.port.map(|port| {
            let mut claim = local;
            claim.set_port(port);
            claim
        });
        let port = match claim {
            Some(at) => UdpPort::spawn(bind::bind_after_pending_forks(|| UdpSocket::bind(at))?)?,
            None => {
                let behind = server.udp_ports.iter().find(|(at, _)| is_behind(**at, local));
                behind.map(|(_, port)| Arc::clone(port)).ok_or(io::ErrorKind::AddrNotAvailable)?
            }
        };
        let engine =
            paramedic_host::engines::find(reservation.spec.engine.as_str()).ok_or(io::ErrorKind::Unsupported)?;
        let server_end = engine.server(ServerSetup {
            spec: reservation.spec.clone(),
            keys: Arc::clone(&keys),
            claim,
            peer: from,
            control: Arc::clone(&control),
            scratch: server.config().scratch_dir(),
        });
        let server_end = server_end.map_err(|error| match control.refused_thread() {
            Some(refused) => io::Error::new(io::ErrorKind::QuotaExceeded, refused.clone()),
            None => error,
        })?;
        if reservation.purpose == SessionPurpose::Test {
            // A session is granted only if its threads can start: otherwise a phase, and with it the test, would fail
            // after the test has waited for its turn.
            thread_limit::check(threads_of(&reservation.spec))?;
        }
        let dwell = Arc::clone(&server.counts.dwell);
        let (of_session, its_control) = (Arc::clone(&keys), Arc::clone(&control));
        let probes: Arc<dyn DatagramHandler> = match reservation.purpose {
            SessionPurpose::Test => {
                Arc::new(ProbeResponder::new(of_session, its_control, dwell, reservation.spec.dscp))
            }
            SessionPurpose::Monitor => {
                let load = Arc::clone(&server.counts.load);
                Arc::new(MonitorResponder::new(of_session, its_control, dwell, load))
            }
        };
        let handlers = [Some(probes), server_end.datagram_handler()].into_iter().flatten().collect();
        let enrolment = port.enroll(keys.session(), Arc::clone(&control), from, handlers);
        let streams = match reservation.purpose {
            SessionPurpose::Test => descriptors::control_port_streams(&reservation.spec),
            // The probes of a monitor are only datagrams.
            SessionPurpose::Monitor => 0,
        };
        Ok(Self {
            session: reservation.session,
            link: reservation.link,
            peer: reservation.peer,
            purpose: reservation.purpose,
            spec: reservation.spec.clone(),
            local: local.ip(),
            datagrams: enrolment.counts(),
            resources: RwLock::new(Some(SessionResources {
                _enrolment: enrolment,
                server_end,
                _port: port,
                _slots: SessionSlots::reserve(&server.connection_slots, from, streams),
            })),
            keys,
            control,
            counts: Arc::clone(&server.counts),
            has_probe_stream: AtomicBool::new(false),
            probe_thread: Mutex::default(),
            wants_lease,
            use_recorder: Mutex::default(),
            had_streams: AtomicBool::new(false),
            phase_changed: Notify::new(),
            began: server.began,
            is_over: tokio::sync::Mutex::new(false),
        })
    }

    /// The [`EngineTerms`] that the appliance's end of the engine needs, if any. The grant carries them.
    pub(super) fn engine_terms(&self) -> Option<EngineTerms> {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.server_end.terms()
    }

    /// When the reflector last received something on any connection of the session, as the time since `began`.
    pub(super) fn last_heard(&self, began: Instant) -> Duration {
        self.control.last_heard().saturating_duration_since(began)
    }

    /// Takes over a data connection whose preamble authenticates it for this session.
    pub(super) fn admit(&self, preamble: Preamble, stream: DataStream) {
        let stream = MeteredStream::new(stream, Arc::clone(&self.control));
        // If the session is being closed, the connection is dropped.
        let Ok(resources) = self.resources.try_read() else { return };
        if let Some(resources) = resources.as_ref() {
            resources.server_end.admit(preamble, stream);
        }
    }

    /// Answers the latency probes of a data connection on a thread of its own.
    pub(super) fn answer_probes(&self, stream: DataStream, dwell: Arc<DwellTimes>) -> io::Result<()> {
        let (keys, control) = (Arc::clone(&self.keys), Arc::clone(&self.control));
        let (stream, dscp) = (MeteredStream::new(stream, Arc::clone(&control)), self.spec.dscp);
        // If the session is being closed, the connection is dropped.
        let Ok(resources) = self.resources.try_read() else { return Ok(()) };
        if resources.is_none() {
            return Ok(());
        }
        let answer = move || echo::answer_stream(stream, &keys, &control, &dwell, dscp);
        *lock(&self.probe_thread) = Some(thread_limit::spawn("echo-stream", answer)?);
        Ok(())
    }

    /// The counts of the session's datagrams so far.
    pub(super) fn datagrams(&self) -> DatagramsSeen {
        self.datagrams.seen()
    }

    /// Whether to accept a connection for latency probes. Each such connection takes a thread, so only the first is
    /// accepted.
    pub(super) fn admits_probe_stream(&self) -> bool {
        self.purpose == SessionPurpose::Test && !self.has_probe_stream.swap(true, Ordering::Relaxed)
    }

    /// Cancels the session and frees its resources. Blocks until the threads of its phase and of its probes have ended
    /// and its port is free. After that, all streams have charged their bytes.
    fn close(&self) {
        self.control.cancel();
        let resources = self.resources.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(resources);
        // `answer_probes` starts no thread once the resources are gone.
        if let Some(thread) = lock(&self.probe_thread).take() {
            // A thread that panicked has dropped its stream too.
            thread.join().ok();
        }
    }

    /// Starts a phase on threads of its own.
    pub(super) fn start(self: &Arc<Self>, phase: u8, events: mpsc::UnboundedSender<SessionEvent>) -> io::Result<()> {
        let running = Arc::clone(self);
        let run = move || {
            // If the receiver is gone, the link has ended: then the session is cancelled, which ends the phase.
            let send = |what| {
                events.send(SessionEvent { session: running.session, what }).ok();
            };
            let payload = PhasePayload::new(&running.counts);
            let interface = OnceLock::new();
            let details = Mutex::new(Vec::new());
            let report = |progress| {
                if matches!(progress, PhaseProgress::Started) {
                    interface.get_or_init(|| InterfaceClock::start(running.local));
                    lock(&running.use_recorder).phase_began(running.control.spent(), running.began.elapsed());
                    running.phase_changed.notify_one();
                    let spec = running.spec.phases.get(usize::from(phase));
                    let has_load = spec.is_some_and(|spec| !spec.load.directions().is_empty());
                    running.had_streams.fetch_or(has_load, Ordering::Relaxed);
                }
                send(match progress {
                    PhaseProgress::Started => PhaseEvent::Started(phase),
                    PhaseProgress::Detail(direction, sample) => return lock(&details).push((direction, sample)),
                    PhaseProgress::Received(direction, sample) | PhaseProgress::Sent(direction, sample) => {
                        payload.note_sample(direction, sample.bytes);
                        PhaseEvent::Sample(phase, direction, sample)
                    }
                });
            };
            let loads =
                running.spec.phases.get(usize::from(phase)).is_some_and(|spec| !spec.load.directions().is_empty());
            let _loaded = loads.then(|| running.counts.load.begin());
            let resources = running.resources.read().unwrap_or_else(PoisonError::into_inner);
            let mut tally = resources
                .as_ref()
                .map_or_else(PhaseTally::default, |resources| resources.server_end.run(phase, &report));
            drop(resources);
            tally.interface = interface.get().and_then(|interface| interface.as_ref()?.traffic());
            for direction in Direction::BOTH {
                payload.note_total(direction, tally.direction(direction).map_or(0, |tally| tally.count.bytes));
            }
            lock(&running.use_recorder).phase_ended();
            running.phase_changed.notify_one();
            // The limit keeps the detail small compared with the payload: on a slow line, sending it takes little time
            // compared with the phase.
            let most_bytes = usize::try_from(tally.bytes() / DETAIL_OF_PAYLOAD).unwrap_or(usize::MAX);
            let details = std::mem::take(&mut *lock(&details));
            for (direction, samples) in PhaseDetail::of(details, most_bytes).parts() {
                send(PhaseEvent::Detail(phase, direction, samples));
            }
            send(PhaseEvent::Done(phase, Box::new(tally)));
        };
        thread_limit::spawn(format!("phase-{phase}"), run).map(drop)
    }

    /// Leases bytes for the session as it uses them. Each lease is on disk before its bytes may be moved. Returns when
    /// the session ends, and ends the session when no more bytes may be leased. Sends on `first` after the first lease.
    pub(super) async fn keep_leased(self: Arc<Self>, server: Arc<Server>, first: oneshot::Sender<()>) {
        if let Err(reason) = self.lease_slices(&server, first).await {
            end_and_notify(&server, self.session, reason).await;
        }
    }

    async fn lease_slices(&self, server: &Server, first: oneshot::Sender<()>) -> Result<(), EndReason> {
        let mut first = Some(first);
        loop {
            let is_over = self.is_over.lock().await;
            if *is_over {
                return Ok(());
            }
            let leased = server.sessions().lease(self.session, self.wanted_lease(), server.now());
            let bytes = match leased {
                Ok(lease) => match self.write_lease(server, lease).await {
                    Ok(()) => lease.bytes,
                    // Bytes of earlier leases are left; the disk may work again before they are used up.
                    Err(_) if !self.control.is_exhausted() => {
                        server.sessions().return_lease(self.session, lease);
                        drop(is_over);
                        tokio::time::timeout(LEASE_RETRY, self.record_use_until_lease_wanted(server)).await.ok();
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(%error, session = %self.session, "a lease can't be written");
                        return Err(EndReason::Failed);
                    }
                },
                // All bytes of the day are leased; the session may still use its earlier leases.
                Err(EndReason::BytesPerDay) if !self.control.is_exhausted() => 0,
                Err(reason) => return Err(reason),
            };
            drop(is_over);
            self.control.allow(bytes);
            if let Some(first) = first.take() {
                // The link that requested the session may be closed.
                first.send(()).ok();
            }
            self.record_use_until_lease_wanted(server).await;
        }
    }

    fn wanted_lease(&self) -> u64 {
        match self.purpose {
            SessionPurpose::Test => LARGEST_LEASE,
            SessionPurpose::Monitor => MONITOR_LEASE,
        }
    }

    async fn write_lease(&self, server: &Server, lease: Lease) -> Result<(), StoreError> {
        let recorded = lock(&self.use_recorder).current(self.control.spent(), self.began.elapsed());
        server.store.lease(self.session, self.peer, lease, recorded).await?;
        lock(&self.use_recorder).written(recorded);
        Ok(())
    }

    /// Writes to disk how many bytes the session has used, whenever such a write is due. Returns when more bytes must
    /// be leased or leasing has stopped.
    async fn record_use_until_lease_wanted(&self, server: &Server) {
        if self.purpose == SessionPurpose::Monitor {
            // The leases of a monitor are small: a write per second for months would cost more than the excess that a
            // crash charges.
            return self.wants_lease.notified().await;
        }
        loop {
            let next = lock(&self.use_recorder).next_reading();
            let read_at = async {
                match next {
                    Some(at) => tokio::time::sleep_until((self.began + at).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wants_lease.notified() => return,
                () = self.phase_changed.notified() => continue,
                () = read_at => {}
            }
            let due = lock(&self.use_recorder).read(self.control.spent(), self.began.elapsed());
            let Some(recorded) = due else { continue };
            let is_over = self.is_over.lock().await;
            // While the disk fails, the test continues. The store reports the fault, and the next reading retries.
            if !*is_over && server.store.record_use(self.session, recorded).await.is_ok() {
                lock(&self.use_recorder).written(recorded);
            }
        }
    }

    async fn stop_leasing(&self) {
        *self.is_over.lock().await = true;
        self.wants_lease.notify_one();
    }
}

/// Ends a session: closes its sockets and ends its threads, then settles its accounts and writes its audit line. Only
/// the first caller does this; later callers return at once.
pub(super) async fn end(server: &Server, session: SessionId, reason: EndReason) {
    let _teardown = server.teardowns.read().await;
    let Some(running) = server.sessions().tear_down(session, reason, server.now()) else { return };
    running.control.cancel();
    server.datagrams_from_elsewhere.fetch_add(running.datagrams().from_elsewhere, Ordering::Relaxed);
    // The port must be free before `sessions` marks it as free.
    let closing = Arc::clone(&running);
    tokio::task::spawn_blocking(move || closing.close()).await.ok();
    running.stop_leasing().await;
    let (settled, recorded) = {
        let mut sessions = server.sessions();
        if running.had_streams.load(Ordering::Relaxed) {
            sessions.streams_arrived(session);
        }
        let (settled, events) = sessions.ended(session, running.control.spent(), reason, server.now());
        (settled, server.record(events))
    };
    server.capacity_freed();
    if let Some(settled) = settled {
        server.settle(settled).await;
    }
    recorded.await;
}

/// Ends a session, and then makes the task of its link notify the appliance. Runs in another task than that of the
/// link, which may have ended or be blocked in a write to a peer that does not read.
pub(super) async fn end_and_notify(server: &Server, session: SessionId, reason: EndReason) {
    let Some(link) = server.sessions().handle(session).map(|running| running.link) else { return };
    end(server, session, reason).await;
    // A closed link needs no message.
    server.send_command(link, LinkCommand::Ended { session, reason });
}

/// The number of threads that a session uses at once, in addition to those of its open ports: one for each stream of a
/// phase, one that watches the phase, one for probes over TCP.
fn threads_of(spec: &TestSpec) -> usize {
    let streams = spec.phases.iter().map(|phase| usize::from(streams_of(spec, phase))).max().unwrap_or(0);
    streams + 2
}

/// Whether a socket that is bound to `bound` receives packets for `local`, the reflector's own address on a link.
fn is_behind(bound: SocketAddr, local: SocketAddr) -> bool {
    let every_address = bound.ip().is_unspecified() && bound.is_ipv4() == local.is_ipv4();
    bound.port() == local.port() && (bound.ip() == local.ip() || every_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_go_to_the_socket_of_the_port_of_the_link() {
        let is = |bound: &str, local: &str| is_behind(bound.parse().unwrap(), local.parse().unwrap());
        assert!(is("0.0.0.0:4000", "192.0.2.1:4000"));
        assert!(is("[fe80::1%2]:4000", "[fe80::1%2]:4000"));
        assert!(!is("192.0.2.1:5000", "192.0.2.1:4000"), "another port of the same address");
        assert!(!is("0.0.0.0:4000", "[2001:db8::1]:4000"));
        assert!(!is("192.0.2.2:4000", "192.0.2.1:4000"));
    }
}
