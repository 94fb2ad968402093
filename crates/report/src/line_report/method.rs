//! How the runs of a report were measured: the ends, devices, interfaces, limits and warnings.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use paramedic_link::test_spec::Direction;

use super::input::{LinkMedium, ReportRun};
use super::names::{self, Names};
use super::tally;
use crate::document::LimitCause;

/// How the runs in the period of a report were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodReport {
    /// The number of runs in the period, including those that do not count.
    pub runs: usize,
    /// The number of days on which runs were measured, by the local clock.
    pub days: usize,
    /// The hours of the day (0 to 23) in which at least one run began.
    pub hours_of_day: BTreeSet<i8>,
    /// The reflectors and servers at the other end of the runs, most used first.
    pub other_ends: Vec<MeasuredEnd>,
    /// The Endpoint IDs of the appliances that made the runs; empty in a redacted report.
    pub devices: Vec<String>,
    /// The number of appliances that made the runs.
    pub device_count: usize,
    /// The versions of the program on the appliances that made the runs.
    pub versions: Vec<String>,
    /// The appliances' network interfaces that carried runs, each with its number of runs.
    pub interfaces: Vec<(InterfaceReport, usize)>,
    /// The number of runs whose interface is not known.
    pub without_interface: usize,
    /// The interfaces that had the default route during runs, each with its number of runs.
    pub uplinks: Vec<(String, usize)>,
    /// The public IP prefixes from which runs came, each with its number of runs; empty in a redacted report.
    pub prefixes: Vec<(String, usize)>,
    /// The number of public IP prefixes from which runs came.
    pub prefix_count: usize,
    /// The lowest and the highest number of streams per direction, over all runs; absent if no run measured a rate.
    pub streams: Option<[u16; 2]>,
    /// Each rate was computed from the steady part of a run. These are the lengths of the shortest and the longest
    /// steady part, in milliseconds; absent if no run measured a rate.
    pub steady_ms: Option<[u64; 2]>,
    /// The number of runs with a synchronised clock, with an unsynchronised clock, and with a clock of unknown state.
    pub clocks: [usize; 3],
    /// What limited the downloads, then what limited the uploads, each cause with its number of runs.
    pub causes: [Vec<(LimitCause, usize)>; 2],
    /// The codes of the warnings in the results, each with its number of runs.
    pub warnings: Vec<(String, usize)>,
    /// The codes of the errors that ended runs, each with its number of runs.
    pub failures: Vec<(String, usize)>,
}

/// A reflector or server against which runs were measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredEnd {
    /// The name of the other end.
    pub name: String,
    /// The address of the other end; absent in a redacted report.
    pub address: Option<String>,
    /// The Endpoint ID of the reflector; absent in a redacted report, and for a server that is not a reflector.
    pub endpoint_id: Option<String>,
    /// The engine that moved the payload, such as `tcp` or `iperf3`.
    pub engine: String,
    /// Whether the other end is a reflector, which has proved its identity.
    pub is_reflector: bool,
    /// The number of runs against the reflector or server.
    pub runs: usize,
}

/// A network interface through which an appliance made runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceReport {
    /// The name of the interface.
    pub name: String,
    /// How the interface is connected.
    pub kind: LinkMedium,
    /// The speed that the driver reports, in bits per second; absent if the driver reports no speed.
    pub speed_bps: Option<u64>,
    /// Whether the interface runs in half duplex; absent if the driver reports no duplex mode.
    pub is_half_duplex: Option<bool>,
}

impl MethodReport {
    pub(super) fn of(runs: &[ReportRun], zone: &TimeZone, names: &mut Names) -> Self {
        let local = runs.iter().map(|run| zone.to_datetime(run.started_at)).collect::<Vec<_>>();
        let devices = runs.iter().map(|run| run.appliance.as_str()).collect::<BTreeSet<_>>();
        let prefixes = tally(runs.iter().filter_map(|run| run.public_prefix.as_deref()));
        let rates = || runs.iter().flat_map(|run| [run.download, run.upload]).flatten();
        let causes = Direction::BOTH.map(|direction| tally(runs.iter().filter_map(|run| run.rate(direction)?.cause)));
        let clock = |wanted: Option<bool>| runs.iter().filter(|run| run.is_clock_synchronised == wanted).count();
        Self {
            runs: runs.len(),
            days: local.iter().map(|time| time.date()).collect::<BTreeSet<_>>().len(),
            hours_of_day: local.iter().map(|time| time.hour()).collect(),
            other_ends: other_ends(runs, names),
            devices: devices.iter().filter_map(|id| names.detail(id)).collect(),
            device_count: devices.len(),
            versions: runs.iter().map(|run| names::shown(&run.version)).collect::<BTreeSet<_>>().into_iter().collect(),
            interfaces: interfaces(runs, names),
            without_interface: runs.iter().filter(|run| run.interface.is_none()).count(),
            uplinks: tally(runs.iter().filter_map(|run| run.uplink.as_deref()))
                .into_iter()
                .map(|(name, count)| (names.interface(name), count))
                .collect(),
            prefix_count: prefixes.len(),
            prefixes: prefixes.into_iter().filter_map(|(text, count)| Some((names.detail(text)?, count))).collect(),
            streams: extremes(rates().map(|rate| rate.streams)),
            steady_ms: extremes(rates().map(|rate| rate.duration_ms)),
            clocks: [clock(Some(true)), clock(Some(false)), clock(None)],
            causes,
            warnings: tally(runs.iter().flat_map(|run| run.warnings.iter().collect::<BTreeSet<_>>()))
                .into_iter()
                .map(|(code, count)| (names::code(code), count))
                .collect(),
            failures: tally(runs.iter().filter_map(|run| run.error.as_deref()))
                .into_iter()
                .map(|(code, count)| (names::code(code), count))
                .collect(),
        }
    }
}

fn other_ends(runs: &[ReportRun], names: &mut Names) -> Vec<MeasuredEnd> {
    let reached = runs.iter().filter(|run| run.address.is_some());
    let ends = reached.map(|run| {
        let endpoint_id = run.endpoint_id.as_deref();
        MeasuredEnd {
            name: names.other_end(run),
            address: run.address.as_deref().and_then(|address| names.detail(address)),
            endpoint_id: endpoint_id.and_then(|id| names.detail(id)),
            engine: names::code(&run.engine),
            is_reflector: endpoint_id.is_some(),
            runs: 0,
        }
    });
    let counted = tally(ends).into_iter();
    counted.map(|(end, runs)| MeasuredEnd { runs, ..end }).collect()
}

fn interfaces(runs: &[ReportRun], names: &mut Names) -> Vec<(InterfaceReport, usize)> {
    let seen = runs.iter().filter_map(|run| run.interface.as_ref());
    tally(seen.map(|interface| InterfaceReport {
        name: names.interface(&interface.name),
        kind: interface.kind(),
        speed_bps: interface.speed_bps,
        is_half_duplex: interface.is_half_duplex,
    }))
}

fn extremes<T: Copy + Ord>(values: impl Iterator<Item = T> + Clone) -> Option<[T; 2]> {
    Some([values.clone().min()?, values.max()?])
}
