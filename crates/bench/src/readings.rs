//! Reads numbers from the output of both sides' programs. Pure; does not trust the output to be valid.

use paramedic_link::test_spec::Load;
use paramedic_report::document::{ErrorDocument, ResultDocument};
use serde_json::Value;

use crate::cells::{Cell, Direction, Engine};

/// What the receiver of one run counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Received {
    /// The received payload in bits per second: the sum of both directions if both were requested.
    pub(crate) bps: f64,
    /// The received payload of the whole run, in bytes.
    pub(crate) bytes: u64,
    /// The share of the datagrams that were lost, from 0 to 1; `None` with TCP.
    pub(crate) loss: Option<f64>,
}

/// Reads what our program printed with `--json`. An error states why there is no result.
pub(crate) fn ours(cell: &Cell, printed: &str) -> Result<Received, String> {
    if let Ok(ErrorDocument { error, .. }) = serde_json::from_str(printed) {
        return Err(format!("{} (because: {})", error.what, error.because));
    }
    let result = serde_json::from_str::<ResultDocument>(printed)
        .map_err(|error| format!("the output is not a result document: {error}"))?;
    if !result.complete {
        return Err("the test ended before it was complete".to_owned());
    }
    let load = match cell.direction {
        Direction::Download => Load::Download,
        Direction::Upload => Load::Upload,
        Direction::Both => Load::Bidir,
    };
    if cell.ours.engine == Engine::Iperf3 {
        let raw = result.program.as_ref().and_then(|program| program.raw.of(load));
        let raw = raw.ok_or("the result does not contain the output of iperf3")?;
        // A version of iperf3 that streams its report puts the totals into its last event `end`.
        let events = raw.as_array().and_then(|events| events.iter().rev().find(|event| event["event"] == "end"));
        return theirs_end(cell, events.map_or(&raw["end"], |event| &event["data"]));
    }
    let measured = load.directions().iter().map(|way| result.measured(load, *way));
    let measured = measured.collect::<Option<Vec<_>>>().ok_or("the result lacks a requested direction")?;
    let totals = result.all_measured().filter_map(|(_, _, measured)| measured.total_bytes_received);
    let loss = match measured.as_slice() {
        [only] => only.udp.map(|udp| udp.loss),
        _ => None,
    };
    Ok(Received { bps: measured.iter().map(|one| one.goodput_bps as f64).sum(), bytes: totals.sum(), loss })
}

/// Reads the JSON document of iperf3. An error states why there is no result.
pub(crate) fn theirs(cell: &Cell, document: &Value) -> Result<Received, String> {
    match document["error"].as_str() {
        // The exit code of iperf3 does not show such an error.
        Some(error) => Err(error.to_owned()),
        None => theirs_end(cell, &document["end"]),
    }
}

fn theirs_end(cell: &Cell, end: &Value) -> Result<Received, String> {
    let sums = match cell.direction {
        Direction::Both => vec![&end["sum_received"], &end["sum_received_bidir_reverse"]],
        _ => vec![&end["sum_received"]],
    };
    let (mut bps, mut bytes) = (0.0, 0);
    for sum in &sums {
        bps += sum["bits_per_second"].as_f64().ok_or("the output of iperf3 has no rate of the receiver")?;
        bytes += sum["bytes"].as_u64().ok_or("the output of iperf3 has no number of received bytes")?;
    }
    let loss = cell.payload.and_then(|_| sums[0]["lost_percent"].as_f64()).map(|percent| percent / 100.0);
    Ok(Received { bps, bytes, loss })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use paramedic_report::document::{BidirResult, ThroughputResult, UdpResult, example};

    use super::*;
    use crate::cells::plan;

    fn cell(name: &str) -> Cell {
        plan(false, 1, None).into_iter().find(|cell| cell.name == name).unwrap()
    }

    #[test]
    fn both_directions_are_a_sum_at_both_sides() {
        let cell = cell("loopback/tcp/direct/4/both/cubic");
        let phase = |bps: u64| {
            Some(ThroughputResult { total_bytes_received: Some(bps / 8), udp: None, ..example::throughput(bps) })
        };
        let bidir = Some(BidirResult { download: phase(16), upload: phase(32) });
        let result = ResultDocument { download: phase(80), upload: phase(160), bidir, ..example::full() };
        assert_eq!(ours(&cell, &result.to_text().unwrap()), Ok(Received { bps: 48.0, bytes: 36, loss: None }));
        let sum = |bps: f64| json!({ "bits_per_second": bps, "bytes": 7 });
        let document = json!({ "end": { "sum_received": sum(3.0), "sum_received_bidir_reverse": sum(4.0) } });
        assert_eq!(theirs(&cell, &document), Ok(Received { bps: 7.0, bytes: 14, loss: None }));
    }

    #[test]
    fn the_lane_is_read_as_iperf3_is() {
        let cell = cell("loopback/iperf3/direct/4/upload/cubic");
        let end = json!({ "sum_received": { "bits_per_second": 9.5, "bytes": 3 } });
        let streamed = json!([{ "event": "start", "data": {} }, { "event": "end", "data": end }]);
        for raw in [json!({ "end": end }), streamed] {
            let mut result = example::full();
            result.program.as_mut().unwrap().raw.set(Load::Upload, raw);
            assert_eq!(ours(&cell, &result.to_text().unwrap()), Ok(Received { bps: 9.5, bytes: 3, loss: None }));
        }
    }

    #[test]
    fn loss_is_a_share_at_both_sides() {
        let cell = cell("loopback/udp/direct/1/download/1400");
        let udp = example::throughput(8).udp.map(|udp| UdpResult { loss: 0.01, ..udp });
        let download = Some(ThroughputResult { udp, ..example::throughput(8) });
        let result = ResultDocument { download, ..example::full() };
        assert_eq!(ours(&cell, &result.to_text().unwrap()).unwrap().loss, Some(0.01));
        let sum = json!({ "bits_per_second": 8.0, "bytes": 1, "lost_percent": 2.5 });
        assert_eq!(theirs(&cell, &json!({ "end": { "sum_received": sum } })).unwrap().loss, Some(0.025));
    }

    #[test]
    fn errors_are_told_in_the_programs_words() {
        let cell = cell("loopback/tcp/direct/4/download/cubic");
        let error = json!({ "schema": "packetparamedic.error/1", "code": "x", "what": "cannot", "because": "busy", "try": "x" });
        assert_eq!(ours(&cell, &error.to_string()), Err("cannot (because: busy)".to_owned()));
        assert_eq!(theirs(&cell, &json!({ "error": "refused", "end": {} })), Err("refused".to_owned()));
        for document in [json!(null), json!({}), json!({ "complete": true }), json!([1]), json!("x")] {
            assert!(ours(&cell, &document.to_string()).is_err() && theirs(&cell, &document).is_err(), "{document}");
        }
    }
}
