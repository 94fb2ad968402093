//! The server of the reflector: its sockets, tasks and clock. It carries out the decisions of `sessions`,
//! `connection_limiter` and `pairing`, and makes none itself.

mod accept;
mod admin_socket;
mod bounded_socket;
mod connection;
mod connection_slot;
mod counts;
mod data_connection;
mod facts_cache;
mod grant;
mod handshake;
mod known;
mod lifetime;
mod metrics_listener;
mod offer;
mod pair;
mod peers;
mod reload;
mod running_session;
mod sample_queue;
mod session_timer;
mod status;
mod watchdog;

pub use accept::{ListenError, check_listen};
pub use admin_socket::{AdminClient, AdminReply, AdminRequest, PeerLine};
#[doc(hidden)]
pub use admin_socket::{read_request, write_request};
pub use lifetime::serve;
pub use metrics_listener::MetricsListenError;
pub use reload::ConfigReloader;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use paramedic_engines::Engine;
use paramedic_engines::udp_port::UdpPort;
use paramedic_link::message::EndReason;
use paramedic_link::{EndpointId, PeerText, SessionId};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::audit::Audit;
use crate::config::Config;
use crate::event::{AuditEvent, RefusalReason};
use crate::event_throttle::{Cause, EventThrottle, SuppressedLines};
use crate::known_prefixes::KnownPrefixes;
use crate::message_budget::MessageBudgets;
use crate::pairing::{CodeId, Pairing};
use crate::sessions::{LinkId, Now, Reservation, SessionAccounts, Sessions};
use crate::status::UnavailableEngine;
use crate::store::Store;
use connection_slot::ConnectionSlots;
use counts::ServerCounts;
use peers::Peers;
use running_session::RunningSession;

/// How long a stop waits for the last links and session teardowns. A peer that does not read, or a disk that does not
/// write, must not keep the reflector from stopping.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The state that all tasks of the server share.
struct Server {
    config: Mutex<Arc<Config>>,
    reloader: ConfigReloader,
    /// Locked while the configuration is read again.
    reloading: tokio::sync::Mutex<()>,
    id: EndpointId,
    sessions: Mutex<Sessions<Arc<RunningSession>>>,
    connection_slots: Arc<ConnectionSlots>,
    known_prefixes: Mutex<KnownPrefixes>,
    /// Notified when known prefixes have changed and must be written.
    prefix_noted: Notify,
    /// Locked while known prefixes are written.
    writing_known: tokio::sync::Mutex<()>,
    pairing: Mutex<Pairing>,
    throttle: Mutex<EventThrottle>,
    budgets: Mutex<MessageBudgets>,
    facts: facts_cache::FactsCache,
    /// The number of links that may be open at once.
    max_links: usize,
    peers: Peers,
    store: Store,
    audit: Audit,
    links: Mutex<HashMap<LinkId, Link>>,
    /// Each teardown of a session holds a read lock. The write lock waits for all teardowns.
    teardowns: tokio::sync::RwLock<()>,
    /// One UDP port for each listening address. The port answers the datagrams of tunneled sessions.
    udp_ports: HashMap<SocketAddr, Arc<UdpPort>>,
    began: Instant,
    /// Wakes the session timer, because an action may be due earlier than the timer expects.
    due: Notify,
    /// Notified each time the session timer has polled the sessions.
    polled: Notify,
    /// Notified when a connection or session has ended, so that tasks that wait for a slot or descriptor try again.
    capacity: Notify,
    /// The command that opened the last pairing code. It is replaced only while `pairing` is locked, so it always
    /// belongs to the code that `pairing` has open.
    code_requester: Mutex<Option<CodeRequester>>,
    /// Notified when the write of a pairing has succeeded or failed.
    claim_settled: Notify,
    lifecycle: watch::Sender<Lifecycle>,
    counts: Arc<ServerCounts>,
    /// Where the metrics are served; `None` if they are not served.
    metrics: Option<String>,
    /// The number of datagrams, for ended sessions, that came from another address than that of the session's device,
    /// or whose source port changed during the session.
    datagrams_from_elsewhere: AtomicU64,
    /// The engines that the reflector offers.
    engines: Vec<&'static dyn Engine>,
    /// The engines that are configured but cannot run on this host.
    unavailable: Vec<UnavailableEngine>,
    /// Ended sessions whose bytes could not be written to the database yet.
    unsettled: Mutex<Vec<SessionAccounts>>,
}

