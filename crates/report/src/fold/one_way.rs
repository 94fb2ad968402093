//! Computes the delay of each direction and the queue under load from the probes of the whole run. Pure: no I/O, no
//! clock.

use std::time::Duration;

use paramedic_link::test_spec::{Direction, Load};

use super::ProbeLog;
use crate::document::{
    ByLoad, ClockComparison, ClockJumpSeen, DelayVariation, OneWayDelays, QueueByDirection, QueueSide, ResultDocument,
    Warning,
};
use crate::quantity;
use crate::stats::{self, ClockFit, DelaySpread, OneWayDelay, PathChange, QueueEstimate, StandingQueue};

/// The measured part of a phase, in time of the prober's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseWindow {
    pub(super) load: Load,
    /// When the phase began, start-up included. The measured part begins at `from`, which is this time or later.
    pub(super) begun: Duration,
    pub(super) from: Duration,
    pub(super) until: Duration,
}

/// How the clocks of both ends compare, until which time of the run the comparison is valid, and whether the path
/// changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownClocks {
    pub(super) fit: ClockFit,
    pub(super) until: Duration,
    changed_path: Option<ChangedPath>,
}

/// A lasting change of the path's delay in one direction, found in a phase that did not load this direction.
#[derive(Clone, Copy, Debug)]
struct ChangedPath {
    load: Load,
    direction: Direction,
    change: PathChange,
}

impl KnownClocks {
    /// Whether the path in the phase of `window` is still the path whose idle latency was measured.
    pub(super) fn has_same_path(&self, window: &PhaseWindow) -> bool {
        self.changed_path.is_none_or(|changed| window.until <= changed.change.at)
    }
}

/// Adds the one-way delay of each direction to every phase that has a latency, and the delay in queues to every phase
/// that has a load. Returns how the clocks of both ends compare; `None` if the idle phase does not show that.
pub(super) fn add(result: &mut ResultDocument, windows: &[PhaseWindow], probes: &ProbeLog<'_>) -> Option<KnownClocks> {
    let delays_within = |from, until| {
        let within = (probes.within)(from, until);
        within.filter_map(|probe| OneWayDelay::of(&probe)).collect::<Vec<_>>()
    };
    let phases = windows.iter().map(|window| (*window, delays_within(window.from, window.until))).collect::<Vec<_>>();
    let jump = phases.iter().find_map(|(window, delays)| Some((window.load, stats::clock_jump(delays)?)));
    let until = jump.map_or(Duration::MAX, |(_, jump)| jump.at);
    let own_waits = own_waits(result, windows, probes);
    let idle = windows.iter().find(|window| window.load == Load::Idle)?;
    let idle_delays = delays_within(idle.from, idle.until.min(until));
    let fit = stats::clock_fit(&idle_delays, &delays_within(Duration::ZERO, until))?;
    let moved_at = fit.moved_at.unwrap_or(until);
    let seen = match (fit.moved_at, jump) {
        (None, None) => None,
        (None, Some((load, jump))) => {
            Some(ClockJumpSeen { phase: Some(load), moved_us: Some(jump.moved_us.round() as i64) })
        }
        (Some(at), _) => {
            let phase = windows.iter().find(|window| (window.from..window.until).contains(&at));
            Some(ClockJumpSeen { phase: phase.map(|window| window.load), moved_us: None })
        }
    };
    if let Some(seen) = seen {
        result.warnings.push(Warning::new("clock_jump", described(seen)));
    }
    let (offset_us, offset_uncertainty_us) = fit.offset_us();
    let tenths = |value: f64| (value * 10.0).round() / 10.0;
    result.clocks = Some(ClockComparison {
        skew_ppm: tenths(fit.skew_ppm),
        skew_uncertainty_ppm: tenths(fit.skew_uncertainty_ppm),
        // Casts from f64 saturate.
        offset_us: offset_us.round() as i64,
        offset_uncertainty_us: offset_uncertainty_us.round() as u64,
        jump: seen,
    });
    let known =
        KnownClocks { fit, until: moved_at, changed_path: changed_path(&fit, windows, moved_at, delays_within) };
    if let Some(changed) = &known.changed_path {
        result.warnings.push(Warning::new("path_changed", described_change(changed)));
    }
    let spread_of =
        |window: &PhaseWindow, delays: &[OneWayDelay]| fit.delays(delays).filter(|_| moved_at >= window.until);
    let idle_spread = spread_of(idle, &idle_delays);
    for (window, delays) in &phases {
        let Some(mut latency) = result.latency.of(window.load).cloned() else { continue };
        let spread = spread_of(window, delays).filter(|_| idle_spread.is_some());
        latency.one_way = spread
            .map(|[upload, download]| OneWayDelays { upload: variation(&upload), download: variation(&download) });
        // The conditions are the same as for a bufferbloat grade.
        if result.has_load(window.load) && latency.median_us().is_some() {
            latency.queue = Some(match (&idle_spread, &spread) {
                (Some(idle), Some(loaded)) if known.has_same_path(window) => QueueByDirection {
                    own_ms: own_waits.of(window.load).zip(own_waits.of(Load::Idle)).and_then(|(loaded, idle)| {
                        let rise_us = loaded.p50_us.saturating_sub(idle.p50_us);
                        millis(rise_us as f64)
                    }),
                    ..queue(&fit.queue(idle, loaded, delays))
                },
                _ => QueueByDirection::UNKNOWN,
            });
        }
        result.latency.set(window.load, latency);
    }
    Some(known)
}

