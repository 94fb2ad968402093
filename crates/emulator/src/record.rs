//! Records what one direction of a link did to the packets: counts for each flow, bytes over time, each watched probe,
//! and how late the link itself was. Pure.

use std::collections::HashMap;
use std::time::Duration;

use crate::delivered::InOrderBytes;
use crate::direction::{Counts, Departure, DropReason};
use crate::packet::{FlowKey, Headers, Transport};

/// The length of time that a [`Bin`] covers. It equals the resolution of the times in a test result, because the bins
/// must show exactly which bytes belong to the steady part of a phase. After a loss, a single packet can make a
/// megabyte readable at once.
pub const BIN: Duration = Duration::from_millis(1);

/// The record of one direction of a link.
#[derive(Clone, Debug, Default)]
pub struct LinkRecord {
    /// The exact packet counts of the link since its start.
    pub counts: Counts,
    /// The record of each flow of which a packet entered the link. Packets that entered before the record began do not
    /// count here, even if they leave during the record.
    pub flows: HashMap<FlowKey, FlowRecord>,
    /// What the link delivered and dropped in each [`BIN`]. The first bin begins when the link starts.
    pub bins: Vec<Bin>,
    /// The watched probes, in the order in which they entered the link.
    pub probes: Vec<SeenProbe>,
    /// How long after their due time the packets left the link.
    pub lateness: Lateness,
    /// The longest time for which the link did not look for new packets although it was not asleep.
    pub longest_turn: Duration,
    /// The number of packets that the kernel did not accept from the link.
    pub refused: u64,
    rules: Vec<WatchRule>,
    /// The number of the first packet that entered during this record.
    first_number: u64,
    /// For each probe that entered, the number of its packet and the position of the probe in `probes`.
    inside: HashMap<u64, usize>,
}

/// The first bytes of a flow, up to this many, do not count as load: a stream may begin with bytes that identify it.
pub const OPENING_BYTES: u64 = 100;

/// The record of one flow through a link.
#[derive(Clone, Debug, Default)]
pub struct FlowRecord {
    /// Packets of the flow that entered the link.
    pub entered: u64,
    /// Packets of the flow that left the link, copies included.
    pub left: u64,
    /// Copies among the packets that left.
    pub copies: u64,
    /// Packets that left after a later packet of the same flow (RFC 4737); copies do not count.
    pub reordered: u64,
    /// Dropped packets, in the order of [`DropReason::ALL`].
    pub dropped: [u64; 5],
    /// Payload bytes that left. For TCP, a byte counts once no byte before it is missing; for other protocols, copies
    /// do not count.
    pub payload_bytes: u64,
    /// When `payload_bytes` first exceeded [`OPENING_BYTES`]; `None` if it never did.
    pub load_began: Option<Duration>,
    /// Packets with payload that left, copies included.
    pub with_payload: u64,
    /// The sum of the queue waits of the packets that left.
    pub queue_wait: Duration,
    /// The longest queue wait of a packet that left.
    pub longest_wait: Duration,
    highest: Option<u64>,
    tcp: InOrderBytes,
}

impl FlowRecord {
    /// The number of packets of the flow that the link dropped, for any reason.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// What the link delivered and dropped in one [`BIN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bin {
    /// TCP payload in bytes. A byte counts once no byte before it is missing. Watched packets that are no load do not
    /// count.
    pub tcp_payload: u64,
    /// UDP payload in bytes. Copies do not count, and neither do watched packets that are no load.
    pub udp_payload: u64,
    /// The bytes of the watched IP packets that left, copies included, except those that are load.
    pub watched_bytes: u64,
    /// The bytes of all IP packets that left, copies included.
    pub bytes: u64,
    /// Packets that the link dropped, for any reason.
    pub dropped: u32,
}

/// A rule that selects the packets that are probes, and locates their identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRule {
    /// The transport protocol of the probes.
    pub transport: Transport,
    /// The port that a probe has at either end; `None`: any port.
    pub port: Option<u16>,
    /// The length that the payload of a probe has; `None`: any length.
    pub payload_len: Option<usize>,
    /// The payload of a probe begins with one of these byte strings; empty: with any bytes.
    pub prefixes: &'static [&'static [u8]],
    /// The offset of the identifier in the payload. The identifier always has four bytes.
    pub id_at: usize,
    /// Whether the packets are a part of the load. Other watched packets do not count as payload in a [`Bin`].
    pub is_load: bool,
}

