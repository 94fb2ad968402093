//! The queue of requests. Peers take turns. The requests of one peer are served in the order in which they arrived.
//! This module grants nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::EndpointId;
use paramedic_link::test_spec::{DataMode, TestSpec};

use super::decision::LinkId;
use super::limits;

/// A change of the expected wait is sent only if it exceeds both this time and a fifth of the remaining wait.
const SAME_WAIT: Duration = Duration::from_secs(5);

/// A queued request.
#[derive(Clone, Debug)]
pub(super) struct QueuedRequest {
    pub(super) link: LinkId,
    pub(super) peer: EndpointId,
    pub(super) spec: TestSpec,
    /// Whether the request repeats, through the tunnel, a direct test that the appliance could not reach. Such a
    /// request comes before all others.
    pub(super) is_fallback: bool,
    /// When the request was queued.
    pub(super) since: Duration,
    last_update: Option<LastUpdate>,
}

/// The position and the expected wait that were last sent to the appliance.
#[derive(Clone, Copy, Debug)]
struct LastUpdate {
    place: u32,
    expected_wait: Duration,
    at: Duration,
}

impl QueuedRequest {
    pub(super) fn needs_port(&self) -> bool {
        self.spec.data_mode == DataMode::DirectEphemeral
    }

    /// Whether to send this position and expected wait to the appliance. If they changed enough since the last update,
    /// records them as sent and returns `true`.
    pub(super) fn note_update(&mut self, place: u32, expected_wait: Duration, mono: Duration) -> bool {
        let is_news = self.last_update.is_none_or(|last_update| {
            let left = last_update.expected_wait.saturating_sub(mono.saturating_sub(last_update.at));
            last_update.place != place || left.abs_diff(expected_wait) > SAME_WAIT.max(left / 5)
        });
        if is_news {
            self.last_update = Some(LastUpdate { place, expected_wait, at: mono });
        }
        is_news
    }
}

/// All queued requests.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The requests in the order in which they arrived.
    waiting: Vec<QueuedRequest>,
    /// For each peer, the value of `served_in_all` just after the peer was last served: a lower value means longer ago.
    /// A peer that was never served has no entry.
    served: BTreeMap<EndpointId, u64>,
    served_in_all: u64,
}

impl Queue {
    pub(super) fn push(&mut self, link: LinkId, peer: EndpointId, spec: TestSpec, is_fallback: bool, mono: Duration) {
        self.waiting.push(QueuedRequest { link, peer, spec, is_fallback, since: mono, last_update: None });
    }

    pub(super) fn remove(&mut self, link: LinkId) -> Option<QueuedRequest> {
        let at = self.waiting.iter().position(|waiting| waiting.link == link)?;
        Some(self.waiting.remove(at))
    }

    pub(super) fn remove_peer(&mut self, peer: EndpointId) {
        self.waiting.retain(|waiting| waiting.peer != peer);
        self.served.remove(&peer);
    }

