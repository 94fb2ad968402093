//! How a run ends, and the trace that it leaves: signals, an output without a reader, terminals of any width, runs that
//! fail before they begin.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Reflector, Running};
use rustix::process::Signal;
use serde_json::Value;

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn pair() -> (Reflector, Appliance) {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    (reflector, appliance)
}

const LONG: [&str; 8] = ["speed-test", "--json-stream", "-t", "60", "--idle", "0.2", "-b", "10M"];

fn await_event(running: &Running, name: &str) {
    let has_it = |line: String| serde_json::from_str::<Value>(&line).unwrap()["event"] == name;
    while !has_it(running.line(PATIENCE).unwrap()) {}
}

/// The saved runs, newest first.
fn history(appliance: &Appliance) -> Vec<Value> {
    appliance.run(&["history", "--json"]).json().as_array().unwrap().clone()
}

#[test]
fn a_hangup_ends_a_test_as_a_termination_does() {
    let (reflector, appliance) = pair();
    let mut running = appliance.start(&LONG);
    await_event(&running, "interval");
    // A closing terminal sends it twice: from the kernel and from the shell. The second is no order to end at once.
    running.signal(Signal::HUP);
    running.signal(Signal::HUP);
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    let last = serde_json::from_str::<Value>(&last).unwrap();
    assert_eq!(running.wait(PATIENCE).unwrap().code(), Some(130), "{last:#}");
    assert_eq!((&last["event"], &last["interrupted"]), (&"result".into(), &true.into()), "{last:#}");
    assert_eq!(reflector.await_audited("session_ended", |_| true)["reason"], "finished");
    let saved = history(&appliance);
    assert_eq!((saved.len(), &saved[0]["id"]), (1, &last["id"]), "{saved:#?}");
}

#[test]
fn a_hangup_that_the_parent_ignores_stays_ignored() {
    let (_reflector, appliance) = pair();
    let command = appliance.command(&["speed-test", "--json-stream", "-t", "2", "--idle", "0.2", "-b", "10M"]);
    let mut ignoring = Command::new("sh");
    ignoring.args(["-c", r#"trap "" HUP; exec "$@""#, "sh"]).arg(command.get_program()).args(command.get_args());
    ignoring.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut running = Running::start(ignoring, Stdio::inherit()).unwrap();
    await_event(&running, "interval");
    running.signal(Signal::HUP);
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    assert_eq!(running.wait(PATIENCE).unwrap().code(), Some(0), "{last}");
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["complete"], true, "{last}");
}

#[test]
fn a_stream_without_a_reader_ends_the_test() {
    let (reflector, appliance) = pair();
    let mut child = appliance.command(&LONG).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    reflector.await_audited("session_granted", |_| true);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let ended = reflector.await_audited("session_ended", |_| true);
    assert_eq!(ended["reason"], "finished");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(130), ""));
    let saved = history(&appliance);
    assert_eq!((saved.len(), &saved[0]["complete"]), (1, &false.into()), "{saved:#?}");
    let run = appliance.run(&["history", "show", saved[0]["id"].as_str().unwrap(), "--json"]).json();
    assert_eq!(run["interrupted"], true, "{run:#}");
}
