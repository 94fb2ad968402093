//! Tests the monitors of the service against a real reflector and a real router: outages and what was still reachable,
//! drains, limits, the marks of samples taken during a test, and the data that remains after the service is killed.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Outcome, Reflector, RoutedHosts, Running};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);

/// An appliance that runs as a service, with the service's socket and log in a separate folder.
struct Watched {
    appliance: Appliance,
    runtime: tempfile::TempDir,
}

impl Watched {
    fn new(appliance: Appliance) -> Self {
        Self { appliance, runtime: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.appliance.command(args);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    fn must(&self, args: &[&str]) -> String {
        let outcome = Outcome::from(self.command(args).output().unwrap());
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.must(&[args, &["--json"]].concat())).unwrap()
    }

    fn serve(&self, default_monitors: bool) -> Running {
        let log = fs::File::options().create(true).append(true).open(self.runtime.path().join("log")).unwrap();
        let mut command = self.command(&["serve"]);
        command.env("PACKETPARAMEDIC_DEFAULT_MONITORS", default_monitors.to_string());
        // With a line for each write, after which a test looks again.
        command.env("PACKETPARAMEDIC_LOG", "info,paramedic_appliance=debug");
        let service = Running::start(command, log.into()).unwrap();
        let line = service.line(PATIENCE).unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
        assert!(line.starts_with("serving on "), "{line}");
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(self.runtime.path().join("log")).unwrap_or_default()
    }

    /// Runs a command now and after each line of the service's log, until `wanted` accepts its JSON document. Returns
    /// the document.
    fn await_json(&self, args: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || Some(self.json(args)).filter(&wanted);
        let found = lab::changes::until(self.runtime.path(), PATIENCE, look);
        found.unwrap_or_else(|| panic!("{args:?}: {:#}\n{}", self.json(args), self.log()))
    }

    /// Waits until the monitor with this name is in this state: `running`, `unreachable`, or the reason why it is
    /// paused.
    fn await_state(&self, name: &str, state: &str) -> Value {
        let is_so = |list: &Value| state_of(list, name).as_deref() == Some(state);
        let list = self.await_json(&["monitor", "list"], is_so);
        named(&list, name).unwrap().clone()
    }

    /// Waits until `wanted` accepts the latest outage, and returns the outage.
    fn await_outage(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.await_json(&["outages"], |outages| outages.get(0).is_some_and(&wanted))[0].clone()
    }

    fn outages(&self) -> usize {
        self.json(&["outages"]).as_array().unwrap().len()
    }
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array().unwrap().iter().find(|monitor| monitor["name"] == name)
}

fn state_of(list: &Value, name: &str) -> Option<String> {
    let condition = &named(list, name)?["condition"];
    let state = if condition["activity"] == "paused" { &condition["reason"] } else { &condition["activity"] };
    state.as_str().map(str::to_owned)
}

fn is_over(outage: &Value) -> bool {
    outage["ended_at"].is_string() && outage["end_known"] == true
}

#[test]
fn outages_say_what_was_still_reachable_and_drains_are_none() {
    let Some(hosts) = RoutedHosts::new() else { return };
    hosts.far.must(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"]);
    let listen = format!("{}:4000", hosts.near.v4);
    let mut reflector = Reflector::serve_on(&[&listen], Some(&hosts.near.netns), &[("NAME", "attic")]);
    let device = Watched::new(Appliance::in_netns(&hosts.far.netns).pair(&reflector, &listen));
    let mut service = device.serve(true);

    // From the first start on: the gateway and the reflector, and the log says what they cost.
    device.await_state("gateway", "running");
    device.await_state("attic", "running");
    assert!(device.log().contains("about 643 MB a month"), "{}", device.log());
    assert_eq!(reflector.status()["sessions"]["monitors"].as_array().unwrap().len(), 1);
    assert!(device.must(&["status"]).contains("monitor attic: running since "));
    reflector.await_audited("monitor_granted", |_| true);

    // A test runs beside the monitor, which has no slot; its samples are marked.
    let short = ["-t", "2", "--idle", "0.1", "--download", "-b", "5M", "-P", "1", "--no-wait"];
    device.must(&[&["speed-test", "--json"], &short[..]].concat());
    let marked = device.json(&["monitor", "list"]);
    let marked = named(&marked, "attic").unwrap();
    assert!(marked["recent"]["under_load"].as_u64().unwrap() > 0, "{marked:#}");
    assert_eq!(device.outages(), 0);

    // The reflector is killed: an outage of this target alone, which ends with its restart.
    reflector.end(Signal::KILL);
    device.await_state("attic", "unreachable");
    let outage = device.await_outage(|outage| outage["reachable"] == serde_json::json!(["gateway"]));
    assert_eq!(outage["failed"], serde_json::json!(["attic"]), "{outage:#}");
    assert_eq!(outage["scope"], "beyond_gateway", "nothing else beyond the gateway was probed: {outage:#}");
    reflector.start().unwrap();
    device.await_state("attic", "running");
    let ended = device.await_outage(is_over);
    assert_eq!((&ended["id"], device.outages()), (&outage["id"], 1));

    // A drain is no outage: the monitor is paused, and comes back after the restart.
    reflector.end(Signal::TERM);
    device.await_state("attic", "draining");
    reflector.start().unwrap();
    device.await_state("attic", "running");
    assert_eq!(device.outages(), 1, "{:#}", device.json(&["outages"]));
    let shutdown = |line: &Value| line["reason"] == "shutdown";
    reflector.await_audited("monitor_ended", shutdown);

    // Datagrams and connections are dropped behind the router.
    hosts.router.nft("table ip cut { chain forward { type filter hook forward priority 0; policy drop; }\n }\n");
    device.await_outage(|outage| !is_over(outage) && outage["scope"] == "beyond_gateway");
    hosts.router.nft("delete table ip cut\n");
    device.await_outage(is_over);
    device.await_state("attic", "running");
    // Nothing answers.
    hosts.router.nft("table ip cut { chain drop_all { type filter hook prerouting priority 0; policy drop; }\n }\n");
    let both = serde_json::json!(["attic", "gateway"]);
    let outage = device.await_outage(|outage| !is_over(outage) && outage["failed"] == both);
    assert_eq!(outage["scope"], "everything", "{outage:#}");
    assert_eq!(device.outages(), 3);

    // The service is killed meanwhile: every minute that was written is there, and the end of the outage is not known.
    let has_minutes = |series: &Value| !series["points"].as_array().unwrap().is_empty();
    let show = ["monitor", "show", "attic", "--step", "1m"];
    let before = device.await_json(&show, has_minutes);
    service.kill();
    hosts.router.nft("delete table ip cut\n");
    let mut service = device.serve(true);
    device.await_state("attic", "running");
    let after = device.json(&show);
    for point in before["points"].as_array().unwrap() {
        assert!(after["points"].as_array().unwrap().contains(point), "{point:#} is lost: {after:#}");
    }
    let interrupted = device.json(&["outages"])[0].clone();
    assert_eq!((&interrupted["id"], &interrupted["end_known"]), (&outage["id"], &false.into()), "{interrupted:#}");
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    // In order, the minute that runs is written, too.
    let stopped = device.json(&show);
    let count = |series: &Value| {
        let points = series["points"].as_array().unwrap().iter();
        points.map(|point| point["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(count(&stopped) > count(&after), "{after:#} {stopped:#}");
}

#[test]
fn each_kind_of_target_is_probed_and_a_paused_monitor_says_why() {
    let reflector = Reflector::serve(&[("NAME", "attic")]);
    let device = Watched::new(Appliance::new().pair(&reflector, reflector.address()));
    assert_eq!(Outcome::from(device.command(&["monitor", "add", "reflector:cellar"]).output().unwrap()).code, 4);
    assert_eq!(Outcome::from(device.command(&["monitor", "add", "router"]).output().unwrap()).code, 2);
    let add = |name: &str| device.must(&["monitor", "add", "reflector:attic", "--name", name, "--interval", "200ms"]);
    for name in ["one", "two", "three", "four"] {
        assert!(add(name).contains("a month"));
    }
    // A server that says of each name that it does not exist, and a host with a closed port: both are answers.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut query) {
            query[2..4].copy_from_slice(&[0x81, 0x83]);
            server.send_to(&query[..length], from).unwrap();
        }
    });
    device.must(&["monitor", "add", &format!("dns:{resolver}/example.org"), "--name", "names"]);
    device.must(&["monitor", "add", "host:127.0.0.1", "--name", "own"]);
    let pages = TcpListener::bind("127.0.0.1:0").unwrap();
    let page = format!("http://{}/health", pages.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in pages.incoming() {
            let mut stream = stream.unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
    });
    device.must(&["monitor", "add", &page, "--name", "page"]);
    let mut service = device.serve(false);
    for name in ["one", "two", "three", "four", "names", "own", "page"] {
        device.await_state(name, "running");
    }
    // The fifth of a device.
    add("five");
    device.await_state("five", "too_many_monitors");
    reflector.await_audited("monitor_denied", |line| line["reason"] == "too_many_monitors");
    device.must(&["monitor", "disable", "one"]);
    device.await_state("one", "disabled");
    device.must(&["monitor", "remove", "two"]);
    let list = device.await_json(&["monitor", "list"], |list| list.as_array().unwrap().len() == 7);
    assert!(named(&list, "gateway").is_none(), "none is added by itself: {list:#}");

    // The device is removed: paused, no outage.
    reflector.must(&["peers", "remove", &device.appliance.id()]);
    device.await_state("three", "not_paired");
    reflector.await_audited("monitor_ended", |line| line["reason"] == "peer_removed");
    assert_eq!(device.outages(), 0);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());

    // A test has used up the bytes of the day.
    let poor = Reflector::serve(&[("NAME", "poor"), ("MAX_BYTES_PER_DAY", "1MB")]);
    let device = Watched::new(Appliance::new().pair(&poor, poor.address()));
    device.appliance.speed_test(&["-t", "1", "--idle", "0.1", "--download"]);
    poor.await_audited("session_ended", |line| line["reason"] == "bytes_per_day");
    device.must(&["monitor", "add", "reflector:poor"]);
    let mut service = device.serve(false);
    device.await_state("poor", "bytes_per_day");
    poor.await_audited("monitor_denied", |line| line["reason"] == "bytes_per_day");
    assert_eq!(device.outages(), 0);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
}
