//! Example documents for tests: a result with every field, a result with as few fields as possible, and one event of
//! each kind.

use jiff::Timestamp;
use paramedic_link::measurement::{CpuUse, HostFacts};
use paramedic_link::phase_detail::TcpSample;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load};
use paramedic_link::{EndpointId, PeerText};
use uuid::Uuid;

use super::*;

/// A result document in which every field is present.
pub fn full() -> ResultDocument {
    let facts = HostFacts { version: "0.1.0".into(), cpus: Some(4), load_1m: Some(0.25), ..HostFacts::default() };
    ResultDocument {
        schema: ResultSchema::V1,
        id: run_id(1),
        started_at: at("2026-01-31T12:00:00Z"),
        finished_at: at("2026-01-31T12:00:34.250Z"),
        provider: "reflector".to_owned(),
        engine: tcp(),
        data_mode: Some(DataMode::DirectEphemeral),
        data_mode_fallback: Some(DataModeFallback {
            tried: DataMode::DirectEphemeral,
            reason: FallbackReason::Silent,
            address: Some("203.0.113.7:5201".to_owned()),
            found_at: Some(at("2026-01-31T11:00:00Z")),
        }),
        data_path: Some(DataPath::Plain),
        requested: Some(RequestedLimits { streams: 4, ..RequestedLimits::default() }),
        appliance: ApplianceEnd {
            endpoint_id: EndpointId::from_bytes([7; 32]),
            anonymous: false,
            version: "0.1.0".to_owned(),
            facts_before: Some(facts.clone()),
            facts_after: Some(facts.clone()),
        },
        uplink: UplinkLabel { interface: Some("eth0".to_owned()), public_prefix: Some("198.51.100.0/24".to_owned()) },
        program: Some(ProgramSaid {
            version: "iperf3 3.12".to_owned(),
            raw: ByLoad { download: Some(serde_json::json!({ "end": {} })), ..ByLoad::default() },
        }),
        peer: None,
        reflector: Some(ReflectorEnd {
            endpoint_id: EndpointId::from_bytes([9; 32]),
            name: "attic".into(),
            address: "203.0.113.7:4000".to_owned(),
            version: "0.1.0".into(),
            facts_before: Some(facts.clone()),
            facts_after: Some(facts),
        }),
        server: None,
        download: Some(throughput(941_000_000)),
        upload: Some(throughput(94_200_000)),
        bidir: Some(BidirResult { download: Some(throughput(903_000_000)), upload: Some(throughput(88_000_000)) }),
        latency: ByLoad {
            idle: Some(LatencyResult { queue: None, responsiveness_rpm: None, ..latency(12_300) }),
            download: Some(latency(24_600)),
            upload: Some(LatencyResult {
                queue: Some(QueueByDirection {
                    stands: QueueSide::Upload,
                    upload_ms: Some(17.9),
                    own_ms: Some(0.1),
                    download_ms: Some(0.0),
                    uncertainty_ms: Some(0.2),
                }),
                ..latency(30_100)
            }),
            bidir: Some(latency(41_000)),
        },
        bufferbloat: ByLoad {
            idle: None,
            download: Some(Bufferbloat::of_increase_ms(12.3)),
            upload: Some(Bufferbloat::of_increase_ms(17.8)),
            bidir: Some(Bufferbloat::of_increase_ms(28.7)),
        },
        clocks: Some(ClockComparison {
            skew_ppm: -12.5,
            skew_uncertainty_ppm: 3.2,
            offset_us: 1_250_400,
            offset_uncertainty_us: 5_650,
            jump: Some(ClockJumpSeen { phase: Some(Load::Bidir), moved_us: Some(-3_600_000) }),
        }),
        thresholds: vec![
            ThresholdResult {
                name: "min_download_bps".to_owned(),
                limit: Quantity::Whole(900_000_000),
                measured: Some(Quantity::Whole(941_000_000)),
                passed: true,
                through_tunnel: true,
            },
            ThresholdResult {
                name: "max_loss".to_owned(),
                limit: Quantity::Fraction(0.001),
                measured: Some(Quantity::Fraction(0.002)),
                passed: false,
                through_tunnel: true,
            },
        ],
        data_used_bytes: 2_410_000_000,
        warnings: vec![Warning::new("power_saving", "the reflector's processor was saving power")],
        validity: Some(Validity::of(&[Warning::new("not_steady", "the download was not steady")], true)),
        complete: true,
        interrupted: false,
        error: None,
    }
}