/// The stages of the server from start to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lifecycle {
    Serving,
    /// The server grants no new sessions. Running sessions continue.
    Draining,
    /// All sessions and links end now.
    Stopping,
}

/// What the server and the tasks of other links know about an open link.
struct Link {
    peer: EndpointId,
    commands: mpsc::UnboundedSender<LinkCommand>,
}

/// A command to the task of a link. The channel is unbounded. It stays short, because a link has at most one request or
/// session, and the session timer sends only a few commands per second.
#[expect(clippy::large_enum_variant, reason = "one is in a channel for each queued request")]
#[derive(Debug)]
enum LinkCommand {
    /// The queued request has a reservation: turn it into a grant.
    Reserved(Reservation),
    /// The position of the queued request has changed.
    Place { place: u32, expected_wait: Duration },
    /// The queued request was denied.
    Denied(paramedic_link::message::Denial),
    /// The session of the link was ended and torn down.
    Ended { session: SessionId, reason: EndReason },
    /// The device of the link is not paired any more.
    PeerRemoved,
}

/// The command that opened a pairing code.
struct CodeRequester {
    code: CodeId,
    /// The name for the device that pairs; `None`: the name that the device sends.
    wanted_name: Option<PeerText>,
    /// Notifies the command, once, of the device that paired with the code.
    over: Option<oneshot::Sender<PairedDevice>>,
}

/// A device that paired with a code, and its name.
struct PairedDevice(EndpointId, PeerText);

