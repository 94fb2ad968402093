//! The tasks of the monitors whose target is the gateway, a host, a DNS server or a web server.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use paramedic_engines::host_facts;
use tokio::sync::watch;

use super::carriers::{DnsCarrier, HostCarrier, ProbeCarrier};
use super::context::MonitorContext;
use super::http::HttpCarrier;
use crate::app::clocks::random;
use crate::monitor::PauseReason;
use crate::monitor::backoff::Backoff;
use crate::monitor::default_route::{DefaultRoute, default_routes};
use crate::monitor::http_url::HttpUrl;
use crate::monitor::minute::ProbeOutcome;
use crate::reflector_client::{Route, resolve};
use crate::targets::{Host, HostPort};

/// The port for TCP probes of a gateway, which usually serves a web page there.
const GATEWAY_PORT: u16 = 80;
/// The port for TCP probes of a host that is not the gateway.
const HOST_PORT: u16 = 443;
/// How long to wait before the next attempt if there is no default route, or if no socket can be opened.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The number of unanswered probes after which a monitor is paused if its target has never answered.
const FIRST_PROBES: u32 = 10;

/// Probes the default gateway until `stopped` becomes true.
pub(super) async fn probe_gateway(context: &MonitorContext, mut stopped: watch::Receiver<bool>) {
    let probing = async {
        let mut last = None;
        loop {
            // Without a default route, the last gateway is still probed, because the loss of the route is an outage.
            last = gateway().or(last);
            match last {
                Some(target) => probe_address(context, target, GATEWAY_PORT).await,
                None => {
                    context.paused(PauseReason::NoGateway);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    };
    tokio::select! {
        () = probing => {}
        _ = stopped.wait_for(|wanted| *wanted) => {}
    }
}

/// Probes a host until `stopped` becomes true.
pub(super) async fn probe_host(context: &MonitorContext, host: &Host, mut stopped: watch::Receiver<bool>) {
    let target = HostPort { host: host.clone(), port: HOST_PORT };
    let probing = async {
        let mut backoff = Backoff::default();
        loop {
            if let Some(address) = resolved(context, &target, &mut backoff).await {
                probe_address(context, address, HOST_PORT).await;
            }
        }
    };
    tokio::select! {
        () = probing => {}
        _ = stopped.wait_for(|wanted| *wanted) => {}
    }
}

/// Probes a DNS server by queries for `name` until `stopped` becomes true.
pub(super) async fn probe_dns(
    context: &MonitorContext,
    resolver: &HostPort,
    name: &str,
    mut stopped: watch::Receiver<bool>,
) {
    let probing = async {
        let mut backoff = Backoff::default();
        loop {
            if let Some(address) = resolved(context, resolver, &mut backoff).await {
                match DnsCarrier::open(address, name).await {
                    Ok(mut carrier) => probe_from_first_answer(context, &mut carrier).await,
                    Err(error) => cannot_probe(context, address, &error).await,
                }
            }
        }
    };
    tokio::select! {
        () = probing => {}
        _ = stopped.wait_for(|wanted| *wanted) => {}
    }
}

/// Probes a web server by requests for the page `url` until `stopped` becomes true.
pub(super) async fn probe_http(context: &MonitorContext, url: &HttpUrl, mut stopped: watch::Receiver<bool>) {
    let probing = async {
        loop {
            match HttpCarrier::open(url) {
                Ok(mut carrier) => probe_from_first_answer(context, &mut carrier).await,
                Err(error) => cannot_probe(context, url, &error).await,
            }
        }
    };
    tokio::select! {
        () = probing => {}
        _ = stopped.wait_for(|wanted| *wanted) => {}
    }
}

/// The first address of the target's name. If the name cannot be resolved, waits and returns `None`.
async fn resolved(context: &MonitorContext, target: &HostPort, backoff: &mut Backoff) -> Option<SocketAddr> {
    let address = resolve(target, &Route::default()).await.ok().and_then(|found| found.first().copied());
    if address.is_some() {
        backoff.succeeded();
    } else {
        context.paused(PauseReason::NotResolved);
        tokio::time::sleep(backoff.failed(random())).await;
    }
    address
}

/// Probes an address until this host changes. `port` is used if TCP connections replace ICMP echo.
async fn probe_address(context: &MonitorContext, target: SocketAddr, port: u16) {
    match HostCarrier::open(target, port) {
        Ok(mut carrier) => {
            tracing::debug!(monitor = context.stored.monitor.name, %target, by = carrier.name(), "probing");
            probe_from_first_answer(context, &mut carrier).await;
        }
        Err(error) => cannot_probe(context, target, &error).await,
    }
}

async fn cannot_probe(context: &MonitorContext, target: impl Display, error: &io::Error) {
    tracing::debug!(monitor = context.stored.monitor.name, %target, %error, "cannot probe");
    context.paused(PauseReason::LocalFailure);
    tokio::time::sleep(RETRY_INTERVAL).await;
}

/// Sends probes until this host changes. Counts no probe before the first answer, because the target may never answer
/// such probes.
async fn probe_from_first_answer(context: &MonitorContext, carrier: &mut impl ProbeCarrier) {
    let (mut has_answered, mut unanswered) = (false, 0);
    let ended = context.keep_probing(carrier, |probe| {
        has_answered |= matches!(probe.outcome, ProbeOutcome::Answered { .. });
        if has_answered {
            context.decided(*probe);
        } else {
            unanswered += 1;
            if unanswered == FIRST_PROBES {
                context.paused(PauseReason::NoAnswer);
            }
        }
        None::<()>
    });
    ended.await;
}

/// The address of the default gateway of this host; `None` if there is none.
fn gateway() -> Option<SocketAddr> {
    let route = routes().into_iter().find(|route| route.gateway.is_some())?;
    Some(match route.gateway? {
        IpAddr::V4(gateway) => SocketAddr::new(gateway.into(), 0),
        IpAddr::V6(gateway) => {
            // A link-local address is complete only with its interface.
            let index = host_facts::text(format!("/sys/class/net/{}/ifindex", route.interface));
            let scope = index.and_then(|index| index.trim().parse().ok()).unwrap_or(0);
            SocketAddrV6::new(gateway, 0, 0, scope).into()
        }
    })
}

/// The default routes of this host, the preferred one first.
pub(super) fn routes() -> Vec<DefaultRoute> {
    let read = |path: &str| host_facts::text(path).unwrap_or_default();
    default_routes(&read("/proc/net/route"), &read("/proc/net/ipv6_route"))
}
