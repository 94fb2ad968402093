//! Tests that observations lead to the right cause: a table of observations, each with the expected cause.

use super::*;
use crate::document::Quantity;

/// The processor use of an end whose busiest thread ran or waited for a processor for `share` of the time.
fn runnable(share: f64) -> CpuUse {
    CpuUse { busiest_thread: share.min(0.5), runnable: Some(share), run_queue_wait: Some(0.01), ..CpuUse::default() }
}

fn shares(busy: f64, receive_window: f64, send_buffer: f64) -> Option<StreamShares> {
    Some(StreamShares { busy, receive_window, send_buffer })
}

/// The observations of a path that is full at 94.1 Mbit/s over TCP: idle processors, streams that wait for the path, a
/// queue, losses.
fn filled() -> LimitObservations {
    LimitObservations {
        goodput_bps: 94_100_000,
        wire_bps: Some(99_900_000),
        cpu: [Some(runnable(0.3)); 2],
        streams: shares(0.99, 0.02, 0.0),
        retransmits: Some(12),
        queue_ms: Some(12.3),
        ..LimitObservations::default()
    }
}

fn interface(mbps: u64, duplex: Duplex) -> InterfaceUse {
    InterfaceUse { speed_bps: Some(mbps * 1_000_000), duplex: Some(duplex), ..InterfaceUse::default() }
}

fn with_other(bps: f64) -> InterfaceUse {
    InterfaceUse { other_bps: Some(bps), other_idle_bps: Some(bps / 2.0), ..InterfaceUse::default() }
}

fn throttled() -> CpuUse {
    CpuUse { held_back: Some(0.9), ..runnable(0.99) }
}

