use proptest::prelude::*;

use super::*;

/// A generator of reproducible random numbers.
struct Random(u64);

impl Random {
    /// The next random number, from 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn within(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.next()
    }

    /// A random delay with the mean `mean`, exponentially distributed: never below 0, sometimes far above the mean.
    fn delay(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.next()).ln()
    }
}

/// A simulated path between two clocks. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
struct Path {
    upload_us: f64,
    download_us: f64,
    /// The mean of the random delay in each direction, in microseconds.
    jitter_us: f64,
    offset_us: f64,
    skew_ppm: f64,
    /// A jump of the reflector's clock: when it jumps, in seconds, and how far, in microseconds.
    jump: Option<(f64, f64)>,
}

const PATH: Path =
    Path { upload_us: 6_000.0, download_us: 6_000.0, jitter_us: 50.0, offset_us: 7.3e6, skew_ppm: 0.0, jump: None };

/// The start and the end of the idle phase, in seconds. The two constants below are the start and the end of the loaded
/// phases.
const IDLE: (f64, f64) = (2.0, 4.0);
const DOWNLOAD: (f64, f64) = (6.0, 14.0);
const UPLOAD: (f64, f64) = (16.0, 24.0);

impl Path {
    /// The probes from the start of the idle phase to the end of the upload phase. `queue` takes a time in seconds and
    /// returns the delay by queues in the upload and the download direction, in microseconds.
    fn probes(&self, random: &mut Random, queue: impl Fn(f64) -> [f64; 2]) -> Vec<OneWayDelay> {
        let times = (0..2_200).map(|at| IDLE.0 + f64::from(at) / 100.0);
        let probe = |second: f64| {
            let [queued_up, queued_down] = queue(second);
            let offset = |second: f64| {
                let jumped = self.jump.filter(|(at, _)| second >= *at).map_or(0.0, |(_, by)| by);
                self.offset_us + second * self.skew_ppm + jumped
            };
            let up = self.upload_us + random.delay(self.jitter_us) + queued_up;
            let down = self.download_us + random.delay(self.jitter_us) + queued_down;
            let arrived = second + up / 1e6;
            let (upload_us, download_us) = (up + offset(arrived), down - offset(arrived));
            OneWayDelay { at_us: second * 1e6, upload_us: upload_us.round(), download_us: download_us.round() }
        };
        times.map(probe).collect()
    }
}

fn part(run: &[OneWayDelay], (from, to): (f64, f64)) -> &[OneWayDelay] {
    let at = |second: f64| run.partition_point(|probe| probe.at_us < second * 1e6);
    &run[at(from)..at(to)]
}

/// The depth of a queue at the time `second`: a load from `from` to `to` fills the queue to `depth_us` within half a
/// second.
fn filled(second: f64, (from, to): (f64, f64), depth_us: f64) -> f64 {
    if (from..to).contains(&second) { depth_us * ((second - from) * 2.0).min(1.0) } else { 0.0 }
}

fn estimate(fit: &ClockFit, run: &[OneWayDelay], phase: (f64, f64)) -> QueueEstimate {
    // The steady part of the phase.
    let loaded = part(run, (phase.0 + 1.0, phase.1));
    fit.queue(&fit.delays(part(run, IDLE)).unwrap(), &fit.delays(loaded).unwrap(), loaded)
}

#[test]
fn the_skew_is_found_from_both_sides() {
    let mut random = Random(1);
    for skew_ppm in [-200.0, -37.0, 0.0, 50.0, 200.0] {
        for jitter_us in [10.0, 500.0, 5_000.0] {
            let path = Path { skew_ppm, jitter_us, ..PATH };
            let run = path
                .probes(&mut random, |second| [filled(second, UPLOAD, 120_000.0), filled(second, DOWNLOAD, 80_000.0)]);
            let fit = clock_fit(part(&run, IDLE), &run).unwrap();
            let off = (fit.skew_ppm - skew_ppm).abs();
            assert!(off <= 3.0 + jitter_us / 50.0, "{skew_ppm} ppm, jitter {jitter_us}: {fit:?}");
            assert!(off <= fit.skew_uncertainty_ppm + 3.0 + jitter_us / 100.0, "{skew_ppm} ppm, {jitter_us}: {fit:?}");
            assert_eq!(fit.moved_at, None, "{fit:?}");
            let (offset_us, uncertain_us) = fit.offset_us();
            assert!((offset_us - (7.3e6 + 3.0 * skew_ppm)).abs() <= uncertain_us, "{fit:?}");
        }
    }
}

