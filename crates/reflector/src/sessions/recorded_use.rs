//! Decides when the number of bytes that a session used must be written to disk, and what is charged for a session that
//! was running at a crash (docs/decisions/0028). Pure: no I/O, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// If a crash ends a session, at least this many bytes are charged in addition to its recorded use, but in total no
/// more than its leases.
pub(super) const SMALLEST_SURGE: u64 = 16 << 20;
/// The times, counted from the start of a phase, at which the number of used bytes is written to disk while the rate of
/// the phase is not known yet. After these, the number is written at each whole second.
const FIRST_WRITES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the number of used bytes is read during a phase. Reading costs nothing; only writing needs the disk.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// How often, between phases, the number of used bytes is read, and written if it changed. Latency probes use bytes
/// there, too.
const IDLE_INTERVAL: Duration = WRITE_INTERVAL;
/// The length of the period over which the fastest rate of a session is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// What is on disk about the bytes that a session used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedUse {
    /// The number of payload bytes that the session had used when this number was read.
    pub used: u64,
    /// If a crash ends the session, this many bytes are charged in addition to `used`, but in total no more than the
    /// leases. It is twice the bytes of the fastest second of the session so far, and at least 16 MiB.
    pub surge: u64,
}

impl RecordedUse {
    /// The record of a session that has not used any bytes.
    pub const NOTHING: Self = Self { used: 0, surge: SMALLEST_SURGE };
}

/// The bytes to charge for a session that a crash ended: pairs of a day and its bytes, oldest day first. `leased` has
/// the leases of the session by day. If an earlier version wrote the leases, `recorded` is `None`, and the leases are
/// charged in full.
pub fn charged_after_crash(leased: &BTreeMap<u32, u64>, recorded: Option<RecordedUse>) -> Vec<(u32, u64)> {
    let all = leased.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    let charged = recorded.map_or(all, |recorded| recorded.used.saturating_add(recorded.surge).min(all));
    // Threads may have moved a little more than was leased.
    let charged = charged.max(recorded.map_or(0, |recorded| recorded.used));
    by_day(leased, charged, 0)
}

/// Divides the used bytes among the days of the leases, oldest day first. If more bytes were used than leased, such as
/// those in a receive buffer, the excess counts for the last leased day, or for `today` if there is no lease.
pub(super) fn by_day(leased: &BTreeMap<u32, u64>, used_bytes: u64, today: u32) -> Vec<(u32, u64)> {
    let mut left = used_bytes;
    let mut by_day = Vec::new();
    for (day, leased) in leased {
        let used = left.min(*leased);
        left -= used;
        by_day.push((*day, used));
    }
    match by_day.last_mut() {
        Some((_, used)) => *used = used.saturating_add(left),
        None => by_day.push((today, left)),
    }
    by_day.retain(|(_, used)| *used > 0);
    by_day
}

/// Receives readings of the number of bytes that one session used, and decides which of them to write to disk and when.
/// All times are on one monotonic clock.
#[derive(Debug)]
pub struct UseRecorder {
    /// When the running phase began; `None` between phases.
    phase_began: Option<Duration>,
    /// Whether a phase has ended and the number of used bytes was not read since.
    is_last_reading_due: bool,
    /// The readings of the last second and the last reading before them, each with its time, oldest first.
    readings: VecDeque<(Duration, u64)>,
    fastest_second: u64,
    recorded: RecordedUse,
    /// The time of the last reading that `read` returned to be written, whether or not the write succeeded.
    tried_at: Duration,
}

impl Default for UseRecorder {
    /// The recorder of a session before its first phase.
    fn default() -> Self {
        Self {
            phase_began: None,
            is_last_reading_due: false,
            readings: VecDeque::new(),
            fastest_second: 0,
            recorded: RecordedUse::NOTHING,
            tried_at: Duration::ZERO,
        }
    }
}

