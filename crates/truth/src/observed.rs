//! Computes the true numbers of a run from the records of the links. Results are compared with these numbers. Pure.

use std::collections::HashMap;
use std::time::Duration;

use emulator::{Bin, FlowRecord, LinkRecord, SeenProbe, Transport, Way};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{LatencyResult, ResultDocument};
use serde::{Deserialize, Serialize};

use crate::watched::{BULK_RULE, PROBE_RULE};

/// What the links did during one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Observed {
    /// What the links did to each loaded direction.
    pub directions: Vec<ObservedDirection>,
    /// What the links did to the probes of each phase.
    pub latency: Vec<ObservedLatency>,
}

/// What the links did to the payload of one direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObservedDirection {
    /// The direction of the load that these numbers describe.
    pub direction: Direction,
    /// The rate at which the last link delivered payload in the steady part of the phase, in bit/s.
    pub delivered_bps: f64,
    /// The payload that the last link delivered in the whole phase, in bytes.
    pub delivered_bytes: u64,
    /// The rate of the IP packets that carried probes or control messages in the steady part of the phase, in bit/s.
    pub other_bps: f64,
    /// What the links did to the datagrams of the load; `None` if the load was TCP.
    pub datagrams: Option<ObservedDatagrams>,
}

/// What the links did to the datagrams of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedDatagrams {
    /// Datagrams that entered the first link.
    pub entered: u64,
    /// Datagrams that one of the links dropped.
    pub dropped: u64,
    /// Extra copies of datagrams that the links made.
    pub copies: u64,
    /// Datagrams that the last link delivered after one that was sent later (RFC 4737).
    pub reordered: u64,
}

/// What the links did to the probes of one phase.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ObservedLatency {
    /// The load of the phase in which the probes were sent.
    pub load: Load,
    /// Probes that entered the first link.
    pub sent: u64,
    /// Probes dropped on the way to the reflector.
    pub lost_up: u64,
    /// Probes that reached the reflector, but whose reply did not reach the appliance.
    pub lost_down: u64,
    /// The median time that an answered probe and its reply spent in all links, in milliseconds; `None` if no probe was
    /// answered.
    pub p50_ms: Option<f64>,
    /// The median time that an answered probe and its reply waited in all queues, in milliseconds; `None` if no probe
    /// was answered.
    pub queue_ms: Option<f64>,
    /// The median time that answered probes waited in all queues on the way up, and that their replies waited on the
    /// way down, in milliseconds; `None` if no probe was answered.
    #[serde(default)]
    pub queue_ways_ms: Option<[f64; 2]>,
}

/// A probe that entered the first link, and its fate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    pub(crate) entered: Duration,
    pub(crate) fate: RoundTripFate,
}

/// What happened to a probe and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundTripFate {
    /// The probe was dropped on the way to the reflector.
    LostUp,
    /// The reply was dropped on the way back, or never sent.
    LostDown,
    /// The reply arrived. The values are the time in all links in both directions, and the part of that time in queues,
    /// indexed by [`Way`].
    Answered(Duration, [Duration; 2]),
}

/// The records of each link, in order from the appliance to the reflector; each link has one record for each [`Way`].
pub type LinkRecords = Vec<[LinkRecord; 2]>;

/// The passage of a packet through all links of one direction: when it entered the link nearest to the appliance that
/// it reached; then its time in all links and the part of that time in queues, or `None` if a link dropped it.
type Transits = (Duration, Option<(Duration, Duration)>);

/// The passage of each packet that matches watch rule `rule` through all links of direction `way`, by the packet's
/// identifier.
fn transits(links: &LinkRecords, rule: usize, way: Way) -> HashMap<u32, Transits> {
    let mut transits = HashMap::<u32, Transits>::new();
    for (at, record) in links.iter().map(|link| &link[way as usize]).enumerate() {
        let mut seen_here = HashMap::new();
        for probe in record.probes.iter().filter(|probe| probe.rule == rule) {
            // Take the first probe with an id: a later one is a copy that an earlier link made.
            seen_here.entry(probe.id).or_insert(probe);
        }
        for (id, probe) in seen_here {
            let passed = probe.transit().map(|transit| (transit, probe.queue_wait));
            let sum = transits.entry(id).or_insert((probe.entered, Some((Duration::ZERO, Duration::ZERO))));
            sum.1 = sum.1.zip(passed).map(|((total, waited), (transit, wait))| (total + transit, waited + wait));
            if at == 0 && way == Way::Up {
                sum.0 = probe.entered;
            }
        }
    }
    transits
}

