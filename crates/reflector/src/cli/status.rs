//! `reflector status`: prints the state of the running reflector.

use std::time::Duration;

use paramedic_report::quantity;

use super::asking::{asking, one_answer, unexpected};
use super::output::{print_json, print_line};
use crate::config::PlaceFlags;
use crate::failure::Failure;
use crate::server::{AdminReply, AdminRequest};
use crate::sessions;
use crate::status::Status;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let answered = |answer| match answer {
        AdminReply::Status(status) if args.json => print_json(&*status),
        AdminReply::Status(status) => {
            print(&status);
            Ok(())
        }
        other => Err(unexpected(&Some(other))),
    };
    asking(&args.place, async |client| one_answer(client, &AdminRequest::Status, answered).await)
}

fn print(status: &Status) {
    let line = |name: &str, value: String| print_line(&format!("{name:<14}{value}"));
    line("reflector", format!("{} ({})", status.name, status.endpoint_id));
    let commit = status.commit.as_ref().map_or_else(String::new, |commit| format!(" ({commit})"));
    line("version", format!("{}{commit}", status.version));
    let uptime = Duration::from_secs(status.uptime_s);
    line("state", format!("{}, up for {}", status.state, sessions::span(uptime)));
    for problem in &status.problems {
        line("problem", problem.clone());
    }
    let modes = status.data_modes.iter().map(ToString::to_string).collect::<Vec<_>>();
    line("data modes", modes.join(", "));
    let engines = status.engines.iter().map(ToString::to_string).collect::<Vec<_>>();
    line("engines", engines.join(", "));
    for lacking in &status.engines_lacking {
        line("not offered", format!("{}: {}; try: {}", lacking.engine, lacking.because, lacking.try_));
    }
    line("peers", format!("{} paired, {} links now", status.peers, status.links));
    for (name, value) in status.sessions.rows() {
        line(name, value);
    }
    let granted = status.sessions.counts.granted.values().sum::<u64>();
    let moved = [status.payload_bytes.download, status.payload_bytes.upload].map(quantity::bytes);
    line("since start", format!("{granted} sessions granted, {} down, {} up", moved[0], moved[1]));
    let dwell = [0.5, 0.99].map(|share| status.probe_dwell.quantile_us(share));
    if let [Some(half), Some(most)] = dwell {
        line("probe dwell", format!("half at most {half} µs, 99 % at most {most} µs"));
    }
    if let Some(place) = &status.metrics {
        line("metrics", place.clone());
    }
    if status.datagrams_from_elsewhere > 0 {
        let count = status.datagrams_from_elsewhere;
        line("datagrams", format!("{count} for sessions came from another address or port than expected"));
    }
    for (reason, count) in &status.refused {
        line("refused", format!("{count} × {reason}"));
    }
}
