//! Clients that misuse the metrics listener while a paired device tests: memory, descriptors and processor time must stay
//! small, and the metrics must be served again at once afterwards.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::{Appliance, Reflector};
use socket2::{Domain, Socket, Type};

use crate::attack::{Until, be_nice};
use crate::measured::Measured;
use crate::observe::{cpu, descriptors, mib, rss};
use crate::scale::Scale;

/// The number of connections that send nothing, or only a byte now and then. Besides them, [`ASKING`] threads send
/// requests as fast as they can.
const SILENT: usize = 100;
const ASKING: usize = 4;
/// The number of connections that the metrics listener may have open at once.
const MOST_OPEN: usize = 8;
/// The largest accepted growth of memory, in bytes.
const MOST_MEMORY: u64 = 4 << 20;
/// The largest share of a core that the reflector may use during the flood while no test runs.
const MOST_CPU: f64 = 0.05;
/// How soon after the flood the metrics must be served again.
const SERVES_AGAIN: Duration = Duration::from_secs(6);

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let watched = scale.of(Duration::from_secs(60), Duration::from_secs(3));
    let mut reflector = Reflector::serve(&[("METRICS_LISTEN", "127.0.0.1:0")]);
    let place = place(&reflector)?;
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    anyhow::ensure!(scraped(place).is_some(), "the reflector served no metrics before the flood");
    let pid = reflector.process().pid();
    let (memory, open) = (rss(pid)?, descriptors(pid)?);
    let until = Until::at_most(watched * 4 + Duration::from_secs(30));
    let answers = AtomicU64::new(0);
    let (used, most, tested) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let over = until.when_dropped();
        scope.spawn(|| be_silent(place, &until));
        for request in 0..ASKING {
            let (until, answers) = (&until, &answers);
            scope.spawn(move || {
                be_nice();
                while !until.is_over() {
                    answers.fetch_add(u64::from(misused(place, request)), Ordering::Relaxed);
                }
            });
        }
        let (began, before) = (Instant::now(), cpu(pid)?);
        let mut most = open;
        while began.elapsed() < watched {
            most = descriptors(pid)?.max(most);
            std::thread::sleep(Duration::from_millis(50));
        }
        let used = (cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
        // A test while the flood lasts, at a low rate.
        let tested = appliance.speed_test(&["-t", "1", "--idle", "0.2", "--download", "-b", "5M"]).code;
        drop(over);
        Ok((used, most, tested))
    })?;
    let grown = rss(pid)?.saturating_sub(memory);
    let ended = Instant::now();
    let again = std::iter::repeat_with(|| scraped(place)).take(100).flatten().next();
    let after = ended.elapsed();
    let mut measured = Measured::default();
    measured.outcome(
        most <= open + MOST_OPEN,
        format!(
            "{SILENT} silent connections and {ASKING} clients that ask in a loop: at most {} connections open",
            most.saturating_sub(open)
        ),
    );
    measured.outcome(grown <= MOST_MEMORY, format!("memory +{}", mib(grown)));
    measured.outcome(tested == 0, format!("a test meanwhile: exit code {tested}"));
    measured.time(scale, used <= MOST_CPU, format!("{:.1} % of a core", used * 100.0));
    measured.outcome(again.is_some(), "metrics are served again");
    measured.time(scale, after <= SERVES_AGAIN, format!("after {:.2} s", after.as_secs_f64()));
    measured.note(format!("{} answers in the flood", answers.into_inner()));
    Ok(measured)
}

/// The address of the metrics listener, from `reflector status`.
fn place(reflector: &Reflector) -> anyhow::Result<SocketAddr> {
    let status = reflector.status();
    let place = status["metrics"].as_str().and_then(|place| place.strip_prefix("http://")?.strip_suffix("/metrics"));
    Ok(place.context("the reflector serves no metrics")?.parse()?)
}

/// Keeps connections open until the attack ends. Half of them send nothing, the others a byte twice a second.
fn be_silent(place: SocketAddr, until: &Until) {
    be_nice();
    while !until.is_over() {
        let began = Instant::now();
        let mut all = (0..SILENT).filter_map(|_| begin_to_connect(place).ok()).collect::<Vec<_>>();
        while !until.is_over() && began.elapsed() < Duration::from_secs(7) {
            // A connection that the kernel has not established yet, or that the reflector has closed, refuses the byte.
            all.iter_mut().step_by(2).for_each(|socket| drop(socket.write(b"X")));
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Starts to connect without waiting: while the kernel's queue is full, connecting takes seconds.
fn begin_to_connect(place: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&place.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket),
    }
}

/// Sends one of the kinds of misuse. Returns whether the listener answered anything.
fn misused(place: SocketAddr, which: usize) -> bool {
    let long = "x".repeat(10_000);
    let request = match which % ASKING {
        0 => "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50),
        1 => format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"),
        2 => format!("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{long}"),
        _ => "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
    };
    let Ok(mut stream) = TcpStream::connect_timeout(&place, Duration::from_secs(1)) else { return false };
    let waits = stream.set_read_timeout(Some(Duration::from_secs(1)));
    if waits.and_then(|()| stream.write_all(request.as_bytes())).is_err() {
        return false;
    }
    // The client of the last kind never reads.
    which % ASKING != ASKING - 1 && stream.read(&mut [0; 64]).is_ok_and(|read| read > 0)
}

/// Requests the metrics; `None` if there is no answer.
fn scraped(place: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&place, Duration::from_secs(10)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.contains("\nreflector_build_info{").then_some(text)
}
