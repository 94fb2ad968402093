//! Limits the lines that each cause, such as one peer, adds to the audit log and to the program's log. In each minute,
//! a fixed number of lines per cause is written in full, then one line with the count of the others. Pure: the caller
//! writes the lines.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::EndpointId;

use crate::event::{AuditEvent, RefusalReason};
use crate::sessions::Now;

/// The duration of a counting window. A window begins with its first line.
const WINDOW: Duration = Duration::from_secs(60);

/// A cause of log lines. Lines with the same cause are counted together. The number of causes is bounded: the reasons
/// are fixed, and each peer was paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The lines of the audit log about refusals with one reason.
    Refusal(RefusalReason),
    /// Lines of the audit log about one peer, of the kinds that no quota limits: links; requests that are queued,
    /// denied or undone; monitor sessions; ports that other programs hold. Quotas limit the grants and ends of tests,
    /// so their lines are always written.
    Peer(EndpointId),
    /// Lines about one peer in the program's log.
    Log(EndpointId),
}

impl Cause {
    /// The number of lines that are written in full in each window.
    fn lines_in_full(self) -> u64 {
        match self {
            Cause::Refusal(_) => 10,
            // More than any schedule causes.
            Cause::Peer(_) => 240,
            Cause::Log(_) => 60,
        }
    }

    /// The cause of this event; `None` if a quota limits such events.
    fn of(event: &AuditEvent) -> Option<Self> {
        match event {
            AuditEvent::Refused { reason, .. } => Some(Cause::Refusal(*reason)),
            AuditEvent::LinkOpened { peer, .. }
            | AuditEvent::SessionQueued { peer, .. }
            | AuditEvent::SessionDenied { peer, .. }
            | AuditEvent::SessionUndone { peer, .. }
            | AuditEvent::MonitorGranted { peer, .. }
            | AuditEvent::MonitorDenied { peer, .. }
            | AuditEvent::MonitorEnded { peer, .. }
            | AuditEvent::PortHeld { peer, .. } => Some(Cause::Peer(*peer)),
            _ => None,
        }
    }
}

/// The number of lines of one window that were counted but not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuppressedLines {
    /// The cause of the lines.
    pub cause: Cause,
    /// The number of lines, at least 1.
    pub count: u64,
}

impl SuppressedLines {
    /// The audit event that records the count; `None` for lines of the program's log.
    pub fn event(self) -> Option<AuditEvent> {
        let count = self.count;
        match self.cause {
            Cause::Refusal(reason) => Some(AuditEvent::RefusedMore { reason, count }),
            Cause::Peer(peer) => Some(AuditEvent::MoreOfPeer { peer, count }),
            Cause::Log(_) => None,
        }
    }
}

/// Counts the lines of each cause.
#[derive(Debug, Default)]
pub struct EventThrottle {
    windows: BTreeMap<Cause, Window>,
    refused: BTreeMap<RefusalReason, u64>,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    count: u64,
}

impl Window {
    fn end(&self) -> Duration {
        self.began.saturating_add(WINDOW)
    }

    fn suppressed(&self, cause: Cause) -> Option<SuppressedLines> {
        let count = self.count.saturating_sub(cause.lines_in_full());
        (count > 0).then_some(SuppressedLines { cause, count })
    }
}

impl EventThrottle {
    /// Returns the events to write now. The count of an ended window comes before the first event of the next window.
    #[must_use]
    pub fn pass(&mut self, events: Vec<AuditEvent>, now: Now) -> Vec<AuditEvent> {
        let mut written = Vec::with_capacity(events.len());
        for event in events {
            if let AuditEvent::Refused { reason, .. } = &event {
                let total = self.refused.entry(*reason).or_default();
                *total = total.saturating_add(1);
            }
            let Some(cause) = Cause::of(&event) else {
                written.push(event);
                continue;
            };
            let (is_written, suppressed) = self.count(cause, now);
            written.extend(suppressed.and_then(SuppressedLines::event));
            if is_written {
                written.push(event);
            }
        }
        written
    }

    /// Counts one line of `cause`. Returns whether to write the line and, if it is the first one after a window, the
    /// count of suppressed lines of that window.
    #[must_use]
    pub fn count(&mut self, cause: Cause, now: Now) -> (bool, Option<SuppressedLines>) {
        let is_over = self.windows.get(&cause).is_some_and(|window| window.end() <= now.mono);
        let suppressed = is_over.then(|| self.windows.remove(&cause)).flatten().and_then(|over| over.suppressed(cause));
        let window = self.windows.entry(cause).or_insert(Window { began: now.mono, count: 0 });
        window.count = window.count.saturating_add(1);
        (window.count <= cause.lines_in_full(), suppressed)
    }

