//! Tests of the judging of alert rules, on each database engine, with a simulated clock.

use std::collections::BTreeSet;

use paramedic_report::document::{LimitCause, ResultDocument, example};

use super::*;
use crate::alerts::{AlertLimit, AlertMetric, AlertRule};
use crate::app::each_engine::devices;
use crate::app::monitors::minute_of;
use crate::monitor::outage::OutageScope;
use crate::monitor::{Monitor, MonitorTarget, ProbeTally};
use crate::store::{MonitorMinute, StoredOutage};

/// A service that a test can kill, with a simulated clock.
struct TestService {
    device: Appliance,
    board: AlertBoard,
    wishes: mpsc::Receiver<RetestWish>,
    memory: AlertMemory,
    now: Timestamp,
}

impl TestService {
    fn new(device: &Appliance) -> Self {
        let now = Timestamp::now();
        let (board, wishes) = AlertBoard::new(device.clone(), now);
        Self { device: device.clone(), board, wishes, memory: AlertMemory::default(), now }
    }

    /// Kills the service and starts it again.
    fn restart(&mut self) {
        let (board, wishes) = AlertBoard::new(self.device.clone(), self.now);
        (self.board, self.wishes, self.memory) = (board, wishes, AlertMemory::default());
    }

    async fn pass(&mut self, minutes: i64) {
        self.now += SignedDuration::from_mins(minutes);
        self.board.pass(&mut self.memory, self.now).await.unwrap();
    }

    /// Moves the clock ahead by `minutes`. Saves the result of a speed test that ends at that time with the rate
    /// `mbps`, in Mbit/s, and judges it.
    async fn test(&mut self, minutes: i64, mbps: u64) {
        self.now += SignedDuration::from_mins(minutes);
        let document = document(self.now, mbps, LimitCause::Network);
        self.device.store().await.unwrap().save_run(&document).await.unwrap();
        self.pass(0).await;
    }

    /// The subject of each alert, and whether the alert is closed. The oldest alert is the first.
    async fn alerts(&self) -> Vec<(String, bool)> {
        let all = self.device.alerts(false, None, 50).await.unwrap();
        all.into_iter().rev().map(|alert| (alert.subject, alert.closed_at.is_some())).collect()
    }
}

fn document(finished_at: Timestamp, mbps: u64, cause: LimitCause) -> ResultDocument {
    let mut document = ResultDocument { id: Uuid::now_v7(), finished_at, validity: None, ..example::full() };
    document.started_at = finished_at - SignedDuration::from_secs(30);
    document.uplink.interface = None;
    let download = document.download.as_mut().unwrap();
    (download.goodput_bps, download.udp) = (mbps * 1_000_000, None);
    download.limited_by.as_mut().unwrap().cause = cause;
    document
}

fn slow(times: u32, of: u32) -> AlertRule {
    let limit = Some(AlertLimit::Below(50e6));
    AlertRule::new("slow", AlertMetric::Download, limit, "UTC".parse().unwrap()).with_times(times, of)
}

fn attic() -> String {
    example::full().other_end().unwrap().to_owned()
}

#[tokio::test]
async fn a_service_that_is_killed_after_each_test_judges_each_of_them_once() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        // This test ends before the rule is added.
        service.test(-10, 10).await;
        device.add_rule(&slow(2, 3)).await.unwrap();
        service.now = Timestamp::now();
        let (open, closed) = (vec![(attic(), false)], vec![(attic(), true)]);
        for (mbps, expected) in [
            (10, vec![]),
            (90, vec![]),
            (20, open.clone()),
            (10, open.clone()),
            (90, open.clone()),
            (91, closed.clone()),
            (10, closed.clone()),
            (10, [closed.clone(), open].concat()),
        ] {
            service.test(10, mbps).await;
            assert_eq!(service.alerts().await, expected, "{mbps}");
            service.restart();
            service.pass(0).await;
            assert_eq!(service.alerts().await, expected, "{mbps}, after a restart");
        }
        let alert = device.alerts(true, None, 1).await.unwrap().remove(0);
        assert_eq!((alert.opening.finding.count, alert.opening.finding.measured), (2, Some(10e6)));
        assert!(alert.opening.text.contains("2 of the last 3 tests"), "{}", alert.opening.text);
    }
}