#[test]
fn the_direction_of_the_queue_is_right_with_any_base_delay_jitter_rate_and_skew() {
    let mut random = Random(7);
    let mut right = 0;
    for seed in 0..40 {
        let path = Path {
            upload_us: random.within(100.0, 150_000.0),
            download_us: random.within(100.0, 150_000.0),
            jitter_us: random.within(10.0, 4_000.0),
            offset_us: random.within(-1e9, 1e9),
            skew_ppm: random.within(-200.0, 200.0),
            jump: None,
        };
        // A queue that fills and drains, as under a single TCP stream.
        let (depth_us, sawtooth) = (random.within(8_000.0, 400_000.0), random.within(0.0, 0.4));
        let swing = |second: f64| 1.0 - sawtooth * (second % 1.7) / 1.7;
        let is_upload = random.next() < 0.5;
        let phase = if random.next() < 0.5 { DOWNLOAD } else { UPLOAD };
        let run = path.probes(&mut random, |second| {
            let queued = filled(second, phase, depth_us) * swing(second);
            if is_upload { [queued, 0.0] } else { [0.0, queued] }
        });
        let fit = clock_fit(part(&run, IDLE), &run).unwrap();
        assert_eq!((fit.moved_at, clock_jump(part(&run, phase))), (None, None), "{seed}: {path:?}");
        let estimate = estimate(&fit, &run, phase);
        let truth = if is_upload { StandingQueue::Upload } else { StandingQueue::Download };
        assert_eq!(estimate.stands, truth, "{seed}: {path:?}, {depth_us}: {fit:?} {estimate:?}");
        right += 1;
    }
    assert_eq!(right, 40);
}

#[test]
fn the_depth_of_the_queue_is_within_two_milliseconds_of_the_truth() {
    let mut random = Random(3);
    let path = Path { upload_us: 40_000.0, download_us: 3_000.0, jitter_us: 800.0, skew_ppm: 120.0, ..PATH };
    let run = path.probes(&mut random, |second| [filled(second, UPLOAD, 60_000.0), filled(second, DOWNLOAD, 25_000.0)]);
    let fit = clock_fit(part(&run, IDLE), &run).unwrap();
    for (phase, upload_us, download_us) in [(DOWNLOAD, 0.0, 25_000.0), (UPLOAD, 60_000.0, 0.0)] {
        let estimate = estimate(&fit, &run, phase);
        assert!((estimate.upload_us - upload_us).abs() < 2_000.0, "{estimate:?}");
        assert!((estimate.download_us - download_us).abs() < 2_000.0, "{estimate:?}");
    }
}

#[test]
fn queues_in_both_directions_and_in_none_are_named() {
    let mut random = Random(5);
    let run = PATH.probes(&mut random, |second| {
        [filled(second, DOWNLOAD, 30_000.0) + filled(second, UPLOAD, 900.0), filled(second, DOWNLOAD, 80_000.0)]
    });
    let fit = clock_fit(part(&run, IDLE), &run).unwrap();
    assert_eq!(estimate(&fit, &run, DOWNLOAD).stands, StandingQueue::Both);
    assert_eq!(estimate(&fit, &run, UPLOAD).stands, StandingQueue::None);
}

#[test]
fn a_queue_below_the_uncertainty_is_unknown() {
    let mut random = Random(5);
    let path = Path { jitter_us: 20_000.0, ..PATH };
    let run = path.probes(&mut random, |second| [0.0, filled(second, UPLOAD, 4_000.0)]);
    let fit = clock_fit(part(&run, IDLE), &run).unwrap();
    let idle = part(&run, IDLE);
    let few = part(&run, (UPLOAD.0 + 1.0, UPLOAD.0 + 1.4));
    let estimate = fit.queue(&fit.delays(idle).unwrap(), &fit.delays(few).unwrap(), few);
    assert!(estimate.uncertainty_us > 4_000.0, "{estimate:?}");
    assert!(matches!(estimate.stands, StandingQueue::Unknown | StandingQueue::None), "{estimate:?}");
}

#[test]
fn a_jump_in_mid_phase_is_found_and_measured_also_behind_a_queue() {
    let mut random = Random(9);
    for by_us in [-900_000.0, -50_000.0, -5_000.0, 5_000.0, 50_000.0, 2_000_000.0] {
        let path = Path { jitter_us: 300.0, skew_ppm: 80.0, jump: Some((20.0, by_us)), ..PATH };
        let run = path.probes(&mut random, |second| [filled(second, UPLOAD, 100_000.0), 0.0]);
        let jump = clock_jump(part(&run, UPLOAD)).unwrap();
        assert!((jump.moved_us - by_us).abs() < 1_000.0, "{by_us}: {jump:?}");
        // The first probe after the jump may have been in flight at the jump, or be the next one sent.
        assert!((jump.at.as_secs_f64() - 20.0).abs() < 0.13, "{by_us}: {jump:?}");
        assert_eq!(clock_jump(part(&run, DOWNLOAD)), None);
    }
}