/// The median time that the links took for a reply from the reflector to the appliance in the idle phase; zero without
/// such replies.
fn idle_transit_down(links: &LinkRecords, rule: usize, phases: &[(Load, Duration, Duration)]) -> Duration {
    let idle = phases.iter().find(|(load, ..)| *load == Load::Idle).map(|(_, begun, length)| *begun..*begun + *length);
    let down = transits(links, rule, Way::Down);
    let during = down.values().filter(|(entered, _)| idle.as_ref().is_some_and(|idle| idle.contains(entered)));
    let times = during.filter_map(|(_, passed)| passed.map(|(transit, _)| transit)).collect();
    median_ms(times).map_or(Duration::ZERO, |ms| Duration::from_secs_f64(ms / 1e3))
}

/// The round trips of the probes that match watch rule `rule`, in the order in which the probes entered the first link.
pub(crate) fn round_trips(links: &LinkRecords, rule: usize) -> Vec<RoundTrip> {
    let [up, down] = Way::BOTH.map(|way| transits(links, rule, way));
    let trip = |(id, (entered, passed)): (&u32, &Transits)| {
        let back = down.get(id).and_then(|(_, passed)| *passed);
        let fate = match (*passed, back) {
            (None, _) => RoundTripFate::LostUp,
            (Some(_), None) => RoundTripFate::LostDown,
            (Some(there), Some(back)) => RoundTripFate::Answered(there.0 + back.0, [there.1, back.1]),
        };
        RoundTrip { entered: *entered, fate }
    };
    let mut trips = up.iter().map(trip).collect::<Vec<_>>();
    trips.sort_by_key(|trip| trip.entered);
    trips
}

/// The median of these times in milliseconds; `None` without times.
pub(crate) fn median_ms(mut times: Vec<Duration>) -> Option<f64> {
    times.sort_unstable();
    let upper = *times.get(times.len() / 2)?;
    let lower = if times.len().is_multiple_of(2) { times[times.len() / 2 - 1] } else { upper };
    Some((lower + upper).as_secs_f64() * 500.0)
}

/// Summarises the round trips of a phase with this load.
pub(crate) fn latency(load: Load, trips: &[RoundTrip]) -> ObservedLatency {
    let count = |fate| trips.iter().filter(|trip| trip.fate == fate).count() as u64;
    let answered = trips.iter().filter_map(|trip| match trip.fate {
        RoundTripFate::Answered(transit, waits) => Some((transit, waits)),
        RoundTripFate::LostUp | RoundTripFate::LostDown => None,
    });
    let (transits, waits): (Vec<_>, Vec<_>) = answered.unzip();
    let [up, down] = Way::BOTH.map(|way| median_ms(waits.iter().map(|waits| waits[way as usize]).collect()));
    ObservedLatency {
        load,
        sent: trips.len() as u64,
        lost_up: count(RoundTripFate::LostUp),
        lost_down: count(RoundTripFate::LostDown),
        p50_ms: median_ms(transits),
        queue_ms: median_ms(waits.iter().map(|[up, down]| *up + *down).collect()),
        queue_ways_ms: up.zip(down).map(<[f64; 2]>::from),
    }
}

/// The records of the last link and of the first link that packets in direction `way` pass; `None` without links.
fn last_and_first(links: &LinkRecords, way: Way) -> Option<(&LinkRecord, &LinkRecord)> {
    let (first, last) = (links.first()?, links.last()?);
    let (last, first) = if way == Way::Up { (last, first) } else { (first, last) };
    Some((&last[way as usize], &first[way as usize]))
}

