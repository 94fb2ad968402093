//! Limits the connections that are not authenticated yet, and chooses which one to close if there are too many. Pure:
//! has no sockets, does no handshakes, and authenticates no connection.
//!
//! A prefix (an IPv4 address, or an IPv6 /64) is known if a peer has authenticated from it. Known and unknown prefixes
//! have separate slots, so clients from unknown prefixes never take a slot from a paired device. A session has further
//! slots for its streams, so clients at other known prefixes never take a slot of a session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::RefusalReason;

/// The number of slots for connections from all unknown prefixes together. At about 80 KiB of memory each, these
/// connections take some 20 MiB at most.
const UNKNOWN_PLACES: usize = 256;
/// The number of slots for connections from all known prefixes together.
const KNOWN_PLACES: usize = 256;
/// The limits for one unknown network, from the narrowest prefix to the widest.
const UNKNOWN_LIMITS: [NetworkLimit; 3] = [
    NetworkLimit { ipv6_bits: 64, places: 4, per_second: 20 },
    NetworkLimit { ipv6_bits: 56, places: 16, per_second: 80 },
    NetworkLimit { ipv6_bits: 48, places: 64, per_second: 320 },
];
/// The limits for one known prefix: enough for all streams of a session at once (64 in each direction), and for links.
const KNOWN_LIMIT: NetworkLimit = NetworkLimit { ipv6_bits: 64, places: 160, per_second: 160 };
/// The widest network for which connections are counted, as a prefix length in bits of an IPv6 address.
const WIDEST_BITS: u8 = 48;
/// If a network has no slot left, a connection that made no progress for this long may be closed for a newer one. A
/// shorter time would interrupt handshakes in progress.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);
/// 1/9 of the descriptors is reserved for connections that are being closed to make room.
const LEAVING_PART: usize = 9;
/// In each second, new connections are counted for at most this many networks. Connections from further networks are
/// not counted.
const COUNTED_NETWORKS: usize = 65_536;

/// The limits for the unauthenticated connections from one network.
#[derive(Clone, Copy, Debug)]
struct NetworkLimit {
    /// The prefix length of the network in bits, for IPv6. For IPv4, each address is a network.
    ipv6_bits: u8,
    /// The number of unauthenticated connections that may be open at once.
    places: usize,
    /// The number of new connections that are accepted within one second.
    per_second: u32,
}

/// Where a connection comes from: an IPv4 address, or the /64 prefix of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "IpAddr", into = "IpAddr")]
pub struct Prefix(IpAddr);

impl Prefix {
    /// The prefix that contains `address`.
    pub fn of(address: IpAddr) -> Self {
        Self(network(address.to_canonical(), 64))
    }

    /// The first address of the prefix.
    pub fn address(self) -> IpAddr {
        self.0
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self::of(address)
    }
}

impl From<Prefix> for IpAddr {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

/// The IPv6 network with a prefix of `ipv6_bits` bits that contains the address. Returns an IPv4 address unchanged.
fn network(address: IpAddr, ipv6_bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let host_bits = 128 - u32::from(ipv6_bits);
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0)).into()
        }
    }
}

/// Identifies the slot of one connection. The caller gives the slot back with [`ConnectionLimiter::left`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionSlotId(u64);

/// The decision on a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The connection is accepted.
    Enter {
        /// The slot of the new connection.
        place: ConnectionSlotId,
        /// The connection to close so that the new one has a slot. `None` if a slot is free.
        makes_way: Option<ConnectionSlotId>,
    },
    /// The connection is refused for this reason.
    Refuse(RefusalReason),
}

