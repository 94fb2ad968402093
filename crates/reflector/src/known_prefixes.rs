//! The address prefixes from which each peer recently authenticated. The reflector accepts connections from them even
//! if unauthenticated clients take every other slot. Does no I/O: the caller writes the changes to the database.

use std::collections::{BTreeMap, BTreeSet};

use paramedic_link::EndpointId;

use crate::connection_limiter::Prefix;

/// How long a prefix stays known after a peer last authenticated from it, in milliseconds: 90 days.
const KNOWN_MS: u64 = 90 * 24 * 3600 * 1000;
/// The maximum number of known prefixes of one peer. A further prefix replaces the one that was seen the longest ago.
const PER_PEER: usize = 64;
/// When a known prefix is seen again, its stored time is renewed only if it is older than this, in milliseconds: one
/// day. This saves writes to memory cards.
const RENEW_AFTER_MS: u64 = 24 * 3600 * 1000;

/// The known prefixes of every peer, and when the peer last authenticated from each.
#[derive(Debug, Default)]
pub struct KnownPrefixes {
    peers: BTreeMap<EndpointId, BTreeMap<Prefix, u64>>,
    /// The peers whose prefixes changed since [`KnownPrefixes::take_unwritten`] last returned them.
    unwritten: BTreeSet<EndpointId>,
}

/// All prefixes of one peer, each with the time at which it was last seen, in milliseconds since 1970.
pub type PeerPrefixes = (EndpointId, Vec<(Prefix, u64)>);

impl KnownPrefixes {
    /// Builds the set from the rows of the database: peer, prefix, time in milliseconds since 1970.
    pub fn new(rows: impl IntoIterator<Item = (EndpointId, Prefix, u64)>) -> Self {
        let mut known = Self::default();
        for (peer, prefix, unix_ms) in rows {
            known.peers.entry(peer).or_default().insert(prefix, unix_ms);
        }
        known
    }

    /// Records that `peer` authenticated from `prefix` at the time `unix_ms`. Returns whether the database must be
    /// updated.
    pub fn note(&mut self, peer: EndpointId, prefix: Prefix, unix_ms: u64) -> bool {
        let prefixes = self.peers.entry(peer).or_default();
        let before = prefixes.get(&prefix).copied();
        // A clock that was set back must not cause a write for each link.
        if before.is_some_and(|before| unix_ms.abs_diff(before) < RENEW_AFTER_MS) {
            return false;
        }
        prefixes.insert(prefix, unix_ms);
        prefixes.retain(|_, seen| is_fresh(*seen, unix_ms));
        while prefixes.len() > PER_PEER {
            let oldest = prefixes.iter().filter(|(known, _)| **known != prefix).min_by_key(|(_, seen)| **seen);
            let Some(oldest) = oldest.map(|(known, _)| *known) else { break };
            prefixes.remove(&oldest);
        }
        self.unwritten.insert(peer);
        true
    }

    /// Returns every peer whose prefixes changed since the last call, with all its present prefixes. The caller stores
    /// these in the database in place of the earlier prefixes of the peer.
    pub fn take_unwritten(&mut self) -> Vec<PeerPrefixes> {
        let peers = std::mem::take(&mut self.unwritten).into_iter();
        let prefixes = |peer: EndpointId| self.peers.get(&peer).into_iter().flatten().map(|(at, seen)| (*at, *seen));
        peers.map(|peer| (peer, prefixes(peer).collect())).collect()
    }

    /// Marks these peers as unwritten after a failed write: [`take_unwritten`](Self::take_unwritten) returns them
    /// again.
    pub fn not_written(&mut self, peers: &[PeerPrefixes]) {
        self.unwritten.extend(peers.iter().map(|(peer, _)| *peer));
    }

    /// Removes expired prefixes. The next write removes them from the database.
    pub fn expire(&mut self, unix_ms: u64) {
        for (peer, prefixes) in &mut self.peers {
            let before = prefixes.len();
            prefixes.retain(|_, seen| is_fresh(*seen, unix_ms));
            // The peer stays in the set, perhaps without prefixes, so that the next write removes them.
            if prefixes.len() < before {
                self.unwritten.insert(*peer);
            }
        }
    }

    /// Removes the prefixes of a peer that is not paired any more. The next write removes them from the database.
    pub fn remove_peer(&mut self, peer: EndpointId) {
        self.peers.remove(&peer);
        self.unwritten.insert(peer);
    }