#[tokio::test]
async fn a_result_that_says_nothing_about_the_line_is_not_judged() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        device.add_rule(&slow(1, 1)).await.unwrap();
        let store = device.store().await.unwrap();
        let at = service.now + SignedDuration::from_mins(1);
        store.save_run(&document(at, 10, LimitCause::OtherTraffic)).await.unwrap();
        // The clock was wrong when this result was measured.
        store.save_run(&document(at + SignedDuration::from_hours(9_000), 10, LimitCause::Network)).await.unwrap();
        service.pass(2).await;
        assert_eq!(service.alerts().await, []);
        store.save_run(&document(at, 10, LimitCause::Unknown)).await.unwrap();
        service.pass(1).await;
        assert_eq!(service.alerts().await, [(attic(), false)]);
    }
}

#[tokio::test]
async fn a_test_is_repeated_once_and_its_result_decides() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        device.add_rule(&AlertRule { retest: true, ..slow(1, 1) }).await.unwrap();
        service.test(1, 10).await;
        let wish = RetestWish { rule: "slow".to_owned(), subject: attic() };
        assert_eq!(service.wishes.try_recv(), Ok(wish.clone()));
        service.pass(1).await;
        assert!(service.wishes.try_recv().is_err() && service.alerts().await.is_empty());
        // The service is killed before the repetition, so the repetition is requested again.
        service.restart();
        service.pass(1).await;
        assert_eq!(service.wishes.try_recv(), Ok(wish));
        service.test(1, 90).await;
        service.test(1, 10).await;
        assert!(service.wishes.try_recv().is_err(), "not twice in an hour");
        service.restart();
        service.pass(30).await;
        assert!(service.wishes.try_recv().is_err(), "it is too old to be repeated");
        service.test(1, 10).await;
        assert_eq!(service.alerts().await, [(attic(), false)], "the next test decides");
    }
}

#[tokio::test]
async fn a_rule_that_ends_closes_its_alerts() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        device.add_rule(&slow(1, 1)).await.unwrap();
        service.test(1, 10).await;
        assert!(!device.enable_rule("slow", false).await.unwrap().enabled);
        service.test(1, 10).await;
        assert_eq!(service.alerts().await, [(attic(), true)]);
        let closing = device.alerts(false, None, 1).await.unwrap().remove(0).closing.unwrap();
        assert!(closing.title.contains("was disabled"), "{}", closing.title);
        assert!(device.enable_rule("slow", true).await.unwrap().enabled);
        service.test(1, 10).await;
        assert_eq!(service.alerts().await.len(), 2);
        device.remove_rule("slow").await.unwrap();
        service.test(1, 10).await;
        assert!(service.alerts().await.iter().all(|(_, is_closed)| *is_closed));
        assert!(device.rules().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn minutes_of_monitors_are_judged_in_windows_and_an_outage_is_no_loss() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        let store = device.store().await.unwrap();
        let number = device.add_monitor(Monitor::new("attic", MonitorTarget::Gateway, None)).await.unwrap().number;
        let limit = Some(AlertLimit::Above(2.0));
        let rule = AlertRule::new("loss", AlertMetric::MonitorLoss, limit, "UTC".parse().unwrap()).with_times(2, 3);
        device.add_rule(&rule).await.unwrap();
        // The minutes are counted from the start of a window on.
        let begin = (minute_of(service.now) / 5 + 1) * 5;
        let time = |minute: i64| Timestamp::from_second((begin + minute) * 60).unwrap();
        let save = async |minutes: std::ops::Range<i64>, lost: u64| {
            let tally = ProbeTally { count: 60, lost, ..ProbeTally::default() };
            let rows = minutes.map(|minute| MonitorMinute { number, minute: begin + minute, tally: tally.clone() });
            store.save_minutes(&rows.collect::<Vec<_>>(), begin + 100).await.unwrap();
        };
        let outage = StoredOutage {
            id: Uuid::now_v7(),
            began_at: time(7),
            ended_at: Some(time(8)),
            end_known: true,
            scope: OutageScope::Unknown,
            failed: BTreeSet::from(["attic".to_owned()]),
            reachable: BTreeSet::new(),
        };
        store.save_outage("PP", &outage).await.unwrap();
        save(0..10, 6).await;
        service.now = time(10);
        service.pass(0).await;
        assert_eq!(service.alerts().await, [], "one window; that of the outage does not count");
        save(10..14, 6).await;
        service.now = time(14);
        service.pass(0).await;
        service.restart();
        service.pass(0).await;
        assert_eq!(service.alerts().await, [], "a window that is not complete");
        save(14..15, 6).await;
        service.now = time(15);
        service.pass(0).await;
        assert_eq!(service.alerts().await, [("attic".to_owned(), false)]);
        save(15..25, 0).await;
        service.restart();
        service.now = time(25);
        service.pass(0).await;
        assert_eq!(service.alerts().await, [("attic".to_owned(), true)]);
        let alert = device.alerts(false, None, 1).await.unwrap().remove(0);
        assert_eq!((alert.opened_at, alert.closed_at), (time(15), Some(time(25))));
    }
}

