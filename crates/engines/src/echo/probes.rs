//! What a prober saw, one entry a probe, packed so that a day of them fits into a small device. Pure: no sockets, no
//! clock.

use std::fmt;
use std::time::Duration;

use super::packet::{HISTORY, ReplyPacket};

/// What the probes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A data connection, where UDP does not come back. Its retransmissions hide loss and show as long round trips.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        })
    }
}

/// One probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When it was sent, since the prober's start.
    pub sent_at: Duration,
    /// How long after its due time it was sent, in microseconds: the prober's own lateness, not the network's.
    pub late_us: u32,
    /// The round trip, in microseconds, with the reflector's turn-around taken out; absent where no reply came in time.
    pub rtt_us: Option<u32>,
    /// Whether the reflector got it; absent where nothing that came back tells.
    pub arrived: Option<bool>,
    /// How long the reflector held it, in microseconds; 0 where no reply came.
    pub turnaround_us: u32,
    /// Whether its reply came, but later than [`Probe::LATE_AFTER`].
    pub late: bool,
}

impl Probe {
    /// A reply that takes longer is late: neither a round trip nor a loss.
    pub const LATE_AFTER: Duration = Duration::from_secs(10);
}

/// Everything a prober saw.
#[derive(Debug)]
pub struct Probes {
    /// What the probes took; absent where neither way worked, and nothing was probed.
    pub transport: Option<Transport>,
    /// Probes and replies that arrived a second time.
    pub duplicates: u64,
    /// Probes that were due and never sent, because the prober itself could not run or its connection had ended.
    pub skipped: u64,
    pub(super) book: Book,
}

impl Probes {
    /// Every probe, in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = Probe> {
        self.book.iter()
    }

    /// The probes sent from `from` on and before `to`, both since the prober's start, in the order sent.
    pub fn within(&self, from: Duration, to: Duration) -> impl Iterator<Item = Probe> {
        self.book.iter().skip_while(move |probe| probe.sent_at < from).take_while(move |probe| probe.sent_at < to)
    }
}

/// The first sequence number of the schedule; lower ones only find out whether UDP comes back.
pub(super) const FIRST_SEQ: u32 = 64;
/// Slots are kept in pieces, so that no growing ever copies what is there.
const PIECE: usize = 4096;
/// More slots are not kept, and their probes not sent: four hours and a half at 1 ms, two days at 10 ms, 192 MiB.
const MOST_SLOTS: usize = 1 << 24;

/// One due time of the schedule.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    late_us: u32,
    turnaround_us: u32,
    /// The round trip in the low [`RTT_BITS`], flags above.
    packed: u32,
}

const RTT_BITS: u32 = 24;
/// The probe was sent; without it the slot was skipped.
const SENT: u32 = 1 << 24;
/// Something that came back tells whether it arrived.
const TOLD: u32 = 1 << 25;
/// It arrived.
const ARRIVED: u32 = 1 << 26;
/// Its reply came.
const REPLIED: u32 = 1 << 27;
/// Its reply came late.
const LATE: u32 = 1 << 28;

impl Slot {
    fn is(&self, flag: u32) -> bool {
        self.packed & flag != 0
    }
}

/// Every slot of the schedule so far, and what became of it. Times are nanoseconds since the prober's start.
#[derive(Debug)]
pub(super) struct Book {
    /// When the first slot is due.
    base_ns: u64,
    interval_ns: u64,
    pieces: Vec<Vec<Slot>>,
    skipped: u64,
    /// Replies that came a second time.
    doubled_replies: u64,
    /// What the reflector last said of probes that arrived a second time, and how often that has wrapped.
    doubled_probes: u64,
    /// No slot before this one is open: each was skipped, told of, or never will be.
    open_from: usize,
}

/// What a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A round trip.
    RoundTrip(Duration),
    /// The first reply of its probe, without a round trip: late, or of a probe outside the schedule.
    Other,
    /// A reply that came before, or of a probe that was never sent.
    Nothing,
}

impl Book {
    /// A schedule whose first slot is due at `base_ns`; `interval_ns` is not 0.
    pub(super) fn new(base_ns: u64, interval_ns: u64) -> Self {
        Self {
            base_ns,
            interval_ns,
            pieces: Vec::new(),
            skipped: 0,
            doubled_replies: 0,
            doubled_probes: 0,
            open_from: 0,
        }
    }

    fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    fn slot(&self, at: usize) -> Option<&Slot> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    fn slot_mut(&mut self, at: usize) -> Option<&mut Slot> {
        self.pieces.get_mut(at / PIECE)?.get_mut(at % PIECE)
    }