/// Counts the connections that are not authenticated yet, and decides which new ones are accepted.
#[derive(Debug)]
pub struct ConnectionLimiter {
    unknown_places: usize,
    known_places: usize,
    /// The number of connections that may be in the process of being closed to make room.
    leaving_places: usize,
    next: u64,
    places: BTreeMap<ConnectionSlotId, OccupiedPlace>,
    /// The connections that are being closed to make room. Each still has a descriptor.
    leaving: BTreeSet<ConnectionSlotId>,
    /// The number of streams that the running sessions of each prefix may open.
    expected: BTreeMap<Prefix, usize>,
    /// The number of open links from each prefix.
    links: BTreeMap<Prefix, usize>,
    /// The prefixes from which a peer authenticated recently.
    known: BTreeSet<Prefix>,
    /// The number of new connections from each network since `counted_since`.
    recent: BTreeMap<(IpAddr, u8), u32>,
    counted_since: Duration,
    /// The latest time that a caller passed.
    now: Duration,
}

#[derive(Debug)]
struct OccupiedPlace {
    prefix: Prefix,
    pool: Pool,
    /// Whether the client's ClientHello was received.
    has_spoken: bool,
    /// When the connection last made progress: it was accepted, its ClientHello was received, or its handshake
    /// completed.
    progress_at: Duration,
}

/// The group of slots to which the slot of a connection belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// The slots for connections from unknown prefixes.
    Unknown,
    /// The slots for connections from known prefixes.
    Known,
    /// The slots for streams of running sessions. A connection in such a slot is never closed to make room for another
    /// one.
    Session,
}

impl ConnectionLimiter {
    /// A limiter without connections. `descriptors` limits the slots for known and unknown prefixes together, including
    /// connections that are being closed. `known` are the prefixes from which peers have authenticated.
    pub fn new(descriptors: usize, known: BTreeSet<Prefix>) -> Self {
        let leaving_places = (descriptors / LEAVING_PART).max(2);
        let share = (descriptors.saturating_sub(leaving_places) / 2).max(1);
        Self {
            unknown_places: UNKNOWN_PLACES.min(share),
            known_places: KNOWN_PLACES.min(share),
            leaving_places,
            next: 0,
            places: BTreeMap::new(),
            leaving: BTreeSet::new(),
            expected: BTreeMap::new(),
            links: BTreeMap::new(),
            known,
            recent: BTreeMap::new(),
            counted_since: Duration::ZERO,
            now: Duration::ZERO,
        }
    }

    /// Decides on a new connection from `prefix`. `now` is the time of a monotonic clock, as in all methods of this
    /// type.
    pub fn admit(&mut self, prefix: Prefix, now: Duration) -> Admission {
        self.pass_time(now);
        let (pool, limits) = self.pool_of(prefix);
        if !self.count_new(prefix, limits) {
            return Admission::Refuse(RefusalReason::TooFast);
        }
        if self.has_session_place(prefix) {
            return self.enter(prefix, Pool::Session, None);
        }
        let mut makes_way = None;
        for limit in limits {
            let in_network = self.in_network(pool, prefix, limit);
            if in_network.count < limit.places {
                continue;
            }
            let longest = in_network.longest.filter(|(_, silence)| *silence >= HANDSHAKE_GRACE);
            let Some((place, _)) = longest else { return Admission::Refuse(RefusalReason::TooMany) };
            makes_way = Some(place);
            break;
        }
        if makes_way.is_none() && self.taken(pool) >= self.places_of(pool) {
            makes_way = self.dispensable(pool);
        }
        self.enter(prefix, pool, makes_way)
    }

    /// The pool and the limits that apply to a connection from `prefix` if it has no slot of a session.
    fn pool_of(&self, prefix: Prefix) -> (Pool, &'static [NetworkLimit]) {
        match (self.is_known(prefix), prefix.0) {
            (true, _) => (Pool::Known, &[KNOWN_LIMIT]),
            // An IPv4 address is one network, regardless of its prefix length.
            (false, IpAddr::V4(_)) => (Pool::Unknown, &UNKNOWN_LIMITS[..1]),
            (false, IpAddr::V6(_)) => (Pool::Unknown, &UNKNOWN_LIMITS[..]),
        }
    }

