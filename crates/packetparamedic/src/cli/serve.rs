//! `serve`: the service that runs schedules and answers the other commands on its socket.

use paramedic_engines::memory;
use paramedic_host::unix_socket::{UnixSocket, UnixSocketError};
use paramedic_host::version;
use sd_notify::NotifyState;
use tokio::sync::watch;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web;

pub(super) async fn run(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    // A process for months must not keep what a test used.
    memory::share_arenas();
    // Before the service reports that it is ready: a signal that arrives right after must be handled.
    let mut interrupt = context.interrupts.watch()?;
    let appliance = context.appliance()?.clone();
    let service = appliance.start_service(context.settings.default_monitors).await?;
    let path = context.settings.service_socket();
    let socket = UnixSocket::bind(&path).map_err(|error| no_socket(&error))?;
    let (stop, stopping) = watch::channel(false);
    context.output.line(&format!("serving on {}", path.display()))?;
    // Outside of systemd this does nothing.
    sd_notify::notify(&[NotifyState::Ready]).ok();
    tracing::info!(
        version = version::VERSION,
        socket = %path.display(),
        state_dir = %appliance.state_dir().display(),
        "the service runs"
    );
    let api = async {
        let served = web::serve(service.clone(), context.settings.name.clone(), socket, stopping.clone()).await;
        if let Err(error) = &served {
            tracing::error!(%error, "the API ended");
        }
        // Without its API the service cannot be asked or stopped by its users.
        service.stop();
        stop.send_replace(true);
        served
    };
    let signals = async {
        let mut stopping = stopping.clone();
        tokio::select! {
            _ = interrupt.wait_for(|wanted| *wanted) => {}
            _ = stopping.wait_for(|wanted| *wanted) => {}
        }
        sd_notify::notify(&[NotifyState::Stopping]).ok();
        service.stop();
        stop.send_replace(true);
    };
    let served = tokio::select! {
        ((), served, ()) = async { tokio::join!(service.run(), api, signals) } => served,
        () = feed_watchdog(&service) => Ok(()),
    };
    appliance.close().await;
    tracing::info!("stopped");
    let broken = |error| {
        let try_ = "read the log, and start it again";
        CommandFailure::new(ExitStatus::Failed, "serve", "the service cannot go on", error, try_)
    };
    served.map(|()| ExitStatus::Done).map_err(broken)
}

/// Feeds systemd's watchdog each time that the scheduler and the store have answered. Never ends.
async fn feed_watchdog(service: &paramedic_appliance::app::Service) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        service.answers().await;
        // A service manager that is gone needs no message.
        sd_notify::notify(&[NotifyState::Watchdog]).ok();
        // A third: one late answer must not be the end.
        tokio::time::sleep(timeout / 3).await;
    }
}

fn no_socket(error: &UnixSocketError) -> CommandFailure {
    let (exit, code, try_) = match error {
        UnixSocketError::InUse { .. } => (
            ExitStatus::Failed,
            "already_running",
            "run `packetparamedic status` to see the one that is running, or set another folder with --runtime-dir",
        ),
        _ => (
            ExitStatus::Usage,
            "runtime_dir",
            "set another folder with --runtime-dir or PACKETPARAMEDIC_RUNTIME_DIR, or run as the user that owns it",
        ),
    };
    CommandFailure::new(exit, code, "the service cannot start", error, try_)
}
