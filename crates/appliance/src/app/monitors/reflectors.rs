//! The task of a monitor whose target is a reflector: keeps a link with a monitor session, and sends probes in that
//! session.

use std::net::SocketAddr;
use std::time::Duration;

use paramedic_link::feature::Feature;
use paramedic_link::message::{
    CloseReason, DenialReason, END_MONITOR_AFTER_SILENCE, EndReason, MONITOR_PING, ToAppliance, ToReflector,
};
use paramedic_link::tls::Expect;
use tokio::sync::watch;

use super::carriers::{SessionCarrier, is_accepting};
use super::context::MonitorContext;
use super::is_gone;
use crate::app::clocks::{random, since_boot};
use crate::error::{ApplianceError, LinkFailure};
use crate::monitor::PauseReason;
use crate::monitor::backoff::Backoff;
use crate::monitor::minute::ProbeOutcome;
use crate::reflector_client::{ReflectorClient, Route};

/// How long it may take to open a link, from the first packet to the granted session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to open a check connection. Such a connection only shows whether the reflector is reachable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// The minimum time between two check connections.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// After a reflector has announced that it ends, a failed connection within this time does not count as an outage,
/// because the reflector probably restarts.
const RESTART_TIME: Duration = Duration::from_secs(60);
/// If this many probes at the start of a session are all lost, the path counts as one that does not carry UDP.
const FIRST_PROBES: u32 = 10;

/// A link to a reflector with the monitor session on it.
struct MonitorLink {
    client: ReflectorClient,
    carrier: SessionCarrier,
}

/// Why there is no monitor session with the reflector.
enum NoSession {
    /// No address of the reflector accepted a connection.
    Unreachable,
    /// The reflector is reachable, or nothing was tried. The duration is the time to wait before the next attempt;
    /// `None` if the usual backoff decides.
    Paused(PauseReason, Option<Duration>),
    /// The link to the reflector was lost.
    Lost,
    /// The reflector announced that it ends. It probably restarts.
    Drained,
    /// The network of this host changed.
    HostChanged,
}

/// Probes the reflector with this name until `stopped` becomes true.
pub(super) async fn probe(context: &MonitorContext, name: &str, mut stopped: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    let mut last_address = None;
    // The times since boot at which the reflector announced its end, and at which the link was lost.
    let (mut drained, mut lost) = (None::<Duration>, None::<Duration>);
    loop {
        let session = tokio::select! {
            session = open(context, name, &mut last_address) => session,
            _ = stopped.wait_for(|wanted| *wanted) => return,
        };
        let ended = match session {
            Ok(mut link) => {
                (drained, lost) = (None, None);
                context.reached();
                let ended = tokio::select! {
                    ended = serve(context, &mut link, &mut backoff) => Some(ended),
                    _ = stopped.wait_for(|wanted| *wanted) => None,
                };
                let Some(ended) = ended else { return link.client.finish().await };
                if !matches!(ended, NoSession::Lost) {
                    link.client.close("the monitor session ended").await;
                }
                ended
            }
            Err(none) => none,
        };
        let wait = async {
            match ended {
                NoSession::Unreachable => {
                    let wait = backoff.unreachable(random());
                    if drained.is_some_and(|at| since_boot() < at + RESTART_TIME) {
                        context.paused(PauseReason::Draining);
                        return tokio::time::sleep(wait).await;
                    }
                    context.unreachable(lost.unwrap_or_else(since_boot));
                    context.lose_probes(wait).await;
                }
                NoSession::Paused(reason, retry_after) => {
                    context.paused(reason);
                    tokio::time::sleep(backoff.refused(retry_after, random())).await;
                }
                NoSession::Lost => {
                    lost.get_or_insert_with(since_boot);
                    tokio::time::sleep(backoff.failed(random())).await;
                }
                NoSession::Drained => {
                    drained.get_or_insert_with(since_boot);
                    context.paused(PauseReason::Draining);
                    tokio::time::sleep(backoff.drained(random())).await;
                }
                NoSession::HostChanged => {
                    context.paused(PauseReason::Connecting);
                    tokio::time::sleep(backoff.drained(random())).await;
                }
            }
        };
        tokio::select! {
            () = wait => {}
            _ = stopped.wait_for(|wanted| *wanted) => return,
        }
    }
}

