//! Fills a state folder with made-up results of three months, for the pictures of the web pages. The results describe a
//! cable line that is slow in the evening. Two monitors probe the gateway and the reflector "attic". If no reflector is
//! paired, a made-up "attic" is added.
//! `cargo run -p paramedic-appliance --example seed -- FOLDER [--many COUNT]`
//!
//! `--many COUNT` adds COUNT short results and hourly data of the monitors, both for the two years before, to measure
//! how long the pages take to load.

#![expect(clippy::disallowed_methods, reason = "the made-up data ends now")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use paramedic_appliance::app::Appliance;
use paramedic_appliance::monitor::minute::ProbeOutcome;
use paramedic_appliance::monitor::outage::OutageScope;
use paramedic_appliance::monitor::{Monitor, MonitorTarget, ProbeTally};
use paramedic_appliance::plan::{Plan, PromisedRate};
use paramedic_appliance::store::{ApplianceStore, MonitorMinute, Reflector, StoredOutage};
use paramedic_link::EndpointId;
use paramedic_link::test_spec::DataMode;
use paramedic_report::document::{
    Bufferbloat, ErrorBody, Interval, LatencyInterval, LatencyResult, QueueByDirection, QueueSide, ResultDocument,
    RttSpread, ThroughputResult, Validity, example,
};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use uuid::Uuid;

/// The number of days with results.
const DAYS: i64 = 90;
/// The hours between two results.
const EVERY: i64 = 4;
/// The number of days with monitor data for each minute.
const MONITORED_DAYS: i64 = 3;

/// A small generator of numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    /// A number from 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1_u64 << 24) as f64
    }

    /// A number from 1 - `spread` to 1 + `spread`.
    fn about(&mut self, spread: f64) -> f64 {
        1.0 + (self.roll() - 0.5) * 2.0 * spread
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).filter(|folder| !folder.as_encoded_bytes().starts_with(b"-"));
    let folder = folder.map(PathBuf::from).ok_or("usage: seed FOLDER [--many COUNT]")?;
    let appliance = Appliance::open(&folder, |error| ErrorBody {
        code: "seed".to_owned(),
        what: error.to_string(),
        because: String::new(),
        try_: String::new(),
        retry_after_ms: None,
    })?;
    let own = appliance.0.endpoint_id()?.to_string();
    let store = ApplianceStore::open(appliance.0.state_dir()).await?;
    let (now, mut dice) = (Timestamp::now(), Dice(7));
    let paired_at = now.checked_sub(SignedDuration::from_hours(24 * DAYS))?;
    if store.reflectors().await?.is_empty() {
        let (endpoint_id, address) = (EndpointId::from_bytes([9; 32]), "203.0.113.7:4000".parse()?);
        store.add_reflector(&Reflector { endpoint_id, name: "attic".into(), address, paired_at }).await?;
    }
    let rate = |promised: u64, normal: u64, minimum: u64| PromisedRate {
        promised_bps: promised * 1_000_000,
        normal_bps: Some(normal * 1_000_000),
        minimum_bps: Some(minimum * 1_000_000),
    };
    let plan = Plan { name: Some("Cable 250".to_owned()), download: rate(250, 200, 100), upload: rate(40, 30, 10) };
    store.set_plan(&own, &plan, paired_at).await?;
    results(&store, now, &mut dice).await?;
    monitors(&store, &own, now, &mut dice).await?;
    store.close().await;
    if let Some(count) = many()? {
        add_many(&appliance.0.state_dir().join(paramedic_appliance::store::FILE), count).await?;
    }
    appliance.0.close().await;
    Ok(())
}

/// The COUNT after `--many`; `None` without this option.
fn many() -> Result<Option<i64>, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(2);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Ok(None),
        (Some("--many"), Some(count)) => Ok(Some(count.parse()?)),
        _ => Err("usage: seed FOLDER [--many COUNT]".into()),
    }
}

