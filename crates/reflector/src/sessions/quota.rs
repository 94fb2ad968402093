//! What each peer has used: its tests of the last hour, and its bytes of the day. The caller compares this use with the
//! limits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use paramedic_link::{EndpointId, SessionId};

/// The time that the limit of tests per hour covers, in milliseconds.
const HOUR_MS: u64 = 3600 * 1000;
/// The number of days before today whose bytes are kept, for sessions that run past midnight and for changes of the
/// clock. Later days than today are kept as well: the clock may have been set back.
pub const DAYS_KEPT: u32 = 7;

/// The tests that were granted within the last hour.
#[derive(Debug, Default)]
pub(super) struct Tests {
    /// For each peer, the times at which its tests were granted, oldest first, in milliseconds since 1970. Nothing else
    /// is kept about a test, because a peer may be allowed many tests.
    granted: BTreeMap<EndpointId, VecDeque<u64>>,
    /// For each session that has not ended yet, when its test was granted.
    refundable: BTreeMap<SessionId, u64>,
}

impl Tests {
    pub(super) fn new(mut past: Vec<(EndpointId, u64)>) -> Self {
        past.sort_by_key(|(_, at)| *at);
        let mut tests = Self::default();
        for (peer, at) in past {
            tests.granted.entry(peer).or_default().push_back(at);
        }
        tests
    }

    /// Removes the tests that are older than an hour. A test in the future means that the clock was set back. Such a
    /// test counts as granted now; otherwise it would count for as long as the clock was wrong.
    pub(super) fn pass_time(&mut self, unix_ms: u64) {
        for at in self.refundable.values_mut() {
            *at = unix_ms.min(*at);
        }
        self.granted.retain(|_, tests| {
            for at in tests.iter_mut() {
                *at = unix_ms.min(*at);
            }
            tests.retain(|at| unix_ms - at < HOUR_MS);
            !tests.is_empty()
        });
    }

    pub(super) fn charge(&mut self, peer: EndpointId, session: SessionId, unix_ms: u64) {
        self.granted.entry(peer).or_default().push_back(unix_ms);
        self.refundable.insert(session, unix_ms);
    }

    pub(super) fn refund(&mut self, peer: EndpointId, session: SessionId) {
        let (Some(granted), Some(tests)) = (self.refundable.remove(&session), self.granted.get_mut(&peer)) else {
            return;
        };
        // Tests of the same millisecond are interchangeable.
        if let Some(at) = tests.iter().rposition(|at| *at == granted) {
            tests.remove(at);
        }
    }

    /// Records that the session has ended. Its test stays charged.
    pub(super) fn settle(&mut self, session: SessionId) {
        self.refundable.remove(&session);
    }

    pub(super) fn count(&self, peer: EndpointId) -> u32 {
        self.granted.get(&peer).map_or(0, |tests| u32::try_from(tests.len()).unwrap_or(u32::MAX))
    }

    /// How long `peer` must wait until one more of its tests fits into `limit`. `None` if it fits now, or never will.
    pub(super) fn until_one_leaves(&self, peer: EndpointId, limit: u32, unix_ms: u64) -> Option<Duration> {
        let tests = self.granted.get(&peer)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let in_the_way = tests.len().checked_sub(limit)?;
        let at = tests.get(in_the_way)?;
        Some(Duration::from_millis(HOUR_MS.saturating_sub(unix_ms.saturating_sub(*at))))
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = EndpointId> {
        self.granted.iter().filter(|(_, tests)| !tests.is_empty()).map(|(peer, _)| *peer)
    }
}

/// The bytes that are charged on each day: those that were moved, and all bytes of open leases.
#[derive(Debug, Default)]
pub(super) struct ChargedBytes {
    days: BTreeMap<u32, BTreeMap<EndpointId, u64>>,
}

impl ChargedBytes {
    pub(super) fn new(past: Vec<(EndpointId, u32, u64)>) -> Self {
        let mut all = Self::default();
        for (peer, day, bytes) in past {
            all.charge(peer, day, bytes);
        }
        all
    }