impl WatchRule {
    /// The rule for echo requests and replies of ping. Their payload begins with the identifier and the sequence
    /// number.
    pub const PING: Self =
        Self { transport: Transport::Icmp, port: None, payload_len: None, prefixes: &[], id_at: 0, is_load: false };

    fn id(&self, headers: &Headers<'_>) -> Option<u32> {
        let flow = headers.flow;
        let is_port = self.port.is_none_or(|port| [flow.source_port, flow.destination_port].contains(&port));
        let is_len = self.payload_len.is_none_or(|len| len == headers.payload.len());
        let is_prefix =
            self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| headers.payload.starts_with(prefix));
        let is_probe = flow.transport == self.transport && is_port && is_len && is_prefix;
        let id = headers.payload.get(self.id_at..self.id_at + 4)?.try_into().ok()?;
        is_probe.then(|| u32::from_be_bytes(id))
    }
}

/// What the link did to one probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeenProbe {
    /// The index in [`LinkRecord::rules()`] of the rule that the probe matched.
    pub rule: usize,
    /// The flow of the probe.
    pub flow: FlowKey,
    /// The identifier that the probe carries.
    pub id: u32,
    /// When the probe entered the link.
    pub entered: Duration,
    /// When the probe left the link; `None` if it did not.
    pub left: Option<Duration>,
    /// How long the probe waited in the queue.
    pub queue_wait: Duration,
    /// Why the link dropped the probe; `None` if it did not.
    pub dropped: Option<DropReason>,
    /// Whether a copy of the probe left, too.
    pub is_duplicated: bool,
    /// Whether the probe left after a later packet of its flow.
    pub is_reordered: bool,
}

impl SeenProbe {
    /// The time that the probe spent inside the link; `None` if it did not leave.
    pub fn transit(&self) -> Option<Duration> {
        Some(self.left?.saturating_sub(self.entered))
    }
}

/// How long after their due time the packets left, counted in classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// The number of packets in each class. Each packet counts in the first class whose upper end
    /// ([`Lateness::CLASSES_US`]) it does not exceed. The last class has no upper end.
    pub classes: [u64; 9],
    /// The longest time between the due time of a packet and its departure.
    pub worst: Duration,
}

impl Lateness {
    /// The upper ends of all classes except the last, in microseconds.
    pub const CLASSES_US: [u64; 8] = [20, 50, 100, 200, 500, 1000, 3000, 10_000];

    /// Counts a packet that left this long after its due time.
    pub fn count(&mut self, late: Duration) {
        let us = late.as_micros() as u64;
        let class = Self::CLASSES_US.iter().position(|end| us <= *end).unwrap_or(Self::CLASSES_US.len());
        self.classes[class] += 1;
        self.worst = self.worst.max(late);
    }

    /// The number of packets in all classes.
    pub fn packets(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The share of packets that left more than `us` microseconds late. `us` must be an entry of
    /// [`Lateness::CLASSES_US`].
    pub fn share_above(&self, us: u64) -> f64 {
        let from = Self::CLASSES_US.iter().take_while(|end| **end <= us).count();
        let later = self.classes.iter().skip(from).sum::<u64>();
        later as f64 / self.packets().max(1) as f64
    }
}

impl LinkRecord {
    /// Creates an empty record that follows each packet that matches one of the rules.
    pub fn new(rules: Vec<WatchRule>) -> Self {
        // Reserve space for a long run, so that the vectors do not reallocate while packets wait.
        Self { rules, bins: Vec::with_capacity(131_072), probes: Vec::with_capacity(16_384), ..Self::default() }
    }

    /// Keeps packets with a lower number than `first_number` out of the flows: they entered before the record began.
    pub fn starting_at(mut self, first_number: u64) -> Self {
        self.first_number = first_number;
        self
    }

    /// The rules that select the probes.
    pub fn rules(&self) -> &[WatchRule] {
        &self.rules
    }

    /// Records that a packet with this number entered the link.
    pub fn entered(&mut self, packet: &[u8], number: u64, now: Duration) {
        let Some(headers) = Headers::read(packet) else { return };
        self.flows.entry(headers.flow).or_default().entered += 1;
        let seen = self.rules.iter().enumerate().find_map(|(rule, watch)| Some((rule, watch.id(&headers)?)));
        let Some((rule, id)) = seen else { return };
        self.inside.insert(number, self.probes.len());
        self.probes.push(SeenProbe {
            rule,
            flow: headers.flow,
            id,
            entered: now,
            left: None,
            queue_wait: Duration::ZERO,
            dropped: None,
            is_duplicated: false,
            is_reordered: false,
        });
    }

