//! The delay of each direction, from the times of two clocks that are not synchronised: fits the offset and the skew of
//! the clocks, finds jumps between them, and determines the direction of a queue. Pure: no I/O, no clock.
//!
//! In the upload direction, the receive time minus the send time of a probe is the delay plus the offset of the clocks.
//! In the download direction, it is the delay minus the offset. The offset and the shortest delays cannot be separated.
//! But the reports state only the delay above the shortest delay, the packet delay variation of RFC 5481. This needs
//! only the skew of the clocks. No delay is shorter than the shortest delay, so the lower envelopes of both directions
//! bound the skew from both sides (V. Paxson, "On calibrating measurements of packet transit times", 1998).

use std::time::Duration;

use paramedic_link::measurement::Probe;
use paramedic_link::test_spec::Direction;

use super::latency::percentile;
use super::path_change::{PathChange, path_change};

/// A statement about the one-way delays of a phase needs at least this many delays, as many as a statement about the
/// median round trip needs.
const LEAST_DELAYS: usize = 20;
/// The second-shortest delay of this many consecutive probes represents the lower envelope. The shortest delay is not
/// used, so that one wrong time has no effect.
const CHUNK: usize = 10;
/// The largest assumed skew of the clocks, in parts per million: the largest rate correction of adjtimex(2).
const MOST_SKEW_PPM: f64 = 500.0;
/// The usual skew of two unsynchronised clocks, in parts per million: the standard deviation that is assumed before
/// anything is measured.
const USUAL_SKEW_PPM: f64 = 100.0;
/// The times of both ends are not more accurate than this, in microseconds.
const RESOLUTION_US: f64 = 20.0;
/// A jump between the clocks that is smaller than this, in microseconds, cannot be distinguished from delay.
const LEAST_JUMP_US: f64 = 3_000.0;
/// A jump of a clock is found only if this many probes before the jump and as many after it show it.
const JUMP_PROBES: usize = 8;
/// A delay increase below this, in microseconds, does not count as a queue.
const LEAST_QUEUE_US: f64 = 2_000.0;
/// A direction counts as part of the queue only if its delay increase is at least this share of the larger increase.
const PART_OF_QUEUE: f64 = 0.25;

/// The receive time minus the send time of one answered probe and of its reply, in microseconds. The times are from
/// different clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneWayDelay {
    /// When the probe was sent, in microseconds of the appliance's clock.
    at_us: f64,
    upload_us: f64,
    download_us: f64,
}

impl OneWayDelay {
    /// The time differences of `probe` and of its reply; `None` if they are not known.
    pub fn of(probe: &Probe) -> Option<Self> {
        Some(Self {
            at_us: probe.sent_at.as_micros() as f64,
            upload_us: probe.upload_us? as f64,
            download_us: probe.download_us()? as f64,
        })
    }

    fn round_trip_us(&self) -> f64 {
        self.upload_us + self.download_us
    }
}

/// How the clocks of the appliance and the reflector compare: offset, skew and shortest delays, as the idle phase shows
/// them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockFit {
    /// The middle of the idle phase, in microseconds of the appliance's clock.
    at_us: f64,
    /// The shortest difference between receive and send time in each direction at `at_us`, in microseconds.
    upload_us: f64,
    download_us: f64,
    /// How much faster the reflector's clock runs than the appliance's, in parts per million.
    pub skew_ppm: f64,
    /// How far the true skew may be above or below `skew_ppm`, in parts per million.
    pub skew_uncertainty_ppm: f64,
    /// How much the lower envelope varies in the idle phase, in microseconds.
    noise_us: f64,
    /// When one clock jumped against the other, in time since the prober's start; `None` if no part of the run shows a
    /// jump.
    pub moved_at: Option<Duration>,
}

/// A jump of one clock against the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockJump {
    /// When the first probe after the jump was sent, in time since the prober's start.
    pub at: Duration,
    /// How far the reflector's clock jumped forward against the appliance's, in microseconds.
    pub moved_us: f64,
}

/// The lower envelope of some consecutive probes: for each direction, the send time and the value of the
/// second-shortest delay. Also has the second-shortest round trip.
#[derive(Clone, Copy, Debug)]
struct EnvelopePart {
    begin_us: f64,
    upload: (f64, f64),
    download: (f64, f64),
    round_trip_us: f64,
}

