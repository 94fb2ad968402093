//! Tests the notification channels of the appliance with real receivers: web servers, a mail server, commands. Also
//! checks that no output shows a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lab::{Appliance, Device, Outcome, Running};
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const PATIENCE: Duration = Duration::from_secs(60);

/// A request that the web server [`Sink`] received.
#[derive(Clone, Debug)]
struct SinkRequest {
    line: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl SinkRequest {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { line: line.trim().to_owned(), headers, body: String::from_utf8(body).unwrap() })
    }

    fn key(&self) -> String {
        self.headers["idempotency-key"].clone()
    }
}

/// A web server that passes each request to the test before it answers.
struct Sink {
    address: SocketAddr,
    requests: Receiver<SinkRequest>,
}

impl Sink {
    /// Starts a web server. `answer` gets the number of the request, counted from 1.
    fn new(answer: impl Fn(u32, &SinkRequest) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, (sender, requests)) = (listener.local_addr().unwrap(), channel());
        std::thread::spawn(move || {
            let mut number = 0;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = SinkRequest::read(&stream) else { continue };
                number += 1;
                let text = answer(number, &request);
                if sender.send(request).is_err() {
                    return;
                }
                // The client may have been killed.
                stream.write_all(text.as_bytes()).ok();
            }
        });
        Self { address, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn next(&self) -> SinkRequest {
        self.requests.recv_timeout(PATIENCE).expect("a request")
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n{body}", body.len())
}

fn ok() -> String {
    answer("200 OK", "", "")
}

/// Writes a secret to a file in the folder of the device, and returns the file's path.
fn secret_file(device: &Device, name: &str, text: &str) -> String {
    let path = device.runtime.path().join(name);
    fs::write(&path, format!("{text}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Adds a webhook channel, and passes its URL in a file.
fn add_webhook(device: &Device, name: &str, url: &str) {
    let file = secret_file(device, "url", url);
    device.must(&["channel", "add", "webhook", name, "--url-file", &file]);
}

/// Returns the output of the commands that show channels and messages, and the log of the service.
fn shown(device: &Device) -> String {
    let listed =
        [&["channel"][..], &["channel", "--json"], &["channel", "messages"], &["channel", "messages", "--json"]];
    let listed = listed.map(|args| device.must(args)).concat();
    listed + &device.log()
}

/// Stores `count` messages that the service must still send to the only channel, as an alert rule would. Returns their
/// ids.
fn queue(device: &Device, count: usize) -> BTreeSet<String> {
    let channel = device.json(&["channel"])[0].clone();
    let appliance = device.appliance.id();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(device.database());
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let mut ids = BTreeSet::new();
        for _ in 0..count {
            let id = new_id();
            let content = json!({ "id": id, "kind": "test", "at": "2026-11-29T12:00:00Z", "title": "Due",
                "text": "A message that is due.", "urgency": "low" });
            sqlx::query(
                "INSERT INTO messages (id, appliance, kind, content, created_at_us) VALUES ($1, $2, 'test', $3, 1)",
            )
            .bind(&id)
            .bind(&appliance)
            .bind(content.to_string())
            .execute(&mut connection)
            .await
            .unwrap();
            sqlx::query(
                "INSERT INTO deliveries (message_id, channel_id, channel_name, outcome, attempts, next_at_us) \
                 VALUES ($1, $2, $3, 'due', 0, 1)",
            )
            .bind(&id)
            .bind(channel["id"].as_str().unwrap())
            .bind(channel["name"].as_str().unwrap())
            .execute(&mut connection)
            .await
            .unwrap();
            ids.insert(id);
        }
        connection.close().await.unwrap();
        ids
    })
}

/// Creates a new message id.
fn new_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

#[test]
fn a_webhook_gets_the_message_and_nothing_shows_its_secrets() {
    let device = Device::new(Appliance::new());
    let _service = device.serve();
    let sink = Sink::new(|_, _| ok());
    let (url, token) = (secret_file(&device, "url", &sink.url("/hooks/geheim-path?key=geheim-key")), "geheim-token");
    // The token comes from stdin.
    let mut command = device.command(&["channel", "add", "webhook", "hook", "--url-file", &url, "--token-file", "-"]);
    let mut adding = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    adding.stdin.take().unwrap().write_all(format!("{token}\n").as_bytes()).unwrap();
    let added = Outcome::from(adding.wait_with_output().unwrap());
    assert_eq!((added.code, added.stdout.as_str()), (0, "added: hook\n"), "{added:?}");
    let tested = device.json(&["channel", "test", "hook"]);
    let request = sink.next();
    assert_eq!(request.line, "POST /hooks/geheim-path?key=geheim-key HTTP/1.1");
    assert_eq!(request.headers["authorization"], format!("Bearer {token}"));
    assert_eq!((&tested["delivered"], &tested["message"]), (&true.into(), &request.key().into()));
    let body = serde_json::from_str::<Value>(&request.body).unwrap();
    assert_eq!((&body["id"], &body["kind"]), (&tested["message"], &"test".into()), "{body:#}");
    let listed = device.json(&["channel", "list"]);
    assert_eq!(listed[0]["server"], format!("http://{}", sink.address), "{listed:#}");
    assert_eq!(listed[0]["secrets"], json!(["url", "token"]));
    assert!(!shown(&device).contains("geheim"), "{}", shown(&device));
    let messages = device.json(&["channel", "messages"]);
    assert_eq!(messages[0]["deliveries"][0]["outcome"], "delivered", "{messages:#}");
    let again = device.run(&["channel", "add", "webhook", "HOOK", "--url-file", &url]);
    assert_eq!((again.code, again.three_lines()[0]), (2, "invalid name"), "{again:?}");
    device.must(&["channel", "remove", "hook"]);
    assert_eq!(device.run(&["channel", "test", "hook"]).three_lines()[0], "no such channel");
}

#[test]
fn a_server_that_refuses_or_redirects_is_quoted_by_its_status_alone() {
    let device = Device::new(Appliance::new());
    let _service = device.serve();
    let other = Sink::new(|_, _| ok());
    let stolen = other.url("/steal");
    let sink = Sink::new(move |number, request| match number {
        1 => answer("400 Bad Request", "", &format!("no: {} with {:?}", request.line, request.headers)),
        2 => answer("307 Temporary Redirect", &format!("Location: {stolen}\r\n"), ""),
        3 => answer("302 Found", "Location: https://geheim-token.evil.example/\r\n", ""),
        4 => answer("404 geheim-token", "", "geheim-***"),
        // "geheim" in hexadecimal.
        5 => answer("499 No", "", "67656865696d"),
        _ => String::new(),
    });
    let token = secret_file(&device, "token", "geheim-token");
    let url = secret_file(&device, "hook", &sink.url("/bot/1/gehe%69m/p?key=bot4711:GEHEIMABC"));
    device.must(&["channel", "add", "webhook", "hook", "--url-file", &url, "--token-file", &token]);
    let reasons = [(); 6].map(|()| {
        let failed = device.run(&["channel", "test", "hook"]);
        assert_eq!(
            (failed.code, failed.three_lines()[0]),
            (1, "the test message was not delivered to hook"),
            "{failed:?}"
        );
        failed.three_lines()[1].to_owned()
    });
    for (reason, text) in reasons.iter().zip([
        "the server answered 400 (Bad Request)",
        "redirects to another host;",
        "redirects to another host;",
        "the server answered 404 (Not Found)",
        "the server answered 499",
        "connection closed before message completed",
    ]) {
        assert!(reason.contains(text), "{text}: {reasons:?}");
    }
    assert_eq!(device.json(&["channel", "messages"])[0]["deliveries"][0]["outcome"], "given_up");
    let shown = shown(&device).to_lowercase();
    assert!(!shown.contains("gehe") && !shown.contains("6765"), "{shown}");
    assert!(other.requests.try_recv().is_err(), "a redirect is not followed");
}

#[test]
fn a_message_that_a_server_fails_to_take_is_repeated_with_the_same_id() {
    let device = Device::new(Appliance::new());
    let sink = Sink::new(|number, _| match number {
        1 => answer("500 Internal Server Error", "", "down"),
        2 => answer("503 Service Unavailable", "Retry-After: 0\r\n", ""),
        _ => ok(),
    });
    add_webhook(&device, "hook", &sink.url("/"));
    let ids = queue(&device, 1);
    let _service = device.serve();
    let keys = [(); 3].map(|()| sink.next().key());
    assert_eq!(BTreeSet::from(keys), ids);
    let is_delivered = |messages: &Value| messages[0]["deliveries"][0]["outcome"] == "delivered";
    let messages = device.await_json(&["channel", "messages"], is_delivered);
    assert_eq!(messages[0]["deliveries"][0]["attempts"], 3, "{messages:#}");
    let log = device.log();
    assert_eq!(log.matches("another attempt follows").count(), 1, "once, not at each attempt: {log}");
}

#[test]
fn messages_that_are_due_survive_twenty_kills() {
    const KILLS: usize = 20;
    let device = Device::new(Appliance::new());
    let sink = Sink::new(|_, _| ok());
    add_webhook(&device, "hook", &sink.url("/"));
    let (mut made, mut seen) = (BTreeSet::new(), Vec::new());
    for round in 0..KILLS {
        made.extend(queue(&device, 3));
        let mut service = device.serve();
        for _ in 0..=round % 3 {
            seen.push(sink.next().key());
        }
        // Killed before, at or after the time at which it stores what became of the message.
        if round % 2 == 1 {
            device.must(&["health"]);
        }
        service.kill();
        seen.extend(sink.requests.try_iter().map(|request| request.key()));
    }
    let _service = device.serve();
    let is_over = |messages: &Value| {
        let all = messages.as_array().unwrap();
        all.len() == made.len() && all.iter().all(|sent| sent["deliveries"][0]["outcome"] == "delivered")
    };
    device.await_json(&["channel", "messages", "-n", "1000"], is_over);
    seen.extend(sink.requests.try_iter().map(|request| request.key()));
    let distinct = seen.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(distinct, made, "none is lost, and none has another id");
    let repeats = seen.len() - distinct.len();
    println!("{} messages, {KILLS} kills, {repeats} repeats", made.len());
    assert!(repeats <= KILLS, "{repeats} repeats: one attempt at a time can be cut off");
}

#[test]
fn commands_are_made_by_the_socket_alone() {
    let device = Device::new(Appliance::new());
    let folder = tempfile::tempdir().unwrap();
    let mut command = device.command(&["serve"]);
    command.env("PACKETPARAMEDIC_LISTEN", "127.0.0.1:0").env("PACKETPARAMEDIC_DATABASE_PASSWORD_FILE", "/geheim");
    let service = device.serve_with(command);
    let line = service.line(PATIENCE).unwrap();
    let address = line.rsplit('/').next().unwrap().parse::<SocketAddr>().unwrap();
    let token = device.must(&["token", "add", "--name", "admin", "--scope", "admin"]).trim().to_owned();
    let ask = |method: &str, path: &str, body: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse::<u16>().unwrap(), serde_json::from_str::<Value>(body).unwrap())
    };
    let file = folder.path().join("said");
    let script = format!("env > {}", file.display());
    let body = json!({ "name": "own", "kind": "command", "program": "/bin/sh", "args": ["-c", script] });
    let (status, refused) = ask("POST", "/channels", &body.to_string());
    assert_eq!((status, &refused["code"]), (403, &"command_refused".into()), "{refused:#}");
    let body = json!({ "channels": [{ "name": "own", "enabled": true, "kind": "command", "program": "/bin/sh", "args": [] }] });
    let (status, refused) = ask("POST", "/configuration", &body.to_string());
    assert_eq!((status, &refused["code"]), (403, &"command_refused".into()), "{refused:#}");
    // With a known key the commands in the database of a server could be sealed.
    let key = format!("packetparamedic-key-v1 {}", "A".repeat(43));
    let (status, refused) = ask("POST", "/reflectors/imports", &json!({ "key": key, "reflectors": [] }).to_string());
    assert_eq!((status, &refused["code"]), (403, &"identity_over_tcp".into()), "{refused:#}");
    device.must(&["channel", "add", "command", "own", "/bin/sh", "--", "-c", &script]);
    for (method, path) in
        [("DELETE", "/channels/own"), ("POST", "/channels/own/disable"), ("POST", "/channels/own/enable")]
    {
        let (status, refused) = ask(method, path, "");
        assert_eq!((status, &refused["code"]), (403, &"command_refused".into()), "{method} {path}: {refused:#}");
    }
    assert_eq!(ask("GET", "/channels", "").1[0]["args"][1], script);
    let (status, tested) = ask("POST", "/channels/own/test", "");
    assert_eq!((status, &tested["delivered"]), (200, &true.into()), "{tested:#}");
    let said = fs::read_to_string(&file).unwrap();
    assert!(said.contains("PACKETPARAMEDIC_TITLE=PacketParamedic: test of own\n"), "{said}");
    assert!(
        !said.contains("geheim") && !said.contains("STATE_DIR"),
        "the settings of the service stay with it: {said}"
    );
    device.must(&["channel", "disable", "own"]);
    device.must(&["channel", "remove", "own"]);
    // A file that another user could change is not run.
    let program = folder.path().join("notify");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let refused = device.run(&["channel", "add", "command", "own", program.to_str().unwrap()]);
    assert_eq!((refused.code, refused.three_lines()[0]), (2, "the channel is not accepted"), "{refused:?}");
}

