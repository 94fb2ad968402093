//! A self-test document for tests: one rate, one missing rate, no facts.

use super::*;

/// A self-test document with one rate and as few other fields as possible.
pub(crate) fn measured() -> SelfTest {
    let word = |word: &str| Some(PeerText::new(word));
    let rate = |goodput_bps| {
        let data_path = MovedBy { sender: word("splice"), receiver: word("trunc") };
        Some(DirectionRate { goodput_bps, bytes_received: 1, duration_ms: 1, data_path })
    };
    let direct = DataMode::DirectEphemeral;
    SelfTest {
        schema: SelfTestSchema::V1,
        program: Role::Reflector,
        version: "1.2.3".to_owned(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        verdict: Verdict::default(),
        weak_points: vec![],
        rates: vec![LoopbackRate {
            engine: "tcp".to_owned(),
            data_mode: direct,
            streams: 2,
            download: rate(9_430_000_000),
            upload: rate(941_000_000),
        }],
        not_measured: vec![NotMeasured {
            engine: "iperf3".to_owned(),
            data_mode: direct,
            direction: Some(Direction::Upload),
            because: "iperf3 is not installed".to_owned(),
        }],
        facts: Facts::default(),
    }
}