    /// Records that the link dropped a packet.
    pub fn dropped(&mut self, packet: &[u8], number: u64, reason: DropReason, now: Duration) {
        self.bin(now).dropped += 1;
        if number < self.first_number {
            return;
        }
        let Some(headers) = Headers::read(packet) else { return };
        self.flows.entry(headers.flow).or_default().dropped[reason as usize] += 1;
        if let Some(probe) = self.inside.remove(&number).and_then(|at| self.probes.get_mut(at)) {
            probe.dropped = Some(reason);
        }
    }

    /// Records that a packet left the link at `now`.
    pub fn left(&mut self, departure: &Departure<impl AsRef<[u8]>>, now: Duration) {
        let packet = departure.packet.as_ref();
        self.lateness.count(now.saturating_sub(departure.due));
        self.bin(now).bytes += packet.len() as u64;
        if departure.number < self.first_number {
            return;
        }
        let Some(headers) = Headers::read(packet) else { return };
        let flow = self.flows.entry(headers.flow).or_default();
        flow.left += 1;
        flow.with_payload += u64::from(!headers.payload.is_empty());
        flow.queue_wait += departure.queue_wait;
        flow.longest_wait = flow.longest_wait.max(departure.queue_wait);
        let is_reordered = !departure.is_copy && flow.highest.is_some_and(|highest| departure.number < highest);
        flow.reordered += u64::from(is_reordered);
        flow.highest = flow.highest.max(Some(departure.number));
        flow.copies += u64::from(departure.is_copy);
        if headers.opens {
            flow.tcp.open(headers.sequence);
        }
        let new = match headers.flow.transport {
            Transport::Tcp => flow.tcp.deliver(headers.sequence, headers.payload.len()),
            _ if departure.is_copy => 0,
            _ => headers.payload.len() as u64,
        };
        flow.payload_bytes += new;
        if flow.load_began.is_none() && flow.payload_bytes > OPENING_BYTES {
            flow.load_began = Some(now);
        }
        if let Some(probe) = self.inside.get(&departure.number).and_then(|at| self.probes.get_mut(*at)) {
            probe.is_duplicated |= departure.is_copy;
            probe.is_reordered |= is_reordered;
            if !departure.is_copy {
                probe.left = Some(now);
                probe.queue_wait = departure.queue_wait;
            }
            if !self.rules[probe.rule].is_load {
                self.bin(now).watched_bytes += packet.len() as u64;
                return;
            }
        }
        let bin = self.bin(now);
        match headers.flow.transport {
            Transport::Tcp => bin.tcp_payload += new,
            Transport::Udp => bin.udp_payload += new,
            Transport::Icmp | Transport::Other => {}
        }
    }

    /// The sum of several bins: the first contains `from`, and the last is the one before the bin that contains
    /// `until`.
    pub fn between(&self, from: Duration, until: Duration) -> Bin {
        let at = |time: Duration| (time.as_nanos() / BIN.as_nanos()) as usize;
        let bins = self.bins.iter().skip(at(from)).take(at(until).saturating_sub(at(from)));
        bins.fold(Bin::default(), |sum, bin| Bin {
            tcp_payload: sum.tcp_payload + bin.tcp_payload,
            udp_payload: sum.udp_payload + bin.udp_payload,
            watched_bytes: sum.watched_bytes + bin.watched_bytes,
            bytes: sum.bytes + bin.bytes,
            dropped: sum.dropped + bin.dropped,
        })
    }

