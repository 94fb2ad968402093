//! Tests of the report sentence: a table of all situations with the sentence of each. The test also checks that
//! docs/results.md has the same table.

use super::*;
use crate::document::LimitCause;

const DOWN: Speed = Speed {
    direction: Direction::Download,
    bps: 36_200_000,
    requested_bps: None,
    window_bytes: None,
    limit: Some(LimitCause::Network),
    fullness: Fullness::Shown,
    is_brief: false,
    unsteady: None,
};
const UP: Speed = Speed { direction: Direction::Upload, bps: 9_410_000, ..DOWN };
const LOSS: LossSeen = LossSeen {
    lost: 0,
    direction: Some(Direction::Download),
    all: 0,
    of: 1_000,
    periods: 0,
    longest_probes: 1,
    longest_ms: 10,
};

/// The latency probes of a phase in which no probe was lost.
fn probes(load: Load) -> PhaseProbes {
    let increase = (load != Load::Idle).then_some((3.0, Grade::APlus));
    PhaseProbes {
        load,
        sent: 1_000,
        received: 1_000,
        median_us: Some(12_300),
        p95_us: Some(15_000),
        increase,
        loss: None,
        queue: None,
        is_own_queue: false,
    }
}

fn increased(load: Load, by_ms: f64, grade: Grade) -> PhaseProbes {
    PhaseProbes { increase: Some((by_ms, grade)), ..probes(load) }
}

fn answered(load: Load, received: u64, sent: u64) -> PhaseProbes {
    PhaseProbes { sent, received, median_us: None, p95_us: None, increase: None, ..probes(load) }
}

/// The latency probes of a phase in which `lost` of 1,000 probes were lost, each in a loss period of its own.
fn lossy(load: Load, lost: u64) -> PhaseProbes {
    let direction = if load == Load::Upload { Direction::Upload } else { Direction::Download };
    let loss = Some(LossSeen { lost, direction: Some(direction), all: lost, periods: lost, ..LOSS });
    PhaseProbes { received: 1_000 - lost, loss, ..probes(load) }
}

fn one_period(load: Load, lost: u64) -> PhaseProbes {
    let loss = Some(LossSeen { lost, all: lost, periods: 1, longest_probes: lost, longest_ms: lost * 10, ..LOSS });
    PhaseProbes { received: 1_000 - lost, loss, ..probes(load) }
}

fn seen(speeds: &[Speed], probes: &[PhaseProbes]) -> Observations {
    Observations {
        other_end: Some("attic".to_owned()),
        is_through_tunnel: false,
        completion: Completion::Complete,
        speeds: speeds.to_vec(),
        bidir_speeds: vec![],
        probes: probes.to_vec(),
        has_probe_gaps: false,
        has_path_changed: false,
        is_search_unfinished: false,
        has_paused: false,
    }
}

