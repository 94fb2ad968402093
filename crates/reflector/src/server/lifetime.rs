//! Starts and stops the server: what it is started with, the signals that end it, and the order in which its parts end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use paramedic_engines::udp_port::UdpPort;
use paramedic_host::unix_socket::UnixSocket;
use paramedic_host::version;
use paramedic_link::{SecretKey, tls};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::connection_slot::ConnectionSlots;
use super::counts::ServerCounts;
use super::facts_cache::FactsCache;
use super::metrics_listener::{self, MetricsListener};
use super::offer::{limits, offered};
use super::peers::Peers;
use super::reload::{self, ConfigReloader, Hangup};
use super::{Lifecycle, STOP_TIMEOUT, Server, accept, admin_socket, known, lock, session_timer, unix_now, watchdog};
use crate::audit::{Audit, Sizes};
use crate::config::Config;
use crate::connection_limiter::ConnectionLimiter;
use crate::descriptors::{self, DescriptorShares};
use crate::event::AuditEvent;
use crate::event_throttle::SuppressedLines;
use crate::known_prefixes::KnownPrefixes;
use crate::pairing::Pairing;
use crate::sessions::{DAYS_KEPT, Limits, Now, PastUsage, Sessions, charged_after_crash};
use crate::store::Store;

/// Serves until a signal or `reflector drain` ends the reflector. Calls `ready` with the listening addresses once
/// clients can connect.
pub async fn serve(
    config: Config,
    key: SecretKey,
    reloader: ConfigReloader,
    ready: impl FnOnce(&[SocketAddr]),
) -> anyhow::Result<()> {
    // The signals are handled before the server reports that it is ready, because a signal may arrive right after the
    // report.
    let hangup = Hangup::of_this_process();
    let mut signals = Signals::listen(hangup)?;
    let reload_signal = (hangup == Hangup::Reloads).then(|| signal(SignalKind::hangup())).transpose()?;
    let descriptors = DescriptorShares::divide(allow_many_descriptors(config.listen.len()), config.listen.len());
    let id = key.id();
    let store = Store::open(&config.database()).await?;
    let (leases, charged_bytes) = charge_open_leases(&store).await?;
    let sizes = Sizes { segment: config.audit_segment_size, total: config.audit_max_size };
    let audit = Audit::open(&config.audit_dir(), sizes, store.clone()).await?;
    let peers = Peers::load(&store, &audit, &config.audit_dir(), &config.authorized_peers).await?;
    let now = unix_now();
    let known_prefixes = load_known_prefixes(&store, &peers).await?;
    let past = PastUsage {
        tests: store.tests_since(now.saturating_sub(3_600_000)).await?,
        bytes: store.usage_from(Now::day_of(now).saturating_sub(DAYS_KEPT)).await?,
    };
    #[expect(clippy::disallowed_methods, reason = "the shell reads the clock for the decisions")]
    let began = Instant::now();
    let tls = tls::reflector_config(&key).context("cannot set up TLS")?;
    let listeners = accept::listen(&config.listen, config.listen_freebind)?;
    let admin = UnixSocket::bind(&config.admin_socket())?;
    let metrics = MetricsListener::bind(&config.metrics_listen)?;
    // The store locks the state folder, so no other reflector uses the working folder that this call empties.
    let (engines, unavailable) = offered(&config).await?;
    let limits = Limits { descriptors: descriptors.sessions, ..limits(&config, &engines) };
    let sessions = Sessions::new(limits, past, Now { mono: Duration::ZERO, unix_ms: now });
    let mut udp_ports = HashMap::new();
    for (listener, udp) in &listeners {
        let port = UdpPort::spawn(udp.try_clone()?).context("the latency responder can't start")?;
        udp_ports.insert(listener.local_addr()?, port);
    }
    let server = Arc::new(Server {
        id,
        sessions: Mutex::new(sessions),
        connection_slots: Arc::new(ConnectionSlots::new(ConnectionLimiter::new(
            descriptors.unauthenticated,
            known_prefixes.all(now),
        ))),
        known_prefixes: Mutex::new(known_prefixes),
        prefix_noted: Notify::new(),
        writing_known: tokio::sync::Mutex::default(),
        pairing: Mutex::new(Pairing::new(id)),
        throttle: Mutex::default(),
        budgets: Mutex::default(),
        facts: FactsCache::default(),
        max_links: descriptors.links,
        peers,
        store,
        audit,
        links: Mutex::default(),
        teardowns: tokio::sync::RwLock::default(),
        udp_ports,
        began,
        due: Notify::new(),
        polled: Notify::new(),
        capacity: Notify::new(),
        code_requester: Mutex::default(),
        claim_settled: Notify::new(),
        lifecycle: watch::channel(Lifecycle::Serving).0,
        counts: Arc::new(ServerCounts::default()),
        metrics: metrics.as_ref().map(MetricsListener::place),
        datagrams_from_elsewhere: AtomicU64::new(0),
        engines,
        unavailable,
        unsettled: Mutex::default(),
        config: Mutex::new(Arc::new(config)),
        reloader,
        reloading: tokio::sync::Mutex::default(),
    });
    let mut first = vec![AuditEvent::Started { version: version::VERSION.to_owned(), endpoint_id: id }];
    if leases > 0 {
        first.push(AuditEvent::LeasesCharged { sessions: leases, bytes: charged_bytes });
    }
    server.audit.record(first).await.context("the audit log can't be written")?;

    let mut tasks = JoinSet::new();
    let mut addresses = Vec::new();
    for (listener, _) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        addresses.push(listener.local_addr()?);
        tasks.spawn(accept::run(Arc::clone(&server), listener, Arc::clone(&tls)));
    }
    tasks.spawn(session_timer::run(Arc::clone(&server)));
    tasks.spawn(admin_socket::run(Arc::clone(&server), admin));
    if let Some(listener) = metrics {
        tracing::info!(place = listener.place(), "serving metrics");
        tasks.spawn(metrics_listener::run(Arc::clone(&server), listener));
    }
    tasks.spawn(known::keep(Arc::clone(&server)));
    if let Some(signal) = reload_signal {
        tasks.spawn(reload::on_signal(Arc::clone(&server), signal));
    }
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
                    tokio::spawn(async move { server.write_pending().await });
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
    // Outside of systemd this does nothing.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    if let Some(timeout) = sd_notify::watchdog_enabled() {
        tasks.spawn(watchdog::run(Arc::clone(&server), timeout));
    }
    tracing::info!(endpoint_id = %id, ?addresses, "serving");

    drain_on_signal(&server, &mut signals, &mut tasks).await?;
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    server.lifecycle.send_replace(Lifecycle::Stopping);
    server.end_all_sessions();
    server.await_no_links().await;
    tasks.shutdown().await;
    tokio::time::timeout(STOP_TIMEOUT, server.teardowns.write()).await.ok();
    let suppressed = lock(&server.throttle).finish();
    let mut last = suppressed.into_iter().filter_map(SuppressedLines::event).collect::<Vec<_>>();
    last.push(AuditEvent::Stopped);
    // A log that can't be written must not keep the program from ending.
    server.audit.record(last).await.ok();
    server.write_pending().await;
    // The end of the tasks may have cancelled a write of known prefixes.
    tokio::time::timeout(STOP_TIMEOUT, server.write_known()).await.ok();
    server.store.close().await;
    Ok(())
}

