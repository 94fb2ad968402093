//! The search for the highest rate whose loss stays under a bound, in the manner of RFC 9097, section 8: what the
//! receiver tells comes in, a rate comes out. Pure: no clock, no sockets.
//!
//! It doubles until the path is full, lets the queue that this made run empty, and then feels its way around what the
//! path carries. A path is full when more is lost than the bound allows, or when a queue stands.

use super::packet::Feedback;

/// Where it begins, in bits per second of payload.
const FIRST_BPS: f64 = 1e6;
/// It goes no lower than this.
const LOWEST_BPS: f64 = 64e3;
/// The highest rate there is any sense in.
const HIGHEST_BPS: f64 = 1e12;
/// A rate is judged by what came within at least this time, and this many datagrams, or else this longer time.
const LEAST_NS: u64 = 45_000_000;
const LEAST_DATAGRAMS: u64 = 100;
const LONGEST_NS: u64 = 400_000_000;
/// A rate of which nothing is heard for this long, by the sender's clock, is halved.
const UNHEARD_NS: u64 = 1_000_000_000;
/// A queue that stands for longer than this means that the path is full.
const QUEUE_US: u32 = 8_000;
/// So many words in a row must tell of it.
const STANDS: u32 = 2;
/// It has run empty when it is shorter than this.
const EMPTY_US: u32 = 2_000;
/// It should run empty in about this time; while it does, shares of the path in this range are used.
const DRAIN_US: f64 = 200_000.0;
const DRAINING: std::ops::RangeInclusive<f64> = 0.5..=0.9;
/// This share of what the path carried is where feeling around begins.
const JUST_BELOW: f64 = 0.985;
/// The first step up of those.
const STEP: f64 = 0.005;
/// Where more was lost in all than the bound allows, judged after so many intervals, it goes back by this much with each
/// interval that is not clean, and by this much where the path is full.
const ENOUGH_TO_TELL: u32 = 10;
const BACK: f64 = 0.98;
const FAR_BACK: f64 = 0.93;
/// A path that carries less than this share of what it did is held up, or another one.
const MUCH_LESS: f64 = 0.93;
/// A sender that does less than this share of what it is told can't do more.
const CANNOT: f64 = 0.85;
/// From this much above what was found on it is searched for anew, if that was found so many intervals ago at most.
const BEYOND: f64 = 1.3;
/// From this much on always: what was found then was nothing.
const FAR_BEYOND: f64 = 2.0;
const YOUNG: u32 = 24;

/// The search of one stream.
#[derive(Debug)]
pub(super) struct Search {
    /// The loss that may be, as a share.
    bound: f64,
    /// Bits of payload in a datagram.
    bits: f64,
    rate_bps: f64,
    stage: Stage,
    /// The rate when it settled.
    settled_bps: Option<f64>,
    /// The first datagram sent at this rate.
    mark: u64,
    /// When the rate was last changed, by the sender's clock.
    changed_ns: u64,
    /// The first word of the receiver after it had datagrams of this rate.
    since: Option<Feedback>,
    last: Option<Feedback>,
    /// Intervals in a row in which the path was not full.
    clean: u32,
    /// Intervals in a row in which the sender did not do what it was told.
    behind: u32,
    /// Words in a row that told of a queue.
    standing: u32,
    /// The last rate at which the path was not full.
    clean_bps: f64,
    /// Where a path was that then carried much less of a sudden: mostly it was held up, and will be there again.
    regain_bps: Option<f64>,
    /// The first datagram sent since it settled, and the first word of the receiver after that came.
    settled_from: u64,
    settled_since: Option<Feedback>,
    /// What was to come since then, and what of it was lost: with every word, so that nothing is left out.
    expected: f64,
    lost: f64,
    /// Intervals since then.
    judged: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Doubling.
    Rising,
    /// The queue runs empty; then on with this rate.
    Draining { then_bps: f64 },
    /// Feeling around what the path carries.
    Feeling,
}

