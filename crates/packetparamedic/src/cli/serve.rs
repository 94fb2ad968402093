//! `serve`: runs the service, which runs schedules and monitors. The service answers other commands on its unix socket,
//! and other clients by TCP.

use paramedic_appliance::app::Appliance;
use paramedic_engines::memory;
use paramedic_host::unix_socket::{UnixSocket, UnixSocketError};
use paramedic_host::version;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::failure::{CommandFailure, ExitStatus};
use super::{Context, speed_test};
use crate::config::{ApiListen, PASSWORD_VARIABLE, Settings};
use crate::web::login::SetupLinkAnswer;
use crate::web::{self, ApiListener, tls};

pub(super) async fn run(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    // The service runs for months: it must give the memory of a test back to the system.
    memory::share_arenas();
    memory::return_large_blocks();
    // The handlers are installed before the service reports that it is ready, so that no signal after that is missed.
    let mut interrupt = context.interrupts.watch()?;
    let appliance = context.appliance()?.clone();
    let settings = &context.settings;
    let service = appliance.start_service(settings.retention, settings.default_monitors).await?;
    let has_password = set_password(&appliance).await?;
    let path = context.settings.service_socket();
    let socket = UnixSocket::bind(&path).map_err(|error| no_socket(&error))?;
    let mut listeners = vec![ApiListener::Unix(socket)];
    let tls = tls_of(context)?;
    let tcp = listen(context).await?;
    let (stop, stopping) = watch::channel(false);
    context.output.line(&format!("serving on {}", path.display()))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()).map(|address| format!("{scheme}://{address}"));
    if let Some(address) = &address {
        context.output.line(&format!("serving on {address}"))?;
    }
    let is_remote = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()).is_some_and(|at| !at.ip().is_loopback());
    if is_remote && !has_password {
        let SetupLinkAnswer { path, .. } = appliance.new_setup_link().await?.into();
        context.output.line(&format!("set the administrator's password within an hour at {path}"))?;
    }
    listeners.extend(tcp.map(|tcp| ApiListener::Tcp(tcp, tls)));
    // Outside of systemd this does nothing.
    sd_notify::notify(&[NotifyState::Ready]).ok();
    tracing::info!(
        version = version::VERSION,
        socket = %path.display(),
        address = address.as_deref(),
        state_dir = %appliance.state_dir().display(),
        database = settings.database.as_ref().map(tracing::field::display),
        "the service runs"
    );
    let api = async {
        let settings = &context.settings;
        let proxies = settings.trusted_proxies.clone();
        let default_test = speed_test::default_request(settings, &context.origins);
        let name = settings.name.clone();
        web::serve(service.clone(), name, default_test, listeners, proxies, stopping.clone()).await;
    };
    let broker = settings.broker();
    let mqtt = async {
        if let Some(broker) = &broker {
            service.report_to_broker(broker).await;
        }
    };
    let signals = async {
        interrupt.wait_for(|wanted| *wanted).await.ok();
        sd_notify::notify(&[NotifyState::Stopping]).ok();
        service.stop();
        stop.send_replace(true);
    };
    tokio::select! {
        _ = async { tokio::join!(service.run(), api, mqtt, signals) } => {}
        () = feed_watchdog(&service) => {}
        () = send_heartbeats(&service, &context.settings) => {}
        () = appliance.prune_daily(context.settings.retention) => {}
    }
    appliance.close().await;
    tracing::info!("stopped");
    Ok(ExitStatus::Done)
}

/// Sets the administrator's password from the file that [`PASSWORD_VARIABLE`] names, if that variable is set. Returns
/// whether a password is set.
async fn set_password(appliance: &Appliance) -> Result<bool, CommandFailure> {
    let Some(file) = std::env::var_os(PASSWORD_VARIABLE).filter(|file| !file.is_empty()) else {
        return Ok(appliance.has_password().await?);
    };
    let unreadable = |error| {
        let what = format!("cannot read the file that {PASSWORD_VARIABLE} names");
        CommandFailure::new(ExitStatus::Usage, "unreadable", what, error, "check its path and permissions")
    };
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(unreadable)?);
    appliance.set_password(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())).await?;
    Ok(true)
}

/// Returns the TLS acceptor with the certificate and key of the settings; `None` if the settings have neither.
fn tls_of(context: &Context) -> Result<Option<TlsAcceptor>, CommandFailure> {
    let unusable = |because: &dyn std::fmt::Display| {
        let try_ = "set tls_certificate and tls_key to readable PEM files that belong together, or set neither";
        CommandFailure::new(ExitStatus::Usage, "bad_config", "cannot use TLS", because, try_)
    };
    match (&context.settings.tls_certificate, &context.settings.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => tls::acceptor(certificate, key).map(Some).map_err(|error| unusable(&error)),
        _ => Err(unusable(&"only one of tls_certificate and tls_key is set")),
    }
}

/// Listens on the address of the setting `listen`. Returns `None` if the setting is `off`, or if the service cannot
/// listen on the default address. The service then listens only on its unix socket.
async fn listen(context: &Context) -> Result<Option<TcpListener>, CommandFailure> {
    let ApiListen::Address(address) = context.settings.listen else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if context.origins.is_default("listen") => {
            tracing::warn!(%address, %error, "cannot listen on this address; the service uses only its unix socket");
            Ok(None)
        }
        Err(error) => Err(CommandFailure::new(
            ExitStatus::Failed,
            "serve",
            format!("cannot listen on {address}"),
            error,
            "set another address with PACKETPARAMEDIC_LISTEN, or `off`",
        )),
    }
}

/// Notifies systemd's watchdog each time the scheduler and the database have answered. Never returns.
async fn feed_watchdog(service: &paramedic_appliance::app::Service) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        service.answers().await;
        // A service manager that is gone needs no message.
        sd_notify::notify(&[NotifyState::Watchdog]).ok();
        // A third of the timeout: one late answer must not make systemd end the service.
        tokio::time::sleep(timeout / 3).await;
    }
}

/// Sends heartbeats to the URL of the settings, if there is one. Never returns.
async fn send_heartbeats(service: &paramedic_appliance::app::Service, settings: &Settings) {
    match &settings.heartbeat_url {
        Some(url) => service.send_heartbeats(url, settings.heartbeat_interval).await,
        None => std::future::pending().await,
    }
}

fn no_socket(error: &UnixSocketError) -> CommandFailure {
    let (exit, code, try_) = match error {
        UnixSocketError::InUse { .. } => (
            ExitStatus::Failed,
            "already_running",
            "run `packetparamedic status` to see the service that is running, or set another folder with --runtime-dir",
        ),
        _ => (
            ExitStatus::Usage,
            "runtime_dir",
            "set another folder with --runtime-dir or PACKETPARAMEDIC_RUNTIME_DIR, or run as the owner of the folder",
        ),
    };
    CommandFailure::new(exit, code, "the service cannot start", error, try_)
}
