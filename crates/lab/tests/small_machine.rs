//! Machines that are too small for their line: nothing stalls, latency is still probed, memory stays small, and the
//! result says who was the limit.

use std::fs;
use std::time::Duration;

use lab::{Appliance, Reflector, Running, Share};
use rustix::process::Pid;
use serde_json::Value;

/// A test may take no more, however many streams it has.
const MOST_MEMORY: u64 = 32 << 20;

/// The most memory that a process has had so far.
fn peak(process: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The result of a running test, and the most memory that it was seen to have.
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
fn a_tenth_of_a_core_is_enough_to_measure_and_to_say_so() {
    for (slow, mode) in [("appliance", "direct"), ("reflector", "tunneled")] {
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
            // Held back nine tenths of the time, it still sends some whenever it runs.
            assert!(latency["received"].as_u64() >= Some(3), "{slow}: {latency:#}");
        }
        let warnings = result["warnings"].as_array().unwrap();
        let told = warnings.iter().find(|warning| warning["code"] == format!("{slow}_cpu").as_str());
        let told = told.unwrap_or_else(|| panic!("{slow}: {warnings:#?}"))["text"].as_str().unwrap();
        assert!(told.contains("a control group held it back for "), "{told}");
    }
}