    /// Removes the days that are more than [`DAYS_KEPT`] before `today`.
    pub(super) fn pass_time(&mut self, today: u32) {
        self.days.retain(|day, _| day.saturating_add(DAYS_KEPT) >= today);
    }

    pub(super) fn charge(&mut self, peer: EndpointId, day: u32, bytes: u64) {
        let charged = self.days.entry(day).or_default().entry(peer).or_default();
        *charged = charged.saturating_add(bytes);
    }

    pub(super) fn refund(&mut self, peer: EndpointId, day: u32, bytes: u64) {
        if let Some(charged) = self.days.get_mut(&day).and_then(|peers| peers.get_mut(&peer)) {
            *charged = charged.saturating_sub(bytes);
        }
    }

    pub(super) fn of_peer(&self, peer: EndpointId, day: u32) -> u64 {
        self.days.get(&day).and_then(|peers| peers.get(&peer)).copied().unwrap_or(0)
    }

    pub(super) fn of_all(&self, day: u32) -> u64 {
        self.days.get(&day).map_or(0, |peers| peers.values().fold(0, |sum, bytes| sum.saturating_add(*bytes)))
    }

    pub(super) fn peers(&self, day: u32) -> impl Iterator<Item = EndpointId> {
        self.days.get(&day).into_iter().flatten().filter(|(_, bytes)| **bytes > 0).map(|(peer, _)| *peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: EndpointId = EndpointId::from_bytes([1; 32]);

    #[test]
    fn a_test_leaves_the_window_after_an_hour_to_the_millisecond() {
        let mut tests = Tests::new(vec![(PEER, 2_000), (PEER, 1_000)]);
        tests.pass_time(1_000 + HOUR_MS - 1);
        assert_eq!(tests.count(PEER), 2);
        assert_eq!(tests.until_one_leaves(PEER, 2, 1_000 + HOUR_MS - 1), Some(Duration::from_millis(1)));
        tests.pass_time(1_000 + HOUR_MS);
        assert_eq!(tests.count(PEER), 1);
    }

    #[test]
    fn with_a_lowered_limit_all_excess_tests_must_leave_first() {
        let tests = Tests::new(vec![(PEER, 1_000), (PEER, 2_000), (PEER, 3_000)]);
        assert_eq!(tests.until_one_leaves(PEER, 2, 3_000), Some(Duration::from_millis(HOUR_MS - 1_000)));
        assert_eq!(tests.until_one_leaves(PEER, 4, 3_000), None);
        assert_eq!(tests.until_one_leaves(PEER, 0, 3_000), None, "none is never allowed");
    }

    #[test]
    fn a_clock_that_was_set_back_locks_no_peer_out() {
        let mut tests = Tests::new(vec![(PEER, u64::MAX)]);
        tests.pass_time(5_000);
        assert_eq!(tests.count(PEER), 1);
        tests.pass_time(5_000 + HOUR_MS);
        assert_eq!(tests.count(PEER), 0);
    }

    #[test]
    fn days_are_counted_separately_and_removed_after_a_week() {
        let mut bytes = ChargedBytes::new(vec![(PEER, 10, 5)]);
        bytes.charge(PEER, 11, 7);
        assert_eq!((bytes.of_peer(PEER, 10), bytes.of_all(11)), (5, 7));
        bytes.pass_time(18);
        assert_eq!((bytes.of_peer(PEER, 10), bytes.of_peer(PEER, 11)), (0, 7));
    }

    #[test]
    fn a_clock_that_was_behind_forgets_no_day() {
        let mut bytes = ChargedBytes::new(vec![(PEER, 20_000, 5)]);
        bytes.pass_time(0);
        bytes.charge(PEER, 0, 7);
        bytes.pass_time(20_000);
        assert_eq!((bytes.of_peer(PEER, 20_000), bytes.of_peer(PEER, 0)), (5, 0));
    }

    #[test]
    fn charges_stop_at_the_largest_number() {
        let mut bytes = ChargedBytes::new(vec![(PEER, 1, u64::MAX)]);
        bytes.charge(PEER, 1, u64::MAX);
        bytes.charge(EndpointId::from_bytes([2; 32]), 1, 1);
        assert_eq!(bytes.of_all(1), u64::MAX);
    }
}