/// Finds the first change of the path, in phases that end before a clock jumped (`until`). A phase that loads both
/// directions does not show a change. The start-up of a phase counts here, because it may have lasted until the change.
fn changed_path(
    fit: &ClockFit,
    windows: &[PhaseWindow],
    until: Duration,
    delays_within: impl Fn(Duration, Duration) -> Vec<OneWayDelay>,
) -> Option<ChangedPath> {
    let of = |window: &PhaseWindow| {
        let delays = delays_within(window.begun, window.until);
        let unloaded: &[Direction] = match window.load {
            Load::Idle => &Direction::BOTH,
            Load::Download => &[Direction::Upload],
            Load::Upload => &[Direction::Download],
            Load::Bidir | Load::Unknown => &[],
        };
        let mut changes =
            unloaded.iter().filter_map(|direction| Some((*direction, fit.path_change(&delays, *direction)?)));
        let (direction, change) = changes.next().filter(|_| window.until <= until)?;
        Some(ChangedPath { load: window.load, direction, change })
    };
    windows.iter().find_map(of)
}

/// Sets `own_wait` of each phase: how long its probes waited in the appliance's host. Returns these values. A phase
/// with fewer than 20 known waits has no value.
fn own_waits(result: &mut ResultDocument, windows: &[PhaseWindow], probes: &ProbeLog<'_>) -> ByLoad<DelayVariation> {
    let mut own_waits = ByLoad::default();
    for window in windows {
        let waits = (probes.within)(window.from, window.until).filter_map(|probe| probe.own_wait_us.map(f64::from));
        let (Some(spread), Some(mut latency)) =
            (DelaySpread::of(waits.collect()), result.latency.of(window.load).cloned())
        else {
            continue;
        };
        let waits = variation(&spread);
        latency.own_wait = Some(waits);
        result.latency.set(window.load, latency);
        own_waits.set(window.load, waits);
    }
    own_waits
}

fn described(jump: ClockJumpSeen) -> String {
    let by = jump.moved_us.map(|us| format!(" by {}", quantity::micros(us.unsigned_abs())));
    let when = jump.phase.map_or_else(|| "between two phases".to_owned(), |load| format!("in the {load} phase"));
    format!(
        "the clocks of this device and the reflector moved against each other{} {when}: from there on the delays of each \
         direction are not known; round trips are not affected",
        by.unwrap_or_default()
    )
}

fn described_change(ChangedPath { load, direction, change }: &ChangedPath) -> String {
    let way = match direction {
        Direction::Upload => "to the reflector",
        Direction::Download => "from the reflector",
    };
    // A cast from f64 saturates.
    let by = quantity::micros(change.by_us.abs() as u64);
    let rose = if change.by_us > 0.0 { "rose" } else { "fell" };
    format!(
        "in the {load} phase the delay {way} {rose} by {by} and did not return, although this test does not load that \
         direction: the route changed, or other traffic began; from there on, how much the load delays packets is not known"
    )
}

