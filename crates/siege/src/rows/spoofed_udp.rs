//! Forged and replayed datagrams at the control port and at a session's own port: none may be answered, the answer to a
//! valid datagram must not be longer than the datagram, and sending must stop when no feedback arrives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::hostile::AsAppliance;
use lab::{Appliance, Host, Reflector, TwoHosts, loopback};
use paramedic_link::admission::{SESSION_EXPORTER_LABEL, SessionKeys, TAG_LEN};
use paramedic_link::test_spec::Direction;
use serde_json::json;

use crate::measured::Measured;
use crate::scale::Scale;
use crate::target::{HOME, Target, granted, peer_of, request};

/// The length of a probe in bytes; [`TAG_AT`] is the offset of its tag (docs/protocol.md, "Latency probes").
const PROBE: usize = 96;
const TAG_AT: usize = PROBE - TAG_LEN;
/// A source address other than that of the session's device.
const OTHER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for (name, mode) in [("control port", "tunneled"), ("direct port", "direct_ephemeral")] {
        forge(name, mode, scale.of(500_000, 25_000), &mut measured)?;
    }
    silence(scale, &mut measured)?;
    Ok(measured)
}

/// Builds a probe with this sequence number and a valid tag.
fn probe(keys: &SessionKeys, number: u32) -> [u8; PROBE] {
    let mut bytes = [0; PROBE];
    bytes[..2].copy_from_slice(&[1, 1]);
    bytes[4..20].copy_from_slice(keys.session().as_bytes());
    bytes[20..24].copy_from_slice(&number.to_be_bytes());
    bytes[24..28].copy_from_slice(&number.to_be_bytes());
    let tag = keys.seal_datagram(Direction::Upload, &bytes[..TAG_AT]);
    bytes[TAG_AT..].copy_from_slice(&tag);
    bytes
}

/// Builds the `n`th forgery, derived from a valid probe that was already answered.
fn forged(n: u32, genuine: &[u8; PROBE], keys: &SessionKeys) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    // Deterministic pseudo-random numbers.
    let noise = n.wrapping_mul(2_654_435_761).to_be_bytes();
    match n % 10 {
        // An exact replay of the valid probe.
        0 => {}
        // One flipped bit: in the tag, in the sequence number, or in the session id.
        1 => bytes[TAG_AT + n as usize / 10 % TAG_LEN] ^= 1 << (noise[0] % 8),
        2 => bytes[20..24].copy_from_slice(&noise),
        3 => bytes[4 + n as usize / 10 % 16] ^= 1 << (noise[0] % 8),
        // Every other kind of datagram, with the tag of the valid probe.
        4 => bytes[1] = noise[1],
        // A new probe with the key of the other direction.
        5 => {
            let mut new = probe(keys, n);
            let tag = keys.seal_datagram(Direction::Download, &new[..TAG_AT]);
            new[TAG_AT..].copy_from_slice(&tag);
            bytes = new.to_vec();
        }
        // A truncated probe; then an extended one.
        6 => bytes.truncate(n as usize / 10 % PROBE),
        7 => bytes.resize(PROBE + 1 + n as usize / 10 % 1300, noise[0]),
        // Random bytes of every length.
        8 => bytes = noise.repeat(n as usize / 10 % 350),
        _ => bytes[0] = noise[0].max(2),
    }
    bytes
}

/// The number of bytes that have arrived at the socket; does not wait.
fn received(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).map(|read| read as u64).sum()
}

fn forge(name: &str, mode: &str, count: u32, measured: &mut Measured) -> anyhow::Result<()> {
    let host = loopback::address();
    let settings = [("MODE", "direct_ephemeral"), ("MAX_TEST_DURATION", "10m")];
    let reflector = Reflector::serve_on(&[&format!("{host}:0")], None, &settings);
    let (target, key) = (Target::of(&reflector)?, peer_of(&reflector)?);
    let mut link = target.welcomed(HOME, &key)?;
    let (session, grant) = granted(&mut link, &request(mode, 300_000))?;
    let secret = link.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
    let keys = SessionKeys::derive(session, secret.into());
    link.say(&json!({ "type": "start", "phase": 0 }))?;
    link.hear_a("started")?;
    let port = match mode {
        "tunneled" => target.address.port(),
        _ => {
            grant["data_port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("the grant names no port")?
        }
    };
    let at = SocketAddr::from((host, port));
    let socket = |from: IpAddr| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(at)?;
        Ok(socket)
    };
    let own = socket(HOME)?;
    let genuine = probe(&keys, 1);
    own.set_read_timeout(Some(Duration::from_secs(10)))?;
    own.send(&genuine)?;
    let answered = own.recv(&mut [0; 2048]).with_context(|| format!("a genuine probe at the {name} gets no answer"))?;
    own.set_nonblocking(true)?;
    let other = socket(OTHER_ADDRESS)?;
    other.set_nonblocking(true)?;
    let (mut sent, mut got) = (0, 0);
    let mut pinged = Instant::now();
    for n in 0..count {
        // Send from the session's address, and in turn from another one, from which even a valid new probe must not be
        // answered.
        let is_home = n % 2 == 0;
        let from = if is_home { &own } else { &other };
        let bytes = if !is_home && n % 20 == 1 { probe(&keys, n).to_vec() } else { forged(n, &genuine, &keys) };
        // Datagrams lost to a full buffer are not counted.
        sent += u32::from(from.send(&bytes).is_ok());
        if n % 64 == 0 {
            got += received(&own) + received(&other);
        }
        if pinged.elapsed() > Duration::from_secs(2) {
            link.say(&json!({ "type": "ping" }))?;
            pinged = Instant::now();
        }
    }
    // The session still answers a valid probe, so the reflector has processed everything before it.
    got += received(&own) + received(&other);
    let alive = answers(&own, &keys, &mut link)?;
    got += alive.1;
    measured.outcome(answered <= PROBE, format!("{name}: echo {answered} of {PROBE} bytes"));
    measured.outcome(sent > count / 2 && alive.0, format!("{sent} forged or replayed, then a genuine one answered"));
    measured.outcome(got == 0, format!("{got} bytes answered"));
    Ok(())
}

