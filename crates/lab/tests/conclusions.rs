//! Tests the conclusions that a result draws from its numbers: under a requested rate limit, with probes that were not
//! sent or not answered, and on a busy host.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Host, Reflector, Running, TwoHosts, event};
use paramedic_link::test_spec::Load;
use paramedic_report::document::{Event, LimitCause, ResultDocument, ValidityVerdict};
use rustix::process::Signal;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const PATIENCE: Duration = Duration::from_secs(60);

fn two_ends(hosts: &TwoHosts) -> (Reflector, Appliance) {
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

/// Waits until a running test prints the event `name` of the phase `phase`.
fn await_event(running: &Running, name: &str, phase: &str) {
    let is_it = |line: &str| {
        line.contains(&format!("\"event\":\"{name}\"")) && line.contains(&format!("\"phase\":\"{phase}\""))
    };
    while !is_it(&running.line(PATIENCE).unwrap()) {}
}

/// Waits for the end of a running test. Returns its exit code and its result.
fn ended(mut running: Running) -> (i32, ResultDocument) {
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    let code = running.wait(PATIENCE).unwrap().code().unwrap();
    let Event::Result(result) = event(&last) else { panic!("no result: {last}") };
    (code, *result)
}

/// Returns the conclusion at the beginning of the report, as one line.
fn sentence(appliance: &Appliance, result: &ResultDocument) -> String {
    let report = appliance.run(&["history", "show", &result.id.to_string()]);
    assert_eq!(report.code, 0, "{report:?}");
    report.stdout.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn warns(result: &ResultDocument, code: &str) -> bool {
    result.warnings.iter().any(|warning| warning.code == code)
}

#[test]
fn probes_that_were_not_sent_are_counted_and_warned_of() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let running = appliance.start(&["speed-test", "--json-stream", "--engine", "echo", "-t", "4"]);
    await_event(&running, "latency", "idle");
    running.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(2));
    running.signal(Signal::CONT);
    let (code, result) = ended(running);
    assert_eq!(code, 0, "{result:#?}");
    let idle = result.latency.idle.as_ref().unwrap();
    assert!(idle.skipped >= 100, "{idle:#?}");
    assert!(idle.probe_late_us > Some(1_000_000), "the skipped probes are part of the lateness: {idle:#?}");
    // The replies that waited for the stopped process arrived in time, and the clocks went on.
    let longest_us = idle.rtt_us.unwrap().max;
    assert!(longest_us < 1_000_000 && idle.loss == Some(0.0) && idle.late == 0, "{idle:#?}");
    assert!(idle.one_way.is_some() && result.clocks.is_some_and(|clocks| clocks.jump.is_none()), "{result:#?}");
    assert!(warns(&result, "probes_skipped") && warns(&result, "probe_late"), "{result:#?}");
    let validity = result.validity.as_ref().unwrap();
    assert_eq!(validity.verdict, ValidityVerdict::Suspect, "{validity:?}");
    assert!(validity.reasons.iter().any(|reason| reason.code == "probes_skipped"), "{validity:?}");
}

#[test]
fn a_requested_limit_is_named_and_lost_answers_are_no_latency() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.shape("37mbit", "50ms");
    }
    let (_reflector, appliance) = two_ends(&hosts);

    let short = ["speed-test", "--json-stream", "-R", "--idle", "0.5"];
    let limited = |args: &[&str]| {
        let (code, result) = ended(appliance.start(&[&short, args].concat()));
        assert_eq!(code, 0, "{result:#?}");
        let text = sentence(&appliance, &result);
        assert!(!text.contains("carries") && !text.contains(" stays "), "{args:?}: {text}");
        text
    };
    // The sentence has the measured rate beside the requested one if they differ in the shown digits.
    let is_named = |text: &str, rate: &str| text.contains(rate) && text.contains("requested");
    let text = limited(&["-b", "2M", "-P", "1", "-t", "2"]);
    assert!(is_named(&text, "2.00 Mbit/s"), "{text}");
    let text = limited(&["-w", "16K", "-P", "1", "-t", "1"]);
    assert!(text.contains("with the requested socket buffers of 16 KiB"), "{text}");
    let text = limited(&["-u", "-P", "1", "-t", "2"]);
    assert!(is_named(&text, "1.00 Mbit/s"), "{text}");

    let args = ["-b", "10M", "-P", "1", "-t", "3", "--max-loaded-latency", "50", "--max-loaded-loss", "50%"];
    let running = appliance.start(&[&short[..], &args].concat());
    await_event(&running, "phase", "download");
    drop_probes(&hosts.near);
    let (code, result) = ended(running);
    assert_eq!(code, 3, "{result:#?}");
    let probes = result.latency.download.as_ref().unwrap();
    assert!(probes.received * 2 < probes.sent && result.bufferbloat.is_empty(), "{result:#?}");
    let judged = result.thresholds.iter().map(|one| (one.name.as_str(), one.measured.is_some(), one.passed));
    assert_eq!(judged.collect::<Vec<_>>(), [("max_loaded_latency_ms", false, false), ("max_loaded_loss", true, false)]);
    let text = sentence(&appliance, &result);
    assert!(text.contains("latency probe") && !text.contains("responsive"), "{text}");
    assert!(is_named(&text, "10.0 Mbit/s"), "the speeds stay: {text}");
}

/// Makes the firewall of a host drop incoming latency probes.
fn drop_probes(host: &Host) {
    host.nft("table inet lossy { chain input { type filter hook input priority 0; udp dport 4000 drop;\n }\n }\n");
}