    /// Returns the counts of suppressed lines of all windows that have ended.
    #[must_use]
    pub fn poll(&mut self, now: Now) -> Vec<SuppressedLines> {
        self.close(|window| window.end() <= now.mono)
    }

    /// Returns the counts of suppressed lines of all windows. Called when the program ends.
    #[must_use]
    pub fn finish(&mut self) -> Vec<SuppressedLines> {
        self.close(|_| true)
    }

    /// When to call `poll` next, on the monotonic clock. `None` while no line is suppressed.
    pub fn next_deadline(&self) -> Option<Duration> {
        let over = self.windows.iter().filter(|(cause, window)| window.count > cause.lines_in_full());
        over.map(|(_, window)| window.end()).min()
    }

    /// The number of refusals since the start, by reason.
    pub fn refused(&self) -> BTreeMap<RefusalReason, u64> {
        self.refused.clone()
    }

    fn close(&mut self, is_over: impl Fn(&Window) -> bool) -> Vec<SuppressedLines> {
        let mut suppressed = Vec::new();
        self.windows.retain(|cause, window| {
            let stays = !is_over(window);
            if !stays {
                suppressed.extend(window.suppressed(*cause));
            }
            stays
        });
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use paramedic_link::message::DenialReason;

    use super::*;

    const A: EndpointId = EndpointId::from_bytes([1; 32]);
    const B: EndpointId = EndpointId::from_bytes([2; 32]);

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix_ms: 0 }
    }

    fn refused(reason: RefusalReason) -> AuditEvent {
        AuditEvent::Refused { from: IpAddr::V4(Ipv4Addr::LOCALHOST), reason, peer: None }
    }

    fn denied(peer: EndpointId) -> AuditEvent {
        AuditEvent::SessionDenied { peer, reason: DenialReason::Busy }
    }

    fn suppressed(cause: Cause, count: u64) -> SuppressedLines {
        SuppressedLines { cause, count }
    }

    #[test]
    fn ten_refusals_a_minute_are_written_in_full_and_the_rest_is_counted() {
        let mut throttle = EventThrottle::default();
        let slow = Cause::Refusal(RefusalReason::Slow);
        let written = (0..25).flat_map(|_| throttle.pass(vec![refused(RefusalReason::Slow)], at(5))).count();
        assert_eq!((written, throttle.next_deadline()), (10, Some(Duration::from_secs(65))));
        assert_eq!(throttle.poll(at(64)), []);
        assert_eq!(throttle.poll(at(65)), [suppressed(slow, 15)]);
        assert_eq!((throttle.poll(at(66)), throttle.next_deadline()), (vec![], None));
        assert_eq!(throttle.refused()[&RefusalReason::Slow], 25);
    }

    #[test]
    fn causes_are_limited_independently() {
        let mut throttle = EventThrottle::default();
        let _ = throttle.pass(vec![refused(RefusalReason::Slow); 12], at(0));
        let _ = throttle.pass(vec![denied(A); 241], at(0));
        assert_eq!(throttle.pass(vec![refused(RefusalReason::Silent)], at(0)), [refused(RefusalReason::Silent)]);
        assert_eq!(throttle.pass(vec![denied(B)], at(0)), [denied(B)]);
        assert_eq!(throttle.count(Cause::Log(A), at(0)), (true, None));
        let expected = [suppressed(Cause::Refusal(RefusalReason::Slow), 2), suppressed(Cause::Peer(A), 1)];
        assert_eq!(throttle.finish(), expected);
        assert_eq!(throttle.finish(), []);
    }

    #[test]
    fn a_line_after_the_minute_is_preceded_by_the_count_of_the_last_one() {
        let mut throttle = EventThrottle::default();
        assert_eq!(throttle.pass(vec![denied(A); 241], at(0)).len(), 240);
        assert_eq!(throttle.pass(vec![denied(A)], at(60)), [AuditEvent::MoreOfPeer { peer: A, count: 1 }, denied(A)]);
    }

    #[test]
    fn events_bounded_by_a_quota_always_pass() {
        let mut throttle = EventThrottle::default();
        let removed = vec![AuditEvent::PeerRemoved { peer: A }; 1000];
        assert_eq!(throttle.pass(removed.clone(), at(0)), removed);
    }

    #[test]
    fn log_lines_of_a_peer_are_bounded_and_no_audit_events() {
        let mut throttle = EventThrottle::default();
        let written = (0..1000).filter(|_| throttle.count(Cause::Log(A), at(0)).0).count();
        assert_eq!(written, 60);
        let over = throttle.poll(at(60));
        assert_eq!(over, [suppressed(Cause::Log(A), 940)]);
        assert_eq!(over[0].event(), None);
    }
}
