//! Simulates rates of a direction whose true mean is known. A series has one value for each interval of 100 ms, as a
//! multiple of 100 Mbit/s.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use paramedic_link::measurement::Sample;

/// The bytes of one interval at the rate 1 (100 Mbit/s).
const BYTES: f64 = 1_250_000.0;
/// The standard deviation of the independent and the autoregressive series, as a fraction of the mean.
const SPREAD: f64 = 0.05;
/// The standard deviation of the measurement noise of the other series, as a fraction of the rate.
const NOISE: f64 = 0.02;
/// The number of intervals that are simulated and then dropped, so that each series begins in its usual state.
const WARM_UP: usize = 400;

/// A kind of rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Series {
    /// Independent normal values.
    Independent,
    /// Autoregressive of first order, with this correlation of neighbouring values.
    Ar(f64),
    /// The same as [`Series::Ar`], with a fifth of the spread.
    Quiet(f64),
    /// One stream that fills its bottleneck: the rate grows at a constant pace to a peak of 0.9 to 1.1, and then falls
    /// to 0.7 of the peak, about every 1.5 s.
    Sawtooth,
    /// The same as [`Series::Sawtooth`], but with losses at random times, 0.9 to 2.1 s apart.
    RandomSawtooth,
    /// A rate that alternates between 1.25 and 0.75. Each state lasts for an exponentially distributed time with this
    /// mean, in seconds.
    TwoState(f64),
    /// The same as [`Series::TwoState`], but each state lasts for 0.3 to 1.7 s.
    TwoStateRegular,
    /// Four streams through a policer that lets traffic pass at the rate 4 for the first second, and then drops what
    /// exceeds the rate 1. The token bucket of the policer holds this many seconds of traffic at the rate 1.
    Policer(f64),
    /// A rate that changes by this factor, at a time from 1.7 to 4.5 s. A rise in the first fifth of a run cannot be told
    /// from a slow ramp-up.
    Change(f64),
    /// A rate that is three times as high at first, for 0.3 to 3 s.
    Burst,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random number between 0 and 1, both excluded.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

impl Series {
    /// The simulated rates of `count` intervals.
    pub(crate) fn rates(self, count: usize, random: &mut Random) -> Vec<f64> {
        match self {
            Self::Independent => autoregressive(0.0, SPREAD, count, random),
            Self::Ar(correlation) => autoregressive(correlation, SPREAD, count, random),
            Self::Quiet(correlation) => autoregressive(correlation, SPREAD / 5.0, count, random),
            Self::Sawtooth => noisy(sawtooth(count, random), random),
            Self::RandomSawtooth => noisy(random_sawtooth(count, random), random),
            Self::TwoState(seconds) => {
                let rates = two_state(count, random, |random| -10.0 * seconds * random.unit().ln());
                noisy(rates, random)
            }
            Self::TwoStateRegular => noisy(two_state(count, random, |random| random.between(3.0, 17.0)), random),
            Self::Policer(depth) => {
                let mut rates = policed(depth, count + WARM_UP, random);
                rates.drain(..WARM_UP);
                rates.iter_mut().take(10).for_each(|rate| *rate = 4.0);
                rates
            }
            Self::Change(factor) => {
                let at = random.between(17.0, 45.0);
                let rate = |at_interval: usize| if (at_interval as f64) < at { 1.0 } else { factor };
                noisy((0..count).map(rate).collect(), random)
            }
            Self::Burst => {
                let until = random.between(3.0, 30.0);
                let rate = |at: usize| if (at as f64) < until { 3.0 } else { 1.0 };
                noisy((0..count).map(rate).collect(), random)
            }
        }
    }

    /// The true mean: the mean rate of an endless run.
    pub(crate) fn mean(self) -> f64 {
        static POLICED: Mutex<BTreeMap<u64, f64>> = Mutex::new(BTreeMap::new());
        let Self::Policer(depth) = self else { return 1.0 };
        *POLICED.lock().unwrap().entry(depth.to_bits()).or_insert_with(|| {
            let rates = policed(depth, 1_000_000, &mut Random::new(99));
            rates.iter().sum::<f64>() / rates.len() as f64
        })
    }
}

fn autoregressive(correlation: f64, spread: f64, count: usize, random: &mut Random) -> Vec<f64> {
    let fresh = (1.0 - correlation * correlation).sqrt();
    let mut state = random.normal();
    let mut next = || {
        state = correlation * state + fresh * random.normal();
        1.0 + spread * state
    };
    (0..count).map(|_| next()).collect()
}

fn noisy(mut rates: Vec<f64>, random: &mut Random) -> Vec<f64> {
    rates.iter_mut().for_each(|rate| *rate *= 1.0 + NOISE * random.normal());
    rates
}

