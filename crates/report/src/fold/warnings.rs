//! Adds the warnings to a result, such as reduced buffers, counts that differ, or unanswered probes. Pure: no I/O, no
//! clock.

use paramedic_link::measurement::{DatagramsSeen, INTERVAL_MS};
use paramedic_link::test_spec::{Direction, Load};

use super::phase::PhaseRecord;
use super::rates::found_at;
use crate::document::{LatencyResult, ResultDocument, Thirds, ThroughputResult, Warning};
use crate::quantity;
use crate::stats::Statement;

/// The result has a warning if the appliance skipped at least 1 in 100 of the probes that were due in a phase.
const SKIPPED_OF: u64 = 100;

/// If the byte counts of both ends in the steady part differ by at most this share, they count as equal.
const SAME_COUNT: f64 = 0.05;

/// If the wall clock moved against the monotonic clock by less than this many milliseconds, it was not set. A small
/// difference is normal, because the two clocks are read one after the other.
const LEAST_CLOCK_SET_MS: u64 = 1_000;

/// If the latency probes take at least this share of the rate, they noticeably lower the measured rate.
const PROBE_LOAD: f64 = 0.02;

/// Adds the warnings that follow from the tallies (the final counts) of both ends.
pub(super) fn add(result: &mut ResultDocument, phases: &[PhaseRecord]) {
    for phase in phases {
        for direction in phase.load.directions() {
            let (sender, receiver) = phase.ends(*direction);
            let (own, theirs) = match direction {
                Direction::Download => (receiver, sender),
                Direction::Upload => (sender, receiver),
            };
            for (code, whose, tally) in
                [("appliance_window", "this device", own), ("reflector_window", "the reflector's host", theirs)]
            {
                if let Some(bytes) = tally.and_then(|tally| tally.reduced_window_bytes)
                    && !has(result, code)
                {
                    let text = format!(
                        "{whose} grants socket buffers of {}, less than -w requests; net.core.wmem_max and \
                         net.core.rmem_max limit them",
                        quantity::exact_bytes(bytes.get().into())
                    );
                    result.warnings.push(Warning::new(code, text));
                }
            }
            let (Some(sender), Some(receiver)) = (sender, receiver) else { continue };
            if let Some(datagrams) = &sender.datagrams {
                // Datagrams may be lost, so their counts may differ.
                let lasted = phase.is_counted() && phase.cut_short().is_none() && !result.interrupted;
                let searched = phase.is_searched && lasted && result.measured(phase.load, *direction).is_some();
                if searched && found_at(Some(sender), Some(receiver)).is_none() && !has(result, "rate_not_found") {
                    let text = format!(
                        "the search for the highest rate did not finish in the {}: measure longer with -t",
                        phase.load
                    );
                    result.warnings.push(Warning::new("rate_not_found", text));
                }
                if datagrams.is_black_hole && !has(result, "small_datagrams") {
                    let text = format!(
                        "the path drops large packets and sends no ICMP: in the {}, datagrams arrived only after the \
                         sender had made them smaller ({} bytes of payload), and larger ones are not counted; correct \
                         the MTU or the firewall that drops ICMP",
                        phase.load,
                        datagrams.payload_bytes.unwrap_or_default()
                    );
                    result.warnings.push(Warning::new("small_datagrams", text));
                }
                if let Some(paused_ms) = datagrams.paused_ms
                    && !has(result, "sending_paused")
                {
                    let text = format!(
                        "in the {} the sender paused for {paused_ms} ms, because no feedback arrived from the receiver",
                        phase.load
                    );
                    result.warnings.push(Warning::new("sending_paused", text));
                }
                continue;
            }
            // Counts from different sources may differ, because the receiver may still buffer bytes that the sender
            // counted as sent.
            if sender.counted_by.is_some() || receiver.counted_by.is_some() {
                continue;
            }
            if sender.count.bytes != receiver.count.bytes && result.complete && !has(result, "counts_differ") {
                let text = format!(
                    "in the {} the sender counted {} bytes and the receiver {}: the rest was in flight",
                    phase.load, sender.count.bytes, receiver.count.bytes
                );
                result.warnings.push(Warning::new("counts_differ", text));
            }
        }
    }
}

