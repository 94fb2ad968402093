//! Numbers out of what both programs print. Pure; trusts neither document to have what it should.

use serde_json::Value;

use crate::cells::{Cell, Direction, Engine};

/// What one run received.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Received {
    /// Bits a second; both directions together, where both were asked for.
    pub(crate) bps: f64,
    /// Bytes of the whole run.
    pub(crate) bytes: u64,
    /// The share of datagrams that was lost.
    pub(crate) loss: Option<f64>,
}

/// Out of our result document, or why not.
pub(crate) fn ours(cell: &Cell, document: &Value) -> Result<Received, String> {
    if let Some(what) = document["what"].as_str() {
        let because = document["because"].as_str().unwrap_or_default();
        return Err(format!("{what} (because: {because})"));
    }
    if document["complete"] != true {
        return Err("the test is not complete".to_owned());
    }
    if cell.ours.engine == Engine::Iperf3 {
        let raw = &document["program"]["raw"][cell.direction.to_string()];
        // Of a version that streams its report, the end is the last event.
        let events = raw.as_array().and_then(|events| events.iter().rev().find(|event| event["event"] == "end"));
        return theirs_end(cell, events.map_or(&raw["end"], |event| &event["data"]));
    }
    let of = |field: &str| -> Result<Vec<f64>, String> {
        let parts = match cell.direction {
            Direction::Download => vec![&document["download"]],
            Direction::Upload => vec![&document["upload"]],
            Direction::Both => vec![&document["bidir"]["download"], &document["bidir"]["upload"]],
        };
        let number = |part: &Value| part[field].as_f64().ok_or_else(|| format!("the result has no {field}"));
        parts.into_iter().map(number).collect()
    };
    let phases =
        [&document["download"], &document["upload"], &document["bidir"]["download"], &document["bidir"]["upload"]];
    let bytes = phases.iter().filter_map(|phase| phase["total_bytes_received"].as_u64()).sum();
    let loss = match cell.direction {
        Direction::Download => document["download"]["udp"]["loss"].as_f64(),
        Direction::Upload => document["upload"]["udp"]["loss"].as_f64(),
        Direction::Both => None,
    };
    Ok(Received { bps: of("goodput_bps")?.iter().sum(), bytes, loss })
}

/// Out of iperf3's JSON, or why not.
pub(crate) fn theirs(cell: &Cell, document: &Value) -> Result<Received, String> {
    match document["error"].as_str() {
        // Its exit code says nothing of that.
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
        bps += sum["bits_per_second"].as_f64().ok_or("iperf3 told no sum of what was received")?;
        bytes += sum["bytes"].as_u64().ok_or("iperf3 told no bytes")?;
    }
    let loss = cell.payload.and_then(|_| sums[0]["lost_percent"].as_f64()).map(|percent| percent / 100.0);
    Ok(Received { bps, bytes, loss })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cells::plan;

    fn cell(name: &str) -> Cell {
        plan(false, 1, None).into_iter().find(|cell| cell.name == name).unwrap()
    }

    #[test]
    fn both_directions_are_a_sum_at_both_sides() {
        let cell = cell("loopback/tcp/direct/4/both/cubic");
        let phase = |bps: u64| json!({ "goodput_bps": bps, "total_bytes_received": bps / 8 });
        let document = json!({
            "complete": true, "download": phase(80), "upload": phase(160),
            "bidir": { "download": phase(16), "upload": phase(32) },
        });
        assert_eq!(ours(&cell, &document), Ok(Received { bps: 48.0, bytes: 36, loss: None }));
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
            let document = json!({ "complete": true, "program": { "raw": { "upload": raw } } });
            assert_eq!(ours(&cell, &document), Ok(Received { bps: 9.5, bytes: 3, loss: None }));
        }
    }

    #[test]
    fn loss_is_a_share_at_both_sides() {
        let cell = cell("loopback/udp/direct/1/download/1400");
        let download = json!({ "goodput_bps": 8, "total_bytes_received": 1, "udp": { "loss": 0.01 } });
        let document = json!({ "complete": true, "download": download });
        assert_eq!(ours(&cell, &document).unwrap().loss, Some(0.01));
        let sum = json!({ "bits_per_second": 8.0, "bytes": 1, "lost_percent": 2.5 });
        assert_eq!(theirs(&cell, &json!({ "end": { "sum_received": sum } })).unwrap().loss, Some(0.025));
    }

    #[test]
    fn errors_are_told_in_the_programs_words() {
        let cell = cell("loopback/tcp/direct/4/download/cubic");
        let document = json!({ "schema": "packetparamedic.error/1", "what": "cannot", "because": "busy" });
        assert_eq!(ours(&cell, &document), Err("cannot (because: busy)".to_owned()));
        assert_eq!(theirs(&cell, &json!({ "error": "refused", "end": {} })), Err("refused".to_owned()));
        for document in [json!(null), json!({}), json!({ "complete": true }), json!([1]), json!("x")] {
            assert!(ours(&cell, &document).is_err() && theirs(&cell, &document).is_err(), "{document}");
        }
    }
}
