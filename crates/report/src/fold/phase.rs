//! The record of one phase: the samples and tallies (final counts) of both ends. The reflector's reports are
//! unverified, so the record limits its memory, and sums saturate.

use std::time::Duration;

use paramedic_link::PeerText;
use paramedic_link::measurement::{DirectionTally, INTERVAL_MS, InterfaceTraffic, PhaseTally, Sample};
use paramedic_link::phase_detail::{PhaseDetail, TcpSample};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec};

use super::claims::{self, Impossible};
use super::rates::bytes_of;
use crate::document::{Event, IntervalReading, ObservedEnd, TcpOfEnds, UdpResult};

/// An end that stopped early may have sent up to this many bytes without counting them: one write of 1 MiB on each of
/// 64 streams.
const UNDER_WAY_BYTES: u64 = 64 << 20;

/// The samples and tallies that both ends reported of one phase.
pub struct PhaseRecord {
    /// The load on the path in the phase.
    pub load: Load,
    /// The requested duration of the phase.
    pub(super) requested: Duration,
    /// When the phase was ended early because all its directions were stable, in time of the receivers' clocks; `None`
    /// if this did not happen.
    pub(super) stopped_at: Option<Duration>,
    /// The record keeps at most this many samples of each end and direction.
    most: usize,
    /// When the phase began, by the prober's clock.
    pub begun_at: Option<Duration>,
    /// When the phase ended, by the prober's clock.
    pub ended_at: Option<Duration>,
    /// The probe interval in the measured part of the phase. Absent if the phase ended before the interval was chosen.
    pub probe_schedule: Option<ProbeSchedule>,
    /// The appliance's tally of the phase: its final counts.
    pub own: Option<PhaseTally>,
    /// The other end's tally of the phase: its final counts.
    theirs: Option<PhaseTally>,
    /// The samples that the receivers took: of the download, of the upload.
    pub(super) received: [Vec<Sample>; 2],
    pub(super) sent: [Vec<Sample>; 2],
    /// Whether the sender's samples are shown as progress while the receiver reports no samples.
    pub shows_sent: bool,
    /// Whether the other end reports only the total number of received bytes, and no samples.
    pub tells_total: bool,
    /// The datagram counts that an external program reports: of the download, of the upload.
    pub udp: [Option<UdpResult>; 2],
    /// Whether the engine searches for the highest rate in the phase.
    pub is_searched: bool,
    /// The external program's unchanged output for the phase.
    pub raw: Option<String>,
    /// The kernels' records of the TCP streams: at the appliance, at the other end.
    details: [Vec<(Direction, TcpSample)>; 2],
}

/// The record of a phase keeps at most this many TCP stream samples of each end. One report of
/// [`PhaseDetail::MAX_BYTES`] contains fewer.
const MOST_DETAIL: usize = PhaseDetail::MAX_BYTES / 64;

/// The interval of the latency probes in the measured part of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSchedule {
    /// When the interval takes effect, by the prober's clock.
    pub from: Duration,
    /// The time between two probes.
    pub interval: Duration,
}

/// The end that took a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// The sender, which counts the bytes that it writes.
    Sender,
    /// The receiver, which counts the bytes that arrive. Results use the receiver's samples.
    Receiver,
}

/// A sample to show as progress. Results use only samples that the receiver took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedReading {
    /// The direction of the payload.
    pub direction: Direction,
    /// The time that the sample covers, in microseconds; never 0.
    pub length_us: u64,
    /// The sample itself: its time and its bytes.
    pub sample: Sample,
    /// Whether the sender took the sample.
    pub by_sender: bool,
}

impl CountedReading {
    /// The progress event for the sample, in a phase with the given `load`.
    pub fn event(&self, load: Load) -> Event {
        let bps = u128::from(self.sample.bytes) * 8_000_000 / u128::from(self.length_us);
        Event::Interval(IntervalReading {
            phase: load,
            direction: self.direction,
            at_ms: self.sample.at_us / 1000,
            bps: u64::try_from(bps).unwrap_or(u64::MAX),
            by_sender: self.by_sender,
        })
    }
}

impl PhaseRecord {
    pub(super) fn new(phase: PhaseSpec) -> Self {
        // Somewhat more than twice the number of intervals of a phase: a delayed end may report late, but not forever.
        let intervals = u64::from(phase.duration_ms) / INTERVAL_MS;
        let most = usize::try_from(2 * intervals + 64).unwrap_or(usize::MAX);
        Self {
            load: phase.load,
            requested: phase.duration(),
            stopped_at: None,
            most,
            begun_at: None,
            ended_at: None,
            probe_schedule: None,
            own: None,
            theirs: None,
            received: Default::default(),
            sent: Default::default(),
            shows_sent: false,
            tells_total: false,
            udp: [None; 2],
            is_searched: false,
            raw: None,
            details: Default::default(),
        }
    }

