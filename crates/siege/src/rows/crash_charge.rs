//! Kills the reflector while bytes flow, and compares the bytes that its next start charges to the quota of the device
//! with the bytes that crossed the interface.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::{Appliance, Host, Reflector, TwoHosts};
use rustix::process::{Pid, Signal};

use crate::measured::Measured;
use crate::scale::Scale;

/// The rates of the tests during which the reflector is killed: a label, and the value of `-b` (`None`: no rate limit).
const RATES: [(&str, Option<&str>); 3] = [("5 Mbit/s", Some("5M")), ("1 Gbit/s", Some("1G")), ("full speed", None)];
/// The excess that is always accepted, in bytes: how much more than the flowed bytes the reflector may charge after a
/// crash. If twice the bytes of the fastest second are more, that excess is accepted instead.
const SMALLEST_SURGE: u64 = 16 << 20;
/// The latest moment of a kill, in milliseconds after the bytes began to flow.
const LAST_KILL: u64 = 2_500;
/// The tolerance of the comparison, in bytes. It covers payload on the interface that is not data of the session (the
/// link, its handshake, probes), and data that was still in the buffers of a socket when the reflector was killed.
const SLACK: u64 = 8_000_000;
/// The bytes of the headers of a data packet on the veth link: Ethernet, IPv4, and TCP with timestamps.
const HEADERS: u64 = 14 + 20 + 32;
/// The names of the interface's counters of received and of sent traffic: bytes and packets.
const COUNTERS: [[&str; 2]; 2] = [["rx_bytes", "rx_packets"], ["tx_bytes", "tx_packets"]];
/// How often the counters of the interface are read.
const READ_INTERVAL: Duration = Duration::from_millis(5);

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let Some(hosts) = TwoHosts::new() else { return Ok(Measured::skipped("needs root for namespaces")) };
    let mut measured = Measured::default();
    let at = format!("{}:4000", hosts.near.v4);
    let settings = [("MODE", "direct_ephemeral"), ("MAX_TESTS_PER_HOUR", "1000000"), ("LOG", "warn")];
    let mut reflector = Reflector::serve_on(&[&at], Some(&hosts.near.netns), &settings);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &at);
    let kills = scale.of(67, 2);
    for (name, rate) in RATES {
        let (mut surplus, mut over, mut shortage, mut late) = (0, 0, 0, 0);
        for kill in 0..kills {
            let after = Duration::from_millis(10 + kill * 7919 % LAST_KILL);
            let killed = kill_once(&mut reflector, &appliance, &hosts.near, rate, kill % 2 == 0, after)?;
            let promised = SMALLEST_SURGE.max(2 * killed.fastest_second);
            surplus = surplus.max(killed.charged.saturating_sub(killed.flowed_at_end));
            over += u32::from(killed.charged > killed.flowed_at_end + promised + SLACK);
            shortage = shortage.max(killed.flowed.saturating_sub(killed.charged));
            late += u32::from(killed.charged + killed.last_half_second + SLACK < killed.flowed);
        }
        measured.note(format!(
            "{name}: {kills} kills, charged at most {:.1} MB more and {:.1} MB less than flowed",
            megabytes(surplus),
            megabytes(shortage)
        ));
        measured.outcome(over == 0, format!("{over} above max(16 MiB, twice the fastest second)"));
        measured.time(scale, late == 0, format!("{late} short of what flowed until half a second before"));
    }
    Ok(measured)
}

#[expect(clippy::cast_precision_loss, reason = "printed with one digit")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

struct Killed {
    /// Payload bytes that had crossed the interface just before the kill.
    flowed: u64,
    /// Payload bytes that had crossed the interface when the process had ended: on a busy host some milliseconds after
    /// the kill.
    flowed_at_end: u64,
    /// The most payload bytes that crossed the interface within one second.
    fastest_second: u64,
    /// Payload bytes that crossed the interface in the last half second before the kill.
    last_half_second: u64,
    /// The bytes that the next start charged to the device.
    charged: u64,
}

/// Starts a test, kills the reflector when bytes have flowed for the time `after`, and starts it again.
fn kill_once(
    reflector: &mut Reflector,
    appliance: &Appliance,
    host: &Host,
    rate: Option<&str>,
    is_download: bool,
    after: Duration,
) -> anyhow::Result<Killed> {
    let charged_before = charged(reflector);
    let process = reflector.process().pid();
    let counted = || payload(process, is_download);
    let before = counted()?;
    let direction = if is_download { "--download" } else { "--upload" };
    let mut test = vec!["speed-test", "--json", "-t", "30", "--idle", "0.1", "-P", "1", "--data-mode", "direct"];
    test.push(direction);
    test.extend(rate.iter().flat_map(|rate| ["-b", rate]));
    let running = appliance.start(&test);
    let patience = Instant::now() + Duration::from_secs(30);
    // The messages of the link itself take some kilobytes.
    while counted()? < before + 50_000 {
        anyhow::ensure!(Instant::now() < patience, "the test does not begin: {}", reflector.log());
        std::thread::sleep(READ_INTERVAL);
    }
    let kill_at = Instant::now() + after;
    let mut readings = VecDeque::from([(Instant::now(), counted()?)]);
    let mut fastest_second = 0;
    let mut note = |readings: &mut VecDeque<(Instant, u64)>, now, bytes| {
        readings.push_back((now, bytes));
        while readings.len() > 2 && now - readings[1].0 > Duration::from_secs(1) {
            readings.pop_front();
        }
        fastest_second = fastest_second.max(bytes - readings[0].1);
    };
    while Instant::now() < kill_at {
        std::thread::sleep(READ_INTERVAL);
        let (now, bytes) = (Instant::now(), counted()?);
        note(&mut readings, now, bytes);
    }
    let flowed = counted()? - before;
    let recent = readings.iter().find(|(at, _)| at.elapsed() <= Duration::from_millis(500));
    let last_half_second = recent.map_or(0, |(_, bytes)| flowed + before - bytes);
    reflector.end(Signal::KILL);
    let ended = Instant::now();
    let [bytes, packets] = COUNTERS[usize::from(is_download)].map(|name| host.interface_counter(name));
    // The packets by which the kernel resets a killed process's connections are shorter than the headers of a data
    // packet.
    let at_end = bytes.saturating_sub(HEADERS * packets).max(flowed + before);
    note(&mut readings, ended, at_end);
    let flowed_at_end = at_end - before;
    drop(running);
    reflector.start()?;
    let fastest_second = fastest_second.max(flowed.min(50_000));
    Ok(Killed { flowed, flowed_at_end, fastest_second, last_half_second, charged: charged(reflector) - charged_before })
}

fn charged(reflector: &Reflector) -> u64 {
    reflector.status()["sessions"]["bytes_today"].as_u64().unwrap_or_default()
}

/// The payload bytes that `eth0` in the network namespace of this process has sent (`is_sent`) or received.
fn payload(process: Pid, is_sent: bool) -> anyhow::Result<u64> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/dev", process.as_raw_nonzero()))?;
    let line =
        table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("there is no interface eth0")?;
    let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // A line has received bytes and packets, six other counters, then sent bytes and packets.
    let at = if is_sent { 8 } else { 0 };
    let (bytes, packets) = numbers.get(at).zip(numbers.get(at + 1)).context("eth0 has no counters")?;
    Ok(bytes.saturating_sub(HEADERS * packets))
}
