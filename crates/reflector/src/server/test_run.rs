//! One granted session while it runs: its engine's end, its probes, its keys, its lease.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use paramedic_engines::data_stream::DataStream;
use paramedic_engines::echo::{Enrolment, Responder};
use paramedic_engines::engine::{Progress, Serve, ServeOrder};
use paramedic_engines::tether::Tether;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::{PhaseTally, Sample};
use paramedic_link::message::EndReason;
use paramedic_link::test_spec::{Direction, TestSpec};
use paramedic_link::{EndpointId, SessionId};
use tokio::sync::{Notify, mpsc};

use super::accept::Place;
use super::{Server, lock};
use crate::sessions::{LinkId, Reservation};

/// The first slice of bytes that a session leases.
const FIRST_LEASE: u64 = 16 << 20;
/// The largest slice, about a second of the fastest link there is.
const LARGEST_LEASE: u64 = 16 << 30;
/// How long one slice should last at the rate of the one before.
const LEASE_LASTS: Duration = Duration::from_millis(500);

/// One granted session.
pub(super) struct Running {
    pub(super) session: SessionId,
    pub(super) link: LinkId,
    pub(super) peer: EndpointId,
    pub(super) spec: TestSpec,
    pub(super) keys: Arc<SessionKeys>,
    pub(super) tether: Arc<Tether>,
    /// What it holds until it is closed. A phase reads it for as long as it runs.
    ends: RwLock<Option<OurEnds>>,
    wants_lease: Arc<Notify>,
}

/// The sockets and threads of a session at our side.
struct OurEnds {
    serve: Box<dyn Serve>,
    _enrolment: Enrolment,
    /// In direct mode this session's own, which ends with it.
    _responder: Arc<Responder>,
    /// Places behind the door that its data connections hold until the session is over.
    places: Mutex<Vec<Place>>,
}

/// What a phase's thread tells the link's task.
#[derive(Debug)]
pub(super) enum RunEvent {
    Started(u8),
    Sample(u8, Direction, Sample),
    Done(u8, Box<PhaseTally>),
}

impl Running {
    /// Claims everything that the session needs. `AddrInUse`: its port is held by somebody else's program.
    pub(super) fn open(
        server: &Server,
        reservation: &Reservation,
        keys: SessionKeys,
        local: SocketAddr,
        from: IpAddr,
    ) -> io::Result<Self> {
        let keys = Arc::new(keys);
        let wants_lease = Arc::new(Notify::new());
        let tether = {
            let wants_lease = Arc::clone(&wants_lease);
            Tether::leased(move || wants_lease.notify_one())
        };
        let claim = reservation.port.map(|port| SocketAddr::new(local.ip(), port));
        let responder = match claim {
            Some(claim) => Responder::spawn(UdpSocket::bind(claim)?)?,
            None => server
                .responders
                .iter()
                .find(|(at, _)| at.ip() == local.ip() || (at.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4()))
                .map(|(_, responder)| Arc::clone(responder))
                .ok_or(io::ErrorKind::AddrNotAvailable)?,
        };
        let engine = paramedic_engines::find(reservation.spec.engine.as_str()).ok_or(io::ErrorKind::Unsupported)?;
        let serve = engine.open(ServeOrder {
            spec: reservation.spec.clone(),
            keys: Arc::clone(&keys),
            claim,
            peer: from,
            tether: Arc::clone(&tether),
        })?;
        Ok(Self {
            session: reservation.session,
            link: reservation.link,
            peer: reservation.peer,
            spec: reservation.spec.clone(),
            ends: RwLock::new(Some(OurEnds {
                serve,
                _enrolment: responder.enroll(Arc::clone(&keys), Arc::clone(&tether), from),
                _responder: responder,
                places: Mutex::default(),
            })),
            keys,
            tether,
            wants_lease,
        })
    }

    /// Takes a data connection that proved that it belongs here.
    pub(super) fn admit(&self, preamble: Preamble, stream: DataStream, place: Place) {
        // Being closed already: the connection is dropped.
        let Ok(ends) = self.ends.try_read() else { return };
        if let Some(ends) = ends.as_ref() {
            lock(&ends.places).push(place);
            ends.serve.admit(preamble, stream);
        }
    }

    /// Ends the session's work and frees all that it holds: returns when its phase's threads are gone and its port is
    /// free. Blocking, for as long as a cut tether takes to be noticed.
    pub(super) fn close(&self) {
        self.tether.cut();
        let ends = self.ends.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(ends);
    }

    /// Runs a phase on threads of its own.
    pub(super) fn start(self: &Arc<Self>, phase: u8, events: mpsc::UnboundedSender<RunEvent>) -> io::Result<()> {
        let running = Arc::clone(self);
        let run = move || {
            // A receiver that is gone is a link that ended: its task cuts the tether, and the phase ends.
            let report = |progress| {
                let _ = events.send(match progress {
                    Progress::Started => RunEvent::Started(phase),
                    Progress::Received(direction, sample) | Progress::Sent(direction, sample) => {
                        RunEvent::Sample(phase, direction, sample)
                    }
                });
            };
            let ends = running.ends.read().unwrap_or_else(PoisonError::into_inner);
            let tally = ends.as_ref().map_or_else(PhaseTally::default, |ends| ends.serve.run(phase, &report));
            drop(ends);
            let _ = events.send(RunEvent::Done(phase, Box::new(tally)));
        };
        std::thread::Builder::new().name(format!("phase-{phase}")).spawn(run).map(drop)
    }

    /// Leases bytes for the session as it uses them up: each slice is on disk before it may flow. Ends with the
    /// session, or with the reason why no more may flow.
    pub(super) async fn keep_leased(self: Arc<Self>, server: Arc<Server>) -> EndReason {
        let mut slice = FIRST_LEASE;
        let mut is_last = false;
        loop {
            let asked = Instant::now();
            let leased = server.sessions().lease(self.session, slice, server.now());
            let lease = match leased {
                Ok(lease) => lease,
                // All bytes of the day are leased; what this session has of them may still flow.
                Err(EndReason::BytesPerDay) if !is_last => {
                    is_last = true;
                    self.tether.allow(0);
                    self.wants_lease.notified().await;
                    continue;
                }
                Err(reason) => return reason,
            };
            is_last = false;
            if let Err(error) = server.store.lease(self.session, self.peer, lease.day, lease.bytes).await {
                tracing::error!(%error, session = %self.session, "a lease can't be written");
                return EndReason::Failed;
            }
            self.tether.allow(lease.bytes);
            self.wants_lease.notified().await;
            // Half of the slice was used in this time; aim at slices that last.
            let lasted = asked.elapsed().max(Duration::from_millis(1));
            let next = (lease.bytes / 2) as f64 * LEASE_LASTS.as_secs_f64() / lasted.as_secs_f64();
            slice = (next as u64).clamp(slice / 2, slice.saturating_mul(4)).clamp(FIRST_LEASE, LARGEST_LEASE);
        }
    }
}