    /// Records a sample. Returns the sample if the progress display should show it: a receiver's sample, or, if
    /// `shows_sent` is set, a sender's sample while the receiver has none. Drops a sample if the phase does not load
    /// its direction, if its time does not advance, if the phase ended before the sample, or if the record is full.
    pub fn note(&mut self, end: DataEnd, direction: Direction, sample: Sample) -> Option<CountedReading> {
        let is_within = self.is_within(sample.at_us);
        let list = match end {
            DataEnd::Sender => &mut self.sent[direction as usize],
            DataEnd::Receiver => &mut self.received[direction as usize],
        };
        let before = list.last().map_or(0, |last| last.at_us);
        let length_us = sample.at_us.checked_sub(before).filter(|length| *length > 0)?;
        if !self.load.moves(direction) || list.len() >= self.most || !is_within {
            return None;
        }
        list.push(sample);
        let by_sender = end == DataEnd::Sender;
        let is_shown = !by_sender || self.shows_sent && self.received[direction as usize].is_empty();
        is_shown.then_some(CountedReading { direction, length_us, sample, by_sender })
    }

    /// Records a sample that the kernel of `end` reported about a TCP stream. Drops the sample if the record is full,
    /// or if the phase does not load `direction`.
    pub fn note_detail(&mut self, end: ObservedEnd, direction: Direction, sample: TcpSample) {
        let kept = &mut self.details[end as usize];
        if self.load.moves(direction) && kept.len() < MOST_DETAIL {
            kept.push((direction, sample));
        }
    }

    /// The samples that the kernels of both ends reported about the TCP streams of a direction.
    pub(super) fn detail(&self, direction: Direction) -> TcpOfEnds {
        let of = |end: ObservedEnd| {
            let samples = self.details[end as usize].iter().filter(|(of, _)| *of == direction);
            samples.map(|(_, sample)| *sample).collect::<Vec<_>>()
        };
        let [own, theirs] = [ObservedEnd::Appliance, ObservedEnd::Reflector].map(of);
        match direction {
            Direction::Download => TcpOfEnds { sender: theirs, receiver: own },
            Direction::Upload => TcpOfEnds { sender: own, receiver: theirs },
        }
    }

    /// Checks whether a sample that the other end reported can be true. Accepts a sample whose time does not advance,
    /// because [`PhaseRecord::note`] drops it.
    pub fn check(&self, end: DataEnd, direction: Direction, sample: Sample) -> Result<(), Impossible> {
        let list = match end {
            DataEnd::Sender => &self.sent[direction as usize],
            DataEnd::Receiver => &self.received[direction as usize],
        };
        let before = list.last().map_or(0, |last| last.at_us);
        match sample.at_us.checked_sub(before) {
            Some(length_us) if length_us > 0 => claims::reading(sample, length_us, self.requested),
            _ => Ok(()),
        }
    }

    /// Checks whether the other end's tally can be true, by itself and compared with this end's tally. Also checks
    /// phases that were cut short, because the other end's report of an early stop is unverified, too.
    pub fn check_tallies(&self) -> Result<(), Impossible> {
        let is_cut = |tally: &Option<PhaseTally>| tally.as_ref().is_none_or(|tally| tally.cut_short.is_some());
        if let Some(traffic) = self.theirs.as_ref().and_then(|theirs| theirs.interface) {
            claims::traffic(traffic, self.requested)?;
        }
        for direction in self.load.directions() {
            let own = self.own.as_ref().and_then(|tally| tally.direction(*direction));
            let theirs = self.theirs.as_ref().and_then(|tally| tally.direction(*direction));
            if let Some(theirs) = theirs {
                claims::tally(theirs, self.requested)?;
            }
            // Counts from different sources may differ.
            let Some(own) = own.filter(|own| own.counted_by.is_none()) else { continue };
            let claimed = bytes_of(self.received[*direction as usize].iter());
            match direction {
                Direction::Upload => {
                    // An end that stopped early may have written bytes that it did not count.
                    let under_way = if is_cut(&self.own) { UNDER_WAY_BYTES } else { 0 };
                    let sent = own.count.bytes.saturating_add(under_way);
                    claims::received_of_sent("bytes", claimed, sent)?;
                    claims::received_of_sent("bytes", theirs.map_or(0, |theirs| theirs.count.bytes), sent)?;
                }
                Direction::Download => {
                    // A sender that stopped early does not count its last writes.
                    let Some(theirs) = theirs.filter(|_| !is_cut(&self.theirs)) else { continue };
                    claims::received_of_sent("bytes", own.count.bytes.max(claimed), theirs.count.bytes)?;
                }
            }
            let (Some(sender), Some(receiver)) = self.ends(*direction) else { continue };
            let sent = sender.datagrams.as_ref().and_then(|datagrams| datagrams.sent);
            let received = receiver.datagrams.as_ref().and_then(|datagrams| datagrams.received);
            if let (Some(sent), Some(received), false) = (sent, received, is_cut(&self.own) || is_cut(&self.theirs)) {
                claims::received_of_sent("datagrams", received, sent)?;
            }
        }
        Ok(())
    }

