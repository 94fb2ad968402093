//! A reflector as an attacker sees it: an address and a key; and links to it with any key, paired or not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use lab::Reflector;
use lab::hostile::AsAppliance;
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{EndpointId, SecretKey, SessionId};
use serde_json::{Value, json};

use crate::attack::connect_from;

/// The address and the key of a reflector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) id: EndpointId,
}

/// The source address from which paired peers connect by default.
pub(crate) const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Target {
    pub(crate) fn of(reflector: &Reflector) -> anyhow::Result<Self> {
        let id = reflector.id().parse::<EndpointId>().ok().context("the reflector's Endpoint ID is not valid")?;
        Ok(Self { address: reflector.address().parse()?, id })
    }

    /// Opens a link or a data connection to the reflector with this key.
    pub(crate) fn open(&self, from: IpAddr, key: &SecretKey, alpn: Alpn) -> io::Result<AsAppliance> {
        let config = tls::appliance_config(key, Expect::ExactKey(self.id), alpn).map_err(io::Error::other)?;
        let socket = connect_from(from, self.address)?;
        socket.set_nodelay(true)?;
        AsAppliance::over_with(socket, config)
    }

    /// Opens a link with the key of a paired peer, and reads the reflector's messages up to `welcome`.
    pub(crate) fn welcomed(&self, from: IpAddr, key: &SecretKey) -> io::Result<AsAppliance> {
        let mut link = self.open(from, key, Alpn::Link)?;
        link.say(&hello())?;
        link.hear_a("welcome")?;
        Ok(link)
    }
}

/// Creates a key for the siege to use, and adds its Endpoint ID to the reflector's peers.
pub(crate) fn peer_of(reflector: &Reflector) -> anyhow::Result<SecretKey> {
    let key = SecretKey::generate()?;
    reflector.must(&["peers", "add", &key.id().to_string()]);
    Ok(key)
}

pub(crate) fn hello() -> Value {
    json!({ "type": "hello", "versions": [1], "software": "0.0.0" })
}

/// Builds a request for a session with one phase, which has only latency probes.
pub(crate) fn request(data_mode: &str, duration_ms: u32) -> Value {
    let spec = json!({
        "engine": "echo", "data_mode": data_mode, "phases": [{ "load": "idle", "duration_ms": duration_ms }],
        "streams": 1, "probe_interval_us": 10_000,
    });
    json!({ "type": "request", "spec": spec, "wait": true })
}

/// Requests a session and waits until it is granted.
pub(crate) fn granted(link: &mut AsAppliance, request: &Value) -> anyhow::Result<(SessionId, Value)> {
    link.say(request)?;
    loop {
        let message = link.hear()?.context("the reflector closed the link before it granted a session")?;
        match message["type"].as_str() {
            Some("granted") => return Ok((serde_json::from_value(message["session"].clone())?, message)),
            Some("denied" | "close") => anyhow::bail!("the reflector granted no session: {message}"),
            _ => {}
        }
    }
}

/// The number of refusals that a reflector has counted, over all reasons.
pub(crate) fn refusals(reflector: &Reflector) -> u64 {
    let status = reflector.status();
    status["refused"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}