/// Adds the warning that latency was measured over TCP. The warning states the reason as far as the reflector's counts
/// of datagrams show it.
pub(super) fn udp_blocked(result: &mut ResultDocument, seen: Option<DatagramsSeen>) {
    let why = match seen {
        Some(DatagramsSeen { from_elsewhere: 1.., .. }) => "a NAT on the way rewrites the source of UDP",
        Some(DatagramsSeen { answered: 0, .. }) => "no UDP datagram reaches the reflector",
        Some(_) => "the reflector's UDP answers do not arrive here",
        None => "UDP does not get through",
    };
    let text = format!("{why}, so latency was measured over TCP: a lost packet shows as a late one");
    result.warnings.push(Warning::new("udp_blocked", text));
}

/// Adds a warning if the test ran through the tunnel because direct mode was blocked.
pub(super) fn tunnel(result: &mut ResultDocument) {
    if let Some(fallback) = &result.data_mode_fallback {
        let text = format!(
            "{fallback}, so the test ran through the tunnel, which needs only the reflector's control port: open the \
             reflector's data ports, then use --data-mode direct once"
        );
        result.warnings.push(Warning::new("direct_blocked", text));
    }
}

/// Adds a warning if the wall clock was set during the run. In this case the times of day in the result do not fit
/// together.
pub(super) fn wall_clock(result: &mut ResultDocument, moved_ms: i64) {
    if moved_ms.unsigned_abs() < LEAST_CLOCK_SET_MS {
        return;
    }
    let way = if moved_ms > 0 { "forward" } else { "back" };
    let text = format!(
        "the clock of this device moved {way} by {} during the test: it was set, or the device slept; only the times of \
         day in this result are affected",
        quantity::millis(moved_ms.unsigned_abs())
    );
    result.warnings.push(Warning::new("clock_set", text));
}

/// Adds a warning if the link (the connection to the reflector) had to limit its segments, because the path drops large
/// packets.
pub(super) fn small_segments(result: &mut ResultDocument, segment_limit: Option<u16>) {
    let Some(bytes) = segment_limit else { return };
    let text = format!(
        "the path drops large packets and sends no ICMP: the link needed segments of {bytes} bytes, and the test used \
         packets of that size unless -M or -l set another; correct the MTU or the firewall that drops ICMP"
    );
    result.warnings.push(Warning::new("small_segments", text));
}

/// Adds a warning that the full time was measured, because the reflector does not support an early end.
pub(super) fn full_time(result: &mut ResultDocument) {
    let text = "the reflector is too old to end a direction early (--until-stable), so the full time was measured";
    result.warnings.push(Warning::new("full_time", text));
}

/// Adds a warning for directions whose time was over before they had moved the requested `bytes`. Does nothing if the
/// request set no number of bytes.
pub(super) fn bytes_left(result: &mut ResultDocument, bytes: Option<u64>) {
    let Some(bytes) = bytes else { return };
    let left = result.all_measured().filter_map(|(_, direction, measured)| {
        let through = measured.total_bytes_sent.or(measured.total_bytes_received)?;
        (through < bytes).then(|| format!("{through} in the {direction}"))
    });
    let left = left.collect::<Vec<_>>();
    if !left.is_empty() {
        let text = format!("the time (-t) was over before {bytes} bytes (-n) had been moved: {}", left.join(", "));
        result.warnings.push(Warning::new("bytes_left", text));
    }
}

/// Adds a warning for phases in which too few probes were answered to assess the latency.
pub(super) fn lost_probes(result: &mut ResultDocument) {
    let silent = result.latency.iter().filter(|(_, latency)| latency.median_us().is_none());
    let unanswered = silent.map(|(load, latency)| match latency.received {
        0 => format!("no latency probe was answered in the {load} phase ({} were sent)", latency.sent),
        some => format!("only {some} of {} latency probes in the {load} phase were answered", latency.sent),
    });
    let unanswered = unanswered.collect::<Vec<_>>();
    if !unanswered.is_empty() {
        let least = Statement::Assessment.least_samples();
        let text = format!(
            "{}: an assessment of the latency needs at least {least} answers, and answers to half of the probes",
            unanswered.join("; ")
        );
        result.warnings.push(Warning::new("probes_lost", text));
    }
}

/// Adds a warning for phases in which the appliance skipped many scheduled probes.
pub(super) fn skipped_probes(result: &mut ResultDocument) {
    let is_many = |latency: &LatencyResult| {
        latency.skipped.saturating_mul(SKIPPED_OF) >= latency.sent.saturating_add(latency.skipped)
    };
    let many = result.latency.iter().filter(|(_, latency)| latency.skipped > 0 && is_many(latency));
    let parts = many.map(|(load, latency)| {
        let due = latency.sent.saturating_add(latency.skipped);
        format!("{} of {due} latency probes in the {load} phase", latency.skipped)
    });
    let parts = parts.collect::<Vec<_>>();
    if !parts.is_empty() {
        let text = format!("this device was too late to send {}: spikes may be missing", parts.join("; "));
        result.warnings.push(Warning::new("probes_skipped", text));
    }
}