    /// Discards everything that the other end reported about the phase.
    pub fn forget_claims(&mut self) {
        self.theirs = None;
        self.received[Direction::Upload as usize].clear();
        self.sent[Direction::Download as usize].clear();
    }

    /// Sets the other end's tally. Clamps its processor shares to the range from 0 to 1, and its processor times to 0
    /// or more.
    pub fn set_theirs(&mut self, mut tally: PhaseTally) {
        for direction in [&mut tally.download, &mut tally.upload].into_iter().flatten() {
            let cpu = &mut direction.cpu;
            cpu.user_s = cpu.user_s.max(0.0);
            cpu.system_s = cpu.system_s.max(0.0);
            cpu.busiest_thread = cpu.busiest_thread.clamp(0.0, 1.0);
            cpu.host_busy = cpu.host_busy.map(|busy| busy.clamp(0.0, 1.0));
            for share in [&mut cpu.held_back, &mut cpu.runnable, &mut cpu.run_queue_wait, &mut cpu.core_softirq] {
                *share = share.map(|share| share.clamp(0.0, 1.0));
            }
        }
        self.theirs = Some(tally);
    }

    /// The traffic that the network interface of `end` carried during the phase; `None` if not reported.
    pub(super) fn traffic(&self, end: ObservedEnd) -> Option<InterfaceTraffic> {
        let tally = match end {
            ObservedEnd::Appliance => &self.own,
            ObservedEnd::Reflector => &self.theirs,
        };
        tally.as_ref()?.interface
    }

    /// Whether both ends have reported their tally of the phase.
    pub fn is_counted(&self) -> bool {
        self.own.is_some() && self.theirs.is_some()
    }

    /// The reason why an end stopped early; `None` if neither end stopped early.
    pub fn cut_short(&self) -> Option<&PeerText> {
        [&self.own, &self.theirs].into_iter().flatten().find_map(|tally| tally.cut_short.as_ref())
    }

    /// How long the phase lasted: the requested duration, or the time until [`stop`](Self::stop) ended the phase. If an
    /// end stopped on its own or did not report its tally, the phase lasted until its last sample.
    pub(super) fn span(&self) -> Duration {
        if self.is_counted() && self.cut_short().is_none() {
            return self.planned_span();
        }
        let last = self.received.iter().chain(&self.sent).filter_map(|list| list.last()).map(|last| last.at_us).max();
        Duration::from_micros(last.unwrap_or(0)).min(self.requested)
    }

    /// How long the senders were asked to send: for the requested duration, or until [`stop`](Self::stop) ended the
    /// phase.
    pub(super) fn planned_span(&self) -> Duration {
        self.stopped_at.unwrap_or(self.requested)
    }