#[test]
fn without_a_service_channels_are_those_of_the_store() {
    let device = Device::new(Appliance::new());
    let sink = Sink::new(|_, _| ok());
    device.must(&["channel", "add", "ntfy", "phone", "--server", &sink.url("/"), "--topic", "pp-topic"]);
    let tested = device.json(&["channel", "test", "phone"]);
    let request = sink.next();
    let body = serde_json::from_str::<Value>(&request.body).unwrap();
    assert_eq!((&body["topic"], &body["sequence_id"]), (&"pp-topic".into(), &tested["message"]), "{body:#}");
    assert_eq!((request.line.as_str(), request.headers.contains_key("authorization")), ("POST / HTTP/1.1", false));
    for wrong in [
        &["ntfy", "a", "--topic", "a/b"][..],
        &["ntfy", "a", "--topic", "a", "--server", "ntfy.sh"],
        &["webhook", "a", "--url", "ftp://a.b/"],
        &["webhook", "a b", "--url", "http://192.0.2.1/"],
        &["smtp", "a", "--server", "a.b", "--from", "a", "--to", "b@c.d"],
        &["command", "a", "apprise"],
    ] {
        let args = [&["channel", "add"], wrong].concat();
        device.appliance.fails(&args, 2, "bad_channel");
    }
    let absent = device.run(&["channel", "add", "webhook", "a", "--url-file", "/nonexistent"]);
    assert_eq!((absent.code, absent.three_lines()[0]), (2, "cannot read /nonexistent"), "{absent:?}");
}

