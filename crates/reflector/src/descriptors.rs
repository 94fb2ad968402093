//! How the descriptors that the host allows are divided, so that no part of the reflector, and no device, takes those of
//! another: the admin socket works whatever the network does. Pure.

use paramedic_link::test_spec::TestSpec;

/// Kept for the program's own files: listeners, database, audit log, responders, the admin socket and its clients.
const KEPT: usize = 64;
/// The most links that stand at once, of all devices together.
const LINKS: usize = 4096;
/// The most connections that are on their way in at once.
const UNAUTHENTICATED: usize = 512;
/// What a stream may take: its socket, and a pipe where its bytes go by reference.
const PER_STREAM: usize = 3;
/// What a session takes beside its streams: listener, responder, wake-up descriptors, a child's pipes, a log file.
const PER_SESSION: usize = 16;

/// How many descriptors each part may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections that are not authenticated yet.
    pub unauthenticated: usize,
    /// Links.
    pub links: usize,
    /// Sessions, all together.
    pub sessions: usize,
}

impl Descriptors {
    /// Divides `allowed`, the limit of open files; `None`: there is no limit.
    pub fn divide(allowed: Option<u64>) -> Self {
        let allowed = allowed.and_then(|allowed| usize::try_from(allowed).ok()).unwrap_or(usize::MAX);
        let left = allowed.saturating_sub(KEPT);
        let unauthenticated = UNAUTHENTICATED.min(left / 4);
        let links = LINKS.min(left / 4);
        Self { unauthenticated, links, sessions: left - unauthenticated - links }
    }
}

/// The most descriptors that a session of this kind holds at once: only the streams of one phase stand at a time.
pub fn of_session(spec: &TestSpec) -> usize {
    let directions = spec.phases.iter().map(|phase| phase.load.directions().len()).max().unwrap_or(0);
    PER_SESSION + usize::from(spec.streams) * directions * PER_STREAM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_with_1024_files_serves_the_largest_session() {
        let divided = Descriptors::divide(Some(1024));
        assert_eq!(divided, Descriptors { unauthenticated: 240, links: 240, sessions: 480 });
        assert!(PER_SESSION + 64 * 2 * PER_STREAM <= divided.sessions);
    }

    #[test]
    fn few_files_are_divided_too_and_many_are_not_all_given_away() {
        assert_eq!(Descriptors::divide(Some(128)), Descriptors { unauthenticated: 16, links: 16, sessions: 32 });
        assert_eq!(Descriptors::divide(Some(10)), Descriptors { unauthenticated: 0, links: 0, sessions: 0 });
        let unlimited = Descriptors::divide(None);
        assert_eq!((unlimited.unauthenticated, unlimited.links), (UNAUTHENTICATED, LINKS));
    }
}