    /// The tallies of one direction: the sender's, the receiver's. A tally that was not reported is `None`.
    pub(super) fn ends(&self, direction: Direction) -> (Option<&DirectionTally>, Option<&DirectionTally>) {
        let own = self.own.as_ref().and_then(|tally| tally.direction(direction));
        let theirs = self.theirs.as_ref().and_then(|tally| tally.direction(direction));
        match direction {
            Direction::Download => (theirs, own),
            Direction::Upload => (own, theirs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rates::steady_part;
    use super::*;

    fn record(load: Load) -> PhaseRecord {
        PhaseRecord::new(PhaseSpec { load, duration_ms: 1000 })
    }

    fn note(record: &mut PhaseRecord, at_us: u64, bytes: u64) -> Option<CountedReading> {
        record.note(DataEnd::Receiver, Direction::Upload, Sample { at_us, bytes })
    }

    fn check(record: &PhaseRecord, at_us: u64, bytes: u64) -> Result<(), Impossible> {
        record.check(DataEnd::Receiver, Direction::Upload, Sample { at_us, bytes })
    }

    #[test]
    fn a_reading_counts_once_and_in_its_direction() {
        let mut upload = record(Load::Upload);
        let first = note(&mut upload, 100_000, 5).unwrap();
        assert_eq!((first.direction, first.length_us), (Direction::Upload, 100_000));
        assert_eq!(note(&mut upload, 250_000, 5).unwrap().length_us, 150_000);
        assert_eq!(note(&mut upload, 250_000, 5), None, "no time passed");
        assert_eq!(note(&mut upload, 1, 5), None, "time went back");
        let sample = Sample { at_us: 300_000, bytes: 5 };
        assert_eq!(upload.note(DataEnd::Receiver, Direction::Download, sample), None);
        assert_eq!(upload.note(DataEnd::Sender, Direction::Upload, sample), None, "only received bytes count");
        assert_eq!((upload.received[1].len(), upload.received[0].len(), upload.sent[1].len()), (2, 0, 1));
        assert_eq!(note(&mut record(Load::Idle), 1, 1), None);
    }

    #[test]
    fn a_sample_of_the_sender_is_shown_until_the_receiver_reports_one() {
        let mut upload = PhaseRecord { shows_sent: true, ..record(Load::Upload) };
        let sent = |at_us| Sample { at_us, bytes: 5 };
        assert!(upload.note(DataEnd::Sender, Direction::Upload, sent(100_000)).unwrap().by_sender);
        assert!(!note(&mut upload, 100_000, 5).unwrap().by_sender);
        assert_eq!(upload.note(DataEnd::Sender, Direction::Upload, sent(200_000)), None);
    }

    #[test]
    fn an_impossible_report_is_detected_and_discarded() {
        let count = |bytes| {
            Some(DirectionTally {
                count: paramedic_link::measurement::Count { bytes, elapsed_us: 1_000_000 },
                ..DirectionTally::default()
            })
        };
        let mut upload = record(Load::Upload);
        upload.own = Some(PhaseTally { upload: count(1000), ..PhaseTally::default() });
        upload.set_theirs(PhaseTally { upload: count(1000), ..PhaseTally::default() });
        assert_eq!(upload.check_tallies(), Ok(()));
        note(&mut upload, 100_000, 1001);
        assert!(upload.check_tallies().is_err(), "its readings are more than was sent");
        upload.set_theirs(PhaseTally { upload: count(1001), ..PhaseTally::default() });
        assert!(upload.check_tallies().is_err(), "its count is more than was sent");
        upload.forget_claims();
        assert!(upload.check_tallies().is_ok() && upload.received[1].is_empty() && !upload.is_counted());
        // The counts of different programs are not comparable.
        let iperf3 = DirectionTally { counted_by: Some("iperf3".into()), ..count(1000).unwrap() };
        upload.own = Some(PhaseTally { upload: Some(iperf3), ..PhaseTally::default() });
        upload.set_theirs(PhaseTally { upload: count(1001), ..PhaseTally::default() });
        assert_eq!(upload.check_tallies(), Ok(()));
        let retransmits = DirectionTally { retransmits: Some(u64::MAX), ..count(1000).unwrap() };
        let interface = InterfaceTraffic { received_bytes: u64::MAX, sent_bytes: 0, elapsed_us: 1_000_000 };
        for impossible in [
            PhaseTally { upload: Some(retransmits), ..PhaseTally::default() },
            PhaseTally { upload: count(1000), interface: Some(interface), ..PhaseTally::default() },
        ] {
            upload.set_theirs(impossible);
            assert!(upload.check_tallies().is_err());
        }
        assert!(check(&upload, 100_000, u64::MAX).is_err());
        assert!(check(&upload, u64::MAX, 1).is_err());
        assert_eq!(check(&upload, 0, u64::MAX), Ok(()), "no time passed: it is not kept");
    }

    #[test]
    fn a_reported_count_is_compared_with_the_sent_one_even_if_the_phase_ended_early() {
        let tally = |bytes, cut_short: Option<&str>| PhaseTally {
            upload: Some(DirectionTally {
                count: paramedic_link::measurement::Count { bytes, elapsed_us: 1_000_000 },
                ..DirectionTally::default()
            }),
            cut_short: cut_short.map(PeerText::new),
            ..PhaseTally::default()
        };
        let mut upload = record(Load::Upload);
        // The other end reports that it stopped early.
        upload.own = Some(tally(1000, None));
        upload.set_theirs(tally(2000, Some("because")));
        assert!(upload.check_tallies().is_err());
        // The other end sends no tally, and its samples claim too much.
        let mut upload = record(Load::Upload);
        upload.own = Some(tally(1000, Some("the link is gone")));
        note(&mut upload, 100_000, 1000 + UNDER_WAY_BYTES);
        assert_eq!(upload.check_tallies(), Ok(()), "writes may have been under way");
        note(&mut upload, 200_000, 1);
        assert!(upload.check_tallies().is_err());
    }

    #[test]
    fn endless_samples_are_bounded_in_memory_and_overflow_no_sum() {
        let mut upload = record(Load::Upload);
        let kept = (1..100_000).filter_map(|at| note(&mut upload, at, u64::MAX)).count();
        assert_eq!(kept, 2 * 10 + 64);
        assert_eq!(bytes_of(upload.received.iter().flatten()), u64::MAX);
        assert_eq!(steady_part(&upload.received[1], Duration::ZERO, Duration::MAX), Some(0));
    }
}
