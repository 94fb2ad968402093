//! One direction of a link as a state machine: packets go in, and departures or drops come out. Pure: each call gets
//! the time as an argument.
//!
//! A packet passes the size limit, the policer, the queue (FIFO), the transmitter (one packet at a time, at the rate),
//! and the wire (loss, delay, jitter). A lost packet has used the transmitter, as on a real line.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::impairments::Impairments;
use crate::settings::DirectionSettings;

/// One direction of a link. `T` is the packet; the direction itself needs its length only. Times are since the start of
/// the link and must not decrease from call to call.
#[derive(Debug)]
pub struct LinkDirection<T> {
    settings: DirectionSettings,
    /// Changes of the settings that are not due yet: when each is due, in this order, and the new settings.
    changes: VecDeque<(Duration, DirectionSettings)>,
    impairments: Impairments,
    bucket: Bucket,
    waiting: VecDeque<Waiting<T>>,
    waiting_bytes: usize,
    /// When the transmitter has finished its latest packet.
    free_at: Duration,
    flying: BinaryHeap<Flying<T>>,
    lost: VecDeque<Fate<T>>,
    /// The latest time at which a packet is due to leave, without packets that are held back for reordering.
    last_due: Duration,
    next_number: u64,
    counts: Counts,
}

/// A direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the appliance to the reflector.
    Up,
    /// From the reflector to the appliance.
    Down,
}

impl Way {
    /// Both directions of a link.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// What the link did with a packet: delivered or dropped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<T> {
    /// The packet leaves the link now.
    Delivered(Departure<T>),
    /// The link dropped the packet.
    Dropped {
        /// The packet that the link dropped.
        packet: T,
        /// The number of the packet in the order of entering, from 0.
        number: u64,
        /// Why the link dropped the packet.
        reason: DropReason,
    },
}

/// A packet that leaves the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure<T> {
    /// The packet itself.
    pub packet: T,
    /// The number of the packet in the order of entering, from 0. A copy has the number of its original.
    pub number: u64,
    /// Whether this is the copy that the link made of a packet.
    pub is_copy: bool,
    /// When the packet entered the link.
    pub entered: Duration,
    /// How long the packet waited in the queue.
    pub queue_wait: Duration,
    /// When the packet should leave the link.
    pub due: Duration,
}

/// Why the link dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The packet is larger than the size limit of the link.
    TooLarge,
    /// The token bucket of the policer was empty.
    Policed,
    /// The queue before the transmitter was full.
    QueueFull,
    /// Random loss, independent of other packets.
    Random,
    /// Loss in a burst, by the model of [`BurstLoss`](crate::settings::BurstLoss).
    Burst,
}

impl DropReason {
    /// Every reason, in the order of the counts in [`Counts::dropped`].
    pub const ALL: [Self; 5] = [Self::TooLarge, Self::Policed, Self::QueueFull, Self::Random, Self::Burst];
}

/// Exact packet counts of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that entered the link.
    pub entered: u64,
    /// Packets that left the link, copies included.
    pub left: u64,
    /// Copies that left or will leave the link.
    pub copies: u64,
    /// Packets that the link dropped, by reason, in the order of [`DropReason::ALL`].
    pub dropped: [u64; 5],
}

impl Counts {
    /// The number of packets dropped for any reason.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// The number of packets dropped for this reason.
    pub fn dropped_by(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }
}

/// A packet that waits in the queue.
#[derive(Debug)]
struct Waiting<T> {
    packet: T,
    bytes: usize,
    number: u64,
    entered: Duration,
}

/// A packet in the transmitter or on the wire.
#[derive(Debug)]
struct Flying<T> {
    departure: Departure<T>,
    /// Decides the order of packets that are due at the same time.
    order: u64,
}

impl<T> Flying<T> {
    fn key(&self) -> Reverse<(Duration, u64)> {
        Reverse((self.departure.due, self.order))
    }
}

impl<T> PartialEq for Flying<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Flying<T> {}

impl<T> PartialOrd for Flying<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Flying<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// The token bucket of the policer.
#[derive(Debug, Default)]
struct Bucket {
    /// The bytes that the bucket holds; `None` before the first packet, which finds a full bucket.
    tokens: Option<f64>,
    filled_at: Duration,
}

impl Bucket {
    fn takes(&mut self, settings: &DirectionSettings, bytes: usize, now: Duration) -> bool {
        let Some(policer) = settings.policer else { return true };
        let size = policer.burst_kib * 1024.0;
        let since = now.saturating_sub(self.filled_at).as_secs_f64();
        let tokens = self.tokens.map_or(size, |tokens| (tokens + since * policer.rate_mbit * 125_000.0).min(size));
        self.filled_at = now;
        let fits = tokens >= bytes as f64;
        self.tokens = Some(if fits { tokens - bytes as f64 } else { tokens });
        fits
    }
}

impl<T: Clone> LinkDirection<T> {
    /// Creates a direction without packets, whose random decisions follow from `seed`.
    pub fn new(settings: DirectionSettings, seed: u64) -> Self {
        Self {
            settings,
            changes: VecDeque::new(),
            impairments: Impairments::new(seed),
            bucket: Bucket::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            free_at: Duration::ZERO,
            flying: BinaryHeap::new(),
            lost: VecDeque::new(),
            last_due: Duration::ZERO,
            next_number: 0,
            counts: Counts::default(),
        }
    }