/// Opens a link to the reflector, and requests a monitor session on it.
async fn open(
    context: &MonitorContext,
    name: &str,
    last_address: &mut Option<SocketAddr>,
) -> Result<MonitorLink, NoSession> {
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, connect(context, name, last_address)).await;
    match opened {
        Ok(Ok(Some(link))) => Ok(link),
        Ok(Ok(None)) => Err(NoSession::Paused(PauseReason::NotSupported, Some(RESTART_TIME * 10))),
        Ok(Err(error)) => {
            tracing::debug!(monitor = context.stored.monitor.name, %error, "no monitor session");
            match (judged(&error), *last_address) {
                // An outage can make the resolver itself unreachable, so the last known address is checked.
                (NoSession::Paused(PauseReason::NotResolved, _), Some(address))
                    if !is_accepting(address, CHECK_TIMEOUT).await =>
                {
                    Err(NoSession::Unreachable)
                }
                (none, _) => Err(none),
            }
        }
        // A connection was opened, or is still being opened. Only a failed connection counts as an outage.
        Err(_) => Err(NoSession::Lost),
    }
}

/// Connects to the reflector and requests a session. `None` if the reflector does not support monitor sessions.
async fn connect(
    context: &MonitorContext,
    name: &str,
    last_address: &mut Option<SocketAddr>,
) -> Result<Option<MonitorLink>, ApplianceError> {
    let appliance = context.appliance();
    // Prefers the Endpoint ID, because the name may have changed since the service added the monitor.
    let wanted = context.stored.peer.as_deref().unwrap_or(name);
    let reflector = appliance.store().await?.reflector(wanted).await?;
    let expect = Expect::ExactKey(reflector.endpoint_id);
    let key = appliance.key()?;
    let mut client = ReflectorClient::connect(&key, &reflector.address, expect, &Route::default()).await?;
    *last_address = Some(client.address());
    let welcome = client.hello().await?;
    if !Feature::is_in(Feature::MONITOR, &welcome.features) {
        client.close("it has no monitor sessions").await;
        return Ok(None);
    }
    let grant = client.monitor().await?;
    let keys = client.session_keys(grant.session)?;
    let carrier = SessionCarrier::open(client.address(), keys)
        .map_err(|error| ApplianceError::of_io(error, |error| ApplianceError::Internal(error.to_string())))?;
    Ok(Some(MonitorLink { client, carrier }))
}