/// Each case: a description, the observations, the expected cause, and the name of the expected first evidence.
fn cases() -> Vec<(&'static str, LimitObservations, LimitCause, &'static str)> {
    use LimitCause::*;
    let no_wait_known = CpuUse { runnable: None, ..runnable(0.3) };
    let none = InterfaceUse::default();
    let udp = |lost, goodput_bps| LimitObservations {
        goodput_bps,
        streams: None,
        retransmits: None,
        datagrams: Some(DatagramsLost { lost, sent: 10_000 }),
        ..filled()
    };
    vec![
        ("a queue and losses", filled(), Network, "path_share"),
        ("a queue without losses", LimitObservations { retransmits: Some(0), ..filled() }, Network, "path_share"),
        ("losses without a queue", LimitObservations { queue_ms: Some(0.1), ..filled() }, Network, "path_share"),
        ("losses, and latency was not probed", LimitObservations { queue_ms: None, ..filled() }, Network, "path_share"),
        (
            "neither queue nor loss",
            LimitObservations { queue_ms: Some(0.1), retransmits: Some(0), ..filled() },
            Unknown,
            "runnable_share",
        ),
        (
            "a queue of one packet on a slow line",
            LimitObservations { goodput_bps: 1_000_000, queue_ms: Some(12.0), retransmits: Some(0), ..filled() },
            Unknown,
            "runnable_share",
        ),
        (
            "the streams had nothing to send",
            LimitObservations { streams: shares(0.4, 0.0, 0.0), ..filled() },
            Unknown,
            "runnable_share",
        ),
        ("the kernel reports no times", LimitObservations { streams: None, ..filled() }, Unknown, "runnable_share"),
        (
            "the appliance reports no run-queue wait",
            LimitObservations { cpu: [Some(no_wait_known), Some(runnable(0.3))], ..filled() },
            Unknown,
            "runnable_share",
        ),
        (
            "the other end reports no processor",
            LimitObservations { cpu: [Some(runnable(0.3)), None], ..filled() },
            Unknown,
            "runnable_share",
        ),
        (
            "a thread is close to its limit",
            LimitObservations { cpu: [Some(runnable(0.9)), Some(runnable(0.3))], ..filled() },
            Unknown,
            "runnable_share",
        ),
        (
            "a core is close to its limit",
            LimitObservations {
                cpu: [Some(runnable(0.3)), Some(CpuUse { core_softirq: Some(0.87), ..runnable(0.3) })],
                ..filled()
            },
            Unknown,
            "runnable_share",
        ),
        (
            "nothing is known",
            LimitObservations { goodput_bps: 94_100_000, ..LimitObservations::default() },
            Unknown,
            "",
        ),
        (
            "a control group throttles the appliance",
            LimitObservations { cpu: [Some(throttled()), Some(runnable(0.2))], ..filled() },
            ApplianceCpu,
            "throttled_share",
        ),
        (
            "a control group throttles the reflector, whose window then stops the sender",
            LimitObservations {
                cpu: [Some(runnable(0.2)), Some(throttled())],
                streams: shares(0.99, 0.8, 0.0),
                ..filled()
            },
            ReflectorCpu,
            "throttled_share",
        ),
        (
            "both processors are full, the reflector's more",
            LimitObservations {
                cpu: [Some(CpuUse { held_back: Some(0.4), ..runnable(0.9) }), Some(throttled())],
                ..filled()
            },
            ReflectorCpu,
            "throttled_share",
        ),
        (
            "a thread always waits for a processor",
            LimitObservations {
                cpu: [Some(CpuUse { run_queue_wait: Some(0.6), ..runnable(0.97) }), Some(runnable(0.2))],
                ..filled()
            },
            ApplianceCpu,
            "run_queue_wait_share",
        ),
        (
            "one core does nothing but soft interrupts",
            LimitObservations {
                cpu: [Some(runnable(0.2)), Some(CpuUse { core_softirq: Some(0.97), ..runnable(0.2) })],
                ..filled()
            },
            ReflectorCpu,
            "core_softirq_share",
        ),
        (
            "a small window, and no queue",
            LimitObservations {
                streams: shares(0.99, 0.9, 0.0),
                queue_ms: Some(0.2),
                retransmits: Some(0),
                ..filled()
            },
            ReceiveWindow,
            "receive_window_share",
        ),
        (
            "a small window, and latency was not probed",
            LimitObservations { streams: shares(0.99, 0.9, 0.0), queue_ms: None, ..filled() },
            ReceiveWindow,
            "receive_window_share",
        ),
        (
            "a small window that fills the queue of the line all the same",
            LimitObservations { streams: shares(0.99, 0.9, 0.0), retransmits: Some(0), ..filled() },
            Network,
            "path_share",
        ),
        (
            "small socket buffers at both ends, as `-w` sets them",
            LimitObservations {
                streams: shares(1.0, 0.2, 0.24),
                queue_ms: Some(0.0),
                retransmits: Some(0),
                ..filled()
            },
            ReceiveWindow,
            "receive_window_share",
        ),
        (
            "a window that is reached now and then on a path that loses packets",
            LimitObservations { streams: shares(1.0, 0.3, 0.0), queue_ms: Some(0.2), ..filled() },
            Network,
            "path_share",
        ),
        (
            "a small send buffer",
            LimitObservations { streams: shares(0.99, 0.02, 0.6), queue_ms: Some(0.2), ..filled() },
            SendBuffer,
            "send_buffer_share",
        ),
        (
            "an interface at its speed",
            LimitObservations { interfaces: [interface(100, Duplex::Full), none], ..filled() },
            LinkRate,
            "interface_speed_bps",
        ),
        (
            "an interface in half duplex",
            LimitObservations {
                goodput_bps: 72_000_000,
                wire_bps: Some(76_000_000),
                interfaces: [none, interface(100, Duplex::Half)],
                ..filled()
            },
            LinkRate,
            "interface_speed_bps",
        ),
        (
            "an interface with room left",
            LimitObservations { interfaces: [interface(1000, Duplex::Full); 2], ..filled() },
            Network,
            "path_share",
        ),
        (
            "a driver that reports a speed it does not have",
            LimitObservations { interfaces: [interface(10, Duplex::Full), none], ..filled() },
            Network,
            "path_share",
        ),
        (
            "other traffic on the line",
            LimitObservations { interfaces: [none, with_other(40e6)], ..filled() },
            OtherTraffic,
            "other_bps",
        ),
        (
            "little other traffic",
            LimitObservations { interfaces: [with_other(5e6), none], ..filled() },
            Network,
            "path_share",
        ),
        (
            "other traffic that fills the interface together with the test",
            LimitObservations {
                interfaces: [InterfaceUse { other_bps: Some(898e6), ..interface(1000, Duplex::Full) }, none],
                queue_ms: None,
                retransmits: Some(0),
                ..filled()
            },
            OtherTraffic,
            "other_bps",
        ),
        (
            "other traffic from before the load on, whose queue the idle latency has, too",
            LimitObservations {
                interfaces: [with_other(40e6), none],
                queue_ms: Some(0.1),
                retransmits: Some(0),
                ..filled()
            },
            OtherTraffic,
            "other_bps",
        ),
        (
            "the same with streams that had nothing to send",
            LimitObservations {
                interfaces: [with_other(40e6), none],
                queue_ms: Some(0.1),
                retransmits: Some(0),
                streams: shares(0.4, 0.0, 0.0),
                ..filled()
            },
            Unknown,
            "runnable_share",
        ),
        (
            "other traffic only under load, and no sign that the line was full",
            LimitObservations {
                interfaces: [InterfaceUse { other_idle_bps: Some(0.0), ..with_other(40e6) }, none],
                queue_ms: Some(0.1),
                retransmits: Some(0),
                ..filled()
            },
            Unknown,
            "runnable_share",
        ),
        (
            "the requested rate",
            LimitObservations { requested_bps: Some(95_000_000), ..filled() },
            Policy,
            "requested_bps",
        ),
        (
            "the requested rate with a full processor",
            LimitObservations {
                requested_bps: Some(94_100_000),
                cpu: [Some(throttled()), Some(runnable(0.2))],
                ..filled()
            },
            Policy,
            "requested_bps",
        ),
        (
            "less than the requested rate",
            LimitObservations { requested_bps: Some(200_000_000), ..filled() },
            Network,
            "path_share",
        ),
        (
            "the requested bytes were through",
            LimitObservations { requested_bytes: Some(1_000_000), ..filled() },
            Policy,
            "requested_bytes",
        ),
        ("datagrams are lost", udp(300, 94_100_000), Network, "lost_datagrams"),
        ("no datagram is lost", udp(0, 94_100_000), Unknown, "runnable_share"),
    ]
}

