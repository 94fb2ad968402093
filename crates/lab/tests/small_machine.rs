//! Tests machines that are too slow for their link: nothing stalls, latency is still probed, memory use stays small,
//! and the result names the limit.

use std::fs;
use std::time::Duration;

use lab::{Appliance, Reflector, Running, Share, limit_repetitions, record_limit};
use rustix::process::Pid;
use serde_json::Value;

/// The memory that a program may use during a test, in bytes, for any number of streams. Does not count the program's
/// mapped file: how much of it is resident depends on the build. The benchmark measures both together.
const MOST_MEMORY: u64 = 20 << 20;

/// Returns the peak memory of a process so far in bytes, without mapped files (proc_pid_status(5)); `None` if it is
/// unknown.
fn peak(process: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).ok()?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Some(value("VmHWM:")?.saturating_sub(value("RssFile:")?) * 1024)
}

/// Waits for the end of a running test. Returns its result, and its peak memory in bytes.
fn to_the_end(running: &mut Running) -> (Value, u64) {
    let mut most = 0;
    loop {
        let line = running.line(Duration::from_secs(60)).expect("the test goes on");
        most = peak(running.pid()).unwrap_or(0).max(most);
        let event = serde_json::from_str::<Value>(&line).expect("an event");
        match event["event"].as_str() {
            Some("result") => {
                let status = running.wait(Duration::from_secs(30)).expect("the program ends");
                assert!(status.success(), "{event:#}");
                return (event, most);
            }
            Some("error") => panic!("{event:#}"),
            _ => {}
        }
    }
}

#[test]
fn eight_streams_need_little_memory() {
    let mut reflector = Reflector::serve(&[("MODE", "direct_ephemeral")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for mode in ["direct", "tunneled"] {
        let test =
            ["speed-test", "--json-stream", "-P", "8", "-t", "1", "--bidir", "--idle", "0.2", "--data-mode", mode];
        let (result, most) = to_the_end(&mut appliance.start(&test));
        assert_eq!(result["complete"], true);
        assert!(most > 0 && most <= MOST_MEMORY, "{mode}: the appliance had {most} bytes");
        let most = peak(reflector.process().pid()).unwrap();
        assert!(most <= MOST_MEMORY, "{mode}: the reflector had {most} bytes");
    }
}

#[test]
fn with_a_tenth_of_a_core_the_test_completes_and_warns() {
    let ends = [("appliance", "direct"), ("reflector", "tunneled")];
    for (slow, mode) in ends.repeat(limit_repetitions()) {
        let Some(share) = Share::of_a_core(10) else { return };
        let mut reflector = Reflector::serve(&[("MODE", "direct_ephemeral")]);
        let appliance = Appliance::new().pair(&reflector, reflector.address());
        let test = ["speed-test", "--json-stream", "-P", "8", "-t", "4", "--idle", "0.5", "--data-mode", mode];
        let mut running = appliance.start(&test);
        share.take(if slow == "appliance" { running.pid() } else { reflector.process().pid() });
        let (result, _) = to_the_end(&mut running);
        assert_eq!(result["complete"], true, "{slow}");
        for direction in ["download", "upload"] {
            assert!(result[direction]["goodput_bps"].as_u64() > Some(0), "{slow}: {result:#}");
            let latency = &result["latency"][direction];
            // Throttled for nine tenths of the time, it still sends in the remaining tenth.
            assert!(latency["received"].as_u64() >= Some(3), "{slow}: {latency:#}");
        }
        let warnings = result["warnings"].as_array().unwrap();
        let told = warnings.iter().find(|warning| warning["code"] == format!("{slow}_cpu").as_str());
        let told = told.unwrap_or_else(|| panic!("{slow}: {warnings:#?}"))["text"].as_str().unwrap();
        assert!(told.contains("a control group throttled the program for "), "{told}");
        for direction in ["download", "upload"] {
            let limit = &result[direction]["limited_by"];
            let injected = format!("a tenth of a core for the {slow}");
            record_limit(&injected, direction, limit["cause"].as_str().unwrap_or_default());
            assert_eq!(limit["cause"], format!("{slow}_cpu"), "{slow}, {direction}: {limit:#}");
            assert_eq!(limit["evidence"][0]["name"], "throttled_share", "{slow}, {direction}: {limit:#}");
            assert_eq!(limit["evidence"][0]["end"], slow, "{slow}, {direction}: {limit:#}");
        }
    }
}
