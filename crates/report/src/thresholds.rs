//! The thresholds that a user sets for a result, and the comparison of a result with them. Pure: no I/O, no clock.

use paramedic_link::test_spec::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::{LatencyResult, Quantity, ResultDocument, ThresholdResult};

/// The thresholds that a user sets for a result. An absent threshold is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Thresholds {
    /// The lowest accepted download goodput, in bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_download_bps: Option<u64>,
    /// The lowest accepted upload goodput, in bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_upload_bps: Option<u64>,
    /// The highest accepted median round trip of the idle path, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_idle_latency_ms: Option<f64>,
    /// The highest accepted median round trip under load, in milliseconds. The load with the highest median counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loaded_latency_ms: Option<f64>,
    /// The highest accepted loss share (0 to 1) of the path itself, in either direction. Limits the loss of probes on
    /// the idle path, and the loss of datagrams that are sent at a requested rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loss: Option<f64>,
    /// The highest accepted loss share (0 to 1) under the test's own load, in either direction. Limits the loss of
    /// probes under load, and the loss of datagrams at the highest rate that the test's rate search found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loaded_loss: Option<f64>,
}

impl Thresholds {
    /// Compares the result with each threshold. The comparison uses the measured value itself, not its confidence
    /// interval. If a value was not measured, its threshold is not met.
    pub fn judge(&self, result: &ResultDocument) -> Vec<ThresholdResult> {
        let through_tunnel = result.data_mode_fallback.is_some();
        let at_least = |name: &str, limit: Option<u64>, measured: Option<u64>| {
            limit.map(|limit| ThresholdResult {
                name: name.to_owned(),
                limit: Quantity::Whole(limit),
                measured: measured.map(Quantity::Whole),
                passed: measured.is_some_and(|measured| measured >= limit),
                through_tunnel,
            })
        };
        let at_most = |name: &str, limit: Option<f64>, measured: Option<f64>| {
            limit.map(|limit| ThresholdResult {
                name: name.to_owned(),
                limit: Quantity::Fraction(limit),
                measured: measured.map(Quantity::Fraction),
                passed: measured.is_some_and(|measured| measured <= limit),
                through_tunnel,
            })
        };
        let goodput = |direction: Option<&crate::document::ThroughputResult>| direction.map(|d| d.goodput_bps);
        let loaded = || result.latency.iter().filter(|(load, _)| *load != Load::Idle).map(|(_, latency)| latency);
        // If the value under one load is unknown, the largest value is unknown too.
        let largest_of_all = |of: fn(&LatencyResult) -> Option<f64>| {
            loaded().map(of).collect::<Option<Vec<_>>>().and_then(|all| largest(all.into_iter().map(Some)))
        };
        // At a requested rate, the path causes the loss. At the highest rate, the datagrams themselves fill a queue and
        // cause the loss.
        let is_at_fixed_rate = result.requested.is_some_and(|requested| requested.stream_bitrate_bps.is_some());
        let datagrams = |are_judged: bool| {
            let losses = result.all_measured().map(|(_, _, measured)| Some(measured.udp?.loss));
            largest(losses.filter(|_| are_judged))
        };
        let idle_loss = result.latency.idle.as_ref().and_then(LatencyResult::worst_loss);
        let loaded_loss = largest_of_all(LatencyResult::worst_loss);
        let judged = [
            at_least("min_download_bps", self.min_download_bps, goodput(result.download.as_ref())),
            at_least("min_upload_bps", self.min_upload_bps, goodput(result.upload.as_ref())),
            at_most("max_idle_latency_ms", self.max_idle_latency_ms, result.latency.idle.as_ref().and_then(median_ms)),
            at_most("max_loaded_latency_ms", self.max_loaded_latency_ms, largest_of_all(median_ms)),
            at_most("max_loss", self.max_loss, largest([idle_loss, datagrams(is_at_fixed_rate)])),
            at_most("max_loaded_loss", self.max_loaded_loss, largest([loaded_loss, datagrams(!is_at_fixed_rate)])),
        ];
        judged.into_iter().flatten().collect()
    }
}

fn median_ms(latency: &LatencyResult) -> Option<f64> {
    latency.median_us().map(|us| us as f64 / 1000.0)
}

