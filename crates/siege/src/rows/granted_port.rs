//! Foreign connections to the data port of a granted session: none may be accepted, and the test must keep its speed.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use lab::{Appliance, Reflector, loopback};

use crate::attack::{Until, connect_from, source};
use crate::measured::Measured;
use crate::scale::Scale;

const PORT: u16 = 47_311;
const TESTS: u32 = 20;
/// The number of attackers; [`PAUSE`] is the pause of each between two connections. Together they open about 1,000
/// connections per second. Attackers have the normal priority: with the lowest one they would hardly run during a test
/// that uses both processors.
const THREADS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(4);
/// The largest accepted loss of throughput under the attack, as a share.
const MOST_LOSS: f64 = 0.05;

/// Counts of the foreign connections.
#[derive(Debug, Default)]
struct Foreign {
    left: AtomicU32,
    connected: AtomicU32,
    bytes: AtomicU64,
    admitted: AtomicU32,
}

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let (tests, connects, seconds) = (scale.of(TESTS, 3), scale.of(20_000, 1_000), scale.of("2", "1"));
    let host = loopback::address();
    let port = PORT.to_string();
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", port.as_str()), ("MAX_TESTS_PER_HOUR", "10000")];
    let reflector = Reflector::serve_on(&[&format!("{host}:0")], None, &settings);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let at = SocketAddr::from((host, PORT));
    let foreign = Foreign::default();
    let (mut alone, mut attacked) = (Vec::new(), Vec::new());
    // The tests with and without the attack alternate, so that other work on the machine affects both.
    for _ in 0..tests {
        alone.push(goodput(&appliance, seconds)?);
        foreign.left.store(connects / tests, Ordering::SeqCst);
        let until = Until::at_most(Duration::from_secs(30));
        attacked.push(std::thread::scope(|scope| {
            let _over = until.when_dropped();
            for thread in 0..THREADS {
                let (foreign, until) = (&foreign, &until);
                scope.spawn(move || foreign.connect(thread, at, until));
            }
            goodput(&appliance, seconds)
        })?);
    }
    let connected = foreign.connected.into_inner();
    let (bytes, admitted) = (foreign.bytes.into_inner(), foreign.admitted.into_inner());
    let mut measured = Measured::default();
    measured.outcome(connected >= connects * 9 / 10, format!("{connected} foreign connections during {tests} tests"));
    measured.outcome(admitted == 0 && bytes == 0, format!("{admitted} admitted, {bytes} bytes answered"));
    let lost = 1.0 - median(&mut attacked) / median(&mut alone);
    measured.time(scale, lost <= MOST_LOSS, format!("{:.1} % of the throughput lost", lost * 100.0));
    Ok(measured)
}

impl Foreign {
    /// Opens connections until their number is reached or the attack ends. Each connection sends bytes that are not a
    /// preamble of this session.
    fn connect(&self, thread: u32, at: SocketAddr, until: &Until) {
        let mut number = thread;
        let take = |left: u32| left.checked_sub(1);
        while !until.is_over() && self.left.load(Ordering::SeqCst) > 0 {
            number += THREADS;
            std::thread::sleep(PAUSE);
            // Before the grant the port is closed.
            let Ok(mut stream) = connect_from(source(number), at) else { continue };
            if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
                return;
            }
            self.connected.fetch_add(1, Ordering::SeqCst);
            let words = [&[1; 48][..], b"GET / HTTP/1.1\r\n\r\n, and something to make it long enough", &[0; 200]];
            // Ignore the error: the reflector may reset the connection before everything is written.
            let _ = stream.write_all(words[number as usize % words.len()]);
            match stream.read(&mut [0; 4096]) {
                Ok(0) => {}
                Ok(read) => {
                    self.bytes.fetch_add(read as u64, Ordering::SeqCst);
                    self.admitted.fetch_add(1, Ordering::SeqCst);
                }
                // A connection that is kept open counts as accepted.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.admitted.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => {}
            }
        }
    }
}

/// The goodput of a whole test in bit/s. It includes the ramp-up, because the attack begins with the test.
fn goodput(appliance: &Appliance, seconds: &str) -> anyhow::Result<f64> {
    let test =
        ["-t", seconds, "-O", "0", "--idle", "0", "--download", "--probe-interval", "0", "--data-mode", "direct"];
    let outcome = appliance.speed_test(&test);
    anyhow::ensure!(outcome.code == 0, "a test failed: {outcome:?}");
    outcome.result().download.map(|download| download.goodput_bps as f64).context("the result has no download")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
