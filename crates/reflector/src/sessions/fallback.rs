//! Recognises the repetition of a test through the tunnel: if the appliance could not reach a direct session, its next
//! request on the link names the same test in tunneled mode. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::test_spec::{DataMode, TestSpec};

use super::decision::LinkId;

/// If no streams of a direct session arrived, then for this long after its end a request on the same link can count as
/// its repetition.
pub(super) const FALLBACK_WINDOW: Duration = Duration::from_secs(30);

/// The links whose direct session ended before any of its streams arrived.
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    open: BTreeMap<LinkId, Repeatable>,
}

/// A test that its appliance may repeat through the tunnel.
#[derive(Debug)]
struct Repeatable {
    /// The request that counts as the repetition.
    spec: TestSpec,
    /// Until when such a request counts as the repetition, on the monotonic clock.
    until: Duration,
}

impl Fallbacks {
    /// Records the end of a session of `link`. The caller passes only sessions that counted as a test, so a repetition
    /// cannot be repeated.
    pub(super) fn session_ended(&mut self, link: LinkId, session: EndedSession, mono: Duration) {
        if session.spec.data_mode == DataMode::DirectEphemeral && !session.had_streams {
            let spec = TestSpec { data_mode: DataMode::Tunneled, ..session.spec };
            self.open.insert(link, Repeatable { spec, until: mono.saturating_add(FALLBACK_WINDOW) });
        }
    }

    /// Whether a request on `link` repeats the test of the link's ended session: only the data mode differs.
    pub(super) fn is_fallback(&self, link: LinkId, spec: &TestSpec, mono: Duration) -> bool {
        self.open.get(&link).is_some_and(|test| mono <= test.until && *spec == test.spec)
    }

    /// Removes the link, so that its next request counts as another test.
    pub(super) fn forget(&mut self, link: LinkId) {
        self.open.remove(&link);
    }

    /// Removes the links whose time for a repetition is over.
    pub(super) fn pass_time(&mut self, mono: Duration) {
        self.open.retain(|_, test| mono <= test.until);
    }
}

/// The facts that decide whether an ended session can be repeated.
pub(super) struct EndedSession {
    pub(super) spec: TestSpec,
    /// Whether the streams of a phase with load arrived.
    pub(super) had_streams: bool,
}
