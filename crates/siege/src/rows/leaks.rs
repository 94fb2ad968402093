//! Runs thousands of sessions and aborts a tenth of them: the reflector must free memory, descriptors, threads and
//! child processes.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use lab::{Appliance, Reflector};
use paramedic_link::SecretKey;
use serde_json::json;

use crate::attack::in_parallel;
use crate::measured::Measured;
use crate::observe::{descriptors, rss, threads};
use crate::scale::Scale;
use crate::target::{HOME, Target, granted, peer_of, request};

/// The number of sessions that run at the same time.
const THREADS: usize = 4;
/// The number of threads for blocking work that the runtime may keep: one for each session that can end at the same
/// time, because the end of a session waits for its probe thread. These threads do not expire, because the reflector
/// does some blocking work every second.
const KEPT_THREADS: u64 = 8;
/// The duration of a session's only phase, in milliseconds.
const PHASE_MS: u32 = 250;
/// The largest accepted growth of resident memory in ten minutes, in bytes.
const MOST: f64 = (1 << 20) as f64;
const TEN_MINUTES: f64 = 600.0;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    // The first third of the sessions fills caches and the allocator's arenas.
    let count = scale.of(4_500, 150);
    let settings = [
        ("MODE", "direct_ephemeral"),
        ("MAX_CONCURRENT_TESTS", "8"),
        ("MAX_TESTS_PER_HOUR", "1000000"),
        ("MAX_BYTES_PER_DAY", "100TB"),
        ("MAX_BYTES_PER_DAY_TOTAL", "100TB"),
    ];
    let mut reflector = Reflector::serve(&settings);
    let target = Target::of(&reflector)?;
    let keys = (0..THREADS).map(|_| peer_of(&reflector)).collect::<anyhow::Result<Vec<_>>>()?;
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let pid = reflector.process().pid();
    // The first session of each kind allocates memory that is never freed, so it runs before the first sample.
    for (number, key) in keys.iter().enumerate() {
        session(&target, key, number.is_multiple_of(2), false)?;
    }
    anyhow::ensure!(transfer(&appliance), "a plain test before the sessions failed");
    let settled = |of: &dyn Fn() -> anyhow::Result<(usize, u64)>, at_most: Option<(usize, u64)>| {
        let began = Instant::now();
        loop {
            let now = of()?;
            let is_settled = at_most.is_none_or(|most| now.0 <= most.0 && now.1 <= most.1);
            if (is_settled && began.elapsed() > Duration::from_secs(2)) || began.elapsed() > Duration::from_secs(30) {
                return anyhow::Ok(now);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let look = || Ok((descriptors(pid)?, threads(pid)?));
    let before = settled(&look, None)?;
    let (samples, began) = (Mutex::new(Vec::new()), Instant::now());
    let ended = in_parallel(THREADS, count, |number| -> anyhow::Result<()> {
        // One in ten is aborted; one in fifty is a real appliance that moves bytes.
        match number % 50 {
            49 => anyhow::ensure!(transfer(&appliance), "a plain test failed"),
            n => session(&target, &keys[number as usize % keys.len()], number % 2 == 0, n % 10 == 5)?,
        }
        if number % 10 == 0 {
            let sample = (began.elapsed().as_secs_f64(), rss(pid)? as f64);
            samples.lock().expect("no panic").push(sample);
        }
        Ok(())
    });
    let took = began.elapsed();
    let failed = ended.iter().filter_map(|ended| ended.as_ref().err()).map(|error| format!("{error:#}"));
    let failed = failed.collect::<Vec<_>>();
    let after = settled(&look, Some(before))?;
    let children = reflector.process().children().len();
    let samples = samples.into_inner().expect("no panic");
    let quarters = quarters(&samples, took.as_secs_f64());
    let later = samples.into_iter().filter(|(at, _)| *at > took.as_secs_f64() / 3.0).collect::<Vec<_>>();
    let grown = slope(&later) * TEN_MINUTES;
    let mut measured = Measured::default();
    let why = failed.first().map(|why| format!(" ({why})")).unwrap_or_default();
    measured
        .outcome(failed.is_empty(), format!("{count} sessions in {} s, {} failed{why}", took.as_secs(), failed.len()));
    let text =
        format!("memory {quarters} MiB by quarters, slope after the first third {:+.2} MiB in 10 min", grown / MOST);
    measured.time(scale, grown <= MOST, text);
    measured.outcome(after.0 <= before.0, format!("descriptors {} to {}", before.0, after.0));
    // The runtime keeps some threads for blocking work; a leak of one thread per session would show as hundreds.
    measured.outcome(after.1 <= before.1 + KEPT_THREADS, format!("threads {} to {}", before.1, after.1));
    measured.outcome(children == 0, format!("{children} children"));
    Ok(measured)
}

/// Describes the memory at the start and at the end of each quarter of the run, in MiB.
fn quarters(samples: &[(f64, f64)], took: f64) -> String {
    let near = |at: f64| {
        let apart = |sample: &&(f64, f64)| (sample.0 - at).abs();
        samples.iter().min_by(|a, b| apart(a).total_cmp(&apart(b))).map_or(0.0, |(_, bytes)| bytes / f64::from(1 << 20))
    };
    let all = (0..=4).map(|quarter| format!("{:.1}", near(took * f64::from(quarter) / 4.0))).collect::<Vec<_>>();
    all.join(", ")
}

/// Runs a normal test of a real appliance. Returns whether it succeeded; a refusal because another test of this device
/// runs counts as success.
fn transfer(appliance: &Appliance) -> bool {
    let outcome = appliance.speed_test(&["-t", "0.2", "--idle", "0.1", "-P", "2", "-b", "50M"]);
    if outcome.code != 0 && outcome.code != 5 {
        eprintln!("{outcome:?}");
    }
    outcome.code == 0 || outcome.code == 5
}

/// Runs a session from link to end, or aborts it by closing the link during the session.
fn session(target: &Target, key: &SecretKey, direct: bool, aborted: bool) -> anyhow::Result<()> {
    let mut link = target.welcomed(HOME, key)?;
    let mode = if direct { "direct_ephemeral" } else { "tunneled" };
    granted(&mut link, &request(mode, PHASE_MS))?;
    link.say(&json!({ "type": "start", "phase": 0 }))?;
    link.hear_a("started")?;
    if aborted {
        return Ok(());
    }
    link.hear_a("phase_done")?;
    link.say(&json!({ "type": "finish" }))?;
    link.hear_a("ended")?;
    Ok(())
}

/// The slope of a line through these points, by least squares; 0 for too few points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread = points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    let both = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
    if spread > 0.0 { both / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_line_is_exact() {
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]), 2.0);
        assert_eq!(slope(&[(3.0, 5.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