/// A result document with as few fields as possible: one direction, no latency.
pub fn bare() -> ResultDocument {
    ResultDocument {
        id: run_id(2),
        started_at: at("2026-01-31T13:00:00Z"),
        finished_at: at("2026-01-31T13:00:11Z"),
        data_mode: Some(DataMode::Tunneled),
        data_mode_fallback: None,
        data_path: Some(DataPath::Tls),
        requested: None,
        appliance: ApplianceEnd { facts_before: None, facts_after: None, ..full().appliance },
        uplink: UplinkLabel::default(),
        program: None,
        peer: None,
        reflector: full().reflector.map(|end| ReflectorEnd { facts_before: None, facts_after: None, ..end }),
        download: Some(ThroughputResult {
            ci95_bps: None,
            thirds_bps: None,
            interval_bps: None,
            bytes_sent: None,
            total_bytes_received: None,
            total_bytes_sent: None,
            congestion_control: None,
            retransmits: None,
            mss: None,
            path_mtu_bytes: None,
            line_rate_estimate: None,
            ended: None,
            udp: None,
            intervals: None,
            data_path: DataPathOfEnds::default(),
            cpu: CpuOfEnds::default(),
            limited_by: None,
            tcp: TcpOfEnds::default(),
            ..throughput(50_000_000)
        }),
        upload: None,
        bidir: None,
        latency: ByLoad::default(),
        bufferbloat: ByLoad::default(),
        clocks: None,
        thresholds: vec![],
        data_used_bytes: 62_500_000,
        warnings: vec![],
        validity: None,
        ..full()
    }
}

/// One event of each kind except the error.
pub fn events() -> Vec<Event> {
    let phase = PhaseBegun { phase: Load::Download, duration_ms: 10_000 };
    vec![
        Event::Queued(Queued::new(2, std::time::Duration::from_secs(20))),
        Event::Start(Started {
            id: run_id(1),
            started_at: at("2026-01-31T12:00:00Z"),
            provider: "reflector".to_owned(),
            engine: tcp(),
            data_mode: Some(DataMode::Tunneled),
            address: "203.0.113.7:4000".to_owned(),
            phases: vec![phase],
        }),
        Event::Phase(phase),
        Event::Interval(IntervalReading {
            phase: Load::Download,
            direction: Direction::Download,
            at_ms: 100,
            bps: 941_000_000,
            by_sender: true,
        }),
        Event::Latency(LatencyReading {
            phase: Load::Download,
            at_ms: 100,
            rtt_us: Some(24_600),
            sent: 10,
            received: 10,
        }),
        Event::Latency(LatencyReading { phase: Load::Download, at_ms: 200, rtt_us: None, sent: 10, received: 0 }),
        Event::Result(Box::new(full())),
    ]
}

/// A fixed run id that ends in `n`.
pub fn run_id(n: u8) -> Uuid {
    let mut bytes = *b"\x01\x9c\x13\x50\x20\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x00";
    bytes[5] = n;
    bytes[15] = n;
    Uuid::from_bytes(bytes)
}

