//! Runs the appliance against reflectors that break the protocol. Each time, the appliance must end in time with its
//! own error, print no control characters, and need no more memory than usual.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::bad_reflectors::{Act, Asked, Honest, SPEED_TEST, Script, Stage, few_scripts, scripts};
use lab::hostile::FalseReflector;
use lab::{Appliance, Programs};

/// The extra time that a command may take on a loaded machine.
const SLACK: Duration = Duration::from_secs(12);

/// Runs scripts concurrently, `at_once` at a time, and returns their faults. Most scripts only wait.
fn play_all(plays: Vec<(Script, Asked)>, at_once: usize) -> Vec<String> {
    Programs::built();
    let (plays, faults) = (Mutex::new(plays.into_iter()), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some((script, asked)) = plays.lock().unwrap().next() else { return };
                    let played = script.play(asked);
                    faults.lock().unwrap().extend(script.fault(asked, &played, SLACK));
                }
            });
        }
    });
    faults.into_inner().unwrap()
}

#[test]
fn no_bad_reflector_blocks_or_harms_the_appliance() {
    let scripts = few_scripts();
    assert!(scripts.len() >= 40, "{} scripts", scripts.len());
    let mut plays = scripts.iter().flat_map(|script| script.asked().iter().map(|asked| (script.clone(), *asked)));
    // Alternate between JSON output and the text report.
    let mut at = 0;
    let plays = plays.by_ref().filter(|(script, asked)| {
        at += 1;
        script.stage == Stage::First || (at / 2 % 2 == 0) == (*asked == Asked::SpeedTest)
    });
    let faults = play_all(plays.collect(), 32);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_table_is_large_and_names_are_unique() {
    let scripts = scripts();
    let names = scripts.iter().map(|script| &script.name).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names.len(), scripts.len());
    assert!(scripts.len() >= 200, "{}", scripts.len());
}

#[test]
fn a_test_that_waits_for_the_end_of_its_direct_session_can_be_interrupted() {
    let (tell, heard) = channel();
    let tell = Mutex::new(tell);
    let reflector = FalseReflector::listen(move |link, first| {
        let mut honest = Honest::with_closed_port();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            if message["type"] == "finish" {
                let _ = tell.lock().unwrap().send(());
                return Ok(());
            }
            honest.answer(link, &message)?;
            next = link.hear()?;
        }
        Ok(())
    });
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    assert_eq!(appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]).code, 0);
    let patience = Duration::from_secs(60);
    let mut waiting = appliance.start(&[SPEED_TEST, &["--json"]].concat());
    heard.recv_timeout(patience).unwrap();
    waiting.signal(rustix::process::Signal::TERM);
    let said = waiting.rest(patience).unwrap().concat();
    assert_eq!(waiting.wait(patience).unwrap().code(), Some(130), "{said}");
}

#[test]
fn a_correct_reflector_on_the_same_test_bed_is_measured() {
    let script = Script {
        name: "honest".to_owned(),
        stage: Stage::First,
        act: Act::Silence,
        more: &[],
        within: Duration::from_secs(10),
        exit: Some(0),
    };
    // Never armed, so the reflector follows the protocol.
    let reflector = script.reflector(Arc::new(AtomicBool::new(false)));
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    let paired = appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]);
    assert_eq!(paired.code, 0, "{paired:?}");
    let outcome = appliance.run(&[SPEED_TEST, &["--json"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let goodput = outcome.result().upload.unwrap().goodput_bps;
    assert_eq!(goodput, 400_000, "5,000 bytes each 100 ms");
}
