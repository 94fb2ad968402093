//! How many refusals are logged in full, and how many are only counted: a stranger must not fill the disk. What is
//! refused is decided elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Event;
use crate::sessions::Now;

/// How many refusals of one reason are written in full each minute.
const IN_FULL: u64 = 10;
/// The window of that count, from the first refusal on.
const WINDOW: Duration = Duration::from_secs(60);
/// Reasons that are told apart. They are words of this program, so there never are as many.
const REASONS: usize = 64;
/// What further reasons count as.
const OTHER: &str = "other";

/// Counts refusals by reason.
#[derive(Debug, Default)]
pub struct Refusals {
    reasons: BTreeMap<String, Count>,
}

#[derive(Debug, Default)]
struct Count {
    since_start: u64,
    window: Option<Window>,
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

    /// The line for those that were not written in full.
    fn more(&self, reason: &str) -> Option<Event> {
        let count = self.count.saturating_sub(IN_FULL);
        (count > 0).then(|| Event::RefusedMore { reason: reason.to_owned(), count })
    }
}

impl Refusals {
    /// Counts a refusal; what of it is to be logged now. Events of another kind pass unchanged.
    #[must_use]
    pub fn refuse(&mut self, event: Event, now: Now) -> Vec<Event> {
        let Event::Refused { reason, .. } = &event else { return vec![event] };
        let is_told_apart = self.reasons.contains_key(reason) || self.reasons.len() < REASONS;
        let reason = if is_told_apart { reason.clone() } else { OTHER.to_owned() };
        let count = self.reasons.entry(reason.clone()).or_default();
        count.since_start = count.since_start.saturating_add(1);
        let over = count.window.take_if(|window| window.end() <= now.mono);
        let mut log = over.and_then(|window| window.more(&reason)).into_iter().collect::<Vec<_>>();
        let window = count.window.get_or_insert(Window { began: now.mono, count: 0 });
        window.count = window.count.saturating_add(1);
        if window.count <= IN_FULL {
            log.push(event);
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
        let windows = self.reasons.values().filter_map(|count| count.window.as_ref());
        windows.filter(|window| window.count > IN_FULL).map(Window::end).min()
    }

    /// How many there were since the start, by reason.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.reasons.iter().map(|(reason, count)| (reason.clone(), count.since_start)).collect()
    }

    fn close(&mut self, is_over: impl Fn(&Window) -> bool) -> Vec<Event> {
        let closed = self.reasons.iter_mut().filter_map(|(reason, count)| {
            let window = count.window.take_if(|window| is_over(window))?;
            window.more(reason)
        });
        closed.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix_ms: 0 }
    }

    fn refused(reason: &str) -> Event {
        Event::Refused { from: IpAddr::V4(Ipv4Addr::LOCALHOST), reason: reason.to_owned(), peer: None }
    }

    fn more(count: u64) -> Event {
        Event::RefusedMore { reason: "slow".to_owned(), count }
    }

    #[test]
    fn ten_a_minute_are_written_in_full_and_the_rest_is_counted() {
        let mut refusals = Refusals::default();
        let written = (0..25).flat_map(|_| refusals.refuse(refused("slow"), at(5))).count();
        assert_eq!((written, refusals.next_deadline()), (10, Some(Duration::from_secs(65))));
        assert_eq!(refusals.poll(at(64)), []);
        assert_eq!(refusals.poll(at(65)), [more(15)]);
        assert_eq!((refusals.poll(at(66)), refusals.next_deadline()), (vec![], None));
        assert_eq!(refusals.totals()["slow"], 25);
    }

    #[test]
    fn a_refusal_after_the_minute_brings_the_count_of_the_one_before() {
        let mut refusals = Refusals::default();
        let _ = (0..12).flat_map(|_| refusals.refuse(refused("slow"), at(0))).count();
        assert_eq!(refusals.refuse(refused("slow"), at(60)), [more(2), refused("slow")]);
    }

    #[test]
    fn reasons_do_not_hide_one_another() {
        let mut refusals = Refusals::default();
        let _ = (0..12).flat_map(|_| refusals.refuse(refused("slow"), at(0))).count();
        assert_eq!(refusals.refuse(refused("handshake"), at(0)), [refused("handshake")]);
        assert_eq!(refusals.finish(), [more(2)]);
        assert_eq!(refusals.finish(), []);
    }

    #[test]
    fn reasons_without_end_share_one_count() {
        let mut refusals = Refusals::default();
        let written = (0..1000).flat_map(|n| refusals.refuse(refused(&format!("r{n}")), at(0))).count() as u64;
        assert_eq!(written, REASONS as u64 + IN_FULL);
        assert_eq!(refusals.totals().len(), REASONS + 1);
    }
}
