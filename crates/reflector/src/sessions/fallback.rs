//! The test of a link whose direct session could not be reached: the link's next request, for the tunnel, is the same
//! test. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::test_spec::{DataMode, TestSpec};

use super::decision::LinkId;

/// How long after the end of such a session the link's request is the same test.
pub(super) const FALLBACK_WINDOW: Duration = Duration::from_secs(30);

/// The links whose direct session ended before any of its streams arrived.
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    /// Until when, on the monotonic clock.
    open: BTreeMap<LinkId, Duration>,
}

impl Fallbacks {
    /// Notes the end of a session of `link`. Only a session that counted as a test can be repeated, and only once.
    pub(super) fn session_ended(&mut self, link: LinkId, session: &EndedSession, mono: Duration) {
        if session.data_mode == DataMode::DirectEphemeral && !session.had_streams {
            self.open.insert(link, mono.saturating_add(FALLBACK_WINDOW));
        }
    }

    /// Whether a request of `link` is the same test as its session that ended.
    pub(super) fn is_fallback(&self, link: LinkId, spec: &TestSpec, mono: Duration) -> bool {
        spec.data_mode == DataMode::Tunneled && self.open.get(&link).is_some_and(|until| mono <= *until)
    }

    /// Forgets the link: its next request is another test.
    pub(super) fn forget(&mut self, link: LinkId) {
        self.open.remove(&link);
    }

    /// Forgets the links whose time is over.
    pub(super) fn pass_time(&mut self, mono: Duration) {
        self.open.retain(|_, until| mono <= *until);
    }
}

/// What decides whether a session that ended can be repeated.
pub(super) struct EndedSession {
    pub(super) data_mode: DataMode,
    /// Whether the streams of a phase with load arrived.
    pub(super) had_streams: bool,
}
