//! Reads the observations for the sentence from a result document. Pure: no I/O, no clock.

use paramedic_link::test_spec::{Direction, Load};

use super::{Completion, Fullness, LossSeen, Observations, PhaseProbes, Speed, Unsteady};
use crate::document::{
    CpuCost, ErrorBody, LatencyResult, LimitCause, QueueSide, ResultDocument, ThroughputResult, UdpResult,
};
use crate::limit;
use crate::stats::{self, Statement};

impl Observations {
    /// Reads the observations from `document`. The speed of a direction comes from the phase that loads only this
    /// direction, or else from the bidirectional phase.
    pub fn of(document: &ResultDocument) -> Self {
        let of = |(load, direction, measured)| speed(document, load, direction, measured);
        let (bidir, single): (Vec<_>, Vec<_>) = document.all_measured().partition(|(load, ..)| *load == Load::Bidir);
        let is_alone = |wanted| single.iter().any(|(_, direction, _)| *direction == wanted);
        let (beside, only): (Vec<_>, Vec<_>) = bidir.into_iter().partition(|(_, direction, _)| is_alone(*direction));
        let mut speeds = single.into_iter().chain(only).map(of).collect::<Vec<_>>();
        speeds.sort_by_key(|speed| speed.direction == Direction::Upload);
        let has_warning = |code: &str| document.warnings.iter().any(|warning| warning.code == code);
        Self {
            other_end: document.other_end().map(str::to_owned),
            is_through_tunnel: document.data_mode_fallback.is_some(),
            completion: completion(document),
            speeds,
            bidir_speeds: beside.into_iter().map(of).collect(),
            has_probe_gaps: has_warning("probes_skipped") || has_warning("probe_late"),
            has_path_changed: has_warning("path_changed"),
            is_search_unfinished: has_warning("rate_not_found"),
            has_paused: has_warning("sending_paused"),
            probes: document.latency.iter().map(|(load, latency)| probes(document, load, latency)).collect(),
        }
    }
}

fn completion(document: &ResultDocument) -> Completion {
    let nothing_arrived = document.error.as_ref().filter(|error| error.code == ErrorBody::NOTHING_ARRIVED);
    match nothing_arrived {
        _ if document.complete => Completion::Complete,
        Some(error) => Completion::NothingArrived(error.what.clone()),
        None if document.interrupted => Completion::Interrupted,
        None => match document.error.as_ref().filter(|_| !document.has_measurements()) {
            Some(error) => Completion::NothingMeasured(format!("{}, because {}", error.what, error.because)),
            None => Completion::Failed,
        },
    }
}

fn speed(document: &ResultDocument, load: Load, direction: Direction, measured: &ThroughputResult) -> Speed {
    let requested = document.requested.unwrap_or_default();
    Speed {
        direction,
        bps: measured.goodput_bps,
        requested_bps: requested.bitrate_bps(),
        window_bytes: requested.window_bytes.filter(|bytes| {
            let windows = f64::from(*bytes) * f64::from(requested.streams);
            let round_trip = document.latency.of(load).and_then(LatencyResult::median_us);
            measured.udp.is_none() && may_be_limit(windows, measured.goodput_bps, round_trip)
        }),
        limit: match &measured.limited_by {
            Some(limited_by) => Some(limited_by.cause),
            None => full_processor(direction, measured),
        },
        fullness: fullness(document, load, direction, measured),
        is_brief: measured.ci95_bps.is_none(),
        unsteady: (!measured.is_steady()).then(|| {
            let thirds = measured.thirds_bps.map(|thirds| [thirds.first, thirds.last]);
            let spread = measured.interval_bps.map(|spread| Unsteady::Spread([spread.p10, spread.p90]));
            match thirds {
                Some(thirds) if !stats::are_level(thirds) => Unsteady::Thirds(thirds),
                _ => spread.unwrap_or(Unsteady::Unknown),
            }
        }),
    }
}