impl EnvelopePart {
    fn of(probes: &[OneWayDelay]) -> Option<Self> {
        let second = |value: fn(&OneWayDelay) -> f64| {
            let mut sorted = probes.iter().map(|probe| (probe.at_us, value(probe))).collect::<Vec<_>>();
            sorted.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
            sorted.get(1).copied()
        };
        Some(Self {
            begin_us: probes.first()?.at_us,
            upload: second(|probe| probe.upload_us)?,
            download: second(|probe| probe.download_us)?,
            round_trip_us: second(OneWayDelay::round_trip_us)?.1,
        })
    }

    fn all(probes: &[OneWayDelay]) -> Vec<Self> {
        probes.chunks(CHUNK).filter(|chunk| chunk.len() >= CHUNK / 2).filter_map(Self::of).collect()
    }
}

/// The shortest delays of the idle phase in each direction, converted to the middle of the phase with an assumed skew.
#[derive(Clone, Copy)]
struct ShortestDelays {
    at_us: f64,
    upload_us: f64,
    download_us: f64,
}

impl ShortestDelays {
    fn of(idle: &[EnvelopePart], at_us: f64, skew_ppm: f64) -> Self {
        let drift = |time_us: f64| (time_us - at_us) * skew_ppm / 1e6;
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
        Self {
            at_us,
            upload_us: least(&mut idle.iter().map(|part| part.upload.1 - drift(part.upload.0))),
            download_us: least(&mut idle.iter().map(|part| part.download.1 + drift(part.download.0))),
        }
    }

    /// How much the delays of `part` exceed the shortest delays, in microseconds: upload, download.
    fn above(&self, part: &EnvelopePart, skew_ppm: f64) -> (f64, f64) {
        let drift = |time_us: f64| (time_us - self.at_us) * skew_ppm / 1e6;
        (
            part.upload.1 - drift(part.upload.0) - self.upload_us,
            part.download.1 + drift(part.download.0) - self.download_us,
        )
    }
}

/// Determines how the clocks of the two ends compare. The probes of the idle phase give offset and skew; the probes of
/// the whole run narrow the skew further. Both slices are in the order sent. `None` with fewer than 20 idle probes.
pub fn clock_fit(idle: &[OneWayDelay], run: &[OneWayDelay]) -> Option<ClockFit> {
    let (first, last) = (idle.first()?, idle.last()?);
    if idle.len() < LEAST_DELAYS {
        return None;
    }
    let at_us = f64::midpoint(first.at_us, last.at_us);
    let parts = EnvelopePart::all(idle);
    let later =
        EnvelopePart::all(run.get(run.partition_point(|probe| probe.at_us <= last.at_us)..).unwrap_or_default());
    let (slope_ppm, slope_error_ppm) = slope(&parts);
    // The skew that the idle phase shows, weighted against the usual skew.
    let weight = USUAL_SKEW_PPM.powi(2) / (USUAL_SKEW_PPM.powi(2) + slope_error_ppm.powi(2));
    let (centre_ppm, reach_ppm) = (slope_ppm * weight, 2.0 * slope_error_ppm * weight.sqrt());
    let mut low = (centre_ppm - reach_ppm).clamp(-MOST_SKEW_PPM, MOST_SKEW_PPM);
    let mut high = (centre_ppm + reach_ppm).clamp(-MOST_SKEW_PPM, MOST_SKEW_PPM);
    let noise_us = noise(&parts, at_us, centre_ppm).max(RESOLUTION_US);
    // If the assumed skew is too large, a later upload would be faster than the shortest upload; if it is too small, a
    // later download would be faster than the shortest download.
    let is_possible = |skew_ppm: f64, value: fn((f64, f64)) -> f64| {
        let base = ShortestDelays::of(&parts, at_us, skew_ppm);
        later.iter().all(|part| value(base.above(part, skew_ppm)) >= -noise_us)
    };
    let bound = |mut good: f64, mut bad: f64, value: fn((f64, f64)) -> f64| {
        // If even `good` makes the delays impossible, the skew is not the cause, and the range is not narrowed.
        if is_possible(bad, value) || !is_possible(good, value) {
            return bad;
        }
        for _ in 0..30 {
            let middle = f64::midpoint(good, bad);
            if is_possible(middle, value) { good = middle } else { bad = middle }
        }
        good
    };
    let highest = bound(low, high, |above| above.0);
    let lowest = bound(high, low, |above| above.1);
    if lowest <= highest {
        (low, high) = (lowest, highest);
    }
    let skew_ppm = centre_ppm.clamp(low, high);
    let skew_uncertainty_ppm = (skew_ppm - low).max(high - skew_ppm);
    let base = ShortestDelays::of(&parts, at_us, skew_ppm);
    let shortest_us = parts.iter().map(|part| part.round_trip_us).fold(f64::INFINITY, f64::min);
    // If one direction is faster than its shortest delay, but the round trip is not, one clock jumped.
    let limit_us = LEAST_JUMP_US.max(4.0 * noise_us);
    let mut moved = later.iter().filter(|part| {
        let (upload, download) = base.above(part, skew_ppm);
        upload.min(download) < -limit_us && part.round_trip_us > shortest_us - limit_us / 2.0
    });
    let moved_us = moved.next().map(|part| part.begin_us).filter(|_| moved.next().is_some());
    Some(ClockFit {
        at_us,
        upload_us: base.upload_us,
        download_us: base.download_us,
        skew_ppm,
        skew_uncertainty_ppm,
        noise_us,
        moved_at: moved_us.map(|us| Duration::from_secs_f64(us / 1e6)),
    })
}

