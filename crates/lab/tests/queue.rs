//! Tests requests that wait in a reflector's queue. Meanwhile other tests of the same device may run, and the appliance
//! takes the device's test lock again before a granted test begins.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::bad_reflectors::{Honest, SPEED_TEST, granted, queued};
use lab::hostile::FalseReflector;
use lab::{Appliance, Running};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A reflector, played by the test, that queues each request until the test sends a grant. It reports the type of every
/// message to the test.
struct Queue {
    reflector: FalseReflector,
    grant: Sender<Value>,
    heard: Receiver<String>,
}

impl Queue {
    fn open() -> Self {
        let (grant, grants) = channel::<Value>();
        let (tell, heard) = channel::<String>();
        let ends = Arc::new(Mutex::new((grants, tell)));
        let reflector = FalseReflector::listen(move |link, first| {
            let mut honest = Honest::default();
            let mut next = Some(first.clone());
            while let Some(message) = next {
                let kind = message["type"].as_str().unwrap_or_default().to_owned();
                let _ = ends.lock().unwrap().1.send(kind.clone());
                if kind == "request" {
                    link.say(&queued(1))?;
                    let grant = loop {
                        match ends.lock().unwrap().0.recv_timeout(Duration::from_millis(500)) {
                            Ok(grant) => break grant,
                            Err(_) => link.say(&json!({ "type": "ping" }))?,
                        }
                    };
                    honest.note_request(&message);
                    link.say(&grant)?;
                } else {
                    honest.answer(link, &message)?;
                }
                next = link.hear()?;
            }
            Ok(())
        });
        Self { reflector, grant, heard }
    }

    fn pair(&self, appliance: &Appliance, name: &str) {
        let (address, id) = (self.reflector.address.to_string(), self.reflector.id.to_string());
        let args = ["pair-reflector", "--peer", &address, "--endpoint-id", &id, "--name", name];
        let paired = appliance.run(&args);
        assert_eq!(paired.code, 0, "{paired:?}");
    }

    fn hears(&self, kind: &str) {
        while self.heard.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {kind} came")) != kind {}
    }
}

/// Starts a reflector that grants every request at once, and pairs the appliance with it under `name`.
fn free(appliance: &Appliance, name: &str) -> FalseReflector {
    let reflector = FalseReflector::listen(|link, first| {
        let mut honest = Honest::default();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            honest.answer(link, &message)?;
            next = link.hear()?;
        }
        Ok(())
    });
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    let args = ["pair-reflector", "--peer", &address, "--endpoint-id", &id, "--name", name];
    assert_eq!(appliance.run(&args).code, 0);
    reflector
}

fn until(running: &Running, event: &str) {
    let wanted = format!("\"event\":\"{event}\"");
    while !running.line(PATIENCE).unwrap().contains(&wanted) {}
}

fn last(running: &mut Running) -> (i32, Value) {
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    (running.wait(PATIENCE).unwrap().code().unwrap(), serde_json::from_str(&last).unwrap())
}

#[test]
fn another_test_of_this_device_runs_while_one_is_queued() {
    let (queue, appliance) = (Queue::open(), Appliance::new());
    queue.pair(&appliance, "full");
    let _free = free(&appliance, "free");
    let stream = [SPEED_TEST, &["--json-stream", "--peer", "full"]].concat();
    let mut waiting = appliance.start(&stream);
    until(&waiting, "queued");
    let other = appliance.run(&[SPEED_TEST, &["--json", "--no-wait", "--peer", "free"]].concat());
    assert_eq!(other.code, 0, "{other:?}");
    queue.grant.send(granted()).unwrap();
    let (code, result) = last(&mut waiting);
    assert_eq!((code, &result["complete"]), (0, &true.into()), "{result:#}");
}

#[test]
fn a_grant_waits_for_the_devices_test_lock_and_is_given_back_after_a_timeout() {
    let (queue, appliance) = (Queue::open(), Appliance::new());
    queue.pair(&appliance, "full");
    let _free = free(&appliance, "free");
    let stream = [SPEED_TEST, &["--json-stream", "--peer", "full"]].concat();
    let mut long = [SPEED_TEST, &["--json-stream", "--peer", "free"]].concat();
    let time = long.iter().position(|arg| *arg == "-t").unwrap() + 1;
    long[time] = "5";
    // Half of this time may be spent waiting.
    let short_lived =
        json!({ "type": "granted", "session": granted()["session"], "expires_in_ms": 2000, "udp": false });
    for (grant, expected) in [(short_lived, (5, Some("busy_here"))), (granted(), (0, None))] {
        let mut waiting = appliance.start(&stream);
        until(&waiting, "queued");
        let mut other = appliance.start(&long);
        until(&other, "phase");
        queue.grant.send(grant).unwrap();
        let (code, end) = last(&mut waiting);
        assert_eq!((code, end["code"].as_str()), expected, "{end:#}");
        queue.hears("finish");
        assert_eq!(last(&mut other).0, 0);
    }
}

#[test]
fn a_wait_that_is_cancelled_is_withdrawn() {
    let (tell, heard) = channel::<String>();
    let tell = Mutex::new(tell);
    let reflector = FalseReflector::listen(move |link, first| {
        let honest = &mut Honest::default();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            if message["type"] == "request" {
                link.say(&queued(1))?;
                // Everything that comes after the request.
                while let Some(message) = link.hear()? {
                    let _ = tell.lock().unwrap().send(message["type"].to_string());
                }
                return Ok(());
            }
            honest.answer(link, &message)?;
            next = link.hear()?;
        }
        Ok(())
    });
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    let args = ["pair-reflector", "--peer", &address, "--endpoint-id", &id, "--name", "full"];
    assert_eq!(appliance.run(&args).code, 0);
    let mut waiting = appliance.start(&[SPEED_TEST, &["--json-stream", "--peer", "full"]].concat());
    until(&waiting, "queued");
    waiting.signal(rustix::process::Signal::INT);
    let (code, end) = last(&mut waiting);
    assert_eq!((code, end["code"].as_str()), (130, Some("interrupted")), "{end:#}");
    let heard = [heard.recv_timeout(PATIENCE).unwrap(), heard.recv_timeout(PATIENCE).unwrap()];
    assert_eq!(heard, [r#""withdraw""#, r#""close""#]);
}

#[test]
fn ctrl_c_while_the_devices_turn_is_waited_for_is_exit_code_130() {
    let appliance = Appliance::new();
    let _free = free(&appliance, "free");
    let mut long = [SPEED_TEST, &["--json-stream"]].concat();
    let time = long.iter().position(|arg| *arg == "-t").unwrap() + 1;
    long[time] = "5";
    let mut running = appliance.start(&long);
    until(&running, "phase");
    let mut waiting = appliance.command(SPEED_TEST).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut note = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut note).unwrap();
    assert!(note.contains("another test runs on this device"), "{note}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&waiting), rustix::process::Signal::INT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    assert_eq!(last(&mut running).0, 0);
}