/// Sends probes in the session until it ends. Returns why it ended.
async fn serve(context: &MonitorContext, link: &mut MonitorLink, backoff: &mut Backoff) -> NoSession {
    let MonitorLink { client, carrier } = link;
    let address = client.address();
    let (checks, mut wanted_checks) = watch::channel(0_u64);
    let (mut has_answered, mut unanswered) = (false, 0);
    let probing = async {
        let ended = context.keep_probing(carrier, |probe| {
            match probe.outcome {
                ProbeOutcome::Answered { .. } if !has_answered => {
                    has_answered = true;
                    backoff.succeeded();
                }
                ProbeOutcome::Lost if !has_answered => {
                    unanswered += 1;
                    if unanswered >= FIRST_PROBES {
                        return Some(NoSession::Paused(PauseReason::UdpBlocked, Some(RESTART_TIME)));
                    }
                }
                _ => {}
            }
            // Before the first answer, it is not known whether the path carries datagrams.
            if has_answered {
                context.decided(*probe);
            }
            if context.wants_connection_check() {
                checks.send_modify(|checks| *checks += 1);
            }
            None
        });
        ended.await.unwrap_or(NoSession::HostChanged)
    };
    let checking = async {
        // The loop does not end, because the sender is not dropped before this future.
        while wanted_checks.changed().await.is_ok() {
            let began = since_boot();
            if is_accepting(address, CHECK_TIMEOUT).await {
                context.reached();
            } else {
                context.unreachable(began);
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        std::future::pending::<NoSession>().await
    };
    tokio::select! {
        ended = probing => ended,
        ended = checking => ended,
        ended = keep_link(client) => ended,
    }
}

/// Answers the messages of the reflector, and sends pings, until the session ends. Returns why it ended.
async fn keep_link(client: &mut ReflectorClient) -> NoSession {
    let mut ping = tokio::time::interval(MONITOR_PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = since_boot();
    loop {
        let answer = tokio::select! {
            message = client.listen() => {
                heard = since_boot();
                match message {
                    Ok(ToAppliance::Ping) => Some(ToReflector::Pong),
                    Ok(ToAppliance::Ended { reason, .. }) => return of_end(reason),
                    Ok(_) => None,
                    Err(error) => return judged_while_open(&error),
                }
            }
            _ = ping.tick() => {
                if since_boot().saturating_sub(heard) > END_MONITOR_AFTER_SILENCE {
                    return NoSession::Lost;
                }
                Some(ToReflector::Ping)
            }
        };
        if let Some(message) = answer
            && client.send(&message).await.is_err()
        {
            return NoSession::Lost;
        }
    }
}

/// Why an open link ended, judged by its error.
fn judged_while_open(error: &ApplianceError) -> NoSession {
    match judged(error) {
        // The connection was open before, so it was lost rather than refused.
        NoSession::Unreachable => NoSession::Lost,
        other => other,
    }
}

fn of_end(reason: EndReason) -> NoSession {
    match reason {
        EndReason::Shutdown => NoSession::Drained,
        EndReason::BytesPerDay => NoSession::Paused(PauseReason::BytesPerDay, Some(RESTART_TIME * 10)),
        EndReason::PeerRemoved => NoSession::Paused(PauseReason::NotPaired, Some(RESTART_TIME * 10)),
        EndReason::Failed => NoSession::Paused(PauseReason::ReflectorFaulted, None),
        _ => NoSession::Lost,
    }
}

/// Why the error of a link prevents or ends a monitor session.
fn judged(error: &ApplianceError) -> NoSession {
    let paused = |reason| NoSession::Paused(reason, Some(RESTART_TIME));
    let cause = match error {
        ApplianceError::Link { cause, .. } => cause,
        ApplianceError::NotResolved { .. } => return NoSession::Paused(PauseReason::NotResolved, None),
        error if is_gone(error) => return paused(PauseReason::TargetGone),
        _ => return NoSession::Paused(PauseReason::LocalFailure, None),
    };
    match cause {
        LinkFailure::Unreachable(_) => NoSession::Unreachable,
        LinkFailure::KeyChanged(_) => paused(PauseReason::KeyChanged),
        LinkFailure::NotPaired => paused(PauseReason::NotPaired),
        LinkFailure::Closed { reason: CloseReason::PeerRemoved, .. } => paused(PauseReason::NotPaired),
        LinkFailure::Closed { reason: CloseReason::Shutdown, .. } => NoSession::Drained,
        LinkFailure::SessionEnded { reason, .. } => of_end(*reason),
        LinkFailure::Denied(denial) => {
            let retry_after = denial.retry_after_ms.map(Duration::from_millis);
            match denial.reason {
                DenialReason::Draining => NoSession::Drained,
                DenialReason::TooManyMonitors => NoSession::Paused(PauseReason::TooManyMonitors, retry_after),
                DenialReason::BytesPerDay => NoSession::Paused(PauseReason::BytesPerDay, retry_after),
                DenialReason::Faulted => NoSession::Paused(PauseReason::ReflectorFaulted, retry_after),
                _ => NoSession::Paused(PauseReason::Denied, retry_after),
            }
        }
        _ => NoSession::Lost,
    }
}