/// Each case: a situation in words, and the observations that describe it.
fn cases() -> Vec<(&'static str, Observations)> {
    use Load::{Bidir, Download, Idle, Upload};
    let both = [DOWN, UP];
    let fine = [probes(Idle), probes(Download), probes(Upload)];
    let with = |probes: PhaseProbes| fine.map(|fine| if fine.load == probes.load { probes } else { fine });
    let at = |bps, requested| Speed { bps, requested_bps: Some(requested), ..DOWN };
    let ended = |completion, speeds: &[Speed]| Observations { completion, ..seen(speeds, &fine[..1]) };
    let queued = |load, stands| PhaseProbes { queue: Some(stands), ..increased(load, 120.0, Grade::C) };
    let nothing = || Completion::NothingArrived("almost no payload arrived in the upload".to_owned());
    let tunneled = |seen| Observations { is_through_tunnel: true, ..seen };
    let no_queue = |speed| Speed { fullness: Fullness::NotShown, ..speed };
    let unknown = |speed| Speed { fullness: Fullness::Unknown, ..speed };
    let limited = |cause| Speed { limit: Some(cause), ..DOWN };
    let thirds = Some(Unsteady::Thirds([50_000_000, 10_000_000]));
    vec![
        ("latency hardly rises under load (A+, A)", seen(&both, &fine)),
        ("it rises a little (B)", seen(&both, &fine.map(|fine| increased(fine.load, 45.0, Grade::B)))),
        ("it rises a little in one direction", seen(&both, &with(increased(Upload, 45.0, Grade::B)))),
        (
            "`-b`, and it rises a little in one direction",
            seen(
                &both.map(|speed| Speed { requested_bps: Some(speed.bps), ..speed }),
                &with(increased(Upload, 45.0, Grade::B)),
            ),
        ),
        (
            "the median hardly rises, but some replies are slow",
            seen(&both, &with(PhaseProbes { p95_us: Some(192_000), ..probes(Download) })),
        ),
        (
            "the median hardly rises, but too few replies for their 95th percentile",
            seen(&[DOWN], &[probes(Idle), PhaseProbes { p95_us: None, ..probes(Download) }]),
        ),
        (
            "latency hardly rises, but is long while idle, too (a satellite)",
            seen(&both, &fine.map(|probes| PhaseProbes { median_us: Some(612_000), p95_us: Some(630_000), ..probes })),
        ),
        (
            "it is long while idle, and rises a little",
            seen(
                &[DOWN],
                &[
                    PhaseProbes { median_us: Some(612_000), p95_us: Some(630_000), ..probes(Idle) },
                    PhaseProbes {
                        median_us: Some(657_000),
                        p95_us: Some(670_000),
                        ..increased(Download, 45.0, Grade::B)
                    },
                ],
            ),
        ),
        ("it rises (C)", seen(&both, &with(increased(Download, 120.0, Grade::C)))),
        ("it rises much (D, F)", seen(&both, &with(increased(Upload, 240.0, Grade::D)))),
        (
            "the slow replies are slow while idle, too",
            seen(&both, &fine.map(|probes| PhaseProbes { p95_us: Some(450_000), ..probes })),
        ),
        (
            "it rises, and the queue stands in the other direction",
            seen(&[no_queue(DOWN), UP], &with(queued(Download, QueueSide::Upload))),
        ),
        (
            "it rises, and the queue stands in this device",
            seen(&both, &with(PhaseProbes { is_own_queue: true, ..queued(Upload, QueueSide::Upload) })),
        ),
        ("it rises, and the queue stands in both directions", seen(&both, &with(queued(Upload, QueueSide::Both)))),
        ("no latency probes, or no idle phase", seen(&both.map(unknown), &[])),
        ("one direction", seen(&[DOWN], &fine[..2])),
        ("`-b 2M`, reached", seen(&[at(2_000_000, 2_000_000)], &fine[..2])),
        ("`-b 2M`, reached to 2 %", seen(&[at(1_970_000, 2_000_000)], &fine[..2])),
        (
            "`-b`, reached in both directions",
            seen(&[at(1_999_000, 2_000_000), Speed { bps: 2_000_000, requested_bps: Some(2_000_000), ..UP }], &fine),
        ),
        ("`-b 50M`, not reached", seen(&[at(36_200_000, 50_000_000)], &fine[..2])),
        ("`-w 16K`, which may have been the limit", seen(&[Speed { window_bytes: Some(16_384), ..DOWN }], &fine[..2])),
        (
            "`-b`, and latency rises",
            seen(&[at(2_000_000, 2_000_000)], &[probes(Idle), increased(Download, 120.0, Grade::C)]),
        ),
        ("the appliance's processor was the limit", seen(&[limited(LimitCause::ApplianceCpu), UP], &fine)),
        (
            "the reflector's processor was the limit",
            seen(&both.map(|speed| Speed { limit: Some(LimitCause::ReflectorCpu), ..speed }), &fine),
        ),
        ("the receiver's window was the limit", seen(&[limited(LimitCause::ReceiveWindow)], &fine[..2])),
        ("the send buffer was the limit", seen(&[limited(LimitCause::SendBuffer)], &fine[..2])),
        ("an interface was close to its own speed", seen(&[limited(LimitCause::LinkRate)], &fine[..2])),
        ("other traffic may have used the line", seen(&[limited(LimitCause::OtherTraffic)], &fine[..2])),
        (
            "other traffic may have used the line, and latency rises",
            seen(&[limited(LimitCause::OtherTraffic)], &[probes(Idle), increased(Download, 120.0, Grade::C)]),
        ),
        (
            "`--bidir`, and latency rises while both directions are loaded",
            seen(&both, &[fine[0], fine[1], fine[2], increased(Bidir, 240.0, Grade::D)]),
        ),
        (
            "`--bidir`, and it is not known what limited the rates while both directions were loaded",
            Observations {
                bidir_speeds: both.map(|speed| Speed { limit: Some(LimitCause::Unknown), ..speed }).to_vec(),
                ..seen(&both, &[fine[0], fine[1], fine[2], probes(Bidir)])
            },
        ),
        (
            "`--bidir`, and the appliance's processor was the limit while both directions were loaded",
            Observations {
                bidir_speeds: both.map(|speed| Speed { limit: Some(LimitCause::ApplianceCpu), ..speed }).to_vec(),
                ..seen(&both, &[fine[0], fine[1], fine[2], increased(Bidir, 240.0, Grade::D)])
            },
        ),
        ("`-n`, and all bytes were through", seen(&[limited(LimitCause::Policy)], &fine[..2])),
        ("what limited the rate is not known", seen(&[limited(LimitCause::Unknown)], &fine[..2])),
        ("the network was the limit by lost segments, without a queue", seen(&[no_queue(DOWN), UP], &fine)),
        ("the phase was shorter than 5 s", seen(&both.map(|speed| Speed { is_brief: true, ..speed }), &fine)),
        (
            "`-u`, and the search for the highest rate did not finish",
            Observations { is_search_unfinished: true, ..seen(&[DOWN], &fine[..2]) },
        ),
        ("`-u`, and the sender paused", Observations { has_paused: true, ..seen(&[DOWN], &fine[..2]) }),
        ("the rate was not steady", seen(&[Speed { unsteady: thirds, ..DOWN }, UP], &fine)),
        (
            "the rate varied, its thirds were alike",
            seen(&[Speed { unsteady: Some(Unsteady::Spread([1_700_000, 70_000_000])), ..DOWN }], &fine[..2]),
        ),
        ("the idle path loses packets", seen(&both, &with(lossy(Idle, 21)))),
        (
            "2 of 200 idle probes lost: no proof of a loss of 1 %",
            seen(
                &both,
                &with(PhaseProbes { loss: Some(LossSeen { lost: 2, all: 2, of: 200, periods: 2, ..LOSS }), ..fine[0] }),
            ),
        ),
        (
            "2 of 24 idle probes lost",
            seen(
                &both,
                &with(PhaseProbes { loss: Some(LossSeen { lost: 2, all: 2, of: 24, periods: 2, ..LOSS }), ..fine[0] }),
            ),
        ),
        ("a burst of losses while idle", seen(&both, &with(one_period(Idle, 38)))),
        ("an outage while idle", seen(&both, &with(one_period(Idle, 120)))),
        ("packets are lost under load", seen(&both, &with(lossy(Download, 40)))),
        (
            "it loses packets, and latency rises",
            seen(&both, &with(PhaseProbes { increase: Some((240.0, Grade::D)), ..lossy(Upload, 40) })),
        ),
        (
            "fewer than half of the probes answered under load",
            seen(&[unknown(DOWN), UP], &with(answered(Download, 1, 391))),
        ),
        ("no probe answered under load", seen(&[DOWN, unknown(UP)], &with(answered(Upload, 0, 391)))),
        ("fewer than 20 probes answered", seen(&[unknown(DOWN), UP], &with(answered(Download, 8, 10)))),
        (
            "the delay changed in mid test for another reason than the load",
            Observations {
                has_path_changed: true,
                ..seen(&[unknown(DOWN), unknown(UP)], &[fine[0], PhaseProbes { increase: None, ..fine[1] }, fine[2]])
            },
        ),
        (
            "this device sent some latency probes late or not at all",
            Observations { has_probe_gaps: true, ..seen(&both, &fine) },
        ),
        (
            "the delay changed in mid test for another reason than the load, and latency rises",
            Observations { has_path_changed: true, ..seen(&both, &with(increased(Download, 120.0, Grade::C))) },
        ),
        ("no load, only latency", seen(&[], &fine[..1])),
        (
            "no load, and the delay changed in mid test",
            Observations { has_path_changed: true, ..seen(&[], &fine[..1]) },
        ),
        ("no load, and no probe answered", seen(&[], &[answered(Idle, 0, 200)])),
        ("no load, and few probes", seen(&[], &[answered(Idle, 8, 10)])),
        ("almost nothing arrived in a direction", ended(nothing(), &[DOWN])),
        ("almost nothing arrived in the only direction", ended(nothing(), &[])),
        (
            "a direction stopped in mid phase",
            ended(Completion::NothingArrived("the upload stopped after 2.4 s".to_owned()), &[DOWN]),
        ),
        ("direct mode was blocked", tunneled(seen(&both, &fine))),
        (
            "direct mode was blocked, and latency rises",
            tunneled(seen(&both, &with(increased(Upload, 240.0, Grade::D)))),
        ),
        ("direct mode was blocked, with `-b 2M`", tunneled(seen(&[at(2_000_000, 2_000_000)], &fine[..2]))),
        ("direct mode was blocked, and almost nothing arrived in a direction", tunneled(ended(nothing(), &[DOWN]))),
        ("interrupted", ended(Completion::Interrupted, &[DOWN])),
        (
            "interrupted before anything was measured",
            Observations { probes: vec![], ..ended(Completion::Interrupted, &[]) },
        ),
        ("failed before the first speed", ended(Completion::Failed, &[])),
        (
            "failed before anything was measured",
            ended(
                Completion::NothingMeasured("cannot reach attic, because the connection was refused".to_owned()),
                &[],
            ),
        ),
    ]
}