/// Charges the sessions that were running when the reflector crashed. Returns the number of sessions and of charged
/// bytes.
async fn charge_open_leases(store: &Store) -> anyhow::Result<(u64, u64)> {
    let (mut sessions, mut bytes) = (0, 0_u64);
    for open in store.open_leases().await? {
        let charged = charged_after_crash(&open.leased, open.recorded);
        store.settle(open.session, open.peer, &charged).await?;
        sessions += 1;
        bytes = charged.iter().fold(bytes, |sum, (_, bytes)| sum.saturating_add(*bytes));
    }
    Ok((sessions, bytes))
}

/// The signals that end the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The signal SIGHUP, if it ends this process because the terminal was closed; otherwise `None`.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen(hangup: Hangup) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: (hangup == Hangup::Ends).then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Waits until the server must stop. After the first signal or `reflector drain`, the server grants no new sessions;
/// this returns once the running sessions have finished, or at the next signal. Fails if one of `tasks` ends: the
/// server depends on all of them, so only a restart helps.
async fn drain_on_signal(server: &Server, signals: &mut Signals, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let lost = |_| anyhow::anyhow!("a task of the reflector ended unexpectedly; see the log of the reflector");
    let mut stage = server.lifecycle.subscribe();
    tokio::select! {
        () = signals.next() => {}
        _ = stage.wait_for(|stage| *stage >= Lifecycle::Draining) => {}
        Some(ended) = tasks.join_next() => return Err(lost(ended)),
    }
    tracing::info!("draining: running sessions go on, new ones are not granted");
    server.sessions().drain();
    server.lifecycle.send_replace(Lifecycle::Draining);
    server.due.notify_one();
    tokio::select! {
        () = signals.next() => {}
        () = server.await_no_sessions() => {}
        Some(ended) = tasks.join_next() => return Err(lost(ended)),
    }
    Ok(())
}

/// Raises the limit of open file descriptors to its maximum. A session of 64 streams in each direction may use more
/// than 600 descriptors, and shells and service managers often set 1,024 although the kernel would allow more. Returns
/// the new limit; `None` if the number is unlimited.
fn allow_many_descriptors(listening: usize) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let allowed = getrlimit(Resource::Nofile).current;
    if let Some(allowed) = allowed.filter(|allowed| *allowed < descriptors::enough(listening)) {
        tracing::warn!(allowed, "the limit of open files is low: large sessions are refused (raise LimitNOFILE)");
    }
    allowed
}

/// Loads the prefixes from which paired devices authenticated. Removes those of devices that are not paired any more.
async fn load_known_prefixes(store: &Store, peers: &Peers) -> anyhow::Result<KnownPrefixes> {
    let rows = store.known_prefixes().await?;
    let gone = rows.iter().map(|(peer, ..)| *peer).filter(|peer| !peers.is_paired(*peer));
    for peer in gone.collect::<std::collections::BTreeSet<_>>() {
        store.forget_prefixes(peer).await?;
    }
    Ok(KnownPrefixes::new(rows.into_iter().filter(|(peer, ..)| peers.is_paired(*peer))))
}
