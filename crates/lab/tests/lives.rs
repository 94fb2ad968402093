//! Kills, stops or terminates one program during a test, and checks what the other program does and which resources are
//! free afterwards.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::{Appliance, Reflector, Running, loopback};
use rustix::process::Signal;
use serde_json::Value;

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Slack for a loaded machine on top of a promised time.
const SLACK: Duration = Duration::from_secs(5);
const MODES: [&str; 2] = ["tunneled", "direct"];

/// Starts a reflector that offers both data modes, with one slot and one data port. A second test can only run if both
/// are free.
fn reflector_with_one_slot() -> Reflector {
    let settings = [("MAX_CONCURRENT_TESTS", "1"), ("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", "5201-5201")];
    Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &settings)
}

fn paired(reflector: &Reflector) -> Appliance {
    Appliance::new().pair(reflector, reflector.address())
}

fn stream<'a>(mode: &'a str, time: &'a str) -> [&'a str; 9] {
    ["speed-test", "--json-stream", "-t", time, "--idle", "0.5", "--download", "--data-mode", mode]
}

/// Reads the output of a running test up to the next event with this name, and returns the event.
fn next(running: &Running, name: &str) -> Value {
    loop {
        let event = serde_json::from_str::<Value>(&running.line(PATIENCE).unwrap()).unwrap();
        if event["event"] == name {
            return event;
        }
    }
}

fn last(running: &Running) -> Value {
    let rest = running.rest(PATIENCE).unwrap();
    serde_json::from_str(rest.last().expect("a last event")).unwrap()
}

/// Runs `story` concurrently in each of the two data modes.
fn in_both_modes(story: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        for mode in MODES {
            let story = &story;
            scope.spawn(move || story(mode));
        }
    });
}

#[test]
fn a_killed_reflector_ends_the_test_within_three_seconds_and_the_partial_result_is_kept() {
    in_both_modes(|mode| {
        let mut reflector = reflector_with_one_slot();
        let appliance = paired(&reflector);
        let mut running = appliance.start(&stream(mode, "60"));
        for _ in 0..15 {
            next(&running, "interval");
        }
        reflector.process().kill();
        let killed = Instant::now();
        let status = running.wait(PATIENCE).unwrap();
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(3) + SLACK, "{mode}: {took:?}");
        assert_eq!(status.code(), Some(1));
        let error = last(&running);
        assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"reflector_gone".into()), "{error:#}");
        let kept = &error["measured_so_far"];
        assert_eq!(kept["complete"], false);
        assert!(kept["latency"]["idle"]["rtt_us"]["p50"].is_number(), "{kept:#}");
        assert!(kept["download"]["goodput_bps"].as_u64().unwrap() > 0, "{kept:#}");
        let saved = appliance.run(&["history", "show", kept["id"].as_str().unwrap(), "--json"]);
        assert_eq!(&saved.json(), kept, "the printed result is the saved one");

        // After a restart the pairings are there, and the open lease is charged.
        reflector.start().unwrap();
        reflector.await_audited("leases_charged", |line| line["sessions"] == 1);
        let again = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "--data-mode", mode]);
        assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
        reflector.must(&["audit", "verify"]);
    });
}

#[test]
fn a_lost_reflector_is_reported_in_three_lines() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = paired(&reflector);
    let mut command = appliance.command(&["speed-test", "-t", "60"]);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    reflector.await_audited("session_granted", |_| true);
    reflector.process().kill();
    let stderr = running.stderr.take().unwrap();
    let lines = BufReader::new(stderr).lines().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(1), "{lines:?}");
    let [what, because, advice] = &lines[..] else { panic!("{lines:?}") };
    assert!(what.starts_with(&format!("lost the connection to the reflector at {}", reflector.address())), "{what}");
    assert!(because.starts_with("because: ") && advice.starts_with("try: "), "{lines:?}");
}