#[test]
fn each_situation_has_the_sentence_that_docs_results_has() {
    let rows =
        cases().iter().map(|(situation, seen)| format!("| {situation} | {} |", conclude(seen).1)).collect::<Vec<_>>();
    println!("\n{}", rows.join("\n"));
    let doc = include_str!("../../../../docs/results.md");
    let head = "| situation | sentence |\n|---|---|\n";
    let documented = doc.split_once(head).map(|(_, table)| table.lines().take_while(|line| line.starts_with('|')));
    assert_eq!(documented.map(Iterator::collect::<Vec<_>>).unwrap_or_default(), rows);
}

#[test]
fn a_complete_test_with_speeds_states_them() {
    for (situation, seen) in cases() {
        let text = conclude(&seen).1;
        for speed in &seen.speeds {
            assert!(text.contains(&quantity::rate(speed.bps)), "{situation}: {text}");
        }
    }
}

#[test]
fn the_line_is_claimed_only_if_the_network_may_have_been_the_limit() {
    for (situation, seen) in cases() {
        let is_limited = |speed: &Speed| speed.requested_bps.is_some() || speed.window_bytes.is_some();
        let text = conclude(&seen).1;
        if seen.speeds.iter().any(is_limited) {
            assert!(!text.contains("carries") && !text.contains(" stays "), "{situation}: {text}");
        }
        let is_other = |speed: &Speed| !matches!(speed.limit, None | Some(LimitCause::Network | LimitCause::Policy));
        if seen.speeds.iter().any(is_other) {
            assert!(text.contains("carries at least"), "{situation}: {text}");
        }
    }
}

#[test]
fn only_a_good_test_has_a_good_tone() {
    for (situation, seen) in cases() {
        let (tone, text) = conclude(&seen);
        let is_good = ["responsive", "a little slower", "median latency"].iter().any(|words| text.contains(words));
        let is_limited = text.contains("carries at least") && !text.contains("line was full");
        let doubts = [
            "processor",
            "hat limited the rate",
            "not steady",
            "did not finish",
            "sender paused",
            "late or not at all",
        ];
        let has_doubt = is_limited || doubts.iter().any(|words| text.contains(words));
        assert_eq!(tone == Tone::Good, is_good && !has_doubt, "{situation}: {text}");
    }
}