#[test]
fn each_cause_follows_from_its_observations() {
    for (words, seen, cause, deciding) in cases() {
        let found = limited_by(&seen);
        assert_eq!(found.cause, cause, "{words}: {found:#?}");
        let first = found.evidence.first().map_or("", |evidence| evidence.name.as_str());
        assert_eq!(first, deciding, "{words}: {found:#?}");
    }
}

#[test]
fn an_unknown_cause_has_a_reason_and_a_known_one_has_evidence() {
    for (words, seen, ..) in cases() {
        let found = limited_by(&seen);
        assert_eq!(found.cause == LimitCause::Unknown, !found.because.is_empty(), "{words}: {found:#?}");
        assert!(found.cause == LimitCause::Unknown || !found.evidence.is_empty(), "{words}: {found:#?}");
        for evidence in &found.evidence {
            let number = match evidence.value {
                Quantity::Whole(number) => number as f64,
                Quantity::Fraction(number) => number,
            };
            assert!(
                number.is_finite() && evidence.text.contains(|c: char| c.is_ascii_digit()),
                "{words}: {evidence:?}"
            );
        }
    }
}

/// Takes the observations of a full path, and changes one of them so that it points to a host or to the program. After
/// each such change, the network must not be the cause.
#[test]
fn the_network_is_not_named_if_the_tool_may_have_been_the_limit() {
    for share in [0.85, 0.9, 0.95, 1.0] {
        for end in 0..2 {
            let with = |cpu: CpuUse| {
                let mut seen = filled();
                seen.cpu[end] = Some(cpu);
                limited_by(&seen).cause
            };
            assert_ne!(with(runnable(share)), LimitCause::Network, "{share}");
            assert_ne!(with(CpuUse { busiest_thread: share, runnable: None, ..runnable(share) }), LimitCause::Network);
            assert_ne!(with(CpuUse { core_softirq: Some(share), ..runnable(0.1) }), LimitCause::Network, "{share}");
            assert_ne!(with(CpuUse { held_back: Some(share), ..runnable(0.1) }), LimitCause::Network, "{share}");
        }
    }
    let nan = f64::NAN;
    for queue_ms in [None, Some(0.0), Some(12.3)] {
        let timeless = LimitObservations { streams: shares(nan, nan, nan), queue_ms, ..filled() };
        assert_eq!(limited_by(&timeless).cause, LimitCause::Unknown, "a phase without time has no shares");
    }
}
