//! Tests the API of the appliance's service: which clients may use it, and that wrong, slow, large or many requests do
//! not harm it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::{Appliance, Outcome, Reflector, Running, TwoHosts};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: &str = "127.0.0.1:0";

/// A running service with the address on which it listens.
struct Service {
    appliance: Appliance,
    runtime: tempfile::TempDir,
    running: Running,
    address: Option<SocketAddr>,
}

/// A connection over which a request can be sent.
trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

/// The HTTP answer to a request.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of the problem that this answer describes.
    fn code(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

impl Service {
    fn start(appliance: Appliance, listen: &str, settings: &[(&str, &str)]) -> Self {
        let runtime = tempfile::tempdir().unwrap();
        let mut command = appliance.command(&["serve"]);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", runtime.path()).env("PACKETPARAMEDIC_LISTEN", listen);
        command.env("PACKETPARAMEDIC_LOG_FORMAT", "json").envs(settings.iter().copied());
        let log = fs::File::create(runtime.path().join("log")).unwrap();
        let running = Running::start(command, log.into()).unwrap();
        let mut service = Self { appliance, runtime, running, address: None };
        let line = || service.running.line(PATIENCE).unwrap_or_else(|error| panic!("{error:#}\n{}", service.log()));
        assert_eq!(line(), format!("serving on {}", service.socket().display()));
        if listen != "off" {
            service.address =
                Some(line().trim_start_matches("serving on ").split_once("://").unwrap().1.parse().unwrap());
        }
        service
    }

    fn on_loopback() -> Self {
        Self::start(Appliance::new(), LOOPBACK, &[])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.runtime.path().join("log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.runtime.path().join("service.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.appliance.command(args);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, and returns its stdout.
    fn must(&self, args: &[&str]) -> String {
        let outcome = Outcome::from(self.command(args).output().unwrap());
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout
    }

    /// Adds an API token with this name and scope, and returns it.
    fn token(&self, name: &str, scope: &str) -> String {
        self.must(&["token", "add", "--name", name, "--scope", scope]).trim().to_owned()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address.unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request on a new connection to the listener, and returns the answer.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        exchange(&mut self.connect(), &request(method, path, headers, body))
    }

    /// Returns the `Host` header that names the listener's own address.
    fn host(&self) -> String {
        format!("Host: {}", self.address.unwrap())
    }

    fn asserts_health(&self) {
        assert_eq!(self.must(&["health"]), "running\n");
    }
}

fn request(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    if !body.is_empty() {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    format!("{text}\r\n{body}")
}

fn send(stream: &mut impl Connection, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

/// Reads all bytes until the end of the connection.
fn read_all(stream: &mut impl Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    // After a request that was not read to its end, the kernel may reset the connection once the answer has arrived.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn exchange(stream: &mut impl Connection, request: &str) -> Answer {
    send(stream, request);
    let bytes = read_all(stream);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
    let status = status.unwrap_or_else(|| panic!("{text:?}"));
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

#[test]
fn without_login_loopback_reads_and_runs_under_its_own_names() {
    let service = Service::on_loopback();
    let port = service.address.unwrap().port();
    for name in ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"] {
        let answer = service.ask("GET", "/api/v1/status", &[&format!("Host: {name}:{port}")], "");
        assert_eq!((answer.status, &answer.json()["state"]), (200, &"running".into()), "{answer:?}");
        assert!(
            ["cache-control: no-store", "x-content-type-options: nosniff"].iter().all(|one| answer.head.contains(one))
        );
    }
    let (own, evil) = (service.host(), format!("Host: evil.example:{port}"));
    for hosts in [
        &["Host: evil.example"][..],
        &[&evil],
        &["Host: localhost"],
        &[&own, "Host: evil.example"],
        &["Host: evil.example", &own],
        &["Host: "],
        &[],
    ] {
        let answer = service.ask("GET", "/api/v1/status", hosts, "");
        assert!([400, 421].contains(&answer.status), "{hosts:?}: {answer:?}");
        assert!(answer.status == 400 || answer.code() == "wrong_host", "{answer:?}");
    }
    let absolute = service.ask("GET", "http://evil.example/api/v1/status", &[&own], "");
    assert_eq!((absolute.status, absolute.code().as_str()), (421, "wrong_host"));
    for header in ["Forwarded: for=1.2.3.4", "Via: 1.1 proxy", "X-Forwarded-For: 127.0.0.1", "X-FORWARDED-PREFIX: a"] {
        let answer = service.ask("GET", "/api/v1/status", &[&own, header], "");
        assert_eq!((answer.status, answer.code().as_str()), (403, "untrusted_proxy"), "{header}: {answer:?}");
        assert!(answer.json()["try"].as_str().unwrap().contains("trusted_proxies"), "{answer:?}");
    }
    // It may run and cancel, and check a schedule; it may not change anything, or see what tokens there are.
    let cancelled = service.ask("POST", "/api/v1/schedule-runs/cancel", &[&own], "");
    assert_eq!((cancelled.status, cancelled.body.as_str()), (200, "{\"cancelled\":false}"));
    for (method, path) in [
        ("POST", "/api/v1/schedules"),
        ("DELETE", "/api/v1/schedules/nightly"),
        ("POST", "/api/v1/reflectors"),
        ("GET", "/api/v1/tokens"),
        ("POST", "/api/v1/tokens"),
    ] {
        let answer = service.ask(method, path, &[&own], "");
        assert_eq!((answer.status, answer.code().as_str()), (403, "scope_too_small"), "{method} {path}: {answer:?}");
    }
    for (origin, status) in [("null", 403), ("http://evil.example", 403), (&own.replace("Host: ", "http://"), 200)] {
        let answer = service.ask("POST", "/api/v1/schedule-runs/cancel", &[&own, &format!("Origin: {origin}")], "");
        assert_eq!(answer.status, status, "{origin}: {answer:?}");
    }
    for header in ["Basic YTpi", "Bearer ", "Bearer ppt_", "Bearer nonsense", "nonsense"] {
        let answer = service.ask("GET", "/api/v1/status", &[&own, &format!("Authorization: {header}")], "");
        assert_eq!((answer.status, answer.code().as_str()), (401, "unknown_token"), "{header}: {answer:?}");
        assert!(answer.head.contains("www-authenticate: Bearer"), "{answer:?}");
    }
    // The kernel knows who is at the unix socket: no header counts there.
    let mut socket = UnixStream::connect(service.socket()).unwrap();
    let text = request("GET", "/api/v1/tokens", &["Host: evil.example", "Via: 1.1 proxy"], "");
    assert_eq!(exchange(&mut socket, &text).status, 200);
}

#[test]
fn a_token_allows_what_its_scope_says_until_it_is_removed() {
    let service = Service::on_loopback();
    let own = service.host();
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let tokens = ["read", "run", "admin"].map(|scope| bearer(&service.token(scope, scope)));
    for (method, path, statuses) in [
        ("GET", "/api/v1/status", [200, 200, 200]),
        ("POST", "/api/v1/schedule-runs/cancel", [403, 200, 200]),
        ("GET", "/api/v1/tokens", [403, 403, 200]),
    ] {
        for (token, status) in tokens.iter().zip(statuses) {
            // With a token, the name under which the service is reached does not matter.
            let answer = service.ask(method, path, &["Host: attic.example", token], "");
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        }
    }
    let admin = tokens[2].as_str();
    let added = service.ask("POST", "/api/v1/tokens", &[&own, admin], r#"{"name": "other", "scope": "read"}"#);
    assert_eq!((added.status, &added.json()["scope"]), (201, &"read".into()), "{added:?}");
    let other = bearer(added.json()["token"].as_str().unwrap());
    assert_eq!(service.ask("GET", "/api/v1/status", &[&own, &other], "").status, 200);
    let listed: Value = serde_json::from_str(&service.must(&["token", "list", "--json"])).unwrap();
    let names = listed.as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(names, ["admin", "other", "read", "run"]);
    assert!(!listed.to_string().contains("ppt_"), "{listed}");

    // A stream of events ends with its token; the stream of another token goes on.
    let stream = |token: &str| {
        let mut stream = service.connect();
        send(&mut stream, &request("GET", "/api/v1/events", &[&own, token], ""));
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == ": connected"), "the stream begins");
        (stream, lines)
    };
    let ((_, mut of_removed), (kept, of_kept)) = (stream(&other), stream(&tokens[0]));
    let removed = service.ask("DELETE", "/api/v1/tokens/other", &[&own, admin], "");
    assert_eq!(removed.status, 200, "{removed:?}");
    // The rest has no event: it is the end of the line, and the end of the connection.
    assert!(of_removed.all(|line| line.map_or(true, |line| line.is_empty())));
    kept.set_nonblocking(true).unwrap();
    let is_open = kept.peek(&mut [0]).map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |read| read > 0);
    assert!(is_open);
    kept.set_nonblocking(false).unwrap();
    let refused = service.ask("GET", "/api/v1/status", &[&own, &other], "");
    assert_eq!((refused.status, refused.code().as_str()), (401, "unknown_token"));
    let mut of_kept = of_kept.map_while(Result::ok);
    service.must(&["token", "remove", "READ"]);
    assert!(of_kept.all(|line| line.is_empty()), "the command did not remove it in the service");
    service.appliance.fails(&["token", "remove", "gone"], 1, "no_such_token");
    service.appliance.fails(&["token", "add", "--name", "RUN"], 2, "bad_name");
    service.appliance.fails(&["token", "add", "--name", "a b"], 2, "bad_request");
    assert!(!service.log().contains("ppt_"), "{}", service.log());
}

#[test]
fn the_administrator_sets_a_password_by_a_link_and_logs_in() {
    let service = Service::on_loopback();
    let (own, host) = (service.host(), service.address.unwrap().to_string());
    let link = service.must(&["token", "setup"]).trim().to_owned();
    let old = link.clone();
    let link = {
        // Only the latest link is valid.
        let newer = service.must(&["token", "setup"]).trim().to_owned();
        assert_ne!(newer, link);
        newer
    };
    let page = service.ask("GET", &link, &[&own], "");
    assert!(page.status == 200 && page.body.contains("<form"), "{page:?}");
    assert!(page.head.contains("content-security-policy: default-src 'self'; frame-ancestors 'none'"), "{page:?}");
    let set = |link: &str, origin: &str, form: &str| service.ask("POST", link, &[&own, origin], form);
    let same = format!("Origin: http://{host}");
    for (link, origin, form, status) in [
        (&old, &same, "password=correct+horse", 404),
        (&link.replace("pps_", "ppt_"), &same, "password=correct+horse", 404),
        (&link, &same, "password=short", 400),
        (&link, &same, "", 400),
        (&link, &same, "password=%zz", 400),
        (&link, &"Origin: http://evil.example".to_owned(), "password=correct+horse", 403),
        (&link, &same, "password=correct+horse%21", 303),
        (&link, &same, "password=another+horse", 404),
    ] {
        let answer = set(link, origin, form);
        assert_eq!(answer.status, status, "{form}: {answer:?}");
    }
    let log_in = |password: &str| {
        service.ask("POST", "/api/v1/login", &[&own, &same], &json!({ "password": password }).to_string())
    };
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", service.running.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<i64>().unwrap()
    };
    let before = resident();
    let first = log_in("correct horse!");
    assert_eq!((first.status, first.body.as_str()), (204, ""), "{first:?}");
    let cookie = first.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.ends_with("; HttpOnly; SameSite=Lax") && cookie.contains("; Path=/; "), "{cookie}");
    let cookie = format!("Cookie: other=1; {}", cookie.split(';').next().unwrap());
    assert_eq!(log_in("correct horse!").status, 204);
    // A hash takes 19 MiB, which are given back.
    assert!(resident() < before + 12_000, "{before} KiB before, {} KiB after", resident());

    let tokens = |headers: &[&str]| service.ask("GET", "/api/v1/tokens", headers, "").status;
    assert_eq!(tokens(&[&own, &cookie]), 200);
    let added = json!({ "name": "a", "scope": "read" }).to_string();
    let forged = service.ask("POST", "/api/v1/tokens", &[&own, &cookie, "Origin: http://evil.example"], &added);
    assert_eq!((forged.status, forged.code().as_str()), (403, "cross_origin"));
    assert_eq!(service.ask("POST", "/api/v1/tokens", &[&own, &cookie, &same], &added).status, 201);
    assert_eq!(service.ask("POST", "/api/v1/logout", &[&own, &cookie, &same], "").status, 204);
    assert_eq!(tokens(&[&own, &cookie]), 403, "the login has ended");

    for _ in 0..5 {
        let wrong = log_in("wrong");
        assert_eq!((wrong.status, wrong.code().as_str()), (401, "wrong_password"));
    }
    let limited = log_in("correct horse!");
    assert_eq!((limited.status, limited.code().as_str()), (429, "too_many_logins"));
    let log = service.log();
    assert!(!["horse", "pps_", "ppl_"].iter().any(|secret| log.contains(secret)), "{log}");

    // A password from a file, as a container has it.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "battery staple\n").unwrap();
    let settings = [("PACKETPARAMEDIC_ADMIN_PASSWORD_FILE", file.to_str().unwrap())];
    let service = Service::start(Appliance::new(), LOOPBACK, &settings);
    let login = service.ask("POST", "/api/v1/login", &[&service.host()], r#"{"password": "battery staple"}"#);
    assert_eq!(login.status, 204, "{login:?}");
}

#[test]
fn wrong_large_and_endless_requests_are_refused() {
    let service = Service::on_loopback();
    let (own, admin) = (service.host(), format!("Authorization: Bearer {}", service.token("admin", "admin")));
    for (method, path, status) in [
        ("GET", "/api/v1/../../etc/passwd", 404),
        ("GET", "/api/v1/schedules/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/api/v1/results/%2e%2e", 404),
        ("GET", "/api/v1/results/%ff", 400),
        ("GET", "/api/v1/results/%0d%0aX-Injected:%20yes", 404),
        ("GET", "//evil.example/api/v1/status", 404),
        ("PUT", "/api/v1/status", 405),
        ("TRACE", "/api/v1/status", 405),
        ("CONNECT", "evil.example:443", 404),
    ] {
        let answer = service.ask(method, path, &[&own, &admin], "");
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(!answer.code().is_empty() && !answer.head.to_lowercase().contains("x-injected"), "{answer:?}");
    }
    let head = |more: &str| format!("POST /api/v1/tests HTTP/1.1\r\n{own}\r\nContent-Type: application/json\r\n{more}");
    // The service answers before it has read everything, and closes.
    let flood = |start: &str, part: &[u8], count: usize| {
        let mut stream = service.connect();
        send(&mut stream, start);
        let sent = (0..count).take_while(|_| stream.write_all(part).is_ok()).count();
        (sent, read_all(&mut stream))
    };
    let status = |bytes: &[u8]| String::from_utf8_lossy(bytes).get(9..12).map(str::to_owned);
    let part = vec![b' '; 1 << 16];
    let (sent, answered) = flood(&head("Content-Length: 104857600\r\n\r\n"), &part, 1600);
    assert!(sent < 1600 && status(&answered).as_deref() == Some("413"), "{sent}: {:?}", status(&answered));
    let chunk = [b"10000\r\n", &part[..], b"\r\n"].concat();
    let (sent, answered) = flood(&head("Transfer-Encoding: chunked\r\n\r\n"), &chunk, 1600);
    assert!(sent < 1600 && status(&answered).as_deref() == Some("413"), "{sent}: {:?}", status(&answered));
    let (sent, answered) = flood(&head("X-Long: "), &[b'a'; 4096], 100_000);
    assert!(sent < 100_000 && [None, Some("431")].contains(&status(&answered).as_deref()), "{answered:?}");
    let (sent, _) = flood(&head(""), b"X-Many: 1\r\n", 1_000_000);
    assert!(sent < 1_000_000);
    for nonsense in ["\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\r\n\r\n", "GET\r\n\r\n"] {
        let mut stream = service.connect();
        send(&mut stream, nonsense);
        let answered = read_all(&mut stream);
        assert!([None, Some("400")].contains(&status(&answered).as_deref()), "{nonsense:?}: {answered:?}");
    }
    service.asserts_health();
}

/// Whether the service refuses this connection because too many are open.
fn is_refused(mut stream: TcpStream) -> bool {
    read_all(&mut stream).starts_with(b"HTTP/1.1 503 ")
}

/// Opens this number of connections, after which a further one must be refused. Tries again if it is not: on a slow
/// machine, earlier connections may have ended meanwhile.
fn fill_places(count: usize, connect: impl Fn() -> TcpStream) -> Vec<TcpStream> {
    let mut held = Vec::new();
    let is_full = (0..3).any(|_| {
        held.extend((0..count).map(|_| connect()));
        is_refused(connect())
    });
    assert!(is_full);
    held
}

#[test]
fn slow_clients_and_too_many_leave_place_for_others() {
    let service = Service::on_loopback();
    let own = service.host();
    let head = format!("POST /api/v1/tests HTTP/1.1\r\n{own}\r\nContent-Type: application/json\r\n");
    let admin = service.token("admin", "admin");
    let result = "PUT /api/v1/results/00000000-0000-0000-0000-000000000000 HTTP/1.1\r\n";
    let result = format!("{result}{own}\r\nAuthorization: Bearer {admin}\r\n");
    let [test, result] = [head.clone(), result].map(|head| head + "Content-Length: 10\r\n\r\n{");
    // None sends anything complete; each ends by itself.
    let slow = ["", "GET /api/v1/st", &head, &test, &result].map(|start| {
        let mut stream = service.connect();
        send(&mut stream, start);
        stream
    });
    // More connections than the listener has places. Those of the slow clients count.
    let held = fill_places(64, || service.connect());
    // The commands have places of their own.
    service.asserts_health();
    // A place is free again as soon as its connection has been closed.
    drop(held);
    let until = Instant::now() + PATIENCE;
    let status = || service.ask("GET", "/api/v1/status", &[&own], "").status;
    while status() == 503 {
        assert!(Instant::now() < until, "{}", service.log());
    }
    for (number, mut stream) in slow.into_iter().enumerate() {
        let answered = String::from_utf8(read_all(&mut stream)).unwrap();
        // The bodies of the last two are late; no answer fits a request without an end of its head.
        let expected = if number >= 3 { "HTTP/1.1 408 " } else { "" };
        assert!(answered.starts_with(expected) && answered.is_empty() == expected.is_empty(), "{number}: {answered}");
    }
    assert_eq!(status(), 200);
}

#[test]
fn no_name_writes_headers_or_lines_of_the_log() {
    let service = Service::on_loopback();
    let admin = format!("Authorization: Bearer {}", service.token("admin", "admin"));
    let own = service.host();
    let headers = [own.as_str(), admin.as_str()];
    for name in ["a\r\nX-Injected: yes", "\u{1b}[31mred", "a\n{\"level\":\"ERROR\"}", "\u{202e}drawkcab", "\0"] {
        let token =
            service.ask("POST", "/api/v1/tokens", &headers, &json!({ "name": name, "scope": "read" }).to_string());
        assert_eq!((token.status, token.code().as_str()), (400, "bad_request"), "{token:?}");
        let pair = json!({ "target": "127.0.0.1:9", "code": name, "name": name }).to_string();
        let pair = service.ask("POST", "/api/v1/reflectors", &headers, &pair);
        let encoded = name.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let shown = service.ask("GET", &format!("/api/v1/schedules/{encoded}"), &headers, "");
        let run = service.ask("POST", &format!("/api/v1/schedules/{encoded}/run"), &headers, "");
        let listed = service.ask("GET", &format!("/api/v1/schedule-runs?schedule={encoded}"), &headers, "");
        for (answer, status) in [(&pair, 400), (&shown, 404), (&run, 404), (&listed, 404)] {
            assert_eq!(answer.status, status, "{name:?}: {answer:?}");
        }
        for answer in [token, pair, shown, run, listed] {
            assert!(!answer.head.to_lowercase().contains("x-injected"), "{answer:?}");
            assert!(!answer.body.chars().any(char::is_control), "{answer:?}");
        }
    }
    let log = service.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    assert!(lines.iter().all(|line| line["level"] != "ERROR") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_client_without_a_login_cannot_fill_the_disk_with_tests() {
    let reflector = Reflector::serve(&[("NAME", "attic")]);
    let service = Service::start(Appliance::new().pair(&reflector, reflector.address()), LOOPBACK, &[]);
    service.must(&["schedule", "add", "--name", "nightly", "--every", "366d", "--yes", "--peer", "attic"]);
    let own = service.host();
    let mut request = service.ask("GET", "/api/v1/schedules/nightly", &[&own], "").json()["request"].take();
    let mut statuses = Vec::new();
    for number in 0..100 {
        request["peer"] = match number % 3 {
            0 => "x".repeat(60_000).into(),
            1 => "a\nforged line".into(),
            _ => "attic\u{202e}cilpoh".into(),
        };
        let answer = service.ask("POST", "/api/v1/tests", &[&own], &request.to_string());
        assert!([400, 429].contains(&answer.status), "{answer:?}");
        statuses.push((answer.status, answer.code()));
    }
    assert!(statuses.contains(&(429, "too_many_tests".to_owned())), "{statuses:?}");
    assert_eq!(statuses[0].0, 400);
    let history = service.must(&["history", "list", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&history).unwrap(), json!([]), "nothing is saved");
    // The commands are not limited.
    service.must(&["speed-test", "--peer", "attic", "-t", "0.2", "--idle", "0.1", "--download"]);
}

#[test]
fn a_schedule_is_run_by_the_api_and_by_the_page_as_often_as_tests_may_begin() {
    let service = Service::on_loopback();
    let (own, admin) = (service.host(), format!("Authorization: Bearer {}", service.token("admin", "admin")));
    for path in ["/api/v1/schedules/gone/run", "/settings/schedules/gone/run"] {
        let ask = || service.ask("POST", path, &[&own, &admin], "").status;
        let statuses = (0..100).map(|_| ask()).collect::<Vec<_>>();
        assert!(statuses.iter().all(|status| [404, 429].contains(status)), "{path}: {statuses:?}");
        assert!(statuses.contains(&429), "{path}: {statuses:?}");
    }
}

/// Connects from a network namespace.
fn connect_from(netns: &str, address: SocketAddr) -> TcpStream {
    let netns = fs::File::open(format!("/run/netns/{netns}")).unwrap();
    let connect = move || -> io::Result<TcpStream> {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    // The namespace is that of the thread; a connection keeps its own.
    std::thread::spawn(connect).join().unwrap().unwrap()
}

#[test]
fn other_hosts_need_a_token_and_so_does_every_client_behind_a_proxy() {
    let Some(hosts) = TwoHosts::new() else { return };
    let near = &hosts.near;
    let service = Service::start(
        Appliance::in_netns(&near.netns),
        "[::]:8068",
        &[("PACKETPARAMEDIC_TRUSTED_PROXIES", &format!("127.0.0.1,{}/128", hosts.far.v6))],
    );
    let setup = service.running.line(PATIENCE).unwrap();
    assert!(setup.contains(" password within an hour at /setup/pps_"), "{setup}");
    let read = format!("Authorization: Bearer {}", service.token("grafana", "read"));
    let [v4, v6] = [&near.v4, &near.v6].map(|address| SocketAddr::new(address.parse().unwrap(), 8068));
    let ask = |from: &str, to: SocketAddr, headers: &[&str]| {
        exchange(&mut connect_from(from, to), &request("GET", "/api/v1/status", headers, ""))
    };
    let (far, loopback) = (hosts.far.netns.as_str(), "127.0.0.1:8068".parse().unwrap());
    for (from, to, headers, status) in [
        (far, v4, &["Host: localhost:8068"][..], 401),
        (far, v6, &["Host: localhost:8068"], 401),
        (far, v4, &["Host: attic.example:8068", &read], 200),
        (far, v4, &["Host: attic.example", &read, "X-Forwarded-For: 127.0.0.1"], 403),
        (far, v6, &["Host: attic.example", "X-Forwarded-For: 127.0.0.1"], 401),
        (far, v6, &["Host: attic.example", &read, "X-Forwarded-For: 203.0.113.9"], 200),
        (&near.netns, loopback, &["Host: localhost:8068"], 401),
        (&near.netns, loopback, &["Host: localhost:8068", &read], 200),
        (&near.netns, v4, &["Host: localhost:8068"], 401),
    ] {
        let answer = ask(from, to, headers);
        assert_eq!(answer.status, status, "{from} {to} {headers:?}: {answer:?}");
    }
    // One address has some of the places; clients of others are answered.
    let held = fill_places(16, || connect_from(far, v4));
    assert_eq!(ask(&near.netns, loopback, &["Host: a", &read]).status, 200);
    drop(held);
    // The default address is taken: another service goes on without it.
    let other = Appliance::in_netns(&near.netns);
    let log = other.state().with_extension("log");
    let running = Running::start(other.command(&["serve"]), fs::File::create(&log).unwrap().into()).unwrap();
    assert!(running.line(PATIENCE).unwrap().ends_with("service.sock"));
    assert!(fs::read_to_string(&log).unwrap().contains("the service uses only its unix socket"));
}

#[test]
fn events_show_a_test_while_it_runs() {
    let reflector = Reflector::serve(&[]);
    let service = Service::start(Appliance::new().pair(&reflector, reflector.address()), LOOPBACK, &[]);
    let mut stream = service.connect();
    send(&mut stream, &request("GET", "/api/v1/events", &[&service.host()], ""));
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == ": connected"));
    let short =
        ["-t", "1.5", "--idle", "0.1", "--download", "-b", "5M", "-P", "1", "--probe-interval", "5ms", "--intervals"];
    let add = ["schedule", "add", "--name", "nightly", "--every", "366d", "--yes", "--busy-share", "off"];
    service.must(&[&add[..], &short].concat());
    service.must(&["schedule", "run", "nightly"]);
    // The events of a run, from its first to its last one.
    let mut run = || {
        let mut seen = Vec::new();
        loop {
            let name = lines.find_map(|line| Some(line.strip_prefix("event: ")?.to_owned())).unwrap();
            let data = lines.find_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok()).unwrap();
            assert_eq!(data["event"], name);
            seen.push(data);
            if name == "ended" {
                return seen;
            }
        }
    };
    let of_schedule = run();
    let tested = service.must(&[&["speed-test", "--json"], &short[..]].concat());
    let of_client = run();
    for (events, schedule) in [(&of_schedule, json!("nightly")), (&of_client, Value::Null)] {
        let names = events.iter().map(|event| event["event"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(names[0], "accepted", "{names:?}");
        for name in ["start", "phase", "interval", "latency"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(events.iter().all(|event| event["run"] == events[0]["run"] && event["schedule"] == schedule));
        assert_eq!(events.last().unwrap()["outcome"], "done");
    }
    let tested = serde_json::from_str::<Value>(&tested).unwrap();
    assert_eq!(of_client.last().unwrap()["result_id"], tested["id"]);
    // Both results, one on each page; and the second over time.
    let mut path = "/api/v1/results?limit=1".to_owned();
    let mut ids = Vec::new();
    let own = service.host();
    loop {
        let page = service.ask("GET", &path, &[&own], "");
        let rows = page.json();
        ids.extend(rows.as_array().unwrap().iter().map(|row| row["id"].clone()));
        let Some(link) = page.head.lines().find_map(|line| line.strip_prefix("link: <")) else { break };
        path = link.strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(ids, [of_client.last().unwrap()["result_id"].clone(), of_schedule.last().unwrap()["result_id"].clone()]);
    let series = format!("/api/v1/results/{}/series", ids[0].as_str().unwrap());
    let thinned = service.ask("GET", &format!("{series}?points=3"), &[&own], "").json();
    let [rates] = thinned["rates"].as_array().unwrap().as_slice() else { panic!("{thinned:#}") };
    assert_eq!((&rates["phase"], &rates["direction"]), (&"download".into(), &"download".into()));
    assert!((1..=3).contains(&rates["points"].as_array().unwrap().len()), "{thinned:#}");
    assert_eq!(service.ask("GET", &format!("{series}?points=0"), &[&own], "").status, 400);
    // The end of the service is the end of the stream.
    let mut service = service;
    service.running.signal(Signal::TERM);
    assert_eq!(service.running.wait(PATIENCE).unwrap().code(), Some(0), "{}", service.log());
    assert_eq!(lines.find(|line| line.starts_with("event: ")), None);
}

#[test]
fn with_certificate_files_the_listener_answers_tls_alone() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| format!("{folder}/{name}"));
    let settings =
        [("PACKETPARAMEDIC_TLS_CERTIFICATE", certificate.as_str()), ("PACKETPARAMEDIC_TLS_KEY", key.as_str())];
    let service = Service::start(Appliance::new(), LOOPBACK, &settings);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let connect = || {
        let client = rustls::ClientConnection::new(Arc::clone(&client), "localhost".try_into().unwrap()).unwrap();
        rustls::StreamOwned::new(client, service.connect())
    };
    let own = format!("Host: localhost:{}", service.address.unwrap().port());
    let status = exchange(&mut connect(), &request("GET", "/api/v1/status", &[&own], ""));
    assert_eq!((status.status, &status.json()["state"]), (200, &"running".into()), "{status:?}");
    let evil = exchange(&mut connect(), &request("GET", "/api/v1/status", &["Host: evil.example"], ""));
    assert_eq!(evil.status, 421);
    // The cookie is for TLS alone.
    let out = exchange(&mut connect(), &request("POST", "/api/v1/logout", &[&own], ""));
    assert!(out.status == 204 && out.head.contains("; SameSite=Lax; Secure"), "{out:?}");
    let mut plain = service.connect();
    send(&mut plain, &request("GET", "/api/v1/status", &[&own], ""));
    assert!(!read_all(&mut plain).starts_with(b"HTTP/"));
    service.asserts_health();

    let refused = |certificate: &str, key: &str| {
        let other = Appliance::new();
        let mut command = other.command(&["serve"]);
        command.env("PACKETPARAMEDIC_TLS_CERTIFICATE", certificate).env("PACKETPARAMEDIC_TLS_KEY", key);
        let refused = Outcome::from(command.stdin(Stdio::null()).output().unwrap());
        assert_eq!((refused.code, refused.three_lines()[0]), (2, "cannot use TLS"), "{refused:?}");
        refused.three_lines()[1].to_owned()
    };
    assert!(refused(&certificate, "").contains("one of"));
    assert!(refused(&certificate, "/nonexistent").contains("/nonexistent: No such file"));
    assert!(refused(&key, &key).contains("key.pem"));
    let other_key = service.appliance.state().join("identity.key");
    assert!(refused(&certificate, other_key.to_str().unwrap()).contains("identity.key"));
}

/// The id of an unprivileged user that only one test uses.
const OUTSIDER: u32 = 64_771;

#[test]
fn a_user_outside_of_the_group_is_refused_by_the_socket() {
    let service = Service::start(Appliance::new(), "off", &[]);
    // The folder lets everyone in: the socket alone decides.
    fs::set_permissions(service.runtime.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fs::metadata(service.socket()).unwrap().permissions().mode() & 0o777, 0o660);
    let Some(outsider) = Appliance::new().with_few_threads(OUTSIDER, 64) else { return };
    let mut command = outsider.command(&["status"]);
    command.env("PACKETPARAMEDIC_RUNTIME_DIR", service.runtime.path());
    let refused = Outcome::from(command.stdin(Stdio::null()).output().unwrap());
    assert!(refused.code == 1 && refused.stderr.contains("Permission denied"), "{refused:?}");
    service.asserts_health();
}

#[test]
fn a_chosen_address_that_is_taken_is_an_error() {
    let service = Service::on_loopback();
    let taken = service.address.unwrap().to_string();
    let other = Appliance::new();
    let mut command = other.command(&["serve"]);
    command.env("PACKETPARAMEDIC_LISTEN", &taken).env("PACKETPARAMEDIC_LOG", "off").stdin(Stdio::null());
    let refused = Outcome::from(command.output().unwrap());
    assert_eq!((refused.code, refused.three_lines()[0]), (1, format!("cannot listen on {taken}").as_str()));
}