#[test]
fn a_jump_between_two_phases_is_seen_in_the_later_ones() {
    let mut random = Random(11);
    for by_us in [-400_000.0, -20_000.0, 20_000.0, 400_000.0] {
        let path = Path { jitter_us: 300.0, skew_ppm: -150.0, jump: Some((15.0, by_us)), ..PATH };
        let run = path.probes(&mut random, |second| [0.0, filled(second, DOWNLOAD, 40_000.0)]);
        let fit = clock_fit(part(&run, IDLE), &run).unwrap();
        let moved = fit.moved_at.unwrap().as_secs_f64();
        assert!((14.8..15.3).contains(&moved), "{by_us}: {fit:?}");
        assert!((fit.skew_ppm + 150.0).abs() < 100.0, "{by_us}: {fit:?}");
    }
}

#[test]
fn jitter_queues_and_route_changes_are_no_jump() {
    let mut random = Random(13);
    for (jitter_us, round) in [30.0, 1_000.0, 10_000.0, 30_000.0].into_iter().cycle().zip(0..24) {
        let path = Path { jitter_us, skew_ppm: 200.0, ..PATH };
        // Queues that rise and fall in opposite directions, a router that holds packets back for 30 ms, and a longer
        // upload path.
        let run = path.probes(&mut random, |second| {
            let burst = if second % 1.0 < 0.03 { (0.03 - second % 1.0) * 1e6 } else { 0.0 };
            let detour = if second > 19.0 { 25_000.0 } else { 0.0 };
            let turn = (second * 3.0).sin() * 20_000.0;
            [20_000.0 + turn + burst + detour, 20_000.0 - turn + burst]
        });
        assert_eq!(clock_jump(part(&run, DOWNLOAD)), None, "{jitter_us} {round}");
        assert_eq!(clock_jump(part(&run, UPLOAD)), None, "{jitter_us} {round}");
    }
}

#[test]
fn a_path_that_becomes_faster_in_both_directions_is_no_jump() {
    let mut random = Random(17);
    let run = PATH.probes(&mut random, |second| if second < 15.0 { [9_000.0; 2] } else { [0.0; 2] });
    assert_eq!(clock_fit(part(&run, IDLE), &run).unwrap().moved_at, None);
    let run = PATH.probes(&mut random, |second| if second < 15.0 { [9_000.0, 0.0] } else { [0.0; 2] });
    assert_eq!(clock_fit(part(&run, IDLE), &run).unwrap().moved_at, None, "a shorter route in one direction");
}

#[test]
fn a_single_wrong_time_has_no_effect() {
    let mut random = Random(19);
    let mut run = PATH.probes(&mut random, |second| [0.0, filled(second, DOWNLOAD, 30_000.0)]);
    let right = clock_fit(part(&run, IDLE), &run).unwrap();
    for at in [50, 150, 900, 1_900] {
        run[at].upload_us -= 4e6;
        run[at].download_us += 4e6;
    }
    let fit = clock_fit(part(&run, IDLE), &run).unwrap();
    assert!((fit.skew_ppm - right.skew_ppm).abs() < 5.0 && fit.moved_at.is_none(), "{right:?} {fit:?}");
    assert_eq!(estimate(&fit, &run, DOWNLOAD).stands, StandingQueue::Download);
}

#[test]
fn few_probes_are_no_fit() {
    let run = PATH.probes(&mut Random(1), |_| [0.0; 2]);
    assert_eq!(clock_fit(&run[..19], &run), None);
    assert!(clock_fit(&run[..20], &run).unwrap().delays(&run[..19]).is_none());
    assert_eq!(clock_fit(&[], &[]), None);
    assert_eq!(clock_jump(&run[..5]), None);
}

proptest! {
    #[test]
    fn no_reported_time_panics(
        times in prop::collection::vec((any::<i64>(), any::<u32>()), 0..80),
        idle in 0usize..80,
    ) {
        let probe = |(at, (upload_us, rtt_us)): (usize, &(i64, u32))| {
            let sent_at = Duration::from_millis(at as u64 * 10);
            let upload_us = Some(*upload_us);
            OneWayDelay::of(&Probe {
                sent_at, late_us: 0, rtt_us: Some(*rtt_us), arrived: Some(true), turnaround_us: 0, upload_us, own_wait_us: None, late: false
            })
        };
        let run = times.iter().enumerate().filter_map(probe).collect::<Vec<_>>();
        let idle = &run[..idle.min(run.len())];
        clock_jump(&run);
        if let Some(fit) = clock_fit(idle, &run)
            && let (Some(delays), Some(loaded)) = (fit.delays(idle), fit.delays(&run))
        {
            prop_assert!(fit.skew_ppm.is_finite() && fit.skew_ppm.abs() <= MOST_SKEW_PPM);
            fit.queue(&delays, &loaded, &run);
        }
    }
}