#[tokio::test]
async fn an_outage_and_a_silence_open_and_close_over_restarts() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        let store = device.store().await.unwrap();
        let rule = |name, metric, seconds| {
            AlertRule::new(name, metric, Some(AlertLimit::Above(seconds)), "UTC".parse().unwrap())
        };
        device.add_rule(&rule("down", AlertMetric::Outage, 120.0)).await.unwrap();
        device.add_rule(&rule("silence", AlertMetric::Silence, 1_800.0)).await.unwrap();
        service.pass(60).await;
        assert_eq!(service.alerts().await, [], "nothing was ever measured");
        service.test(1, 90).await;
        let mut outage = StoredOutage {
            id: Uuid::now_v7(),
            began_at: service.now,
            ended_at: None,
            end_known: true,
            scope: OutageScope::BeyondGateway,
            failed: BTreeSet::from(["attic".to_owned()]),
            reachable: BTreeSet::new(),
        };
        store.save_outage("PP", &outage).await.unwrap();
        service.pass(1).await;
        assert_eq!(service.alerts().await, []);
        service.pass(1).await;
        service.restart();
        service.pass(5).await;
        let open = |is_closed| (lasting::WHOLE_LINE.to_owned(), is_closed);
        assert_eq!(service.alerts().await, [open(false)]);
        let alert = device.alerts(true, None, 1).await.unwrap().remove(0);
        assert_eq!(alert.opening.title, "Outage: the gateway answers, nothing beyond it does");
        outage.ended_at = Some(service.now);
        store.save_outage("PP", &outage).await.unwrap();
        service.restart();
        service.pass(2).await;
        assert_eq!(service.alerts().await, [open(true)]);
        service.pass(30).await;
        assert_eq!(service.alerts().await, [open(true), open(false)], "no result for half an hour");
        service.restart();
        service.pass(1).await;
        service.test(1, 90).await;
        service.pass(1).await;
        assert_eq!(service.alerts().await, [open(true), open(true)]);
    }
}

#[tokio::test]
async fn an_alert_and_its_messages_are_there_together_and_wait_for_the_end_of_quiet_hours() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        let local = service.now.to_zoned(jiff::tz::TimeZone::UTC);
        let hour = |offset: i64| {
            let time = local.checked_add(SignedDuration::from_hours(offset)).unwrap();
            time.strftime("%H:00").to_string()
        };
        let quiet_hours = format!("{}-{}", hour(-1), hour(3)).parse().ok();
        device.add_rule(&AlertRule { quiet_hours, ..slow(1, 1) }).await.unwrap();
        service.test(1, 10).await;
        let alert = device.alerts(true, None, 1).await.unwrap().remove(0);
        let stored = device.rule("slow").await.unwrap().stored;
        let finding = Box::new(alert.opening.finding);
        let write = writing::write_of(&stored, AlertAction::Open { subject: attic(), finding }, None, service.now);
        let Some(AlertWrite::Open(_, say)) = write else { panic!("{write:?}") };
        let wait = say.not_before.duration_since(service.now);
        assert!(wait > SignedDuration::from_hours(1) && wait <= SignedDuration::from_hours(3), "{wait}");
        assert_eq!(say.message.alert.unwrap().unit, "bit/s");
    }
}

