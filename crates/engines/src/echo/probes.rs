//! What a prober saw, one entry a probe, packed so that a day of them fits into a small device. Pure: no sockets, no
//! clock.

use std::fmt;
use std::time::Duration;

use paramedic_link::measurement::Probe;

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
    /// Probes that came a second time, as the reflector said last; its own counter wraps.
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
    /// A schedule whose first slot is due at `base_ns`.
    pub(super) fn new(base_ns: u64, interval: Duration) -> Self {
        Self {
            base_ns,
            interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1),
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

    /// Counts the slots that were due by `now_ns` and not taken as skipped; nothing is taken afterwards.
    pub(super) fn skip_until(&mut self, now_ns: u64) {
        let Some(since) = now_ns.checked_sub(self.base_ns) else { return };
        self.skipped += (since / self.interval_ns + 1).saturating_sub(self.len() as u64);
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
        let late_us = reply.sent_ns.checked_sub(due_ns).map(|late_ns| saturated(late_ns / 1000));
        if late_us != Some(slot.late_us) {
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
        // The oldest gap was asked for: where the reflector spoke of something newer, it no longer remembers.
        let oldest_told = about.saturating_sub(HISTORY - 1).saturating_sub(FIRST_SEQ) as usize;
        self.open_from = self.open_from.max(oldest_told.min(self.len()));
    }

    /// Whether waiting can tell nothing more: each probe has its reply or is told to be lost. A reply that is missing
    /// for longer than a `patience` already is not waited for.
    pub(super) fn is_settled(&mut self, patience: Duration) -> bool {
        let len = self.len();
        self.about(self.seq_after());
        let patient = (patience.as_nanos() / u128::from(self.interval_ns)).min(len as u128) as usize;
        let is_missing = |slot: &Slot| slot.is(ARRIVED) && !slot.is(REPLIED);
        self.open_from >= len && !(len - patient..len).any(|at| self.slot(at).is_some_and(is_missing))
    }

    /// Probes that were due and never sent.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Probes and replies that arrived a second time.
    pub(super) fn duplicates(&self) -> u64 {
        self.doubled_replies + self.doubled_probes
    }

    /// Every probe that was sent, with its place in the schedule.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, Probe)> {
        let sent = self.pieces.iter().flatten().enumerate().filter(|(_, slot)| slot.is(SENT));
        sent.map(|(at, slot)| (at, self.probe(at, slot)))
    }

    /// The probes that were due from `from_ns` on and before `to_ns`; found without a walk through those before.
    pub(super) fn due_between(&self, from_ns: u64, to_ns: u64) -> Vec<Probe> {
        let place = |at_ns: u64| at_ns.saturating_sub(self.base_ns).div_ceil(self.interval_ns);
        let to = usize::try_from(place(to_ns)).unwrap_or(usize::MAX).min(self.len());
        let from = usize::try_from(place(from_ns)).unwrap_or(usize::MAX).min(to);
        let sent = (from..to).filter_map(|at| Some((at, self.slot(at)?))).filter(|(_, slot)| slot.is(SENT));
        sent.map(|(at, slot)| self.probe(at, slot)).collect()
    }

    fn iter(&self) -> impl Iterator<Item = Probe> {
        self.numbered().map(|(_, probe)| probe)
    }

    fn probe(&self, at: usize, slot: &Slot) -> Probe {
        Probe {
            sent_at: Duration::from_nanos(self.due_ns(at)) + Duration::from_micros(slot.late_us.into()),
            late_us: slot.late_us,
            rtt_us: (slot.is(REPLIED) && !slot.is(LATE)).then_some(slot.packed & ((1 << RTT_BITS) - 1)),
            arrived: slot.is(TOLD).then_some(slot.is(ARRIVED)),
            turnaround_us: slot.turnaround_us,
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
    use super::super::packet::History;
    use super::*;

    const MS: u64 = 1_000_000;
    const EVERY: Duration = Duration::from_millis(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn book() -> Book {
        Book::new(1000 * MS, EVERY)
    }

    /// A book whose first `n` slots were sent in time.
    fn sent(n: u64) -> Book {
        let mut book = book();
        for at in 0..n {
            assert_eq!(book.take_due((1000 + 10 * at) * MS), Some(FIRST_SEQ + at as u32));
        }
        book
    }

    /// The reply to slot `at`, sent in time, from a reflector that got nothing but what `arrived` names.
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
            history: History { about: FIRST_SEQ + about, arrived: bits },
            duplicates: 0,
        }
    }

    fn fates(book: &Book) -> Vec<(Option<u32>, Option<bool>)> {
        book.iter().map(|probe| (probe.rtt_us, probe.arrived)).collect()
    }

    #[test]
    fn the_turn_around_is_taken_out() {
        let mut book = sent(1);
        let reply = ReplyPacket { dwell_ns: 700_000, ..reply(0, 0, &[0]) };
        assert_eq!(book.enter(&reply, 1003 * MS), Reading::RoundTrip(Duration::from_micros(2300)));
        let probe = book.iter().next().unwrap();
        assert_eq!((probe.rtt_us, probe.turnaround_us, probe.arrived), (Some(2300), 700, Some(true)));
        assert_eq!((probe.sent_at, probe.late_us), (SECOND, 0));
    }

    #[test]
    fn a_reflector_that_claims_to_have_held_it_for_longer_is_not_believed() {
        let mut book = sent(1);
        let reply = ReplyPacket { dwell_ns: u32::MAX, ..reply(0, 0, &[0]) };
        assert_eq!(book.enter(&reply, 1003 * MS), Reading::RoundTrip(Duration::from_millis(3)));
    }

    #[test]
    fn a_reply_with_another_sending_time_is_not_believed() {
        let mut book = sent(1);
        let earlier = ReplyPacket { sent_ns: 1000 * MS - 2000, ..reply(0, 0, &[0]) };
        let later = ReplyPacket { sent_ns: 1000 * MS + 2000, ..reply(0, 0, &[0]) };
        assert_eq!(book.enter(&later, 1003 * MS), Reading::Nothing);
        assert_eq!(book.enter(&earlier, 1003 * MS), Reading::Nothing);
    }

    #[test]
    fn a_second_reply_is_a_duplicate() {
        let mut book = sent(1);
        book.enter(&reply(0, 0, &[0]), 1003 * MS);
        assert_eq!(book.enter(&reply(0, 0, &[0]), 1009 * MS), Reading::Nothing);
        assert_eq!((book.duplicates(), book.iter().next().unwrap().rtt_us), (1, Some(3000)));
    }

    #[test]
    fn the_reflectors_count_of_duplicates_may_wrap_and_come_out_of_order() {
        let mut book = sent(4);
        for (at, duplicates) in [(0, 30_000), (1, 60_000), (3, 200), (2, 65_500)] {
            book.enter(&ReplyPacket { duplicates, ..reply(at, at, &[]) }, 1050 * MS);
        }
        assert_eq!(book.duplicates(), 65_736);
    }

    #[test]
    fn after_ten_seconds_a_reply_is_late() {
        let mut book = sent(2);
        assert_eq!(book.enter(&reply(0, 0, &[0]), 11_001 * MS), Reading::Other);
        assert_eq!(book.enter(&reply(1, 1, &[0, 1]), 11_010 * MS), Reading::RoundTrip(Probe::LATE_AFTER));
        let [first, second] = book.iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((first.late, first.rtt_us, first.arrived), (true, None, Some(true)));
        assert_eq!((second.late, second.rtt_us), (false, Some(10_000_000)));
    }

    #[test]
    fn a_later_reply_tells_which_way_a_probe_was_lost() {
        let mut book = sent(4);
        book.enter(&reply(3, 3, &[0, 2, 3]), 1035 * MS);
        let told = [(None, Some(true)), (None, Some(false)), (None, Some(true)), (Some(5000), Some(true))];
        assert_eq!(fates(&book), told);
        // One that was only overtaken is told again.
        book.enter(&reply(1, 3, &[0, 1, 2, 3]), 1036 * MS);
        assert_eq!(fates(&book)[1], (Some(26_000), Some(true)));
    }

    #[test]
    fn an_outage_longer_than_the_history_is_asked_for_piece_by_piece() {
        let mut book = sent(1000);
        assert_eq!(book.about(FIRST_SEQ + 999), FIRST_SEQ + 255);
        let odd: Vec<u32> = (0..1000).filter(|at| at % 2 == 1).collect();
        let mut asked = Vec::new();
        for at in 990..994 {
            let about = book.about(FIRST_SEQ + at);
            asked.push(about - FIRST_SEQ);
            book.enter(&reply(at, about - FIRST_SEQ, &odd), 20_000 * MS);
        }
        assert_eq!(asked, [255, 511, 767, 993]);
        assert_eq!(book.iter().filter(|probe| probe.arrived == Some(true)).count(), 497 + 2);
        assert_eq!(book.iter().filter(|probe| probe.arrived.is_none()).count(), 6);
    }

    #[test]
    fn what_the_reflector_forgot_is_not_asked_for_again() {
        let mut book = sent(1000);
        book.enter(&reply(999, 700, &[]), 20_000 * MS);
        assert_eq!(book.about(FIRST_SEQ + 999), FIRST_SEQ + 701 + 255);
        assert_eq!(fates(&book)[444], (None, None));
        assert_eq!(fates(&book)[445], (None, Some(false)));
    }

    #[test]
    fn slots_that_passed_in_a_stop_are_skipped_but_for_first_and_last() {
        let mut book = sent(1);
        // Due at 1010, 1020, 1030, 1040; awake at 1041.
        assert_eq!(book.take_due(1041 * MS), Some(FIRST_SEQ + 1));
        assert_eq!(book.take_due(1041 * MS), Some(FIRST_SEQ + 4));
        assert_eq!(book.take_due(1041 * MS), None);
        assert_eq!(book.skipped(), 2);
        let late: Vec<u32> = book.iter().map(|probe| probe.late_us).collect();
        assert_eq!(late, [0, 31_000, 1000]);
        // What was never sent can't be answered, nor is it lost.
        assert_eq!(book.enter(&reply(2, 2, &[2]), 1042 * MS), Reading::Nothing);
        assert!(book.iter().all(|probe| probe.arrived.is_none()));
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut book = book();
        assert_eq!(book.take_due(1000 * MS - 1), None);
        assert_eq!(book.take_due(1000 * MS), Some(FIRST_SEQ));
        assert_eq!(book.take_due(1010 * MS - 1), None);
        book.skip_until(1030 * MS);
        assert_eq!(book.skipped(), 3);
    }

    #[test]
    fn a_schedule_is_settled_when_each_fate_is_known() {
        let mut book = sent(3);
        assert!(!book.is_settled(SECOND));
        book.enter(&reply(0, 0, &[0]), 1005 * MS);
        book.enter(&reply(1, 1, &[0, 1]), 1015 * MS);
        assert!(!book.is_settled(SECOND));
        let beyond = |arrived: &[u32]| ReplyPacket { seq: FIRST_SEQ + 3, ..reply(0, 3, arrived) };
        let mut lost_up = book;
        assert_eq!(lost_up.enter(&beyond(&[0, 1, 3]), 1040 * MS), Reading::Other);
        assert!(lost_up.is_settled(SECOND));
        let mut lost_down = sent(3);
        assert_eq!(lost_down.enter(&beyond(&[0, 1, 2, 3]), 1040 * MS), Reading::Other);
        assert!(!lost_down.is_settled(SECOND), "its reply may still come");
        assert!(lost_down.is_settled(Duration::ZERO));
        assert!(Book::new(0, EVERY).is_settled(SECOND));
    }

    #[test]
    fn a_window_holds_what_was_sent_in_it() {
        let probes = Probes { transport: Some(Transport::Udp), duplicates: 0, skipped: 0, book: sent(10) };
        let within: Vec<_> = probes.within(Duration::from_millis(1020), Duration::from_millis(1050)).collect();
        assert_eq!(within, probes.iter().skip(2).take(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_stays_small() {
        // 8.6 million of them are a day at 10 ms.
        assert_eq!(size_of::<Slot>(), 12);
    }
}