#[test]
fn a_heartbeat_is_sent_while_the_service_works_and_its_failure_is_logged_once() {
    let device = Device::new(Appliance::new());
    let sink = Sink::new(|number, _| if number == 1 { ok() } else { answer("500 Internal Server Error", "", "") });
    let mut command = device.command(&["serve"]);
    command.env("PACKETPARAMEDIC_HEARTBEAT_URL", sink.url("/beat/geheim"));
    command.env("PACKETPARAMEDIC_HEARTBEAT_INTERVAL", "10s");
    let _service = device.serve_with(command);
    for _ in 0..3 {
        assert_eq!(sink.next().line, "GET /beat/geheim HTTP/1.1");
    }
    // The third answer is read before the service answers this.
    device.must(&["health"]);
    let log = device.log();
    assert_eq!(log.matches("the heartbeat does not arrive").count(), 1, "{log}");
    assert!(!log.contains("geheim"), "{log}");
}

/// Starts a mail server, and returns it with its port.
fn mail_server(security: &str) -> Option<(Running, String)> {
    let python = "/usr/bin/python3";
    let has_library = Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
    if !has_library.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a mail server needs python3-aiosmtpd");
        return None;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new(python);
    command.arg(tests.join("smtp_sink.py")).args([certificate(), tests.join("tls/key.pem")]).arg(security);
    command.env("SINK_PASSWORD", "geheim-password");
    let server = Running::start(command, Stdio::inherit()).unwrap();
    let port = server.line(PATIENCE).unwrap();
    Some((server, port))
}

