//! Feeds arbitrary input to every parser and to the session rules. The short form runs the targets on the stored seeds,
//! on past crashes, and on changed copies of both; the long form runs the same targets under libFuzzer by
//! `script/fuzz`.

use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use fuzz_targets::{Mutator, TARGETS, Target, crashes, seeds};

use crate::measured::Measured;
use crate::scale::Scale;

/// How long each target is run on changed seeds in the short form. The time is short because the programs are not
/// optimised there.
const PLAYED_FOR: Duration = Duration::from_millis(300);
/// The number of inputs after which libFuzzer ends the run of a target.
const INPUTS: u64 = 2_000_000;
/// The longest run of a target under libFuzzer, in seconds.
const SECONDS: u64 = 120;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    match scale {
        Scale::Short => changed_seeds(),
        Scale::Long => under_libfuzzer(),
    }
}

fn changed_seeds() -> anyhow::Result<Measured> {
    // The start of the mutations changes each day: so the test tries something new, and a failure can be repeated on
    // the same day.
    let today = jiff::Timestamp::now().as_second().div_euclid(24 * 3600).unsigned_abs();
    let mut measured = Measured::default();
    let (mut stored, mut changed, mut failed) = (0, 0, Vec::new());
    for target in TARGETS {
        let inputs = seeds(target).into_iter().chain(crashes(target)).map(|seed| seed.bytes).collect::<Vec<_>>();
        let inputs = inputs.iter().map(Vec::as_slice).collect::<Vec<_>>();
        stored += inputs.len();
        for input in &inputs {
            failed.extend(failure(target, input));
        }
        let mut mutator = Mutator::new(today);
        let began = Instant::now();
        while failed.is_empty() && began.elapsed() < PLAYED_FOR {
            failed.extend(failure(target, &mutator.change(&inputs)));
            changed += 1;
        }
    }
    measured.note(format!("{} targets, {stored} stored inputs, {changed} changed ones", TARGETS.len()));
    measured.outcome(failed.is_empty(), format!("{} failures", failed.len()));
    for input in failed {
        measured.outcome(false, input);
    }
    Ok(measured)
}

/// Runs the target on the input. If the target fails, returns its name and the path of a file with the input.
fn failure(target: &Target, input: &[u8]) -> Option<String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).err()?;
    let file = std::env::temp_dir().join(format!("fuzz-{}-{}", target.name, std::process::id()));
    let kept = match std::fs::write(&file, input) {
        Ok(()) => file.display().to_string(),
        Err(why) => format!("not kept: {why}"),
    };
    Some(format!("{}: {kept}", target.name))
}

fn under_libfuzzer() -> anyhow::Result<Measured> {
    let nightly = Command::new("cargo").args(["+nightly", "--version"]).output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        return Ok(Measured::skipped("SKIPPED: fuzzing needs a nightly compiler"));
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../script/fuzz");
    let (inputs, seconds) = (INPUTS.to_string(), SECONDS.to_string());
    let output = Command::new(script).args(["--runs", &inputs, "--seconds", &seconds]).output().context(script)?;
    let told = String::from_utf8_lossy(&output.stdout);
    let played = told.lines().filter_map(read_line).collect::<Vec<_>>();
    let mut measured = Measured::default();
    for target in TARGETS {
        let found = played.iter().find(|(name, ..)| *name == target.name);
        let (inputs, is_well) = found.map_or((0, false), |(_, inputs, is_well)| (*inputs, *is_well));
        let text = format!("{}: {inputs} inputs{}", target.name, if is_well { "" } else { ", FAILED" });
        measured.outcome(is_well && inputs > 0, text);
    }
    measured.outcome(output.status.success(), format!("script/fuzz: {}", output.status));
    Ok(measured)
}

/// Parses a line of the output of `script/fuzz`: the target, the number of its inputs, and whether none of them crashed
/// it.
fn read_line(line: &str) -> Option<(&str, u64, bool)> {
    let (name, rest) = line.split_once(' ')?;
    let (inputs, verdict) = rest.trim().split_once(" inputs")?;
    Some((name, inputs.parse().ok()?, verdict.trim() == "no crash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_script_are_read() {
        assert_eq!(read_line("frame               2000000 inputs  no crash"), Some(("frame", 2_000_000, true)));
        assert_eq!(read_line("key_file                 17 inputs  FAILED"), Some(("key_file", 17, false)));
        assert_eq!(read_line("installing cargo-fuzz"), None);
    }
}
