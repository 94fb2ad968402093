//! Tests how a run ends, and what it prints and saves: after signals, with a closed output, on terminals of any width,
//! and if it fails before it begins.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Reflector, Running, loopback};
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

/// Returns the saved runs, newest first.
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

/// Simulates a terminal of `columns` columns. Returns the lines that it shows after `text` was printed.
fn screen(text: &str, columns: usize) -> Vec<String> {
    let mut rows: Vec<Vec<char>> = vec![vec![]];
    let (mut row, mut column) = (0_usize, 0_usize);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                assert_eq!(chars.next(), Some('['), "{text:?}");
                let mut number = String::new();
                let order = chars.by_ref().find(|c| {
                    !matches!(c, '0'..='9' | ';' | '?') || {
                        number.push(*c);
                        false
                    }
                });
                let count = number.parse().unwrap_or(1).max(1);
                match order.unwrap() {
                    'A' => row = row.saturating_sub(count),
                    'B' => row += count,
                    'C' => column += count,
                    'D' => column = column.saturating_sub(count),
                    'G' => column = count - 1,
                    'K' if number == "2" => rows[row].clear(),
                    'K' => rows[row].truncate(column),
                    'J' => {
                        rows[row].truncate(column);
                        rows.truncate(row + 1);
                    }
                    'm' | 'h' | 'l' => {}
                    other => panic!("an unknown order {other:?} in {text:?}"),
                }
            }
            c => {
                // A full row wraps with the next character.
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                let at = rows.len().max(row + 1);
                rows.resize(at, vec![]);
                let line = &mut rows[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        let at = rows.len().max(row + 1);
        rows.resize(at, vec![]);
    }
    rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

/// Wraps lines as a terminal of `columns` columns shows them.
fn wrapped(lines: &str, columns: usize) -> Vec<String> {
    screen(&lines.replace('\n', "\r\n"), columns)
}

#[test]
fn on_a_terminal_of_any_width_the_report_stands_alone_and_whole() {
    let (_reflector, appliance) = pair();
    for columns in [200, 80, 40, 20, 3] {
        let test = ["speed-test", "-t", "1", "--idle", "0.6", "-b", "10M", "-P", "1", "--download", "--no-graph"];
        let command = appliance.command(&test);
        let quoted = [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_str().unwrap());
        let line = format!("stty cols {columns}; exec {}", quoted.collect::<Vec<_>>().join(" "));
        let mut terminal = Command::new("script");
        terminal.args(["-q", "-e", "-c", &line, "/dev/null"]).env_clear();
        terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let output = terminal.env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{columns}: {text:?}");
        assert!(text.contains("\u{1b}["), "{columns}: no progress was drawn: {text:?}");
        let id = history(&appliance)[0]["id"].as_str().unwrap().to_owned();
        let report = appliance.run(&["history", "show", &id]).stdout;
        let shown = screen(&text, columns);
        let expected = wrapped(&report, columns);
        assert_eq!(shown.join("\n").trim_end(), expected.join("\n").trim_end(), "{columns}: {text:?}");
    }
}

#[test]
fn an_option_without_effect_is_refused_and_named() {
    let appliance = Appliance::new();
    let echo = ["--engine", "echo"];
    let iperf3 = ["--provider", "iperf3", "--peer", "192.0.2.1"];
    let cases: &[(&[&str], &[&str])] = &[
        (&echo, &["--idle", "1"]),
        (&echo, &["-P", "2"]),
        (&echo, &["-O", "1"]),
        (&echo, &["--bidir"]),
        (&echo, &["--download"]),
        (&echo, &["--upload"]),
        (&echo, &["-b", "1M"]),
        (&echo, &["-w", "1M"]),
        (&echo, &["-l", "1000"]),
        (&echo, &["-M", "1000"]),
        (&echo, &["-C", "cubic"]),
        (&echo, &["--intervals"]),
        (&echo, &["--raw"]),
        (&echo, &["--verify-payload"]),
        (&[], &["--raw"]),
        (&["--probe-interval", "0"], &["--idle", "1"]),
        (&iperf3, &["--idle", "1"]),
        (&iperf3, &["--probe-interval", "20ms"]),
    ];
    for (with, option) in cases {
        let args = [&["speed-test"], *with, *option].concat();
        let error = appliance.fails(&args, 2, "bad_request").error;
        assert!(error.because.contains(option[0]), "{args:?}: {error:#?}");
    }
}

#[test]
fn every_failed_run_is_saved_with_its_peer_and_its_reason() {
    let (mut reflector, appliance) = pair();
    let address = reflector.address().to_owned();
    let port = loopback::closed_port();
    let refused = port.to_string();
    let denied = appliance.speed_test(&["-t", "86400", "-P", "1"]);
    assert_eq!(denied.code, 4, "{denied:?}");
    reflector.process().kill();
    let cases: [(&[&str], &str, &str); 4] = [
        (&["--peer", &refused], "unreachable", &refused),
        (&[], "unreachable", &address),
        (&["--peer", "nowhere.invalid"], "name_not_resolved", "nowhere.invalid"),
        (&["--provider", "iperf3", "--peer", &refused], "unreachable", &refused),
    ];
    for (args, code, peer) in cases {
        let outcome = appliance.speed_test(args);
        assert_eq!((outcome.code, outcome.error().error.code.as_str()), (1, code), "{args:?}: {outcome:?}");
        assert!(outcome.error().measured_so_far.is_none(), "{outcome:?}");
        let saved = &history(&appliance)[0];
        assert_eq!((&saved["complete"], &saved["error"]["code"]), (&false.into(), &code.into()), "{saved:#}");
        assert_eq!(saved["peer"], if args.is_empty() { appliance_name(&appliance) } else { peer.into() }, "{saved:#}");
        let shown = appliance.run(&["history", "show", saved["id"].as_str().unwrap()]);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&shown.stdout).contains(&words(&outcome.error().error.what)), "{shown:?}");
    }
    let saved = history(&appliance);
    assert_eq!(saved.len(), 5, "{saved:#?}");
    assert_eq!(saved[4]["error"]["code"], "too_long", "{saved:#?}");
    let csv = appliance.run(&["history", "export", "--format", "csv"]).stdout;
    let rows = csv.lines().collect::<Vec<_>>();
    assert!(rows[0].contains(",error,") && rows[1].contains(",too_long,"), "{csv}");
    let list = appliance.run(&["history"]).stdout;
    assert!(list.contains("too_long") && list.contains("name_not_resolved"), "{list}");
}