/// Adds a warning for directions whose rate was not steady.
pub(super) fn unsteady(result: &mut ResultDocument) {
    let unsteady = result.all_measured().filter(|(_, _, measured)| !measured.is_steady());
    let parts = unsteady.map(|(load, direction, measured)| {
        let phase =
            if load == Load::Bidir { format!("{direction} of the {load} phase") } else { direction.to_string() };
        let rates = measured.thirds_bps.map(|Thirds { first, last }| {
            format!(": {} in its first third, {} in its last", quantity::rate(first), quantity::rate(last))
        });
        format!("the {phase} was not steady{}", rates.unwrap_or_default())
    });
    let parts = parts.collect::<Vec<_>>();
    if !parts.is_empty() {
        let text = format!("{}; the mean does not describe the line", parts.join("; "));
        result.warnings.push(Warning::new("not_steady", text));
    }
}

/// Adds a warning for phases in which the latency probes took a considerable share of the rate.
pub(super) fn probe_load(result: &mut ResultDocument) {
    let shares = result.latency.iter().filter_map(|(load, latency)| Some((load, latency.rate_share?)));
    let Some((load, share)) = shares.filter(|(_, share)| *share >= PROBE_LOAD).max_by(|a, b| a.1.total_cmp(&b.1))
    else {
        return;
    };
    let text = format!(
        "the latency probes took {:.1} % of the rate in the {load} and lowered it by as much: --probe-interval 1s \
         sends fewer, 0 none",
        share * 100.0
    );
    result.warnings.push(Warning::new("probe_load", text));
}

/// Adds a warning, with the reason, for directions in which the two ends counted different numbers of bytes in the
/// steady part. `is_counted_by_program` is true if an external program (iperf3) counted the bytes.
pub(super) fn steady_counts(result: &mut ResultDocument, is_counted_by_program: bool) {
    let differing = result.all_measured().filter_map(|(load, direction, measured)| {
        let sent = measured.bytes_sent?;
        let why = why_counts_differ(measured, sent, is_counted_by_program)?;
        let phase =
            if load == Load::Bidir { format!("{direction} of the {load} phase") } else { direction.to_string() };
        let received = measured.bytes_received;
        Some(format!(
            "in the steady part of the {phase} the sender counted {sent} bytes and the receiver {received}: {why}"
        ))
    });
    let differing = differing.collect::<Vec<_>>();
    if !differing.is_empty() {
        result.warnings.push(Warning::new("steady_counts_differ", differing.join("; ")));
    }
}

/// Why the sender's count `sent` differs from the receiver's count in the steady part of a direction. `None` if the
/// counts agree within 5 % or one sample. Lost datagrams do not count as a difference.
fn why_counts_differ(measured: &ThroughputResult, sent: u64, is_counted_by_program: bool) -> Option<&'static str> {
    let received = measured.bytes_received as f64;
    let kept = 1.0 - measured.udp.map_or(0.0, |udp| udp.loss);
    let expected = sent as f64 * kept;
    let fastest_bps =
        measured.interval_bps.map_or(measured.goodput_bps, |interval| interval.p90.max(measured.goodput_bps));
    let one_reading = fastest_bps as f64 / 8.0 * INTERVAL_MS as f64 / 1000.0;
    if (expected - received).abs() <= one_reading.max(received * SAME_COUNT) {
        return None;
    }
    Some(match (is_counted_by_program, measured.udp.is_some(), expected > received) {
        (true, _, true) => "iperf3 counts what it wrote into its socket, and some of that was still queued at the end",
        (true, _, false) => {
            "iperf3 counts what it wrote into its socket, and some of what arrived had been queued before"
        }
        (false, true, true) => "more datagrams were in the queues of the path at its end than at its beginning",
        (false, true, false) => "more datagrams were in the queues of the path at its beginning than at its end",
        (false, false, true) => "the receiver's host acknowledged bytes that its program had not read yet",
        (false, false, false) => "acknowledgements arrived after the end of that part, or its bytes were read late",
    })
}

