//! Tests what the service publishes for Home Assistant through a real MQTT broker (mosquitto): the retained messages,
//! the message when the service ends, and a broker that disappears, refuses, or never answers.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Appliance, Device, Reflector, Running};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct-horse";
/// The JSON schema of the device descriptions that Home Assistant accepts.
const SCHEMA: &str = include_str!("../../appliance/src/export/home_assistant.schema.json");

/// The folder with the TLS certificate of the tests and its key.
const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");

/// A mosquitto broker with the user `line`, on a loopback port. It stores nothing on disk.
struct Broker {
    folder: tempfile::TempDir,
    port: u16,
    running: Option<Running>,
}

/// An MQTT message: whether the broker had retained it, its topic, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    is_retained: bool,
    topic: String,
    text: String,
}

impl Message {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Broker {
    /// Starts a broker. Prints SKIPPED and returns `None` without mosquitto.
    fn start() -> Option<Self> {
        Self::start_with(|_| String::new())
    }

    /// Starts a broker with TLS and the certificate of the tests, which is valid for `localhost`. Prints SKIPPED and
    /// returns `None` without mosquitto.
    fn start_with_tls() -> Option<Self> {
        Self::start_with(|folder| {
            let lines = [("certfile", "certificate.pem"), ("keyfile", "key.pem")].map(|(setting, name)| {
                let copy = folder.join(name);
                fs::copy(Path::new(TLS).join(name), &copy).unwrap();
                fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
                format!("{setting} {}\n", copy.display())
            });
            lines.concat()
        })
    }

