//! Measures the capacity of this host, without another host: reads facts, and measures rates over loopback.
//! `paramedic-report` judges the results, and each program prints them in its own style.

mod facts;
mod timers;
mod timestamps;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use paramedic_engines::engine::Engine;
use paramedic_engines::host_facts::CpuClock;
use paramedic_engines::loopback::{self, BothEnds};
use paramedic_link::PeerText;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, DataPathWish, Direction, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_report::quantity;
use paramedic_report::self_test::{
    DirectionRate, Facts, LoopbackRate, MovedBy, NotMeasured, Role, SelfTest, SelfTestSchema, judge, mode_word,
};

use crate::engines::ENGINES;

/// The maximum number of streams of a measurement. It equals the default number of streams of a test.
const MOST_STREAMS: u16 = 4;

/// The shortest duration of one measurement. A shorter one gives no meaningful rate.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// The longest duration of one measurement.
pub const LONGEST: Duration = Duration::from_secs(10);

/// The maximum length, in characters, of the reason why something was not measured. Longer reasons, which may come from
/// other programs, are truncated.
const LONGEST_REASON: usize = 300;

/// One step of a running self-test, reported when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of the step, from 0.
    pub number: u32,
    /// The total number of steps, as far as it is known yet.
    pub of: u32,
    /// What this step measures.
    pub what: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: {}", self.number + 1, self.of, self.what)
    }
}

/// Checks that `each` is a valid duration of a measurement.
pub fn check_each(each: Duration) -> Result<Duration, String> {
    let right = || {
        let [shortest, longest] = [SHORTEST, LONGEST].map(|limit| quantity::millis(limit.as_millis() as u64));
        format!("a measurement must last from {shortest} to {longest}")
    };
    (SHORTEST..=LONGEST).contains(&each).then_some(each).ok_or_else(right)
}

/// Reads the facts of this host that need no measurement.
pub fn read_facts() -> Facts {
    facts::read()
}

/// Creates a private temporary folder for [`run`] to work in. Dropping the value removes the folder.
pub fn scratch() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("self-test-").tempdir()
}

/// Tests this host for the program `role`. Each measurement of a rate lasts for `each`. `scratch` is a folder for
/// temporary files of engines. Blocks, and calls `report` when a step begins.
pub fn run(role: Role, each: Duration, scratch: &Path, report: &dyn Fn(&Step)) -> SelfTest {
    let started_at = now();
    let each = each.clamp(SHORTEST, LONGEST);
    let loaded = ENGINES.iter().copied().filter(|engine| engine.loads()).collect::<Vec<_>>();
    let mut number = 0;
    let mut begin = |of: usize, what: String| {
        report(&Step { number, of: u32::try_from(of).unwrap_or(u32::MAX), what });
        number += 1;
    };
    let mut of = 1 + loaded.iter().map(|engine| engine.data_modes().len() * Direction::BOTH.len()).sum::<usize>();

    let mut facts = facts::read();
    begin(of, "timers".to_owned());
    let clock = CpuClock::start();
    // One expiration per millisecond, for half the duration of a measurement.
    facts.timers = timers::measure(u32::try_from(each.as_millis() / 2).unwrap_or(u32::MAX)).ok();
    // Rounded to a thousandth: the resolution of the kernel's ticks.
    facts.processor.other_work = clock.host().host_busy.map(|share| (share * 1000.0).round() / 1000.0);
    facts.timestamps = timestamps::probe();

    let streams = facts.host.cpus.map_or(1, |cores| u16::try_from(cores).unwrap_or(u16::MAX).clamp(1, MOST_STREAMS));
    let (mut rates, mut not_measured) = (Vec::new(), Vec::new());
    for engine in loaded {
        let fit = fit(engine, scratch);
        for data_mode in engine.data_modes().iter().copied() {
            let mut both_ways = |of: usize, data_path: DataPathWish| {
                let mut rate =
                    LoopbackRate { engine: engine.id().to_owned(), data_mode, streams, download: None, upload: None };
                let mut missed = Vec::new();
                for direction in Direction::BOTH {
                    let copied = if data_path.is_auto() { "" } else { ", every byte copied" };
                    begin(of, format!("{}, {}, {direction}{copied}", engine.id(), mode_word(data_mode)));
                    let ask = LoopbackRun { data_mode, data_path, direction, streams, each };
                    let carried = fit.clone().and_then(|support| ask.measure(engine, support, scratch));
                    match (carried, direction) {
                        (Ok(carried), Direction::Download) => rate.download = Some(carried),
                        (Ok(carried), Direction::Upload) => rate.upload = Some(carried),
                        (Err(because), _) => missed.push(NotMeasured {
                            engine: engine.id().to_owned(),
                            data_mode,
                            direction: Some(direction),
                            because: PeerText::harmless(&because, LONGEST_REASON),
                        }),
                    }
                }
                not_measured.extend(merge_directions(missed));
                (rate.download.is_some() || rate.upload.is_some()).then_some(rate)
            };
            let fastest = both_ways(of, DataPathWish::Auto);
            let untouched = fastest.as_ref().is_some_and(LoopbackRate::is_by_reference);
            rates.extend(fastest);
            if untouched {
                of += Direction::BOTH.len();
                rates.extend(both_ways(of, DataPathWish::Plain));
            }
        }
    }
    let (verdict, weak_points) = judge(role, &facts, &rates);
    SelfTest {
        schema: SelfTestSchema::V1,
        program: role,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        finished_at: now(),
        verdict,
        weak_points,
        rates,
        not_measured,
        facts,
    }
}

