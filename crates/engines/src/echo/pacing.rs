//! Chooses the interval between latency probes such that the probes do not fill the line that they measure. Reads no
//! clock: times, probes and samples are arguments. Times are relative to the start of the prober.
//!
//! The interval is constant during each measured window and does not depend on the replies of that window, because it
//! is chosen before the window begins.

use std::time::Duration;

use paramedic_link::measurement::{Probe, Sample};
use paramedic_link::test_spec::{Direction, Load};

use super::packet;

/// The shortest probe interval that is chosen for a phase.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// The longest probe interval that is chosen for an idle phase. A phase with load begins with this interval.
pub const LONGEST_INTERVAL: Duration = Duration::from_millis(200);
/// The longest probe interval that is chosen for a phase with load.
const LONGEST_LOADED_INTERVAL: Duration = Duration::from_millis(300);
/// The probe interval at the start of an idle phase, while the capacity of the line is unknown.
pub const FIRST_INTERVAL: Duration = Duration::from_millis(50);
/// The length in bytes of the IP packet of one probe: the payload, 20 bytes of IPv4 header and 8 bytes of UDP header.
pub const IP_BYTES: u64 = packet::LEN as u64 + 28;

/// How long an idle phase probes at [`FIRST_INTERVAL`]. Then the phase probes at [`SHORTEST_INTERVAL`] for
/// [`TRIAL_TIME`], to see whether the probes fill the line. In a short phase, both times together take at most half of
/// the phase.
const FIRST_TIME: Duration = Duration::from_millis(500);
const TRIAL_TIME: Duration = Duration::from_millis(450);
/// If the round trip grows by more than this during the trial of [`SHORTEST_INTERVAL`], the probes fill the line.
const GROWTH: Duration = Duration::from_millis(5);
/// Under load, the probes take at most 1/`PARTS` of the rate of each direction.
const PARTS: u64 = 150;
/// The ramp-up of a phase is over when the rates of two neighbouring windows of this many samples differ by less than a
/// quarter.
const SETTLED_SAMPLES: usize = 5;

/// A new probe interval, valid from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePace {
    /// The time between two probes.
    pub interval: Duration,
    /// Whether the interval is final for the phase. If so, the measured window of the phase begins now.
    pub is_chosen: bool,
}

