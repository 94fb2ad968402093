//! `packetparamedic status` and `health`: print the state of the running service.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::app::ServiceStatus;

use super::failure::{CommandFailure, ExitStatus};
use super::{Context, monitor};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(clap::Args)]
pub(super) struct HealthArgs {
    /// Exit with code 0 if the service answers at all, even if it cannot use its database or is stopping
    #[arg(long)]
    live: bool,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let status = ask(context).await?;
    if args.json {
        context.output.json(&status)?;
        return Ok(ExitStatus::Done);
    }
    for line in described(&status) {
        context.output.line(&line)?;
    }
    Ok(ExitStatus::Done)
}

pub(super) async fn health(args: HealthArgs, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let status = ask(context).await?;
    if args.live || status.state == "running" {
        context.output.line(&status.state)?;
        return Ok(ExitStatus::Done);
    }
    Err(unhealthy(&status))
}

/// The failure of `health` while the service is faulted or stopping.
fn unhealthy(status: &ServiceStatus) -> CommandFailure {
    let (because, try_) = if status.state == "stopping" {
        ("it was told to stop".to_owned(), "wait until it has ended, then start it again")
    } else {
        (status.problems.join("; "), "fix that cause; the service goes on within 15 s")
    };
    CommandFailure::new(ExitStatus::Failed, "unhealthy", format!("the service is {}", status.state), because, try_)
}

async fn ask(context: &Context) -> Result<ServiceStatus, CommandFailure> {
    match context.service().await? {
        Some(service) => service.get("/status").await,
        None => {
            let sockets = context.settings.service_sockets(&context.origins);
            let sockets = sockets.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ");
            Err(CommandFailure::new(
                ExitStatus::Failed,
                "not_running",
                "the service is not running",
                format!("no service of this user answers at {sockets}"),
                "start it with `packetparamedic serve`; if it runs with another --state-dir, give the same one here",
            ))
        }
    }
}

fn described(status: &ServiceStatus) -> Vec<String> {
    let mut lines = vec![
        format!("{} since {}, version {}", status.state, shown(status.started_at), status.version),
        format!("state folder {}, {}", status.state_dir, status.endpoint_id),
    ];
    lines.extend(status.problems.iter().map(|problem| format!("problem: {problem}")));
    if !status.clock_trusted {
        lines.push("the clock is not synchronised yet: no schedule is due".to_owned());
    }
    if let Some(running) = &status.running {
        lines.push(format!("{} runs since {}", running.schedule, shown(running.since)));
    }
    lines.extend(status.waiting.iter().map(|name| format!("{name} waits for its turn")));
    lines.extend(
        status
            .monitors
            .iter()
            .map(|state| format!("monitor {}: {}", state.monitor, monitor::described(&state.condition))),
    );
    lines.extend(status.planned.iter().map(|next| format!("next {} at {}", next.schedule, shown(next.start))));
    lines
}

/// Formats a time in the time zone of this host.
fn shown(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: &str, problems: &[&str]) -> [String; 2] {
        let status = serde_json::from_value(serde_json::json!({
            "state": state,
            "problems": problems,
            "version": "1.0.0",
            "endpoint_id": "",
            "state_dir": "/state",
            "started_at": "2026-01-01T00:00:00Z",
            "clock_trusted": true,
        }));
        let failure = unhealthy(&status.unwrap());
        [failure.because.clone(), failure.try_.clone()]
    }

    #[test]
    fn a_service_that_stops_does_not_go_on() {
        let stops = ["it was told to stop", "wait until it has ended, then start it again"];
        assert_eq!(told("stopping", &[]), stops);
        assert_eq!(told("stopping", &["the disk is full"]), stops);
        assert_eq!(
            told("faulted", &["the disk is full"]),
            ["the disk is full", "fix that cause; the service goes on within 15 s"]
        );
    }
}