/// The result of a direction with the goodput `goodput_bps`, in which every field is present.
pub fn throughput(goodput_bps: u64) -> ThroughputResult {
    let cost = |used| CpuCost::of(used, goodput_bps / 4 * 5);
    ThroughputResult {
        goodput_bps,
        ci95_bps: Some([goodput_bps / 1000 * 997, goodput_bps / 1000 * 1003]),
        thirds_bps: Some(Thirds { first: goodput_bps / 100 * 99, last: goodput_bps / 100 * 101 }),
        interval_bps: Some(IntervalSpread { p10: goodput_bps / 10 * 9, p50: goodput_bps, p90: goodput_bps / 10 * 11 }),
        bytes_received: goodput_bps,
        bytes_sent: Some(goodput_bps),
        total_bytes_received: Some(goodput_bps / 4 * 5),
        total_bytes_sent: Some(goodput_bps / 4 * 5 + 65_536),
        duration_ms: 8_000,
        startup_ms: 2_000,
        omitted: Omitted::Found,
        ended: Some(EndedBy::Time),
        streams: 4,
        congestion_control: Some(PeerText::new("cubic")),
        retransmits: Some(12),
        mss: Some(1448),
        path_mtu_bytes: Some(1500),
        line_rate_estimate: Some(LineRateEstimate { rate_bps: goodput_bps / 1448 * 1538, overhead_bytes: 90 }),
        udp: Some(UdpResult {
            datagrams: 1000,
            lost: 1,
            loss: 0.001,
            duplicates: Some(3),
            out_of_order: Some(2),
            jitter_us: Some(15),
            payload_bytes: Some(1448),
            search: Some(UdpSearch { datagrams: 200, lost: 20 }),
            paused_ms: Some(250),
            vanished: Some(4),
        }),
        intervals: Some(vec![Interval { at_ms: 2_100, bps: goodput_bps }]),
        data_path: DataPathOfEnds { sender: Some(DataPath::Plain), receiver: Some(DataPath::Trunc) },
        cpu: CpuOfEnds {
            sender: Some(cost(CpuUse {
                user_s: 0.1,
                system_s: 0.9,
                busiest_thread: 0.12,
                host_busy: Some(0.05),
                ..CpuUse::default()
            })),
            receiver: Some(cost(CpuUse {
                user_s: 0.3,
                system_s: 2.4,
                busiest_thread: 0.34,
                held_back: Some(0.01),
                runnable: Some(0.4),
                run_queue_wait: Some(0.06),
                core_softirq: Some(0.2),
                ..CpuUse::default()
            })),
        },
        limited_by: Some(LimitedBy {
            cause: LimitCause::Network,
            evidence: vec![
                LimitEvidence {
                    name: "path_share".to_owned(),
                    end: None,
                    value: Quantity::Fraction(0.97),
                    text: "the streams waited for the path for 97 % of the time".to_owned(),
                },
                LimitEvidence {
                    name: "queue_ms".to_owned(),
                    end: None,
                    value: Quantity::Fraction(3.0),
                    text: "latency rose by 3.0 ms".to_owned(),
                },
                LimitEvidence {
                    name: "retransmitted_segments".to_owned(),
                    end: None,
                    value: Quantity::Whole(12),
                    text: "12 segments were retransmitted".to_owned(),
                },
            ],
            because: vec![],
        }),
        tcp: TcpOfEnds {
            sender: vec![TcpSample {
                at_ms: 100,
                stream: 1,
                rtt_us: Some(24_600),
                rttvar_us: Some(250),
                min_rtt_us: Some(12_100),
                cwnd: Some(120),
                ssthresh: Some(90),
                delivery_bps: Some(goodput_bps / 4),
                pacing_bps: Some(goodput_bps / 4 * 5),
                retransmits: Some(3),
                reordering_seen: Some(1),
                busy_us: Some(99_000),
                receive_window_us: Some(4_000),
                send_buffer_us: Some(0),
            }],
            receiver: vec![TcpSample { at_ms: 101, ..TcpSample::default() }],
        },
    }
}

/// The latency result of a phase with the median round trip `p50`, in microseconds.
pub fn latency(p50: u64) -> LatencyResult {
    LatencyResult {
        rtt_us: Some(RttSpread {
            min: p50 - 1_000,
            mean: p50 + 100,
            p50: Some(p50),
            p90: Some(p50 + 1_000),
            p95: Some(p50 + 2_000),
            p99: Some(p50 + 5_000),
            p999: Some(p50 + 9_000),
            max: p50 + 12_000,
        }),
        jitter_us: Some(850),
        sent: 2000,
        received: 1998,
        skipped: 0,
        loss: Some(0.001),
        loss_upload: Some(0.0),
        loss_download: Some(0.001),
        loss_pattern: Some(LossPattern { periods: 2, longest_probes: 1, longest_ms: 10 }),
        duplicates: 0,
        late: 0,
        transport: ProbeTransport::Udp,
        probe_late_us: Some(70),
        interval_us: Some(10_000),
        rate_share: Some(0.001),
        responsiveness_rpm: Some(60_000_000 / p50),
        one_way: Some(OneWayDelays { upload: delay(p50 / 10), download: delay(p50 / 2) }),
        own_wait: Some(delay(12)),
        queue: Some(QueueByDirection {
            stands: QueueSide::Download,
            upload_ms: Some(0.3),
            own_ms: Some(0.1),
            download_ms: Some(p50 as f64 / 2_000.0),
            uncertainty_ms: Some(0.2),
        }),
        intervals: Some(vec![LatencyInterval {
            at_ms: 2_100,
            rtt_us: Some(p50),
            upload_us: Some(p50 / 10),
            download_us: Some(p50 / 2),
            sent: 10,
            lost: 1,
        }]),
    }
}

fn delay(p50_us: u64) -> DelayVariation {
    DelayVariation { p50_us, p95_us: Some(p50_us + 900), p99_us: Some(p50_us + 2_000), max_us: p50_us + 5_000 }
}

fn tcp() -> EngineId {
    EngineId::try_from("tcp").unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
