//! Who may connect before anybody knows who they are: decisions about numbers of connections. Sockets and handshakes
//! never live here, and nobody is authenticated here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Connections that are not authenticated yet, in all: at about 80 KiB each, some 20 MiB at worst.
const IN_ALL: usize = 256;
/// Of those, places that strangers never get.
const KEPT: usize = 32;
/// Places of one prefix.
const PER_PREFIX: usize = 4;
/// Places of one prefix that is known: four appliances behind one address with four handshakes each.
const PER_KNOWN_PREFIX: usize = 16;
/// How long a connection waits for a place.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that wait, in all: each costs a descriptor and little else.
const WAITING: usize = 256;
/// Connections of one known prefix that wait: every stream of a session.
const WAITING_PER_KNOWN_PREFIX: usize = 64;
/// Connections of strangers that wait while a pairing code is open.
const WAITING_STRANGERS: usize = 64;
/// Of those, connections of one prefix.
const WAITING_PER_PREFIX: usize = 8;
/// How long a prefix is known after it authenticated or its last link closed.
const LATELY: Duration = Duration::from_secs(600);
/// Prefixes that are remembered as known; only peers get in here.
const REMEMBERED: usize = 1024;

/// Where somebody connects from, as far as it can be told apart: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(IpAddr);

impl Prefix {
    /// The prefix of an address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// A place behind the door. Give it back with [`Door::authenticated`] and [`Door::left`].
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// A place in the line before the door. Lapses by itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting(u64);

/// What a connection is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may shake hands.
    Enter(Ticket),
    /// Knock again with this when something changed, at the latest when its time is over.
    Wait {
        /// Its place in the line.
        ticket: Waiting,
        /// When it is over, on the monotonic clock.
        until: Duration,
    },
    /// It may not come in.
    Refuse(Refusal),
}

/// Why a connection may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Enough of its prefix are on their way in, or wait.
    #[error("too many connections of this prefix are not authenticated yet")]
    OfPrefix,
    /// Enough are on their way in, or wait.
    #[error("too many connections are not authenticated yet")]
    InAll,
    /// It waited, and no place came free.
    #[error("no place came free in time")]
    WaitedTooLong,
}

/// Counts who is on the way in.
#[derive(Debug, Default)]
pub struct Door {
    next: u64,
    /// Those that are in and not authenticated yet.
    inside: BTreeMap<u64, Prefix>,
    /// Those that wait, in the order in which they came.
    line: BTreeMap<u64, Waiter>,
    /// How many links stand from each prefix.
    links: BTreeMap<Prefix, usize>,
    /// When a prefix last proved to be a peer's.
    lately: BTreeMap<Prefix, Duration>,
    codes_open: usize,
    /// The latest time that was heard of.
    now: Duration,
}

#[derive(Debug)]
struct Waiter {
    prefix: Prefix,
    until: Duration,
}

/// How much a prefix may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A link stands from there, or did so lately.
    Known,
    /// Anybody, while a pairing code is open.
    Expected,
    Stranger,
}

impl Door {
    /// Asks for a place; `waiting` is what the last answer gave, for one who waits. `now` is monotonic.
    pub fn knock(&mut self, prefix: Prefix, waiting: Option<Waiting>, now: Duration) -> Answer {
        self.pass_time(now);
        let waiting = waiting.map(|ticket| ticket.0).filter(|number| self.line.contains_key(number));
        if self.has_room(prefix, waiting) {
            if let Some(number) = waiting {
                self.line.remove(&number);
            }
            let ticket = self.number();
            self.inside.insert(ticket, prefix);
            return Answer::Enter(Ticket(ticket));
        }
        if let Some(number) = waiting {
            return match self.line[&number].until {
                until if until > self.now => Answer::Wait { ticket: Waiting(number), until },
                _ => {
                    self.line.remove(&number);
                    Answer::Refuse(Refusal::WaitedTooLong)
                }
            };
        }
        if let Some(refusal) = self.may_not_wait(prefix) {
            return Answer::Refuse(refusal);
        }
        let (number, until) = (self.number(), self.now.saturating_add(PATIENCE));
        self.line.insert(number, Waiter { prefix, until });
        Answer::Wait { ticket: Waiting(number), until }
    }

    /// The connection is a peer's: it no longer counts, and its prefix is known for a while.
    pub fn authenticated(&mut self, ticket: &Ticket, now: Duration) {
        self.pass_time(now);
        if let Some(prefix) = self.inside.remove(&ticket.0) {
            self.remember(prefix);
        }
    }