fn largest(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    values.into_iter().flatten().reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{RequestedLimits, UdpResult, example};

    #[test]
    fn without_enough_answers_no_latency_threshold_is_met() {
        let thresholds =
            Thresholds { max_idle_latency_ms: Some(1e6), max_loaded_latency_ms: Some(1e6), ..Thresholds::default() };
        // Too few answers: 1 of 391, 19 of 19, 40 of 81. Enough answers: 40 of 80.
        for (received, sent, is_met) in [(1, 391, false), (19, 19, false), (40, 81, false), (40, 80, true)] {
            let few = LatencyResult { received, sent, ..example::latency(10_000) };
            let mut result = example::full();
            (result.latency.idle, result.latency.download) = (Some(few.clone()), Some(few));
            for judged in thresholds.judge(&result) {
                assert_eq!(
                    (judged.measured.is_some(), judged.passed),
                    (is_met, is_met),
                    "{received} of {sent}: {judged:?}"
                );
            }
        }
    }

    #[test]
    fn without_answered_probes_no_threshold_is_met() {
        let mut result = example::full();
        let silent = LatencyResult {
            rtt_us: None,
            received: 0,
            loss: Some(1.0),
            loss_upload: None,
            loss_download: None,
            ..example::latency(10_000)
        };
        result.latency.upload = Some(silent);
        let thresholds =
            Thresholds { max_loaded_latency_ms: Some(1e6), max_loaded_loss: Some(0.5), ..Thresholds::default() };
        let judged =
            thresholds.judge(&result).into_iter().map(|judged| (judged.measured, judged.passed)).collect::<Vec<_>>();
        assert_eq!(judged, [(None, false), (Some(Quantity::Fraction(1.0)), false)]);
        // One answer to many probes is too few, too.
        result.latency.upload = Some(LatencyResult { received: 1, sent: 391, ..example::latency(10_000) });
        assert_eq!(thresholds.judge(&result)[0].measured, None);
    }

    #[test]
    fn the_loss_of_the_path_and_the_loss_under_load_are_judged_apart() {
        let lossy = |loss| LatencyResult { loss_upload: Some(loss), ..example::latency(10_000) };
        let mut result = example::full();
        result.latency.idle = Some(lossy(0.001));
        result.latency.upload = Some(lossy(0.04));
        let datagrams = |result: &mut ResultDocument, loss| {
            let download = result.download.as_mut().unwrap();
            download.udp = Some(UdpResult { loss, ..download.udp.unwrap() });
        };
        datagrams(&mut result, 0.02);
        let measured = |result: &ResultDocument| {
            let thresholds = Thresholds { max_loss: Some(0.01), max_loaded_loss: Some(0.01), ..Thresholds::default() };
            thresholds.judge(result).into_iter().map(|judged| judged.measured).collect::<Vec<_>>()
        };
        let fraction = |fraction| Some(Quantity::Fraction(fraction));
        let limits = RequestedLimits { streams: 4, ..RequestedLimits::default() };
        result.requested = Some(limits);
        assert_eq!(measured(&result), [fraction(0.001), fraction(0.04)], "the highest rate fills the queue");
        result.requested = Some(RequestedLimits { stream_bitrate_bps: Some(1_000_000), ..limits });
        assert_eq!(measured(&result), [fraction(0.02), fraction(0.04)], "a requested rate does not");
        // Without the probes of one load, the largest loss under load is unknown. Without an idle phase, the loss of
        // the path is unknown.
        let over_tcp = LatencyResult { loss: None, loss_upload: None, loss_download: None, ..example::latency(10_000) };
        (result.latency.idle, result.latency.bidir) = (None, Some(over_tcp));
        for measured in [&mut result.download, &mut result.upload] {
            measured.as_mut().unwrap().udp = None;
        }
        result.bidir = None;
        assert_eq!(measured(&result), [None, None]);
    }

    #[test]
    fn each_threshold_is_judged_and_one_without_a_measurement_is_not_met() {
        let result = ResultDocument { upload: None, ..example::full() };
        let thresholds = Thresholds {
            min_download_bps: Some(900_000_000),
            min_upload_bps: Some(1),
            max_idle_latency_ms: Some(12.0),
            max_loaded_latency_ms: Some(41.0),
            max_loss: Some(0.001),
            max_loaded_loss: Some(0.000_9),
        };
        let passed =
            thresholds.judge(&result).into_iter().map(|judged| (judged.name, judged.passed)).collect::<Vec<_>>();
        let expected = [
            ("min_download_bps", true),
            ("min_upload_bps", false),
            ("max_idle_latency_ms", false),
            ("max_loaded_latency_ms", true),
            ("max_loss", true),
            ("max_loaded_loss", false),
        ];
        assert_eq!(passed, expected.map(|(name, passed)| (name.to_owned(), passed)));
        assert!(Thresholds::default().judge(&result).is_empty());
    }
}
