//! From which prefixes each peer authenticated lately: connections from there are served although unauthenticated
//! clients take every other place. Pure; the caller keeps on disk what it is asked to keep.

use std::collections::{BTreeMap, BTreeSet};

use paramedic_link::EndpointId;

use crate::connection_limiter::Prefix;

/// How long a prefix is known after a peer last authenticated from it, in milliseconds: 90 days.
const KNOWN_MS: u64 = 90 * 24 * 3600 * 1000;
/// The most prefixes of one peer; beyond them the one seen longest ago is forgotten.
const PER_PEER: usize = 64;
/// A prefix that was seen again is written down again only after this long, in milliseconds: a day. Memory cards wear.
const WRITE_AGAIN_MS: u64 = 24 * 3600 * 1000;

/// The known prefixes of every peer, and when each was last seen, in milliseconds since 1970.
#[derive(Debug, Default)]
pub struct KnownPrefixes {
    peers: BTreeMap<EndpointId, BTreeMap<Prefix, u64>>,
}

/// What is to be kept on disk of a peer that authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The peer.
    pub peer: EndpointId,
    /// Where it authenticated from.
    pub prefix: Prefix,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The prefixes of this peer that are forgotten.
    pub forgotten: Vec<Prefix>,
}

impl KnownPrefixes {
    /// As the store remembers them.
    pub fn new(rows: impl IntoIterator<Item = (EndpointId, Prefix, u64)>) -> Self {
        let mut known = Self::default();
        for (peer, prefix, unix_ms) in rows {
            known.peers.entry(peer).or_default().insert(prefix, unix_ms);
        }
        known
    }

    /// `peer` authenticated from `prefix`; what is to be kept on disk, if anything changed that is worth a write.
    pub fn note(&mut self, peer: EndpointId, prefix: Prefix, unix_ms: u64) -> Option<Seen> {
        let prefixes = self.peers.entry(peer).or_default();
        let before = prefixes.get(&prefix).copied();
        // A clock that was set back is no reason to write at each link.
        if before.is_some_and(|before| unix_ms.abs_diff(before) < WRITE_AGAIN_MS) {
            return None;
        }
        prefixes.insert(prefix, unix_ms);
        let mut forgotten = Vec::new();
        prefixes.retain(|known, seen| {
            let stays = is_fresh(*seen, unix_ms);
            if !stays {
                forgotten.push(*known);
            }
            stays
        });
        while prefixes.len() > PER_PEER {
            let oldest = prefixes.iter().filter(|(known, _)| **known != prefix).min_by_key(|(_, seen)| **seen);
            let Some(oldest) = oldest.map(|(known, _)| *known) else { break };
            prefixes.remove(&oldest);
            forgotten.push(oldest);
        }
        Some(Seen { peer, prefix, unix_ms, forgotten })
    }

    /// `peer` is no longer paired.
    pub fn remove_peer(&mut self, peer: EndpointId) {
        self.peers.remove(&peer);
    }

    /// Every prefix that is known at this time.
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
        assert!(known.note(A, prefix(1), DAY).is_some());
        assert_eq!(known.all(90 * DAY), BTreeSet::from([prefix(1)]));
        assert_eq!(known.all(91 * DAY), BTreeSet::new());
        assert_eq!(known.note(A, prefix(2), 91 * DAY).unwrap().forgotten, [prefix(1)]);
    }

    #[test]
    fn a_prefix_is_written_once_a_day_at_most() {
        let mut known = KnownPrefixes::new([(A, prefix(1), 5 * DAY)]);
        assert_eq!(known.note(A, prefix(1), 6 * DAY - 1), None);
        assert_eq!(known.note(A, prefix(1), 4 * DAY + 1), None, "the clock was set back");
        let seen = known.note(A, prefix(1), 6 * DAY).unwrap();
        assert_eq!(seen, Seen { peer: A, prefix: prefix(1), unix_ms: 6 * DAY, forgotten: vec![] });
    }

    #[test]
    fn a_peer_has_64_prefixes_and_the_oldest_is_forgotten() {
        let mut known = KnownPrefixes::default();
        for n in 0..64 {
            assert_eq!(known.note(A, prefix(n), DAY + u64::from(n)).unwrap().forgotten, []);
        }
        assert_eq!(known.note(A, prefix(64), 2 * DAY).unwrap().forgotten, [prefix(0)]);
        assert_eq!(known.all(2 * DAY).len(), 64);
        // A clock that stands in the past must not make the newest one the oldest.
        assert_eq!(known.note(A, prefix(65), 0).unwrap().forgotten, [prefix(1)]);
        assert!(known.all(2 * DAY).contains(&prefix(65)));
    }

    #[test]
    fn a_removed_peer_takes_its_prefixes_along_but_not_those_of_others() {
        let mut known = KnownPrefixes::new([(A, prefix(1), DAY), (A, prefix(2), DAY), (B, prefix(2), DAY)]);
        known.remove_peer(A);
        assert_eq!(known.all(DAY), BTreeSet::from([prefix(2)]));
    }
}