/// The skew from the idle phase, and its error, both in parts per million. Half the difference between the upload and
/// the download delay grows over time at the rate of the skew. At the lower envelope, queues hardly affect this value.
/// Its slope is the median of the slopes between pairs of parts (Theil, Sen).
fn slope(parts: &[EnvelopePart]) -> (f64, f64) {
    let points = parts.iter().map(|part| {
        let at_us = f64::midpoint(part.upload.0, part.download.0);
        (at_us, (part.upload.1 - part.download.1) / 2.0)
    });
    let points = points.collect::<Vec<_>>();
    // A long idle phase has many parts; some hundred are enough.
    let points = points.iter().copied().step_by(points.len() / 200 + 1).collect::<Vec<_>>();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return (0.0, MOST_SKEW_PPM) };
    let span_s = (last.0 - first.0) / 1e6;
    let mut slopes = Vec::new();
    for (at, from) in points.iter().enumerate() {
        let later = points[at + 1..].iter().filter(|to| (to.0 - from.0) / 1e6 > span_s / 4.0);
        slopes.extend(later.map(|to| (to.1 - from.1) / (to.0 - from.0) * 1e6));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let Some(slope_ppm) = percentile(&slopes, 500) else { return (0.0, MOST_SKEW_PPM) };
    let mut off = points.iter().map(|(at, value)| value - (at - first.0) * slope_ppm / 1e6).collect::<Vec<_>>();
    off.sort_unstable_by(f64::total_cmp);
    let spread = |per_mille| percentile(&off, per_mille).unwrap_or_default();
    let spread_us = (spread(900) - spread(100)).max(RESOLUTION_US);
    let error_ppm = 2.0 * spread_us / span_s / (points.len() as f64).sqrt();
    (slope_ppm, error_ppm.min(MOST_SKEW_PPM))
}

/// How much the lower envelopes vary in the idle phase, in microseconds. For each direction, computes how far each part
/// is above the lowest part, and takes the median. Returns the larger of the two medians.
fn noise(parts: &[EnvelopePart], at_us: f64, skew_ppm: f64) -> f64 {
    let base = ShortestDelays::of(parts, at_us, skew_ppm);
    let range = |value: fn((f64, f64)) -> f64| {
        let mut above = parts.iter().map(|part| value(base.above(part, skew_ppm))).collect::<Vec<_>>();
        above.sort_unstable_by(f64::total_cmp);
        percentile(&above, 500).unwrap_or_default()
    };
    range(|above| above.0).max(range(|above| above.1))
}