    /// The number of slots of a pool. For [`Pool::Session`] the number depends on the prefix and is not limited here.
    fn places_of(&self, pool: Pool) -> usize {
        match pool {
            Pool::Unknown => self.unknown_places,
            Pool::Known => self.known_places,
            Pool::Session => usize::MAX,
        }
    }

    /// The number of connections in `pool` from the network that contains `prefix`, and which of them has made no
    /// progress for the longest time.
    fn in_network(&self, pool: Pool, prefix: Prefix, limit: &NetworkLimit) -> Silence {
        self.silent_longest(|place| {
            place.pool == pool && network(place.prefix.0, limit.ipv6_bits) == network(prefix.0, limit.ipv6_bits)
        })
    }

    fn enter(&mut self, prefix: Prefix, pool: Pool, makes_way: Option<ConnectionSlotId>) -> Admission {
        if let Some(place) = makes_way.filter(|place| self.places.remove(place).is_some()) {
            self.leaving.insert(place);
        }
        self.next += 1;
        let place = ConnectionSlotId(self.next);
        self.places.insert(place, OccupiedPlace { prefix, pool, has_spoken: false, progress_at: self.now });
        Admission::Enter { place, makes_way }
    }

    /// Whether too many connections are still being closed: the next connection must wait until one of them is closed.
    pub fn is_crowded(&self) -> bool {
        self.leaving.len() >= self.leaving_places
    }

    /// Records that a session of `prefix` may open `streams` connections from now on.
    pub fn session_opened(&mut self, prefix: Prefix, streams: usize) {
        *self.expected.entry(prefix).or_default() += streams;
    }

    /// Records the end of a session of `prefix` that could open `streams` connections. Unauthenticated connections that
    /// are still in its slots move to ordinary slots of their prefix. Returns the connections that the caller must
    /// close, because no ordinary slot is free for them.
    pub fn session_closed(&mut self, prefix: Prefix, streams: usize) -> Vec<ConnectionSlotId> {
        let expected = self.expected.get(&prefix).map_or(0, |expected| expected.saturating_sub(streams));
        if expected == 0 {
            self.expected.remove(&prefix);
        } else {
            self.expected.insert(prefix, expected);
        }
        let of_sessions = self.places.iter().filter(|(_, place)| place.pool == Pool::Session && place.prefix == prefix);
        let of_sessions = of_sessions.map(|(id, _)| *id).collect::<Vec<_>>();
        let without_slot = of_sessions.get(expected..).unwrap_or_default();
        let (pool, limits) = self.pool_of(prefix);
        let mut closed = Vec::new();
        for id in without_slot {
            let is_free = self.taken(pool) < self.places_of(pool)
                && limits.iter().all(|limit| self.in_network(pool, prefix, limit).count < limit.places);
            match self.places.get_mut(id) {
                Some(place) if is_free => place.pool = pool,
                _ => {
                    self.places.remove(id);
                    self.leaving.insert(*id);
                    closed.push(*id);
                }
            }
        }
        closed
    }

    /// Records that a connection made progress in its handshake.
    pub fn progressed(&mut self, place: ConnectionSlotId, now: Duration) {
        self.pass_time(now);
        let now = self.now;
        if let Some(place) = self.places.get_mut(&place) {
            place.progress_at = now;
            place.has_spoken = true;
        }
    }

    /// Records that a connection is authenticated or closed. Call this also for a connection that was already chosen to
    /// be closed.
    pub fn left(&mut self, place: ConnectionSlotId) {
        self.places.remove(&place);
        self.leaving.remove(&place);
    }

    /// Records that a link from `prefix` was opened.
    pub fn link_opened(&mut self, prefix: Prefix) {
        *self.links.entry(prefix).or_default() += 1;
    }