/// Whether `result` already has a warning with the given code.
pub(super) fn has(result: &ResultDocument, code: &str) -> bool {
    result.warnings.iter().any(|warning| warning.code == code)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use paramedic_link::measurement::{CpuUse, DatagramTally, DirectionTally, PhaseTally};
    use paramedic_link::test_spec::{DataMode, Load, PhaseSpec};

    use super::*;
    use crate::document::{DataModeFallback, FallbackReason, IntervalSpread, UdpResult};
    use crate::stats;

    #[test]
    fn a_test_that_fell_back_to_the_tunnel_says_why() {
        let text = |reason, address: Option<&str>, found_at: Option<&str>| {
            let mut result = crate::document::example::bare();
            result.data_mode_fallback = Some(DataModeFallback {
                tried: DataMode::DirectEphemeral,
                reason,
                address: address.map(str::to_owned),
                found_at: found_at.map(|text| text.parse().unwrap()),
            });
            tunnel(&mut result);
            let warning = result.warnings.pop().unwrap();
            assert_eq!(warning.code, "direct_blocked");
            warning.text.split_once(", so the test").unwrap().0.to_owned()
        };
        let at = Some("192.0.2.1:5201");
        assert_eq!(
            text(FallbackReason::Refused, at, None),
            "every direct data connection to 192.0.2.1:5201 was refused"
        );
        assert_eq!(text(FallbackReason::Silent, at, None), "no direct data connection to 192.0.2.1:5201 got an answer");
        assert_eq!(
            text(FallbackReason::Remembered, None, Some("2026-01-31T11:00:00.123Z")),
            "a test at 2026-01-31T11:00:00Z found direct data connections blocked"
        );
    }

    #[test]
    fn a_wall_clock_that_was_set_is_warned_of() {
        let warned = |moved_ms| {
            let mut result = crate::document::example::bare();
            result.warnings.clear();
            wall_clock(&mut result, moved_ms);
            result.warnings.pop().map(|warning| warning.text)
        };
        assert_eq!((warned(0), warned(999), warned(-999)), (None, None, None));
        assert!(warned(7_200_000).unwrap().contains("moved forward by 2 h"), "{:?}", warned(7_200_000));
        assert!(warned(i64::MIN).unwrap().contains("moved back by"));
    }

    #[test]
    fn skipped_probes_are_warned_of_from_one_percent_on() {
        let warned = |skipped, sent| {
            let mut result = crate::document::example::full();
            let idle = crate::document::example::latency(12_300);
            result.latency.idle = Some(LatencyResult { skipped, sent, ..idle });
            skipped_probes(&mut result);
            result.warnings.pop().filter(|warning| warning.code == "probes_skipped").map(|warning| warning.text)
        };
        assert_eq!(warned(0, 400), None);
        assert_eq!(warned(3, 397), None);
        assert!(warned(4, 396).is_some());
        assert_eq!(
            warned(58, 342).unwrap(),
            "this device was too late to send 58 of 400 latency probes in the idle phase: spikes may be missing"
        );
    }

    #[test]
    fn counts_of_the_steady_part_that_differ_are_explained() {
        // 8 s at 8 Mbit/s: a sample has 100,000 bytes, and up to 110,000 in the fastest tenth of the samples.
        let bytes = 8_000_000;
        let measured = |sent, received, udp| {
            let mut measured = crate::document::example::throughput(8_000_000);
            measured.interval_bps = Some(IntervalSpread { p10: 7_200_000, p50: 8_000_000, p90: 8_800_000 });
            (measured.bytes_sent, measured.bytes_received, measured.udp) = (Some(sent), received, udp);
            measured
        };
        let why = |sent, received, udp, is_counted_by_program| {
            why_counts_differ(&measured(sent, received, udp), sent, is_counted_by_program)
        };
        for near in [bytes - 390_000, bytes - 100_000, bytes, bytes + 400_000] {
            assert_eq!(why(near, bytes, None, false), None, "{near}");
        }
        assert!(why(bytes + 500_000, bytes, None, false).unwrap().contains("had not read"));
        assert!(why(bytes - 500_000, bytes, None, false).unwrap().contains("acknowledgements"));
        assert!(why(bytes + 500_000, bytes, None, true).unwrap().contains("iperf3"));
        // Lost datagrams are not a difference between the counts, but queued datagrams are.
        let half = UdpResult { loss: 0.5, ..crate::document::example::throughput(1).udp.unwrap() };
        assert_eq!(why(bytes * 2, bytes, Some(half), false), None);
        assert!(why(bytes, bytes, Some(half), false).unwrap().contains("queues"));
        assert!(why(bytes * 3, bytes, Some(half), false).unwrap().contains("queues"));
        // In a short test, the bytes of one sample are more than the allowed share.
        let short = |sent| why_counts_differ(&measured(sent, 200_000, None), sent, false);
        assert_eq!((short(300_000), short(320_000).is_some()), (None, true));
        let mut result = crate::document::example::bare();
        result.warnings.clear();
        result.upload = Some(measured(bytes + 500_000, bytes, None));
        steady_counts(&mut result, false);
        assert_eq!(
            result.warnings[0].text.to_string(),
            "in the steady part of the upload the sender counted 8500000 bytes and the receiver 8000000: the receiver's \
             host acknowledged bytes that its program had not read yet"
        );
    }

    #[test]
    fn a_smaller_buffer_than_requested_is_a_warning_for_each_end_once() {
        let of = |bytes| DirectionTally { reduced_window_bytes: NonZeroU32::new(bytes), ..DirectionTally::default() };
        let phase = |load, own, theirs| {
            let mut phase = PhaseRecord::new(PhaseSpec { load, duration_ms: 1000 });
            let both =
                |bytes| PhaseTally { download: Some(of(bytes)), upload: Some(of(bytes)), ..PhaseTally::default() };
            phase.own = Some(both(own));
            phase.set_theirs(both(theirs));
            phase
        };
        let warned = |phases: &[PhaseRecord]| {
            let mut result = crate::document::example::bare();
            result.warnings.clear();
            add(&mut result, phases);
            let windows = result.warnings.into_iter().filter(|warning| warning.code.ends_with("_window"));
            windows.map(|warning| (warning.code.to_string(), warning.text.to_string())).collect::<Vec<_>>()
        };
        let eight = 8 << 20;
        assert_eq!(warned(&[phase(Load::Bidir, 0, 0)]), []);
        let both = warned(&[phase(Load::Download, eight, 0), phase(Load::Upload, eight, 425_984)]);
        let text = |whose, size| {
            format!(
                "{whose} grants socket buffers of {size}, less than -w requests; net.core.wmem_max and \
                 net.core.rmem_max limit them"
            )
        };
        let expected = [
            ("appliance_window".to_owned(), text("this device", "8MiB")),
            ("reflector_window".to_owned(), text("the reflector's host", "416KiB")),
        ];
        assert_eq!(both, expected);
    }

    #[test]
    fn datagrams_that_were_too_large_are_warned_of_if_no_icmp_said_so() {
        let warned = |is_black_hole| {
            let datagrams = DatagramTally {
                payload_bytes: Some(1232),
                sent: Some(900),
                vanished: Some(90),
                is_black_hole,
                ..DatagramTally::default()
            };
            let sender = DirectionTally { datagrams: Some(Box::new(datagrams)), ..DirectionTally::default() };
            let mut upload = PhaseRecord::new(PhaseSpec { load: Load::Upload, duration_ms: 1000 });
            upload.own = Some(PhaseTally { upload: Some(sender), ..PhaseTally::default() });
            upload.set_theirs(PhaseTally { upload: Some(DirectionTally::default()), ..PhaseTally::default() });
            let mut result = crate::document::example::bare();
            result.warnings.clear();
            add(&mut result, &[upload]);
            result.warnings.into_iter().map(|warning| warning.code.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(warned(false), Vec::<String>::new());
        assert_eq!(warned(true), ["small_datagrams"]);
    }

    #[test]
    fn a_processor_is_never_more_than_full_whatever_the_reflector_says() {
        let cpu = CpuUse {
            user_s: -1.0,
            system_s: f64::MAX,
            busiest_thread: 1e300,
            host_busy: Some(-5.0),
            held_back: Some(7.0),
            runnable: Some(9.0),
            run_queue_wait: Some(-1.0),
            core_softirq: Some(f64::MAX),
        };
        let mut upload = PhaseRecord::new(PhaseSpec { load: Load::Upload, duration_ms: 1000 });
        upload.set_theirs(PhaseTally {
            upload: Some(DirectionTally { cpu, ..DirectionTally::default() }),
            ..PhaseTally::default()
        });
        let (_, receiver) = upload.ends(Direction::Upload);
        let cpu = receiver.unwrap().cpu;
        assert_eq!((cpu.user_s, cpu.busiest_thread, cpu.host_busy), (0.0, 1.0, Some(0.0)));
        assert_eq!((cpu.runnable, cpu.run_queue_wait, cpu.core_softirq), (Some(1.0), Some(0.0), Some(1.0)));
        let limit = |cpu| stats::processor_limit(&cpu).unwrap().to_string();
        assert_eq!(limit(cpu), "a control group throttled the program for 100 % of the time");
        assert_eq!(limit(CpuUse { held_back: Some(0.01), ..cpu }), "one thread used 100 % of a core");
    }
}