/// Finds the first jump of one clock against the other among the probes of one phase, in the order sent; `None` if
/// there is no jump. At a jump, from one probe to the next, one direction becomes slower and the other faster by the
/// same amount, and both stay so. A queue cannot have this effect, because it also changes the round trip.
pub fn clock_jump(phase: &[OneWayDelay]) -> Option<ClockJump> {
    let is_sudden = |at: &usize| {
        let (before, after) = (&phase[at - 1], &phase[*at]);
        let [up, down] = [after.upload_us - before.upload_us, after.download_us - before.download_us];
        up * down < 0.0 && up.abs().min(down.abs()) >= LEAST_JUMP_US / 2.0
    };
    let candidates = (JUMP_PROBES..(phase.len() + 1).saturating_sub(JUMP_PROBES)).filter(is_sudden);
    candidates.filter_map(|at| jump_at(phase, at)).next()
}

fn jump_at(phase: &[OneWayDelay], at: usize) -> Option<ClockJump> {
    let (before, after) = (phase.get(at - JUMP_PROBES..at)?, phase.get(at..at + JUMP_PROBES)?);
    let median = |probes: &[OneWayDelay], value: fn(&OneWayDelay) -> f64| {
        let mut sorted = probes.iter().map(value).collect::<Vec<_>>();
        sorted.sort_unstable_by(f64::total_cmp);
        percentile(&sorted, 500).unwrap_or_default()
    };
    let change = |value| median(after, value) - median(before, value);
    let (upload_us, download_us) = (change(|probe| probe.upload_us), change(|probe| probe.download_us));
    let least_us = upload_us.abs().min(download_us.abs());
    let is_opposite = upload_us * download_us < 0.0 && (upload_us + download_us).abs() <= least_us / 4.0;
    // On either side of a jump the delays are level: they are not scattered and do not rise or fall.
    let is_level = |probes: &[OneWayDelay], value: fn(&OneWayDelay) -> f64| {
        let centre = median(probes, value);
        let mut off = probes.iter().map(|probe| (value(probe) - centre).abs()).collect::<Vec<_>>();
        off.sort_unstable_by(f64::total_cmp);
        let (first, last) = probes.split_at(JUMP_PROBES / 2);
        let moved_us = (median(last, value) - median(first, value)).abs();
        percentile(&off, 500).is_some_and(|spread_us| spread_us.max(moved_us) <= least_us / 4.0)
    };
    let is_clear = least_us >= LEAST_JUMP_US
        && [before, after]
            .iter()
            .all(|side| is_level(side, |probe| probe.upload_us) && is_level(side, |probe| probe.download_us));
    (is_opposite && is_clear).then(|| ClockJump {
        at: Duration::from_secs_f64(phase[at].at_us.max(0.0) / 1e6),
        moved_us: (upload_us - download_us) / 2.0,
    })
}

/// The distribution of the delays of one direction, or of the waits in the appliance's host, in microseconds. A delay
/// of one direction counts from the shortest delay of the idle phase. A percentile is absent if there are too few
/// delays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DelaySpread {
    /// The median of the delays, in microseconds.
    pub p50_us: f64,
    /// The 95th percentile of the delays, in microseconds.
    pub p95_us: Option<f64>,
    /// The 99th percentile of the delays, in microseconds.
    pub p99_us: Option<f64>,
    /// The longest of the delays, in microseconds.
    pub max_us: f64,
    /// The standard error of the median in microseconds, without the error of the skew.
    error_us: f64,
}

impl DelaySpread {
    /// The distribution of `delays`, in microseconds; `None` with fewer than 20 delays.
    pub fn of(mut delays: Vec<f64>) -> Option<Self> {
        use super::sufficiency::{Statement, is_enough};
        if delays.len() < LEAST_DELAYS {
            return None;
        }
        delays.sort_unstable_by(f64::total_cmp);
        let count = delays.len() as u64;
        let of = |per_mille, statement| percentile(&delays, per_mille).filter(|_| is_enough(statement, count, count));
        let p50_us = percentile(&delays, 500)?;
        let quartiles = percentile(&delays, 750)? - percentile(&delays, 250)?;
        Some(Self {
            p50_us,
            p95_us: of(950, Statement::P95),
            p99_us: of(990, Statement::P99),
            max_us: *delays.last()?,
            // The standard error of the median for a normal distribution with these quartiles.
            error_us: 0.93 * quartiles / (count as f64).sqrt(),
        })
    }
}

impl ClockFit {
    /// How far the delays of `probe` exceed the shortest delays, in microseconds: upload, download. Never negative.
    pub fn above_shortest(&self, probe: &OneWayDelay) -> [f64; 2] {
        self.beside_shortest(probe).map(|us| us.max(0.0))
    }

