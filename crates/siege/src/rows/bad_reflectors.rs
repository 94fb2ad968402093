//! Reflectors that break the protocol, against the real appliance: it must end in time with its own error, print no control
//! characters, and need no more memory than usual.

use std::time::Duration;

use lab::bad_reflectors::{Asked, Script, scripts};

use crate::attack::in_parallel;
use crate::measured::Measured;
use crate::scale::Scale;

/// The number of scripted false reflectors that run at the same time. Most of them only wait.
const AT_ONCE: usize = 32;
/// The time that a command may take beyond its normal limit, because the machine may be loaded.
const SLACK: Duration = Duration::from_secs(12);
/// The short form of the siege runs one script in this many.
const ONE_OF: usize = 10;
/// The short form of the siege omits scripts that may take longer than this, because they make the appliance wait in a
/// queue.
const LONGEST_SHORT: Duration = Duration::from_secs(20);

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let scripts = scripts();
    let is_played =
        |(at, script): &(usize, &Script)| scale == Scale::Long || (at % ONE_OF == 0 && script.within < LONGEST_SHORT);
    let plays =
        scripts.iter().enumerate().filter(is_played).flat_map(|(_, script)| asked(scale, script)).collect::<Vec<_>>();
    let count = u32::try_from(plays.len())?;
    let played = in_parallel(AT_ONCE, count, |number| {
        let (script, asked) = plays[number as usize];
        let played = script.play(asked);
        (script.fault(asked, &played, SLACK), played.outcome.stderr.contains("panicked"))
    });
    let faults = played.iter().filter_map(|(fault, _)| fault.as_deref()).collect::<Vec<_>>();
    let panics = played.iter().filter(|(_, has_panicked)| *has_panicked).count();
    let which = if faults.is_empty() { String::new() } else { format!(" ({})", faults.join(" | ")) };
    let mut measured = Measured::default();
    measured.note(format!(
        "{} of {} scripts, {count} commands",
        scripts.iter().enumerate().filter(is_played).count(),
        scripts.len()
    ));
    measured.outcome(panics == 0, format!("{panics} panics"));
    measured.outcome(faults.is_empty(), format!("{} faults of time, memory, output or exit code{which}", faults.len()));
    Ok(measured)
}

/// Returns the appliance commands to run against a scripted reflector: all of them, or only the first in the short
/// form.
fn asked(scale: Scale, script: &Script) -> impl Iterator<Item = (&Script, Asked)> {
    let all = script.asked();
    all.iter().take(scale.of(all.len(), 1)).map(move |asked| (script, *asked))
}
