//! Tests the metrics of a real reflector: they agree with `status`, docs/operate.md describes each of them, and
//! misbehaving clients get no metrics and disturb no test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use lab::{Appliance, Outcome, Reflector};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: reflector\r\n\r\n";

fn serving(more: &[(&str, &str)]) -> Reflector {
    Reflector::serve(&[&[("METRICS_LISTEN", "127.0.0.1:0")], more].concat())
}

/// Returns the address on which the reflector serves metrics, from `status`.
fn place(reflector: &Reflector) -> String {
    let place = reflector.status()["metrics"].as_str().expect("metrics are served").to_owned();
    place.strip_prefix("http://").and_then(|place| place.strip_suffix("/metrics")).expect("a URL").to_owned()
}

fn connect(place: &str) -> TcpStream {
    let stream = TcpStream::connect(place).expect("the metrics listener");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the other end closes or resets the connection, and returns all bytes.
fn until_closed(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {bytes:?}");
    }
    String::from_utf8(bytes).expect("text")
}

/// Sends these bytes to the metrics listener, and returns the answer.
fn answer(place: &str, request: &[u8]) -> String {
    let mut stream = connect(place);
    // The other end may close before it has read everything.
    let _ = stream.write_all(request);
    until_closed(&mut stream)
}

/// Reads the metrics of the reflector as text.
fn scrape(place: &str) -> String {
    let answer = answer(place, GET);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Parses metrics text into samples, each with its value.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

/// Parses metrics text into metrics, each with its type and the keys of its labels.
fn described(text: &str) -> BTreeSet<(String, String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let keys = |name: &str| {
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
        let pairs = sample.map_or("", |(pairs, _)| pairs).split(',').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split('=').next().unwrap()).collect::<Vec<_>>().join(", ")
    };
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned(), keys(name))).collect()
}

#[test]
fn the_metrics_are_what_status_shows_and_name_no_device() {
    let reflector = serving(&[("MODE", "direct_ephemeral"), ("NAME", "attic-reflector")]);
    let place = place(&reflector);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for mode in ["direct", "tunneled"] {
        let test = appliance.speed_test(&["-t", "0.5", "--idle", "0.3", "--data-mode", mode]);
        assert_eq!(test.code, 0, "{test:?}\n{}", reflector.log());
    }
    let denied = appliance.fails(&["speed-test", "-t", "3000"], 4, "too_long");
    assert!(denied.error.because.contains("limit"), "{denied:?}");
    // No TLS: refused.
    until_closed(&mut {
        let mut stream = connect(reflector.address());
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        stream
    });
    reflector.await_audited("refused", |line| line["reason"] == "handshake");
    reflector.await_audited("session_ended", |_| reflector.audited("session_ended").len() == 2);

    // The first scrape: nothing is cached.
    let text = scrape(&place);
    let status = reflector.status();
    let samples = samples(&text);
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name}:\n{text}"));
    let count = |pointer: &str| {
        status.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer}: {status:#}"))
    };
    for (sample, pointer) in [
        ("reflector_peers", "/peers"),
        ("reflector_handshakes_total{protocol=\"link\"}", "/handshakes/link"),
        ("reflector_handshakes_total{protocol=\"data\"}", "/handshakes/data"),
        ("reflector_refusals_total{reason=\"handshake\"}", "/refused/handshake"),
        ("reflector_sessions_granted_total{engine=\"tcp\"}", "/sessions/counts/granted/tcp"),
        ("reflector_sessions_ended_total{engine=\"tcp\",outcome=\"finished\"}", "/sessions/counts/ended/tcp/finished"),
        ("reflector_requests_denied_total{reason=\"too_long\"}", "/sessions/counts/denied/too_long"),
        ("reflector_payload_bytes_total{direction=\"download\"}", "/payload_bytes/download"),
        ("reflector_payload_bytes_total{direction=\"upload\"}", "/payload_bytes/upload"),
        ("reflector_charged_bytes_today", "/sessions/bytes_today"),
        ("reflector_charged_bytes_limit", "/max_bytes_per_day_total"),
        ("reflector_leases_total{outcome=\"granted\"}", "/sessions/counts/leases/granted"),
        ("reflector_session_slots", "/sessions/slots"),
    ] {
        assert_eq!(value(sample), count(pointer), "{sample}\n{text}\n{status:#}");
        assert!(value(sample) > 0.0, "{sample}\n{text}");
    }
    assert_eq!(value("reflector_sessions_granted_total{engine=\"tcp\"}"), 2.0, "{text}");
    assert_eq!(value("reflector_queue_wait_seconds_bucket{le=\"0\"}"), 2.0, "both began at once:\n{text}");
    for (sample, expected) in [
        ("reflector_state{state=\"serving\"}", 1.0),
        ("reflector_state{state=\"faulted\"}", 0.0),
        ("reflector_audit_writable", 1.0),
        ("reflector_database_writable", 1.0),
        ("reflector_refusals_total{reason=\"too_fast\"}", 0.0),
        ("reflector_queue_length", 0.0),
    ] {
        assert_eq!(value(sample), expected, "{sample}\n{text}");
    }
    let probes = count("/probe_dwell/longer")
        + status["probe_dwell"]["buckets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bucket| bucket["count"].as_f64().unwrap())
            .sum::<f64>();
    assert!(probes > 10.0, "{status:#}");
    assert_eq!(value("reflector_probe_dwell_seconds_count"), probes, "{text}");
    for used in ["reflector_cpu_seconds_total", "reflector_resident_memory_bytes", "reflector_threads"] {
        assert!(value(used) > 0.0, "{used}\n{text}");
    }
    for secret in [appliance.id(), reflector.id(), "attic-reflector".to_owned(), "127.0.0.1".to_owned()] {
        assert!(!text.contains(&secret), "{secret} in\n{text}");
    }

    // The table of the documentation, in the same order of columns.
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operate.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Metrics\n")).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `reflector_"));
    let rows =
        rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>());
    let documented = rows.map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect::<BTreeSet<_>>();
    assert_eq!(documented, described(&text), "the table of docs/operate.md and the output");
}