    /// Applies `settings` to the packets that reach the queue or the transmitter from `at` on. Discards earlier
    /// requests for changes at or after `at`.
    pub fn change(&mut self, at: Duration, settings: DirectionSettings) {
        self.changes.retain(|(other, _)| *other < at);
        self.changes.push_back((at, settings));
    }

    /// The number that the next packet will get when it enters.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Lets a packet of `bytes` enter the link at `now`.
    pub fn enter(&mut self, now: Duration, bytes: usize, packet: T) {
        self.advance(now);
        let number = self.next_number;
        self.next_number += 1;
        self.counts.entered += 1;
        let is_too_large = self.settings.drop_above_bytes.is_some_and(|limit| bytes > limit);
        let is_idle = self.waiting.is_empty() && self.free_at <= now;
        let is_full = !self.waiting.is_empty()
            && self.settings.queue_bytes().is_some_and(|limit| self.waiting_bytes + bytes > limit);
        let reason = if is_too_large {
            Some(DropReason::TooLarge)
        } else if !self.bucket.takes(&self.settings, bytes, now) {
            Some(DropReason::Policed)
        } else if is_full {
            Some(DropReason::QueueFull)
        } else {
            None
        };
        if let Some(reason) = reason {
            return self.drop_packet(packet, number, reason);
        }
        let waiting = Waiting { packet, bytes, number, entered: now };
        if is_idle {
            self.transmit(waiting, now);
        } else {
            self.waiting_bytes += bytes;
            self.waiting.push_back(waiting);
        }
    }

    /// Returns the next packet that leaves or is dropped at or before `now`; call it until it returns `None`.
    pub fn next_fate(&mut self, now: Duration) -> Option<Fate<T>> {
        self.advance(now);
        if let Some(lost) = self.lost.pop_front() {
            return Some(lost);
        }
        if self.flying.peek()?.departure.due > now {
            return None;
        }
        self.counts.left += 1;
        self.flying.pop().map(|flying| Fate::Delivered(flying.departure))
    }

    /// When to call [`LinkDirection::next_fate`] again unless a packet enters before; `None`: no packet is inside.
    pub fn next_event(&self) -> Option<Duration> {
        let flying = self.flying.peek().map(|flying| flying.departure.due);
        // The transmission of a waiting packet may begin late, as long as the packet does not leave late.
        let waiting = self.waiting.front().map(|head| {
            let leaves = self.free_at + self.settings.transmission(head.bytes) + self.settings.delay();
            self.changes.front().map_or(leaves, |(at, _)| leaves.min((*at).max(self.free_at)))
        });
        let earliest = [flying, waiting].into_iter().flatten().min();
        if self.lost.is_empty() { earliest } else { Some(Duration::ZERO) }
    }

    /// The packet counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The number of packets in the queue, in the transmitter and on the wire.
    pub fn inside(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    /// The settings that apply to the direction now.
    pub fn settings(&self) -> &DirectionSettings {
        &self.settings
    }

    /// Starts the transmissions that are due until `now`, and applies the changes of the settings that are due between
    /// them.
    fn advance(&mut self, now: Duration) {
        loop {
            let change_at = self.changes.front().map(|(at, _)| *at).filter(|at| *at <= now);
            let starts_at = self.waiting.front().map(|_| self.free_at).filter(|at| *at <= now);
            match (change_at, starts_at) {
                (Some(change), start) if start.is_none_or(|start| change <= start) => {
                    if let Some((_, settings)) = self.changes.pop_front() {
                        self.settings = settings;
                    }
                }
                (_, Some(start)) => {
                    if let Some(head) = self.waiting.pop_front() {
                        self.waiting_bytes -= head.bytes;
                        self.transmit(head, start);
                    }
                }
                (_, None) => return,
            }
        }
    }

    /// Lets the transmitter take a packet from the queue at `start`.
    fn transmit(&mut self, taken: Waiting<T>, start: Duration) {
        let Waiting { packet, bytes, number, entered } = taken;
        let transmission = self.settings.transmission(bytes);
        let decision = self.impairments.decide(&self.settings);
        self.free_at = start + transmission;
        if decision.is_lost || decision.is_lost_in_burst {
            let reason = if decision.is_lost { DropReason::Random } else { DropReason::Burst };
            return self.drop_packet(packet, number, reason);
        }
        let copy = decision.is_duplicated.then(|| packet.clone());
        let queue_wait = start.saturating_sub(entered);
        let mut fly = |packet: T, is_copy: bool, finish: Duration| {
            let mut due = finish + self.settings.delay() + decision.jitter;
            if !self.settings.jitter_reorders {
                due = due.max(self.last_due);
            }
            match decision.held_back {
                Some(held_back) => due += held_back,
                None => self.last_due = self.last_due.max(due),
            }
            let order = number * 2 + u64::from(is_copy);
            let departure = Departure { packet, number, is_copy, entered, queue_wait, due };
            self.flying.push(Flying { departure, order });
        };
        fly(packet, false, self.free_at);
        if let Some(copy) = copy {
            self.free_at += transmission;
            self.counts.copies += 1;
            fly(copy, true, self.free_at);
        }
    }

    fn drop_packet(&mut self, packet: T, number: u64, reason: DropReason) {
        self.counts.dropped[reason as usize] += 1;
        self.lost.push_back(Fate::Dropped { packet, number, reason });
    }
}

#[cfg(test)]
mod tests;