/// After a loss, a stream continues at this share of its rate.
const FALL: f64 = 0.7;
/// The usual length of a tooth of a sawtooth (the time between two losses), in intervals.
const TOOTH: f64 = 15.0;

/// A sawtooth with a constant slope. Each tooth ends at a random peak from 0.9 to 1.1.
fn sawtooth(count: usize, random: &mut Random) -> Vec<f64> {
    const SLOPE: f64 = (1.0 - FALL) / TOOTH;
    // The area of a tooth over its length, with the mean square of the peaks.
    let mean = (1.0 + FALL) / 2.0 * (1.0 + 0.2 * 0.2 / 12.0);
    teeth(count, mean, SLOPE, random, |rate, random| (random.between(0.9, 1.1) - rate) / SLOPE)
}

/// A sawtooth whose teeth have random lengths, independent of the rate. So the rate depends on many earlier teeth.
fn random_sawtooth(count: usize, random: &mut Random) -> Vec<f64> {
    // With a slope of 1 the mean peak is TOOTH / (1 - FALL), and the mean over a tooth of length L is
    // FALL * peak + L / 2, weighted by L.
    let mean = FALL * TOOTH / (1.0 - FALL) + TOOTH * (1.0 + 0.8 * 0.8 / 12.0) / 2.0;
    teeth(count, mean, 1.0, random, |_, random| TOOTH * random.between(0.6, 1.4))
}

/// A rate that grows at `slope` and falls at the end of each tooth. The rates are divided by `mean`. `length` takes the
/// rate at the start of a tooth and returns the length of the tooth, in intervals.
fn teeth(
    count: usize,
    mean: f64,
    slope: f64,
    random: &mut Random,
    length: impl Fn(f64, &mut Random) -> f64,
) -> Vec<f64> {
    let (mut rate, mut left) = (mean, random.between(0.0, TOOTH));
    let mut next = || {
        let (mut area, mut rest) = (0.0, 1.0);
        while rest > 0.0 {
            let step = f64::min(left, rest);
            area += rate * step + slope * step * step / 2.0;
            (rate, left, rest) = (rate + slope * step, left - step, rest - step);
            if left <= 0.0 {
                rate *= FALL;
                left = length(rate, random);
            }
        }
        area / mean
    };
    (0..WARM_UP).for_each(|_| _ = next());
    (0..count).map(|_| next()).collect()
}

fn two_state(count: usize, random: &mut Random, time: impl Fn(&mut Random) -> f64) -> Vec<f64> {
    let (mut is_high, mut left) = (random.unit() < 0.5, time(random));
    let mut next = || {
        let (mut area, mut rest) = (0.0, 1.0);
        while rest > 0.0 {
            let step = f64::min(left, rest);
            area += if is_high { 1.25 * step } else { 0.75 * step };
            (left, rest) = (left - step, rest - step);
            if left <= 0.0 {
                (is_high, left) = (!is_high, time(random));
            }
        }
        area
    };
    (0..WARM_UP).for_each(|_| _ = next());
    (0..count).map(|_| next()).collect()
}

/// Four streams through a token bucket that fills at the rate 1 and holds `depth` seconds of traffic at this rate. Each
/// stream grows at a constant pace, and falls to 0.7 of its rate when it loses a packet.
fn policed(depth: f64, count: usize, random: &mut Random) -> Vec<f64> {
    const STREAMS: usize = 4;
    const LOSSES: f64 = 0.4;
    let pace = (1.0 - FALL) / STREAMS as f64 / 10.0;
    let mut streams = [0.25; STREAMS];
    let mut tokens: f64 = 0.0;
    let mut next = || {
        tokens = (tokens + 1.0).min(10.0 * depth + 1.0);
        let offered: f64 = streams.iter().sum();
        let passed = offered.min(tokens);
        tokens -= passed;
        let share = (3.0 * (offered - passed) / offered).max(LOSSES);
        for stream in &mut streams {
            if offered > passed && random.unit() < share {
                *stream *= FALL;
            } else {
                *stream += pace;
            }
        }
        passed
    };
    (0..count).map(|_| next()).collect()
}

/// One sample for each interval of `rates`.
pub(crate) fn samples(rates: &[f64]) -> Vec<Sample> {
    let sample = |(at, rate): (usize, &f64)| Sample {
        at_us: (at as u64 + 1) * 100_000,
        bytes: (rate.max(0.0) * BYTES).round() as u64,
    };
    rates.iter().enumerate().map(sample).collect()
}

/// The duration of `count` intervals.
pub(crate) fn span(count: usize) -> Duration {
    Duration::from_millis(100 * count as u64)
}

/// Converts a rate of a series to bits per second.
pub(crate) fn bps(rate: f64) -> f64 {
    rate * BYTES * 80.0
}
