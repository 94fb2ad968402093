//! Tests the plots of a result: in a file, of a saved run, and as lines of bars on a terminal.

use std::fs;
use std::process::{Command, Stdio};

use lab::{Appliance, Outcome, Reflector};

const SHORT: [&str; 7] = ["speed-test", "-t", "1", "--idle", "1", "-b", "20M"];

/// Runs a command of the appliance on a terminal; `None` if the program `script` is not installed.
fn on_a_terminal(appliance: &Appliance, args: &[&str]) -> Option<Outcome> {
    let plain = appliance.command(args);
    let words = std::iter::once(plain.get_program()).chain(plain.get_args());
    let line = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    match command.output() {
        Ok(output) => Some(output.into()),
        Err(_) => {
            eprintln!("SKIPPED: no terminal without script(1)");
            None
        }
    }
}

#[test]
fn a_run_can_be_plotted_when_it_ends_and_later_and_a_terminal_shows_its_phases() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let file = appliance.state().with_file_name("plot.svg");
    let path = file.to_str().unwrap();

    let outcome = appliance.run(&[&SHORT[..], &["--plot", path]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!outcome.stdout.contains("Over time"), "stdout is no terminal: {outcome:?}");
    let plot = fs::read_to_string(&file).unwrap();
    for part in
        ["<svg ", "</svg>", "throughput (Mbit/s)", "latency (ms)", "curve download\" d=", "curve round-trip\" d="]
    {
        assert!(plot.contains(part), "{part}: {plot}");
    }
    let run = appliance.run(&["history", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(appliance.run(&["history", "plot", &run]).stdout, plot);
    fs::remove_file(&file).unwrap();
    assert_eq!(appliance.run(&["history", "plot", &run, path]).code, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), plot);

    // Found before the test begins, and nothing is left behind.
    appliance.fails(&[&SHORT[..], &["--plot", "/nowhere/plot.svg"]].concat(), 2, "cannot_write_plot");
    let shown = on_a_terminal(&appliance, &SHORT);
    for bars in shown.iter() {
        assert_eq!(bars.code, 0, "{bars:?}");
        assert!(bars.stdout.contains("Over time") && bars.stdout.contains('█'), "{bars:?}");
    }
    let without = on_a_terminal(&appliance, &[&SHORT[..], &["--no-graph"]].concat());
    assert!(without.is_none_or(|plain| plain.code == 0 && !plain.stdout.contains("Over time")));

    assert_eq!(appliance.run(&SHORT).code, 0);
    let newest = appliance.run(&["history", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    let missing = appliance.fails(&["history", "plot", &newest], 1, "no_intervals");
    assert!(missing.error.try_.contains("--plot"), "{missing:?}");
    let unwritten = appliance.state().with_file_name("other.svg");
    assert_eq!(appliance.run(&["history", "plot", &newest, unwritten.to_str().unwrap()]).code, 1);
    assert!(!unwritten.exists());
}
