//! Charts of the TCP statistics that the sender's kernel reported about the streams of each direction of a run.

use std::collections::BTreeMap;

use paramedic_link::phase_detail::TcpSample;
use paramedic_report::document::ResultDocument;

use super::super::chart::{Chart, ChartColumn, ChartPosition, ChartUnit, ColumnForm};
use super::direction_name;

/// The maximum number of points in a chart.
const MAX_POINTS: usize = 200;
/// The interval at which both ends read TCP statistics from their kernels, in milliseconds.
const INTERVAL_MS: u32 = 100;

/// The TCP statistics of all streams in one interval, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct StreamsSample {
    /// The number of round-trip times, and their sum in microseconds.
    rtt: (u32, u64),
    /// The number of congestion windows, and their sum in segments.
    cwnd: (u32, u64),
}

/// The charts of every direction: round-trip times and congestion windows at the sender.
pub(super) fn charts(document: &ResultDocument) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (load, direction, result) in document.all_measured() {
        let points = points(&result.tcp.sender);
        if points.len() < 2 {
            continue;
        }
        let (title, class) = direction_name(load, direction);
        let colour = if class == "download" { "--download" } else { "--upload" };
        let id = format!("tcp-{load}-{class}");
        let second = |at_ms: u32| ChartPosition::Second(f64::from(at_ms) / 1000.0);
        let end = points.last().map_or(0, |(at_ms, _)| *at_ms);
        let chart = |id: String, title: String, unit, name, summary, of: fn(&StreamsSample) -> Option<f64>| Chart {
            id,
            title,
            summary,
            unit,
            range: [second(0), second(end)],
            row_head: "Second",
            columns: vec![ChartColumn::new(name, colour, ColumnForm::Line)],
            rows: points.iter().map(|(at_ms, sample)| (second(*at_ms), vec![of(sample)])).collect(),
            download: None,
        };
        let streams =
            result.tcp.sender.iter().map(|sample| sample.stream).collect::<std::collections::BTreeSet<_>>().len();
        let medians = result.tcp.medians().map(|[rtt, least, cwnd]| {
            let micros = |us: u32| ChartUnit::Micros.text(f64::from(us));
            let rtt =
                format!("Median {}, the smallest {}, of {streams} streams, by TCP_INFO.", micros(rtt), micros(least));
            (rtt, format!("Median of a stream {cwnd} segments, of {streams} streams."))
        });
        let (of_rtt, of_cwnd) = medians.unwrap_or_default();
        let rtt = |sample: &StreamsSample| (sample.rtt.0 > 0).then(|| sample.rtt.1 as f64 / f64::from(sample.rtt.0));
        let cwnd = |sample: &StreamsSample| (sample.cwnd.0 > 0).then_some(sample.cwnd.1 as f64);
        charts.push(chart(
            format!("{id}-rtt"),
            format!("{title}: TCP round trip at the sender"),
            ChartUnit::Micros,
            "Mean of the streams",
            of_rtt,
            rtt,
        ));
        charts.push(chart(
            format!("{id}-cwnd"),
            format!("{title}: congestion window"),
            ChartUnit::Count,
            "All streams together, in segments",
            of_cwnd,
            cwnd,
        ));
    }
    charts
}

/// Merges samples into at most [`MAX_POINTS`] intervals, each with its end in milliseconds.
fn points(samples: &[TcpSample]) -> Vec<(u32, StreamsSample)> {
    let last = samples.iter().map(|sample| sample.at_ms).max().unwrap_or(0);
    let most = u32::try_from(MAX_POINTS).unwrap_or(u32::MAX);
    let step = last.div_ceil(most).max(INTERVAL_MS);
    // The latest sample of each stream in each interval.
    let mut latest = BTreeMap::<u32, BTreeMap<u16, &TcpSample>>::new();
    for sample in samples {
        latest.entry(sample.at_ms.div_ceil(step).max(1)).or_default().insert(sample.stream, sample);
    }
    let merged = latest.into_iter().map(|(number, streams)| {
        let mut merged = StreamsSample::default();
        for sample in streams.values() {
            let add = |sum: &mut (u32, u64), value: Option<u32>| {
                if let Some(value) = value {
                    *sum = (sum.0 + 1, sum.1 + u64::from(value));
                }
            };
            add(&mut merged.rtt, sample.rtt_us);
            add(&mut merged.cwnd, sample.cwnd);
        }
        (number.saturating_mul(step), merged)
    });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;

    use super::*;

    #[test]
    fn streams_are_merged_by_interval() {
        let sample = |at_ms, stream, rtt_us, cwnd| TcpSample {
            at_ms,
            stream,
            rtt_us: Some(rtt_us),
            cwnd: Some(cwnd),
            ..TcpSample::default()
        };
        let samples = [sample(95, 0, 10, 4), sample(100, 0, 20, 5), sample(100, 1, 40, 7), sample(200, 0, 9, 1)];
        let expected =
            [(100, StreamsSample { rtt: (2, 60), cwnd: (2, 12) }), (200, StreamsSample { rtt: (1, 9), cwnd: (1, 1) })];
        assert_eq!(points(&samples), expected);
        let long = (0..100_000).map(|at| sample(at * 100, 0, 1, 1)).collect::<Vec<_>>();
        assert!(points(&long).len() <= MAX_POINTS + 1);
        assert_eq!(points(&[sample(u32::MAX, 0, 1, 1)]).len(), 1);
    }

    #[test]
    fn a_direction_with_samples_has_charts() {
        let mut document = example::full();
        document.bidir = None;
        assert!(charts(&document).is_empty(), "a single sample is no chart");
        let tcp = &mut document.download.as_mut().unwrap().tcp.sender;
        tcp.push(TcpSample { at_ms: 200, ..tcp[0] });
        let charts = charts(&document);
        assert_eq!(
            charts.iter().map(|chart| chart.id.as_str()).collect::<Vec<_>>(),
            ["tcp-download-download-rtt", "tcp-download-download-cwnd"]
        );
        assert!(charts[0].summary.contains("Median 24.6 ms, the smallest 12.1 ms"), "{}", charts[0].summary);
    }
}