    pub(super) fn clear(&mut self) -> Vec<QueuedRequest> {
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn holds(&self, link: LinkId) -> bool {
        self.waiting.iter().any(|waiting| waiting.link == link)
    }

    pub(super) fn find(&mut self, link: LinkId) -> Option<&mut QueuedRequest> {
        self.waiting.iter_mut().find(|waiting| waiting.link == link)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn len_of(&self, peer: EndpointId) -> usize {
        self.waiting.iter().filter(|waiting| waiting.peer == peer).count()
    }

    /// Records that a peer was served. Its next request comes after those of all other peers.
    pub(super) fn note_served(&mut self, peer: EndpointId) {
        self.served_in_all += 1;
        self.served.insert(peer, self.served_in_all);
    }

    /// All queued requests in the order in which they will be served. First come those that repeat a direct test
    /// through the tunnel, in the order of their arrival. For the rest, peers take turns: the next request is always
    /// the oldest one of the peer that was served the longest ago. A peer counts as served for each of its requests
    /// that are already in this order.
    pub(super) fn in_order(&self) -> Vec<&QueuedRequest> {
        let mut served = self.served.clone();
        let mut counter = self.served_in_all;
        let (mut order, mut left): (Vec<_>, Vec<_>) = self.waiting.iter().partition(|waiting| waiting.is_fallback);
        // Of equal keys, the first found is the earliest.
        while let Some(next) = (0..left.len()).min_by_key(|at| served.get(&left[*at].peer).copied().unwrap_or(0)) {
            let waiting = left.remove(next);
            counter += 1;
            served.insert(waiting.peer, counter);
            order.push(waiting);
        }
        order
    }
}

/// The slots and ports for which queued requests wait.
#[derive(Clone, Debug)]
pub(super) struct Occupancy {
    /// The number of tests that may run at once.
    pub(super) slots: u32,
    /// For each reserved or running test, how long until its expected end, and whether it then frees a port.
    pub(super) running: Vec<(Duration, bool)>,
    /// The number of ports that are free now.
    pub(super) free_ports: usize,
}

/// The expected wait of each request in `order`.
pub(super) fn expected_waits(order: &[&QueuedRequest], occupied: &Occupancy) -> Vec<Duration> {
    let slots = usize::try_from(occupied.slots).unwrap_or(usize::MAX);
    // Free slots or ports beyond the number of requests make no difference.
    let mut slots_free_at: Vec<Duration> = occupied.running.iter().map(|(left, _)| *left).collect();
    slots_free_at.resize(slots.min(slots_free_at.len() + order.len()), Duration::ZERO);
    let mut ports_free_at: Vec<Duration> =
        occupied.running.iter().filter(|(_, has_port)| *has_port).map(|(left, _)| *left).collect();
    ports_free_at.resize(ports_free_at.len() + occupied.free_ports.min(order.len()), Duration::ZERO);
    order
        .iter()
        .map(|waiting| {
            let slot = slots_free_at.iter_mut().min();
            let port = if waiting.needs_port() { ports_free_at.iter_mut().min() } else { None };
            let begin = [&slot, &port].into_iter().flatten().map(|at| **at).max().unwrap_or(Duration::ZERO);
            let end = begin.saturating_add(limits::usual(&waiting.spec));
            for resource in [slot, port].into_iter().flatten() {
                *resource = end;
            }
            begin
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{EngineId, Load, PhaseSpec};

    use super::*;

    const A: EndpointId = EndpointId::from_bytes([1; 32]);
    const B: EndpointId = EndpointId::from_bytes([2; 32]);
    const C: EndpointId = EndpointId::from_bytes([3; 32]);

    fn spec(data_mode: DataMode) -> TestSpec {
        let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 9_000 }];
        TestSpec::new(EngineId::try_from("tcp").unwrap(), data_mode, phases, 1)
    }

    fn queue(of: &[EndpointId]) -> Queue {
        let mut queue = Queue::default();
        for (link, peer) in (1..).zip(of) {
            queue.push(LinkId(link), *peer, spec(DataMode::Tunneled), false, Duration::ZERO);
        }
        queue
    }

    fn links(queue: &Queue) -> Vec<u64> {
        queue.in_order().iter().map(|waiting| waiting.link.0).collect()
    }

    #[test]
    fn peers_take_turns_however_many_requests_one_has() {
        assert_eq!(links(&queue(&[A, A, A, B, C, B])), [1, 4, 5, 2, 6, 3]);
    }

    #[test]
    fn the_peer_served_longest_ago_is_first() {
        let mut queue = queue(&[A, B, C]);
        queue.note_served(C);
        queue.note_served(A);
        assert_eq!(links(&queue), [2, 3, 1]);
    }

    #[test]
    fn a_repeated_test_goes_before_all_others() {
        let mut queue = queue(&[A, B]);
        queue.push(LinkId(3), C, spec(DataMode::Tunneled), true, Duration::ZERO);
        queue.push(LinkId(4), A, spec(DataMode::Tunneled), true, Duration::ZERO);
        assert_eq!(links(&queue), [3, 4, 1, 2]);
    }

    #[test]
    fn waits_add_up_over_slots_and_ports() {
        let mut queue = queue(&[A, B, C]);
        queue.push(LinkId(4), A, spec(DataMode::DirectEphemeral), false, Duration::ZERO);
        let seconds = Duration::from_secs;
        let occupied = Occupancy { slots: 2, running: vec![(seconds(4), true), (seconds(7), false)], free_ports: 0 };
        let waits = expected_waits(&queue.in_order(), &occupied);
        // Each takes 9 s, plus 1 s to set up.
        assert_eq!(waits, [seconds(4), seconds(7), seconds(14), seconds(17)]);
        let direct_first = Occupancy { slots: 9, running: vec![(seconds(60), true)], free_ports: 0 };
        assert_eq!(expected_waits(&queue.in_order(), &direct_first).last(), Some(&seconds(60)));
    }

    #[test]
    fn a_request_is_sent_only_changes() {
        let seconds = Duration::from_secs;
        let mut queue = queue(&[A]);
        let waiting = queue.find(LinkId(1)).unwrap();
        assert!(waiting.note_update(2, seconds(30), seconds(0)));
        assert!(!waiting.note_update(2, seconds(20), seconds(10)), "the wait decreased as expected");
        assert!(waiting.note_update(1, seconds(20), seconds(10)));
        assert!(waiting.note_update(1, seconds(60), seconds(10)));
    }
}