    /// Records that a link from `prefix` was closed.
    pub fn link_closed(&mut self, prefix: Prefix) {
        if let Some(count) = self.links.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.links.remove(&prefix);
            }
        }
    }

    /// Adds a prefix from which a peer has authenticated.
    pub fn add_known(&mut self, prefix: Prefix) {
        self.known.insert(prefix);
    }

    /// Replaces the prefixes from which peers have authenticated.
    pub fn set_known(&mut self, known: BTreeSet<Prefix>) {
        self.known = known;
    }

    /// The number of unauthenticated connections: first those from unknown prefixes, then those from known prefixes.
    pub fn counts(&self) -> (usize, usize) {
        let unknown = self.taken(Pool::Unknown);
        (unknown, self.places.len() - unknown)
    }

    fn taken(&self, pool: Pool) -> usize {
        self.places.values().filter(|place| place.pool == pool).count()
    }

    /// Whether a session of `prefix` has a slot that none of its streams uses.
    fn has_session_place(&self, prefix: Prefix) -> bool {
        let taken =
            || self.places.values().filter(|place| place.pool == Pool::Session && place.prefix == prefix).count();
        self.expected.get(&prefix).is_some_and(|expected| taken() < *expected)
    }

    fn is_known(&self, prefix: Prefix) -> bool {
        self.links.contains_key(&prefix) || self.known.contains(&prefix)
    }

    fn pass_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Counts a new connection in each network that contains it. Returns `false` if one of these networks has reached
    /// its limit for this second.
    fn count_new(&mut self, prefix: Prefix, limits: &[NetworkLimit]) -> bool {
        if self.now.saturating_sub(self.counted_since) >= Duration::from_secs(1) {
            self.recent.clear();
            self.counted_since = self.now;
        }
        let mut is_within = true;
        for limit in limits {
            let key = (network(prefix.0, limit.ipv6_bits), limit.ipv6_bits);
            if self.recent.len() >= COUNTED_NETWORKS && !self.recent.contains_key(&key) {
                continue;
            }
            let count = self.recent.entry(key).or_default();
            *count = count.saturating_add(1);
            is_within &= *count <= limit.per_second;
            // The narrower network has refused the connection, so it does not count for the wider networks.
            if !is_within {
                break;
            }
        }
        is_within
    }

    /// Chooses the connection to close when all slots are taken. Even a new connection may be chosen, because in a
    /// flood all connections are new. The criteria, in this order: the connection belongs to the network with the most
    /// connections, so a client that is alone in its network keeps its connection; the connection has sent nothing; it
    /// made no progress for the longest time.
    fn dispensable(&self, pool: Pool) -> Option<ConnectionSlotId> {
        let widest = |place: &OccupiedPlace| network(place.prefix.0, WIDEST_BITS);
        let mut taken = BTreeMap::<IpAddr, usize>::new();
        let matching = || self.places.iter().filter(|(_, place)| place.pool == pool);
        for (_, place) in matching() {
            *taken.entry(widest(place)).or_default() += 1;
        }
        let rank = |place: &OccupiedPlace| {
            let taken = taken.get(&widest(place)).copied().unwrap_or(0);
            (std::cmp::Reverse(taken), place.has_spoken, place.progress_at)
        };
        matching().min_by_key(|(id, place)| (rank(place), **id)).map(|(id, _)| *id)
    }

    /// The number of connections that match, and which of them has made no progress for the longest time.
    fn silent_longest(&self, matches: impl Fn(&OccupiedPlace) -> bool) -> Silence {
        let matching = || self.places.iter().filter(|(_, place)| matches(place));
        let longest = matching().min_by_key(|(id, place)| (place.progress_at, **id));
        Silence {
            count: matching().count(),
            longest: longest.map(|(id, place)| (*id, self.now.saturating_sub(place.progress_at))),
        }
    }
}

struct Silence {
    count: usize,
    longest: Option<(ConnectionSlotId, Duration)>,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::ZERO;
    const MANY: usize = 1 << 20;

    fn v4(n: u32) -> Prefix {
        Prefix::of(IpAddr::V4(n.into()))
    }

