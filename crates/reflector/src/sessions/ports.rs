//! Assigns ports of the data port range to sessions. The server finds out whether a port can be bound.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

/// If another program was found to use a port, then for this long the port is taken only if no other port is free.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// The data port range. Each port is either free or in use.
#[derive(Debug)]
pub(super) struct Ports {
    /// The free ports, the longest unused first, so that a late packet of an old session does not reach a new session.
    free: VecDeque<u16>,
    in_use: BTreeSet<u16>,
    /// Ports that another program used recently, each with the time until which it is taken only if no other port is
    /// free.
    suspects: BTreeMap<u16, Duration>,
}

impl Ports {
    pub(super) fn new(range: Option<RangeInclusive<u16>>) -> Self {
        let free = range.into_iter().flatten().collect();
        Self { free, in_use: BTreeSet::new(), suspects: BTreeMap::new() }
    }

    /// The number of free ports.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes the free port that was unused the longest and is not in `tried`; `None` if there is none. Ports that other
    /// programs used recently come last.
    pub(super) fn take(&mut self, tried: &BTreeSet<u16>, mono: Duration) -> Option<u16> {
        self.suspects.retain(|_, until| *until > mono);
        let untried = |port: &&u16| !tried.contains(port);
        let trusted = self.free.iter().filter(untried).find(|port| !self.suspects.contains_key(port));
        let port = trusted.or_else(|| self.free.iter().find(untried)).copied()?;
        self.free.retain(|free| *free != port);
        self.in_use.insert(port);
        Some(port)
    }

    /// Returns a port to the free ports, because its session needs it no more.
    pub(super) fn give_back(&mut self, port: u16) {
        if self.in_use.remove(&port) {
            self.free.push_back(port);
        }
    }

    /// Returns a port to the free ports, to be taken last, because another program uses it.
    pub(super) fn give_back_held(&mut self, port: u16, mono: Duration) {
        self.give_back(port);
        self.suspects.insert(port, mono.saturating_add(SUSPECT_FOR));
    }

    /// The ports that other programs used recently.
    pub(super) fn suspects(&self, mono: Duration) -> Vec<u16> {
        self.suspects.iter().filter(|(_, until)| **until > mono).map(|(port, _)| *port).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;

    #[test]
    fn the_longest_unused_port_is_used_first() {
        let mut ports = Ports::new(Some(5201..=5203));
        let none = BTreeSet::new();
        assert_eq!(ports.take(&none, START), Some(5201));
        ports.give_back(5201);
        assert_eq!(ports.take(&none, START), Some(5202));
        assert_eq!(ports.take(&none, START), Some(5203));
        assert_eq!(ports.take(&none, START), Some(5201));
        assert_eq!(ports.take(&none, START), None);
    }

    #[test]
    fn a_held_port_is_tried_last_for_a_minute() {
        let mut ports = Ports::new(Some(5201..=5202));
        let none = BTreeSet::new();
        let held = ports.take(&none, START).unwrap();
        ports.give_back_held(held, START);
        let other = ports.take(&none, START).unwrap();
        assert_ne!(other, held);
        ports.give_back(other);
        assert_eq!(ports.take(&none, START), Some(other));
        assert_eq!(ports.take(&none, START), Some(held), "a suspect is better than none");
        ports.give_back(held);
        ports.give_back(other);
        assert_eq!(ports.take(&none, START + SUSPECT_FOR), Some(held), "after a minute it is like any other");
    }

    #[test]
    fn the_highest_port_number_can_be_used() {
        let mut ports = Ports::new(Some(65_535..=65_535));
        assert_eq!(ports.take(&BTreeSet::new(), START), Some(65_535));
        assert_eq!(ports.free(), 0);
    }
}
