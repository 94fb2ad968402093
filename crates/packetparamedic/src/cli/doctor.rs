//! `packetparamedic doctor`: inspects the installation, connects to every paired reflector, and prints the problems.

use std::path::PathBuf;

use paramedic_appliance::app::UdpCheck;
use paramedic_appliance::store::{PostgresUrl, Reflector};
use paramedic_host::config::load;
use paramedic_host::doctor::{self, Bundle};
use paramedic_link::state_folder;
use paramedic_report::doctor::{Check, Diagnosis};
use paramedic_report::self_test::Role;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::output::OutputFormat;
use super::reflectors::{check, to_check};
use crate::config::Settings;
use crate::web::reflectors::{CheckedReflector, reflector_route};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
    /// Inspect only this device, without connecting to reflectors
    #[arg(long)]
    offline: bool,
    /// Also write FILE for a bug report: the diagnosis, the configuration, and facts about the host
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Replace addresses, names and Endpoint IDs in the file of --bundle by placeholders
    #[arg(long, requires = "bundle")]
    redact: bool,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let state_dir = state_folder::locate(&context.settings.state_dir);
    let mut names = Vec::new();
    let checks = of_reflectors(args.offline, &mut names, context).await;
    let diagnosis = doctor::inspect(Role::Appliance, &state_dir, checks);
    if let Some(path) = &args.bundle {
        let configuration = load::<Settings>(&context.flags)?.show(true);
        let mut bundle = Bundle::new(&diagnosis, configuration);
        bundle.add_names(names.into_iter().chain(own_names(&context.settings)));
        bundle.write(path, args.redact).map_err(|error| {
            let try_ = "name a file that does not exist yet, in a folder that you may write to";
            let what = format!("cannot write {}", path.display());
            CommandFailure::new(ExitStatus::Failed, "bundle", what, error.to_string(), try_)
        })?;
        context.output.note(&format!("wrote {}", path.display()));
    }
    print(&diagnosis, context)?;
    Ok(if diagnosis.has_problem() { ExitStatus::Failed } else { ExitStatus::Done })
}

/// Returns the names that identify this device, its user, its default peer and its database. A redacted bundle replaces
/// them.
fn own_names(settings: &Settings) -> Vec<String> {
    let home = std::env::home_dir().and_then(|home| Some(home.file_name()?.to_string_lossy().into_owned()));
    let database = settings.database.as_ref().map(PostgresUrl::to_string);
    [Some(settings.name.to_string()), settings.peer.clone(), database, home].into_iter().flatten().collect()
}

fn print(diagnosis: &Diagnosis, context: &Context) -> Result<(), CommandFailure> {
    match context.output.format() {
        OutputFormat::Human => context.output.line(&diagnosis.to_string()),
        OutputFormat::Json | OutputFormat::JsonStream => context.output.json(diagnosis),
    }
}

/// Checks every paired reflector, and adds the names and hosts of the reflectors to `names`. If the pairings cannot be
/// read, returns that problem instead.
async fn of_reflectors(is_offline: bool, names: &mut Vec<String>, context: &Context) -> Vec<Check> {
    let paired = match to_check(None, context).await {
        Ok(paired) => paired,
        Err(failure) => return vec![failure.body().into()],
    };
    names.extend(paired.iter().flat_map(|reflector| [reflector.name.to_string(), reflector.address.host.to_string()]));
    if paired.is_empty() {
        return vec![Check::problem(
            "no_reflector",
            "no reflector is paired with this device",
            "no pairing is saved",
            "run `reflector pair` on a reflector, then `packetparamedic pair-reflector --peer HOST` here",
        )];
    }
    let mut checks = Vec::new();
    for reflector in &paired {
        if is_offline {
            checks.push(Check::not_checked("reflector", format!("reflector {}", reflector.name), "--offline"));
        } else {
            checks.extend(of_reflector(reflector, context).await);
        }
    }
    checks
}

/// Checks one reflector: its key, its version (compared with the version of this program), the path to it, and UDP.
async fn of_reflector(reflector: &Reflector, context: &Context) -> Vec<Check> {
    let checked = match check(reflector, context).await {
        Ok(checked) => checked,
        Err(failure) => return vec![failure.body().into()],
    };
    let CheckedReflector { reached_at, version, link_ms, local_address, observed_address, .. } = checked;
    let name = &reflector.name;
    let text = format!("reflector {name}: {reached_at} answered with the right key in {link_ms:.0} ms");
    let own = env!("CARGO_PKG_VERSION");
    let version = if version.as_str() == own {
        Check::passed("peer_version", format!("reflector {name}: version {own}, the same as this device"))
    } else {
        Check::problem(
            "peer_version",
            format!("the reflector {name} has version {version}, this device {own}"),
            "both work together, but only with the features of the older version",
            "update the older of the two",
        )
    };
    let mut checks = vec![Check::passed("reflector", text), version];
    if let Some(bytes) = checked.segment_limit_bytes {
        checks.push(Check::problem(
            "mtu_black_hole",
            format!("the path to {name} drops large packets: the link needs segments of at most {bytes} bytes"),
            "a router on the path has a smaller MTU, and no ICMP message about it arrives here",
            "allow ICMP \"fragmentation needed\" and \"packet too big\" in the firewalls of the path, or lower this interface's MTU",
        ));
    }
    if let Some(observed) = observed_address.map(|observed| observed.ip()) {
        checks.push(Check::passed(
            "path",
            if observed == local_address.to_canonical() {
                format!("reflector {name}: sees this device at {observed}, this device's own address")
            } else {
                format!(
                    "reflector {name}: sees this device at {observed} instead of {local_address}: NAT is on the path"
                )
            },
        ));
    }
    if let Some(bytes) = checked.max_segment_bytes {
        checks.push(Check::passed("segment", format!("reflector {name}: sends up to {bytes} bytes per TCP packet")));
    }
    checks.push(of_udp(reflector, context).await);
    checks
}

/// Checks whether latency probes reach a reflector over UDP and come back.
async fn of_udp(reflector: &Reflector, context: &Context) -> Check {
    let name = &reflector.name;
    match check_udp(reflector, context).await {
        Ok(UdpCheck::Arrives) => {
            Check::passed("udp", format!("reflector {name}: UDP arrives, and its answers come back"))
        }
        Ok(UdpCheck::Blocked(because)) => Check::problem(
            "udp_blocked",
            format!("UDP does not work between this device and {name}"),
            because,
            format!(
                "allow UDP port {} in the firewalls on the path; port forwarding and NAT must not change this port",
                reflector.address.port
            ),
        ),
        Err(failure) => {
            let error = failure.body();
            Check::not_checked("udp", format!("reflector {name}: UDP"), format!("{}: {}", error.what, error.because))
        }
    }
}

async fn check_udp(reflector: &Reflector, context: &Context) -> Result<UdpCheck, CommandFailure> {
    match context.service().await? {
        Some(service) => service.post_slow(&reflector_route(reflector.endpoint_id, "/udp-check"), &()).await,
        None => Ok(context.appliance()?.check_udp(reflector).await?),
    }
}