    /// An IPv6 prefix: the lowest byte of `n` selects a /64 within its /56, the next byte a /56 within its /48.
    fn v6(n: u128) -> Prefix {
        Prefix::of(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n << 64).into())
    }

    fn limiter() -> ConnectionLimiter {
        ConnectionLimiter::new(MANY, BTreeSet::new())
    }

    fn enter(limiter: &mut ConnectionLimiter, prefix: Prefix, now: Duration) -> ConnectionSlotId {
        match limiter.admit(prefix, now) {
            Admission::Enter { place, makes_way: None } => place,
            other => panic!("{other:?}"),
        }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn addresses_of_one_network_are_one_prefix() {
        let of = |text: &str| Prefix::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8:0:0:ffff::9"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn an_unknown_address_has_four_places() {
        let mut limiter = limiter();
        let places = (0..4).map(|_| enter(&mut limiter, v4(1), START)).collect::<Vec<_>>();
        assert_eq!(limiter.admit(v4(1), START), Admission::Refuse(RefusalReason::TooMany));
        enter(&mut limiter, v4(2), START);
        limiter.left(places[0]);
        enter(&mut limiter, v4(1), START);
    }

    #[test]
    fn in_a_full_network_the_longest_silent_connection_is_closed() {
        let mut limiter = limiter();
        let places = (0..4).map(|n| enter(&mut limiter, v4(1), seconds(n))).collect::<Vec<_>>();
        limiter.progressed(places[0], seconds(4));
        let Admission::Enter { makes_way, .. } = limiter.admit(v4(1), seconds(5)) else { panic!() };
        assert_eq!(makes_way, Some(places[1]));
        assert_eq!(limiter.counts(), (4, 0));
    }

    #[test]
    fn an_ipv6_site_has_sixteen_places_in_a_56_and_sixty_four_in_a_48() {
        let mut limiter = limiter();
        let refused = |limiter: &mut ConnectionLimiter, n: u128| {
            matches!(limiter.admit(v6(n), START), Admission::Refuse(RefusalReason::TooMany))
        };
        let first = (0..256).find(|n| refused(&mut limiter, *n));
        assert_eq!(first, Some(16), "one /64 of a /56 after the other");
        let first = (1..256).find(|n| refused(&mut limiter, n << 8));
        assert_eq!(first, Some(49), "one /56 of the /48 after the other");
        assert_eq!(limiter.counts(), (64, 0));
        enter(&mut limiter, v6(1 << 16), START);
    }

    #[test]
    fn if_all_places_are_taken_the_longest_silent_connection_is_closed_at_once() {
        let mut limiter = limiter();
        let places = (0..256).map(|n| enter(&mut limiter, v4(n), START)).collect::<Vec<_>>();
        limiter.progressed(places[0], Duration::from_millis(1));
        let admitted = limiter.admit(v4(1000), Duration::from_millis(2));
        assert!(
            matches!(admitted, Admission::Enter { makes_way: Some(gone), .. } if gone == places[1]),
            "{admitted:?}"
        );
        assert_eq!(limiter.counts(), (256, 0));
    }

    #[test]
    fn a_slow_client_keeps_its_place_during_a_flood() {
        let mut limiter = limiter();
        let slow = enter(&mut limiter, v4(1), START);
        limiter.progressed(slow, START);
        // Two floods from 200 addresses each: one sends nothing, the other sends a ClientHello and stops.
        for n in 0..10_000u32 {
            let now = Duration::from_millis(u64::from(n));
            if let Admission::Enter { place, makes_way } = limiter.admit(v4(1000 + n % 400), now) {
                assert_ne!(makes_way, Some(slow), "connection {n}");
                if n % 2 == 0 {
                    limiter.progressed(place, now);
                }
            }
        }
        assert_eq!(limiter.counts(), (256, 0));
    }

    #[test]
    fn known_prefixes_have_places_of_their_own() {
        let mut limiter = ConnectionLimiter::new(MANY, BTreeSet::from([v4(1)]));
        for n in 0..256 {
            enter(&mut limiter, v4(1000 + n), START);
        }
        // Every stream of a session at once.
        for _ in 0..128 {
            enter(&mut limiter, v4(1), START);
        }
        limiter.link_opened(v4(2));
        enter(&mut limiter, v4(2), START);
        limiter.link_closed(v4(2));
        assert!(matches!(limiter.admit(v4(2), START), Admission::Enter { makes_way: Some(_), .. }), "unknown again");
        assert_eq!(limiter.counts(), (256, 129));
    }

    #[test]
    fn new_connections_of_a_prefix_are_bounded_in_each_second() {
        let mut limiter = ConnectionLimiter::new(MANY, BTreeSet::from([v4(9)]));
        let admitted = |limiter: &mut ConnectionLimiter, prefix, now| {
            let places = (0..500).filter_map(|_| match limiter.admit(prefix, now) {
                Admission::Enter { place, .. } => {
                    limiter.left(place);
                    Some(())
                }
                Admission::Refuse(reason) => {
                    assert_eq!(reason, RefusalReason::TooFast);
                    None
                }
            });
            places.count()
        };
        assert_eq!(admitted(&mut limiter, v4(1), START), 20);
        assert_eq!(admitted(&mut limiter, v4(1), Duration::from_millis(999)), 0);
        assert_eq!(admitted(&mut limiter, v4(1), seconds(1)), 20);
        assert_eq!(admitted(&mut limiter, v4(9), seconds(1)), 160);
    }

    #[test]
    fn few_descriptors_mean_few_places() {
        let mut limiter = ConnectionLimiter::new(16, BTreeSet::from([v4(1)]));
        for n in 0..100 {
            assert!(matches!(limiter.admit(v4(100 + n), START), Admission::Enter { .. }));
            let _ = limiter.admit(v4(1), START);
        }
        assert_eq!(limiter.counts(), (7, 7));
    }

    #[test]
    fn the_streams_of_a_session_are_never_closed_for_other_known_prefixes() {
        let mut limiter = ConnectionLimiter::new(MANY, (1..=65).map(v4).collect());
        limiter.session_opened(v4(1), 16);
        // The other prefixes take all places for known prefixes, and open more connections.
        let mut streams = Vec::new();
        for n in 0..512 {
            let others = limiter.admit(v4(2 + n % 64), START);
            if n % 32 == 0 {
                streams.push(enter(&mut limiter, v4(1), START));
            }
            let Admission::Enter { makes_way, .. } = others else { continue };
            assert!(makes_way.is_none_or(|gone| !streams.contains(&gone)), "connection {n}");
        }
        assert_eq!(streams.len(), 16);
        // One more stream has no place of the session: it competes for the others.
        assert!(matches!(limiter.admit(v4(1), START), Admission::Enter { makes_way: Some(_), .. }));
        streams.into_iter().for_each(|stream| limiter.left(stream));
        enter(&mut limiter, v4(1), START);
        limiter.session_closed(v4(1), 16);
        assert!(matches!(limiter.admit(v4(1), START), Admission::Enter { makes_way: Some(_), .. }));
    }

    #[test]
    fn after_a_session_its_prefix_has_as_many_connections_as_before() {
        let mut limiter = ConnectionLimiter::new(MANY, BTreeSet::from([v4(1)]));
        limiter.session_opened(v4(1), 16);
        // The second session is still there when the first one ends.
        limiter.session_opened(v4(1), 4);
        let streams = (0..20).map(|_| enter(&mut limiter, v4(1), START)).collect::<Vec<_>>();
        for _ in 0..150 {
            enter(&mut limiter, v4(1), seconds(1));
        }
        // 4 stay in the slots of the second session, and 10 more make the 160 of a known prefix.
        assert_eq!(limiter.session_closed(v4(1), 16), streams[14..]);
        assert!(!limiter.is_crowded() && limiter.leaving.len() == 6);
        assert_eq!(limiter.counts(), (0, 164));
        // A further connection takes the slot of another one.
        assert!(matches!(limiter.admit(v4(1), seconds(2)), Admission::Enter { makes_way: Some(_), .. }));
        streams[14..].iter().for_each(|stream| limiter.left(*stream));
        assert_eq!(limiter.session_closed(v4(1), 4).len(), 4);
        assert_eq!(limiter.counts(), (0, 160));
    }

    #[test]
    fn an_unknown_prefix_keeps_four_connections_of_its_session() {
        let mut limiter = limiter();
        limiter.session_opened(v4(1), 16);
        for _ in 0..16 {
            enter(&mut limiter, v4(1), START);
        }
        assert_eq!(limiter.session_closed(v4(1), 16).len(), 12);
        assert_eq!(limiter.counts(), (4, 0));
    }

    #[test]
    fn a_prefix_that_is_added_is_known_until_the_set_is_replaced() {
        let mut limiter = limiter();
        limiter.add_known(v4(1));
        for _ in 0..160 {
            enter(&mut limiter, v4(1), START);
        }
        limiter.set_known(BTreeSet::new());
        for _ in 0..4 {
            enter(&mut limiter, v4(1), seconds(1));
        }
        assert_eq!(limiter.admit(v4(1), seconds(1)), Admission::Refuse(RefusalReason::TooMany));
    }

    #[test]
    fn without_a_limit_of_descriptors_every_place_is_available() {
        let limiter = ConnectionLimiter::new(
            crate::descriptors::DescriptorShares::divide(None, 1).unauthenticated,
            BTreeSet::new(),
        );
        let places = (limiter.unknown_places, limiter.known_places, limiter.leaving_places);
        assert_eq!(places, (UNKNOWN_PLACES, KNOWN_PLACES, 64));
    }

    #[test]
    fn a_displaced_connection_counts_until_it_is_closed() {
        let mut limiter = ConnectionLimiter::new(16, BTreeSet::new());
        let mut gone = (0..9).filter_map(|n| match limiter.admit(v4(n), START) {
            Admission::Enter { makes_way, .. } => makes_way,
            Admission::Refuse(_) => None,
        });
        let gone = [gone.next().unwrap(), gone.next().unwrap()];
        assert!(limiter.is_crowded());
        limiter.left(gone[1]);
        assert!(!limiter.is_crowded());
    }

    proptest! {
        /// In any order of events, no limit is exceeded, and a connection of a known prefix is never closed to make
        /// room for one of an unknown prefix.
        #[test]
        fn limits_hold_in_any_order(steps in vec((0..300u32, 0..4u8, 0..3000u64), 1..600)) {
            let known = (0..8).map(v4).collect::<BTreeSet<_>>();
            let mut limiter = ConnectionLimiter::new(MANY, known.clone());
            let mut inside = BTreeMap::new();
            let mut now = Duration::ZERO;
            for (n, what, later) in steps {
                now += Duration::from_millis(later / 10);
                match what {
                    0..2 => if let Admission::Enter { place, makes_way } = limiter.admit(v4(n), now) {
                        if let Some(gone) = makes_way {
                            let prefix: Prefix = inside.remove(&gone).expect("it was inside");
                            prop_assert_eq!(known.contains(&prefix), known.contains(&v4(n)));
                        }
                        inside.insert(place, v4(n));
                    }
                    2 => if let Some((place, _)) = inside.pop_first() { limiter.left(place); }
                    _ => if let Some(place) = inside.keys().next() { limiter.progressed(*place, now); }
                }
                let (unknown, of_known) = limiter.counts();
                prop_assert!(unknown <= UNKNOWN_PLACES && of_known <= KNOWN_PLACES);
                prop_assert_eq!(unknown + of_known, inside.len());
                let of_prefix = inside.values().filter(|prefix| **prefix == v4(n)).count();
                let allowed = if known.contains(&v4(n)) { 160 } else { 4 };
                prop_assert!(of_prefix <= allowed);
            }
        }
    }
}
