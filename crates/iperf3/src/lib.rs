//! The `iperf3` engine: a real iperf3 moves the bytes, through a session's own port, as its owner alone. Both ends of it,
//! and what this workspace knows of iperf3, somebody else's program.

#![forbid(unsafe_code)]

pub mod output;

mod authenticator;
mod client;
mod client_end;
mod cookie;
mod handoff;
mod login;
mod program;
mod sandbox;
mod server_end;
mod supervisor;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paramedic_engines::engine::{
    ClientSetup, Engine, EngineClient, EngineServer, ServerSetup, Unavailable, first_refusal,
};
use paramedic_engines::session_control::SessionControl;
use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::{PeerText, SessionId};

pub use client::{Client, ClientExit, ClientOrder, Credentials, progress, tally};
pub use login::LoginPadding;
pub use program::Program;

/// The engine whose data plane is iperf3.
pub struct Iperf3;

impl Engine for Iperf3 {
    fn id(&self) -> &'static str {
        "iperf3"
    }

    fn about(&self) -> &'static str {
        "a real iperf3 at both ends, TCP, where the reflector offers it"
    }

    fn loads(&self) -> bool {
        true
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        if spec.fragments || spec.loss_bound_ppm.is_some() {
            return Some("fragments and a bound of loss are for the engine udp");
        }
        let mut loaded = spec.phases.iter().filter(|phase| phase.load != Load::Idle);
        let asked = [
            (loaded.any(|phase| phase.duration_ms % 1000 != 0), "iperf3 measures whole seconds"),
            (!spec.data_path.is_auto(), "iperf3 moves the bytes in its own way: no data path can be chosen"),
            (spec.verify_payload, "iperf3 does not look at the payload"),
        ];
        first_refusal(asked)
    }

    fn check_client(&self) -> Result<Vec<PeerText>, Unavailable> {
        Program::find().map(|program| program.client_paddings().iter().map(|padding| padding.name().into()).collect())
    }

    /// Plays the beginning of a session: all that can be missing is missed then.
    fn check_server(&self, scratch: &Path) -> Result<(), Unavailable> {
        Program::find()?.check_server()?;
        let keys = SessionKeys::derive(SessionId::from_bytes([0; 16]), [0; 32].into());
        let engine_support = [LoginPadding::Oaep, LoginPadding::Pkcs1].map(|padding| padding.name().into()).to_vec();
        let engine = EngineId::try_from(self.id()).map_err(|error| lacking(&error))?;
        let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 1000 }];
        let spec = TestSpec { engine_support, ..TestSpec::new(engine, DataMode::DirectEphemeral, phases, 1) };
        let setup = ServerSetup {
            spec,
            keys: Arc::new(keys),
            claim: Some((Ipv4Addr::LOCALHOST, 0).into()),
            peer: Ipv4Addr::LOCALHOST.into(),
            control: SessionControl::unmetered(),
            scratch: scratch.to_owned(),
        };
        self.server(setup).map(drop).map_err(|error| lacking(&error))
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn EngineServer>> {
        Ok(Box::new(server_end::Iperf3Server::open(setup)?))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn EngineClient>> {
        Ok(Box::new(client_end::Iperf3Client::new(setup)?))
    }
}

fn lacking(error: &dyn std::fmt::Display) -> Unavailable {
    Unavailable {
        because: format!("its sandbox can't be set up: {error}"),
        hint: "see \"The iperf3 lane\" in docs/operate.md for what the host has to allow".into(),
    }
}

/// How much longer than it was told to a run may take: to connect, to exchange results, to end.
const GRACE: Duration = Duration::from_secs(10);

/// Who counted: the kernel, at the sockets that we keep a copy of.
const COUNTED_BY_SOCKET: &str = "socket";
/// Who counted: iperf3, in its report.
const COUNTED_BY_IPERF3: &str = "iperf3";

/// Writes a file that is there for nobody else and was not there before.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// A folder for one child in `scratch`, for nobody else and gone when dropped.
fn folder_in(scratch: &Path) -> io::Result<tempfile::TempDir> {
    let ours_alone = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("iperf3-").permissions(ours_alone).tempdir_in(scratch)
}
