//! The prober's record of its probes. It has one compact entry per probe, so that the probes of a day fit in the memory
//! of a small device. Uses no socket and no clock.

use std::fmt;
use std::time::Duration;

use paramedic_link::measurement::Probe;

use super::packet::{HISTORY, ProbePacket, ReplyPacket};

/// The transport of latency probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EchoTransport {
    /// UDP datagrams.
    Udp,
    /// A data connection over TCP, if UDP does not work. Retransmissions of TCP hide loss and appear as long round
    /// trips.
    Tcp,
}

impl fmt::Display for EchoTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            EchoTransport::Udp => "udp",
            EchoTransport::Tcp => "tcp",
        })
    }
}

/// The results of a prober that has finished.
#[derive(Debug)]
pub struct Probes {
    /// The transport of the probes; `None` if no transport worked, so that no probes were sent.
    pub transport: Option<EchoTransport>,
    /// The number of probes and replies that arrived more than once.
    pub duplicates: u64,
    /// The number of probes that were due but not sent, because the kernel did not run the prober in time or the
    /// prober's connection had ended.
    pub skipped: u64,
    pub(super) log: ProbeRecords,
}

impl Probes {
    /// All probes that were sent, in the order of sending.
    pub fn iter(&self) -> impl Iterator<Item = Probe> {
        self.log.iter()
    }

    /// The probes sent from `from` up to `to`, in the order of sending. Both times are measured from the prober's
    /// start.
    pub fn within(&self, from: Duration, to: Duration) -> impl Iterator<Item = Probe> {
        self.log.iter().skip_while(move |probe| probe.sent_at < from).take_while(move |probe| probe.sent_at < to)
    }

    /// For each skipped probe that was due from `from` up to `to`: the time from when it was due until the prober sent
    /// again, in microseconds.
    pub fn skipped_within(&self, from: Duration, to: Duration) -> impl Iterator<Item = u32> {
        self.log.skipped_slots().filter(move |(due, _)| (from..to).contains(due)).map(|(_, late_us)| late_us)
    }
}

/// The first sequence number of the schedule. Probes with lower numbers test whether UDP works.
pub(super) const FIRST_SEQ: u32 = 64;
/// The number of slots per piece. The slots of the schedule are stored in pieces, so that growth does not copy them.
const PIECE: usize = 4096;
/// The maximum number of slots of a schedule; a prober that has used them all sends no further probes. The slots
/// suffice for 4.5 hours at an interval of 1 ms or for 46 hours at 10 ms, and take up to 320 MiB.
const MAX_SLOTS: usize = 1 << 24;

/// A slot of the schedule: one time at which a probe is due.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    late_us: u32,
    turnaround_us: u32,
    /// [`Probe::upload_us`] minus the value in [`ProbeRecords::first_upload_ns`], in microseconds. The difference fits
    /// in 32 bits. Valid if [`ONE_WAY`] is set.
    upload_us: i32,
    /// [`Probe::own_wait_us`] plus one; 0 if unknown.
    own_wait: u32,
    /// The round trip in microseconds in the low [`RTT_BITS`] bits, and flags in the higher bits.
    packed: u32,
}

const RTT_BITS: u32 = 24;
/// Flag in [`Slot::packed`]: the probe was sent. Otherwise the slot was skipped.
const SENT: u32 = 1 << 24;
/// Flag in [`Slot::packed`]: the reflector has reported whether the probe arrived.
const REPORTED: u32 = 1 << 25;
/// Flag in [`Slot::packed`]: the probe arrived at the reflector.
const ARRIVED: u32 = 1 << 26;
/// Flag in [`Slot::packed`]: the reply to the probe arrived.
const REPLIED: u32 = 1 << 27;
/// Flag in [`Slot::packed`]: the reply to the probe arrived late ([`Probe::late`]).
const LATE: u32 = 1 << 28;
/// Flag in [`Slot::packed`]: the reply has a valid time of the probe's arrival at the reflector, so `upload_us` is
/// valid.
const ONE_WAY: u32 = 1 << 29;

impl Slot {
    fn is(&self, flag: u32) -> bool {
        self.packed & flag != 0
    }
}

/// A part of the schedule in which the probe interval is constant.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// The index of the first slot in this part. `base_ns` is when that slot is due.
    first: usize,
    base_ns: u64,
    interval_ns: u64,
}

