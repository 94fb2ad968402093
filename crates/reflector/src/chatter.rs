//! How many lines of the audit log a peer may cause in a minute by what no quota bounds: links, requests that wait, are
//! denied or come to nothing. What is more is only counted. Grants and ends are bounded by quotas, and pass.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::EndpointId;

use crate::event::Event;
use crate::sessions::Now;

/// Lines of one peer that are written in full each minute: more than any schedule causes.
const IN_FULL: u64 = 240;
/// The window of that count, from its first line on.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts the lines of each peer. Peers are few: they were all paired.
#[derive(Debug, Default)]
pub struct Chatter {
    windows: BTreeMap<EndpointId, Window>,
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

    fn more(&self, peer: EndpointId) -> Option<Event> {
        let count = self.count.saturating_sub(IN_FULL);
        (count > 0).then_some(Event::MoreOfPeer { peer, count })
    }
}

impl Chatter {
    /// What of these events is to be logged now.
    #[must_use]
    pub fn pass(&mut self, events: Vec<Event>, now: Now) -> Vec<Event> {
        let mut log = Vec::with_capacity(events.len());
        for event in events {
            let Some(peer) = whose(&event) else {
                log.push(event);
                continue;
            };
            let over = self.windows.get(&peer).filter(|window| window.end() <= now.mono);
            if let Some(over) = over {
                log.extend(over.more(peer));
                self.windows.remove(&peer);
            }
            let window = self.windows.entry(peer).or_insert(Window { began: now.mono, count: 0 });
            window.count = window.count.saturating_add(1);
            if window.count <= IN_FULL {
                log.push(event);
            }
        }
        log
    }

    /// The lines for minutes that are over.
    #[must_use]
    pub fn poll(&mut self, now: Now) -> Vec<Event> {
        self.close(|window| window.end() <= now.mono)
    }

    /// The lines for what was only counted so far, because nothing comes any more.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Event> {
        self.close(|_| true)
    }

    /// When `poll` has a line, on the monotonic clock.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.windows.values().filter(|window| window.count > IN_FULL).map(Window::end).min()
    }

    fn close(&mut self, is_over: impl Fn(&Window) -> bool) -> Vec<Event> {
        let mut log = Vec::new();
        self.windows.retain(|peer, window| {
            let stays = !is_over(window);
            if !stays {
                log.extend(window.more(*peer));
            }
            stays
        });
        log
    }
}

/// The peer that can cause such an event as often as it likes.
fn whose(event: &Event) -> Option<EndpointId> {
    match event {
        Event::LinkOpened { peer, .. }
        | Event::SessionQueued { peer, .. }
        | Event::SessionDenied { peer, .. }
        | Event::SessionUndone { peer, .. } => Some(*peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::message::DenialReason;

    use super::*;

    const A: EndpointId = EndpointId::from_bytes([1; 32]);
    const B: EndpointId = EndpointId::from_bytes([2; 32]);

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix_ms: 0 }
    }

    fn denied(peer: EndpointId) -> Event {
        Event::SessionDenied { peer, reason: DenialReason::Busy }
    }

    #[test]
    fn a_peer_that_asks_without_end_fills_no_disk() {
        let mut chatter = Chatter::default();
        let written = (0..1000).flat_map(|_| chatter.pass(vec![denied(A)], at(5))).count() as u64;
        assert_eq!((written, chatter.next_deadline()), (IN_FULL, Some(Duration::from_secs(65))));
        assert_eq!(chatter.pass(vec![denied(B)], at(6)), [denied(B)], "others are not meant");
        assert_eq!(chatter.poll(at(64)), []);
        assert_eq!(chatter.poll(at(65)), [Event::MoreOfPeer { peer: A, count: 1000 - IN_FULL }]);
        assert_eq!((chatter.finish(), chatter.next_deadline()), (vec![], None));
    }

    #[test]
    fn a_line_after_the_minute_brings_the_count_of_the_one_before() {
        let mut chatter = Chatter::default();
        let flood = (0..=IN_FULL).map(|_| denied(A)).collect();
        assert_eq!(chatter.pass(flood, at(0)).len() as u64, IN_FULL);
        assert_eq!(chatter.pass(vec![denied(A)], at(60)), [Event::MoreOfPeer { peer: A, count: 1 }, denied(A)]);
    }

    #[test]
    fn what_a_quota_bounds_always_passes() {
        let mut chatter = Chatter::default();
        let removed = Event::PeerRemoved { peer: A };
        let flood = (0..=IN_FULL).map(|_| removed.clone()).collect::<Vec<_>>();
        assert_eq!(chatter.pass(flood.clone(), at(0)), flood);
    }
}
