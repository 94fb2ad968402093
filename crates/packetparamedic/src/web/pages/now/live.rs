//! A running test on the first page. The script updates the view of the test. Without JavaScript, the browser loads the
//! page again.

use jiff::Timestamp;
use paramedic_link::test_spec::Load;
use paramedic_report::quantity;

use super::super::super::live_runs::{LiveRun, LiveStage};
use super::super::outside_text::shown;

/// A running test as the first page shows it.
pub(in super::super) struct LiveView {
    pub(in super::super) id: String,
    pub(in super::super) title: String,
    pub(in super::super) stage: String,
    /// The progress of the test: the elapsed time and the duration of all phases, in milliseconds. `None` before the
    /// test measures.
    pub(in super::super) progress: Option<(u64, u64)>,
    pub(in super::super) download: Option<String>,
    pub(in super::super) upload: Option<String>,
    pub(in super::super) latency: Option<String>,
}

impl LiveView {
    /// Builds the view of a running test at `now`.
    pub(super) fn of(run: &LiveRun, now: Timestamp) -> Self {
        let title = match &run.schedule {
            Some(schedule) => format!("A test of the schedule {}", shown(schedule)),
            None => "A test".to_owned(),
        };
        Self {
            id: run.id.to_string(),
            title,
            stage: stage(run),
            progress: progress(run, now),
            download: run.download_bps.map(quantity::rate),
            upload: run.upload_bps.map(quantity::rate),
            latency: run.rtt_us.map(quantity::micros),
        }
    }
}

fn stage(run: &LiveRun) -> String {
    match run.stage {
        LiveStage::Prepares => "It begins.".to_owned(),
        LiveStage::WaitsForDevice => "Another test runs on this device; this one waits for its end.".to_owned(),
        LiveStage::Queued { place, expected_wait_ms } => {
            // Rounded as in the script, so that the first event does not change the text.
            let seconds = expected_wait_ms.saturating_add(500) / 1000;
            format!("Place {place} in the queue of the reflector; about {seconds} s to wait.")
        }
        LiveStage::Measures { load, .. } => match load {
            Load::Idle => "Measures the latency without load.".to_owned(),
            Load::Download => "Measures the download.".to_owned(),
            Load::Upload => "Measures the upload.".to_owned(),
            Load::Bidir => "Measures both directions at once.".to_owned(),
            Load::Unknown => "Measures.".to_owned(),
        },
    }
}

fn progress(run: &LiveRun, now: Timestamp) -> Option<(u64, u64)> {
    let LiveStage::Measures { load, since, duration_ms } = run.stage else { return None };
    let all = run.phases.iter().map(|phase| phase.duration_ms).sum::<u64>().max(duration_ms);
    let before = run.phases.iter().take_while(|phase| phase.phase != load).map(|phase| phase.duration_ms).sum::<u64>();
    let within = u64::try_from(now.duration_since(since).as_millis()).unwrap_or_default().min(duration_ms);
    Some(((before + within).min(all), all))
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::PhaseBegun;

    use super::*;

    #[test]
    fn the_progress_counts_the_phases_before() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let phase = |phase, duration_ms| PhaseBegun { phase, duration_ms };
        let run = |stage| LiveRun {
            id: uuid::Uuid::nil(),
            schedule: None,
            since: at(0),
            stage,
            phases: vec![phase(Load::Idle, 3000), phase(Load::Download, 10_000), phase(Load::Upload, 10_000)],
            download_bps: None,
            upload_bps: None,
            rtt_us: None,
        };
        let measures = LiveStage::Measures { load: Load::Download, since: at(10), duration_ms: 10_000 };
        assert_eq!(progress(&run(measures), at(14)), Some((7000, 23_000)));
        assert_eq!(progress(&run(measures), at(99)), Some((13_000, 23_000)));
        assert_eq!(progress(&run(measures), at(0)), Some((3000, 23_000)));
        let queued = LiveStage::Queued { place: 2, expected_wait_ms: 33_600 };
        assert_eq!(progress(&run(queued), at(14)), None);
        assert_eq!(stage(&run(queued)), "Place 2 in the queue of the reflector; about 34 s to wait.");
    }
}