/// Copies the oldest result `count` times and the oldest hour of the monitors for two years. Each copy is earlier than
/// the copy before it.
async fn add_many(file: &Path, count: i64) -> Result<(), Box<dyn Error>> {
    let mut database = SqliteConnectOptions::new().filename(file).connect().await?;
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('runs')").fetch_all(&mut database).await?;
    // Two years, with so many results.
    let step_us = 2 * 365 * 86_400_000_000 / count.max(1);
    let values = columns.iter().map(|column| match column.as_str() {
        "id" => "printf('01900000-0000-7000-8000-%012x', n)".to_owned(),
        "started_at_us" => format!("started_at_us - n * {step_us}"),
        "has_series" => "FALSE".to_owned(),
        // What a page reads of it is in the other columns.
        "document" => "substr(document, 1, 1000)".to_owned(),
        other => other.to_owned(),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let columns = columns.join(", ");
    let numbers = |count: i64| {
        format!("WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})")
    };
    let runs = format!(
        "INSERT INTO runs ({columns}) {} SELECT {values} FROM numbers, (SELECT * FROM runs ORDER BY started_at_us LIMIT 1)",
        numbers(count)
    );
    let hours = format!(
        "INSERT OR IGNORE INTO monitor_rows {} SELECT span, minute - n * 60, monitor, count, lost, under_load, min_us, \
         max_us, round_trips FROM numbers, (SELECT * FROM monitor_rows WHERE span = 60 AND minute = \
         (SELECT MIN(minute) FROM monitor_rows WHERE span = 60))",
        numbers(2 * 365 * 24)
    );
    for sql in [runs, hours] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut database).await?;
    }
    Ok(())
}

async fn results(store: &ApplianceStore, now: Timestamp, dice: &mut Dice) -> Result<(), Box<dyn Error>> {
    for step in (0..DAYS * 24 / EVERY).rev() {
        // The last one an hour ago.
        let started_at = now.checked_sub(SignedDuration::from_hours(step * EVERY + 1))?;
        let hour = started_at.strftime("%H").to_string().parse::<f64>()?;
        // From 18 to 23 UTC the neighbours watch films.
        let evening = (1.0 - ((hour - 20.5).abs() / 2.5)).max(0.0);
        let download = (238e6 * (1.0 - 0.45 * evening) * dice.about(0.03)) as u64;
        let upload = (39e6 * (1.0 - 0.1 * evening) * dice.about(0.02)) as u64;
        let idle_us = (11_800.0 * (1.0 + 0.4 * evening) * dice.about(0.05)) as u64;
        let document = result(started_at, download, upload, idle_us, dice);
        store.save_run(&document).await?;
    }
    Ok(())
}

fn result(started_at: Timestamp, download: u64, upload: u64, idle_us: u64, dice: &mut Dice) -> ResultDocument {
    let base = example::full();
    let direction = |bps: u64, dice: &mut Dice| ThroughputResult {
        udp: None,
        intervals: Some(intervals(bps, dice)),
        ..example::throughput(bps)
    };
    let (down_us, up_us) = (idle_us + 9_000, (idle_us as f64 + 74_000.0 * dice.about(0.2)) as u64);
    let latency = |template: Option<LatencyResult>, us: u64, dice: &mut Dice| {
        let spread = |factor: f64| (us as f64 * factor) as u64;
        template.map(|template| LatencyResult {
            rtt_us: Some(RttSpread {
                min: spread(0.9),
                mean: us,
                p50: Some(us),
                p90: Some(spread(1.2)),
                p95: Some(spread(1.3)),
                p99: Some(spread(1.6)),
                p999: None,
                max: spread(2.0),
            }),
            intervals: Some(round_trips(us, dice)),
            ..template
        })
    };
    let mut document = ResultDocument {
        id: Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, started_at.as_second().unsigned_abs(), 0)),
        started_at,
        finished_at: started_at.checked_add(SignedDuration::from_secs(24)).unwrap_or(started_at),
        data_mode: Some(DataMode::DirectEphemeral),
        data_mode_fallback: None,
        program: None,
        bidir: None,
        download: Some(direction(download, dice)),
        upload: Some(direction(upload, dice)),
        clocks: None,
        thresholds: Vec::new(),
        warnings: Vec::new(),
        validity: Some(Validity::of(&[], true)),
        data_used_bytes: (download + upload) / 8 * 10,
        ..base.clone()
    };
    document.latency.idle = latency(base.latency.idle, idle_us, dice);
    document.latency.download = latency(base.latency.download, down_us, dice);
    document.latency.upload = latency(base.latency.upload, up_us, dice).map(|upload| LatencyResult {
        queue: Some(QueueByDirection {
            stands: QueueSide::Upload,
            upload_ms: Some((up_us - idle_us) as f64 / 1e3),
            own_ms: Some(0.1),
            download_ms: Some(0.0),
            uncertainty_ms: Some(0.2),
        }),
        ..upload
    });
    document.latency.bidir = None;
    document.bufferbloat.download = Some(Bufferbloat::of_increase_ms((down_us - idle_us) as f64 / 1e3));
    document.bufferbloat.upload = Some(Bufferbloat::of_increase_ms((up_us - idle_us) as f64 / 1e3));
    document.bufferbloat.bidir = None;
    document
}