/// Returns the name under which the appliance has saved its only reflector.
fn appliance_name(appliance: &Appliance) -> Value {
    appliance.run(&["reflectors", "--json"]).json()[0]["name"].clone()
}

#[test]
fn the_options_of_iperf3_s_users_are_understood_or_refused_with_the_way() {
    let appliance = Appliance::new();
    let closed = loopback::closed_port();
    let port = closed.to_string();
    let (host, number) = port.split_once(':').unwrap();
    let iperf3 = ["speed-test", "--provider", "iperf3", "-c", host, "-p", number, "-i", "1", "-t", "1"];
    let error = appliance.fails(&iperf3, 1, "unreachable").error;
    assert!(error.what.contains(&port), "{error:#?}");
    let error = appliance.fails(&["speed-test", "-J"], 2, "bad_request").error;
    assert!(error.because.contains("--json"), "{error:#?}");
}

#[test]
fn a_link_local_address_needs_its_interface() {
    let appliance = Appliance::new();
    for args in [
        &["speed-test", "--provider", "iperf3", "--peer", "[fe80::2]"][..],
        &["pair-reflector", "--peer", "fe80::2", "--endpoint-id", &appliance.id()],
    ] {
        let error = appliance.fails(args, 2, "bad_address").error;
        assert!(error.because.contains("interface") && error.try_.contains("%eth0"), "{error:#?}");
    }
}