/// What one interval showed.
struct Interval {
    seconds: f64,
    expected: f64,
    lost: f64,
    /// What arrived, and what had been sent for it, in bits per second of payload.
    came_bps: f64,
    sent_bps: f64,
}

impl Search {
    /// A search for datagrams of `payload` bytes, of which `bound_ppm` millionths may be lost.
    pub(super) fn new(payload: usize, bound_ppm: u32) -> Self {
        Self {
            bound: f64::from(bound_ppm) / 1e6,
            bits: (payload * 8) as f64,
            rate_bps: FIRST_BPS,
            stage: Stage::Rising,
            settled_bps: None,
            mark: 0,
            changed_ns: 0,
            since: None,
            last: None,
            clean: 0,
            behind: 0,
            standing: 0,
            clean_bps: 0.0,
            regain_bps: None,
            settled_from: 0,
            settled_since: None,
            expected: 0.0,
            lost: 0.0,
            judged: 0,
        }
    }

    /// The rate to send at, in bits per second of payload.
    pub(super) fn rate_bps(&self) -> f64 {
        self.rate_bps
    }

    /// Whether it has found what the path carries, so that what is sent from here on is the result.
    pub(super) fn is_settled(&self) -> bool {
        self.settled_bps.is_some()
    }

    /// Takes what the receiver tells, `sent` datagrams after the begin, at `now_ns` of the sender's clock.
    pub(super) fn hear(&mut self, told: Feedback, sent: u64, now_ns: u64) {
        let before = self.last.replace(told);
        if before.is_some_and(|before| told.at_ns <= before.at_ns) {
            return;
        }
        self.sum_up(&told);
        if let Stage::Draining { then_bps } = self.stage {
            // What was in the queue before is no news of this rate; a queue that never empties is how this path is.
            let long = now_ns.saturating_sub(self.changed_ns) > UNHEARD_NS;
            if told.through >= self.mark && told.queue_us < EMPTY_US || long {
                self.stage = Stage::Feeling;
                self.settle(then_bps, sent);
                self.change(then_bps, sent, now_ns);
            }
            return;
        }
        // The queue of a rate that was left is not this one's fault; and one word of it may be a host that was held up.
        let is_long = told.queue_us > QUEUE_US && told.through >= self.mark;
        self.standing = if is_long { self.standing + 1 } else { 0 };
        if self.standing >= STANDS {
            let lately = before.and_then(|before| self.between(&before, &told));
            let since = self.since.and_then(|since| self.between(&since, &told));
            if let Some(interval) = since.or(lately) {
                self.judged = self.judged.saturating_add(1);
                self.full(&interval, told.queue_us, sent, now_ns);
                return;
            }
        }
        if told.through < self.mark {
            if now_ns.saturating_sub(self.changed_ns) > UNHEARD_NS {
                self.clean = 0;
                self.change(self.rate_bps / 2.0, sent, now_ns);
            }
            return;
        }
        let Some(since) = self.since else {
            self.since = Some(told);
            return;
        };
        let long = told.at_ns.saturating_sub(since.at_ns);
        let enough = told.through.saturating_sub(since.through) >= LEAST_DATAGRAMS || long >= LONGEST_NS;
        if long < LEAST_NS || !enough && self.stage != Stage::Rising {
            return;
        }
        if let Some(interval) = self.between(&since, &told) {
            self.judge(&interval, told.queue_us, sent, now_ns);
        }
    }

