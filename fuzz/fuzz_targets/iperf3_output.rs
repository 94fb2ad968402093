//! Feeds bytes to the parser of iperf3's output, as a whole and line by line. Nothing may panic, and what is read must
//! keep the parser's promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paramedic_engines::iperf3::output::{Complaint, Live, MAX_READINGS, Report, parse, version_of};

fn check(report: &Report) {
    assert!(report.readings.len() <= MAX_READINGS);
    assert!(report.readings.iter().all(|reading| reading.begin_us <= reading.end_us));
    assert_eq!(report.failure().is_some(), report.error.is_some());
    for text in [&report.error, &report.version].into_iter().flatten() {
        assert!(text.chars().count() <= 200 && !text.chars().any(char::is_control));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(report) = parse(&text) {
        check(&report);
    }
    let mut live = Live::new();
    let readings: usize = text.lines().map(|line| live.line(line).len()).sum();
    if let Ok(report) = live.finish() {
        check(&report);
        assert_eq!(report.readings.len(), readings);
    }
    let _ = version_of(&text);
    let _ = Complaint::of(&text);
});