    /// Every prefix that is known at the time `unix_ms`.
    pub fn all(&self, unix_ms: u64) -> BTreeSet<Prefix> {
        let prefixes = self.peers.values().flatten();
        prefixes.filter(|(_, seen)| is_fresh(**seen, unix_ms)).map(|(prefix, _)| *prefix).collect()
    }
}

fn is_fresh(seen: u64, now: u64) -> bool {
    now.saturating_sub(seen) < KNOWN_MS
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const A: EndpointId = EndpointId::from_bytes([1; 32]);
    const B: EndpointId = EndpointId::from_bytes([2; 32]);
    const DAY: u64 = 24 * 3600 * 1000;

    fn prefix(n: u32) -> Prefix {
        Prefix::of(IpAddr::V4(n.into()))
    }

    #[test]
    fn a_prefix_is_known_for_ninety_days() {
        let mut known = KnownPrefixes::default();
        assert!(known.note(A, prefix(1), DAY));
        assert_eq!(known.all(90 * DAY), BTreeSet::from([prefix(1)]));
        assert_eq!(known.all(91 * DAY), BTreeSet::new());
        assert!(known.note(A, prefix(2), 91 * DAY));
        assert_eq!(known.take_unwritten(), [(A, vec![(prefix(2), 91 * DAY)])], "the old one is removed");
    }

    #[test]
    fn expired_prefixes_are_removed_from_the_database_while_their_peer_stays_away() {
        let mut known = KnownPrefixes::new([(A, prefix(1), DAY), (A, prefix(2), 2 * DAY), (B, prefix(3), 2 * DAY)]);
        known.expire(91 * DAY - 1);
        assert_eq!(known.take_unwritten(), []);
        known.expire(91 * DAY);
        assert_eq!(known.take_unwritten(), [(A, vec![(prefix(2), 2 * DAY)])]);
        known.expire(92 * DAY);
        let unwritten = known.take_unwritten();
        assert_eq!(unwritten, [(A, vec![]), (B, vec![])]);
        known.not_written(&unwritten);
        assert_eq!(known.take_unwritten(), unwritten, "a failed write is retried");
    }

    #[test]
    fn the_time_of_a_prefix_is_renewed_once_a_day_at_most() {
        let mut known = KnownPrefixes::new([(A, prefix(1), 5 * DAY)]);
        assert!(!known.note(A, prefix(1), 6 * DAY - 1));
        assert!(!known.note(A, prefix(1), 4 * DAY + 1), "the clock was set back");
        assert_eq!(known.take_unwritten(), []);
        assert!(known.note(A, prefix(1), 6 * DAY));
        assert_eq!(known.take_unwritten(), [(A, vec![(prefix(1), 6 * DAY)])]);
    }

    #[test]
    fn a_peer_has_64_prefixes_and_the_oldest_is_forgotten() {
        let mut known = KnownPrefixes::default();
        for n in 0..64 {
            assert!(known.note(A, prefix(n), DAY + u64::from(n)));
        }
        assert_eq!(known.all(2 * DAY).len(), 64);
        known.note(A, prefix(64), 2 * DAY);
        assert_eq!(known.all(2 * DAY), (1..65).map(prefix).collect());
        // A clock that was set back must not make the newest prefix the oldest.
        known.note(A, prefix(65), 0);
        assert_eq!(known.all(2 * DAY), (2..66).map(prefix).collect());
    }

    #[test]
    fn the_64_prefixes_of_a_peer_are_written_once() {
        let mut known = KnownPrefixes::default();
        for n in 0..1_000 {
            known.note(A, prefix(n), DAY);
        }
        known.note(B, prefix(1), DAY);
        let unwritten = known.take_unwritten();
        assert_eq!(unwritten.iter().map(|(peer, of)| (*peer, of.len())).collect::<Vec<_>>(), [(A, 64), (B, 1)]);
        assert_eq!(known.take_unwritten(), []);
        known.remove_peer(B);
        known.not_written(&unwritten);
        let again = [unwritten[0].clone(), (B, vec![])];
        assert_eq!(known.take_unwritten(), again, "a removed peer does not return");
    }

    #[test]
    fn a_removed_peer_takes_its_prefixes_along_but_not_those_of_others() {
        let mut known = KnownPrefixes::new([(A, prefix(1), DAY), (A, prefix(2), DAY), (B, prefix(2), DAY)]);
        known.remove_peer(A);
        assert_eq!(known.all(DAY), BTreeSet::from([prefix(2)]));
        assert_eq!(known.take_unwritten(), [(A, vec![])], "the next write removes them from the database");
    }
}
