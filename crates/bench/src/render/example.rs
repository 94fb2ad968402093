//! A record with made-up figures, for the tests of the renderers.

use paramedic_link::measurement::HostFacts;

use crate::cells::plan;
use crate::record::{Alone, CellRecord, Machine, Memory, Pair, Reading, Record, Rest, SCHEMA};

/// Creates a reading with a rate of this many Gbit/s.
pub(crate) fn reading(gigabits: f64) -> Reading {
    let bytes = (gigabits * 125e6) as u64;
    Reading { bps: gigabits * 1e9, bytes, wall_s: 1.1, client_cpu_s: 0.9, server_cpu_s: 0.8, loss: None }
}

/// Creates the record of a full run in which our side wins every second cell and loses the others.
pub(crate) fn record() -> Record {
    let cells = plan(false, 1, Some(&["--length".to_owned(), "256K".to_owned()]));
    let with_pairs = |(index, cell): (usize, crate::cells::Cell)| {
        let pairs = [0.9, 1.0, 1.15].map(|noise| Pair {
            ours_first: false,
            theirs: reading(30.0 * noise),
            ours: Reading {
                loss: cell.payload.map(|_| 0.004),
                ..reading(if index % 2 == 0 { 96.0 / noise } else { 22.0 * noise })
            },
        });
        CellRecord { cell, pairs: pairs.to_vec(), failures: vec![], passed_over: None }
    };
    Record {
        schema: SCHEMA.to_owned(),
        started_at: "2026-01-31T12:00:00Z".to_owned(),
        finished_at: "2026-01-31T12:31:00Z".to_owned(),
        commit: Some("0123abc".to_owned()),
        command: "script/bench".to_owned(),
        quick: false,
        pairs: 3,
        machine: Machine {
            facts: HostFacts { cpus: Some(2), memory_total_bytes: Some(8 << 30), ..HostFacts::default() },
            governor: Some("performance".to_owned()),
            hypervisor: None,
            congestion_default: Some("bbr".to_owned()),
            congestion_available: Some("reno bbr cubic".to_owned()),
            iperf3: Some("iperf 3.12".to_owned()),
            other_iperf3: Some("iperf 3.22".to_owned()),
        },
        cells: cells.into_iter().enumerate().map(with_pairs).collect(),
        alone: Alone {
            rest: Some(Rest {
                first_ready_s: 0.06,
                ready_s: vec![0.02, 0.03, 0.025],
                rss_bytes: 9 << 20,
                cpu_s: 0.0,
                watched_s: 10.0,
            }),
            memory: vec![Memory {
                what: "tcp, direct".to_owned(),
                is_ours: true,
                streams: 8,
                client_bytes: 14 << 20,
                server_bytes: 12 << 20,
            }],
            set_up_s: vec![0.1, 0.12],
            handshakes: vec![510.0, 530.0],
            failures: vec![],
        },
    }
}