fn intervals(bps: u64, dice: &mut Dice) -> Vec<Interval> {
    let interval = |at: u64, dice: &mut Dice| {
        let ramp = (at as f64 / 12.0).min(1.0);
        Interval { at_ms: at * 100, bps: (bps as f64 * ramp * dice.about(0.08)) as u64 }
    };
    (1..=100).map(|at| interval(at, dice)).collect()
}

fn round_trips(us: u64, dice: &mut Dice) -> Vec<LatencyInterval> {
    let interval = |at: u64, dice: &mut Dice| LatencyInterval {
        at_ms: at * 100,
        rtt_us: Some((us as f64 * dice.about(0.25)) as u64),
        upload_us: None,
        download_us: None,
        sent: 5,
        lost: 0,
    };
    (1..=100).map(|at| interval(at, dice)).collect()
}

async fn monitors(store: &ApplianceStore, own: &str, now: Timestamp, dice: &mut Dice) -> Result<(), Box<dyn Error>> {
    let gateway = store.add_monitor(own, &Monitor::new("gateway", MonitorTarget::Gateway, None), now).await?;
    let target = MonitorTarget::Reflector("attic".to_owned());
    let attic = store.add_monitor(own, &Monitor::new("attic", target, None), now).await?;
    let this_minute = now.as_second().div_euclid(60);
    let from = this_minute - MONITORED_DAYS * 1440;
    // Two hours ago nothing beyond the gateway answered for six minutes; this morning a little was lost.
    let is_out = |minute: i64| (this_minute - 126..this_minute - 120).contains(&minute);
    let is_lossy = |minute: i64| (this_minute - 600..this_minute - 560).contains(&minute);
    let mut minutes = Vec::new();
    for minute in from..this_minute {
        for (number, base_us) in [(gateway.number, 700.0), (attic.number, 11_800.0)] {
            let mut tally = ProbeTally::default();
            for _ in 0..60 {
                let is_beyond = number == attic.number;
                let is_lost = is_beyond && (is_out(minute) || is_lossy(minute) && dice.roll() < 0.04);
                let spike = if dice.roll() > 0.98 { 4.0 } else { 1.0 };
                let round_trip = Duration::from_micros((base_us * spike * dice.about(0.15)) as u64);
                tally.note(match is_lost {
                    true => ProbeOutcome::Lost,
                    false => ProbeOutcome::Answered { round_trip, is_under_load: false },
                });
            }
            minutes.push(MonitorMinute { number, minute, tally });
        }
    }
    for part in minutes.chunks(2 * 240) {
        let next = part.last().map_or(this_minute, |last| last.minute + 1);
        store.save_minutes(part, next).await?;
    }
    for (began, lasted, scope) in [
        (126 * 60, 6 * 60, OutageScope::BeyondGateway),
        (3 * 86_400, 900, OutageScope::Everything),
        (11 * 86_400, 95, OutageScope::Target),
        (40 * 86_400, 3_700, OutageScope::BeyondGateway),
    ] {
        let began_at = now.checked_sub(SignedDuration::from_secs(began))?;
        let ended_at = began_at.checked_add(SignedDuration::from_secs(lasted))?;
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (failed, reachable) = match scope {
            OutageScope::Everything => (names(&["gateway", "attic"]), names(&[])),
            // A monitor of those days.
            OutageScope::Target => (names(&["attic"]), names(&["gateway", "resolver"])),
            _ => (names(&["attic"]), names(&["gateway"])),
        };
        let id = Uuid::now_v7();
        let outage = StoredOutage { id, began_at, ended_at: Some(ended_at), end_known: true, scope, failed, reachable };
        store.save_outage(own, &outage).await?;
    }
    Ok(())
}
