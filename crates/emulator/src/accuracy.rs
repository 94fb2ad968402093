//! Measures what the emulator can do on this machine before it is used, and judges whether it was accurate during a
//! run. With side effects: runs programs and reads the clock.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::direction::Way;
use crate::record::LinkRecord;
use crate::scenario::{Family, Hop, Scenario};
use crate::settings::DirectionSettings;
use crate::topology::Topology;

/// A run is discarded if more than this share of the packets left more than [`LATE_US`] late.
const LATE_SHARE: f64 = 0.01;

/// A packet that left more than this many microseconds late counts as late. The value must be the upper end of a class
/// of [`crate::Lateness`].
const LATE_US: u64 = 1000;

/// A run is discarded if a packet left later than this after its due time, or if the link did not check for new packets
/// for longer than this.
const WORST: Duration = Duration::from_millis(25);

/// The rates that the self-measurement tries, in Mbit/s.
const RATES: [f64; 7] = [10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 1500.0];

/// The UDP port of the self-measurement.
const PORT: u16 = 9;

/// The accuracy of the emulator on this machine, as measured.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// Round trips over an idle link took longer than configured. This is the median of the excess.
    pub round_trip_error: Duration,
    /// Round trips over an idle link took longer than configured. This is the 99th percentile of the excess.
    pub round_trip_error_p99: Duration,
    /// The highest configured rate that the link held within 1 %, in Mbit/s, with packets of 1428 bytes.
    pub rate_mbit: f64,
}

impl Accuracy {
    /// Measures the accuracy, in about three seconds.
    pub fn measure() -> anyhow::Result<Self> {
        let mut errors = round_trip_errors().context("cannot measure the round trip of an idle link")?;
        errors.sort_unstable();
        let at = |share: f64| errors[(errors.len() as f64 * share) as usize];
        let rate_mbit = highest_rate().context("cannot measure the rate of a full link")?;
        Ok(Self { round_trip_error: at(0.5), round_trip_error_p99: at(0.99), rate_mbit })
    }

    /// Why the emulator is not fast enough for this scenario; `None` if it is.
    pub fn refuses(&self, scenario: &Scenario) -> Option<String> {
        let of_hops = Way::BOTH.into_iter().flat_map(|way| scenario.directions(way));
        let most = of_hops.filter_map(|direction| direction.rate_mbit).fold(0.0, f64::max);
        (most > self.rate_mbit)
            .then(|| format!("needs {most} Mbit/s; the emulator carries {} Mbit/s on this machine", self.rate_mbit))
    }
}

/// Why the records of a run do not reflect the configured link: the link was late, or packets were lost outside of it.
/// `None` if the records are accurate. `overrun` is the count of [`Topology::overrun`].
pub fn fault<'a>(records: impl IntoIterator<Item = &'a LinkRecord>, overrun: u64) -> Option<String> {
    if overrun > 0 {
        return Some(format!("the kernel dropped {overrun} packets before the link could read them"));
    }
    for record in records {
        let late = record.lateness.share_above(LATE_US);
        let worst = record.lateness.worst.max(record.longest_turn);
        if record.refused > 0 {
            return Some(format!("the kernel refused {} packets that left the link", record.refused));
        }
        if late > LATE_SHARE {
            return Some(format!("{:.1} % of the packets left more than {LATE_US} us late", late * 100.0));
        }
        if worst > WORST {
            return Some(format!("the link was {:.1} ms late", worst.as_secs_f64() * 1e3));
        }
    }
    None
}

fn symmetric(direction: DirectionSettings) -> Hop {
    Hop { up: Some(direction.clone()), down: Some(direction), mtu: None }
}

/// How much longer than the configured 40 ms each round trip took. Includes the time that the other end takes to
/// answer.
fn round_trip_errors() -> anyhow::Result<Vec<Duration>> {
    let hop = symmetric(DirectionSettings { delay_ms: 20.0, ..DirectionSettings::default() });
    let topology = Topology::new(&[hop], 1, &[])?;
    let to = SocketAddr::new(topology.reflector_address(Family::Ipv4), PORT);
    let server = topology.reflector().inside(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?))?;
    let client = topology.appliance().inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    client.connect(to)?;
    let count = 200_u32;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            for _ in 0..count {
                let Ok((length, from)) = server.recv_from(&mut buffer) else { return };
                // An answer that is not sent is missed by the client, which then fails.
                let _ = server.send_to(&buffer[..length], from);
            }
        });
        let sender = client.try_clone()?;
        let began = now();
        scope.spawn(move || {
            for number in 0..count {
                sleep_until(began + Duration::from_millis(4) * number);
                // A packet that is not sent is missed by the receiving thread, which then fails.
                let _ = sender.send(&now().duration_since(began).as_nanos().to_be_bytes());
            }
        });
        let mut errors = Vec::new();
        let mut buffer = [0; 16];
        for _ in 0..count {
            client.recv(&mut buffer).context("an answer did not arrive, although the link loses nothing")?;
            let sent = Duration::from_nanos(u64::try_from(u128::from_be_bytes(buffer)).unwrap_or(0));
            errors.push(now().duration_since(began).saturating_sub(sent + Duration::from_millis(40)));
        }
        Ok(errors)
    })
}

fn highest_rate() -> anyhow::Result<f64> {
    let mut best = 0.0;
    for rate in RATES {
        if !carries(rate)? {
            break;
        }
        best = rate;
    }
    anyhow::ensure!(best > 0.0, "the emulator cannot hold even {} Mbit/s", RATES[0]);
    Ok(best)
}

/// Whether a link that receives a fifth more than its rate delivers its rate within 1 %, and is not late.
fn carries(rate_mbit: f64) -> anyhow::Result<bool> {
    let direction =
        DirectionSettings { rate_mbit: Some(rate_mbit), queue_ms: Some(20.0), ..DirectionSettings::default() };

    let topology = Topology::new(&[symmetric(direction)], 1, &[])?;
    let to = SocketAddr::new(topology.reflector_address(Family::Ipv4), PORT);
    let _receiver = topology.reflector().inside(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?))?;
    let sender = topology.appliance().inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    sender.connect(to)?;
    let [link] = &topology.links[..] else { anyhow::bail!("the path does not have exactly one link") };
    let began = now();
    let from = link.now();
    let per_millisecond = rate_mbit * 1.2 * 125.0 / 1428.0;
    let mut sent = 0.0;
    for millisecond in 0..400_u32 {
        sleep_until(began + Duration::from_millis(1) * millisecond);
        while sent < per_millisecond * f64::from(millisecond + 1) {
            // Sending may fail if the queue is full, and a full queue is wanted here.
            let _ = sender.send(&[0; 1400]);
            sent += 1.0;
        }
    }
    let record = link.take_record(Way::Up);
    let (window, begin) = (Duration::from_millis(200), from + Duration::from_millis(100));
    let delivered = record.between(begin, begin + window).bytes as f64 * 8.0 / window.as_secs_f64() / 1e6;
    // The count of whole bins may differ by one packet.
    let tolerance = rate_mbit * 0.01 + 1428.0 * 8.0 / window.as_secs_f64() / 1e6;
    let is_late = record.lateness.share_above(LATE_US) > LATE_SHARE;
    Ok((delivered - rate_mbit).abs() <= tolerance && !is_late)
}

#[expect(clippy::disallowed_methods, reason = "measures durations")]
fn now() -> Instant {
    Instant::now()
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(now()));
}