    /// Starts a broker with further lines of configuration, which `more` returns for the broker's folder. Prints
    /// SKIPPED and returns `None` without mosquitto.
    fn start_with(more: impl FnOnce(&Path) -> String) -> Option<Self> {
        let is_there = |program: &str| {
            let mut asked = Command::new(program);
            asked.arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        if !["mosquitto", "mosquitto_sub", "mosquitto_passwd"].into_iter().all(is_there) {
            eprintln!("SKIPPED: the MQTT broker of the tests: install mosquitto and mosquitto-clients");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let passwords = folder.path().join("passwords");
        let made =
            Command::new("mosquitto_passwd").args(["-c", "-b"]).arg(&passwords).args(["line", PASSWORD]).status();
        assert!(made.unwrap().success());
        // mosquitto gives up root.
        for (path, mode) in [(folder.path().to_owned(), 0o755), (passwords.clone(), 0o644)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let config = format!(
            "listener {port} 127.0.0.1\n{}allow_anonymous false\npassword_file {}\npersistence false\nlog_dest stderr\n",
            more(folder.path()),
            passwords.display()
        );
        fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { folder, port, running: None };
        broker.resume();
        Some(broker)
    }

    fn resume(&mut self) {
        let log = self.folder.path().join("log");
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(self.folder.path().join("mosquitto.conf"));
        let stderr = fs::File::create(&log).unwrap();
        self.running = Some(Running::start(command, stderr.into()).unwrap());
        let is_ready = || fs::read_to_string(&log).ok().filter(|log| log.contains(" running"));
        let ready = lab::changes::until(self.folder.path(), PATIENCE, is_ready);
        assert!(ready.is_some(), "{}", fs::read_to_string(&log).unwrap_or_default());
    }

    fn kill(&mut self) {
        self.running.take().unwrap().kill();
    }

    fn url(&self) -> String {
        format!("mqtt://line@127.0.0.1:{}", self.port)
    }

    /// Starts a subscriber that prints every message, the retained ones first.
    fn subscriber(&self) -> Running {
        let mut command = Command::new("mosquitto_sub");
        command.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.args(["-u", "line", "-P", PASSWORD, "-t", "#", "-q", "1", "-F", "%r %t %p"]);
        Running::start(command, Stdio::inherit()).unwrap()
    }
}

/// Reads messages until `wanted` accepts one, and returns it.
fn await_message(subscriber: &Running, wanted: impl Fn(&Message) -> bool) -> Message {
    let mut seen = Vec::new();
    loop {
        let line = subscriber.line(PATIENCE).unwrap_or_else(|error| panic!("{error:#}; so far {seen:#?}"));
        let mut parts = line.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        let message = Message { is_retained: part() == "1", topic: part(), text: part() };
        if wanted(&message) {
            return message;
        }
        seen.push(message);
    }
}

fn is_availability(word: &str) -> impl Fn(&Message) -> bool {
    move |message| message.topic.ends_with("/availability") && message.text == word
}

fn is_state(message: &Message) -> bool {
    message.topic.starts_with("packetparamedic/") && message.topic.ends_with("/state")
}

fn is_discovery(message: &Message) -> bool {
    message.topic.starts_with("homeassistant/device/packetparamedic_") && message.topic.ends_with("/config")
}

/// Writes a password to a file, and returns the file's path.
fn password_file(device: &Device, password: &str) -> PathBuf {
    let file = device.runtime.path().join("mqtt-password");
    fs::write(&file, format!("{password}\n")).unwrap();
    file
}

fn serve(device: &Device, url: &str, password: &str) -> Running {
    let mut command = device.command(&["serve"]);
    command.env("PACKETPARAMEDIC_LISTEN", "off").env("PACKETPARAMEDIC_MQTT_URL", url);
    command.env("PACKETPARAMEDIC_MQTT_PASSWORD_FILE", password_file(device, password));
    device.serve_with(command)
}

/// Waits until the service's log contains `text` at least `count` times.
fn await_log(device: &Device, text: &str, count: usize) {
    let look = || Some(device.log()).filter(|log| log.matches(text).count() >= count);
    let found = lab::changes::until(device.runtime.path(), PATIENCE, look);
    assert!(found.is_some(), "{count} times {text:?} in\n{}", device.log());
}

#[test]
fn home_assistant_finds_the_device_and_sees_tests_crashes_and_a_broker_that_comes_back() {
    let Some(mut broker) = Broker::start() else { return };
    let reflector = Reflector::serve(&[("NAME", "attic")]);
    let device = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    let mut service = serve(&device, &broker.url(), PASSWORD);
    let subscriber = broker.subscriber();
    await_message(&subscriber, is_availability("online"));

    // The broker keeps all three for a Home Assistant that starts later.
    let later = broker.subscriber();
    let mut kept = Vec::new();
    while kept.len() < 3 {
        kept.push(await_message(&later, |message| message.is_retained));
    }
    let one = |is_it: &dyn Fn(&Message) -> bool| kept.iter().find(|message| is_it(message)).unwrap().clone();
    assert_eq!(
        one(&is_availability("online")).topic,
        format!("packetparamedic/{}/availability", device.appliance.id())
    );
    assert_eq!(one(&is_state).json()["download"], Value::Null, "nothing is measured yet");
    let discovery = one(&is_discovery).json();
    let schema = serde_json::from_str(SCHEMA).unwrap();
    let faults = jsonschema::validator_for(&schema).unwrap();
    let faults = faults.iter_errors(&discovery).map(|error| error.to_string()).collect::<Vec<_>>();
    assert_eq!(faults, Vec::<String>::new(), "{discovery:#}");
    drop(later);

    // A test, and a monitor with entities of its own.
    device.must(&["speed-test", "-t", "0.5", "--idle", "0.3", "--quiet"]);
    let measured = await_message(&subscriber, |message| is_state(message) && message.json()["download"].is_number());
    let run = &device.json(&["history"])[0];
    assert_eq!(measured.json()["last_test"], run["started_at"]);
    assert_eq!(measured.json()["last_test_target"], "attic");
    device.must(&["monitor", "add", "reflector:attic"]);
    let number = device.json(&["monitor", "list"])[0]["number"].clone();
    let key = format!("monitor_{number}_latency");
    await_message(&subscriber, |message| is_discovery(message) && message.json()["components"][&key].is_object());
    device.must(&["monitor", "remove", "attic"]);
    let is_removed = |message: &Message| {
        is_discovery(message) && message.json()["components"][&key] == serde_json::json!({ "platform": "sensor" })
    };
    await_message(&subscriber, is_removed);

    // A crash: the broker itself says so.
    service.kill();
    await_message(&subscriber, is_availability("offline"));
    let mut service = serve(&device, &broker.url(), PASSWORD);
    await_message(&subscriber, is_availability("online"));

    // The broker crashes and has forgotten everything; meanwhile the service works.
    broker.kill();
    await_log(&device, "the MQTT broker is lost", 1);
    device.must(&["speed-test", "-t", "0.5", "--idle", "0.3", "--quiet"]);
    assert_eq!(device.must(&["health"]), "running\n");
    broker.resume();
    let subscriber = broker.subscriber();
    let (mut state, mut described) = (None, None);
    while state.is_none() || described.is_none() {
        let message = await_message(&subscriber, |_| true);
        if is_state(&message) {
            state = Some(message);
        } else if is_discovery(&message) {
            described = Some(message);
        }
    }
    let latest = device.json(&["history"])[0]["started_at"].clone();
    assert_eq!(state.unwrap().json()["last_test"], latest, "the state of now, not one that had waited");
    await_log(&device, "the MQTT broker is connected", 3);

    // An orderly end.
    service.signal(Signal::TERM);
    await_message(&subscriber, is_availability("offline"));
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    let log = device.log();
    assert_eq!(log.matches("the MQTT broker is lost").count(), 1, "one line for each change:\n{log}");
    assert_eq!(log.matches("the MQTT broker is connected").count(), 3, "{log}");
    assert!(!log.contains(PASSWORD), "{log}");
}

#[test]
fn a_broker_that_refuses_is_named_once_and_the_right_password_helps_without_a_restart() {
    let Some(broker) = Broker::start() else { return };
    let device = Device::new(Appliance::new());
    let mut service = serve(&device, &broker.url(), "wrong-secret");
    await_log(&device, "cannot connect to the MQTT broker", 1);
    assert_eq!(device.must(&["health"]), "running\n");
    password_file(&device, PASSWORD);
    await_log(&device, "the MQTT broker is connected", 1);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    let log = device.log();
    assert_eq!(log.matches("cannot connect to the MQTT broker").count(), 1, "{log}");
    assert!(!log.contains(PASSWORD) && !log.contains("wrong-secret"), "{log}");
}

#[test]
fn a_broker_with_tls_is_believed_only_with_a_certificate_that_this_host_trusts() {
    let Some(broker) = Broker::start_with_tls() else { return };
    let url = format!("mqtts://line@localhost:{}", broker.port);
    let certificate = format!("{TLS}/certificate.pem");
    for (trusted, said) in [
        (Some(certificate.as_str()), "the MQTT broker is connected"),
        // An authority that is another one.
        (None, "cannot connect to the MQTT broker"),
    ] {
        let device = Device::new(Appliance::new());
        let mut command = device.command(&["serve"]);
        command.env("PACKETPARAMEDIC_LISTEN", "off").env("PACKETPARAMEDIC_MQTT_URL", &url);
        command.env("PACKETPARAMEDIC_MQTT_PASSWORD_FILE", password_file(&device, PASSWORD));
        command.envs(trusted.map(|trusted| ("SSL_CERT_FILE", trusted)));
        let mut service = device.serve_with(command);
        await_log(&device, said, 1);
        service.signal(Signal::TERM);
        assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
        assert_eq!(device.log().matches("MQTT broker").count(), 1, "{}", device.log());
        // These words of TLS can go on with names that the broker chose.
        assert!(!device.log().contains("invalid peer certificate"), "{}", device.log());
    }
}

#[test]
fn a_broker_that_never_answers_or_sends_nonsense_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense = TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense_address = nonsense.local_addr().unwrap();
    thread::spawn(move || {
        for stream in nonsense.incoming().filter_map(Result::ok) {
            answer_nonsense(stream);
        }
    });
    for (address, is_told) in [(silent.local_addr().unwrap(), false), (nonsense_address, true)] {
        let device = Device::new(Appliance::new());
        let mut service = serve(&device, &format!("mqtt://{address}"), PASSWORD);
        assert_eq!(device.must(&["health"]), "running\n");
        if is_told {
            await_log(&device, "cannot connect to the MQTT broker", 1);
        }
        device.must(&["monitor", "add", "host:127.0.0.1"]);
        service.signal(Signal::TERM);
        let ended = service.wait(Duration::from_secs(30)).unwrap_or_else(|error| panic!("{error:#}\n{}", device.log()));
        assert_eq!(ended.code(), Some(0), "{}", device.log());
    }
}

/// Sends a first packet that no real broker sends, with a claimed length of 256 MB.
fn answer_nonsense(mut stream: TcpStream) {
    // The client may have gone.
    let _ = stream.write_all(&[0x20, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0]);
}

const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const PING: u8 = 0xc0;

/// Reads an MQTT packet, and returns its kind; `None` if the connection ends.
fn read_packet(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = || {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok().map(|()| byte[0])
    };
    let kind = byte()? & 0xf0;
    let (mut length, mut shift) = (0_u64, 0);
    loop {
        let digit = byte()?;
        length += u64::from(digit & 0x7f) << shift;
        shift += 7;
        if digit & 0x80 == 0 {
            break;
        }
    }
    io::copy(&mut stream.take(length), &mut io::sink()).ok()?;
    Some(kind)
}

/// The packet CONNACK, which accepts the connection with a receive maximum of one message and without pings.
const ACCEPTED: &[u8] = &[0x20, 9, 0, 0, 6, 0x21, 0, 1, 0x13, 0, 0];
const PONG: &[u8] = &[0xd0, 0];

/// Starts a broker that answers each kind of packet in `answers` with these bytes, and other packets not at all.
/// Returns its URL, and a channel with the kind and the time of each packet that it receives.
fn broker_that_answers(answers: &[(u8, &[u8])]) -> (String, Receiver<(u8, Instant)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mqtt://line@{}", listener.local_addr().unwrap());
    let (sender, packets) = channel();
    let answers = answers.iter().map(|(kind, answer)| (*kind, answer.to_vec())).collect::<Vec<_>>();
    thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            while let Some(got) = read_packet(&mut stream) {
                let answer = answers.iter().find(|(kind, _)| *kind == got);
                // The test may be over, and the client may have gone.
                if sender.send((got, Instant::now())).is_err() {
                    return;
                }
                if answer.is_some_and(|(_, answer)| stream.write_all(answer).is_err()) {
                    break;
                }
            }
        }
    });
    (url, packets)
}