/// Whether a queue in the payload's own direction, or a search for the highest rate, showed that the line was full. A
/// queue of acknowledgements in the other direction raises the round trip, too, and limits the payload before the line
/// is full.
fn fullness(document: &ResultDocument, load: Load, direction: Direction, measured: &ThroughputResult) -> Fullness {
    if measured.udp.as_ref().is_some_and(lost_only_above) {
        return Fullness::Shown;
    }
    let Some(queue) = document.latency.of(load).and_then(|latency| latency.queue) else { return Fullness::Unknown };
    let (own_side, own_ms) = match direction {
        Direction::Download => (QueueSide::Download, queue.download_ms),
        Direction::Upload => (QueueSide::Upload, queue.upload_ms),
    };
    let is_this_way = match (queue.stands, own_ms) {
        (QueueSide::Unknown, _) | (_, None) => return Fullness::Unknown,
        (QueueSide::None, Some(own_ms)) => queue.uncertainty_ms.is_some_and(|uncertainty_ms| own_ms > uncertainty_ms),
        (side, Some(_)) => side == own_side || side == QueueSide::Both,
    };
    match own_ms.is_some_and(|own_ms| is_this_way && limit::shows_queue(own_ms, measured.goodput_bps)) {
        true => Fullness::Shown,
        false => Fullness::NotShown,
    }
}

/// Whether the path lost datagrams while the search tried higher rates, but at most a tenth of that share at the rate
/// that was found. A path that loses datagrams at any rate does not show this.
fn lost_only_above(udp: &UdpResult) -> bool {
    let Some(search) = udp.search.filter(|search| search.datagrams > 0) else { return false };
    // As many datagrams as at the found rate would have been lost at the loss share of the search. With fewer than 10,
    // a tenth of them cannot be told from chance.
    let expected = search.lost as f64 / search.datagrams as f64 * udp.datagrams as f64;
    expected >= 10.0 && udp.lost as f64 <= expected / 10.0
}

/// The end whose processor limited the rate. Used for documents of earlier versions, which have no `limited_by`.
fn full_processor(direction: Direction, measured: &ThroughputResult) -> Option<LimitCause> {
    let is_full = |cpu: Option<CpuCost>| cpu.is_some_and(|cpu| stats::processor_limit(&cpu.used).is_some());
    let (own, theirs) = match direction {
        Direction::Download => (measured.cpu.receiver, measured.cpu.sender),
        Direction::Upload => (measured.cpu.sender, measured.cpu.receiver),
    };
    match (is_full(own), is_full(theirs)) {
        (true, _) => Some(LimitCause::ApplianceCpu),
        (_, true) => Some(LimitCause::ReflectorCpu),
        _ => None,
    }
}

/// Whether the requested windows, `windows` bytes over all streams, may have limited the rate. If a window limits the
/// sender, the window is always full, so rate times round trip is about `windows`. If this product is less than half of
/// `windows`, the window was not the limit.
fn may_be_limit(windows: f64, goodput_bps: u64, round_trip_us: Option<u64>) -> bool {
    round_trip_us.is_none_or(|us| goodput_bps as f64 / 8.0 * us as f64 / 1e6 >= windows / 2.0)
}

fn probes(document: &ResultDocument, load: Load, latency: &LatencyResult) -> PhaseProbes {
    PhaseProbes {
        load,
        sent: latency.sent,
        received: latency.received,
        median_us: latency.median_us(),
        p95_us: latency.round_trip_us(Statement::P95),
        increase: document.bufferbloat.of(load).map(|bloat| (bloat.increase_ms, bloat.grade)),
        loss: loss(latency),
        queue: latency.queue.map(|queue| queue.stands),
        is_own_queue: latency.queue.is_some_and(|queue| queue.is_own()),
    }
}

