//! Watches a phase: takes samples, checks that the other end is alive, pauses sending while the other end is silent,
//! and ends overdue streams. The watcher is the same for streams on threads of this program and for those of a child
//! process. Reads the clock.

#![expect(clippy::disallowed_methods, reason = "watches a running phase")]

use std::time::{Duration, Instant};

use paramedic_link::message::PAUSE_AFTER_SILENCE;

use super::sampler::Sampler;
use super::{DRAIN_TIMEOUT, PhaseContext};
use crate::engine::{PhaseObserver, PhaseProgress};

/// The streams of a running phase, as [`watch`] observes and controls them.
pub trait Moving {
    /// Whether all streams have ended. The implementation must wake the session control when this changes.
    fn is_done(&self) -> bool;

    /// The current state of the download and of the upload; `None` for a direction that the phase does not have.
    fn look(&mut self) -> [Option<Look>; 2];

    /// Called after each [`Moving::look`]. `is_silent`: whether nothing arrived from the other end for
    /// [`PAUSE_AFTER_SILENCE`]. If so, sending must pause until the next call with `false`.
    fn pause(&mut self, is_silent: bool);

    /// Ends the streams that should have ended by now. Called after each [`Moving::look`] once `DRAIN_TIMEOUT` has
    /// passed since the phase's end. `late`: the time since the phase's end.
    fn end_overdue(&mut self, late: Duration);

    /// Ends all streams at once. Called once at the end of [`watch`], even if all streams have ended already.
    fn abort(&mut self);
}

/// The state of one direction of a phase at the time of a [`Moving::look`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// The payload bytes of all streams of the direction so far.
    pub total: u64,
    /// Whether none of the direction's streams has ended.
    pub is_whole: bool,
    /// Whether anything other than payload arrived from the other end since the last look.
    pub is_heard: bool,
}

/// Watches a phase until all its streams have ended, one stream has failed, or the session is cancelled. Then ends the
/// remaining streams. Reports the samples to `report`.
pub fn watch(context: &PhaseContext<'_>, moving: &mut impl Moving, report: PhaseObserver<'_>) {
    let mut sampler = Sampler::new(context.begin, context.until());
    let mut arrived = 0;
    loop {
        let is_done = || moving.is_done() || context.has_failed();
        if context.control.wait_until(sampler.due(), is_done) || context.control.is_cancelled() {
            break;
        }
        let looks = moving.look();
        let now = Instant::now();
        sampler.end_at(context.until());
        let samples = sampler.look(now, looks.map(|look| look.filter(|look| look.is_whole).map(|look| look.total)));
        for direction in context.load.directions() {
            let Some(look) = looks[*direction as usize] else { continue };
            let is_sent = *direction == context.sent;
            if look.is_heard || (!is_sent && look.total > arrived) {
                context.control.heard();
            }
            if !is_sent {
                arrived = look.total;
            }
            if let Some(sample) = samples[*direction as usize] {
                report(if is_sent { PhaseProgress::Sent } else { PhaseProgress::Received }(*direction, sample));
            }
        }
        moving.pause(is_silent(context.control.last_heard(), context.begin, now));
        let late = now.saturating_duration_since(context.until());
        if late >= DRAIN_TIMEOUT {
            moving.end_overdue(late);
        }
    }
    moving.abort();
    // Wakes a paused sender.
    context.control.wake();
}

/// Whether sending must pause at `now`. `heard` is when the other end last sent something. Silence before the start of
/// the phase does not count.
fn is_silent(heard: Instant, begin: Instant, now: Instant) -> bool {
    now.saturating_duration_since(heard.max(begin)) > PAUSE_AFTER_SILENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_begin_or_from_the_last_sign_of_life() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let before = begin.checked_sub(Duration::from_secs(5)).unwrap_or(begin);
        assert!(!is_silent(before, begin, at(1000)));
        assert!(is_silent(before, begin, at(1001)));
        assert!(!is_silent(at(700), begin, at(1700)));
        assert!(is_silent(at(700), begin, at(1701)));
        assert!(!is_silent(at(700), begin, at(600)), "a message arrived after the clock was read");
    }
}
