//! Measurements that are not made in pairs of runs with iperf3: an idle reflector, the memory of the programs, the time
//! that a speed test takes outside its phases, and TLS handshakes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Reflector, Running};
use paramedic_link::SecretKey;
use paramedic_link::tls::{self, Alpn, Expect};
use rustix::process::Signal;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::bed::Bed;
use crate::process::{self, Stop};
use crate::record::{Memory, Rest};

/// How long a program may take to print an expected line or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures an idle reflector with default settings: starts it once with an empty state folder and `starts` times with
/// the existing one, then observes it for `watched`.
pub(crate) fn rest(stop: &Stop, starts: u32, watched: Duration) -> anyhow::Result<Rest> {
    let mut reflector = Reflector::idle(&[]);
    let start = |reflector: &mut Reflector| -> anyhow::Result<f64> {
        stop.check()?;
        let began = Instant::now();
        reflector.start()?;
        Ok(began.elapsed().as_secs_f64())
    };
    let first_ready_s = start(&mut reflector)?;
    let mut ready_s = Vec::new();
    for _ in 0..starts {
        reflector.process().signal(Signal::TERM);
        reflector.process().wait(PATIENCE)?;
        ready_s.push(start(&mut reflector)?);
    }
    let pid = reflector.process().pid();
    // After this pause, the work that belongs to the start is over.
    stop.pass(Duration::from_secs(1))?;
    let before = process::cpu_so_far(pid)?;
    let began = Instant::now();
    stop.pass(watched)?;
    let watched_s = began.elapsed().as_secs_f64();
    let cpu_s = process::cpu_so_far(pid)? - before;
    let rss_bytes = process::memory_of(pid, "VmRSS").context("the reflector's memory can't be read")?;
    Ok(Rest { first_ready_s, ready_s, rss_bytes, cpu_s, watched_s })
}

/// Measures the largest memory of each program during a test with this many streams: our programs in direct and in
/// tunneled mode, then iperf3.
pub(crate) fn memory(
    stop: &Stop,
    bed: &mut Bed,
    iperf3: &Path,
    streams: u16,
    seconds: u32,
) -> anyhow::Result<Vec<Memory>> {
    let mut found = Vec::new();
    let (streams_text, time) = (streams.to_string(), seconds.to_string());
    for mode in ["direct", "tunneled"] {
        let server = bed.reflector.process().pid();
        process::forget_the_most(server)?;
        let load = ["-P", &streams_text, "-t", &time, "--idle", "0", "--bidir", "--data-mode", mode];
        let mut client = bed.appliance.start(&[&["speed-test", "--json-stream"], &load[..]].concat());
        let client_bytes = most_of(stop, &mut client)?;
        let server_bytes = process::memory_of(server, "VmHWM").context("the reflector's memory can't be read")?;
        found.push(Memory { what: format!("ours, tcp, {mode}"), is_ours: true, streams, client_bytes, server_bytes });
    }
    let server = bed.iperf3(iperf3)?;
    let address = &server.address;
    let line = format!("--client {address} --port {} --bidir --parallel {streams} --time {time}", server.port());
    let line = format!("{line} --interval 0.1 --forceflush");
    let arguments = line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut client = Running::start(bed.iperf3_client(iperf3, &arguments), std::process::Stdio::null())?;
    let client_bytes = most_of(stop, &mut client)?;
    let server_bytes = process::memory_of(server.server.pid(), "VmHWM").context("iperf3's memory can't be read")?;
    found.push(Memory { what: "iperf3".to_owned(), is_ours: false, streams, client_bytes, server_bytes });
    Ok(found)
}

/// Returns the largest resident memory, in bytes, of a program that prints a line every 100 ms. Reads the value at each
/// line, because it cannot be read after the program has ended.
fn most_of(stop: &Stop, program: &mut Running) -> anyhow::Result<u64> {
    let mut most = 0;
    // After the last line the program ends.
    while program.line(PATIENCE).is_ok() {
        stop.check()?;
        most = most.max(process::memory_of(program.pid(), "VmHWM").unwrap_or(0));
    }
    let status = program.wait(PATIENCE)?;
    ensure!(status.success(), "the test ended with {status}");
    ensure!(most > 0, "the test ended before its memory was read");
    Ok(most)
}

/// The duration of a plain speed test minus the duration of its phases, in seconds, for each of `runs` runs.
pub(crate) fn set_up(stop: &Stop, bed: &Bed, runs: u32) -> anyhow::Result<Vec<f64>> {
    const PHASES_S: f64 = 0.2 + 1.0 + 1.0;
    let run = |_| {
        let ended = process::run(bed.appliance.command(&["speed-test", "--json", "--idle", "0.2", "-t", "1"]), stop)?;
        ensure!(ended.status.success(), "a plain speed test failed: {}{}", ended.stdout, ended.stderr);
        Ok(ended.wall_s - PHASES_S)
    };
    (0..runs).map(run).collect()
}

/// Makes mutual TLS handshakes one after another and returns how many it made per second: one value for each of
/// `windows` periods of length `window`. Both ends are threads of this process and connect over loopback; every
/// handshake has its own connection and proves both keys.
pub(crate) fn handshakes(stop: &Stop, windows: u32, window: Duration) -> anyhow::Result<Vec<f64>> {
    let (appliance, reflector) = (SecretKey::generate()?, SecretKey::generate()?);
    let client = tls::appliance_config(&appliance, Expect::ExactKey(reflector.id()), Alpn::Link)?;
    let server = tls::reflector_config(&reflector)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let expected = appliance.id();
        let answering = scope.spawn(move || -> anyhow::Result<()> {
            for socket in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return Ok(());
                }
                let peer = answer(socket?, &server)?;
                ensure!(peer == Some(expected), "the client proved another key than the expected one");
            }
            Ok(())
        });
        let counted = (0..windows).map(|_| -> anyhow::Result<f64> {
            stop.check()?;
            let began = Instant::now();
            let mut count = 0_u32;
            while began.elapsed() < window {
                shake(TcpStream::connect(address)?, &client)?;
                count += 1;
            }
            Ok(f64::from(count) / began.elapsed().as_secs_f64())
        });
        let counted = counted.collect::<anyhow::Result<Vec<_>>>();
        over.store(true, Ordering::SeqCst);
        // This connection wakes the answering thread so that it ends; if it has ended already, the connection fails.
        drop(TcpStream::connect(address));
        let answered = answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))?;
        // Prefer the error of the answering thread: it is the cause of the other one.
        answered.and(counted)
    })
}

/// The server's end: completes the handshake, then sends one byte. Returns the Endpoint ID that the client proved.
fn answer(mut socket: TcpStream, config: &Arc<ServerConfig>) -> anyhow::Result<Option<paramedic_link::EndpointId>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut session = ServerConnection::new(config.clone())?;
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    let peer = tls::peer_of(session.peer_certificates()).map(|peer| peer.id());
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(b".")?;
    stream.flush()?;
    Ok(peer)
}

/// The client's end: returns once it has received the byte of the server's end, which shows that the server accepted
/// the handshake.
fn shake(socket: TcpStream, config: &Arc<ClientConfig>) -> anyhow::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let session = ClientConnection::new(config.clone(), tls::server_name())?;
    StreamOwned::new(session, socket).read_exact(&mut [0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_counted_and_their_threads_end() {
        let stop = Stop::listen().unwrap();
        let counted = handshakes(&stop, 2, Duration::from_millis(20)).unwrap();
        assert_eq!(counted.len(), 2);
        assert!(counted.iter().all(|rate| *rate > 0.0), "{counted:?}");
    }
}