impl UseRecorder {
    /// Records that a phase began: its streams are connected. `used` is the number of bytes that the session has used
    /// so far.
    pub fn phase_began(&mut self, used: u64, mono: Duration) {
        self.phase_began = Some(mono);
        self.note(used, mono);
    }

    /// Records that the phase ended.
    pub fn phase_ended(&mut self) {
        self.phase_began = None;
        self.is_last_reading_due = true;
    }

    /// When to call [`UseRecorder::read`] next; zero means now. `None` before the first lease or phase, because no
    /// bytes are moved before.
    pub fn next_reading(&self) -> Option<Duration> {
        if self.is_last_reading_due {
            return Some(Duration::ZERO);
        }
        let (last, _) = *self.readings.back()?;
        let Some(began) = self.phase_began else { return Some(last.saturating_add(IDLE_INTERVAL)) };
        let of_start = FIRST_WRITES.into_iter().map(|after| began.saturating_add(after)).find(|at| *at > last);
        Some(of_start.unwrap_or(Duration::MAX).min(last.saturating_add(READ_INTERVAL)))
    }

    /// Adds a reading: the session has used `used` bytes at the time `mono`. If this returns a record, write it to disk
    /// now, and call [`UseRecorder::written`] once it is on disk.
    pub fn read(&mut self, used: u64, mono: Duration) -> Option<RecordedUse> {
        let is_last = std::mem::take(&mut self.is_last_reading_due);
        let current = self.current(used, mono);
        let is_scheduled = match self.phase_began {
            Some(began) => began.saturating_add(last_scheduled_write(mono.saturating_sub(began))) > self.tried_at,
            None => mono >= self.tried_at.saturating_add(IDLE_INTERVAL),
        };
        // A sudden rise must not wait for the next second: a quarter of the surge is left for the bytes until then.
        let is_surging = used > self.recorded.used.saturating_add(self.recorded.surge / 4 * 3);
        if used == self.recorded.used || !(is_last || is_scheduled || is_surging) {
            return None;
        }
        self.tried_at = mono;
        Some(current)
    }

    /// Adds a reading and returns its record, for a write that happens for another reason, such as a lease.
    pub fn current(&mut self, used: u64, mono: Duration) -> RecordedUse {
        self.note(used, mono);
        RecordedUse { used, surge: self.fastest_second.saturating_mul(2).max(SMALLEST_SURGE) }
    }

    /// Records that this use is on disk.
    pub fn written(&mut self, recorded: RecordedUse) {
        self.recorded = recorded;
    }

    /// Adds a reading, and updates the fastest second. If two readings are more than a second apart, the bytes between
    /// them are divided by the number of seconds, rounded up: at least one of these seconds carried that many.
    fn note(&mut self, used: u64, mono: Duration) {
        for (at, before) in &self.readings {
            let span = mono.saturating_sub(*at);
            let seconds = span.as_nanos().div_ceil(WINDOW.as_nanos()).max(1);
            let of_one = u128::from(used.saturating_sub(*before)) / seconds;
            self.fastest_second = self.fastest_second.max(u64::try_from(of_one).unwrap_or(u64::MAX));
        }
        self.readings.push_back((mono, used));
        // One older reading stays: readings can be more than a second apart.
        while self.readings.get(1).is_some_and(|(at, _)| at.saturating_add(WINDOW) < mono) {
            self.readings.pop_front();
        }
    }
}