/// Sends a valid new probe. Returns whether it was answered, and how many bytes arrived in addition to that answer.
fn answers(own: &UdpSocket, keys: &SessionKeys, link: &mut AsAppliance) -> anyhow::Result<(bool, u64)> {
    own.set_nonblocking(false)?;
    own.set_read_timeout(Some(Duration::from_secs(2)))?;
    for number in 0..5 {
        link.say(&json!({ "type": "ping" }))?;
        own.send(&probe(keys, u32::MAX - 10 + number))?;
        let mut reply = [0; 2048];
        if let Ok(read) = own.recv(&mut reply) {
            // The reply contains the sequence number that it answers; another number means that a forgery was answered.
            let is_its = read == PROBE && reply[20..24] == (u32::MAX - 10 + number).to_be_bytes();
            own.set_nonblocking(true)?;
            let more = received(own) + if is_its { 0 } else { read as u64 };
            return Ok((is_its, more));
        }
    }
    Ok((false, 0))
}

const CUT: &str = "table inet cut { chain out { type filter hook output priority 0; meta l4proto udp drop;\n }\n }\n";

/// Blocks the feedback of a UDP download. Counts the bytes that the sender's interface sends from one second to two
/// seconds after the block.
fn silence(scale: Scale, measured: &mut Measured) -> anyhow::Result<()> {
    let Some(hosts) = TwoHosts::new() else {
        measured.note("silence of the receiver skipped: no namespaces");
        return Ok(());
    };
    let settings = [("MODE", "direct_ephemeral")];
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &settings);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    let tries = scale.of(5, 1);
    let mut still = Vec::new();
    for ended in 0..tries {
        let test = ["speed-test", "--json-stream", "--download", "-u", "-P", "1", "-b", "20M", "-t", "8"];
        let mut running = appliance.start(&[&test[..], &["--idle", "0", "--probe-interval", "0"]].concat());
        while !running.line(Duration::from_secs(30))?.contains("\"interval\"") {}
        hosts.far.nft(CUT);
        // The sender promises to stop within this second; the measurement covers the second after it.
        std::thread::sleep(Duration::from_secs(1));
        let before = sent(&hosts.near);
        std::thread::sleep(Duration::from_secs(1));
        still.push(sent(&hosts.near) - before);
        hosts.far.nft("delete table inet cut\n");
        running.kill();
        reflector.await_audited("session_ended", |_| reflector.audited("session_ended").len() > ended);
    }
    // One second of data would be 2.5 MB; less is the link's own messages.
    let most = still.iter().copied().max().unwrap_or(u64::MAX);
    let text = format!("at most {most} bytes in the second after the first one without feedback, {tries} times");
    measured.time(scale, most < 50_000, text);
    Ok(())
}

fn sent(host: &Host) -> u64 {
    host.interface_counter("tx_bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_forgery_is_a_valid_new_probe() {
        let keys = SessionKeys::derive(paramedic_link::SessionId::from_bytes([7; 16]), [9; 32].into());
        let genuine = probe(&keys, 1);
        for n in 0..5000 {
            let bytes = forged(n, &genuine, &keys);
            let tag = bytes.get(TAG_AT..PROBE).and_then(|tag| tag.try_into().ok());
            let is_sealed = bytes.len() == PROBE
                && bytes[..2] == [1, 1]
                && tag.is_some_and(|tag| keys.is_datagram(Direction::Upload, &bytes[..TAG_AT], &tag));
            assert!(!is_sealed || bytes == genuine, "{n}: {bytes:?}");
        }
    }
}
