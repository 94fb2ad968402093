//! Tests the messages that the reflector sends to its service manager (sd_notify(3)). A socket of the test takes the
//! place of systemd's socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::{Appliance, Reflector, Running, SlowDisk};
use rustix::process::Signal;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// The watchdog timeout in microseconds. In this time the reflector sends three watchdog messages.
const WATCHDOG_USEC: &str = "300000";

/// The service manager's end of the socket, which the test plays.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    /// Creates a reflector with the environment of a systemd unit that has a watchdog. The reflector is not started
    /// yet.
    fn reflector(&self) -> Reflector {
        let socket = self.folder.path().join("notify");
        let reflector = Reflector::idle(&[]).with_variable("NOTIFY_SOCKET", socket.to_str().unwrap());
        reflector.with_variable("WATCHDOG_USEC", WATCHDOG_USEC)
    }

    /// Returns the next message of the reflector; `None` if none arrives `within` this time.
    fn message(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 512];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn next(&self) -> String {
        self.message(PATIENCE).expect("a message")
    }

    /// Discards the messages received so far, and waits for the next one. Asserts that each is a watchdog message.
    fn await_feeding(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 512];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            assert_eq!(&buffer[..length], b"WATCHDOG=1\n");
        }
        self.socket.set_nonblocking(false).unwrap();
        assert_eq!(self.next(), "WATCHDOG=1");
    }
}

#[test]
fn readiness_a_live_watchdog_and_the_stop_are_reported() {
    let manager = Manager::new();
    let mut reflector = manager.reflector();
    reflector.start().unwrap();
    assert_eq!(manager.next(), "READY=1");
    manager.await_feeding();
    assert_eq!([reflector.must(&["health"]), reflector.must(&["health", "--live"])], ["serving", "serving"]);

    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test = ["speed-test", "--json-stream", "-t", "60", "--download", "-b", "1M", "--idle", "0.1"];
    let mut test = appliance.start(&test);
    while !test.line(PATIENCE).unwrap().contains("\"interval\"") {}

    // A faulted reflector is not ready, and goes on.
    let (folder, aside) = (reflector.state().join("audit"), reflector.home().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    reflector.await_log("the audit log can't be written");
    let health = reflector.fails(&["health"], 1);
    assert!(health[0].contains("faulted"), "{health:?}");
    assert_eq!(reflector.must(&["health", "--live"]), "faulted");
    (0..4).for_each(|_| manager.await_feeding());
    std::fs::rename(&aside, &folder).unwrap();

    // Neither is a draining one.
    reflector.process().signal(Signal::TERM);
    reflector.await_log("draining");
    let health = reflector.fails(&["health"], 1);
    assert!(health[0].contains("draining"), "{health:?}");
    assert_eq!(reflector.must(&["health", "--live"]), "draining");
    (0..4).for_each(|_| manager.await_feeding());
    reflector.process().signal(Signal::TERM);
    let last = std::iter::repeat_with(|| manager.next()).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(reflector.process().wait(PATIENCE).unwrap().code(), Some(0), "{}", reflector.log());
    test.wait(PATIENCE).unwrap();
}

#[test]
fn the_watchdog_is_not_fed_while_the_database_hangs() {
    let manager = Manager::new();
    let mut reflector = manager.reflector();
    reflector.start().unwrap();
    assert_eq!(manager.next(), "READY=1");
    let Some(disk) = SlowDisk::under(reflector.process(), Duration::from_secs(600)) else { return };
    manager.await_feeding();
    let id = paramedic_link::EndpointId::from_bytes([7; 32]).to_string();
    let mut adding =
        Running::start(reflector.command(&["peers", "add", &id, "--name", "slow"]), Stdio::inherit()).unwrap();
    let began = Instant::now();
    while let Some(message) = manager.message(Duration::from_secs(2)) {
        assert_eq!(message, "WATCHDOG=1");
        assert!(began.elapsed() < PATIENCE, "it is fed while the database hangs:\n{}", reflector.log());
    }
    // The disk goes on, and so does everything else.
    drop(disk);
    manager.await_feeding();
    assert!(adding.wait(PATIENCE).unwrap().success(), "{}", reflector.log());
}
