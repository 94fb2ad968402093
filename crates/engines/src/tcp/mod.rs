//! The `tcp` engine: parallel streams that fill the path. Decides who sends what, when; how a stream is made and proven
//! stands with the door and the dialer.

mod client;
mod payload;
mod ready;
mod receiver;
mod sender;
mod server;
mod stream;
mod stream_charge;
mod unsent_limit;

#[cfg(test)]
mod tests;

use std::io;

use paramedic_link::test_spec::{DataMode, DataPathWish, TestSpec};

use crate::engine::{ClientEnd, ClientSetup, Engine, ServerEnd, ServerSetup, first_refusal};
use crate::socket::{self, SocketOptions};

/// The engine that fills the path with TCP streams.
pub struct Tcp;

impl Engine for Tcp {
    fn id(&self) -> &'static str {
        "tcp"
    }

    fn about(&self) -> &'static str {
        "parallel TCP streams, as fast as the path takes them"
    }

    fn loads(&self) -> bool {
        true
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::Tunneled, DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        let tunneled = spec.data_mode == DataMode::Tunneled;
        let chosen = !matches!(spec.data_path, DataPathWish::Auto);
        let reads = matches!(spec.data_path, DataPathWish::Auto | DataPathWish::Plain);
        let asked = [
            (tunneled && chosen, "inside TLS every byte is copied: a data path can be chosen in direct mode alone"),
            (spec.verify_payload && !reads, "to verify the payload it has to be read: --data-path auto or plain"),
            (spec.fragments || spec.loss_bound_ppm.is_some(), "fragments and a bound of loss are for datagrams"),
        ];
        first_refusal(asked)
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn ServerEnd>> {
        Ok(Box::new(server::TcpServer::open(setup)?))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn ClientEnd>> {
        Ok(Box::new(client::TcpClient::new(setup)?))
    }
}

/// How bytes were moved at an end, as a result names it.
mod data_path {
    /// Copied between the program and its kernel.
    pub(super) const PLAIN: &str = "plain";
    /// Thrown away in the receiver's kernel.
    pub(super) const TRUNC: &str = "trunc";
    /// Given to the sender's kernel by reference.
    pub(super) const SPLICE: &str = "splice";
    /// Through TLS in the program.
    pub(super) const TLS: &str = "tls";
}

/// The options of this test's sockets, refused here and now if this host's kernel would refuse them.
fn socket_options(spec: &TestSpec) -> io::Result<SocketOptions> {
    if let Some(name) = &spec.congestion_control {
        socket::check_congestion_control(name)?;
    }
    Ok(SocketOptions::of(spec))
}
