//! A fuzz target for the output of an iperf3 client.

use paramedic_iperf3::output::{ClientReport, FailureKind, MAX_READINGS, StreamParser, parse, version_of};

/// Fuzz target: parses the input as the output of an iperf3 client, once as a whole and once line by line.
pub fn iperf3_output(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(report) = parse(&text) {
        keeps_its_promises(&report);
    }
    let mut parser = StreamParser::new();
    let readings: usize = text.lines().map(|line| parser.line(line).len()).sum();
    if let Ok(report) = parser.finish() {
        keeps_its_promises(&report);
        assert_eq!(report.readings.len(), readings);
    }
    let _ = version_of(&text);
    let _ = FailureKind::of(&text);
}

fn keeps_its_promises(report: &ClientReport) {
    assert!(report.readings.len() <= MAX_READINGS);
    assert!(report.readings.iter().all(|reading| reading.begin_us <= reading.end_us));
    assert_eq!(report.failure().is_some(), report.error.is_some());
    for text in [&report.error, &report.version].into_iter().flatten() {
        assert!(text.chars().count() <= 200 && !text.chars().any(char::is_control));
    }
}