#[tokio::test]
async fn a_preview_compares_the_past_with_the_plan_and_with_what_was_usual_then() {
    for (_folder, device) in devices() {
        let store = device.store().await.unwrap();
        let now = Timestamp::now() - SignedDuration::from_mins(5);
        let weeks_ago = |weeks: i64| now - SignedDuration::from_hours(weeks * 7 * 24);
        for weeks in 0..=6 {
            let mbps = if weeks == 0 { 30 } else { 90 };
            store.save_run(&document(weeks_ago(weeks), mbps, LimitCause::Network)).await.unwrap();
        }
        let rule = |limit| AlertRule { limit: Some(limit), ..slow(1, 1) };
        let usual = device.preview_rule(&rule(AlertLimit::BelowUsual(0.6))).await.unwrap();
        assert_eq!(usual.alerts.len(), 1, "{usual:?}");
        assert!(usual.alerts[0].title.starts_with("Slow download: 30.0 Mbit/s"), "{usual:?}");
        let unknown = usual.not_judged["not enough history for this hour of the week"];
        assert_eq!((usual.judged, unknown), (2, 3), "the hours of the week of five weeks are known for two tests");
        let of_plan = device.preview_rule(&rule(AlertLimit::BelowPlan(0.5))).await.unwrap();
        assert_eq!((of_plan.judged, of_plan.not_judged["no plan is set"]), (0, 5));
        let rate = crate::plan::PromisedRate { promised_bps: 100_000_000, normal_bps: None, minimum_bps: None };
        device.set_plan(&Plan { name: None, download: rate, upload: rate }).await.unwrap();
        let of_plan = device.preview_rule(&rule(AlertLimit::BelowPlan(0.5))).await.unwrap();
        assert_eq!((of_plan.judged, of_plan.alerts.len()), (5, 1));
        let silence = AlertRule::new("s", AlertMetric::Silence, Some(AlertLimit::Above(86_400.0)), slow(1, 1).zone);
        assert_eq!(device.preview_rule(&silence).await.unwrap().alerts.len(), 4, "a day after each of the four before");
    }
}

#[tokio::test]
async fn what_is_usual_for_a_monitor_is_that_of_its_hours() {
    for (_folder, device) in devices() {
        let mut service = TestService::new(&device);
        let store = device.store().await.unwrap();
        let number = device.add_monitor(Monitor::new("attic", MonitorTarget::Gateway, None)).await.unwrap().number;
        let limit = Some(AlertLimit::AboveUsual(2.0));
        let metric = AlertMetric::MonitorLatencyP50;
        device.add_rule(&AlertRule::new("slow", metric, limit, "UTC".parse().unwrap())).await.unwrap();
        let tally = |us: u64| {
            let mut tally = ProbeTally { count: 60, min_max_us: Some((us, us)), ..ProbeTally::default() };
            (0..60).for_each(|_| tally.round_trips.note(us));
            tally
        };
        let begin = (minute_of(service.now) / 5 + 1) * 5;
        let save = async |begin: i64, length: i64, us: u64| {
            let minute = |minute| MonitorMinute { number, minute, tally: tally(us) };
            let rows = (begin..begin + length).map(minute).collect::<Vec<_>>();
            store.save_minutes(&rows, begin + 2 * length + 120).await.unwrap();
        };
        // Saves two hours with a round trip of 20 ms in each of seven earlier weeks. The store computes the hours when
        // it saves the minutes.
        for week in 1..=7 {
            save(begin - week * 7 * 1_440 - 60, 120, 20_000).await;
        }
        save(begin, 5, 41_000).await;
        service.now = Timestamp::from_second((begin + 5) * 60).unwrap();
        service.pass(0).await;
        assert_eq!(service.alerts().await, [("attic".to_owned(), false)]);
        let finding = device.alerts(true, None, 1).await.unwrap().remove(0).opening.finding;
        let usual = finding.reference.unwrap();
        assert!((usual - 20.0).abs() < 0.4, "{usual}");
    }
}