impl Stretch {
    fn new(first: usize, base_ns: u64, interval: Duration) -> Self {
        Self { first, base_ns, interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1) }
    }

    fn due_ns(&self, at: usize) -> u64 {
        self.base_ns.saturating_add((at.saturating_sub(self.first) as u64).saturating_mul(self.interval_ns))
    }

    /// The index of the first slot that is due at `at_ns` or later.
    fn slot_from(&self, at_ns: u64) -> usize {
        let slots = at_ns.saturating_sub(self.base_ns).div_ceil(self.interval_ns);
        self.first.saturating_add(usize::try_from(slots).unwrap_or(usize::MAX))
    }
}

/// The records of all slots of the schedule so far. Times are in nanoseconds since the prober's start.
#[derive(Debug)]
pub(super) struct ProbeRecords {
    /// The stretches of the schedule before the current one, in order.
    past: Vec<Stretch>,
    current: Stretch,
    pieces: Vec<Vec<Slot>>,
    skipped: u64,
    /// Replies that arrived more than once.
    doubled_replies: u64,
    /// Probes that arrived more than once, as reported by the reflector. The reflector's counter wraps, but this total
    /// does not.
    doubled_probes: u64,
    /// For the probe of the first reply that has a valid arrival time: the time at which the probe arrived at the
    /// reflector, minus the time at which it was sent, in nanoseconds. `None` before such a reply. See
    /// [`Probe::upload_us`].
    first_upload_ns: Option<i64>,
    /// The index of the first slot that is not final. A slot is final once it is skipped, reported, or too old for the
    /// reflector's ledger.
    open_from: usize,
}

/// The information that a reply adds to the record of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// The reply gives a valid round trip.
    RoundTrip(Duration),
    /// The reply gives no round trip: it is the first reply to its probe but late, or its probe was not part of the
    /// schedule.
    Other,
    /// The reply is repeated, or does not match a probe that was sent.
    Nothing,
}

impl ProbeRecords {
    /// A schedule whose first slot is due at `base_ns`.
    pub(super) fn new(base_ns: u64, interval: Duration) -> Self {
        Self {
            past: Vec::new(),
            current: Stretch::new(0, base_ns, interval),
            pieces: Vec::new(),
            skipped: 0,
            doubled_replies: 0,
            doubled_probes: 0,
            first_upload_ns: None,
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
        let past = || self.past.iter().rev().find(|stretch| stretch.first <= at);
        let stretch = if at >= self.current.first { &self.current } else { past().unwrap_or(&self.current) };
        stretch.due_ns(at)
    }

    /// Changes the probe interval at `now_ns`. Returns the time at which the next slot is due: one new interval after
    /// `now_ns`.
    pub(super) fn pace(&mut self, now_ns: u64, interval: Duration) -> u64 {
        let mut next = Stretch::new(self.len(), now_ns, interval);
        next.base_ns = next.base_ns.saturating_add(next.interval_ns);
        if next.first > self.current.first {
            self.past.push(self.current);
        }
        self.current = next;
        next.base_ns
    }

    /// When the first slot of the current probe interval is due, and the interval itself.
    pub(super) fn schedule(&self) -> (u64, Duration) {
        (self.current.base_ns, Duration::from_nanos(self.current.interval_ns))
    }

    /// Takes the next slot that is due at `now_ns` and returns its sequence number. A late prober sends the probe of
    /// the first missed slot, which shows the delay, and that of the last missed slot. It skips the slots in between,
    /// because sending all their probes would be a burst.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<u32> {
        let next = self.len();
        let late_ns = now_ns.checked_sub(self.due_ns(next))?;
        if next >= MAX_SLOTS {
            self.skipped += 1;
            return None;
        }
        let missed = usize::try_from(late_ns / self.current.interval_ns).unwrap_or(usize::MAX);
        self.push(Slot { late_us: saturated(late_ns / 1000), packed: SENT, ..Slot::default() });
        for _ in 1..missed.min(MAX_SLOTS - next) {
            self.push(Slot::default());
            self.skipped += 1;
        }
        u32::try_from(next).ok()?.checked_add(FIRST_SEQ)
    }

