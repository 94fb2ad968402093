//! Chooses the payload size of datagrams if the test request sets none. The payload becomes smaller if the kernel
//! learns of a smaller path MTU. The payload also becomes smaller if no datagram arrives, because a path may drop large
//! packets without an ICMP error (a black hole; RFC 8899, section 1.1). Uses no socket and no clock: feedback and times
//! are arguments.

use super::packet::{Feedback, HEADER};

/// The largest payload in bytes that fits the smallest MTU of IPv6, 1280 bytes (RFC 8200, section 5).
pub(super) const SMALL_PAYLOAD: usize = 1280 - 40 - 8;
/// If this many datagrams were sent and none has arrived after [`BLACK_HOLE_AFTER_NS`], the path counts as a black
/// hole. Feedback still arrives, so the other end is alive.
const MIN_DATAGRAMS: u64 = 5;
const BLACK_HOLE_AFTER_NS: u64 = 1_000_000_000;

/// The choice of the payload of one stream's datagrams.
#[derive(Debug)]
pub(super) struct PayloadSize {
    payload: usize,
    /// The largest payload that fits the path MTU, as far as the kernel knows it.
    largest: usize,
    since_ns: u64,
    state: SizeState,
    is_black_hole: bool,
}

#[derive(Debug)]
enum SizeState {
    /// No datagram has arrived yet.
    Unproven,
    /// The payload was reduced before any datagram arrived; `from` is the sequence number of the first smaller
    /// datagram.
    Reduced { from: u64 },
    /// Datagrams arrive. `vanished` is the number of larger datagrams, sent before the payload was reduced, that did
    /// not arrive.
    Proven { vanished: u64 },
}

impl PayloadSize {
    /// Starts with datagrams of `payload` bytes at `now_ns` of the sender's clock.
    pub(super) fn new(payload: usize, now_ns: u64) -> Self {
        Self { payload, largest: payload, since_ns: now_ns, state: SizeState::Unproven, is_black_hole: false }
    }

    /// Whether datagrams of the chosen payload arrive. Until they do, feedback does not show whether the path carries
    /// the rate.
    pub(super) fn is_proven(&self) -> bool {
        matches!(self.state, SizeState::Proven { .. })
    }

    /// The number of datagrams that did not arrive because they were too large for the path.
    pub(super) fn vanished(&self) -> u64 {
        if let SizeState::Proven { vanished } = self.state { vanished } else { 0 }
    }

    /// Whether the path dropped large datagrams without an ICMP error (a black hole).
    pub(super) fn is_black_hole(&self) -> bool {
        self.is_black_hole && self.vanished() > 0
    }

    /// Processes a feedback at `now_ns`. `next` is the sequence number of the next datagram. Returns the new payload if
    /// it changes.
    pub(super) fn on_feedback(&mut self, feedback: &Feedback, next: u64, now_ns: u64) -> Option<usize> {
        match self.state {
            SizeState::Unproven if feedback.received > 0 => {
                self.state = SizeState::Proven { vanished: 0 };
                None
            }
            SizeState::Unproven => {
                let is_overdue = next >= MIN_DATAGRAMS && now_ns.saturating_sub(self.since_ns) >= BLACK_HOLE_AFTER_NS;
                if !is_overdue || self.payload <= SMALL_PAYLOAD {
                    return None;
                }
                self.payload = SMALL_PAYLOAD;
                self.state = SizeState::Reduced { from: next };
                self.is_black_hole = true;
                Some(self.payload)
            }
            SizeState::Reduced { .. } if feedback.received == 0 => None,
            SizeState::Reduced { from } => {
                // Datagrams arrive in about the order of their numbers. If some of the larger datagrams have arrived,
                // all larger ones were only slow.
                let is_slow = feedback.through <= from || feedback.received > feedback.through - from;
                self.state = SizeState::Proven { vanished: if is_slow { 0 } else { from } };
                if !is_slow || self.payload == self.largest {
                    return None;
                }
                self.payload = self.largest;
                Some(self.payload)
            }
            SizeState::Proven { .. } => None,
        }
    }

    /// Reduces the payload to `room` bytes, which just fit the path MTU that the kernel has learned. `next` is the
    /// sequence number of the next datagram. Returns the new payload if it changes.
    pub(super) fn limit(&mut self, room: usize, next: u64) -> Option<usize> {
        if room >= self.payload || room < HEADER {
            return None;
        }
        (self.payload, self.largest) = (room, room);
        if !self.is_proven() {
            self.state = SizeState::Reduced { from: next };
        }
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn feedback(received: u64, through: u64) -> Feedback {
        Feedback { received, through, ..Feedback::default() }
    }

    #[test]
    fn a_payload_that_arrives_stays() {
        let mut size = PayloadSize::new(1400, 0);
        assert_eq!(size.on_feedback(&feedback(0, 0), 90, SECOND - 1), None);
        assert_eq!(size.on_feedback(&feedback(1, 2), 100, 2 * SECOND), None);
        assert_eq!(size.on_feedback(&feedback(1, 2), 900, 9 * SECOND), None, "a path that dies is no black hole");
        assert_eq!((size.is_proven(), size.vanished(), size.is_black_hole()), (true, 0, false));
    }

    #[test]
    fn where_nothing_arrives_it_becomes_smaller_once() {
        let mut size = PayloadSize::new(1400, 0);
        assert_eq!(size.on_feedback(&feedback(0, 0), 4, SECOND), None, "too few datagrams");
        assert_eq!(size.on_feedback(&feedback(0, 0), 90, SECOND), Some(SMALL_PAYLOAD));
        assert_eq!(size.on_feedback(&feedback(0, 0), 200, 3 * SECOND), None);
        assert!(!size.is_proven() && !size.is_black_hole(), "nothing arrives at all");
        assert_eq!(size.on_feedback(&feedback(3, 94), 95, 4 * SECOND), None);
        assert_eq!((size.vanished(), size.is_black_hole()), (90, true));
        let mut small = PayloadSize::new(1200, 0);
        assert_eq!(small.on_feedback(&feedback(0, 0), 90, SECOND), None);
    }

    #[test]
    fn datagrams_that_are_only_slow_bring_the_payload_back() {
        for late in [feedback(5, 5), feedback(90, 90), feedback(60, 120)] {
            let mut size = PayloadSize::new(1400, 0);
            size.on_feedback(&feedback(0, 0), 90, SECOND).unwrap();
            assert_eq!(size.on_feedback(&late, 130, 2 * SECOND), Some(1400), "{late:?}");
            assert_eq!((size.vanished(), size.is_black_hole()), (0, false));
        }
    }

    #[test]
    fn the_kernel_s_path_mtu_limits_it_at_any_time() {
        let mut size = PayloadSize::new(1400, 0);
        assert_eq!(size.limit(1400, 3), None);
        assert_eq!(size.limit(1392, 3), Some(1392));
        assert_eq!(size.on_feedback(&feedback(2, 5), 6, SECOND), None);
        assert_eq!((size.vanished(), size.is_black_hole()), (3, false), "the kernel was told");
        assert_eq!(size.limit(1252, 500), Some(1252));
        assert_eq!(size.vanished(), 3, "what is lost from here on is loss of the path");
        assert_eq!(size.limit(20, 500), None, "no room for the header");
    }
}