#[test]
fn clients_that_misbehave_get_nothing_and_disturb_nothing() {
    let mut reflector = serving(&[]);
    let place = place(&reflector);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let pid = reflector.process().pid().as_raw_nonzero();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut test =
        appliance.start(&["speed-test", "--json-stream", "-t", "3", "--idle", "0.2", "--download", "-P", "1"]);
    while !test.line(PATIENCE).unwrap().contains("\"interval\"") {}

    for (request, expected) in [
        (&b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"[..], "HTTP/1.1 405 "),
        (&b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], "HTTP/1.1 405 "),
        (&b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n"[..], "HTTP/1.1 404 "),
        (&b"GET /metrics\r\n\r\n"[..], "HTTP/1.1 400 "),
        (&b"\x16\x03\x01\x00\xff\x01garbage\r\n\r\n"[..], "HTTP/1.1 400 "),
    ] {
        let said = answer(&place, request);
        assert!(said.starts_with(expected), "{:?}: {said:?}", String::from_utf8_lossy(request));
        assert!(!said.contains("reflector_"), "{said}");
    }
    // Headers of 10,000 bytes: refused, or reset while they arrive.
    for long in [format!("X-Long: {}\r\n", "x".repeat(10_000)), "X: y\r\n".repeat(1_700)] {
        let said = answer(&place, format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{long}\r\n").as_bytes());
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said:?}");
    }
    // Pipelined requests: only the first is answered.
    let said = answer(&place, &GET.repeat(20));
    assert_eq!((said.matches("HTTP/1.1 200").count(), said.matches("HTTP/1.1").count()), (1, 1), "{said}");
    // A client that sends its request byte by byte is in time as long as it takes less than 5 s in all.
    let mut slow = connect(&place);
    slow.set_nodelay(true).unwrap();
    GET.iter().for_each(|byte| slow.write_all(&[*byte]).unwrap());
    assert!(until_closed(&mut slow).starts_with("HTTP/1.1 200"));

    // From here on the places are taken: by silent clients, by one that sends a byte now and then, and by clients that
    // never read.
    let before = descriptors();
    let mut trickling = connect(&place);
    trickling.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    trickling.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut silent = connect(&place);
    let deaf = (0..3).map(|_| {
        let mut stream = connect(&place);
        stream.write_all(GET).unwrap();
        stream
    });
    let deaf = deaf.collect::<Vec<_>>();
    let crowd = (0..100).map(|_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // In progress: the kernel's queue takes some, and the others wait.
        let _ = socket.connect(&place.parse::<std::net::SocketAddr>().unwrap().into());
        socket
    });
    let crowd = crowd.collect::<Vec<_>>();
    assert_eq!(until_closed(&mut silent), "", "it is closed without an answer");
    let most = descriptors();
    assert!(most <= before + 8, "{before} descriptors, then {most}");
    let ended = (0..1_000).find(|_| match trickling.read(&mut [0; 16]) {
        Ok(read) => read == 0,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            trickling.write_all(b"X").is_err()
        }
        Err(_) => true,
    });
    assert!(ended.is_some(), "it is closed although it sends");
    drop((crowd, deaf));
    assert!(scrape(&place).contains("reflector_build_info"));
    assert_eq!(reflector.must(&["health"]), "serving");
    assert_eq!(test.wait(PATIENCE).unwrap().code(), Some(0), "{}", reflector.log());
}

