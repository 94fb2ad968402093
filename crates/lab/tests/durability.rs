//! What was acknowledged is there after a crash, whatever the disk did before; and what the disk does is told.

use std::fs;

use lab::{Appliance, Reflector, fill};
use rustix::process::Signal;

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1", "-b", "10M"];

/// An Endpoint ID of nobody.
fn stranger(byte: u8) -> String {
    paramedic_link::EndpointId::from_bytes([byte; 32]).to_string()
}

/// The names of the paired devices.
fn peers(reflector: &Reflector) -> Vec<String> {
    let told = serde_json::from_str::<serde_json::Value>(&reflector.must(&["peers", "--json"])).unwrap();
    told.as_array().unwrap().iter().map(|peer| peer["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_acknowledged_after_the_disk_was_full_is_there_after_a_crash() {
    for signal in [Signal::KILL, Signal::TERM] {
        let Some(mut reflector) = Reflector::serve_on_a_tiny_disk(&[]) else { return };
        let filling = fill(&reflector.disk());
        for peer in [1, 2] {
            reflector.fails(&["peers", "add", &stranger(peer), "--name", "refused"], 1);
        }
        let health = reflector.fails(&["health"], 1);
        assert!(health[0].contains("faulted") && health[1].contains("full"), "{health:?}");
        fs::remove_file(filling).unwrap();
        reflector.await_log("can be written again");
        for peer in 3..6 {
            reflector.must(&["peers", "add", &stranger(peer), "--name", &format!("kept {peer}")]);
        }
        let appliance = Appliance::new().pair(&reflector, reflector.address());
        let tested = appliance.speed_test(SHORT);
        assert_eq!(tested.code, 0, "{tested:?}\n{}", reflector.log());
        reflector.await_audited("session_ended", |_| true);
        let (before, paired) = (reflector.status(), peers(&reflector));
        assert_eq!(before["state"], "serving", "{before:#}");
        assert_eq!(paired.len(), 4, "{paired:?}");
        let (peer, bytes) = (&before["sessions"]["peers"][0], before["sessions"]["bytes_today"].as_u64().unwrap());
        assert!(peer["tests_this_hour"] == 1 && bytes > 0, "{before:#}");

        reflector.end(signal);
        reflector.start().unwrap_or_else(|error| panic!("it serves again: {error:#}\n{}", reflector.log()));
        assert_eq!(peers(&reflector), paired);
        let after = reflector.status();
        assert_eq!(after["sessions"]["peers"], before["sessions"]["peers"], "{after:#}");
        assert_eq!(after["sessions"]["bytes_today"], bytes, "{after:#}");
        let verified = reflector.must(&["audit", "verify"]);
        assert!(verified.contains("whole"), "{verified}");
        let again = appliance.speed_test(SHORT);
        assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    }
}
