//! Tests hosts that allow no more threads: each program prints this with the limit, and continues with the threads that
//! it has.

use lab::{Appliance, Reflector};

/// A user that owns no other process on the machine, because the thread limit counts all threads of a user.
const USER_OF_APPLIANCE: u32 = 64_101;
const USER_OF_REFLECTOR: u32 = 64_102;

const SHORT: [&str; 4] = ["-t", "1", "--idle", "0"];

#[test]
fn an_appliance_that_gets_no_more_threads_names_the_limit() {
    let reflector = Reflector::serve(&[("MODE", "direct_ephemeral")]);
    let paired = Appliance::new().pair(&reflector, reflector.address());
    let Some(appliance) = paired.with_few_threads(USER_OF_APPLIANCE, 25) else { return };
    for more in [&["--data-mode", "tunneled"][..], &["--data-mode", "direct", "--bidir"], &["-u"]] {
        let outcome = appliance.speed_test(&[&SHORT, more, &["-P", "64"]].concat());
        assert_eq!(outcome.code, 1, "{more:?}: {outcome:?}\n{}", reflector.log());
        let error = outcome.error().error;
        assert_eq!(error.code, "thread_limit", "{more:?}: {error:#?}");
        let because = "allows no more threads: RLIMIT_NPROC of the program's user is 25";
        assert!(error.because.contains(because), "{error:#?}");
        assert!(error.try_.contains("ulimit -u") && error.try_.contains("-P"), "{error:#?}");
    }
    let few = appliance.speed_test(&[&SHORT[..], &["-P", "2"]].concat());
    assert_eq!(few.code, 0, "{few:?}\n{}", reflector.log());
    // Too few to start with, and too few for the database.
    let mut appliance = appliance;
    for allowed in [2, 3] {
        appliance = appliance.with_few_threads(USER_OF_APPLIANCE, allowed).unwrap();
        let error = appliance.fails(&["speed-test"], 1, "thread_limit").error;
        let because = format!("RLIMIT_NPROC of the program's user is {allowed}");
        assert!(error.because.contains(&because), "{error:#?}");
    }
}

#[test]
fn a_reflector_that_gets_no_more_threads_denies_with_the_reason_and_keeps_nothing() {
    let Some(reflector) = Reflector::serve_with_few_threads(USER_OF_REFLECTOR, 25) else { return };
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for engine in ["tcp", "udp"] {
        let denied = appliance.speed_test(&[&SHORT[..], &["--engine", engine, "-P", "64", "--no-wait"]].concat());
        assert_eq!(denied.code, 5, "{engine}: {denied:?}\n{}", reflector.log());
        let error = denied.error().error;
        let because = "the reflector's host allows no more threads: RLIMIT_NPROC of the program's user is 25";
        assert!(error.because.contains(because), "{error:#?}");
    }
    assert_eq!(reflector.status()["sessions"]["sessions"], serde_json::json!([]), "{:#}", reflector.status());
    let few = appliance.speed_test(&[&SHORT[..], &["-P", "2", "--no-wait"]].concat());
    assert_eq!(few.code, 0, "{few:?}\n{}", reflector.log());
    assert!(reflector.log().contains("ulimit -u") && !reflector.log().contains("panicked"), "{}", reflector.log());
}
