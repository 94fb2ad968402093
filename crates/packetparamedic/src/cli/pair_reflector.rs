//! `packetparamedic pair-reflector`: pairs this device with a reflector, by a code or by the reflector's Endpoint ID.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use paramedic_appliance::targets::HostPort;
use paramedic_link::pairing_code::PairingCode;
use paramedic_link::{EndpointId, PeerText};
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::reflectors::note_small_segments;
use crate::config::CODE_VARIABLE;
use crate::web::reflectors::{PairRequest, PairedReflector, bad_code, pair_as};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Address of the reflector: a host name, an IPv4 or an [IPv6] address, with or without port
    #[arg(long, value_name = "HOST[:PORT]")]
    peer: String,
    /// The code that `reflector pair` printed; - reads the code from standard input. Without a code, the command asks
    /// for one at the terminal [env: PACKETPARAMEDIC_CODE]
    #[arg(long, conflicts_with = "endpoint_id")]
    code: Option<String>,
    /// Read the pairing code from this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["code", "endpoint_id"])]
    code_file: Option<PathBuf>,
    /// Pair by the reflector's Endpoint ID, without a code; first run `reflector peers add` on the reflector
    #[arg(long, value_name = "PP-…")]
    endpoint_id: Option<EndpointId>,
    /// The name under which to save the reflector [default: the reflector's configured name]
    #[arg(long)]
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The maximum length of a pairing code that is read from a file or from stdin, in bytes.
const LONGEST_CODE: u64 = 1024;

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    args.peer.parse::<HostPort>()?;
    let service = context.service().await?;
    if service.is_none() {
        // Report an error of the state before the code is requested, because a code can be used only once.
        context.appliance()?.load().await?;
    }
    let request = PairRequest {
        code: if args.endpoint_id.is_none() { Some(code(&args)?) } else { None },
        target: args.peer,
        endpoint_id: args.endpoint_id,
        name: args.name.as_deref().map(PeerText::new).filter(|name| !name.is_empty()),
    };
    let saved: PairedReflector = match service {
        Some(service) => service.post("/reflectors", &request).await?,
        None => pair_as(context.appliance()?, request, &context.settings.name).await?,
    };
    if args.json {
        let document = json!({
            "event": "paired", "endpoint_id": saved.endpoint_id, "name": saved.name, "address": saved.address,
        });
        context.output.line(&document.to_string())?;
    } else {
        context.output.line(&format!("paired with {} at {}", saved.name, saved.address))?;
        context.output.line(&saved.endpoint_id.to_string())?;
    }
    note_small_segments(saved.segment_limit, context);
    if !saved.is_mutual {
        context.output.note(&format!(
            "the reflector does not know this device yet: on its host, run `reflector peers add {}`",
            saved.own_id
        ));
    }
    Ok(ExitStatus::Done)
}

/// Reads the text of the pairing code, and checks the code before it is used.
fn code(args: &Args) -> Result<String, CommandFailure> {
    let from_environment = || std::env::var(CODE_VARIABLE).ok().filter(|code| !code.is_empty());
    let text = match (&args.code, &args.code_file) {
        (Some(dash), _) if dash == "-" => first_line(std::io::stdin().lock())?,
        (Some(code), _) => code.clone(),
        (None, Some(path)) => {
            let file = std::fs::File::open(path).map_err(|error| no_code(&format!("{}: {error}", path.display())))?;
            first_line(std::io::BufReader::new(file))?
        }
        (None, None) => match from_environment() {
            Some(code) => code,
            None if std::io::stdin().is_terminal() => {
                anstream::eprint!("code: ");
                first_line(std::io::stdin().lock())?
            }
            None => return Err(no_code("no code was given, and stdin is not a terminal at which to ask for it")),
        },
    };
    text.parse::<PairingCode>().map_err(|error| bad_code(&error))?;
    Ok(text)
}

fn first_line(input: impl BufRead) -> Result<String, CommandFailure> {
    let mut line = String::new();
    input.take(LONGEST_CODE).read_line(&mut line).map_err(|error| no_code(&error.to_string()))?;
    Ok(line)
}

fn no_code(because: &str) -> CommandFailure {
    CommandFailure::new(
        ExitStatus::Usage,
        "no_code",
        "cannot pair without a code",
        because,
        "run `reflector pair` on the reflector, and give its code with --code CODE, --code - (stdin) or --code-file FILE",
    )
}