    fn judge(&mut self, interval: &Interval, queue_us: u32, sent: u64, now_ns: u64) {
        self.judged = self.judged.saturating_add(1);
        let allowed = self.bound * interval.expected;
        // Chance alone makes some intervals worse than others.
        if interval.lost > allowed + 1.5 * allowed.sqrt() + 1.0 {
            return self.full(interval, queue_us, sent, now_ns);
        }
        // Two datagrams more or less are how the interval was cut.
        let is_behind = interval.expected + 2.0 < CANNOT * self.rate_bps / self.bits * interval.seconds;
        self.behind = if is_behind { self.behind + 1 } else { 0 };
        if is_behind {
            if self.behind > 1 || self.stage == Stage::Feeling {
                // The path may carry more, but this end can't send it.
                self.stage = Stage::Feeling;
                self.clean = 0;
                let most = (interval.sent_bps * 1.05).max(self.clean_bps.min(self.rate_bps));
                self.settle(most, sent);
                return self.change(most, sent, now_ns);
            }
            return self.change(self.rate_bps, sent, now_ns);
        }
        if self.stage == Stage::Rising {
            return self.change(self.rate_bps * 2.0, sent, now_ns);
        }
        let is_lossy = interval.lost > allowed / 4.0 + 0.5 || self.lost > 0.7 * self.bound * self.expected + 0.5;
        if is_lossy {
            // Under the bound, but as near to it as it should be.
            self.clean = 0;
            let back = if self.is_beyond() { BACK } else { 1.0 };
            return self.change(self.rate_bps * back, sent, now_ns);
        }
        self.clean_bps = self.rate_bps;
        if let Some(regain_bps) = self.regain_bps {
            if self.rate_bps < JUST_BELOW * regain_bps {
                return self.change((self.rate_bps + regain_bps) / 2.0, sent, now_ns);
            }
            self.regain_bps = None;
        }
        let step = STEP * f64::from(1u32 << (self.clean / 2).min(7));
        self.clean += 1;
        let next = self.rate_bps * (1.0 + step);
        let beyond = if self.judged < YOUNG { BEYOND } else { FAR_BEYOND };
        if self.settled_bps.is_some_and(|settled| next > beyond * settled) {
            // What was taken for a full path was none, or it has become faster.
            self.settled_bps = None;
            self.stage = Stage::Rising;
        }
        self.change(next, sent, now_ns);
    }

    /// The path is full: what came is what it carries.
    fn full(&mut self, interval: &Interval, queue_us: u32, sent: u64, now_ns: u64) {
        let carried = interval.came_bps.min(self.rate_bps);
        self.clean = 0;
        self.behind = 0;
        let is_beyond = self.is_beyond();
        self.standing = 0;
        let sudden = self.stage == Stage::Feeling && carried < MUCH_LESS * self.clean_bps;
        self.regain_bps = match self.regain_bps {
            _ if is_beyond => None,
            // Full again before it was back there: next time half as far.
            Some(regain_bps) => Some((regain_bps + carried) / 2.0).filter(|half| carried < MUCH_LESS * half),
            None => sudden.then_some(self.clean_bps),
        };
        self.clean_bps = carried;
        let then = if is_beyond { JUST_BELOW * FAR_BACK } else { JUST_BELOW };
        self.stage = Stage::Draining { then_bps: carried * then };
        let draining = (1.0 - f64::from(queue_us) / DRAIN_US).clamp(*DRAINING.start(), *DRAINING.end());
        self.change(carried * draining, sent, now_ns);
    }

    fn settle(&mut self, rate_bps: f64, sent: u64) {
        if self.settled_bps.is_none() {
            (self.settled_from, self.settled_since) = (sent, None);
            (self.expected, self.lost, self.judged) = (0.0, 0.0, 0);
        }
        // Later rounds may find it lower.
        self.settled_bps = Some(self.settled_bps.map_or(rate_bps, |settled| settled.max(rate_bps)));
    }

    fn change(&mut self, rate_bps: f64, sent: u64, now_ns: u64) {
        self.rate_bps = rate_bps.clamp(LOWEST_BPS, HIGHEST_BPS);
        self.mark = sent;
        self.changed_ns = now_ns;
        self.since = None;
    }

    /// What all that was sent since it settled has come to.
    fn sum_up(&mut self, told: &Feedback) {
        if self.settled_bps.is_none() || told.through < self.settled_from {
            return;
        }
        let since = *self.settled_since.get_or_insert(*told);
        if let Some(interval) = self.between(&since, told) {
            (self.expected, self.lost) = (interval.expected, interval.lost);
        }
    }

    /// Whether, once there is enough to tell, more was lost in all than the bound allows.
    fn is_beyond(&self) -> bool {
        self.judged >= ENOUGH_TO_TELL && self.lost > self.bound * self.expected
    }