/// The loss in the direction that lost more probes. The document counts loss periods for both directions together, so
/// this direction gets a share of the periods in proportion to its lost probes.
fn loss(latency: &LatencyResult) -> Option<LossSeen> {
    let share = latency.worst_loss()?;
    let sent = latency.sent as f64;
    let all = (latency.loss.unwrap_or(share) * sent).round();
    // The document has shares: the upload's share counts the probes whose fate is known, the download's share those that
    // arrived. So the known probes are those that were answered, divided by both shares of survivors.
    let (up, down) = (latency.loss_upload.unwrap_or(0.0), latency.loss_download.unwrap_or(0.0));
    let known = (sent - all) / ((1.0 - up) * (1.0 - down));
    let (lost_up, lost_down) = match known.is_finite() {
        true => (up * known, down * (1.0 - up) * known),
        // Without an answer, the shares of the survivors are unknown.
        false => (up * sent, down * (1.0 - up) * sent),
    };
    let (lost, direction) = match (latency.loss_upload, latency.loss_download) {
        (None, None) => (all, None),
        _ if lost_up >= lost_down => (lost_up, Some(Direction::Upload)),
        _ => (lost_down, Some(Direction::Download)),
    };
    let (lost, all) = (lost.round() as u64, (all as u64).max(1));
    // Documents of earlier versions have no pattern: assume one period per lost probe.
    let pattern = latency.loss_pattern;
    let periods = pattern.map_or(lost, |pattern| {
        u64::try_from((u128::from(pattern.periods) * u128::from(lost)).div_ceil(u128::from(all))).unwrap_or(u64::MAX)
    });
    (lost > 0).then_some(LossSeen {
        lost,
        direction,
        all,
        of: latency.sent,
        periods,
        longest_probes: pattern.map_or(1, |pattern| pattern.longest_probes),
        longest_ms: pattern.map_or(0, |pattern| pattern.longest_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conclusion::conclude;
    use crate::document::{ByLoad, LossPattern, QueueByDirection, RequestedLimits, Thirds, UdpSearch, example};

    /// A complete download of 36.2 Mbit/s in 4 streams. The median round trip is 12.3 ms while idle and 15.3 ms under
    /// load.
    fn download() -> ResultDocument {
        let latency = |median| LatencyResult { loss: Some(0.0), loss_download: Some(0.0), ..example::latency(median) };
        ResultDocument {
            download: Some(ThroughputResult { udp: None, ..example::throughput(36_200_000) }),
            latency: ByLoad { idle: Some(latency(12_300)), download: Some(latency(15_300)), ..ByLoad::default() },
            bufferbloat: ByLoad {
                download: Some(crate::document::Bufferbloat::of_increase_ms(3.0)),
                ..ByLoad::default()
            },
            requested: Some(RequestedLimits { streams: 4, ..RequestedLimits::default() }),
            ..example::bare()
        }
    }

    /// The sentence for [`download`] after `change`, without its first words.
    fn sentence(change: impl FnOnce(&mut ResultDocument)) -> String {
        let mut document = download();
        change(&mut document);
        let text = conclude(&Observations::of(&document)).1;
        text.strip_prefix("Your connection to attic ").unwrap().to_owned()
    }

    #[test]
    fn a_requested_limit_changes_the_claim() {
        let requested = |limits| sentence(|document| document.requested = Some(limits));
        let limits = RequestedLimits { streams: 4, ..RequestedLimits::default() };
        assert_eq!(requested(limits), "carries 36.2 Mbit/s down, and stays responsive during a download.");
        assert_eq!(
            requested(RequestedLimits { stream_bitrate_bps: Some(9_000_000), ..limits }),
            "carried 36.2 Mbit/s down (36.0 Mbit/s requested), and stayed responsive at that load."
        );
        // 4 windows of 16 KiB each 15.3 ms are 34 Mbit/s; 4 windows of 4 MiB are far more than the line carries.
        assert_eq!(
            requested(RequestedLimits { window_bytes: Some(16_384), ..limits }),
            "carried 36.2 Mbit/s down with the requested socket buffers of 16 KiB, and stayed responsive at \
             that load."
        );
        let large = RequestedLimits { window_bytes: Some(4 << 20), ..limits };
        assert_eq!(requested(large), "carries 36.2 Mbit/s down, and stays responsive during a download.");
        assert_eq!(
            sentence(|document| document.requested = None),
            "carries 36.2 Mbit/s down, and stays responsive during a download."
        );
    }

    #[test]
    fn a_rate_that_changed_is_not_claimed() {
        let thirds = Thirds { first: 50_000_000, last: 10_000_000 };
        let text = sentence(|document| document.download.as_mut().unwrap().thirds_bps = Some(thirds));
        assert_eq!(
            text,
            "carried 36.2 Mbit/s down (not steady: 50.0 Mbit/s in the first third, 10.0 Mbit/s in the last), and stayed \
             responsive during a download."
        );
        let text = sentence(|document| document.download.as_mut().unwrap().ci95_bps = Some([1_700_000, 70_000_000]));
        assert!(text.starts_with("carried 36.2 Mbit/s down (not steady: most intervals from "), "{text}");
    }

    #[test]
    fn lost_segments_without_a_queue_show_no_full_line() {
        let text = sentence(|document| {
            let queue = QueueByDirection {
                stands: QueueSide::None,
                upload_ms: Some(0.1),
                download_ms: Some(1.5),
                uncertainty_ms: Some(2.0),
                ..QueueByDirection::UNKNOWN
            };
            document.latency.download.as_mut().unwrap().queue = Some(queue);
        });
        assert_eq!(
            text,
            "carries at least 36.2 Mbit/s down, and stayed responsive at that load. No queue showed that \
             the line was full."
        );
        let text = sentence(|document| {
            document.latency.download.as_mut().unwrap().queue = Some(QueueByDirection::UNKNOWN);
        });
        assert!(text.ends_with(". Whether a queue showed that the line was full is not known."), "{text}");
    }

    #[test]
    fn a_queue_in_the_other_direction_shows_no_full_line() {
        let text = sentence(|document| {
            let queue = QueueByDirection {
                stands: QueueSide::Upload,
                upload_ms: Some(119.0),
                download_ms: Some(1.2),
                uncertainty_ms: Some(0.2),
                ..QueueByDirection::UNKNOWN
            };
            document.latency.download.as_mut().unwrap().queue = Some(queue);
        });
        assert!(text.starts_with("carries at least 36.2 Mbit/s down, "), "{text}");
        assert!(text.ends_with(". No queue showed that the line was full."), "{text}");
    }

    #[test]
    fn lost_datagrams_show_a_full_line_only_if_the_found_rate_loses_few() {
        let udp = |lost, of_search| UdpResult { lost, search: Some(of_search), ..example::throughput(1).udp.unwrap() };
        let search = UdpSearch { datagrams: 10_000, lost: 1_000 };
        let of = |udp: &UdpResult, datagrams| lost_only_above(&UdpResult { datagrams, ..*udp });
        assert!(of(&udp(10, search), 10_000), "at most a tenth of the share that the search lost");
        assert!(!of(&udp(1_000, search), 10_000), "the path loses datagrams at any rate");
        assert!(!of(&udp(0, search), 90), "too few datagrams");
        assert!(!of(&udp(0, UdpSearch { lost: 0, ..search }), 10_000));
        assert!(!of(&UdpResult { search: None, ..udp(0, search) }, 10_000));
    }

    #[test]
    fn lost_probes_are_counted_by_direction() {
        let seen = |sent: u64, received: u64, up: f64, down: f64| {
            let answered = received as f64 / sent as f64;
            let latency = LatencyResult {
                sent,
                received,
                loss: Some(1.0 - answered),
                loss_upload: Some(up),
                loss_download: Some(down),
                loss_pattern: None,
                ..example::latency(12_300)
            };
            let loss = loss(&latency).unwrap();
            (loss.lost, loss.direction)
        };
        // The fate of 5 of the 10 lost probes is unknown.
        assert_eq!(seen(24, 14, 5.0 / 19.0, 0.0), (5, Some(Direction::Upload)));
        assert_eq!(seen(1_000, 600, 0.2, 0.25), (200, Some(Direction::Upload)));
        assert_eq!(seen(1_000, 600, 0.0, 0.4), (400, Some(Direction::Download)));
        assert_eq!(seen(1_000, 0, 1.0, 0.0), (1_000, Some(Direction::Upload)));
        assert_eq!(seen(1_000, 0, 0.0, 1.0), (1_000, Some(Direction::Download)));
    }

    #[test]
    fn a_search_beside_a_direction_without_payload_may_be_unfinished() {
        let (_, text) = conclude(&Observations {
            completion: Completion::NothingArrived("almost no payload arrived in the upload".to_owned()),
            is_search_unfinished: true,
            ..Observations::of(&download())
        });
        assert!(text.ends_with("attic carried 36.2 Mbit/s down."), "{text}");
    }

    #[test]
    fn a_proven_loss_is_named_beside_a_larger_unproven_one() {
        let probes = |sent: u64, lost: u64, periods: u64, longest_probes: u64| LatencyResult {
            sent,
            received: sent - lost,
            loss: Some(lost as f64 / sent as f64),
            loss_upload: Some(lost as f64 / sent as f64),
            loss_download: Some(0.0),
            loss_pattern: Some(LossPattern { periods, longest_probes, longest_ms: longest_probes * 10 }),
            ..example::latency(12_300)
        };
        let text = sentence(|document| {
            document.latency.download = Some(probes(200, 4, 4, 1));
            document.latency.upload = Some(probes(6_000, 105, 1, 105));
        });
        assert!(text.ends_with("but during an upload no probe was answered for 1.1 s (an outage)."), "{text}");
    }

    #[test]
    fn a_path_is_responsive_only_if_its_slow_replies_are() {
        let loaded = |rtt_us: fn(&mut crate::document::RttSpread)| {
            sentence(|document| rtt_us(document.latency.download.as_mut().unwrap().rtt_us.as_mut().unwrap()))
        };
        assert_eq!(
            loaded(|rtt| rtt.p95 = Some(192_000)),
            "carries 36.2 Mbit/s down, but during a download 5 % of the replies take 192 ms or longer."
        );
        assert_eq!(
            loaded(|rtt| rtt.p95 = None),
            "carries 36.2 Mbit/s down, and its median latency hardly rises during a download (12.3 ms while idle)."
        );
    }

    #[test]
    fn a_phase_without_an_interval_makes_no_claim_about_the_line() {
        let text = sentence(|document| document.download.as_mut().unwrap().ci95_bps = None);
        assert_eq!(text, "carried 36.2 Mbit/s down, and stayed responsive during a download.");
    }

    #[test]
    fn lost_probes_are_a_rate_only_with_proof() {
        let lost = |lost: u64, periods: u64, longest_probes: u64| LatencyResult {
            sent: 200,
            received: 200 - lost,
            loss: Some(lost as f64 / 200.0),
            loss_upload: Some(lost as f64 / 200.0),
            loss_download: Some(0.0),
            loss_pattern: Some(LossPattern { periods, longest_probes, longest_ms: longest_probes * 10 }),
            ..example::latency(12_300)
        };
        let idle = |latency| sentence(|document| document.latency.idle = Some(latency));
        assert_eq!(idle(lost(2, 2, 1)), "carries 36.2 Mbit/s down, and stays responsive during a download.");
        assert_eq!(
            idle(lost(8, 8, 1)),
            "carries 36.2 Mbit/s down, but while idle 4.0 % of the latency probes were lost in the upload direction: calls \
             and games may stutter."
        );
        assert_eq!(
            idle(lost(8, 1, 8)),
            "carries 36.2 Mbit/s down, but while idle 8 latency probes in a row were lost (80 ms)."
        );
        assert_eq!(
            sentence(|document| document.latency.download = Some(lost(8, 8, 1))),
            "carries 36.2 Mbit/s down, but during a download 4.0 % of the latency probes were lost in the upload \
             direction: calls and games may stutter."
        );
    }

    #[test]
    fn a_window_is_the_limit_only_if_it_is_full() {
        // 4 windows of 16 KiB each 30 ms are at most 17 Mbit/s.
        let windows = 4.0 * 16_384.0;
        assert!(may_be_limit(windows, 17_000_000, Some(30_000)));
        assert!(may_be_limit(windows, 17_000_000, None));
        assert!(!may_be_limit(4.0 * 4_194_304.0, 37_000_000, Some(30_000)));
    }
}