/// The UDP flows in a record that carry more than 20 datagrams with a mean payload above 300 bytes.
fn bulk_datagrams(record: &LinkRecord) -> impl Iterator<Item = &FlowRecord> {
    let is_bulk = |flow: &FlowRecord| flow.with_payload > 20 && flow.payload_bytes / flow.with_payload > 300;
    record
        .flows
        .iter()
        .filter(move |(key, flow)| key.transport == Transport::Udp && is_bulk(flow))
        .map(|(_, flow)| flow)
}

/// What the links did to the large datagrams in direction `way`; `None` if none entered. Used for the load of other
/// programs, because no watch rule recognises their datagrams.
pub(crate) fn datagrams_of_flows(links: &LinkRecords, way: Way) -> Option<ObservedDatagrams> {
    let (last, first) = last_and_first(links, way)?;
    let entered = bulk_datagrams(first).map(|flow| flow.entered).sum::<u64>();
    let sum = |of: fn(&FlowRecord) -> u64| -> u64 {
        links.iter().flat_map(|link| bulk_datagrams(&link[way as usize])).map(of).sum()
    };
    let reordered = bulk_datagrams(last).map(|flow| flow.reordered).sum();
    let dropped = sum(FlowRecord::all_dropped);
    (entered > 0).then(|| ObservedDatagrams { entered, dropped, copies: sum(|flow| flow.copies), reordered })
}

/// What the links did to the datagrams in direction `way` that match watch rule `rule`; `None` if none entered. All of
/// them must belong to one stream.
pub(crate) fn datagrams(links: &LinkRecords, way: Way, rule: usize) -> Option<ObservedDatagrams> {
    let (last, first) = last_and_first(links, way)?;
    let of = |record: &LinkRecord| record.probes.iter().filter(|one| one.rule == rule).copied().collect::<Vec<_>>();
    let in_all = links.iter().flat_map(|link| of(&link[way as usize])).collect::<Vec<_>>();
    let count = |is_meant: fn(&SeenProbe) -> bool| in_all.iter().filter(|one| is_meant(one)).count() as u64;
    let entered = of(first).len() as u64;
    // A datagram is reordered if it arrives after one with a higher number (RFC 4737, section 3.3).
    let mut arrived = of(last).iter().filter_map(|one| Some((one.left?, one.id))).collect::<Vec<_>>();
    arrived.sort_unstable();
    let mut highest = 0;
    let mut is_late = |id: u32| {
        highest = highest.max(id);
        id < highest
    };
    let reordered = arrived.iter().filter(|(_, id)| is_late(*id)).count() as u64;
    let (dropped, copies) = (count(|one| one.dropped.is_some()), count(|one| one.is_duplicated));
    (entered > 0).then_some(ObservedDatagrams { entered, dropped, copies, reordered })
}

/// The direction of the link in which the payload of a test direction travels.
pub(crate) fn way(direction: Direction) -> Way {
    match direction {
        Direction::Upload => Way::Up,
        Direction::Download => Way::Down,
    }
}

impl Observed {
    /// Computes what the links did during the run whose result is `document`. Each entry of `phases` is the load of a
    /// phase, its begin by the link's clock, and its length.
    pub fn of(document: &ResultDocument, phases: &[(Load, Duration, Duration)], links: &LinkRecords) -> Self {
        let trips = round_trips(links, PROBE_RULE);
        let back = idle_transit_down(links, PROBE_RULE, phases);
        let mut observed = Self::default();
        for (load, begun, length) in phases.iter().copied() {
            for direction in load.directions().iter().copied() {
                let Some(measured) = document.measured(load, direction) else { continue };
                let Some((last, _)) = last_and_first(links, way(direction)) else { continue };
                // The receiver counts its time. For an upload that is the reflector, which begins a phase as it sends
                // the message that lets the appliance begin.
                let begun = match direction {
                    Direction::Upload => begun.saturating_sub(back),
                    Direction::Download => begun,
                };
                let from = begun + Duration::from_millis(measured.startup_ms);
                let steady = Duration::from_millis(measured.duration_ms);
                let payload = |bin: Bin| if measured.udp.is_some() { bin.udp_payload } else { bin.tcp_payload };
                let bin = last.between(from, from + steady);
                let rate = |bytes: u64| bytes as f64 * 8.0 / steady.as_secs_f64();
                observed.directions.push(ObservedDirection {
                    direction,
                    delivered_bps: rate(payload(bin)),
                    delivered_bytes: payload(last.between(begun, from + steady)),
                    other_bps: rate(bin.watched_bytes),
                    datagrams: measured.udp.and_then(|_| datagrams(links, way(direction), BULK_RULE)),
                });
            }
            if let Some(measured) = document.latency.of(load) {
                observed.latency.push(latency(load, in_window(&trips, measured, begun + length)));
            }
        }
        observed
    }