    /// The same as [`above_shortest`](Self::above_shortest), but negative if the path became shorter.
    fn beside_shortest(&self, probe: &OneWayDelay) -> [f64; 2] {
        let drift_us = (probe.at_us - self.at_us) * self.skew_ppm / 1e6;
        [probe.upload_us - drift_us - self.upload_us, probe.download_us + drift_us - self.download_us]
    }

    /// Finds a lasting change of the delay in `direction`. `phase` has the probes of a phase that does not load this
    /// direction.
    pub fn path_change(&self, phase: &[OneWayDelay], direction: Direction) -> Option<PathChange> {
        let at = match direction {
            Direction::Upload => 0,
            Direction::Download => 1,
        };
        path_change(&phase.iter().map(|probe| (probe.at_us, self.beside_shortest(probe)[at])).collect::<Vec<_>>())
    }

    /// The distribution of the delays of each direction in a phase: upload, download. `None` with fewer than 20 delays.
    pub fn delays(&self, phase: &[OneWayDelay]) -> Option<[DelaySpread; 2]> {
        let of = |at: usize| DelaySpread::of(phase.iter().map(|probe| self.above_shortest(probe)[at]).collect());
        Some([of(0)?, of(1)?])
    }

    /// The largest error that the uncertainty of the skew may cause in a delay at the time `at_us`, in microseconds.
    fn drift_error_us(&self, at_us: f64) -> f64 {
        (at_us - self.at_us).abs() * self.skew_uncertainty_ppm / 1e6
    }

    /// The reflector's clock minus the appliance's in the middle of the idle phase, and the largest possible error of
    /// this difference, both in microseconds. Assumes that the shortest round trip takes equally long in each
    /// direction.
    pub fn offset_us(&self) -> (f64, f64) {
        ((self.upload_us - self.download_us) / 2.0, (self.upload_us + self.download_us).max(0.0) / 2.0)
    }

    /// Estimates the queue that a load built up, from the delays of both directions in the idle phase and in the loaded
    /// phase. `phase` has the probes of the loaded phase.
    pub fn queue(&self, idle: &[DelaySpread; 2], loaded: &[DelaySpread; 2], phase: &[OneWayDelay]) -> QueueEstimate {
        let at_us = phase.get(phase.len() / 2).map_or(self.at_us, |probe| probe.at_us);
        let error_us = |at: usize| 3.0 * idle[at].error_us.hypot(loaded[at].error_us);
        let uncertainty_us = self.drift_error_us(at_us) + error_us(0).max(error_us(1));
        let [upload_us, download_us] = [0, 1].map(|at| (loaded[at].p50_us - idle[at].p50_us).max(0.0));
        let larger = upload_us.max(download_us);
        let least = LEAST_QUEUE_US.max(uncertainty_us);
        let has_part = |us: f64| us >= least && us >= larger * PART_OF_QUEUE;
        let stands = match (has_part(upload_us), has_part(download_us)) {
            (true, true) => StandingQueue::Both,
            (true, false) => StandingQueue::Upload,
            (false, true) => StandingQueue::Download,
            // The uncertainty may hide a queue, so its absence is not certain.
            (false, false) if larger >= LEAST_QUEUE_US => StandingQueue::Unknown,
            (false, false) => StandingQueue::None,
        };
        QueueEstimate { stands, upload_us, download_us, uncertainty_us }
    }
}

/// The queue that a load built up: how much the median delay of each direction rose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueEstimate {
    /// The direction in which the queue is.
    pub stands: StandingQueue,
    /// The rise of the median upload delay under the load, in microseconds.
    pub upload_us: f64,
    /// The rise of the median download delay under the load, in microseconds.
    pub download_us: f64,
    /// How far the true values may be above or below `upload_us` and `download_us`, in microseconds.
    pub uncertainty_us: f64,
}

/// The direction in which a load built up a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandingQueue {
    /// The queue is in the upload direction.
    Upload,
    /// The queue is in the download direction.
    Download,
    /// Both directions have a considerable part of the queue.
    Both,
    /// There is no queue: in neither direction did the median delay rise by 2 ms or more.
    None,
    /// The measurement does not show where the queue is.
    Unknown,
}

#[cfg(test)]
mod tests;