#[expect(clippy::disallowed_methods, reason = "the host's clock dates a self-test")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Merges the entries of both directions of an engine if they have the same reason.
fn merge_directions(mut missed: Vec<NotMeasured>) -> Vec<NotMeasured> {
    if let [one, other] = missed.as_mut_slice()
        && one.because == other.because
    {
        one.direction = None;
        missed.truncate(1);
    }
    missed
}

/// Checks that this host can run both ends of `engine`. Returns the features that the appliance's end supports.
fn fit(engine: &dyn Engine, scratch: &Path) -> Result<Vec<PeerText>, String> {
    let support = engine.check_client().map_err(|lacking| lacking.to_string())?;
    engine.check_server(scratch).map_err(|lacking| lacking.to_string())?;
    Ok(support)
}

/// The parameters of one measurement.
struct LoopbackRun {
    data_mode: DataMode,
    data_path: DataPathWish,
    direction: Direction,
    streams: u16,
    each: Duration,
}

impl LoopbackRun {
    /// Runs the measurement with `engine`, or returns the reason why that is not possible.
    fn measure(&self, engine: &dyn Engine, support: Vec<PeerText>, scratch: &Path) -> Result<DirectionRate, String> {
        let spec = self.spec(engine.id(), support).map_err(|error| error.to_string())?;
        if let Some(because) = engine.unsupported(&spec) {
            return Err(because.to_owned());
        }
        let both = loopback::run(engine, &spec, scratch.to_owned()).map_err(|error| error.to_string())?;
        carried(&both, self.direction)
    }

    fn spec(&self, engine: &str, engine_support: Vec<PeerText>) -> Result<TestSpec, Box<dyn Error>> {
        let load = match self.direction {
            Direction::Download => Load::Download,
            Direction::Upload => Load::Upload,
        };
        let phase = PhaseSpec { load, duration_ms: u32::try_from(self.each.as_millis())? };
        let spec = TestSpec {
            engine_support,
            data_path: self.data_path,
            // Without a rate limit, for engines that have one by default.
            bitrate_bps: Some(0),
            ..TestSpec::new(EngineId::try_from(engine)?, self.data_mode, vec![phase], self.streams)
        };
        spec.check()?;
        Ok(spec)
    }
}

/// The rate that the receiver counted, or the reason why there is none.
fn carried(both: &BothEnds, direction: Direction) -> Result<DirectionRate, String> {
    let (sender, receiver) = both.sender_and_receiver(direction);
    let cut_short = receiver.cut_short.as_ref().or(sender.cut_short.as_ref());
    if let Some(because) = cut_short {
        return Err(because.to_string());
    }
    let path = |tally: &PhaseTally| tally.direction(direction)?.data_path.clone();
    let count = receiver.direction(direction).map(|tally| tally.count).unwrap_or_default();
    if count.bytes == 0 || count.elapsed_us == 0 {
        return Err("no payload arrived".to_owned());
    }
    let bps = u128::from(count.bytes) * 8 * 1_000_000 / u128::from(count.elapsed_us);
    Ok(DirectionRate {
        goodput_bps: u64::try_from(bps).unwrap_or(u64::MAX),
        bytes_received: count.bytes,
        duration_ms: count.elapsed_us / 1000,
        data_path: MovedBy { sender: path(sender), receiver: path(receiver) },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_engine_that_loads_is_measured_or_has_a_reason() {
        let steps = Mutex::new(Vec::new());
        let scratch = scratch().unwrap();
        let test = run(Role::Appliance, SHORTEST, scratch.path(), &|step| steps.lock().unwrap().push(step.clone()));
        let steps = steps.into_inner().unwrap();
        assert!(steps.iter().enumerate().all(|(at, step)| step.number as usize == at && step.number < step.of));
        assert_eq!(steps.last().unwrap().of as usize, steps.len());
        for engine in ENGINES.iter().filter(|engine| engine.loads()) {
            for mode in engine.data_modes() {
                for direction in Direction::BOTH {
                    let is_it = |id: &str, of: DataMode| id == engine.id() && of == *mode;
                    let measured = test.rates.iter().filter(|rate| is_it(&rate.engine, rate.data_mode));
                    let measured = measured.filter(|rate| rate.direction(direction).is_some()).count();
                    let missed = test.not_measured.iter().filter(|missed| is_it(&missed.engine, missed.data_mode));
                    let missed = missed.filter(|missed| missed.direction.is_none_or(|of| of == direction)).count();
                    assert!(measured + missed > 0, "{} {mode} {direction}: {test:#?}", engine.id());
                }
            }
        }
        // tcp works on every host.
        assert!(test.verdict.text.starts_with("This host can carry "), "{test:#?}");
        for mode in [DataMode::Tunneled, DataMode::DirectEphemeral] {
            let mut of_mode = test.rates.iter().filter(|rate| rate.engine == "tcp" && rate.data_mode == mode);
            assert!(of_mode.any(|rate| !rate.is_by_reference()), "{test:#?}");
        }
        // iperf3 accepts only whole seconds; the refusal is listed once for both directions.
        let iperf3 = test.not_measured.iter().filter(|missed| missed.engine == "iperf3").collect::<Vec<_>>();
        assert!(matches!(iperf3[..], [missed] if missed.direction.is_none()), "{iperf3:?}");
        let text = serde_json::to_string(&test).unwrap();
        assert!(!text.contains("null"), "{text}");
        assert_eq!(serde_json::from_str::<SelfTest>(&text).unwrap(), test);
    }
}
