//! `reflector doctor`: inspects the installation and prints its problems.

use std::path::PathBuf;

use paramedic_host::doctor::{self, Bundle, PortTransport};
use paramedic_report::doctor::Check;
use paramedic_report::self_test::Role;

use super::asking::{asking_at, one_answer, unexpected};
use super::load_with_origins;
use super::output::{note, print_json, print_line};
use super::serve::cannot_listen;
use super::state::with_state_as_it_is;
use crate::config::{AllFlags, Config};
use crate::failure::{Exit, Failure};
use crate::server::{self, AdminReply, AdminRequest, ListenError};
use crate::status::Status;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: AllFlags,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
    /// Also write FILE for a bug report: the diagnosis, the configuration, the status, and facts about the host
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Replace addresses, names and Endpoint IDs in the file of --bundle by placeholders
    #[arg(long, requires = "bundle")]
    redact: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let loaded = load_with_origins(&args.flags.values)?;
    let configuration = loaded.show(true);
    let config = with_state_as_it_is(loaded.config);
    let status = asking_at(&config, async |client| one_answer(client, &AdminRequest::Status, status_of).await);
    let checks = match &status {
        Ok(status) => of_running(status),
        Err(failure) => {
            let mut checks = vec![Check::from(failure.body())];
            checks.extend(of_stopped(&config, failure.code));
            checks
        }
    };
    let diagnosis = doctor::inspect(Role::Reflector, &config.state_dir, checks);
    if let Some(path) = &args.bundle {
        let mut bundle = Bundle::new(&diagnosis, configuration);
        if let Ok(status) = &status {
            bundle.set_status(serde_json::json!(status));
            bundle.add_names([status.name.clone()]);
        }
        bundle.write(path, args.redact).map_err(|error| {
            let try_ = "name a file that does not exist yet, in a folder that you may write";
            Failure::new(Exit::Failed, "bundle", format!("cannot write {}", path.display()), error, try_)
        })?;
        note(&format!("wrote {}", path.display()));
    }
    if args.json {
        print_json(&diagnosis)?;
    } else {
        print_line(&diagnosis.to_string());
    }
    Ok(if diagnosis.has_problem() { Exit::Failed } else { Exit::Done })
}

fn status_of(answer: AdminReply) -> Result<Status, Failure> {
    match answer {
        AdminReply::Status(status) => Ok(*status),
        other => Err(unexpected(&Some(other))),
    }
}

/// The checks that need the status of a running reflector.
fn of_running(status: &Status) -> Vec<Check> {
    let mut checks = Vec::new();
    if status.problems.is_empty() {
        checks.push(Check::passed("state", format!("reflector: {}", status.state)));
    } else {
        checks.push(Check::problem(
            "state",
            format!("the reflector is {}", status.state),
            status.problems.join("; "),
            "remove the cause; once it can write, the reflector grants sessions again within a few seconds",
        ));
    }
    let own = env!("CARGO_PKG_VERSION");
    if status.version == own {
        checks.push(Check::passed("version", format!("version: {own}")));
    } else {
        checks.push(Check::problem(
            "version",
            format!("the running reflector has version {}, this program {own}", status.version),
            "the program was replaced after the reflector started",
            "restart the reflector, for example with `systemctl restart reflector`",
        ));
    }
    checks.extend(status.engines_lacking.iter().map(|lacking| {
        let what = format!("the engine {} is configured but not offered", lacking.engine);
        Check::problem("engine_unavailable", what, lacking.because.to_string(), lacking.try_.to_string())
    }));
    checks.push(match status.peers {
        0 => Check::problem(
            "no_peers",
            "no device is paired",
            "a reflector serves only paired devices",
            "run `reflector pair` here, then `packetparamedic pair-reflector` on the device",
        ),
        count => Check::passed("no_peers", format!("paired devices: {count}")),
    });
    if status.datagrams_from_elsewhere > 0 {
        checks.push(Check::problem(
            "udp_source_changes",
            format!(
                "{} datagrams for sessions came from another address or port than expected",
                status.datagrams_from_elsewhere
            ),
            "address translation on the path changes their source, or an unauthenticated client guesses session tags",
            "test without that translation; if the reflector runs in a container, give it the host's network",
        ));
    }
    checks
}

/// Checks whether the reflector, which is not running, could listen on its addresses. `code` is the error code of the
/// failed request for its status. `None` if `code` is not `not_running`: nothing is checked then.
fn of_stopped(config: &Config, code: &str) -> Option<Check> {
    if code != "not_running" {
        return None;
    }
    let addresses = config.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(match server::check_listen(&config.listen, config.listen_freebind) {
        Ok(()) => Check::passed("listen", format!("ports: {addresses} are free, TCP and UDP")),
        Err(error) => {
            let mut check = Check::from(cannot_listen(&error).body());
            if let ListenError::InUse(address) = error {
                let owners = [PortTransport::Tcp, PortTransport::Udp]
                    .into_iter()
                    .find_map(|transport| doctor::port_owners(transport, address.port()));
                if let Some(owners) = owners {
                    check.because = Some(format!("the port {} is in use by {owners}", address.port()));
                }
            }
            check
        }
    })
}
