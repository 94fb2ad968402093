//! `reflector pair`: opens a one-time pairing code, and waits for a device to pair with it.

use std::io::IsTerminal;
use std::time::Duration;

use paramedic_link::PeerText;
use paramedic_report::quantity;

use super::asking::{asking, refused};
use super::output::broken;
use super::output::{note, print_json_line, print_line};
use crate::config::PlaceFlags;
use crate::failure::{Exit, Failure};
use crate::pairing;
use crate::server::{AdminClient, AdminReply, AdminRequest};
use crate::sessions;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    /// How long the pairing code is valid, from 10s to 1h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_ttl)]
    ttl: Duration,
    /// The name for the device that pairs [default: the name that the device sends]
    #[arg(long)]
    name: Option<String>,
    /// Print JSON events, one in each line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { place, ttl, name, json } = args;
    asking(&place, async |client| pair(client, ttl, name, json).await)
}

async fn pair(client: &mut AdminClient, ttl: Duration, name: Option<String>, json: bool) -> Result<(), Failure> {
    let name = name.map(|name| PeerText::new(&name)).filter(|name| !name.is_empty());
    client.ask(&AdminRequest::Pair { ttl_s: ttl.as_secs(), name }).await.map_err(|error| broken(&error))?;
    while let Some(answer) = client.next().await.map_err(|error| broken(&error))? {
        match &answer {
            AdminReply::Failed { because } => return Err(refused(because)),
            AdminReply::CodeClosed { why } => {
                return Err(Failure::new(
                    Exit::Failed,
                    "code_closed",
                    "no device paired",
                    format!("the code is {why}"),
                    "run `reflector pair` again; --ttl sets how long the code is valid",
                ));
            }
            event if json => print_json_line(event)?,
            AdminReply::Code { code, expires_in_s } => {
                show_qr(code);
                print_line(code);
                let life = sessions::span(Duration::from_secs(*expires_in_s));
                note(&format!("valid once, for {life}, while this command waits. On the appliance:"));
                note("  packetparamedic pair-reflector --peer HOST      (it asks for the code)");
            }
            AdminReply::Paired { endpoint_id, name } => print_line(&format!("paired with {name}  {endpoint_id}")),
            _ => {}
        }
        if matches!(answer, AdminReply::Paired { .. }) {
            return Ok(());
        }
    }
    Err(broken(&"the reflector closed the connection"))
}

/// Prints the pairing code as a QR code if stderr is a terminal.
fn show_qr(code: &str) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    if let Ok(qr) = qrcode::QrCode::new(code.as_bytes()) {
        let picture = qr.render::<qrcode::render::unicode::Dense1x2>().quiet_zone(true).build();
        anstream::eprintln!("{picture}");
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = quantity::parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(10) || ttl > pairing::LONGEST_TTL {
        return Err("valid: 10s to 1h".to_owned());
    }
    Ok(ttl)
}