    fn between(&self, from: &Feedback, to: &Feedback) -> Option<Interval> {
        let seconds = to.at_ns.checked_sub(from.at_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let expected = to.through.checked_sub(from.through)? as f64;
        let came = to.received.checked_sub(from.received)? as f64;
        let rate = |datagrams: f64| datagrams * self.bits / seconds;
        // What came late of an earlier interval makes no loss negative.
        Some(Interval {
            seconds,
            expected,
            lost: (expected - came).max(0.0),
            came_bps: rate(came),
            sent_bps: rate(expected),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::ledger::Ledger;
    use super::super::packet::Bulk;
    use super::*;

    const PAYLOAD: usize = 1400;
    const SECOND: u64 = 1_000_000_000;
    const FEEDBACK_NS: u64 = 50_000_000;

    /// A path whose truth is known.
    #[derive(Clone, Copy, Debug)]
    struct Path {
        /// Payload that it carries.
        bps: f64,
        /// How long a datagram waits in its queue at most.
        queue_ns: u64,
        one_way_ns: u64,
        /// One in so many is lost for no reason; 0: none.
        lost_one_in: u64,
        /// What the sender can do at most.
        sender_bps: f64,
    }

    const PLAIN: Path =
        Path { bps: 100e6, queue_ns: 50_000_000, one_way_ns: 5_000_000, lost_one_in: 0, sender_bps: 1e12 };

    /// What came of a run.
    #[derive(Debug)]
    struct Found {
        /// Payload that arrived in the settled part, in bits per second, and its share of loss.
        bps: f64,
        loss: f64,
        settled_at_s: f64,
    }

    /// Runs a search over `path` for `seconds`, as sender and receiver do.
    fn run(path: Path, seconds: u64) -> Option<Found> {
        let mut search = Search::new(PAYLOAD, 10_000);
        let mut ledger = Ledger::new();
        let bits = (PAYLOAD * 8) as f64;
        let (mut now, mut sent, mut due, mut free) = (0u64, 0u64, 0u64, 0u64);
        let mut settled_from = None;
        let mut under_way: VecDeque<(u64, Bulk)> = VecDeque::new();
        let mut feedback: VecDeque<(u64, Feedback)> = VecDeque::new();
        let mut next_feedback = 0;
        let mut last_arrival = 0;
        while now < seconds * SECOND {
            // The receiver, until now.
            loop {
                let arrives = under_way.front().map_or(u64::MAX, |(at, _)| *at);
                if arrives.min(next_feedback) > now {
                    break;
                }
                if arrives <= next_feedback {
                    let (at, bulk) = under_way.pop_front().unwrap();
                    ledger.enter(&bulk, at + 12_345);
                    last_arrival = at;
                } else {
                    let counts = ledger.counts();
                    let told = Feedback {
                        received: counts.received,
                        through: counts.through,
                        at_ns: next_feedback + 12_345,
                        queue_us: ledger.queue_us(),
                        is_over: false,
                    };
                    feedback.push_back((next_feedback + path.one_way_ns, told));
                    next_feedback += FEEDBACK_NS;
                }
            }
            while let Some((_, told)) = feedback.pop_front_if(|(at, _)| *at <= now) {
                search.hear(told, sent, now);
                match (search.is_settled(), settled_from) {
                    (true, None) => settled_from = Some((sent, now)),
                    (false, Some(_)) => settled_from = None,
                    _ => {}
                }
            }
            if due <= now {
                let bulk = Bulk { seq: sent, sent_ns: now, is_settled: settled_from.is_some() };
                let unlucky = path.lost_one_in > 0 && (sent * 2_654_435_761) % path.lost_one_in == 0;
                free = free.max(now);
                if free - now <= path.queue_ns && !unlucky {
                    free += (bits / path.bps * 1e9) as u64;
                    under_way.push_back((free + path.one_way_ns, bulk));
                }
                sent += 1;
                due += (bits / search.rate_bps().min(path.sender_bps) * 1e9) as u64;
                due = due.max(now.saturating_sub(2_000_000));
            }
            now = due.min(now + 1_000_000).max(now + 1);
        }
        under_way.iter().for_each(|(at, bulk)| {
            ledger.enter(bulk, *at);
        });
        let (from, at) = settled_from?;
        let counts = ledger.counts();
        let seconds = (last_arrival - at) as f64 / 1e9;
        let settled = (sent - from) as f64;
        Some(Found {
            bps: counts.settled as f64 * bits / seconds,
            loss: (settled - counts.settled as f64) / settled,
            settled_at_s: at as f64 / 1e9,
        })
    }

    fn assert_found(path: Path) {
        let found = run(path, 10).unwrap_or_else(|| panic!("it never settled: {path:?}"));
        let truth = path.bps.min(path.sender_bps);
        assert!(found.bps > 0.95 * truth && found.bps < 1.05 * truth, "{found:?} {path:?}");
        assert!(found.loss < 0.01, "{found:?} {path:?}");
        assert!(found.settled_at_s < 5.0, "{found:?} {path:?}");
    }

    #[test]
    fn it_finds_what_a_path_carries() {
        for bps in [1e6, 5e6, 20e6, 100e6, 500e6] {
            assert_found(Path { bps, ..PLAIN });
        }
    }

    #[test]
    fn it_finds_it_behind_a_policer_that_has_no_queue() {
        for bps in [20e6, 100e6] {
            assert_found(Path { bps, queue_ns: 1_000_000, ..PLAIN });
        }
    }

    #[test]
    fn it_finds_it_before_a_queue_of_a_second() {
        assert_found(Path { queue_ns: SECOND, ..PLAIN });
    }

    #[test]
    fn it_finds_it_over_a_long_way() {
        assert_found(Path { one_way_ns: 100_000_000, bps: 50e6, ..PLAIN });
    }

    #[test]
    fn loss_below_the_bound_stops_nothing() {
        assert_found(Path { lost_one_in: 500, ..PLAIN });
    }

    #[test]
    fn a_sender_that_can_not_do_more_is_found_too() {
        assert_found(Path { sender_bps: 60e6, ..PLAIN });
    }

    #[test]
    fn a_path_that_loses_more_than_the_bound_is_not_flooded() {
        let mut search = Search::new(PAYLOAD, 10_000);
        let mut told = Feedback::default();
        for round in 1..200u64 {
            told.at_ns = round * FEEDBACK_NS;
            told.through += 200;
            told.received += 160;
            search.hear(told, told.through, told.at_ns);
        }
        assert!(search.rate_bps() <= 2.0 * FIRST_BPS, "{search:?}");
    }

    #[test]
    fn where_nothing_arrives_the_rate_falls() {
        let mut search = Search::new(PAYLOAD, 10_000);
        for round in 1..200u64 {
            let told = Feedback { at_ns: round * FEEDBACK_NS, ..Feedback::default() };
            search.hear(told, round * 10, round * FEEDBACK_NS);
        }
        assert!(search.rate_bps() <= FIRST_BPS, "{search:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn it_finds_what_any_path_carries(
            mbps in 2u32..300,
            queue_ms in 2u64..300,
            one_way_ms in 0u64..60,
        ) {
            let path = Path {
                bps: f64::from(mbps) * 1e6,
                queue_ns: queue_ms * 1_000_000,
                one_way_ns: one_way_ms * 1_000_000,
                ..PLAIN
            };
            assert_found(path);
        }

        #[test]
        fn no_word_of_the_receiver_panics_or_leaves_the_range(
            words in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..60),
        ) {
            let mut search = Search::new(PAYLOAD, 10_000);
            for (received, through, at_ns, queue_us, sent, now_ns) in words {
                search.hear(Feedback { received, through, at_ns, queue_us, is_over: false }, sent, now_ns);
                prop_assert!((LOWEST_BPS..=HIGHEST_BPS).contains(&search.rate_bps()));
            }
        }
    }
}
