//! The reflector's shell: sockets, tasks and time around the pure decisions of `sessions`, `connection_limiter` and `pairing`.
//! Nothing is decided here.

mod accept;
mod admin_socket;
mod clockwork;
mod connection;
mod data_connection;
mod grant;
mod known;
mod pair;
mod peers;
mod place;
mod test_run;

pub use admin_socket::{Ask, Client, PeerLine, Status, Tell};

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use paramedic_engines::Engine;
use paramedic_engines::echo::Responder;
use paramedic_engines::engine::Lacking;
use paramedic_link::message::EndReason;
use paramedic_link::test_spec::{DataMode, EngineId};
use paramedic_link::{EndpointId, PeerText, SecretKey, SessionId, tls};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::audit::{Audit, Sizes};
use crate::config::Config;
use crate::connection_limiter::ConnectionLimiter;
use crate::descriptors::{self, Descriptors};
use crate::event::{Event, RefusalReason};
use crate::event_throttle::{Cause, EventThrottle, LeftOut};
use crate::known_prefixes::KnownPrefixes;
use crate::message_budget::MessageBudgets;
use crate::pairing::{CodeId, Pairing};
use crate::sessions::{Limits, LinkId, Now, Past, Reservation, Sessions, Settled};
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
    facts: connection::FactsCache,
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

/// Serves until a signal ends it.
pub async fn serve(config: Config, key: SecretKey, ready: impl FnOnce(&[SocketAddr])) -> anyhow::Result<()> {
    // Before anybody is told that it serves: who then asks it to end must not find nobody listening.
    let mut signals = Signals::listen()?;
    let descriptors = Descriptors::divide(allow_many_descriptors());
    let id = key.id();
    let store = Store::open(&config.database()).await?;
    let (leases, leased_bytes) = store.charge_open_leases().await?;
    let sizes = Sizes { segment: config.audit_segment_size, total: config.audit_max_size };
    let audit = Audit::open(&config.audit_dir(), sizes, store.clone()).await?;
    let peers = Peers::load(&store, &audit, &config.audit_dir(), &config.authorized_peers).await?;
    let now = unix_now();
    let known_prefixes = load_known_prefixes(&store, &peers).await?;
    let past = Past {
        tests: store.tests_since(now.saturating_sub(3_600_000)).await?,
        bytes_today: store
            .usage(Now::day_of(now))
            .await?
            .into_iter()
            .map(|(peer, bytes)| (peer, Now::day_of(now), bytes))
            .collect(),
    };
    let began = Instant::now();
    let tls = tls::reflector_config(&key).context("TLS can't be set up")?;
    let listeners = accept::listen(&config.listen)?;
    let admin = admin_socket::bind(&config.admin_socket())?;
    // The admin socket is ours, and with it the folder that it stands in.
    let (engines, lacking) = offered(&config).await?;
    let limits = Limits { descriptors: descriptors.sessions, ..limits(&config, &engines) };
    let sessions = Sessions::new(limits, past, Now { mono: Duration::ZERO, unix_ms: now });
    let mut responders = HashMap::new();
    for (listener, udp) in &listeners {
        let responder = Responder::spawn(udp.try_clone()?).context("the latency responder can't start")?;
        responders.insert(listener.local_addr()?, responder);
    }
    let server = Arc::new(Server {
        id,
        sessions: Mutex::new(sessions),
        places: Arc::new(Places::new(ConnectionLimiter::new(descriptors.unauthenticated, known_prefixes.all(now)))),
        known_prefixes: Mutex::new(known_prefixes),
        prefix_noted: Notify::new(),
        pairing: Mutex::new(Pairing::new(id)),
        throttle: Mutex::default(),
        budgets: Mutex::default(),
        facts: connection::FactsCache::default(),
        max_links: descriptors.links,
        peers,
        store,
        audit,
        links: Mutex::default(),
        teardowns: tokio::sync::RwLock::default(),
        responders,
        began,
        due: Notify::new(),
        room: Notify::new(),
        opener: Mutex::default(),
        claim_settled: Notify::new(),
        stage: watch::channel(Stage::Serving).0,
        lacking,
        unsettled: Mutex::default(),
        config,
    });
    let mut first = vec![Event::Started { version: env!("CARGO_PKG_VERSION").to_owned(), endpoint_id: id }];
    if leases > 0 {
        first.push(Event::LeasesCharged { sessions: leases, bytes: leased_bytes });
    }
    server.audit.record(first).await.context("the audit log can't be written")?;

    let mut tasks = JoinSet::new();
    let mut addresses = Vec::new();
    for (listener, _) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        addresses.push(listener.local_addr()?);
        tasks.spawn(accept::run(Arc::clone(&server), listener, Arc::clone(&tls)));
    }
    tasks.spawn(clockwork::run(Arc::clone(&server)));
    tasks.spawn(admin_socket::run(Arc::clone(&server), admin));
    tasks.spawn(known::keep(Arc::clone(&server)));
    tasks.spawn({
        let store = server.store.clone();
        async move { store.watch_over().await }
    });
    tasks.spawn({
        let server = Arc::clone(&server);
        let mut of_store = server.store.fault();
        let mut of_audit = server.audit.fault();
        async move {
            loop {
                let is_faulted = of_audit.borrow_and_update().is_some() || of_store.borrow_and_update().is_some();
                server.sessions().set_faulted(is_faulted);
                server.due.notify_one();
                if !is_faulted {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move { server.catch_up().await });
                }
                let changed = tokio::select! {
                    changed = of_audit.changed() => changed,
                    changed = of_store.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        }
    });
    ready(&addresses);
    // Outside of systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(endpoint_id = %id, ?addresses, "serving");

    drain_on_signal(&server, &mut signals, &mut tasks).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.stage.send_replace(Stage::Stopping);
    server.end_all_sessions();
    server.await_no_links().await;
    tasks.shutdown().await;
    let _ = tokio::time::timeout(STOPPING, server.teardowns.write()).await;
    let left_out = lock(&server.throttle).finish();
    let mut last = left_out.into_iter().filter_map(LeftOut::event).collect::<Vec<_>>();
    last.push(Event::Stopped);
    // What can't be written any more must not keep the program from ending.
    let _ = server.audit.record(last).await;
    server.catch_up().await;
    server.write_known().await;
    server.store.close().await;
    Ok(())
}