    /// Counts as skipped all slots that were due by `now_ns` and were not taken. This must be the last call on a
    /// schedule.
    pub(super) fn skip_until(&mut self, now_ns: u64) {
        let Some(since) = now_ns.checked_sub(self.current.base_ns) else { return };
        let taken = self.len() - self.current.first;
        self.skipped += (since / self.current.interval_ns + 1).saturating_sub(taken as u64);
    }

    /// The sequence number after the last one of the schedule.
    pub(super) fn seq_after(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX).saturating_add(FIRST_SEQ)
    }

    /// The highest sequence number that the arrival history in the reply to probe `seq` should cover. The number is
    /// chosen such that the histories of all replies together leave no gap.
    pub(super) fn about(&mut self, seq: u32) -> u32 {
        while self.slot(self.open_from).is_some_and(|slot| !slot.is(SENT) || slot.is(REPORTED)) {
            self.open_from += 1;
        }
        let open = u32::try_from(self.open_from).unwrap_or(u32::MAX).saturating_add(FIRST_SEQ);
        open.saturating_add(HISTORY - 1).min(seq)
    }

    /// Records a verified reply that arrived at `now_ns`. Returns what the reply adds.
    pub(super) fn enter(&mut self, reply: &ReplyPacket, now_ns: u64) -> ReplyKind {
        let reading = self.round_trip(reply, now_ns);
        if reading != ReplyKind::Nothing {
            self.enter_history(reply);
        }
        reading
    }

    fn round_trip(&mut self, reply: &ReplyPacket, now_ns: u64) -> ReplyKind {
        let Some(at) = reply.seq.checked_sub(FIRST_SEQ).map(|at| at as usize).filter(|at| *at < self.len()) else {
            return ReplyKind::Other;
        };
        let due_ns = self.due_ns(at);
        let Some(slot) = self.slot_mut(at).filter(|slot| slot.is(SENT)) else { return ReplyKind::Nothing };
        if slot.is(REPLIED) {
            self.doubled_replies += 1;
            return ReplyKind::Nothing;
        }
        // The echoed time has nanoseconds but is not trusted: it must match the prober's record, which has
        // microseconds.
        let late_us = reply.sent_ns.checked_sub(due_ns).map(|late_ns| saturated(late_ns / 1000));
        if late_us != Some(slot.late_us) {
            return ReplyKind::Nothing;
        }
        slot.packed |= REPLIED | REPORTED | ARRIVED;
        let whole = Duration::from_nanos(now_ns.saturating_sub(reply.sent_ns));
        // If the reflector may have held the probe for longer than the field can express, the round trip is unknown.
        if whole > Probe::LATE_AFTER || reply.dwell_ns == u32::MAX && whole.as_nanos() >= u128::from(u32::MAX) {
            slot.packed |= LATE;
            return ReplyKind::Other;
        }
        // Ignores a reported dwell time that is longer than the round trip.
        let dwell = Duration::from_nanos(reply.dwell_ns.into());
        let possible = whole.checked_sub(dwell);
        let round_trip = possible.unwrap_or(whole);
        slot.turnaround_us = saturated(rounded_us(dwell));
        slot.packed |= saturated(rounded_us(round_trip)) & ((1 << RTT_BITS) - 1);
        if possible.is_some() {
            self.enter_upload(at, reply);
        }
        ReplyKind::RoundTrip(round_trip)
    }

    /// Records the reflector's receive time minus the sending time for the probe in slot `at`. Both times come from the
    /// network and are not trusted, so the subtraction wraps.
    fn enter_upload(&mut self, at: usize, reply: &ReplyPacket) {
        let difference_ns = reply.received_ns.wrapping_sub(reply.sent_ns).cast_signed();
        let first_ns = *self.first_upload_ns.get_or_insert(difference_ns);
        let moved_us = difference_ns.wrapping_sub(first_ns).div_euclid(1000);
        if let (Ok(moved_us), Some(slot)) = (i32::try_from(moved_us), self.slot_mut(at)) {
            slot.upload_us = moved_us;
            slot.packed |= ONE_WAY;
        }
    }

    /// Records that `probe` left this host at `left_ns`. Ignores impossible times.
    pub(super) fn enter_departure(&mut self, probe: &ProbePacket, left_ns: u64) {
        let Some(at) = probe.seq.checked_sub(FIRST_SEQ).map(|at| at as usize).filter(|at| *at < self.len()) else {
            return;
        };
        let sent_ns = self.due_ns(at);
        let Some(slot) = self.slot_mut(at).filter(|slot| slot.is(SENT)) else { return };
        let late_us = probe.sent_ns.checked_sub(sent_ns).map(|late_ns| saturated(late_ns / 1000));
        // The departure time is converted from another clock, so it may be up to 1 ms before the sending time.
        let waited_us = left_ns.saturating_sub(probe.sent_ns) / 1000;
        let is_before = left_ns.saturating_add(1_000_000) < probe.sent_ns;
        if late_us == Some(slot.late_us) && !is_before && u128::from(waited_us) <= Probe::LATE_AFTER.as_micros() {
            slot.own_wait = saturated(waited_us).saturating_add(1);
        }
    }

    fn enter_history(&mut self, reply: &ReplyPacket) {
        // The counter wraps. It never moves by half of its range between two replies, so a larger step means an older
        // reply.
        let moved = reply.duplicates.wrapping_sub(self.doubled_probes as u16);
        if moved < 1 << 15 {
            self.doubled_probes += u64::from(moved);
        }
        let about = reply.history.about;
        for seq in about.saturating_sub(HISTORY - 1).max(FIRST_SEQ)..=about {
            let Some(arrived) = reply.history.arrived(seq) else { continue };
            // A probe reported as missing may still be in flight; a later reply corrects it.
            if let Some(slot) = self.slot_mut((seq - FIRST_SEQ) as usize).filter(|slot| slot.is(SENT)) {
                slot.packed |= if arrived { REPORTED | ARRIVED } else { REPORTED };
            }
        }
        // If the history begins after the requested gap, the reflector has forgotten the gap.
        let oldest_reported = about.saturating_sub(HISTORY - 1).saturating_sub(FIRST_SEQ) as usize;
        self.open_from = self.open_from.max(oldest_reported.min(self.len()));
    }

    /// Whether waiting for more replies is pointless: the reflector has reported every probe as arrived or as lost, and
    /// each arrived probe of the last `timeout` has its reply.
    pub(super) fn is_settled(&mut self, timeout: Duration) -> bool {
        let len = self.len();
        self.about(self.seq_after());
        let recent = (timeout.as_nanos() / u128::from(self.current.interval_ns)).min(len as u128) as usize;
        let is_missing = |slot: &Slot| slot.is(ARRIVED) && !slot.is(REPLIED);
        self.open_from >= len && !(len - recent..len).any(|at| self.slot(at).is_some_and(is_missing))
    }

    /// The number of probes that were due but not sent.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The number of probes and replies that arrived more than once.
    pub(super) fn duplicates(&self) -> u64 {
        self.doubled_replies + self.doubled_probes
    }

    /// All probes that were sent, each with the index of its slot.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, Probe)> {
        let sent = self.pieces.iter().flatten().enumerate().filter(|(_, slot)| slot.is(SENT));
        sent.map(|(at, slot)| (at, self.probe(at, slot)))
    }

    /// The sent probes that were due from `from_ns` up to `to_ns`. Does not scan the records of earlier probes.
    pub(super) fn due_between(&self, from_ns: u64, to_ns: u64) -> Vec<Probe> {
        let to = self.slot_from(to_ns).min(self.len());
        let from = self.slot_from(from_ns).min(to);
        let sent = (from..to).filter_map(|at| Some((at, self.slot(at)?))).filter(|(_, slot)| slot.is(SENT));
        sent.map(|(at, slot)| self.probe(at, slot)).collect()
    }

    /// For each skipped slot: when the slot was due, and how much later the prober sent again, in microseconds. The
    /// prober then sent the probe of the first slot that it had missed.
    fn skipped_slots(&self) -> impl Iterator<Item = (Duration, u32)> {
        let mut caught_up_ns = self.due_ns(0);
        self.pieces.iter().flatten().enumerate().filter_map(move |(at, slot)| {
            let due_ns = self.due_ns(at);
            if slot.is(SENT) {
                caught_up_ns = due_ns.saturating_add(u64::from(slot.late_us) * 1000);
                return None;
            }
            Some((Duration::from_nanos(due_ns), saturated(caught_up_ns.saturating_sub(due_ns) / 1000)))
        })
    }

    /// The index of the first slot that is due at `at_ns` or later.
    fn slot_from(&self, at_ns: u64) -> usize {
        let ends = self.past.iter().skip(1).chain([&self.current]).map(|next| next.first);
        let past = self.past.iter().zip(ends).map(|(stretch, end)| (stretch.slot_from(at_ns), end));
        let found = past.filter(|(slot, end)| slot < end).map(|(slot, _)| slot).next();
        found.unwrap_or_else(|| self.current.slot_from(at_ns))
    }

    fn iter(&self) -> impl Iterator<Item = Probe> {
        self.numbered().map(|(_, probe)| probe)
    }

    fn probe(&self, at: usize, slot: &Slot) -> Probe {
        Probe {
            sent_at: Duration::from_nanos(self.due_ns(at)) + Duration::from_micros(slot.late_us.into()),
            late_us: slot.late_us,
            rtt_us: (slot.is(REPLIED) && !slot.is(LATE)).then_some(slot.packed & ((1 << RTT_BITS) - 1)),
            arrived: slot.is(REPORTED).then_some(slot.is(ARRIVED)),
            turnaround_us: slot.turnaround_us,
            upload_us: self
                .first_upload_ns
                .filter(|_| slot.is(ONE_WAY))
                .map(|first_ns| first_ns / 1000 + i64::from(slot.upload_us)),
            own_wait_us: slot.own_wait.checked_sub(1),
            late: slot.is(LATE),
        }
    }
}

