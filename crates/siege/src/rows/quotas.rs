//! Lets requests race for the same slots, ports, tests and bytes; and kills a reflector during a test.

use std::collections::BTreeSet;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use lab::{Appliance, Reflector, TwoHosts};
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::{EndpointId, SessionId};
use reflector::sessions::{Answer, Limits, LinkId, Now, PastUsage, Sessions};

use crate::measured::Measured;
use crate::scale::Scale;

/// The number of requests in a race.
const REQUESTS: u64 = 64;
/// The number of threads that send the requests of a race.
const THREADS: u64 = 8;
/// The maximum number of concurrent tests in a race. Racing requests must not exceed this limit, nor
/// [`TESTS_AN_HOUR`], [`BYTES_A_DAY`] and [`PORTS`].
const SLOTS: u32 = 5;
const TESTS_AN_HOUR: u32 = 3;
const BYTES_A_DAY: u64 = 1_000_000_000;
const PORTS: std::ops::RangeInclusive<u16> = 5201..=5203;
/// The bytes of the headers of a data packet on the veth link: Ethernet, IPv4, and TCP with timestamps.
const HEADERS: u64 = 14 + 20 + 32;
/// The precision of the charge: it may differ from the bytes on the interface by one part in this many (200: 0.5 %).
const CHARGE_PARTS: u64 = 200;
/// The number of intervals of a test that pass before the kill. Each lasts [`INTERVAL_MS`].
const INTERVALS_BEFORE_KILL: u32 = 10;
const INTERVAL_MS: u64 = 100;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let races = scale.of(10_000, 500);
    let (mut over, mut granted) = (0, 0);
    for race in 0..races {
        let raced = race_once(race)?;
        over += u32::from(raced.is_over);
        granted += raced.granted;
    }
    measured.note(format!("{races} races of {REQUESTS} requests, {granted} granted"));
    measured.outcome(granted > 0, "some are granted");
    measured.outcome(over == 0, format!("{over} races above a limit"));
    charge(&mut measured)?;
    kill(&mut measured)?;
    Ok(measured)
}

#[derive(Debug, Default)]
struct Raced {
    granted: u64,
    is_over: bool,
}

fn spec(is_direct: bool, engine: &EngineId) -> TestSpec {
    let data_mode = if is_direct { DataMode::DirectEphemeral } else { DataMode::Tunneled };
    let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 1000 }];
    TestSpec { probe_interval_us: 10_000, ..TestSpec::new(engine.clone(), data_mode, phases, 1) }
}

/// Runs one race: links of four devices request sessions at the same time, and each granted session leases bytes.
fn race_once(race: u64) -> anyhow::Result<Raced> {
    let engine = EngineId::try_from("tcp").map_err(|_| anyhow::anyhow!("`tcp` is not accepted as an engine"))?;
    let limits = Limits {
        max_concurrent_tests: SLOTS,
        max_tests_per_hour: TESTS_AN_HOUR,
        max_bytes_per_day: BYTES_A_DAY,
        max_bytes_per_day_total: BYTES_A_DAY * 2,
        max_queue: 8,
        data_ports: Some(PORTS),
        data_modes: vec![DataMode::Tunneled, DataMode::DirectEphemeral],
        engines: vec![engine.clone()],
        max_streams: 1,
        max_test_duration: Duration::from_secs(10),
        ..Limits::default()
    };
    let now = Now { mono: Duration::from_secs(1), unix_ms: 20_000 * 86_400_000 };
    let sessions = Mutex::new(Sessions::<()>::new(limits, PastUsage::default(), now));
    let start = Barrier::new(usize::try_from(THREADS)?);
    // The session, device, port and bytes of each grant.
    let grants = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sessions, start, grants, engine) = (&sessions, &start, &grants, &engine);
            scope.spawn(move || {
                start.wait();
                for nth in 0..REQUESTS / THREADS {
                    let number = thread * (REQUESTS / THREADS) + nth;
                    let device = u8::try_from((number + race) % 4).expect("below 4");
                    let peer = EndpointId::from_bytes([device + 1; 32]);
                    let id = SessionId::from_bytes(u128::from(number + 1).to_be_bytes());
                    let spec = spec(number.is_multiple_of(3), engine);
                    let mut desk = sessions.lock().expect("no thread panics");
                    let (answer, _) = desk.request(LinkId(number), peer, spec, number.is_multiple_of(2), id, now);
                    let Answer::Reserved(reservation) = answer else { continue };
                    drop(desk);
                    std::thread::yield_now();
                    let mut desk = sessions.lock().expect("no thread panics");
                    if !desk.opened(reservation.session, now).0 {
                        continue;
                    }
                    let mut bytes = 0;
                    while let Ok(lease) = desk.lease(reservation.session, BYTES_A_DAY / 2, now) {
                        bytes += lease.bytes;
                    }
                    grants.lock().expect("no thread panics").push((
                        reservation.session,
                        device,
                        reservation.port,
                        bytes,
                    ));
                }
            });
        }
    });
    let grants = grants.into_inner()?;
    let of = |device: u8| grants.iter().filter(move |grant| grant.1 == device);
    let ports = grants.iter().filter_map(|grant| grant.2).collect::<Vec<_>>();
    let is_over = grants.len() > usize::try_from(SLOTS)?
        || ports.iter().collect::<BTreeSet<_>>().len() < ports.len()
        || ports.iter().any(|port| !PORTS.contains(port))
        || grants.iter().map(|grant| grant.3).sum::<u64>() > BYTES_A_DAY * 2
        || (0..4).any(|device| {
            of(device).count() > TESTS_AN_HOUR as usize || of(device).map(|grant| grant.3).sum::<u64>() > BYTES_A_DAY
        });
    Ok(Raced { granted: grants.len() as u64, is_over })
}

