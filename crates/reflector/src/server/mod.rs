//! The reflector's shell: sockets, tasks and time around the pure decisions of `sessions`, `connection_limiter` and `pairing`.
//! Nothing is decided here.

mod accept;
mod admin_socket;
mod clockwork;
mod connection;
mod data_connection;
mod facts_cache;
mod grant;
mod handshake;
mod known;
mod lifetime;
mod offer;
mod pair;
mod peers;
mod place;
mod test_run;

pub use admin_socket::{Ask, Client, PeerLine, Status, Tell};
pub use lifetime::serve;
pub use offer::LackingEngine;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use paramedic_engines::echo::Responder;
use paramedic_link::message::EndReason;
use paramedic_link::{EndpointId, PeerText, SessionId};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::audit::Audit;
use crate::config::Config;
use crate::event::{Event, RefusalReason};
use crate::event_throttle::{Cause, EventThrottle, LeftOut};
use crate::known_prefixes::KnownPrefixes;
use crate::message_budget::MessageBudgets;
use crate::pairing::{CodeId, Pairing};
use crate::sessions::{LinkId, Now, Reservation, Sessions, Settled};
use crate::store::Store;
use peers::Peers;
use place::Places;
use test_run::Running;

/// How long the last links and teardowns may take when everything ends: a peer that doesn't read, or a disk that
/// doesn't write, must not keep the reflector from stopping.
const STOPPING: Duration = Duration::from_secs(5);

/// What every task of the server works with.
struct Server {
    config: Config,
    id: EndpointId,
    sessions: Mutex<Sessions<Arc<Running>>>,
    places: Arc<Places>,
    known_prefixes: Mutex<KnownPrefixes>,
    /// A prefix was noted that is not written yet.
    prefix_noted: Notify,
    pairing: Mutex<Pairing>,
    throttle: Mutex<EventThrottle>,
    budgets: Mutex<MessageBudgets>,
    facts: facts_cache::FactsCache,
    /// The most links that stand at once.
    max_links: usize,
    peers: Peers,
    store: Store,
    audit: Audit,
    links: Mutex<HashMap<LinkId, Link>>,
    /// Read by each session's teardown while it lasts; written by who waits for all of them.
    teardowns: tokio::sync::RwLock<()>,
    /// One for each address that is listened on: answers the probes of tunneled sessions.
    responders: HashMap<SocketAddr, Arc<Responder>>,
    began: Instant,
    /// Something may be due earlier than the clockwork thinks.
    due: Notify,
    /// A connection ended: whoever waits for a place or a descriptor may try again.
    room: Notify,
    /// Who opened the last code. Locked while `pairing` is.
    opener: Mutex<Option<Opener>>,
    /// A pairing was written down, or could not be.
    claim_settled: Notify,
    stage: watch::Sender<Stage>,
    /// Engines that were to be offered and can't be.
    lacking: Vec<LackingEngine>,
    /// Sessions that are over and whose bytes could not be charged on disk yet.
    unsettled: Mutex<Vec<Settled>>,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// No new sessions; running ones go on.
    Draining,
    /// Everything ends now.
    Stopping,
}

/// A standing link, as the rest of the server sees it.
struct Link {
    peer: EndpointId,
    orders: mpsc::UnboundedSender<Order>,
}

/// What the server has to tell a link's task. Unbounded, but each link has at most one request or session, and the
/// clockwork sends a few of these a second.
#[derive(Debug)]
enum Order {
    /// Its turn has come.
    Reserved(Reservation),
    /// Its place in the queue.
    Place { place: u32, expected_wait: Duration },
    /// Its request is not granted after all.
    Denied(paramedic_link::message::Denial),
    /// Its session is over, and torn down.
    Ended { session: SessionId, reason: EndReason },
    /// Its peer is no longer one.
    PeerRemoved,
}

/// Who opened a code.
struct Opener {
    code: CodeId,
    /// The name that it wants for the device that pairs.
    wanted_name: Option<PeerText>,
    /// Hears what became of the code, once.
    over: Option<oneshot::Sender<CodeUsed>>,
}

/// This device paired with the code, and goes by this name.
struct CodeUsed(EndpointId, PeerText);

