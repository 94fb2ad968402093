//! `reflector peers`: lists the paired devices, adds, removes and renames them.

use clap::Subcommand;
use paramedic_link::{EndpointId, PeerText};

use super::asking::{asking, one_answer, print_done};
use super::output::{note, print_json, print_line};
use crate::config::PlaceFlags;
use crate::failure::Failure;
use crate::server::{AdminReply, AdminRequest, PeerLine};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List paired devices; the default subcommand
    List,
    /// Pair a device by its Endpoint ID, without a code
    Add {
        /// The device's Endpoint ID, PP-…
        id: EndpointId,
        /// The name to give to the device
        #[arg(long, default_value = "appliance")]
        name: String,
    },
    /// Remove a device: its links and sessions end at once
    Remove {
        /// The device's Endpoint ID or name
        peer: String,
    },
    /// Give a device another name
    Rename {
        /// The device's Endpoint ID or name
        peer: String,
        /// The new name
        name: String,
    },
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { place, command, json } = args;
    let ask = match command.unwrap_or(Command::List) {
        Command::List => AdminRequest::Peers,
        Command::Add { id, name } => AdminRequest::AddPeer { peer: id, name: PeerText::new(&name) },
        Command::Remove { peer } => AdminRequest::RemovePeer { peer },
        Command::Rename { peer, name } => AdminRequest::RenamePeer { peer, name: PeerText::new(&name) },
    };
    let print = |answer| match answer {
        AdminReply::Peers { peers } if json => print_json(&peers),
        AdminReply::Peers { peers } => {
            print(&peers);
            Ok(())
        }
        other => print_done(other),
    };
    asking(&place, async |client| one_answer(client, &ask, print).await)
}

fn print(peers: &[PeerLine]) {
    if peers.is_empty() {
        note("no device is paired; run `reflector pair` to open a pairing code");
    }
    for peer in peers {
        let linked = if peer.linked { "  linked now" } else { "" };
        print_line(&format!("{}  {}{linked}", peer.endpoint_id, peer.name));
    }
}
