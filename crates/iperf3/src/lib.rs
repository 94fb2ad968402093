//! The engine `iperf3` with both its ends. This crate also has the client and the output parser for tests against an
//! ordinary iperf3 server.
//!
//! A real iperf3 moves the payload. At the reflector it runs in a lane: a port that serves one session, a listener that
//! authenticates the connections to that port, and a confined iperf3 server (the child) that gets only the
//! authenticated ones.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod output;

mod authenticator;
#[expect(clippy::disallowed_methods, reason = "waits until deadlines of its own")]
mod client;
#[expect(clippy::disallowed_methods, reason = "waits until deadlines of its own")]
mod client_end;
mod cookie;
#[expect(clippy::disallowed_methods, reason = "waits until deadlines of its own")]
mod handoff;
mod login;
mod path_watch;
mod process;
mod program;
mod sandbox;
#[expect(clippy::disallowed_methods, reason = "waits until deadlines of its own")]
mod server_end;
#[expect(clippy::disallowed_methods, reason = "waits until deadlines of its own")]
mod supervisor;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "measures how long a cancelled test takes to end")]
mod tests;

use std::io;
use std::net::Ipv4Addr;
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

pub use client::{Client, ClientExit, ClientOrder, Credentials, EarlyEnd, progress, tally};
pub use login::LoginPadding;
pub use program::Program;

/// The engine that moves payload with iperf3.
pub struct Iperf3;

impl Engine for Iperf3 {
    fn id(&self) -> &'static str {
        "iperf3"
    }

    fn about(&self) -> &'static str {
        "TCP streams of a real iperf3 at both ends, if the reflector offers it"
    }

    fn loads(&self) -> bool {
        true
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        if spec.fragments || spec.loss_bound_ppm.is_some() {
            return Some("fragments and a loss bound need the engine udp");
        }
        let mut loaded = spec.phases.iter().filter(|phase| phase.load != Load::Idle);
        let has_bidir = spec.phases.iter().any(|phase| phase.load == Load::Bidir);
        let unsupported = [
            (loaded.any(|phase| phase.duration_ms % 1000 != 0), "iperf3 needs phases of whole seconds"),
            (!spec.data_path.is_auto(), "iperf3 cannot choose the data path (--data-path)"),
            (spec.verify_payload, "iperf3 does not verify payload"),
            (spec.may_stop, "iperf3 cannot end a phase early"),
            (
                spec.direction_bytes.is_some() && has_bidir,
                "with -n, iperf3 ends both directions when one of them has sent its bytes",
            ),
        ];
        first_refusal(unsupported)
    }

    fn check_client(&self) -> Result<Vec<PeerText>, Unavailable> {
        Program::find().map(|program| program.client_paddings().iter().map(|padding| padding.name().into()).collect())
    }

    /// Checks the requirements by opening a session on loopback, which fails if a requirement is missing.
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
        because: format!("the sandbox of iperf3 cannot be set up: {error}"),
        hint: "see \"The iperf3 lane\" in docs/operate.md for what the host must allow".into(),
    }
}

/// How much longer than its test an iperf3 process may run: to connect, to exchange results, and to exit.
const RUN_GRACE: Duration = Duration::from_secs(10);

/// The value of `DirectionTally::counted_by` if the kernel counted the bytes. The reflector keeps duplicates of the
/// sockets, and reads their counters.
const COUNTED_BY_SOCKET: &str = "socket";
/// The value of `DirectionTally::counted_by` if the counts are from iperf3's report.
const COUNTED_BY_IPERF3: &str = "iperf3";