fn variation(spread: &DelaySpread) -> DelayVariation {
    let whole = |us: f64| us.round() as u64;
    DelayVariation {
        p50_us: whole(spread.p50_us),
        p95_us: spread.p95_us.map(whole),
        p99_us: spread.p99_us.map(whole),
        max_us: whole(spread.max_us),
    }
}

fn queue(estimate: &QueueEstimate) -> QueueByDirection {
    QueueByDirection {
        own_ms: None,
        stands: match estimate.stands {
            StandingQueue::Upload => QueueSide::Upload,
            StandingQueue::Download => QueueSide::Download,
            StandingQueue::Both => QueueSide::Both,
            StandingQueue::None => QueueSide::None,
            StandingQueue::Unknown => QueueSide::Unknown,
        },
        upload_ms: millis(estimate.upload_us),
        download_ms: millis(estimate.download_us),
        uncertainty_ms: millis(estimate.uncertainty_us),
    }
}

/// Converts microseconds to milliseconds, rounded to a tenth, because finer digits would not be accurate.
fn millis(us: f64) -> Option<f64> {
    Some((us / 100.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::Probe;

    use super::*;
    use crate::document::{ProbeTransport, example};

    /// One probe every 10 ms for 20 s: idle until 5 s, a download from 6 to 12 s, an upload from 13 to 20 s. The
    /// reflector's clock runs 100 ppm fast, and jumps at `jump_s`. The queue is 40 ms in the download, 90 ms in the
    /// upload.
    fn probes(jump_s: Option<f64>) -> Vec<Probe> {
        probes_on(jump_s, |_| [0.0; 2])
    }

    /// The same probes as [`probes`], with further delays. `further_us` takes a time in seconds and returns the further
    /// delays of the upload and the download, in microseconds.
    fn probes_on(jump_s: Option<f64>, further_us: impl Fn(f64) -> [f64; 2]) -> Vec<Probe> {
        let probe = |at: u32| {
            let second = f64::from(at) / 100.0;
            let noise_us = f64::from(at * 7919 % 97);
            let [up_us, down_us] = further_us(second);
            let down_us = down_us + 4_000.0 + noise_us + if (6.0..12.0).contains(&second) { 40_000.0 } else { 0.0 };
            let up_us = up_us + 9_000.0 + noise_us + if (13.0..20.0).contains(&second) { 90_000.0 } else { 0.0 };
            let jumped_us = if jump_s.is_some_and(|at| second >= at) { 70_000.0 } else { 0.0 };
            Probe {
                sent_at: Duration::from_millis(u64::from(at) * 10),
                late_us: 0,
                rtt_us: Some((up_us + down_us) as u32),
                arrived: Some(true),
                turnaround_us: 0,
                own_wait_us: Some(if (13.0..20.0).contains(&second) { 88_000 } else { 15 }),
                upload_us: Some((up_us + 1e6 + second * 100.0 + jumped_us) as i64),
                late: false,
            }
        };
        (0..2_000).map(probe).collect()
    }

    fn folded(probes: &[Probe]) -> ResultDocument {
        let within = |from: Duration, until: Duration| -> super::super::ProbeWindow<'_> {
            Box::new(probes.iter().copied().filter(move |probe| (from..until).contains(&probe.sent_at)))
        };
        let log = ProbeLog {
            transport: Some(ProbeTransport::Udp),
            duplicates: 0,
            bytes: 0,
            packet_bits: 992,
            within: Box::new(within),
            skipped_within: Box::new(|_, _| vec![]),
        };
        let window = |load, from: u64, until| PhaseWindow {
            load,
            begun: Duration::from_secs(from.saturating_sub(1)),
            from: Duration::from_secs(from),
            until: Duration::from_secs(until),
        };
        let windows = [window(Load::Idle, 1, 5), window(Load::Download, 7, 12), window(Load::Upload, 14, 20)];
        let mut result = example::full();
        (result.clocks, result.warnings) = (None, vec![]);
        for latency in [&mut result.latency.idle, &mut result.latency.download, &mut result.latency.upload] {
            let latency = latency.as_mut().unwrap();
            (latency.one_way, latency.queue) = (None, None);
        }
        add(&mut result, &windows, &log);
        result
    }

    #[test]
    fn each_load_has_the_queue_of_its_direction() {
        let result = folded(&probes(None));
        let queue = |load| result.latency.of(load).unwrap().queue;
        let [download, upload] = [Load::Download, Load::Upload].map(|load| queue(load).unwrap());
        assert_eq!((download.stands, upload.stands), (QueueSide::Download, QueueSide::Upload));
        assert!((download.download_ms.unwrap() - 40.0).abs() < 0.5 && download.upload_ms < Some(0.5), "{download:?}");
        assert!((upload.upload_ms.unwrap() - 90.0).abs() < 0.5 && upload.download_ms < Some(0.5), "{upload:?}");
        assert_eq!(queue(Load::Idle), None);
        assert_eq!((download.own_ms, upload.own_ms), (Some(0.0), Some(88.0)));
        assert_eq!((download.is_own(), upload.is_own()), (false, true));
        assert_eq!(result.latency.upload.as_ref().unwrap().own_wait.unwrap().p50_us, 88_000);
        assert!(result.latency.of(Load::Idle).unwrap().one_way.unwrap().upload.p99_us.unwrap() < 200);
        let clocks = result.clocks.unwrap();
        assert!((clocks.skew_ppm - 100.0).abs() < 5.0 && clocks.jump.is_none(), "{clocks:?}");
        assert!(result.warnings.is_empty());
    }

    #[test]
    fn a_jump_of_a_clock_takes_the_delays_of_its_phase_and_of_later_ones_only() {
        for (jump_s, phase) in [(9.0, Some(Load::Download)), (16.0, Some(Load::Upload)), (12.5, None)] {
            let result = folded(&probes(Some(jump_s)));
            let seen = result.clocks.unwrap().jump.unwrap();
            assert_eq!(seen.phase, phase, "{jump_s}");
            if let Some(us) = seen.moved_us {
                assert!((us - 70_000).abs() < 500, "{jump_s}: {us}");
            }
            let has_delays = |load| result.latency.of(load).unwrap().one_way.is_some();
            assert!(has_delays(Load::Idle));
            assert_eq!((has_delays(Load::Download), has_delays(Load::Upload)), (jump_s > 12.0, false), "{jump_s}");
            assert_eq!(result.latency.upload.as_ref().unwrap().queue, Some(QueueByDirection::UNKNOWN));
            assert!(result.latency.upload.as_ref().unwrap().rtt_us.is_some(), "round trips stay");
            assert_eq!(result.warnings.len(), 1);
            assert!(result.warnings[0].text.contains("round trips are not affected"), "{:?}", result.warnings);
        }
    }

    #[test]
    fn a_path_that_changes_in_mid_phase_is_named_and_its_delay_is_no_queue() {
        for (second, phase, way, sides) in [
            (3.0, "idle", "from the reflector", [QueueSide::Unknown, QueueSide::Unknown]),
            (9.0, "download", "to the reflector", [QueueSide::Unknown, QueueSide::Unknown]),
            (17.0, "upload", "from the reflector", [QueueSide::Download, QueueSide::Unknown]),
        ] {
            let longer = |at: f64| if at >= second { [30_000.0, 20_000.0] } else { [0.0; 2] };
            let result = folded(&probes_on(None, longer));
            let stands = |load| result.latency.of(load).unwrap().queue.unwrap().stands;
            assert_eq!([stands(Load::Download), stands(Load::Upload)], sides, "{phase}");
            assert_eq!(result.warnings.len(), 1, "{phase}: {:?}", result.warnings);
            let Warning { code, text } = &result.warnings[0];
            assert_eq!(code, "path_changed");
            assert!(text.starts_with(&format!("in the {phase} phase the delay {way} rose by ")), "{text}");
            assert!(result.clocks.unwrap().jump.is_none(), "{phase}");
        }
    }
}
