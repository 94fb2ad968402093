//! The `tcp` engine: parallel TCP streams that fill the path.

mod client;
mod payload;
pub mod rate_limit;
mod ready;
mod receiver;
mod sender;
mod server;
mod stream;
mod unsent_limit;

#[cfg(test)]
mod tests;

use std::io;

use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, DataPathWish, TestSpec};

use crate::engine::{ClientSetup, Engine, EngineClient, EngineServer, ServerSetup, first_refusal};
use crate::socket::{self, SocketOptions};

/// The engine that fills the path with TCP streams.
pub struct Tcp;

impl Engine for Tcp {
    fn id(&self) -> &'static str {
        "tcp"
    }

    fn about(&self) -> &'static str {
        "parallel TCP streams at the highest rate of the path"
    }

    fn loads(&self) -> bool {
        true
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::Tunneled, DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        let is_tunneled = spec.data_mode == DataMode::Tunneled;
        let is_chosen = !matches!(spec.data_path, DataPathWish::Auto);
        let reads = matches!(spec.data_path, DataPathWish::Auto | DataPathWish::Plain);
        let options = [
            (is_tunneled && is_chosen, "--data-path needs direct mode: in the tunnel TLS copies every byte"),
            (spec.verify_payload && !reads, "verifying the payload needs --data-path auto or plain"),
            (spec.fragments || spec.loss_bound_ppm.is_some(), "fragments and a loss bound need the engine udp"),
        ];
        first_refusal(options)
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn EngineServer>> {
        Ok(Box::new(server::TcpServer::open(setup)?))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn EngineClient>> {
        Ok(Box::new(client::TcpClient::new(setup)?))
    }
}

/// The methods that move payload, by their names in the result document.
mod data_path {
    /// Payload was copied between the program and the kernel.
    pub(super) const PLAIN: &str = "plain";
    /// Payload was discarded in the receiver's kernel.
    pub(super) const TRUNC: &str = "trunc";
    /// Zero-copy send: payload was passed to the sender's kernel by reference.
    pub(super) const SPLICE: &str = "splice";
    /// Payload was encrypted or decrypted by TLS in the program.
    pub(super) const TLS: &str = "tls";
}

/// If this end's kernel granted smaller socket buffers than requested, records their size in both directions of
/// `tally`.
fn with_window(mut tally: PhaseTally, options: &SocketOptions) -> PhaseTally {
    let reduced = options.reduced_window();
    for direction in [&mut tally.download, &mut tally.upload].into_iter().flatten() {
        direction.reduced_window_bytes = reduced;
    }
    tally
}

/// The options of the sockets of the test `spec`. Fails if the kernel would refuse the requested congestion control.
fn socket_options(spec: &TestSpec) -> io::Result<SocketOptions> {
    if let Some(name) = &spec.congestion_control {
        socket::check_congestion_control(name)?;
    }
    Ok(SocketOptions::of(spec))
}