    fn push(&mut self, slot: Slot) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE => last.push(slot),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(slot);
                self.pieces.push(piece);
            }
        }
    }

    fn due_ns(&self, at: usize) -> u64 {
        self.base_ns.saturating_add((at as u64).saturating_mul(self.interval_ns))
    }

    /// When the next slot is due.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.due_ns(self.len())
    }

    /// Takes the next slot that is due at `now_ns`, and answers its sequence number. Of slots that passed while the
    /// prober could not run, the first is sent (so that the lateness shows) and the last, those between are skipped:
    /// sent at once they would be a burst, not a schedule.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<u32> {
        let next = self.len();
        let late_ns = now_ns.checked_sub(self.due_ns(next))?;
        if next >= MOST_SLOTS {
            self.skipped += 1;
            return None;
        }
        let missed = usize::try_from(late_ns / self.interval_ns).unwrap_or(usize::MAX);
        self.push(Slot { late_us: saturated(late_ns / 1000), packed: SENT, ..Slot::default() });
        for _ in 1..missed.min(MOST_SLOTS - next) {
            self.push(Slot::default());
            self.skipped += 1;
        }
        u32::try_from(next).ok()?.checked_add(FIRST_SEQ)
    }

    /// Leaves out the slots that were due before `now_ns`.
    pub(super) fn skip_until(&mut self, now_ns: u64) {
        let due = now_ns.saturating_sub(self.base_ns) / self.interval_ns;
        self.skipped += due.saturating_sub(self.len() as u64);
    }

    /// The number that comes after the schedule's last.
    pub(super) fn seq_after(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX).saturating_add(FIRST_SEQ)
    }

    /// The newest number that the next reply's history shall speak of, if `seq` asks: as far as the record has no gap.
    pub(super) fn about(&mut self, seq: u32) -> u32 {
        while self.slot(self.open_from).is_some_and(|slot| !slot.is(SENT) || slot.is(TOLD)) {
            self.open_from += 1;
        }
        let open = u32::try_from(self.open_from).unwrap_or(u32::MAX).saturating_add(FIRST_SEQ);
        open.saturating_add(HISTORY - 1).min(seq)
    }

    /// Enters a verified reply that arrived at `now_ns`.
    pub(super) fn enter(&mut self, reply: &ReplyPacket, now_ns: u64) -> Reading {
        let reading = self.round_trip(reply, now_ns);
        if reading != Reading::Nothing {
            self.enter_history(reply);
        }
        reading
    }

    fn round_trip(&mut self, reply: &ReplyPacket, now_ns: u64) -> Reading {
        let Some(at) = reply.seq.checked_sub(FIRST_SEQ).map(|at| at as usize).filter(|at| *at < self.len()) else {
            return Reading::Other;
        };
        let due_ns = self.due_ns(at);
        let Some(slot) = self.slot_mut(at).filter(|slot| slot.is(SENT)) else { return Reading::Nothing };
        if slot.is(REPLIED) {
            self.doubled_replies += 1;
            return Reading::Nothing;
        }
        // The time comes back to the nanosecond, but is not taken on trust: our own record knows it to the microsecond.
        // A saturated lateness knows it no better than that.
        let late_us = reply.sent_ns.saturating_sub(due_ns) / 1000;
        if slot.late_us != u32::MAX && late_us != u64::from(slot.late_us) {
            return Reading::Nothing;
        }
        slot.packed |= REPLIED | TOLD | ARRIVED;
        let whole = Duration::from_nanos(now_ns.saturating_sub(reply.sent_ns));
        if whole > Probe::LATE_AFTER {
            slot.packed |= LATE;
            return Reading::Other;
        }
        // A reflector that claims to have held the probe for longer than it was away is not believed.
        let dwell = Duration::from_nanos(reply.dwell_ns.into());
        let round_trip = whole.checked_sub(dwell).unwrap_or(whole);
        slot.turnaround_us = saturated(rounded_us(dwell));
        slot.packed |= saturated(rounded_us(round_trip)) & ((1 << RTT_BITS) - 1);
        Reading::RoundTrip(round_trip)
    }

    fn enter_history(&mut self, reply: &ReplyPacket) {
        // The counter wraps; between two replies it never moves by half its range.
        let moved = reply.duplicates.wrapping_sub(self.doubled_probes as u16);
        if moved < 1 << 15 {
            self.doubled_probes += u64::from(moved);
        }
        let about = reply.history.about;
        for seq in about.saturating_sub(HISTORY - 1).max(FIRST_SEQ)..=about {
            let Some(arrived) = reply.history.arrived(seq) else { continue };
            // A number that the reflector speaks of without having seen it may still be in flight: that is told too,
            // and corrected by any later reply.
            if let Some(slot) = self.slot_mut((seq - FIRST_SEQ) as usize).filter(|slot| slot.is(SENT)) {
                slot.packed |= if arrived { TOLD | ARRIVED } else { TOLD };
            }
        }
        // Asked for the oldest gap, the reflector spoke of something newer: it no longer remembers.
        let oldest_told = about.saturating_sub(HISTORY - 1).saturating_sub(FIRST_SEQ) as usize;
        if about < reply.seq {
            self.open_from = self.open_from.max(oldest_told);
        }
    }

    /// Whether waiting longer can tell nothing new, but for replies that are late.
    pub(super) fn is_settled(&mut self) -> bool {
        let len = self.len();
        let newest = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(FIRST_SEQ - 1);
        self.about(newest);
        // Older ones had their second already; none is waited for twice.
        let tail = len.saturating_sub(HISTORY as usize).max(self.open_from.min(len));
        self.open_from >= len
            && (tail.min(len.saturating_sub(HISTORY as usize))..len)
                .all(|at| self.slot(at).is_none_or(|slot| !slot.is(ARRIVED) || slot.is(REPLIED)))
    }

    /// Probes that were due and never sent.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Probes and replies that arrived a second time.
    pub(super) fn duplicates(&self) -> u64 {
        self.doubled_replies + self.doubled_probes
    }

    /// Every probe that was sent.
    fn iter(&self) -> impl Iterator<Item = Probe> {
        self.pieces.iter().flatten().enumerate().filter(|(_, slot)| slot.is(SENT)).map(|(at, slot)| Probe {
            sent_at: Duration::from_nanos(self.due_ns(at)) + Duration::from_micros(slot.late_us.into()),
            late_us: slot.late_us,
            rtt_us: (slot.is(REPLIED) && !slot.is(LATE)).then_some(slot.packed & ((1 << RTT_BITS) - 1)),
            arrived: slot.is(TOLD).then_some(slot.is(ARRIVED)),
            turnaround_us: slot.turnaround_us,
            late: slot.is(LATE),
        })
    }
}

fn rounded_us(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX)
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
