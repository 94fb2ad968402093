//! Checks whether the counts that the other end reports can be true. Pure: no I/O, no clock.

use std::fmt;
use std::time::Duration;

use paramedic_link::measurement::{Count, DatagramTally, DirectionTally, InterfaceTraffic, Sample, TcpTimes};
use paramedic_link::test_spec::TestSpec;

/// A rate that no interface reaches, in bits per microsecond: 100 Tbit/s.
const MOST_BITS_PER_US: u128 = 100_000_000;
/// The size of the smallest packet, in bits: the headers of IPv4 and UDP.
const LEAST_PACKET_BITS: u128 = 28 * 8;
/// The size of the longest packet, in bytes.
const MOST_PACKET_BYTES: u32 = 65_535;
/// The largest path MTU, in bytes: the largest MTU of IPv6, whose header is not part of the payload length (RFC 8200,
/// section 3).
const MOST_PATH_MTU: u64 = 65_575;
/// A phase can last at most twice its requested duration plus this time.
const MOST_OVERTIME: Duration = Duration::from_secs(20);

/// Why a report of the other end cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impossible {
    /// The reported rate is higher than the rate of any network interface.
    Rate {
        /// The number of bytes that the other end reported.
        bytes: u64,
        /// The time in which the other end claims to have moved the bytes, in microseconds.
        length_us: u64,
    },
    /// The reported time, in microseconds, is longer than the phase can have lasted.
    Time(u64),
    /// The receiver reported more bytes or datagrams than the sender sent.
    MoreThanSent {
        /// The unit of both numbers: bytes or datagrams.
        unit: &'static str,
        /// The number of bytes or datagrams that were reported as received.
        received: u64,
        /// The number of bytes or datagrams that were sent.
        sent: u64,
    },
    /// A reported value is larger than the largest possible value.
    TooLarge {
        /// What the reported value counts, such as datagrams.
        what: &'static str,
        /// The value that the other end reported.
        value: u64,
        /// The largest possible value.
        most: u64,
    },
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate { bytes, length_us } => {
                write!(f, "it reports {bytes} bytes in {length_us} µs, more than any interface carries")
            }
            Self::Time(us) => write!(f, "it reports a time of {us} µs, longer than the phase can have lasted"),
            Self::MoreThanSent { unit, received, sent } => {
                write!(f, "it reports {received} received {unit}, but only {sent} were sent")
            }
            Self::TooLarge { what, value, most } => write!(f, "it reports {value} {what}; at most {most} are possible"),
        }
    }
}

/// Checks whether a sample that covers `length_us` can be true in a phase of the duration `requested`.
pub(super) fn reading(sample: Sample, length_us: u64, requested: Duration) -> Result<(), Impossible> {
    rate(sample.bytes, length_us)?;
    time(sample.at_us, requested)
}

/// Checks whether the tally (the final counts) of a direction can be true in a phase of the duration `requested`.
pub(super) fn tally(tally: &DirectionTally, requested: Duration) -> Result<(), Impossible> {
    count(tally.count, requested)?;
    let length_us = u128::from(tally.count.elapsed_us).max(requested.as_micros());
    let most_packets = u64::try_from(length_us * MOST_BITS_PER_US / LEAST_PACKET_BITS).unwrap_or(u64::MAX);
    at_most("streams", tally.streams.into(), TestSpec::MAX_STREAMS.into())?;
    at_most("bytes in a segment", tally.mss.unwrap_or(0).into(), MOST_PACKET_BYTES.into())?;
    at_most("bytes of a path MTU", tally.path_mtu.unwrap_or(0).into(), MOST_PATH_MTU)?;
    at_most("retransmitted segments", tally.retransmits.unwrap_or(0), most_packets)?;
    if let Some(TcpTimes { total_us, busy_us, receive_window_us, send_buffer_us }) = tally.tcp_times {
        // Each of these times is a sum over all streams.
        for us in [total_us, busy_us, receive_window_us, send_buffer_us] {
            time(us / u64::from(TestSpec::MAX_STREAMS), requested)?;
        }
    }
    tally.datagrams.as_ref().map_or(Ok(()), |datagrams| datagram_tally(datagrams, most_packets, requested))
}

fn datagram_tally(tally: &DatagramTally, most_packets: u64, requested: Duration) -> Result<(), Impossible> {
    let DatagramTally { sent, received, duplicates, out_of_order, settled, vanished, .. } = *tally;
    for packets in [sent, received, duplicates, out_of_order, settled, vanished].into_iter().flatten() {
        at_most("datagrams", packets, most_packets)?;
    }
    at_most("bytes in a datagram", tally.payload_bytes.unwrap_or(0).into(), MOST_PACKET_BYTES.into())?;
    let paused_us = tally.paused_ms.map(|ms| ms.saturating_mul(1000));
    [tally.jitter_us, tally.settled_at_us, paused_us].into_iter().flatten().try_for_each(|us| time(us, requested))
}

/// Checks whether the traffic that a network interface reportedly carried during a phase can be true.
pub(super) fn traffic(traffic: InterfaceTraffic, requested: Duration) -> Result<(), Impossible> {
    let InterfaceTraffic { received_bytes, sent_bytes, elapsed_us } = traffic;
    [received_bytes, sent_bytes].into_iter().try_for_each(|bytes| count(Count { bytes, elapsed_us }, requested))
}

/// Checks whether a byte count and its time can be true in a phase of the duration `requested`.
pub fn count(count: Count, requested: Duration) -> Result<(), Impossible> {
    rate(count.bytes, count.elapsed_us)?;
    time(count.elapsed_us, requested)
}