fn rounded_us(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX)
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::packet::ArrivalHistory;
    use super::*;

    const MS: u64 = 1_000_000;
    const EVERY: Duration = Duration::from_millis(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn log() -> ProbeRecords {
        ProbeRecords::new(1000 * MS, EVERY)
    }

    /// Records whose first `n` slots were sent in time.
    fn sent(n: u64) -> ProbeRecords {
        let mut log = log();
        for at in 0..n {
            assert_eq!(log.take_due((1000 + 10 * at) * MS), Some(FIRST_SEQ + at as u32));
        }
        log
    }

    /// The reply to the probe of slot `at`, which was sent in time, from a reflector that received only the probes of
    /// the slots in `arrived`. The reply's history covers the slots up to `about`.
    fn reply(at: u32, about: u32, arrived: &[u32]) -> ReplyPacket {
        let mut bits = [0; 32];
        for back in arrived.iter().filter_map(|slot| about.checked_sub(*slot)).filter(|back| *back < HISTORY) {
            bits[back as usize / 8] |= 1 << (back % 8);
        }
        ReplyPacket {
            seq: FIRST_SEQ + at,
            sent_ns: (1000 + 10 * u64::from(at)) * MS,
            received_ns: 0,
            dwell_ns: 0,
            history: ArrivalHistory { about: FIRST_SEQ + about, arrived: bits },
            duplicates: 0,
        }
    }

    fn states(log: &ProbeRecords) -> Vec<(Option<u32>, Option<bool>)> {
        log.iter().map(|probe| (probe.rtt_us, probe.arrived)).collect()
    }

    #[test]
    fn the_dwell_time_is_subtracted() {
        let mut log = sent(1);
        let reply = ReplyPacket { dwell_ns: 700_000, ..reply(0, 0, &[0]) };
        assert_eq!(log.enter(&reply, 1003 * MS), ReplyKind::RoundTrip(Duration::from_micros(2300)));
        let probe = log.iter().next().unwrap();
        assert_eq!((probe.rtt_us, probe.turnaround_us, probe.arrived), (Some(2300), 700, Some(true)));
        assert_eq!((probe.sent_at, probe.late_us), (SECOND, 0));
    }

    #[test]
    fn a_dwell_time_above_the_round_trip_is_ignored() {
        let mut log = sent(1);
        let reply = ReplyPacket { dwell_ns: u32::MAX, ..reply(0, 0, &[0]) };
        assert_eq!(log.enter(&reply, 1003 * MS), ReplyKind::RoundTrip(Duration::from_millis(3)));
    }

    #[test]
    fn a_probe_that_was_held_for_longer_than_the_reply_can_express_has_no_round_trip() {
        let mut log = sent(1);
        let held = ReplyPacket { dwell_ns: u32::MAX, ..reply(0, 0, &[0]) };
        assert_eq!(log.enter(&held, 7000 * MS), ReplyKind::Other);
        let probe = log.iter().next().unwrap();
        assert_eq!((probe.rtt_us, probe.late, probe.upload_us, probe.arrived), (None, true, None, Some(true)));
    }

    #[test]
    fn the_wait_in_this_host_is_kept_and_never_changes_the_round_trip() {
        let probe = |at: u32| ProbePacket {
            seq: FIRST_SEQ + at,
            about: FIRST_SEQ + at,
            sent_ns: (1000 + 10 * u64::from(at)) * MS,
        };
        let mut log = sent(5);
        for at in 0..5 {
            log.enter(&reply(at, at, &[at]), (1000 + 10 * u64::from(at)) * MS + 40 * MS);
        }
        log.enter_departure(&probe(0), 1030 * MS);
        // A departure time slightly before the send is a reading error, and counts as no wait. The other times are
        // impossible.
        log.enter_departure(&probe(1), 1010 * MS - 500);
        log.enter_departure(&probe(2), 5 * MS);
        log.enter_departure(&probe(3), 60_000 * MS);
        log.enter_departure(&ProbePacket { sent_ns: 7, ..probe(4) }, 1041 * MS);
        log.enter_departure(&probe(99), 1041 * MS);
        assert!(log.iter().map(|probe| probe.own_wait_us).eq([Some(30_000), Some(0), None, None, None]));
        assert!(log.iter().all(|probe| probe.rtt_us == Some(40_000)));
    }

    #[test]
    fn the_difference_of_the_clocks_is_kept_whatever_their_zeros_are() {
        for zero_ns in [0, 5_000 * MS, u64::MAX / 2, u64::MAX - 10 * MS] {
            let mut log = sent(3);
            let upload_us = [4_000, 9_500, 1_250];
            for (at, upload_us) in (0..).zip(upload_us) {
                let sent = reply(at, at, &[at]);
                let received_ns = sent.sent_ns.wrapping_add(zero_ns).wrapping_add(upload_us * 1000);
                log.enter(&ReplyPacket { received_ns, ..sent }, sent.sent_ns + 12 * MS);
            }
            let probes = log.iter().collect::<Vec<_>>();
            let seen = probes.iter().map(|probe| probe.upload_us.unwrap()).collect::<Vec<_>>();
            assert_eq!([seen[1] - seen[0], seen[2] - seen[0]], [5_500, -2_750], "{zero_ns}");
            let both = probes.iter().map(|probe| probe.upload_us.unwrap() + probe.download_us().unwrap());
            assert!(both.eq([12_000; 3]), "the two directions add up to the round trip");
        }
        let mut log = sent(2);
        log.enter(&reply(0, 0, &[0]), 1012 * MS);
        // An impossible receive time is ignored.
        log.enter(&ReplyPacket { received_ns: u64::MAX / 2, ..reply(1, 1, &[1]) }, 1022 * MS);
        assert!(log.iter().map(|probe| probe.upload_us.is_some()).eq([true, false]));
    }

    #[test]
    fn a_reply_with_another_sending_time_is_ignored() {
        let mut log = sent(1);
        let earlier = ReplyPacket { sent_ns: 1000 * MS - 2000, ..reply(0, 0, &[0]) };
        let later = ReplyPacket { sent_ns: 1000 * MS + 2000, ..reply(0, 0, &[0]) };
        assert_eq!(log.enter(&later, 1003 * MS), ReplyKind::Nothing);
        assert_eq!(log.enter(&earlier, 1003 * MS), ReplyKind::Nothing);
    }

    #[test]
    fn a_second_reply_is_a_duplicate() {
        let mut log = sent(1);
        log.enter(&reply(0, 0, &[0]), 1003 * MS);
        assert_eq!(log.enter(&reply(0, 0, &[0]), 1009 * MS), ReplyKind::Nothing);
        assert_eq!((log.duplicates(), log.iter().next().unwrap().rtt_us), (1, Some(3000)));
    }

    #[test]
    fn the_reflectors_count_of_duplicates_may_wrap_and_come_out_of_order() {
        let mut log = sent(4);
        for (at, duplicates) in [(0, 30_000), (1, 60_000), (3, 200), (2, 65_500)] {
            log.enter(&ReplyPacket { duplicates, ..reply(at, at, &[]) }, 1050 * MS);
        }
        assert_eq!(log.duplicates(), 65_736);
    }

    #[test]
    fn after_ten_seconds_a_reply_is_late() {
        let mut log = sent(2);
        assert_eq!(log.enter(&reply(0, 0, &[0]), 11_001 * MS), ReplyKind::Other);
        assert_eq!(log.enter(&reply(1, 1, &[0, 1]), 11_010 * MS), ReplyKind::RoundTrip(Probe::LATE_AFTER));
        let [first, second] = log.iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((first.late, first.rtt_us, first.arrived), (true, None, Some(true)));
        assert_eq!((second.late, second.rtt_us), (false, Some(10_000_000)));
    }

    #[test]
    fn a_later_reply_shows_in_which_direction_a_probe_was_lost() {
        let mut log = sent(4);
        log.enter(&reply(3, 3, &[0, 2, 3]), 1035 * MS);
        let reported = [(None, Some(true)), (None, Some(false)), (None, Some(true)), (Some(5000), Some(true))];
        assert_eq!(states(&log), reported);
        // A probe that was only reordered is reported again.
        log.enter(&reply(1, 3, &[0, 1, 2, 3]), 1036 * MS);
        assert_eq!(states(&log)[1], (Some(26_000), Some(true)));
    }

    #[test]
    fn an_outage_longer_than_the_history_is_requested_in_pieces() {
        let mut log = sent(1000);
        assert_eq!(log.about(FIRST_SEQ + 999), FIRST_SEQ + 255);
        let odd: Vec<u32> = (0..1000).filter(|at| at % 2 == 1).collect();
        let mut asked = Vec::new();
        for at in 990..994 {
            let about = log.about(FIRST_SEQ + at);
            asked.push(about - FIRST_SEQ);
            log.enter(&reply(at, about - FIRST_SEQ, &odd), 20_000 * MS);
        }
        assert_eq!(asked, [255, 511, 767, 993]);
        assert_eq!(log.iter().filter(|probe| probe.arrived == Some(true)).count(), 497 + 2);
        assert_eq!(log.iter().filter(|probe| probe.arrived.is_none()).count(), 6);
    }

    #[test]
    fn forgotten_numbers_are_not_requested_again() {
        let mut log = sent(1000);
        log.enter(&reply(999, 700, &[]), 20_000 * MS);
        assert_eq!(log.about(FIRST_SEQ + 999), FIRST_SEQ + 701 + 255);
        assert_eq!(states(&log)[444], (None, None));
        assert_eq!(states(&log)[445], (None, Some(false)));
    }

    #[test]
    fn missed_slots_are_skipped_except_the_first_and_the_last() {
        let mut log = sent(1);
        // Slots are due at 1010, 1020, 1030 and 1040 ms; the prober runs again at 1041 ms.
        assert_eq!(log.take_due(1041 * MS), Some(FIRST_SEQ + 1));
        assert_eq!(log.take_due(1041 * MS), Some(FIRST_SEQ + 4));
        assert_eq!(log.take_due(1041 * MS), None);
        assert_eq!(log.skipped(), 2);
        let late: Vec<u32> = log.iter().map(|probe| probe.late_us).collect();
        assert_eq!(late, [0, 31_000, 1000]);
        // A probe that was never sent can't be answered and is not lost.
        assert_eq!(log.enter(&reply(2, 2, &[2]), 1042 * MS), ReplyKind::Nothing);
        assert!(log.iter().all(|probe| probe.arrived.is_none()));
    }

    #[test]
    fn a_window_has_the_probes_skipped_in_it_and_how_late_they_were() {
        let mut log = sent(1);
        // Slots are due at 1010, 1020, 1030 and 1040 ms; the prober runs again at 1041 ms.
        while log.take_due(1041 * MS).is_some() {}
        let probes = Probes { transport: Some(EchoTransport::Udp), duplicates: 0, skipped: log.skipped(), log };
        let within = |from, to| {
            probes.skipped_within(Duration::from_millis(from), Duration::from_millis(to)).collect::<Vec<_>>()
        };
        assert_eq!(within(0, 2000), [21_000, 11_000]);
        assert_eq!((within(1020, 1030), within(1031, 2000)), (vec![21_000], vec![]));
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut log = log();
        assert_eq!(log.take_due(1000 * MS - 1), None);
        assert_eq!(log.take_due(1000 * MS), Some(FIRST_SEQ));
        assert_eq!(log.take_due(1010 * MS - 1), None);
        log.skip_until(1030 * MS);
        assert_eq!(log.skipped(), 3);
    }

    #[test]
    fn the_interval_changes_between_two_slots_and_the_numbers_continue() {
        let mut log = sent(3);
        assert_eq!(log.pace(1025 * MS, 5 * EVERY), 1075 * MS);
        assert_eq!((log.take_due(1074 * MS), log.take_due(1075 * MS)), (None, Some(FIRST_SEQ + 3)));
        // A late prober skips the slots of the current interval.
        assert_eq!(log.take_due(1275 * MS), Some(FIRST_SEQ + 4));
        assert_eq!((log.take_due(1275 * MS), log.skipped()), (Some(FIRST_SEQ + 7), 2));
        // The interval changes twice without a probe in between.
        log.pace(1300 * MS, SECOND);
        assert_eq!(log.pace(1301 * MS, EVERY), 1311 * MS);
        assert_eq!(log.schedule(), (1311 * MS, EVERY));
        assert_eq!(log.take_due(1311 * MS), Some(FIRST_SEQ + 8));
        let sent_ms = log.iter().map(|probe| probe.sent_at.as_millis()).collect::<Vec<_>>();
        assert_eq!(sent_ms, [1000, 1010, 1020, 1075, 1275, 1275, 1311]);
        for (from, to, count) in [(0, 5000, 7), (1000, 1020, 2), (1021, 1075, 0), (1020, 1126, 3), (1275, 1311, 1)] {
            assert_eq!(log.due_between(from * MS, to * MS).len(), count, "{from} to {to}");
        }
        // Replies find their probes in any part of the schedule.
        for (at, sent_ms, now_ms) in [(2, 1020, 1320), (3, 1075, 1321), (8, 1311, 1322)] {
            let reply = ReplyPacket { sent_ns: sent_ms * MS, ..reply(at, at, &[at]) };
            let round_trip = Duration::from_millis(now_ms - sent_ms);
            assert_eq!(log.enter(&reply, now_ms * MS), ReplyKind::RoundTrip(round_trip));
        }
        log.skip_until(1331 * MS);
        assert_eq!(log.skipped(), 4);
    }

    #[test]
    fn a_schedule_is_settled_when_each_probe_is_answered_or_lost() {
        let mut log = sent(3);
        assert!(!log.is_settled(SECOND));
        log.enter(&reply(0, 0, &[0]), 1005 * MS);
        log.enter(&reply(1, 1, &[0, 1]), 1015 * MS);
        assert!(!log.is_settled(SECOND));
        let beyond = |arrived: &[u32]| ReplyPacket { seq: FIRST_SEQ + 3, ..reply(0, 3, arrived) };
        let mut lost_up = log;
        assert_eq!(lost_up.enter(&beyond(&[0, 1, 3]), 1040 * MS), ReplyKind::Other);
        assert!(lost_up.is_settled(SECOND));
        let mut lost_down = sent(3);
        assert_eq!(lost_down.enter(&beyond(&[0, 1, 2, 3]), 1040 * MS), ReplyKind::Other);
        assert!(!lost_down.is_settled(SECOND), "its reply may still come");
        assert!(lost_down.is_settled(Duration::ZERO));
        assert!(ProbeRecords::new(0, EVERY).is_settled(SECOND));
    }

    #[test]
    fn a_window_has_the_probes_sent_in_it() {
        let probes = Probes { transport: Some(EchoTransport::Udp), duplicates: 0, skipped: 0, log: sent(10) };
        let within: Vec<_> = probes.within(Duration::from_millis(1020), Duration::from_millis(1050)).collect();
        assert_eq!(within, probes.iter().skip(2).take(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_stays_small() {
        // A day at 10 ms has 8.6 million slots.
        assert_eq!(size_of::<Slot>(), 20);
    }
}