impl Server {
    fn sessions(&self) -> MutexGuard<'_, Sessions<Arc<Running>>> {
        lock(&self.sessions)
    }

    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), unix_ms: unix_now() }
    }

    /// Writes events that no promise hangs on. They take their place in the log now; await the answer before telling
    /// of them. What can't be written is noted for when it can: a fault shows in the status and stops further grants.
    fn record(&self, events: Vec<Event>) -> impl Future<Output = ()> + Send + use<> {
        let events = lock(&self.throttle).pass(events, self.now());
        let audit = self.audit.clone();
        let recorded = audit.record(events.clone());
        async move {
            if recorded.await.is_err() {
                events.into_iter().for_each(|event| audit.note(event));
            }
        }
    }

    /// As [`Server::record`], for a caller that can't wait.
    fn record_soon(&self, events: Vec<Event>) {
        // Without a runtime the program is ending, and so is the log.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !events.is_empty()
        {
            runtime.spawn(self.record(events));
        }
    }

    /// Charges the bytes of a session that is over; where the disk fails, once it no longer does.
    async fn settle(&self, settled: Settled) {
        match self.store.settle(settled.session, &settled.bytes_by_day).await {
            Ok(()) => {}
            Err(error) if error.is_fault() => {
                tracing::error!(%error, "a session's bytes can't be settled yet; a crash now charges its whole lease");
                lock(&self.unsettled).push(settled);
            }
            Err(error) => tracing::error!(%error, "a session's bytes can't be settled"),
        }
    }

    /// Writes what a fault of the disk left to be written.
    async fn catch_up(&self) {
        self.peers.settle().await;
        let unsettled = std::mem::take(&mut *lock(&self.unsettled));
        for settled in unsettled {
            self.settle(settled).await;
        }
    }

    /// What keeps grants from being given, in words; empty where all is well.
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

    /// Takes a reservation back, if it stands: nothing was promised. The events of that.
    #[must_use]
    fn undo(&self, session: SessionId) -> Vec<Event> {
        let undone = self.sessions().undo(session, self.now());
        self.made_room();
        undone
    }

    /// A slot or a port may be free again: whoever waits for one looks.
    fn made_room(&self) {
        self.room.notify_waiters();
        self.due.notify_one();
    }

    /// Ends what runs, also where a link's task stands in a write to a peer that doesn't read.
    fn end_all_sessions(self: &Arc<Self>) {
        let running = self.sessions().running().collect::<Vec<_>>();
        for session in running {
            let server = Arc::clone(self);
            tokio::spawn(async move { test_run::end_and_tell(&server, session, EndReason::Shutdown).await });
        }
    }

    /// Ends once no session is reserved or runs.
    async fn await_no_sessions(&self) {
        loop {
            let changed = self.room.notified();
            if self.sessions().snapshot(self.now()).sessions.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Tells whoever opened this code what became of it.
    fn code_over(&self, code: CodeId, end: CodeUsed) {
        let over =
            lock(&self.opener).as_mut().filter(|opener| opener.code == code).and_then(|opener| opener.over.take());
        if let Some(over) = over {
            // Nobody may be listening any more; what happened stands all the same.
            let _ = over.send(end);
        }
    }

    /// Ends once no pairing with this code is being written down.
    async fn await_no_claim(&self, code: CodeId) {
        loop {
            let settled = self.claim_settled.notified();
            if !lock(&self.pairing).is_claimed(code) {
                return;
            }
            settled.await;
        }
    }

    /// Ends once every link's task is over; they are told by the stage.
    async fn await_no_links(&self) {
        let all_gone = async {
            loop {
                let changed = self.room.notified();
                if lock(&self.links).is_empty() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(STOPPING, all_gone).await;
    }

    /// Counts a refused connection, and logs it at a bounded rate.
    fn refuse(&self, from: IpAddr, reason: RefusalReason, peer: Option<EndpointId>) {
        let events = lock(&self.throttle).pass(vec![Event::Refused { from, reason, peer }], self.now());
        for event in events {
            tracing::info!(?event, "refused");
            self.audit.note(event);
        }
    }

    /// Whether a line that `peer` causes may be written to the program's log now.
    fn may_log(&self, peer: EndpointId) -> bool {
        let (may, left_out) = lock(&self.throttle).count(Cause::Log(peer), self.now());
        self.note_left_out(left_out);
        may
    }

    /// Writes how many lines were left out.
    fn note_left_out(&self, left_out: impl IntoIterator<Item = LeftOut>) {
        for left_out in left_out {
            match left_out.event() {
                Some(event) => self.audit.note(event),
                None => tracing::info!(cause = ?left_out.cause, lines = left_out.count, "log lines were left out"),
            }
        }
    }

    /// Gives an order to a link, if it still stands.
    fn order(&self, link: LinkId, order: Order) -> bool {
        lock(&self.links).get(&link).is_some_and(|link| link.orders.send(order).is_ok())
    }

    /// Ends every session and link of `peer`, which is no longer one.
    fn cut_off(&self, peer: EndpointId) {
        self.sessions().peer_removed(peer, self.now());
        self.due.notify_one();
        for link in lock(&self.links).values().filter(|link| link.peer == peer) {
            // A link that is ending anyway needs no order.
            let _ = link.orders.send(Order::PeerRemoved);
        }
    }
}

/// Milliseconds since 1970; a clock before that reads as 0.
fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A lock that survives a panicking holder: one connection's fault is its own.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