/// The signals that end the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The first signal lets running sessions finish, a second one ends them. An error: one of the tasks that everything
/// depends on is gone, and only a new start helps.
async fn drain_on_signal(server: &Server, signals: &mut Signals, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let lost = |_| anyhow::anyhow!("a part of the reflector ended; its log says more");
    let mut stage = server.stage.subscribe();
    tokio::select! {
        () = signals.next() => {}
        _ = stage.wait_for(|stage| *stage >= Stage::Draining) => {}
        Some(ended) = tasks.join_next() => return Err(lost(ended)),
    }
    tracing::info!("draining: running sessions go on, new ones are not granted");
    server.sessions().drain();
    server.stage.send_replace(Stage::Draining);
    server.due.notify_one();
    tokio::select! {
        () = signals.next() => {}
        () = server.await_no_sessions() => {}
        Some(ended) = tasks.join_next() => return Err(lost(ended)),
    }
    Ok(())
}

/// A session of 64 streams each way takes some 400 descriptors, and shells and service managers often allow 1,024 in
/// all where the kernel would allow more. Returns what is allowed; `None`: any number.
fn allow_many_descriptors() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let allowed = getrlimit(Resource::Nofile).current;
    if let Some(allowed) = allowed.filter(|allowed| *allowed < descriptors::ENOUGH) {
        tracing::warn!(
            allowed,
            "few open files are allowed: large sessions are refused (LimitNOFILE raises the limit)"
        );
    }
    allowed
}

/// From where the paired devices authenticated. What a device left behind that is no longer paired is removed.
async fn load_known_prefixes(store: &Store, peers: &Peers) -> anyhow::Result<KnownPrefixes> {
    let rows = store.known_prefixes().await?;
    let gone = rows.iter().map(|(peer, ..)| *peer).filter(|peer| !peers.is_paired(*peer));
    for peer in gone.collect::<std::collections::BTreeSet<_>>() {
        store.forget_prefixes(peer).await?;
    }
    Ok(KnownPrefixes::new(rows.into_iter().filter(|(peer, ..)| peers.is_paired(*peer))))
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

/// An engine that was to be offered and can't be, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LackingEngine {
    /// Which.
    pub engine: EngineId,
    /// Because of what.
    pub because: String,
    /// What to do about it.
    #[serde(rename = "try")]
    pub try_: String,
}

/// The engines that the operator wants and this host can play, each tried out, and those that it can't.
async fn offered(config: &Config) -> anyhow::Result<(Vec<&'static dyn Engine>, Vec<LackingEngine>)> {
    let scratch = config.scratch_dir();
    // What a reflector that was killed left there.
    if let Err(error) = std::fs::remove_dir_all(&scratch)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "an old working folder can't be removed");
    }
    // Not one that another user makes in the meantime.
    let made = std::fs::DirBuilder::new().mode(0o700).create(&scratch);
    made.with_context(|| format!("cannot make {}", scratch.display()))?;
    let (mut engines, mut lacking) = (Vec::new(), Vec::new());
    for engine in paramedic_engines::ENGINES.iter().copied().filter(|engine| config.wants(engine.id())) {
        let is_direct_alone = engine.data_modes() == [DataMode::DirectEphemeral];
        let fit = if is_direct_alone && !config.offers_direct() {
            let because = "its data takes ports of its own, and this reflector has the tunnel alone".to_owned();
            Err(Lacking { because, try_: "set mode = \"direct_ephemeral\"".to_owned() })
        } else {
            let scratch = scratch.clone();
            tokio::task::spawn_blocking(move || engine.has_serve(&scratch)).await?
        };
        match (fit, EngineId::try_from(engine.id())) {
            (Err(Lacking { because, try_ }), Ok(id)) => {
                tracing::warn!(engine = %id, %because, "not offered");
                lacking.push(LackingEngine { engine: id, because, try_ });
            }
            _ => engines.push(engine),
        }
    }
    Ok((engines, lacking))
}

/// The session rules as configured, with the engines that can be offered.
fn limits(config: &Config, engines: &[&'static dyn Engine]) -> Limits {
    let direct = config.offers_direct();
    let mut data_modes = vec![DataMode::Tunneled];
    if direct {
        data_modes.push(DataMode::DirectEphemeral);
    }
    let engines =
        engines.iter().filter_map(|engine| Some((EngineId::try_from(engine.id()).ok()?, engine.data_modes())));
    Limits {
        max_concurrent_tests: config.max_concurrent_tests,
        max_test_duration: config.max_test_duration,
        max_streams: config.max_streams,
        max_tests_per_hour: config.max_tests_per_hour,
        max_bytes_per_day: config.max_bytes_per_day,
        max_bytes_per_day_total: config.max_bytes_per_day_total,
        max_queue: config.max_queue,
        data_ports: direct.then(|| config.data_port_range.clone()),
        data_modes,
        engine_modes: engines.clone().map(|(id, modes)| (id, modes.to_vec())).collect(),
        engines: engines.map(|(id, _)| id).collect(),
        ..Limits::default()
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