/// The last time, not after `elapsed`, at which the use had to be written; 0 if there was none yet. Both times are
/// counted from the start of the phase.
fn last_scheduled_write(elapsed: Duration) -> Duration {
    let whole = Duration::from_secs(elapsed.as_secs());
    if whole >= WRITE_INTERVAL {
        return whole;
    }
    FIRST_WRITES.into_iter().rfind(|at| *at <= elapsed).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn use_is_written_often_at_the_beginning_and_then_once_a_second() {
        let mut recorder = UseRecorder::default();
        assert_eq!(recorder.next_reading(), None);
        let began = ms(7_000);
        recorder.phase_began(0, began);
        let mut writes = Vec::new();
        while let Some(now) = recorder.next_reading().filter(|at| *at < began + ms(3_900)) {
            let used = u64::try_from((now - began).as_millis()).unwrap() * 625;
            if let Some(recorded) = recorder.read(used, now) {
                writes.push((now - began).as_millis());
                recorder.written(recorded);
            }
        }
        assert_eq!(writes, [50, 100, 200, 400, 1000, 2000, 3000]);
        recorder.phase_ended();
        assert_eq!(recorder.next_reading(), Some(Duration::ZERO));
        let last = RecordedUse { used: 3_900 * 625, surge: SMALLEST_SURGE };
        assert_eq!(recorder.read(3_900 * 625, began + ms(3_900)), Some(last));
        recorder.written(last);
        assert_eq!(recorder.next_reading(), Some(began + ms(4_900)));
    }

    #[test]
    fn outside_of_phases_use_is_read_and_written_once_a_second() {
        let mut recorder = UseRecorder::default();
        // The first lease: latency probes may flow from here on.
        let first = recorder.current(0, ms(7_300));
        recorder.written(first);
        let mut writes = Vec::new();
        while let Some(now) = recorder.next_reading().filter(|at| *at < ms(12_000)) {
            // Nothing flows in the last two seconds.
            let used = u64::try_from(now.min(ms(10_300)).as_millis()).unwrap() * 1_000_000;
            if let Some(recorded) = recorder.read(used, now) {
                writes.push(now);
                recorder.written(recorded);
            }
        }
        assert_eq!(writes, [ms(8_300), ms(9_300), ms(10_300)]);
    }

    #[test]
    fn a_sudden_rise_is_written_at_once() {
        let mut recorder = UseRecorder::default();
        recorder.phase_began(0, ms(0));
        for at in [50, 100, 200, 400, 1000] {
            let recorded = recorder.read(at, ms(at)).unwrap();
            recorder.written(recorded);
        }
        assert_eq!(recorder.read(12_000_000, ms(1200)), None);
        let risen = recorder.read(100_000_000, ms(1400)).unwrap();
        assert!((190_000_000..=200_000_000).contains(&risen.surge), "{risen:?}");
    }

    #[test]
    fn a_crash_charges_the_recorded_use_and_the_surge_but_no_more_than_was_leased() {
        let leased = BTreeMap::from([(10, 1 << 30), (11, 64 << 30)]);
        let recorded = |used, surge| Some(RecordedUse { used, surge });
        assert_eq!(charged_after_crash(&leased, recorded(1_000_000, SMALLEST_SURGE)), [(10, 1_000_000 + (16 << 20))]);
        assert_eq!(charged_after_crash(&leased, recorded(1 << 30, 5)), [(10, 1 << 30), (11, 5)]);
        assert_eq!(charged_after_crash(&leased, recorded(5, u64::MAX)), [(10, 1 << 30), (11, 64 << 30)]);
        assert_eq!(charged_after_crash(&leased, recorded(66 << 30, 9)), [(10, 1 << 30), (11, 65 << 30)]);
        assert_eq!(charged_after_crash(&leased, None), [(10, 1 << 30), (11, 64 << 30)], "of an earlier version");
        assert_eq!(charged_after_crash(&BTreeMap::new(), recorded(0, 5)), []);
    }

    /// The bytes that were moved up to each millisecond, as a running sum.
    fn flow() -> impl Strategy<Value = Vec<u64>> {
        // Pauses, slow lines, bursts and 100 Gbit/s alternate.
        let rate = prop_oneof![Just(0_u64), 0..1_000_u64, 0..200_000_u64, 0..13_000_000_u64];
        vec((rate, 1..700_usize), 1..12).prop_map(|pieces| {
            let mut sum = 0;
            let each = pieces.into_iter().flat_map(|(rate, length)| std::iter::repeat_n(rate, length));
            std::iter::once(0)
                .chain(each.map(|bytes| {
                    sum += bytes;
                    sum
                }))
                .collect()
        })
    }

    proptest! {
        /// Tests any rate over time, and any delay of readings and writes. A crash at any moment charges no more than
        /// the used bytes and the promised surplus. It leaves no more bytes uncharged than were used since the last
        /// reading that could be on disk.
        #[test]
        fn a_crash_at_any_moment_charges_within_the_promise(
            flowed in flow(),
            late in vec((0..40_usize, 1..150_usize), 1..20),
            began in 0..300_usize,
            phase in 100..4_000_usize,
        ) {
            let leased = BTreeMap::from([(1, 1 << 50)]);
            let mut recorder = UseRecorder::default();
            let (mut on_disk, mut writing) = (RecordedUse::NOTHING, None::<(RecordedUse, usize)>);
            let mut late = late.into_iter().cycle();
            let (mut lateness, mut duration) = late.next().unwrap();
            let mut fastest = 0;
            // No bytes flow before the first lease, which is at 0 ms; probes may flow before the phase.
            recorder.current(0, ms(0));
            for (now, used) in flowed.iter().copied().enumerate() {
                fastest = fastest.max(used - flowed[now.saturating_sub(1_000)]);
                let mono = ms(now as u64);
                if now == began {
                    recorder.phase_began(used, mono);
                }
                if now == began + phase {
                    recorder.phase_ended();
                }
                if let Some((recorded, done)) = writing && done <= now {
                    recorder.written(recorded);
                    (on_disk, writing) = (recorded, None);
                }
                let due = recorder.next_reading().is_some_and(|at| at + ms(lateness as u64) <= mono);
                // The reading task waits for its own writes.
                if due && writing.is_none() {
                    if let Some(recorded) = recorder.read(used, mono) {
                        writing = Some((recorded, now + duration));
                    }
                    (lateness, duration) = late.next().unwrap();
                }
                let charged = charged_after_crash(&leased, Some(on_disk)).iter().map(|(_, bytes)| bytes).sum::<u64>();
                let promised = SMALLEST_SURGE.max(2 * fastest);
                prop_assert!(charged <= used + promised, "{charged} charged, {used} flowed, fastest {fastest}");
                // One gap between readings, their delay, and the write that a reading started. The first reading of a
                // phase is on disk after 240 ms.
                let gap = if now > began + 300 && now < began + phase { 200 } else { 1_000 };
                let since = now.saturating_sub(gap + 40 + if writing.is_some() { 150 } else { 0 });
                let uncharged = used.saturating_sub(charged);
                prop_assert!(uncharged <= used - flowed[since], "{uncharged} uncharged at {now} ms");
            }
        }

        /// A session with a steady rate is never charged too little after a crash, once its first write is on disk.
        #[test]
        fn a_steady_rate_is_never_undercharged(bytes_per_ms in 1..13_000_000_u64, late in 0..15_u64, write in 1..15_u64) {
            let leased = BTreeMap::from([(1, u64::MAX)]);
            let mut recorder = UseRecorder::default();
            recorder.phase_began(0, ms(0));
            let (mut on_disk, mut writing) = (RecordedUse::NOTHING, None);
            for now in 1..5_000 {
                let used = now * bytes_per_ms;
                if let Some((recorded, done)) = writing && done <= now {
                    recorder.written(recorded);
                    (on_disk, writing) = (recorded, None);
                }
                if writing.is_none() && recorder.next_reading().is_some_and(|at| at + ms(late) <= ms(now)) {
                    writing = recorder.read(used, ms(now)).map(|recorded| (recorded, now + write));
                }
                let charged = charged_after_crash(&leased, Some(on_disk))[0].1;
                prop_assert!(now < 80 || charged >= used, "{charged} of {used} at {now} ms");
            }
        }
    }
}