    fn bin(&mut self, now: Duration) -> &mut Bin {
        let at = (now.as_nanos() / BIN.as_nanos()) as usize;
        if at >= self.bins.len() {
            self.bins.resize(at + 1, Bin::default());
        }
        &mut self.bins[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::{tcp6, udp};

    const MS: Duration = Duration::from_millis(1);

    fn departure(packet: Vec<u8>, number: u64, is_copy: bool) -> Departure<Vec<u8>> {
        Departure { packet, number, is_copy, entered: MS, queue_wait: MS, due: 3 * MS }
    }

    fn rule() -> WatchRule {
        let prefixes: &[&[u8]] = &[&[1, 1], &[1, 2]];
        WatchRule { transport: Transport::Udp, port: None, payload_len: Some(8), prefixes, id_at: 4, is_load: false }
    }

    #[test]
    fn each_probe_is_followed_and_other_datagrams_are_payload() {
        let mut record = LinkRecord::new(vec![rule()]);
        let probe = |n| udp(9, 10, &[1, 2, 0, 0, 0, 0, 0, n]);
        for n in 0..3 {
            record.entered(&probe(n), n.into(), MS);
        }
        record.entered(&udp(9, 10, &[1, 3, 0, 0, 0, 0, 0, 9]), 3, MS);
        record.dropped(&probe(0), 0, DropReason::Random, 2 * MS);
        record.left(&departure(probe(2), 2, false), 4 * MS);
        record.left(&departure(probe(1), 1, false), 5 * MS);
        record.left(&departure(probe(1), 1, true), 5 * MS);
        record.left(&departure(udp(9, 10, &[1, 3, 0, 0, 0, 0, 0, 9]), 3, false), 6 * MS);
        let [lost, late, first] = record.probes[..] else { panic!("{:?}", record.probes) };
        assert_eq!((lost.id, lost.dropped, lost.left), (0, Some(DropReason::Random), None));
        assert_eq!((late.id, late.transit(), late.is_reordered, late.is_duplicated), (1, Some(4 * MS), true, true));
        assert_eq!((first.id, first.transit(), first.is_reordered), (2, Some(3 * MS), false));
        let flow = record.flows.values().next().unwrap();
        assert_eq!((flow.entered, flow.left, flow.copies, flow.reordered, flow.all_dropped()), (4, 4, 1, 1, 1));
        let bin = record.between(Duration::ZERO, 20 * MS);
        assert_eq!((bin.udp_payload, bin.bytes, bin.watched_bytes, bin.dropped), (8, 4 * 36, 3 * 36, 1));
    }

    #[test]
    fn a_packet_from_before_the_record_counts_in_no_flow() {
        let mut record = LinkRecord::new(vec![rule()]).starting_at(5);
        record.left(&departure(udp(9, 10, &[1; 20]), 3, false), 2 * MS);
        record.dropped(&udp(9, 10, &[1; 20]), 4, DropReason::Random, 2 * MS);
        record.entered(&udp(9, 10, &[1; 20]), 5, 2 * MS);
        record.left(&departure(udp(9, 10, &[1; 20]), 5, false), 3 * MS);
        let flow = record.flows.values().next().unwrap();
        assert_eq!((flow.entered, flow.left, flow.all_dropped(), flow.reordered), (1, 1, 0, 0));
        let bin = record.between(Duration::ZERO, 20 * MS);
        assert_eq!((bin.bytes, bin.dropped, bin.udp_payload), (2 * 48, 1, 20), "the link did carry and drop them");
    }

    #[test]
    fn a_tcp_byte_counts_once() {
        let mut record = LinkRecord::new(vec![]);
        for (number, sequence) in [(0, 0), (1, 100), (2, 0)] {
            record.left(&departure(tcp6(sequence, 100), number, false), 12 * MS);
        }
        assert_eq!(record.between(12 * MS, 13 * MS).tcp_payload, 200);
        assert_eq!(record.flows.values().next().unwrap().load_began, Some(12 * MS));
        assert_eq!(record.between(Duration::ZERO, 12 * MS).tcp_payload, 0);
    }

    #[test]
    fn a_lost_first_segment_counts_once_it_is_sent_again() {
        let mut record = LinkRecord::new(vec![]);
        let mut syn = tcp6(99, 0);
        syn[40 + 13] = 2;
        record.left(&departure(syn, 0, false), 5 * MS);
        record.left(&departure(tcp6(200, 100), 2, false), 12 * MS);
        assert_eq!(record.between(Duration::ZERO, 20 * MS).tcp_payload, 0);
        record.left(&departure(tcp6(100, 100), 3, false), 25 * MS);
        assert_eq!(record.between(20 * MS, 30 * MS).tcp_payload, 200);
    }

    #[test]
    fn lateness_is_counted_in_classes() {
        let mut lateness = Lateness::default();
        for us in [10, 60, 1000, 1001] {
            lateness.count(Duration::from_micros(us));
        }
        assert_eq!(lateness.share_above(1000), 0.25);
        assert_eq!(lateness.share_above(50), 0.75);
        assert_eq!(lateness.worst, Duration::from_micros(1001));
    }
}