fn certificate() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/certificate.pem")
}

#[test]
fn mail_is_submitted_over_tls_with_the_id_of_the_message() {
    for security in ["starttls", "tls"] {
        let Some((server, port)) = mail_server(security) else { return };
        let device = Device::new(Appliance::new());
        let run = |args: &[&str]| -> Outcome {
            let mut command = device.command(args);
            command.env("SSL_CERT_FILE", certificate());
            command.output().unwrap().into()
        };
        let add = |name: &str, password: &str| {
            let file = secret_file(&device, "password", password);
            device.must(&[
                "channel",
                "add",
                "smtp",
                name,
                "--server",
                "localhost",
                "--port",
                &port,
                "--security",
                security,
                "--user",
                "ann",
                "--password-file",
                &file,
                "--from",
                "pp@example.org",
                "--to",
                "ann@example.org",
            ]);
        };
        add("mail", "geheim-password");
        // The certificate is of no authority that this host trusts.
        let untrusted = device.run(&["channel", "test", "mail"]);
        assert!(untrusted.code == 1 && untrusted.three_lines()[1].contains("certificate"), "{security}: {untrusted:?}");
        let tested = run(&["channel", "test", "mail", "--json"]);
        assert_eq!(tested.code, 0, "{security}: {tested:?}");
        let mail = serde_json::from_str::<Value>(&server.line(PATIENCE).unwrap()).unwrap();
        let id = format!("Message-ID: <{}@example.org>", tested.json()["message"].as_str().unwrap());
        let content = mail["content"].as_str().unwrap();
        assert!(content.lines().any(|line| line == id), "{security}: {id}\n{content}");
        assert!(content.contains("Subject: PacketParamedic: test of mail"), "{content}");
        assert_eq!((&mail["starttls"], &mail["authenticated"]), (&(security == "starttls").into(), &true.into()));
        // The server repeats a wrong password.
        add("wrong", "geheim-wrong");
        let refused = run(&["channel", "test", "wrong"]);
        let reason = refused.three_lines()[1];
        assert!(refused.code == 1 && reason.contains("535"), "{security}: {refused:?}");
        assert!(!refused.stderr.contains("geheim") && !shown(&device).contains("geheim"), "{refused:?}");
    }
}