impl Server {
    fn sessions(&self) -> MutexGuard<'_, Sessions<Arc<RunningSession>>> {
        lock(&self.sessions)
    }

    /// The configuration that applies at present.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.config))
    }

    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), unix_ms: unix_now() }
    }

    /// Writes audit events for answers that do not depend on the result of the write. The call fixes the position of
    /// the events in the log. Await the returned future before you send the answer. Events that cannot be written now
    /// are written later. A fault of the log shows in the status and stops further grants.
    fn record(&self, events: Vec<AuditEvent>) -> impl Future<Output = ()> + Send + use<> {
        self.audit.record_or_note(lock(&self.throttle).pass(events, self.now()))
    }

    /// Like [`Server::record`], for a caller that cannot wait.
    fn record_soon(&self, events: Vec<AuditEvent>) {
        // Without a runtime the program is ending, and so is the log.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !events.is_empty()
        {
            runtime.spawn(self.record(events));
        }
    }

    /// The number of datagrams since the start that came from another address than that of the session's device, or
    /// whose source port changed during the session.
    fn datagrams_from_elsewhere(&self) -> u64 {
        let running = self.sessions().handles().map(|running| running.datagrams().from_elsewhere).sum::<u64>();
        self.datagrams_from_elsewhere.load(Ordering::Relaxed) + running
    }

    /// Writes the charged bytes of an ended session to the database. If the disk fails, the bytes are written once the
    /// disk works again.
    async fn settle(&self, settled: SessionAccounts) {
        match self.store.settle(settled.session, settled.peer, &settled.bytes_by_day).await {
            Ok(()) => {}
            Err(error) if error.is_fault() => {
                tracing::error!(%error, "a session's bytes can't be written yet; a crash now would charge more");
                lock(&self.unsettled).push(settled);
            }
            Err(error) => tracing::error!(%error, "a session's bytes can't be written"),
        }
    }

    /// Writes the audit lines of changed peers and the charged bytes of ended sessions that could not be written while
    /// the disk failed.
    async fn write_pending(&self) {
        self.peers.settle().await;
        let unsettled = std::mem::take(&mut *lock(&self.unsettled));
        for settled in unsettled {
            self.settle(settled).await;
        }
    }

    /// The reasons why the reflector grants no sessions at present, as text; empty if it grants sessions.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(why) = &*self.audit.fault().borrow() {
            problems.push(format!("nothing is granted: {why}"));
        }
        if let Some(why) = &*self.store.fault().borrow() {
            problems.push(format!("nothing is granted: {why}"));
        }
        problems
    }

    /// Takes back the reservation of a session whose grant was not sent, if the reservation still exists. Returns the
    /// audit events that record this.
    #[must_use]
    fn undo(&self, session: SessionId) -> Vec<AuditEvent> {
        let undone = self.sessions().undo(session, self.now());
        self.capacity_freed();
        undone
    }

    /// Wakes the tasks that wait for a slot or a port, because one may be free.
    fn capacity_freed(&self) {
        self.capacity.notify_waiters();
        self.due.notify_one();
    }

    /// Ends all sessions, even those whose link is blocked in a write to a peer that does not read.
    fn end_all_sessions(self: &Arc<Self>) {
        let running = self.sessions().running().collect::<Vec<_>>();
        for session in running {
            let server = Arc::clone(self);
            tokio::spawn(async move { running_session::end_and_notify(&server, session, EndReason::Shutdown).await });
        }
    }

    /// Waits until no test is reserved or running. Does not wait for monitor sessions.
    async fn await_no_sessions(&self) {
        loop {
            let changed = self.capacity.notified();
            if self.sessions().snapshot(self.now()).sessions.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Notifies the command that opened this code of the device that paired with it.
    fn report_paired(&self, code: CodeId, end: PairedDevice) {
        let over = lock(&self.code_requester)
            .as_mut()
            .filter(|code_requester| code_requester.code == code)
            .and_then(|code_requester| code_requester.over.take());
        if let Some(over) = over {
            // The command may have ended; the pairing is made all the same.
            over.send(end).ok();
        }
    }

    /// Waits until no pairing with this code is being written.
    async fn await_no_claim(&self, code: CodeId) {
        loop {
            let settled = self.claim_settled.notified();
            if !lock(&self.pairing).is_claimed(code) {
                return;
            }
            settled.await;
        }
    }

    /// Waits until the task of every link has ended, but at most for [`STOP_TIMEOUT`]. A change of `lifecycle` ends
    /// these tasks.
    async fn await_no_links(&self) {
        let all_gone = async {
            loop {
                let changed = self.capacity.notified();
                if lock(&self.links).is_empty() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(STOP_TIMEOUT, all_gone).await.ok();
    }

    /// Counts a refused connection, and logs it unless the limit of such lines per minute is reached.
    fn refuse(&self, from: IpAddr, reason: RefusalReason, peer: Option<EndpointId>) {
        let events = lock(&self.throttle).pass(vec![AuditEvent::Refused { from, reason, peer }], self.now());
        for event in events {
            tracing::info!(?event, "refused");
            self.audit.note(event);
        }
    }

    /// Whether a line about `peer` may be written to the program's log now. A peer can cause only a limited number of
    /// such lines per minute.
    fn may_log(&self, peer: EndpointId) -> bool {
        let (may, suppressed) = lock(&self.throttle).count(Cause::Log(peer), self.now());
        self.note_suppressed(suppressed);
        may
    }

    /// Writes the counts of suppressed lines to the log in which these lines are missing.
    fn note_suppressed(&self, suppressed: impl IntoIterator<Item = SuppressedLines>) {
        for suppressed in suppressed {
            match suppressed.event() {
                Some(event) => self.audit.note(event),
                None => tracing::info!(cause = ?suppressed.cause, lines = suppressed.count, "log lines were left out"),
            }
        }
    }

    /// Sends a command to a link. Returns `false` if the link is closed.
    fn send_command(&self, link: LinkId, command: LinkCommand) -> bool {
        lock(&self.links).get(&link).is_some_and(|link| link.commands.send(command).is_ok())
    }

    /// Ends every session and link of `peer`, which was removed.
    fn disconnect_peer(&self, peer: EndpointId) {
        self.sessions().peer_removed(peer, self.now());
        self.due.notify_one();
        for link in lock(&self.links).values().filter(|link| link.peer == peer) {
            // A link that is closing needs no command.
            link.commands.send(LinkCommand::PeerRemoved).ok();
        }
    }
}

/// The time in milliseconds since 1970; 0 if the clock is set before 1970.
#[expect(clippy::disallowed_methods, reason = "the shell reads the clock for the decisions")]
fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Locks `mutex`, also if it is poisoned: a panic in one connection must not stop the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
