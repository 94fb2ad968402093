//! Divides the file descriptors that the host allows among the parts of the reflector. No part and no device can take
//! the descriptors of another, so the admin socket works under any network load. Pure: no I/O, no clock.

use paramedic_engines::data_listener;
use paramedic_link::test_spec::{DataMode, Direction, PhaseSpec, TestSpec};

/// The descriptors that are reserved for the program itself: the first listening address, the database, the audit log,
/// responders, the admin socket and its clients.
const KEPT: usize = 64;
/// The descriptors for each further listening address: a listener, and a responder with its wake-up descriptor.
const OF_ADDRESS: usize = 3;
/// The number of links that all devices together may have open.
const LINKS: usize = 4096;
/// The number of unauthenticated connections that may be open at once.
const UNAUTHENTICATED: usize = 576;
/// The descriptors of one stream: its socket, the duplicates of this socket that serve to shut it down at the end of
/// the session, and in a download a pipe.
fn of_stream(direction: Direction) -> usize {
    match direction {
        Direction::Download => 5,
        Direction::Upload => 3,
    }
}

/// The descriptors of a session in addition to those of its streams: listener, responder, wake-up descriptors, the
/// pipes of a child process, a log file.
const PER_SESSION: usize = 16;

/// The limit of open descriptors that is enough for the largest session, in addition to the unauthenticated connections
/// and links that the reflector accepts under this limit. `listening` is the number of listening addresses. With 1408
/// descriptors, 672 are left for sessions; the largest session needs 657.
pub fn enough(listening: usize) -> u64 {
    1408 + (kept(listening) - KEPT) as u64
}

/// The descriptors that a reflector with `listening` listening addresses reserves for itself.
fn kept(listening: usize) -> usize {
    KEPT.saturating_add(listening.saturating_sub(1).saturating_mul(OF_ADDRESS))
}

/// The number of file descriptors that each part of the reflector may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorShares {
    /// The descriptors for connections that are not authenticated yet.
    pub unauthenticated: usize,
    /// The descriptors for links.
    pub links: usize,
    /// The descriptors for all sessions together.
    pub sessions: usize,
}

impl DescriptorShares {
    /// Divides `allowed`, the limit of open files, for a reflector with `listening` listening addresses. If `allowed`
    /// is `None`, there is no limit.
    pub fn divide(allowed: Option<u64>, listening: usize) -> Self {
        let allowed = allowed.and_then(|allowed| usize::try_from(allowed).ok()).unwrap_or(usize::MAX);
        let left = allowed.saturating_sub(kept(listening));
        let unauthenticated = UNAUTHENTICATED.min(left / 4);
        let links = LINKS.min(left / 4);
        Self { unauthenticated, links, sessions: left - unauthenticated - links }
    }
}

/// The number of connections to the listening port that a session may have open at once: the streams of a tunneled
/// phase, and one for latency probes if UDP is blocked.
pub fn control_port_streams(spec: &TestSpec) -> usize {
    let phases = spec.phases.iter().filter(|_| spec.data_mode == DataMode::Tunneled);
    let streams = phases.map(|phase| phase.load.directions().len() * usize::from(spec.streams)).max().unwrap_or(0);
    streams + 1
}

/// The number of descriptors that a session with this test may hold at once. Only the streams of one phase are open at
/// a time. The number includes connections that are not authenticated yet: in direct mode those to the session's own
/// port, otherwise those in its slots at the listening port. These slots are free again as soon as the streams are
/// authenticated.
pub fn of_session(spec: &TestSpec) -> usize {
    let of_phase = |phase: &PhaseSpec| phase.load.directions().iter().map(|direction| of_stream(*direction)).sum();
    let each: usize = spec.phases.iter().map(of_phase).max().unwrap_or(0);
    let waiting = match spec.data_mode {
        DataMode::DirectEphemeral => data_listener::max_pending(spec.streams),
        DataMode::Tunneled | DataMode::Unknown => control_port_streams(spec),
    };
    PER_SESSION + usize::from(spec.streams) * each + waiting
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::Load;

    use super::*;

    #[test]
    fn enough_is_enough_for_the_largest_session() {
        let phases = vec![PhaseSpec { load: Load::Bidir, duration_ms: 1_000 }];
        let largest = TestSpec::new("tcp".try_into().unwrap(), DataMode::DirectEphemeral, phases, 64);
        assert_eq!(of_session(&largest), 16 + 64 * 8 + 80);
        let tunneled = TestSpec { data_mode: DataMode::Tunneled, ..largest.clone() };
        // Clients without a key may occupy a place for each of its streams, in addition to the streams.
        assert_eq!(of_session(&tunneled), 16 + 64 * 8 + 129);
        for largest in [largest, tunneled] {
            for listening in [1, 2, 100] {
                let shares = DescriptorShares::divide(Some(enough(listening)), listening);
                assert!(of_session(&largest) <= shares.sessions);
            }
        }
        assert_eq!(
            DescriptorShares::divide(Some(1024), 1),
            DescriptorShares { unauthenticated: 240, links: 240, sessions: 480 }
        );
    }

    #[test]
    fn each_further_address_takes_three_descriptors_from_the_network() {
        for allowed in [128, 256, 1024, 4096] {
            for listening in [1, 2, 10, 64] {
                let shares = DescriptorShares::divide(Some(allowed), listening);
                let given = shares.unauthenticated + shares.links + shares.sessions;
                let left = usize::try_from(allowed).unwrap().saturating_sub(64 + 3 * (listening - 1));
                assert_eq!(given, left, "{listening} addresses, {allowed} descriptors");
            }
        }
    }

    #[test]
    fn small_limits_are_divided_and_large_ones_are_not_used_up() {
        assert_eq!(
            DescriptorShares::divide(Some(128), 1),
            DescriptorShares { unauthenticated: 16, links: 16, sessions: 32 }
        );
        assert_eq!(
            DescriptorShares::divide(Some(10), 1),
            DescriptorShares { unauthenticated: 0, links: 0, sessions: 0 }
        );
        let unlimited = DescriptorShares::divide(None, 1);
        assert_eq!((unlimited.unauthenticated, unlimited.links), (UNAUTHENTICATED, LINKS));
    }
}