/// Processes that keep the processors busy until they are dropped.
struct BusyLoops(Vec<Child>);

impl BusyLoops {
    fn start(nice: &str, count: usize) -> Self {
        let busy = |_| {
            let mut command = Command::new("nice");
            command.args(["-n", nice, "sh", "-c", "while :; do :; done"]).stdin(Stdio::null());
            command.spawn().expect("nice runs")
        };
        Self((0..count).map(busy).collect())
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn other_programs_that_use_the_processor_are_not_the_limit_of_a_test_that_reaches_its_line() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.shape("20mbit", "50ms");
    }
    let (_reflector, appliance) = two_ends(&hosts);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for nice in ["0", "19"] {
        let _busy = BusyLoops::start(nice, cores);
        let (code, result) = ended(appliance.start(&["speed-test", "--json-stream", "-R", "-t", "2", "--idle", "0.3"]));
        assert_eq!(code, 0, "{result:#?}");
        let download = result.download.as_ref().unwrap();
        let receiver = download.cpu.receiver.unwrap().used;
        assert!(receiver.host_busy > Some(0.9) && receiver.run_queue_wait.is_some(), "{receiver:#?}");
        assert!(result.latency.of(Load::Download).is_some(), "{result:#?}");
        assert!(!warns(&result, "appliance_cpu") && !warns(&result, "reflector_cpu"), "{nice}: {result:#?}");
    }
}

#[test]
fn a_process_that_is_suspended_in_a_phase_is_noticed_and_leaves_the_next_phase_as_it_is() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.shape("20mbit", "50ms");
    }
    let (mut reflector, appliance) = two_ends(&hosts);
    for of_reflector in [false, true] {
        let running = appliance.start(&["speed-test", "--json-stream", "-t", "6", "--idle", "0.5"]);
        let is_after_start_up = |line: &str| matches!(event(line), Event::Interval(reading) if reading.at_ms >= 2_000);
        while !is_after_start_up(&running.line(PATIENCE).unwrap()) {}
        let signal = |reflector: &mut Reflector, signal| match of_reflector {
            true => reflector.process().signal(signal),
            false => running.signal(signal),
        };
        signal(&mut reflector, Signal::STOP);
        std::thread::sleep(Duration::from_secs(2));
        signal(&mut reflector, Signal::CONT);
        let (code, result) = ended(running);
        assert_eq!(code, 0, "{result:#?}");
        // A stop that ends the start-up is left out of the numbers.
        let download = result.download.as_ref().unwrap();
        let is_as_set = (15_000_000..20_500_000).contains(&download.goodput_bps);
        assert!(is_as_set || warns(&result, "not_steady"), "{of_reflector}: {result:#?}");
        assert!(result.clocks.is_some_and(|clocks| clocks.jump.is_none()), "{result:#?}");
        assert!(!warns(&result, "path_changed"), "{result:#?}");
        let upload = result.upload.as_ref().unwrap().limited_by.as_ref().unwrap();
        assert_eq!(upload.cause, LimitCause::Network, "{upload:#?}");
    }
}

/// Sets the host's clock forward. Dropping this value sets it back.
struct SetClock(Duration);

impl SetClock {
    fn forward(by: Duration) -> Self {
        set_clock(|now| now + by);
        Self(by)
    }
}

impl Drop for SetClock {
    fn drop(&mut self) {
        set_clock(|now| now - self.0);
    }
}

fn set_clock(change: impl FnOnce(Duration) -> Duration) {
    let clock = ClockId::Realtime;
    let now = Duration::try_from(clock_gettime(clock)).unwrap();
    clock_settime(clock, Timespec::try_from(change(now)).unwrap()).unwrap();
}

#[test]
#[ignore = "sets the clock of the host for some seconds: run it alone"]
fn a_clock_that_is_set_in_mid_test_is_named_and_changes_nothing_else() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.shape("20mbit", "50ms");
    }
    let (_reflector, appliance) = two_ends(&hosts);
    // A step of NTP, and a clock that was an hour behind.
    for by in [Duration::from_millis(400), Duration::from_secs(3600)] {
        let running = appliance.start(&["speed-test", "--json-stream", "-t", "5", "--idle", "0.5"]);
        let is_steady = |line: &str| matches!(event(line), Event::Interval(reading) if reading.at_ms >= 2_500);
        while !is_steady(&running.line(PATIENCE).unwrap()) {}
        let clock = SetClock::forward(by);
        let (code, result) = ended(running);
        drop(clock);
        println!("{by:?}: {:?}", result.warnings.iter().map(|warning| warning.code.as_str()).collect::<Vec<_>>());
        assert_eq!(code, 0, "{result:#?}");
        assert_eq!(warns(&result, "clock_set"), by > Duration::from_secs(1), "{result:#?}");
        for (_, _, measured) in result.all_measured() {
            assert!((18_000_000..20_500_000).contains(&measured.goodput_bps), "{result:#?}");
        }
        for load in [Load::Idle, Load::Download, Load::Upload] {
            let rtt = result.latency.of(load).unwrap().rtt_us.unwrap();
            assert!(rtt.max < 500_000, "{result:#?}");
        }
        assert!(result.clocks.is_some_and(|clocks| clocks.jump.is_none()), "{result:#?}");
        assert!(!warns(&result, "path_changed") && !warns(&result, "clock_jump"), "{result:#?}");
    }
}