#[test]
fn metrics_are_served_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.sock");
    let mut reflector = Reflector::serve(&[("METRICS_LISTEN", path.to_str().unwrap())]);
    assert_eq!(reflector.status()["metrics"], format!("unix:{}", path.display()));
    let scraped = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(GET).unwrap();
        until_closed(&mut stream)
    };
    assert!(scraped().contains("\nreflector_build_info{"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    // A second reflector does not take it over.
    let lines =
        Reflector::idle(&[("METRICS_LISTEN", path.to_str().unwrap())]).fails(&["serve", "--listen", "127.0.0.1:0"], 1);
    assert!(lines.concat().contains(path.to_str().unwrap()), "{lines:?}");
    // A socket that a killed reflector left is replaced, and removed at a clean end.
    reflector.end(Signal::KILL);
    assert!(path.exists());
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    assert!(scraped().contains("\nreflector_build_info{"));
    reflector.end(Signal::TERM);
    assert!(!path.exists());
    // Another file is not.
    fs::write(&path, "a file of the operator").unwrap();
    let lines =
        Reflector::idle(&[("METRICS_LISTEN", path.to_str().unwrap())]).fails(&["serve", "--listen", "127.0.0.1:0"], 2);
    assert!(lines.concat().contains("is not a socket"), "{lines:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "a file of the operator");
}

#[test]
fn other_hosts_get_metrics_only_with_a_permission_and_a_change_needs_a_restart() {
    for remote in ["0.0.0.0:0", "[::]:0", "192.0.2.7:4001"] {
        for command in [&["serve"][..], &["config", "check"]] {
            let lines = Reflector::idle(&[("METRICS_LISTEN", remote)]).fails(command, 2);
            assert!(lines[1].contains("metrics_allow_remote = true") && lines[1].contains(remote), "{lines:?}");
        }
    }
    let remote = Reflector::serve(&[("METRICS_LISTEN", "0.0.0.0:0"), ("METRICS_ALLOW_REMOTE", "true")]);
    let port = place(&remote).rsplit_once(':').unwrap().1.to_owned();
    assert!(scrape(&format!("127.0.0.1:{port}")).contains("reflector_build_info"));
    let taken = Reflector::idle(&[("METRICS_LISTEN", port.as_str())]).fails(&["serve", "--listen", "127.0.0.1:0"], 1);
    assert!(taken.concat().contains(&format!("another program uses port {port}")), "{taken:?}");
    assert!(taken[2].contains("metrics_listen"), "{taken:?}");

    let template = remote.must(&["config", "template"]);
    assert!(template.contains("#metrics_listen = \"off\"\n"), "{template}");
    let shown = remote.must(&["config", "show", "--origin"]);
    assert!(shown.contains("metrics_listen = \"0.0.0.0:0\"  # REFLECTOR_METRICS_LISTEN\n"), "{shown}");

    let reflector = Reflector::idle(&[]);
    let file = reflector.home().join(".config/packetparamedic/reflector.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut reflector = reflector;
    reflector.start().unwrap();
    assert_eq!(reflector.status()["metrics"], Value::Null, "off by default");
    fs::write(&file, "metrics_listen = 0\n").unwrap();
    let reloaded = Outcome::from(reflector.command(&["config", "reload"]).output().unwrap());
    assert!(reloaded.stdout.contains("needs a restart: metrics_listen"), "{reloaded:?}");
    assert_eq!(reflector.status()["metrics"], Value::Null);
}