/// Compares the bytes that the reflector charges for tests with what its interface counted.
fn charge(measured: &mut Measured) -> anyhow::Result<()> {
    let Some(hosts) = TwoHosts::new() else {
        measured.note("the charge beside the interface's counters: skipped, needs root");
        return Ok(());
    };
    // A shaper splits what the host would send in one piece into packets, each with its own headers.
    hosts.near.shape("200mbit", "50ms");
    hosts.far.shape("200mbit", "50ms");
    let settings = [("MODE", "direct_ephemeral"), ("MAX_BYTES_PER_DAY", "10GB"), ("MAX_TESTS_PER_HOUR", "10")];
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &settings);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    let charged = || reflector.status()["sessions"]["bytes_today"].as_u64().unwrap_or_default();
    for (direction, way) in [("download", "tx"), ("upload", "rx")] {
        let counted = || {
            let of = |what: &str| hosts.near.interface_counter(&format!("{way}_{what}"));
            (of("bytes"), of("packets"))
        };
        let (before, charged_before) = (counted(), charged());
        let test = [&format!("--{direction}"), "-t", "2", "-P", "4", "--idle", "0", "--probe-interval", "0"];
        let outcome = appliance.speed_test(&test);
        anyhow::ensure!(outcome.code == 0, "a test failed: {outcome:?}");
        let (after, charge) = (counted(), charged() - charged_before);
        let result = outcome.json();
        let number = |name: &str| result[direction][name].as_u64().unwrap_or_default();
        // A segment that is retransmitted after a loss crosses the link twice and is charged once.
        let again = number("retransmits") * number("mss");
        let seen = (after.0 - before.0).saturating_sub(HEADERS * (after.1 - before.1)).saturating_sub(again);
        let text = format!(
            "{direction}: {charge} bytes charged, {seen} on the interface ({:+.3} %)",
            (charge as f64 / seen as f64 - 1.0) * 100.0
        );
        measured.outcome(charge > 0 && charge.abs_diff(seen) <= seen / CHARGE_PARTS, text);
    }
    Ok(())
}

/// Kills the reflector during a test: the bytes that flowed must stay charged, and the device must be served again.
fn kill(measured: &mut Measured) -> anyhow::Result<()> {
    let mut reflector = Reflector::serve(&[("MAX_BYTES_PER_DAY", "10GB"), ("MAX_TESTS_PER_HOUR", "3")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let first = appliance.speed_test(&["-t", "0.5", "--idle", "0.1", "-b", "100M"]);
    anyhow::ensure!(first.code == 0, "the first test failed: {first:?}");
    let test = ["speed-test", "--json-stream", "-t", "30", "--idle", "0.1", "--download", "-b", "100M"];
    let charged = |reflector: &Reflector| {
        let status = reflector.status();
        let tests = status["sessions"]["peers"][0]["tests_this_hour"].as_u64().unwrap_or_default();
        (status["sessions"]["bytes_today"].as_u64().unwrap_or_default(), tests)
    };
    let settled = charged(&reflector).0;
    let running = appliance.start(&test);
    let mut flowed = 0;
    for _ in 0..INTERVALS_BEFORE_KILL {
        let bps = loop {
            let event = serde_json::from_str::<serde_json::Value>(&running.line(Duration::from_secs(30))?)?;
            if event["event"] == "interval" {
                break event["bps"].as_u64().unwrap_or_default();
            }
        };
        flowed += bps / 8 * INTERVAL_MS / 1000;
    }
    let before = charged(&reflector);
    reflector.end(rustix::process::Signal::KILL);
    reflector.start()?;
    drop(running);
    let after = charged(&reflector);
    measured.outcome(
        after.0 >= settled + flowed && flowed > 0,
        format!(
            "a kill refunds no byte that flowed ({} charged, {} before the test, {flowed} in it)",
            after.0, settled
        ),
    );
    measured.outcome(after.1 == 2 && before.1 == 2, format!("and no test ({} then {})", before.1, after.1));
    let again = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "-b", "10M"]);
    measured.outcome(again.code == 0, "the device is served again");
    let over = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "-b", "10M", "--no-wait"]);
    measured.outcome(over.code == 5, "and its fourth test in the hour is not");
    Ok(())
}
