//! The task of a monitor of a reflector: keeps a link with a monitor session, and probes through it.

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

/// How long a link may take from the first packet to the granted session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a check connection may take. It only shows whether the reflector is reachable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// The minimum time between two check connections.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long after an orderly end of the reflector a failed connection is no outage, because the reflector restarts.
const RESTART_TIME: Duration = Duration::from_secs(60);
/// The number of probes. If none of the first ones of a session is answered, the path does not carry UDP.
const FIRST_PROBES: u32 = 10;

/// A monitor session with its link.
struct MonitorLink {
    client: ReflectorClient,
    carrier: SessionCarrier,
}

/// Why there is no session.
enum NoSession {
    /// No address accepted a connection.
    Unreachable,
    /// The reflector is reachable, or nothing was tried. With the time to wait, if the reflector asked for one.
    Paused(PauseReason, Option<Duration>),
    /// The link was lost.
    Lost,
    /// The reflector announced its end, and probably restarts.
    Drained,
    /// The network of this host changed.
    HostChanged,
}

/// Probes the reflector with this name until `stopped`.
pub(super) async fn probe(context: &MonitorContext, name: &str, mut stopped: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    let mut last_address = None;
    // When the reflector announced its end, and when the link was lost.
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

/// Opens a link and requests a monitor session.
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
                // The resolver may be what is unreachable, so the last address is checked.
                (NoSession::Paused(PauseReason::NotResolved, _), Some(address))
                    if !is_accepting(address, CHECK_TIMEOUT).await =>
                {
                    Err(NoSession::Unreachable)
                }
                (none, _) => Err(none),
            }
        }
        // A connection was opened, or may still be: only a failed one is an outage.
        Err(_) => Err(NoSession::Lost),
    }
}

/// Connects and requests a session. `None` if the reflector does not support monitor sessions.
async fn connect(
    context: &MonitorContext,
    name: &str,
    last_address: &mut Option<SocketAddr>,
) -> Result<Option<MonitorLink>, ApplianceError> {
    let appliance = context.appliance();
    // The name may have changed since the service added the monitor.
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

/// Serves the session until it ends.
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
            // Before the first answer it is not known whether the path carries datagrams.
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
        // The sender is not dropped before this future.
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

/// Answers the messages of the reflector, and sends pings, until the session ends.
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

/// Why a link that was open ended.
fn judged_while_open(error: &ApplianceError) -> NoSession {
    match judged(error) {
        // The connection was open before, so it was lost and not refused.
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

/// What an error means for the monitor.
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