#[test]
fn a_killed_appliance_leaves_slot_and_port_free_within_two_seconds() {
    in_both_modes(|mode| {
        let reflector = reflector_with_one_slot();
        let (first, second) = (paired(&reflector), paired(&reflector));
        let mut running = first.start(&stream(mode, "60"));
        next(&running, "interval");
        running.kill();
        let killed = Instant::now();
        let ended = reflector.await_audited("session_ended", |_| true);
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(2) + SLACK, "{mode}: {took:?}");
        assert_eq!((&ended["reason"], &ended["peer"]), (&"link_closed".into(), &first.id().into()));
        let next = second.speed_test(&["-t", "0.3", "--idle", "0.1", "--no-wait", "--data-mode", mode]);
        assert_eq!(next.code, 0, "{mode}: {next:?}\n{}", reflector.log());
    });
}

#[test]
fn stopping_either_end_for_two_seconds_does_not_end_a_test() {
    in_both_modes(|mode| {
        let mut reflector = reflector_with_one_slot();
        let appliance = paired(&reflector);
        let mut running = appliance.start(&stream(mode, "9"));
        next(&running, "interval");
        // This sleep is the tested pause, not a wait for an event.
        let standstill = |process: &Running| {
            process.signal(Signal::STOP);
            std::thread::sleep(Duration::from_secs(2));
            process.signal(Signal::CONT);
        };
        standstill(reflector.process());
        next(&running, "interval");
        standstill(&running);
        let status = running.wait(PATIENCE).unwrap();
        let result = last(&running);
        assert_eq!(status.code(), Some(0), "{mode}: {result:#}\n{}", reflector.log());
        assert_eq!((&result["event"], &result["complete"]), (&"result".into(), &true.into()), "{result:#}");
        assert_eq!(reflector.await_audited("session_ended", |_| true)["reason"], "finished");
    });
}

#[test]
fn a_draining_reflector_finishes_running_tests_and_begins_no_new_ones() {
    let mut reflector = reflector_with_one_slot();
    let (first, waiting, late) = (paired(&reflector), paired(&reflector), paired(&reflector));
    let mut running = first.start(&stream("tunneled", "15"));
    next(&running, "interval");
    let mut queued = waiting.start(&stream("tunneled", "1"));
    next(&queued, "queued");
    reflector.process().signal(Signal::TERM);
    // Queued requests are denied at once, and so are new ones.
    let refused = last(&queued);
    assert_eq!((&refused["event"], &refused["code"]), (&"error".into(), &"draining".into()), "{refused:#}");
    assert_eq!(queued.wait(PATIENCE).unwrap().code(), Some(5));
    late.fails(&["speed-test", "-t", "0.3", "--idle", "0.1", "--no-wait"], 5, "draining");

    let status = running.wait(PATIENCE).unwrap();
    let result = last(&running);
    assert_eq!((status.code(), &result["complete"]), (Some(0), &true.into()), "{result:#}");
    assert_eq!(reflector.process().wait(PATIENCE).unwrap().code(), Some(0), "{}", reflector.log());
    assert_eq!(reflector.audited("session_ended").len(), 1);
    let denied = reflector.audited("session_denied");
    assert_eq!(denied.len(), 3, "{denied:#?}");
    assert!(denied.iter().all(|line| line["reason"] == "draining"), "{denied:#?}");
    assert_eq!(reflector.audit().last().unwrap()["event"], "stopped");
    reflector.must(&["audit", "verify"]);
    // Afterwards the reflector is gone, and the commands report that.
    late.fails(&["speed-test"], 1, "unreachable");
}

#[test]
fn a_second_signal_ends_a_drain_and_the_appliance_gets_the_reason() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = paired(&reflector);
    let mut running = appliance.start(&stream("tunneled", "60"));
    next(&running, "interval");
    reflector.process().signal(Signal::TERM);
    reflector.await_log("draining");
    reflector.process().signal(Signal::TERM);
    assert_eq!(running.wait(PATIENCE).unwrap().code(), Some(5));
    let error = last(&running);
    assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"draining".into()), "{error:#}");
    assert_eq!(error["measured_so_far"]["complete"], false);
    assert_eq!(reflector.process().wait(PATIENCE).unwrap().code(), Some(0), "{}", reflector.log());
    assert_eq!(reflector.audited("session_ended")[0]["reason"], "shutdown");
}