    /// The connection is gone. Its ticket may be one that was authenticated before.
    pub fn left(&mut self, ticket: &Ticket, now: Duration) {
        self.pass_time(now);
        self.inside.remove(&ticket.0);
    }

    /// A link stands.
    pub fn link_opened(&mut self, prefix: Prefix) {
        *self.links.entry(prefix).or_default() += 1;
    }

    /// A link is gone. Its prefix is known for a while, so that it may come back.
    pub fn link_closed(&mut self, prefix: Prefix) {
        if let Some(count) = self.links.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.links.remove(&prefix);
            }
            self.remember(prefix);
        }
    }

    /// A pairing code is open: strangers are expected, and may wait.
    pub fn code_opened(&mut self) {
        self.codes_open += 1;
    }

    /// A pairing code is closed.
    pub fn code_closed(&mut self) {
        self.codes_open = self.codes_open.saturating_sub(1);
    }

    /// Connections that are not authenticated yet, and those that wait.
    pub fn counts(&self) -> (usize, usize) {
        (self.inside.len(), self.line.len())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn pass_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
        let now = self.now;
        // Somebody who waited and is not heard of again is gone; the grace lets the others knock a last time.
        self.line.retain(|_, waiter| waiter.until.saturating_add(PATIENCE) > now);
    }

    fn standing(&self, prefix: Prefix) -> Standing {
        let lately = |at: &Duration| self.now.saturating_sub(*at) < LATELY;
        if self.links.contains_key(&prefix) || self.lately.get(&prefix).is_some_and(lately) {
            Standing::Known
        } else if self.codes_open > 0 {
            Standing::Expected
        } else {
            Standing::Stranger
        }
    }

    /// Whether there is a place, after everyone who stands before `waiting` in the line got one; a newcomer stands
    /// behind all of them.
    fn has_room(&self, prefix: Prefix, waiting: Option<u64>) -> bool {
        let mut taken = BTreeMap::<Prefix, usize>::new();
        for inside in self.inside.values() {
            *taken.entry(*inside).or_default() += 1;
        }
        let mut in_all = self.inside.len();
        let has_room = |prefix: Prefix, taken: &BTreeMap<Prefix, usize>, in_all: usize| {
            let (all, per_prefix) = match self.standing(prefix) {
                Standing::Known => (IN_ALL, PER_KNOWN_PREFIX),
                Standing::Expected | Standing::Stranger => (IN_ALL - KEPT, PER_PREFIX),
            };
            in_all < all && taken.get(&prefix).copied().unwrap_or(0) < per_prefix
        };
        let before = self.line.iter().take_while(|(number, _)| Some(**number) != waiting);
        for (_, waiter) in before.filter(|(_, waiter)| waiter.until > self.now) {
            if has_room(waiter.prefix, &taken, in_all) {
                *taken.entry(waiter.prefix).or_default() += 1;
                in_all += 1;
            }
        }
        has_room(prefix, &taken, in_all)
    }

    fn may_not_wait(&self, prefix: Prefix) -> Option<Refusal> {
        let of_prefix = self.line.values().filter(|waiter| waiter.prefix == prefix).count();
        let standing = self.standing(prefix);
        let (all, per_prefix) = match standing {
            Standing::Known => (WAITING, WAITING_PER_KNOWN_PREFIX),
            Standing::Expected => (WAITING, WAITING_PER_PREFIX),
            Standing::Stranger => (0, 0),
        };
        let strangers = || self.line.values().filter(|waiter| self.standing(waiter.prefix) != Standing::Known).count();
        let inside = self.inside.values().filter(|inside| **inside == prefix).count();
        if standing == Standing::Stranger {
            Some(if inside >= PER_PREFIX { Refusal::OfPrefix } else { Refusal::InAll })
        } else if of_prefix >= per_prefix {
            Some(Refusal::OfPrefix)
        } else if self.line.len() >= all || (standing == Standing::Expected && strangers() >= WAITING_STRANGERS) {
            Some(Refusal::InAll)
        } else {
            None
        }
    }

    fn remember(&mut self, prefix: Prefix) {
        let oldest = || self.lately.iter().min_by_key(|(_, at)| **at).map(|(prefix, _)| *prefix);
        if self.lately.len() >= REMEMBERED
            && !self.lately.contains_key(&prefix)
            && let Some(oldest) = oldest()
        {
            self.lately.remove(&oldest);
        }
        self.lately.insert(prefix, self.now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::ZERO;

    fn prefix(n: u32) -> Prefix {
        Prefix::of(IpAddr::V4(n.into()))
    }

    fn enter(door: &mut Door, prefix: Prefix, now: Duration) -> Ticket {
        match door.knock(prefix, None, now) {
            Answer::Enter(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// A door with `count` strangers inside, each of a prefix of its own.
    fn crowded(count: u32) -> (Door, Vec<Ticket>) {
        let mut door = Door::default();
        let tickets = (0..count).map(|n| enter(&mut door, prefix(1000 + n), START)).collect();
        (door, tickets)
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
    fn a_stranger_has_four_places_and_never_waits() {
        let mut door = Door::default();
        let mut tickets = (0..4).map(|_| enter(&mut door, prefix(1), START)).collect::<Vec<_>>();
        assert_eq!(door.knock(prefix(1), None, START), Answer::Refuse(Refusal::OfPrefix));
        door.left(&tickets.pop().unwrap(), START);
        enter(&mut door, prefix(1), START);
    }

    #[test]
    fn strangers_never_fill_the_places_that_are_kept() {
        let (mut door, mut tickets) = crowded(224);
        assert_eq!(door.knock(prefix(1), None, START), Answer::Refuse(Refusal::InAll));
        // Somebody who authenticated lately still comes in, 32 times over all prefixes.
        for n in 0..2 {
            door.link_opened(prefix(n));
        }
        for n in 0..32 {
            tickets.push(enter(&mut door, prefix(n % 2), START));
        }
        assert_eq!(door.counts(), (256, 0));
        assert!(matches!(door.knock(prefix(0), None, START), Answer::Wait { .. }));
    }

    #[test]
    fn an_authenticated_connection_no_longer_counts() {
        let mut door = Door::default();
        for _ in 0..300 {
            let ticket = enter(&mut door, prefix(1), START);
            door.authenticated(&ticket, START);
        }
        assert_eq!(door.counts(), (0, 0));
    }

    #[test]
    fn a_known_prefix_waits_for_a_place_and_gets_it_in_its_turn() {
        let mut door = Door::default();
        door.link_opened(prefix(1));
        let mut inside = (0..16).map(|_| enter(&mut door, prefix(1), START)).collect::<Vec<_>>();
        let wait = |door: &mut Door| match door.knock(prefix(1), None, START) {
            Answer::Wait { ticket, until } => (ticket, until),
            other => panic!("{other:?}"),
        };
        let (first, until) = wait(&mut door);
        let (second, _) = wait(&mut door);
        assert_eq!(until, PATIENCE);
        door.left(&inside.pop().unwrap(), START);
        // The second asks first, and a newcomer as well: the place is the first one's.
        let Answer::Wait { ticket: second, .. } = door.knock(prefix(1), Some(second), START) else { panic!() };
        assert!(matches!(door.knock(prefix(1), None, START), Answer::Wait { .. }));
        assert!(matches!(door.knock(prefix(1), Some(first), START), Answer::Enter(_)));
        assert_eq!(door.knock(prefix(1), Some(second), until), Answer::Refuse(Refusal::WaitedTooLong));
    }

    #[test]
    fn who_waited_in_vain_holds_up_nobody() {
        let mut door = Door::default();
        door.link_opened(prefix(1));
        let mut inside = (0..16).map(|_| enter(&mut door, prefix(1), START)).collect::<Vec<_>>();
        assert!(matches!(door.knock(prefix(1), None, START), Answer::Wait { .. }));
        door.left(&inside.pop().unwrap(), PATIENCE);
        enter(&mut door, prefix(1), PATIENCE);
        door.knock(prefix(2), None, PATIENCE * 3);
        assert_eq!(door.counts().1, 0);
    }

    #[test]
    fn strangers_wait_only_while_a_code_is_open() {
        let mut door = Door::default();
        let _inside = (0..4).map(|_| enter(&mut door, prefix(1), START)).collect::<Vec<_>>();
        door.code_opened();
        for _ in 0..8 {
            assert!(matches!(door.knock(prefix(1), None, START), Answer::Wait { .. }));
        }
        assert_eq!(door.knock(prefix(1), None, START), Answer::Refuse(Refusal::OfPrefix));
        door.code_closed();
        assert_eq!(door.knock(prefix(1), None, START), Answer::Refuse(Refusal::OfPrefix));
    }

    #[test]
    fn strangers_leave_room_in_the_line_for_those_who_are_known() {
        let (mut door, _inside) = crowded(224);
        door.code_opened();
        let waiting = (0..100).filter(|n| matches!(door.knock(prefix(*n), None, START), Answer::Wait { .. })).count();
        assert_eq!(waiting, WAITING_STRANGERS);
    }

    #[test]
    fn a_prefix_is_known_for_ten_minutes_after_it_authenticated_or_hung_up() {
        let mut door = Door::default();
        let ticket = enter(&mut door, prefix(1), START);
        door.authenticated(&ticket, START);
        door.link_opened(prefix(1));
        let hours = Duration::from_secs(7200);
        door.left(&ticket, hours);
        door.link_closed(prefix(1));
        let _inside = (0..16).map(|_| enter(&mut door, prefix(1), hours)).collect::<Vec<_>>();
        assert!(matches!(door.knock(prefix(1), None, hours), Answer::Wait { .. }));
        assert_eq!(door.knock(prefix(1), None, hours + LATELY), Answer::Refuse(Refusal::OfPrefix));
    }

    #[test]
    fn memory_of_prefixes_is_bounded() {
        let mut door = Door::default();
        for n in 0..2000u32 {
            let now = Duration::from_millis(n.into());
            let ticket = enter(&mut door, prefix(n), now);
            door.authenticated(&ticket, now);
        }
        assert_eq!(door.lately.len(), REMEMBERED);
        assert!(door.lately.contains_key(&prefix(1999)) && !door.lately.contains_key(&prefix(0)));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Knock(u32),
        KnockAgain(usize),
        Authenticated(usize),
        Left(usize),
        LinkOpened(u32),
        LinkClosed(u32),
        Code(bool),
        Pass(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            20 => (0u32..6).prop_map(Op::Knock),
            5 => (6u32..400).prop_map(Op::Knock),
            5 => any::<usize>().prop_map(Op::KnockAgain),
            2 => any::<usize>().prop_map(Op::Authenticated),
            3 => any::<usize>().prop_map(Op::Left),
            1 => (0u32..8).prop_map(Op::LinkOpened),
            1 => (0u32..8).prop_map(Op::LinkClosed),
            1 => any::<bool>().prop_map(Op::Code),
            1 => (0u64..400).prop_map(Op::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_crowd_gets_in_beyond_the_numbers(ops in vec(op(), 1..300)) {
            let mut door = Door::default();
            let mut now = START;
            let (mut inside, mut waiting) = (Vec::new(), Vec::new());
            for op in ops {
                let (from, ticket) = match op {
                    Op::Knock(n) => (prefix(n), None),
                    Op::KnockAgain(which) if !waiting.is_empty() => {
                        let (from, ticket) = waiting.swap_remove(which % waiting.len());
                        (from, Some(ticket))
                    }
                    Op::Authenticated(which) if !inside.is_empty() => {
                        door.authenticated(&inside.swap_remove(which % inside.len()), now);
                        continue;
                    }
                    Op::Left(which) if !inside.is_empty() => {
                        door.left(&inside.swap_remove(which % inside.len()), now);
                        continue;
                    }
                    Op::LinkOpened(n) => { door.link_opened(prefix(n)); continue }
                    Op::LinkClosed(n) => { door.link_closed(prefix(n)); continue }
                    Op::Code(true) => { door.code_opened(); continue }
                    Op::Code(false) => { door.code_closed(); continue }
                    Op::Pass(seconds) => { now += Duration::from_secs(seconds); continue }
                    _ => continue,
                };
                let stranger = door.standing(from) != Standing::Known;
                match door.knock(from, ticket, now) {
                    Answer::Enter(ticket) => {
                        inside.push(ticket);
                        let of_prefix = door.inside.values().filter(|inside| **inside == from).count();
                        let limit = if stranger { (PER_PREFIX, IN_ALL - KEPT) } else { (PER_KNOWN_PREFIX, IN_ALL) };
                        prop_assert!(of_prefix <= limit.0 && door.inside.len() <= limit.1);
                    }
                    Answer::Wait { ticket, until } => {
                        prop_assert!(until > now);
                        waiting.push((from, ticket));
                    }
                    Answer::Refuse(_) => {}
                }
                prop_assert_eq!(door.counts().0, inside.len());
                prop_assert!(door.counts().1 <= WAITING);
            }
        }
    }
}