    /// What the links did to the probes of the phase with this load; `None` if there was no such phase.
    pub fn latency_of(&self, load: Load) -> Option<&ObservedLatency> {
        self.latency.iter().find(|latency| latency.load == load)
    }
}

/// The round trips that the result counts: the last `measured.sent` ones that began before the phase ended at `until`.
fn in_window<'a>(trips: &'a [RoundTrip], measured: &LatencyResult, until: Duration) -> &'a [RoundTrip] {
    let end = trips.partition_point(|trip| trip.entered < until);
    &trips[end.saturating_sub(measured.sent as usize)..end]
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use emulator::{DropReason, FlowKey};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn seen(id: u32, entered: u32, transit: Option<u32>) -> SeenProbe {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        SeenProbe {
            rule: 0,
            flow: FlowKey {
                transport: Transport::Udp,
                source: address,
                destination: address,
                source_port: 1,
                destination_port: 2,
            },
            id,
            entered: entered * MS,
            left: transit.map(|transit| (entered + transit) * MS),
            queue_wait: MS,
            dropped: transit.is_none().then_some(DropReason::Random),
            is_duplicated: false,
            is_reordered: false,
        }
    }

    fn link(up: Vec<SeenProbe>, down: Vec<SeenProbe>) -> [LinkRecord; 2] {
        [up, down].map(|probes| {
            let mut record = LinkRecord::new(vec![]);
            record.probes = probes;
            record
        })
    }

    #[test]
    fn a_round_trip_is_the_sum_over_all_links() {
        let near = link(
            vec![seen(1, 10, Some(5)), seen(2, 20, Some(5)), seen(3, 30, None), seen(4, 40, Some(5))],
            vec![seen(1, 60, Some(1)), seen(2, 70, None)],
        );
        let far = link(
            vec![seen(1, 15, Some(7)), seen(2, 25, Some(7)), seen(4, 45, None)],
            vec![seen(1, 50, Some(2)), seen(1, 55, Some(9)), seen(2, 60, Some(2))],
        );
        let trips = round_trips(&vec![near, far], 0);
        let fates = trips.iter().map(|trip| trip.fate).collect::<Vec<_>>();
        let answered = RoundTripFate::Answered(15 * MS, [2 * MS; 2]);
        assert_eq!(fates, [answered, RoundTripFate::LostDown, RoundTripFate::LostUp, RoundTripFate::LostUp]);
        let summary = latency(Load::Idle, &trips);
        assert_eq!((summary.sent, summary.lost_up, summary.lost_down, summary.p50_ms), (4, 2, 1, Some(15.0)));
    }

    #[test]
    fn a_datagram_after_a_higher_number_is_reordered_and_copies_and_drops_count_once() {
        let mut copied = seen(3, 13, Some(5));
        copied.is_duplicated = true;
        let down = vec![seen(0, 10, Some(5)), seen(1, 11, Some(9)), seen(2, 12, None), copied, seen(4, 14, Some(5))];
        let links = vec![link(vec![], down)];
        let expected = ObservedDatagrams { entered: 5, dropped: 1, copies: 1, reordered: 1 };
        assert_eq!(datagrams(&links, Way::Down, 0), Some(expected));
        assert_eq!((datagrams(&links, Way::Up, 0), datagrams(&links, Way::Down, 1)), (None, None));
    }

    #[test]
    fn the_median_of_an_even_number_is_in_the_middle() {
        assert_eq!(median_ms(vec![4 * MS, MS, 2 * MS, 3 * MS]), Some(2.5));
        assert_eq!(median_ms(vec![3 * MS, MS, 2 * MS]), Some(2.0));
        assert_eq!(median_ms(vec![]), None);
    }
}