/// Chooses the probe interval of one phase.
#[derive(Debug)]
pub struct ProbePacing {
    load: Load,
    begun: Duration,
    span: Duration,
    step: PacingStep,
    /// The samples of the download and of the upload, as the receivers reported them.
    samples: [Vec<Sample>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacingStep {
    /// The first step: the capacity of the line is unknown.
    First,
    /// An idle phase tries the shortest interval.
    Trial,
    Chosen,
}

impl ProbePacing {
    /// The pacing of a phase of length `span` that began at `begun`.
    pub fn new(load: Load, begun: Duration, span: Duration) -> Self {
        Self { load, begun, span, step: PacingStep::First, samples: Default::default() }
    }

    /// The probe interval at the start of the phase. A phase with load begins with [`LONGEST_INTERVAL`], because the
    /// rate is still unknown.
    pub fn first(&self) -> Duration {
        if self.is_idle() { FIRST_INTERVAL } else { LONGEST_INTERVAL }
    }

    /// Adds a sample of the receiver of `direction`.
    pub fn sample(&mut self, direction: Direction, sample: Sample) {
        if self.step != PacingStep::Chosen {
            self.samples[direction as usize].push(sample);
        }
    }

    /// When [`ProbePacing::next`] must be called at the latest; `None` once the interval is chosen.
    pub fn due(&self) -> Option<Duration> {
        let after = match (self.step, self.is_idle()) {
            (PacingStep::Chosen, _) => return None,
            (PacingStep::First, true) => self.first_time(),
            (PacingStep::Trial, true) => self.first_time() + self.trial_time(),
            // If the rate does not settle, the first half of the phase is excluded.
            (_, false) => self.span / 2,
        };
        Some(self.begun + after)
    }

    /// The new probe interval, if the interval changes at `now`. `probes` must return the probes that were due between
    /// its two arguments.
    pub fn next(&mut self, now: Duration, probes: impl Fn(Duration, Duration) -> Vec<Probe>) -> Option<ProbePace> {
        let is_due = now >= self.due()?;
        let is_settled =
            || self.load.directions().iter().all(|direction| is_settled(&self.samples[*direction as usize]));
        match (self.step, self.is_idle()) {
            (PacingStep::First, true) if is_due => {
                self.step = PacingStep::Trial;
                Some(ProbePace { interval: SHORTEST_INTERVAL, is_chosen: false })
            }
            (PacingStep::Trial, true) if is_due => {
                let trial_from = self.begun + self.first_time();
                let grows = grows(&probes(trial_from, now));
                self.step = PacingStep::Chosen;
                let interval = if grows { LONGEST_INTERVAL } else { SHORTEST_INTERVAL };
                Some(ProbePace { interval, is_chosen: true })
            }
            (_, false) if is_due || is_settled() => {
                let rates =
                    self.load.directions().iter().map(|direction| recent_bps(&self.samples[*direction as usize]));
                let interval = loaded_interval(rates.min().unwrap_or(0));
                self.step = PacingStep::Chosen;
                Some(ProbePace { interval, is_chosen: true })
            }
            _ => None,
        }
    }

    fn is_idle(&self) -> bool {
        self.load.directions().is_empty()
    }

    fn first_time(&self) -> Duration {
        FIRST_TIME.min(self.span / 4)
    }

    fn trial_time(&self) -> Duration {
        TRIAL_TIME.min(self.span / 4)
    }
}

/// The shortest interval at which the probes take at most 1/150 of a rate of `bps` bits per second. The interval is in
/// whole milliseconds, at least [`SHORTEST_INTERVAL`] and at most [`LONGEST_LOADED_INTERVAL`].
fn loaded_interval(bps: u64) -> Duration {
    let ms = (IP_BYTES * 8 * 1000 * PARTS).div_ceil(bps.max(1));
    Duration::from_millis(ms).clamp(SHORTEST_INTERVAL, LONGEST_LOADED_INTERVAL)
}

/// Whether the probes fill the line: the round trip of the answered `probes` has grown, and still grows at their end.
/// The first probes alone show nothing, because a token bucket may carry the first probes without delay.
fn grows(probes: &[Probe]) -> bool {
    let answered = probes.iter().filter_map(round_trip).collect::<Vec<_>>();
    let third = answered.len() / 3;
    let (before, last) = answered.split_at(answered.len() - third);
    let (earlier, later) = last.split_at(third / 2);
    let medians = [before, last, earlier, later].map(|part| median(part.to_vec()));
    let [Some(before), Some(last), Some(earlier), Some(later)] = medians else { return false };
    last > before + GROWTH && later > earlier + GROWTH / 4
}

fn round_trip(probe: &Probe) -> Option<Duration> {
    probe.rtt_us.map(|us| Duration::from_micros(us.into()))
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// Whether the rate has settled: the last two windows of samples differ by less than a quarter.
fn is_settled(samples: &[Sample]) -> bool {
    let Some(from) = samples.len().checked_sub(2 * SETTLED_SAMPLES) else { return false };
    let recent = &samples[from..];
    let bytes = |part: &[Sample]| part.iter().fold(0, |sum: u64, sample| sum.saturating_add(sample.bytes));
    let (before, after) = (bytes(&recent[..SETTLED_SAMPLES]), bytes(&recent[SETTLED_SAMPLES..]));
    before > 0 && after.abs_diff(before) < before / 4
}

/// The mean rate over the last two windows of samples, in bits per second.
fn recent_bps(samples: &[Sample]) -> u64 {
    let from = samples.len().saturating_sub(2 * SETTLED_SAMPLES);
    let recent = &samples[from..];
    let begin_us = from.checked_sub(1).and_then(|before| samples.get(before)).map_or(0, |sample| sample.at_us);
    let length_us = recent.last().map_or(0, |last| last.at_us.saturating_sub(begin_us));
    let bytes: u128 = recent.iter().map(|sample| u128::from(sample.bytes)).sum();
    u64::try_from(bytes * 8_000_000 / u128::from(length_us.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn probe(sent_ms: u64, rtt_ms: Option<u64>) -> Probe {
        Probe {
            sent_at: MS * u32::try_from(sent_ms).unwrap(),
            late_us: 0,
            rtt_us: rtt_ms.map(|ms| u32::try_from(ms * 1000).unwrap()),
            arrived: None,
            turnaround_us: 0,
            upload_us: None,
            own_wait_us: None,
            late: false,
        }
    }

    /// The probes of the first 950 ms of an idle phase, over a line that needs `service_ms` to carry each probe.
    /// Without a queue, the round trip is 10 ms.
    fn line(service_ms: f64) -> impl Fn(Duration, Duration) -> Vec<Probe> {
        move |from, to| {
            let (from, to) = (from.as_millis() as u64, to.as_millis() as u64);
            let now = 950;
            let due = (0..500).step_by(50).chain((500..now).step_by(10));
            let mut free_at = 0.0;
            let all = due.map(|at| {
                free_at = f64::max(free_at, at as f64) + service_ms;
                let rtt = (free_at - at as f64 + 10.0) as u64;
                probe(at, (at + rtt <= now).then_some(rtt))
            });
            all.filter(|probe| (from..to).contains(&(probe.sent_at.as_millis() as u64))).collect()
        }
    }

    /// The probe interval that an idle phase of 2 s with these probes chooses.
    fn idle(probes: impl Fn(Duration, Duration) -> Vec<Probe>) -> Duration {
        let mut pacing = ProbePacing::new(Load::Idle, Duration::ZERO, MS * 2000);
        assert_eq!((pacing.first(), pacing.due()), (MS * 50, Some(MS * 500)));
        assert_eq!(pacing.next(MS * 499, &probes), None);
        assert_eq!(pacing.next(MS * 500, &probes), Some(ProbePace { interval: MS * 10, is_chosen: false }));
        assert_eq!(pacing.due(), Some(MS * 950));
        let pace = pacing.next(MS * 950, &probes).unwrap();
        assert!(pace.is_chosen && pacing.due().is_none());
        assert_eq!(pacing.next(MS * 5000, &probes), None, "constant for the rest of the phase");
        pace.interval
    }

    #[test]
    fn an_idle_line_is_probed_often_unless_the_probes_fill_it() {
        // The 992 bits of a probe take 15.5, 11, 7.75 and 0.1 ms at 64, 90, 128 kbit/s and 10 Mbit/s.
        assert_eq!(
            [15.5, 11.0, 7.75, 0.1].map(|service_ms| idle(line(service_ms))),
            [200, 200, 10, 10].map(|ms| MS * ms)
        );
    }

    #[test]
    fn loss_jitter_and_distance_do_not_count_as_a_full_line() {
        let every = |rtt: fn(u64) -> Option<u64>| {
            idle(move |from, to| {
                let due = (from.as_millis() as u64..to.as_millis() as u64).step_by(10);
                due.map(|at| probe(at, rtt(at))).collect()
            })
        };
        assert_eq!(every(|_| None), MS * 10, "no probe is answered");
        assert_eq!(every(|at| (at < 500).then_some(20)), MS * 10, "an outage");
        assert_eq!(every(|at| Some(20 + at * 7919 % 30)), MS * 10, "jitter");
        assert_eq!(every(|at| (at < 190).then_some(600)), MS * 10, "a satellite");
        let step = |at| if at > 850 { (at <= 870).then_some(80) } else { Some(20) };
        assert_eq!(every(step), MS * 10, "one step is that of another load");
    }

    #[test]
    fn a_short_idle_phase_is_measured_for_half_of_its_time() {
        let pacing = ProbePacing::new(Load::Idle, MS * 100, MS * 320);
        assert_eq!((pacing.due(), pacing.trial_time()), (Some(MS * 180), MS * 80));
    }

    #[test]
    fn under_load_the_probes_take_less_than_one_percent() {
        for (bps, ms) in [(0, 300), (64_000, 300), (500_000, 298), (1_000_000, 149), (5_000_000, 30), (u64::MAX, 10)] {
            assert_eq!(loaded_interval(bps), MS * ms, "{bps}");
        }
    }

    /// The time in milliseconds at which a phase of 4 s chooses its probe interval, and that interval. `rates` returns
    /// the bytes that each direction moves in each 100 ms of the phase.
    fn loaded(load: Load, rates: impl Fn(u64) -> [u64; 2]) -> (u64, Duration) {
        let mut pacing = ProbePacing::new(load, MS * 1000, MS * 4000);
        assert_eq!(pacing.first(), MS * 200);
        for tenth in 1..=40 {
            for (direction, bytes) in Direction::BOTH.into_iter().zip(rates(tenth)) {
                pacing.sample(direction, Sample { at_us: tenth * 100_000, bytes });
            }
            let now = MS * u32::try_from(1000 + tenth * 100).unwrap();
            if let Some(pace) = pacing.next(now, |_, _| Vec::new()) {
                assert!(pace.is_chosen && pacing.due().is_none());
                return (tenth * 100, pace.interval);
            }
        }
        panic!("nothing was chosen");
    }

    #[test]
    fn the_choice_under_load_waits_for_the_end_of_the_ramp_up() {
        let one = |rate: fn(u64) -> u64| loaded(Load::Download, move |tenth| [rate(tenth), 0]);
        assert_eq!(one(|_| 12_500), (1000, MS * 149), "1 Mbit/s");
        assert_eq!(one(|tenth| 1_000 << tenth.min(8)), (1600, MS * 10), "slow start");
        assert_eq!(one(|tenth| if tenth < 4 { 0 } else { 12_500 }).0, 1300, "the first byte comes late");
        assert_eq!(one(|tenth| tenth * tenth), (2000, MS * 300), "it never settles");
        assert_eq!(one(|_| 0), (2000, MS * 300), "nothing arrives");
        assert_eq!(loaded(Load::Bidir, |_| [1_250_000, 12_500]), (1000, MS * 149), "the slower direction decides");
    }
}