/// Checks that `received` is not more than `sent`. Both numbers must count the same unit.
pub fn received_of_sent(unit: &'static str, received: u64, sent: u64) -> Result<(), Impossible> {
    if received > sent { Err(Impossible::MoreThanSent { unit, received, sent }) } else { Ok(()) }
}

fn at_most(what: &'static str, value: u64, most: u64) -> Result<(), Impossible> {
    if value > most { Err(Impossible::TooLarge { what, value, most }) } else { Ok(()) }
}

fn rate(bytes: u64, length_us: u64) -> Result<(), Impossible> {
    let is_possible = u128::from(bytes) * 8 <= u128::from(length_us) * MOST_BITS_PER_US;
    if is_possible { Ok(()) } else { Err(Impossible::Rate { bytes, length_us }) }
}

fn time(us: u64, requested: Duration) -> Result<(), Impossible> {
    let longest = requested.saturating_mul(2).saturating_add(MOST_OVERTIME);
    if u128::from(us) <= longest.as_micros() { Ok(()) } else { Err(Impossible::Time(us)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Duration = Duration::from_secs(1);

    #[test]
    fn no_interface_carries_it_and_no_phase_lasts_so_long() {
        let of = |bytes, elapsed_us| count(Count { bytes, elapsed_us }, ASKED);
        assert_eq!(of(0, 0), Ok(()));
        assert_eq!(of(12_500_000_000_000, 1_000_000), Ok(()));
        assert_eq!(of(100, 22_000_000), Ok(()));
        for (bytes, elapsed_us) in [(1, 0), (u64::MAX, 1_000_000), (12_500_000_100_000, 1_000_000)] {
            assert_eq!(of(bytes, elapsed_us), Err(Impossible::Rate { bytes, length_us: elapsed_us }));
        }
        for elapsed_us in [22_000_001, u64::MAX] {
            assert_eq!(of(100, elapsed_us), Err(Impossible::Time(elapsed_us)));
        }
    }

    #[test]
    fn nothing_is_received_that_was_not_sent() {
        assert_eq!(received_of_sent("bytes", 5, 5), Ok(()));
        let error = received_of_sent("bytes", 6, 5).unwrap_err();
        assert_eq!(error.to_string(), "it reports 6 received bytes, but only 5 were sent");
    }
    #[test]
    fn every_number_of_a_tally_has_a_bound() {
        const MOST: Option<u64> = Some(u64::MAX);
        let claim = || DirectionTally { count: Count { bytes: 1000, elapsed_us: 1_000_000 }, ..Default::default() };
        let changes: &[fn(&mut DirectionTally, &mut DatagramTally, &mut TcpTimes)] = &[
            |claim, _, _| claim.count.bytes = u64::MAX,
            |claim, _, _| claim.streams = 65,
            |claim, _, _| claim.mss = Some(65_536),
            |claim, _, _| claim.path_mtu = Some(65_576),
            |claim, _, _| claim.retransmits = MOST,
            |_, _, times| times.total_us = u64::MAX,
            |_, _, times| times.busy_us = u64::MAX,
            |_, _, times| times.receive_window_us = u64::MAX,
            |_, _, times| times.send_buffer_us = u64::MAX,
            |_, datagrams, _| datagrams.sent = MOST,
            |_, datagrams, _| datagrams.received = MOST,
            |_, datagrams, _| datagrams.duplicates = MOST,
            |_, datagrams, _| datagrams.out_of_order = MOST,
            |_, datagrams, _| datagrams.settled = MOST,
            |_, datagrams, _| datagrams.vanished = MOST,
            |_, datagrams, _| datagrams.payload_bytes = Some(65_536),
            |_, datagrams, _| datagrams.jitter_us = MOST,
            |_, datagrams, _| datagrams.settled_at_us = MOST,
            |_, datagrams, _| datagrams.paused_ms = MOST,
        ];
        for (number, change) in changes.iter().enumerate() {
            let (mut claim, mut datagrams, mut times) = (claim(), DatagramTally::default(), TcpTimes::default());
            change(&mut claim, &mut datagrams, &mut times);
            let claim = DirectionTally { datagrams: Some(Box::new(datagrams)), tcp_times: Some(times), ..claim };
            assert!(tally(&claim, ASKED).is_err(), "change {number}");
        }
        let largest = DirectionTally {
            streams: 64,
            mss: Some(65_535),
            path_mtu: Some(65_575),
            retransmits: Some(446_428_571_428),
            tcp_times: Some(TcpTimes { busy_us: 64 * 22_000_000, ..TcpTimes::default() }),
            datagrams: Some(Box::new(DatagramTally { jitter_us: Some(22_000_000), ..DatagramTally::default() })),
            ..claim()
        };
        assert_eq!(tally(&largest, ASKED), Ok(()));
        let more = DirectionTally { retransmits: Some(446_428_571_429), ..claim() };
        assert_eq!(
            tally(&more, ASKED).unwrap_err().to_string(),
            "it reports 446428571429 retransmitted segments; at most 446428571428 are possible"
        );
    }

    #[test]
    fn no_interface_carries_more_than_any() {
        let of = |received_bytes, sent_bytes, elapsed_us| {
            traffic(InterfaceTraffic { received_bytes, sent_bytes, elapsed_us }, ASKED)
        };
        assert_eq!(of(12_500_000_000_000, 12_500_000_000_000, 1_000_000), Ok(()));
        for (received, sent, us) in [(u64::MAX, 0, 1_000_000), (0, u64::MAX, 1_000_000), (0, 0, u64::MAX)] {
            assert!(of(received, sent, us).is_err());
        }
    }
}