/// Waits for a packet of this kind, and returns its time.
fn await_packet(packets: &Receiver<(u8, Instant)>, wanted: u8) -> Instant {
    loop {
        let (kind, at) = packets.recv_timeout(PATIENCE).expect("a packet");
        if kind == wanted {
            return at;
        }
    }
}

#[test]
fn a_broker_that_acknowledges_nothing_is_left_and_delays_no_end() {
    let (url, packets) = broker_that_answers(&[(CONNECT, ACCEPTED), (PING, PONG)]);
    let device = Device::new(Appliance::new());
    let mut service = serve(&device, &url, PASSWORD);
    await_log(&device, "the broker did not acknowledge a message within 20 s", 1);
    // The next connection.
    for kind in [CONNECT, PUBLISH, CONNECT, PUBLISH] {
        await_packet(&packets, kind);
    }
    service.signal(Signal::TERM);
    let ended = service.wait(Duration::from_secs(30)).unwrap_or_else(|error| panic!("{error:#}\n{}", device.log()));
    assert_eq!(ended.code(), Some(0), "{}", device.log());
    assert!(!device.log().contains("the MQTT broker is connected"), "{}", device.log());
}

#[test]
fn a_broker_that_repeats_the_password_or_sends_what_was_not_asked_for_is_named_without_it_and_seldom_tried() {
    let text = |head: &[u8]| {
        let length = u8::try_from(PASSWORD.len()).unwrap();
        let body = [head, &[length], PASSWORD.as_bytes()].concat();
        [&[u8::try_from(body.len()).unwrap()], body.as_slice()].concat()
    };
    // DISCONNECT with a reason string, and PUBLISH to a topic.
    let disconnect = [&[0xe0], text(&[0x87, 3 + u8::try_from(PASSWORD.len()).unwrap(), 0x1f, 0]).as_slice()].concat();
    let published = [&[0x30], text(&[0]).as_slice(), &[0]].concat();
    let published = [&published[..1], &[published[1] + 1], &published[2..]].concat();
    // PUBACK of the first message, and then the same.
    let acknowledged = [&[0x40, 2, 0, 1], published.as_slice()].concat();
    let cases = [
        (vec![(CONNECT, ACCEPTED), (PUBLISH, disconnect.as_slice())], "the broker ended the connection: NotAuthorized"),
        (vec![(CONNECT, published.as_slice())], "the broker began with Publish instead of ConnAck"),
        (vec![(CONNECT, ACCEPTED), (PUBLISH, published.as_slice())], "the broker sent an unexpected packet"),
        (vec![(CONNECT, ACCEPTED), (PUBLISH, acknowledged.as_slice())], "the broker sent an unexpected packet"),
    ];
    let case = |(answers, said): (Vec<(u8, &[u8])>, &str)| {
        let (url, packets) = broker_that_answers(&answers);
        let device = Device::new(Appliance::new());
        let mut service = serve(&device, &url, PASSWORD);
        let connected = [(); 5].map(|()| await_packet(&packets, CONNECT));
        // At least half of 1, 2, 4 and 8 s.
        let took = connected[4] - connected[0];
        assert!(took > Duration::from_secs(7), "{took:?}\n{}", device.log());
        await_log(&device, said, 1);
        service.signal(Signal::TERM);
        assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
        let log = device.log();
        assert!(!log.contains(PASSWORD), "{log}");
        // A connection whose first message was acknowledged has a line for its begin and one for its end.
        let most = if answers[1..] == [(PUBLISH, acknowledged.as_slice())] { 12 } else { 1 };
        assert!((1..=most).contains(&log.matches("MQTT broker").count()), "{log}");
    };
    std::thread::scope(|scope| cases.into_iter().for_each(|one| drop(scope.spawn(|| case(one)))));
}
