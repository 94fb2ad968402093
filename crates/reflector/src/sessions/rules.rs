//! Tests of the session rules. The name of each test is a rule, written as a sentence.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use paramedic_link::message::{Denial, DenialReason, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::{EndpointId, SessionId};

use super::*;

const A: EndpointId = EndpointId::from_bytes([1; 32]);
const B: EndpointId = EndpointId::from_bytes([2; 32]);
const C: EndpointId = EndpointId::from_bytes([3; 32]);

/// Noon of the day with number 20,000, in milliseconds since 1970.
const NOON: u64 = 20_000 * 86_400_000 + 12 * 3_600_000;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn engine(id: &str) -> EngineId {
    EngineId::try_from(id).unwrap()
}

fn limits() -> Limits {
    Limits {
        max_concurrent_tests: 1,
        max_test_duration: seconds(120),
        max_streams: 16,
        max_tests_per_hour: 10,
        max_bytes_per_day: 1_000_000,
        max_bytes_per_day_total: 1_500_000,
        max_queue: 4,
        max_queue_per_peer: 2,
        max_monitors: 3,
        max_monitors_per_peer: 2,
        descriptors: usize::MAX,
        data_ports: Some(5201..=5202),
        data_modes: vec![DataMode::Tunneled, DataMode::DirectEphemeral],
        engines: vec![engine("tcp"), engine("udp")],
        engine_modes: BTreeMap::new(),
    }
}

fn tunneled() -> TestSpec {
    let phases = vec![
        PhaseSpec { load: Load::Download, duration_ms: 10_000 },
        PhaseSpec { load: Load::Upload, duration_ms: 10_000 },
    ];
    TestSpec { probe_interval_us: 10_000, ..TestSpec::new(engine("tcp"), DataMode::Tunneled, phases, 4) }
}

fn direct() -> TestSpec {
    TestSpec { data_mode: DataMode::DirectEphemeral, ..tunneled() }
}

fn lasting(duration_ms: u32) -> TestSpec {
    TestSpec { phases: vec![PhaseSpec { load: Load::Download, duration_ms }], ..tunneled() }
}

/// The sessions of a reflector, with a simulated clock and simulated ids.
struct Fixture {
    sessions: Sessions<SessionId>,
    now: Now,
    ids: u64,
    /// When each session last received something.
    last_received: BTreeMap<SessionId, Duration>,
    /// The audit events of all decisions.
    events: Vec<AuditEvent>,
}

fn id(n: u64) -> SessionId {
    SessionId::from_bytes(u128::from(n).to_be_bytes())
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        Self::remembering(limits, PastUsage::default())
    }

    fn remembering(limits: Limits, past: PastUsage) -> Self {
        let now = Now { mono: seconds(100), unix_ms: NOON };
        let sessions = Sessions::new(limits, past, now);
        Self { sessions, now, ids: 0, last_received: BTreeMap::new(), events: Vec::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.unix_ms += millis(time);
    }

    fn ask(&mut self, link: u64, peer: EndpointId, spec: TestSpec, wait: bool) -> Answer {
        self.ids += 1;
        let (answer, events) = self.sessions.request(LinkId(link), peer, spec, wait, id(self.ids), self.now);
        self.events.extend(events);
        answer
    }

    fn ask_monitor(&mut self, link: u64, peer: EndpointId) -> Result<Reservation, DenialReason> {
        self.ids += 1;
        let (answer, events) = self.sessions.request_monitor(LinkId(link), peer, id(self.ids), self.now);
        self.events.extend(events);
        match answer {
            Answer::Reserved(reservation) => Ok(reservation),
            Answer::Denied(denial) => Err(denial.reason),
            Answer::Queued { .. } => panic!("a monitor is not queued"),
        }
    }

    fn grant_monitor(&mut self, link: u64, peer: EndpointId) -> Reservation {
        let reservation = self.ask_monitor(link, peer).unwrap();
        assert!(self.open(reservation.session));
        reservation
    }

    fn reserve(&mut self, link: u64, peer: EndpointId, spec: TestSpec) -> Reservation {
        match self.ask(link, peer, spec, true) {
            Answer::Reserved(reservation) => reservation,
            other => panic!("{other:?}"),
        }
    }

    fn grant(&mut self, link: u64, peer: EndpointId, spec: TestSpec) -> Reservation {
        let reservation = self.reserve(link, peer, spec);
        assert!(self.open(reservation.session));
        self.sessions.started(reservation.session);
        reservation
    }

    /// Opens and grants a session, unless it was taken back. Returns whether it was granted.
    fn open(&mut self, session: SessionId) -> bool {
        let (is_wanted, events) = self.sessions.opened(session, self.now);
        self.events.extend(events);
        self.receive(session);
        self.sessions.granted(session, session);
        is_wanted
    }

    fn receive(&mut self, session: SessionId) {
        self.last_received.insert(session, self.now.mono);
    }

    fn port_is_held(&mut self, session: SessionId) -> Answer {
        let (answer, events) = self.sessions.port_is_held(session, self.now);
        self.events.extend(events);
        answer
    }

    fn close(&mut self, link: u64) {
        let events = self.sessions.link_closed(LinkId(link), self.now);
        self.events.extend(events);
    }

    fn place(&mut self, link: u64, peer: EndpointId, spec: TestSpec) -> (u32, Duration) {
        match self.ask(link, peer, spec, true) {
            Answer::Queued { place, expected_wait } => (place, expected_wait),
            other => panic!("{other:?}"),
        }
    }

    fn denial(&mut self, link: u64, peer: EndpointId, spec: TestSpec, wait: bool) -> Denial {
        match self.ask(link, peer, spec, wait) {
            Answer::Denied(denial) => denial,
            other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, reservation: &Reservation, used: u64) -> SessionAccounts {
        self.over(reservation.session, used, EndReason::Finished).unwrap()
    }

    fn over(&mut self, session: SessionId, used: u64, reason: EndReason) -> Option<SessionAccounts> {
        let (settled, events) = self.sessions.ended(session, used, reason, self.now);
        self.events.extend(events);
        settled
    }

    fn poll(&mut self) -> Vec<SessionAction> {
        let (ids, last_received) = (&mut self.ids, &self.last_received);
        let (actions, events) = self.sessions.poll(self.now, &|session| last_received[session], &mut || {
            *ids += 1;
            id(*ids)
        });
        self.events.extend(events);
        actions
    }

    /// Polls, and returns the reservations of the queued requests that can begin.
    fn served(&mut self) -> Vec<Reservation> {
        let reserved = |action| match action {
            SessionAction::Reserve(reservation) => Some(reservation),
            _ => None,
        };
        self.poll().into_iter().filter_map(reserved).collect()
    }
}

#[test]
fn a_free_slot_is_reserved_at_once_and_without_one_requests_are_queued() {
    let mut fixture = Fixture::new(limits());
    let first = fixture.grant(1, A, tunneled());
    assert_eq!((first.peer, first.port, first.expires_in), (A, None, seconds(20 + 2 * 6 + 15)));
    assert_eq!(fixture.place(2, B, tunneled()), (1, seconds(22)));
    assert_eq!(fixture.place(3, C, tunneled()), (2, seconds(44)));
    assert!(fixture.served().is_empty());
    fixture.end(&first, 0);
    assert_eq!(fixture.served()[0].link, LinkId(2));
}

#[test]
fn a_monitor_takes_no_slot_and_counts_as_no_test() {
    let mut fixture = Fixture::new(Limits { max_tests_per_hour: 1, ..limits() });
    fixture.grant_monitor(1, A);
    let test = fixture.grant(2, A, tunneled());
    fixture.grant_monitor(3, B);
    fixture.end(&test, 0);
    let seen = fixture.sessions.snapshot(fixture.now);
    assert_eq!((seen.sessions.len(), seen.monitors.len(), seen.counts.monitors_granted), (0, 2, 2));
    assert_eq!(fixture.ask_monitor(1, A), Err(DenialReason::AlreadyAsked));
    assert_eq!(fixture.denial(1, A, tunneled(), true).reason, DenialReason::AlreadyAsked, "one session a link");
}

#[test]
fn monitors_have_limits_for_each_device_and_in_all() {
    let mut fixture = Fixture::new(limits());
    let first = fixture.grant_monitor(1, A);
    fixture.grant_monitor(2, A);
    assert_eq!(fixture.ask_monitor(3, A), Err(DenialReason::TooManyMonitors));
    fixture.grant_monitor(4, B);
    assert_eq!(fixture.ask_monitor(5, C), Err(DenialReason::TooManyMonitors));
    fixture.over(first.session, 0, EndReason::Finished).unwrap();
    fixture.grant_monitor(5, C);
    let denied = AuditEvent::MonitorDenied { peer: C, reason: DenialReason::TooManyMonitors };
    assert!(fixture.events.contains(&denied), "{:?}", fixture.events);
}

#[test]
fn a_monitor_lasts_until_45_seconds_of_silence_a_drain_or_the_removal_of_its_device() {
    let mut fixture = Fixture::new(limits());
    let silent = fixture.grant_monitor(1, A).session;
    fixture.pass(seconds(44));
    assert_eq!(fixture.poll(), []);
    fixture.pass(seconds(1));
    assert_eq!(fixture.poll(), [SessionAction::End { session: silent, reason: EndReason::Silence }]);
    fixture.over(silent, 0, EndReason::Failed).unwrap();
    let (removed, drained) = (fixture.grant_monitor(2, A).session, fixture.grant_monitor(3, B).session);
    let test = fixture.grant(4, C, tunneled()).session;
    fixture.sessions.peer_removed(A, fixture.now);
    assert_eq!(fixture.poll(), [SessionAction::End { session: removed, reason: EndReason::PeerRemoved }]);
    fixture.over(removed, 0, EndReason::Failed).unwrap();
    fixture.sessions.drain();
    assert_eq!(fixture.poll(), [SessionAction::End { session: drained, reason: EndReason::Shutdown }]);
    assert!(fixture.sessions.running().any(|running| running == test), "a test goes on");
    assert_eq!(fixture.ask_monitor(5, A), Err(DenialReason::Draining));
    fixture.over(drained, 7_000, EndReason::Failed).unwrap();
    let ended = fixture.events.iter().filter_map(|event| match event {
        AuditEvent::MonitorEnded { reason, bytes, .. } => Some((*reason, *bytes)),
        _ => None,
    });
    let expected = [(EndReason::Silence, 0), (EndReason::PeerRemoved, 0), (EndReason::Shutdown, 7_000)];
    assert_eq!(ended.collect::<Vec<_>>(), expected);
}

#[test]
fn the_bytes_of_a_monitor_count_for_the_quotas() {
    let mut fixture = Fixture::new(limits());
    let monitor = fixture.grant_monitor(1, A);
    assert_eq!(fixture.sessions.lease(monitor.session, 2_000_000, fixture.now).unwrap().bytes, 1_000_000);
    assert_eq!(fixture.denial(2, A, tunneled(), true).reason, DenialReason::BytesPerDay);
    assert_eq!(fixture.ask_monitor(2, A), Err(DenialReason::BytesPerDay));
    assert_eq!(fixture.sessions.lease(monitor.session, 1, fixture.now), Err(EndReason::BytesPerDay));
}

#[test]
fn a_queued_request_reserves_nothing() {
    let mut fixture = Fixture::new(limits());
    fixture.grant(1, A, direct());
    fixture.place(2, B, direct());
    let seen = fixture.sessions.snapshot(fixture.now);
    assert_eq!(seen.sessions.len(), 1);
    assert_eq!(seen.peers.iter().map(|peer| (peer.peer, peer.tests_this_hour)).collect::<Vec<_>>(), [(A, 1)]);
    assert_eq!(fixture.sessions.ports.free(), 1);
}

#[test]
fn a_busy_denial_states_when_to_retry() {
    let mut fixture = Fixture::new(limits());
    fixture.grant(1, A, tunneled());
    fixture.pass(seconds(2));
    let busy = fixture.denial(2, B, tunneled(), false);
    assert_eq!((busy.reason, busy.retry_after_ms), (DenialReason::Busy, Some(20_000)));
    assert_eq!(fixture.sessions.snapshot(fixture.now).queue, []);
}

#[test]
fn peers_take_turns() {
    let mut fixture = Fixture::new(limits());
    let mut running = fixture.grant(1, A, tunneled());
    fixture.place(2, A, tunneled());
    fixture.place(3, A, tunneled());
    fixture.place(4, B, tunneled());
    let mut order = Vec::new();
    for _ in 0..3 {
        fixture.end(&running, 0);
        running = fixture.served().remove(0);
        assert!(fixture.open(running.session));
        order.push(running.link.0);
    }
    assert_eq!(order, [4, 2, 3]);
}

#[test]
fn a_new_request_never_overtakes_a_waiting_one() {
    let mut fixture = Fixture::new(limits());
    let running = fixture.grant(1, A, tunneled());
    fixture.place(2, B, tunneled());
    fixture.end(&running, 0);
    // The slot is free, but it is B's turn, although poll was not called yet.
    assert_eq!(fixture.place(3, C, tunneled()).0, 2);
    assert_eq!(fixture.served()[0].link, LinkId(2));
}

#[test]
fn one_link_has_one_session_or_request() {
    let mut fixture = Fixture::new(limits());
    fixture.grant(1, A, tunneled());
    assert_eq!(fixture.denial(1, A, tunneled(), true).reason, DenialReason::AlreadyAsked);
    fixture.place(2, A, tunneled());
    assert_eq!(fixture.denial(2, A, tunneled(), true).reason, DenialReason::AlreadyAsked);
}

#[test]
fn an_excessive_request_is_denied_with_the_limit_in_its_text() {
    let mut fixture = Fixture::new(limits());
    let mut denied = |spec| {
        let denial = fixture.denial(1, A, spec, true);
        assert_eq!(denial.retry_after_ms, None);
        (denial.reason, denial.detail.to_string())
    };
    let too_long = (DenialReason::TooLong, "10 min requested, limit 2 min".to_owned());
    assert_eq!(denied(lasting(600_000)), too_long);
    let many = TestSpec { streams: 17, ..tunneled() };
    assert_eq!(denied(many), (DenialReason::TooManyStreams, "17 streams requested, limit 16".to_owned()));
    let warp = TestSpec { engine: engine("warp"), ..tunneled() };
    assert_eq!(denied(warp).1, "engine warp is not offered here; offered: tcp, udp");
    let hole = TestSpec { data_mode: DataMode::Unknown, ..tunneled() };
    assert_eq!(denied(hole).0, DenialReason::ModeNotOffered);
    let nothing = TestSpec { phases: vec![], ..tunneled() };
    assert_eq!(denied(nothing).0, DenialReason::BadRequest);
}

#[test]
fn direct_is_not_offered_without_ports_even_if_listed() {
    #[expect(clippy::reversed_empty_ranges, reason = "the test needs an empty range")]
    let empty: RangeInclusive<u16> = 5202..=5201;
    for data_ports in [None, Some(empty)] {
        let mut fixture = Fixture::new(Limits { data_ports, ..limits() });
        let denial = fixture.denial(1, A, direct(), true);
        assert_eq!(denial.reason, DenialReason::ModeNotOffered);
        assert!(denial.detail.as_str().ends_with("offered: tunneled"), "{denial:?}");
    }
}

#[test]
fn an_engine_is_offered_in_its_data_modes() {
    let engine_modes = BTreeMap::from([(engine("udp"), vec![DataMode::DirectEphemeral])]);
    let mut fixture = Fixture::new(Limits { engine_modes, ..limits() });
    let denial = fixture.denial(1, A, TestSpec { engine: engine("udp"), ..tunneled() }, true);
    assert_eq!(denial.reason, DenialReason::ModeNotOffered);
    assert!(denial.detail.as_str().ends_with("with udp; offered: direct_ephemeral"), "{denial:?}");
    fixture.grant(1, A, TestSpec { engine: engine("udp"), ..direct() });
}

#[test]
fn a_peer_is_granted_again_when_its_oldest_test_is_an_hour_old() {
    let past = PastUsage { tests: vec![(A, NOON - 3_000_000)], ..PastUsage::default() };
    let mut fixture = Fixture::remembering(Limits { max_tests_per_hour: 2, ..limits() }, past);
    let second = fixture.grant(1, A, tunneled());
    fixture.end(&second, 0);
    let denial = fixture.denial(1, A, tunneled(), true);
    assert_eq!((denial.reason, denial.retry_after_ms), (DenialReason::TestsPerHour, Some(600_000)));
    fixture.pass(seconds(600));
    fixture.grant(1, A, tunneled());
}

#[test]
fn limits_are_checked_again_when_the_turn_comes() {
    let mut fixture = Fixture::new(Limits { max_tests_per_hour: 1, ..limits() });
    let running = fixture.grant(1, A, tunneled());
    fixture.place(2, B, tunneled());
    fixture.place(3, B, tunneled());
    fixture.end(&running, 0);
    let served = fixture.served().remove(0);
    assert_eq!(served.link, LinkId(2));
    assert!(fixture.open(served.session));
    fixture.end(&served, 0);
    let actions = fixture.poll();
    assert!(
        matches!(&actions[..], [SessionAction::Deny { link: LinkId(3), denial }] if denial.reason == DenialReason::TestsPerHour),
        "{actions:?}"
    );
}

#[test]
fn the_queue_is_bounded_in_total_and_for_each_peer() {
    let mut fixture = Fixture::new(Limits { max_queue: 3, ..limits() });
    fixture.grant(1, A, tunneled());
    fixture.place(2, A, tunneled());
    fixture.place(3, A, tunneled());
    assert_eq!(fixture.denial(4, A, tunneled(), true).reason, DenialReason::QueueFull);
    fixture.place(5, B, tunneled());
    assert_eq!(fixture.denial(6, C, tunneled(), true).reason, DenialReason::QueueFull);
}

#[test]
fn ports_are_never_shared_and_the_longest_unused_goes_first() {
    let mut fixture = Fixture::new(Limits { max_concurrent_tests: 3, ..limits() });
    let first = fixture.grant(1, A, direct());
    let second = fixture.grant(2, B, direct());
    assert_eq!((first.port, second.port), (Some(5201), Some(5202)));
    let no_port = fixture.denial(3, C, direct(), false);
    assert_eq!((no_port.reason, no_port.retry_after_ms), (DenialReason::NoPort, Some(22_000)));
    assert_eq!(fixture.place(3, C, direct()).0, 1);
    assert_eq!(fixture.reserve(4, C, tunneled()).port, None, "a request without a port passes");
    fixture.end(&second, 0);
    fixture.end(&first, 0);
    assert_eq!(fixture.served()[0].port, Some(5202));
}

#[test]
fn a_held_port_is_never_granted_and_the_next_one_is_tried() {
    let mut fixture = Fixture::new(limits());
    let first = fixture.reserve(1, A, direct());
    let Answer::Reserved(second) = fixture.port_is_held(first.session) else { panic!() };
    assert_eq!((first.port, second.port), (Some(5201), Some(5202)));
    assert!(fixture.open(second.session));
    let events = &fixture.events;
    assert!(
        matches!(
            events[..],
            [AuditEvent::PortHeld { port: 5201, .. }, AuditEvent::SessionGranted { port: Some(5202), .. }]
        ),
        "{events:?}"
    );
}

#[test]
fn when_every_port_is_held_the_reservation_is_undone() {
    let mut fixture = Fixture::new(Limits { max_tests_per_hour: 1, ..limits() });
    let reserved = fixture.reserve(1, A, direct()).session;
    assert!(matches!(fixture.port_is_held(reserved), Answer::Reserved(_)));
    let Answer::Denied(denial) = fixture.port_is_held(reserved) else { panic!() };
    assert_eq!((denial.reason, denial.retry_after_ms), (DenialReason::NoPort, Some(60_000)));
    assert_eq!(fixture.events.len(), 3, "two held ports and a denial");
    assert_eq!(fixture.sessions.snapshot(fixture.now).held_ports, [5201, 5202]);
    // Slot and test are free again, and so are the ports: they may be available by now.
    fixture.reserve(1, A, direct());
    assert!(matches!(fixture.port_is_held(id(77)), Answer::Denied(_)));
}

#[test]
fn an_undone_session_costs_nothing() {
    let mut fixture = Fixture::new(Limits { max_tests_per_hour: 1, data_ports: Some(5201..=5201), ..limits() });
    for _ in 0..3 {
        let reserved = fixture.grant(1, A, direct());
        fixture.sessions.lease(reserved.session, 900_000, fixture.now).unwrap();
        let undone = AuditEvent::SessionUndone { session: reserved.session, peer: A };
        assert_eq!(fixture.sessions.undo(reserved.session, fixture.now), [undone]);
    }
    let seen = fixture.sessions.snapshot(fixture.now);
    assert_eq!((seen.sessions, seen.bytes_today, seen.peers), (vec![], 0, vec![]));
}

#[test]
fn nothing_is_leased_before_the_session_is_opened() {
    let mut fixture = Fixture::new(limits());
    let reserved = fixture.reserve(1, A, tunneled());
    assert_eq!(fixture.sessions.lease(reserved.session, 1, fixture.now), Err(EndReason::Failed));
    assert!(fixture.open(reserved.session));
    assert_eq!(fixture.sessions.lease(reserved.session, 1, fixture.now), Ok(Lease { bytes: 1, day: 20_000 }));
}

#[test]
fn leases_shrink_with_the_rest_of_the_day() {
    let mut fixture =
        Fixture::new(Limits { max_bytes_per_day: 1 << 40, max_bytes_per_day_total: u64::MAX, ..limits() });
    let session = fixture.grant(1, A, tunneled());
    let mut lease = |wanted| fixture.sessions.lease(session.session, wanted, fixture.now).map(|lease| lease.bytes);
    assert_eq!(lease(1 << 30), Ok(1 << 30));
    let mut left = (1 << 40) - (1 << 30);
    while left > 0 {
        let bytes = lease(u64::MAX).unwrap();
        assert_eq!(bytes, (left / 16).max(16 << 20).min(left));
        left -= bytes;
    }
    assert_eq!(lease(1), Err(EndReason::BytesPerDay));
}

#[test]
fn leases_stop_at_the_daily_limit_of_the_peer_and_of_all() {
    let mut fixture = Fixture::new(Limits { max_concurrent_tests: 2, ..limits() });
    let (a, b) = (fixture.grant(1, A, tunneled()), fixture.grant(2, B, tunneled()));
    let now = fixture.now;
    let mut lease = |of: &Reservation, wanted| fixture.sessions.lease(of.session, wanted, now).map(|lease| lease.bytes);
    assert_eq!(lease(&a, 900_000), Ok(900_000));
    assert_eq!(lease(&a, 900_000), Ok(100_000));
    assert_eq!(lease(&a, 1), Err(EndReason::BytesPerDay));
    assert_eq!(lease(&b, u64::MAX), Ok(500_000));
    assert_eq!(lease(&b, 1), Err(EndReason::BytesPerDay));
    // Unused bytes are available again.
    fixture.end(&a, 500_000);
    assert_eq!(fixture.sessions.lease(b.session, u64::MAX, now).unwrap().bytes, 500_000);
    let denial = fixture.denial(3, C, tunneled(), true);
    assert_eq!((denial.reason, denial.retry_after_ms), (DenialReason::BytesPerDay, Some(12 * 3_600_000)));
}

#[test]
fn bytes_are_charged_to_the_day_of_their_lease() {
    let mut fixture = Fixture::new(Limits { max_test_duration: seconds(86_400), ..limits() });
    fixture.pass(seconds(12 * 3600 - 1));
    let session = fixture.grant(1, A, lasting(60_000));
    fixture.sessions.lease(session.session, 1_000_000, fixture.now).unwrap();
    assert_eq!(fixture.sessions.lease(session.session, 1, fixture.now), Err(EndReason::BytesPerDay));
    fixture.pass(seconds(1));
    assert_eq!(fixture.sessions.lease(session.session, 300, fixture.now), Ok(Lease { bytes: 300, day: 20_001 }));
    let settled = fixture.end(&session, 1_000_100);
    assert_eq!(settled.bytes_by_day, [(20_000, 1_000_000), (20_001, 100)]);
    assert_eq!(fixture.sessions.snapshot(fixture.now).bytes_today, 100);
}

#[test]
fn bytes_beyond_the_lease_are_charged() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.sessions.lease(session.session, 1_000_000, fixture.now).unwrap();
    assert_eq!(fixture.end(&session, 1_000_064).bytes_by_day, [(20_000, 1_000_064)]);
    assert_eq!(fixture.denial(1, A, tunneled(), true).reason, DenialReason::BytesPerDay);
}

#[test]
fn earlier_usage_counts_after_a_restart() {
    let past = PastUsage { tests: vec![], bytes: vec![(A, 20_000, 1_000_000), (B, 19_999, 1_000_000)] };
    let mut fixture = Fixture::remembering(limits(), past);
    assert_eq!(fixture.denial(1, A, tunneled(), true).reason, DenialReason::BytesPerDay);
    fixture.grant(2, B, tunneled());
}

#[test]
fn a_session_ends_at_its_deadline_despite_messages() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    for _ in 0..46 {
        fixture.pass(seconds(1));
        fixture.receive(session.session);
        assert_eq!(fixture.poll(), []);
    }
    fixture.pass(seconds(1));
    let end = SessionAction::End { session: session.session, reason: EndReason::Deadline };
    assert_eq!(fixture.poll(), [end]);
    assert_eq!(fixture.sessions.lease(session.session, 1, fixture.now), Err(EndReason::Deadline));
}

#[test]
fn silence_ends_a_session_only_after_ten_seconds() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.pass(seconds(3));
    fixture.receive(session.session);
    fixture.poll();
    fixture.pass(seconds(7));
    assert_eq!(fixture.sessions.next_deadline(), Some(fixture.now.mono), "silence is checked 10 s after the grant");
    assert_eq!(fixture.poll(), []);
    assert_eq!(fixture.sessions.next_deadline(), Some(fixture.now.mono + seconds(3)));
    fixture.pass(seconds(3) - Duration::from_millis(1));
    assert_eq!(fixture.poll(), []);
    fixture.pass(Duration::from_millis(1));
    assert_eq!(fixture.poll(), [SessionAction::End { session: session.session, reason: EndReason::Silence }]);
}

#[test]
fn a_grant_that_is_not_started_within_thirty_seconds_ends() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.reserve(1, A, tunneled()).session;
    assert!(fixture.open(session));
    for _ in 0..29 {
        fixture.pass(seconds(1));
        fixture.receive(session);
        assert_eq!(fixture.poll(), []);
    }
    fixture.pass(seconds(1));
    fixture.receive(session);
    assert_eq!(fixture.poll(), [SessionAction::End { session, reason: EndReason::NotStarted }]);
}

#[test]
fn a_request_that_needs_more_descriptors_than_there_are_is_denied_for_good() {
    // 4 streams of a download, and their places at the listening port: 16 + 4 * 5 + 5.
    let mut fixture = Fixture::new(Limits { descriptors: 40, ..limits() });
    let denial = fixture.denial(1, A, tunneled(), true);
    assert_eq!((denial.reason, denial.retry_after_ms), (DenialReason::TooManyStreams, None));
    assert!(denial.detail.as_str().contains("41 open files") && denial.detail.as_str().contains("allows 40"));
    fixture.grant(1, A, TestSpec { streams: 3, ..tunneled() });
}

#[test]
fn sessions_share_the_descriptors_and_large_requests_are_not_overtaken() {
    let mut fixture = Fixture::new(Limits { descriptors: 88, max_concurrent_tests: 4, ..limits() });
    let first = fixture.grant(1, A, tunneled()).session;
    fixture.place(2, B, TestSpec { streams: 8, ..tunneled() });
    fixture.place(3, C, TestSpec { streams: 1, ..tunneled() });
    assert_eq!(fixture.poll(), []);
    fixture.over(first, 0, EndReason::Finished);
    let links = fixture.poll().into_iter().map(|action| match action {
        SessionAction::Reserve(reservation) => reservation.link,
        other => panic!("{other:?}"),
    });
    assert_eq!(links.collect::<Vec<_>>(), [LinkId(2), LinkId(3)]);
}

#[test]
fn an_end_is_repeated_until_the_session_is_torn_down() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.close(1);
    assert_eq!(fixture.poll().len(), 1);
    assert_eq!(fixture.poll(), []);
    fixture.pass(seconds(5));
    assert_eq!(fixture.poll().len(), 1);
    let settled = fixture.over(session.session, 0, EndReason::Failed).unwrap();
    assert_eq!(settled.reason, EndReason::LinkClosed, "the first reason counts");
    assert_eq!(fixture.over(session.session, 0, EndReason::Failed), None);
    assert_eq!((fixture.poll(), fixture.sessions.next_deadline()), (vec![], None));
}

#[test]
fn a_link_that_closes_during_the_teardown_is_not_its_reason() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    let first = fixture.sessions.tear_down(session.session, EndReason::Shutdown, fixture.now);
    let second = fixture.sessions.tear_down(session.session, EndReason::Failed, fixture.now);
    assert_eq!((first, second), (Some(session.session), None), "only one caller tears it down");
    assert_eq!(fixture.sessions.handle(session.session), None);
    fixture.close(1);
    assert_eq!(fixture.poll(), []);
    let settled = fixture.over(session.session, 0, EndReason::Shutdown).unwrap();
    assert_eq!(settled.reason, EndReason::Shutdown);
}

#[test]
fn a_closed_link_takes_its_ungranted_reservation_back() {
    let mut fixture = Fixture::new(limits());
    let reserved = fixture.reserve(1, A, tunneled());
    fixture.place(2, B, tunneled());
    fixture.place(3, C, tunneled());
    fixture.close(1);
    fixture.close(2);
    assert!(!fixture.open(reserved.session));
    assert_eq!(fixture.served()[0].link, LinkId(3));
}

#[test]
fn a_withdrawal_ends_a_queued_request_but_not_a_granted_session() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.place(2, B, tunneled());
    assert_eq!(fixture.sessions.withdraw(LinkId(1)), []);
    assert_eq!(fixture.sessions.withdraw(LinkId(2)), []);
    assert_eq!(fixture.poll(), []);
    fixture.end(&session, 0);
    assert_eq!(fixture.poll(), []);
}

#[test]
fn a_removed_peer_loses_its_sessions_and_requests_but_stays_charged() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.place(2, A, tunneled());
    fixture.place(3, B, tunneled());
    fixture.sessions.peer_removed(A, fixture.now);
    let end = SessionAction::End { session: session.session, reason: EndReason::PeerRemoved };
    assert!(fixture.poll().contains(&end));
    fixture.end(&session, 7);
    assert_eq!(fixture.served()[0].link, LinkId(3));
    let seen = fixture.sessions.snapshot(fixture.now);
    assert!(seen.peers.iter().any(|peer| peer.peer == A && peer.tests_this_hour == 1 && peer.bytes_today == 7));
}

#[test]
fn draining_denies_queued_requests_and_lets_sessions_finish() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.place(2, B, tunneled());
    fixture.sessions.drain();
    let actions = fixture.poll();
    assert!(
        matches!(&actions[..], [SessionAction::Deny { link: LinkId(2), denial }] if denial.reason == DenialReason::Draining),
        "{actions:?}"
    );
    assert_eq!(fixture.denial(3, C, tunneled(), true).reason, DenialReason::Draining);
    assert_eq!(fixture.sessions.lease(session.session, 5, fixture.now).map(|lease| lease.bytes), Ok(5));
}

#[test]
fn nothing_is_granted_while_faulted() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, tunneled());
    fixture.sessions.set_faulted(true);
    let denial = fixture.denial(2, B, tunneled(), true);
    assert_eq!((denial.reason, denial.retry_after_ms), (DenialReason::Faulted, Some(5_000)));
    assert!(fixture.sessions.lease(session.session, 5, fixture.now).is_ok(), "running tests go on");
    fixture.end(&session, 0);
    fixture.sessions.set_faulted(false);
    fixture.grant(2, B, tunneled());
}

#[test]
fn a_queued_request_is_sent_a_better_place() {
    let mut fixture = Fixture::new(limits());
    let running = fixture.grant(1, A, tunneled());
    fixture.place(2, B, tunneled());
    fixture.place(3, C, tunneled());
    fixture.poll();
    fixture.pass(seconds(22));
    fixture.receive(running.session);
    assert_eq!(fixture.poll(), [], "elapsed time alone is not sent");
    fixture.end(&running, 0);
    let actions = fixture.poll();
    let moved = SessionAction::Place { link: LinkId(3), place: 1, expected_wait: seconds(22) };
    assert!(matches!(&actions[..], [SessionAction::Reserve(_), place] if *place == moved), "{actions:?}");
}

#[test]
fn every_decision_leaves_its_event() {
    let mut fixture = Fixture::new(limits());
    let session = fixture.grant(1, A, direct());
    fixture.place(2, B, tunneled());
    fixture.denial(3, C, tunneled(), false);
    fixture.pass(seconds(4));
    fixture.end(&session, 9);
    let expected = [
        AuditEvent::SessionGranted {
            session: session.session,
            peer: A,
            engine: engine("tcp"),
            data_mode: DataMode::DirectEphemeral,
            port: Some(5201),
            expires_in_ms: 47_000,
        },
        AuditEvent::SessionQueued { peer: B, place: 1 },
        AuditEvent::SessionDenied { peer: C, reason: DenialReason::Busy },
        AuditEvent::SessionEnded {
            session: session.session,
            peer: A,
            reason: EndReason::Finished,
            bytes: 9,
            elapsed_ms: 4_000,
        },
    ];
    assert_eq!(fixture.events, expected);
}

#[test]
fn the_clock_may_jump_by_a_year() {
    let mut fixture =
        Fixture::new(Limits { max_bytes_per_day: u64::MAX, max_bytes_per_day_total: u64::MAX, ..limits() });
    for _ in 0..365 * 4 {
        let session = fixture.grant(1, A, direct());
        fixture.sessions.lease(session.session, 1 << 40, fixture.now).unwrap();
        fixture.pass(seconds(20));
        fixture.end(&session, 1 << 30);
        fixture.pass(seconds(6 * 3600 - 20));
    }
    assert_eq!(fixture.events.len(), 365 * 4 * 2);
}

#[test]
fn extreme_times_do_not_panic() {
    let mut fixture = Fixture::new(limits());
    fixture.now = Now { mono: Duration::MAX, unix_ms: u64::MAX };
    let session = fixture.grant(1, A, direct());
    fixture.sessions.lease(session.session, u64::MAX, fixture.now).unwrap();
    fixture.poll();
    fixture.place(2, B, direct());
    fixture.sessions.snapshot(fixture.now);
    fixture.now = Now { mono: Duration::ZERO, unix_ms: 0 };
    assert_eq!(fixture.end(&session, u64::MAX).bytes_by_day.len(), 1);
    fixture.served();
    fixture.sessions.snapshot(fixture.now);
}

/// A reflector where link 1 had a direct session that ended before its streams arrived. Requests of other links wait.
fn unreached(limits: Limits) -> Fixture {
    let mut fixture = Fixture::new(limits);
    let first = fixture.grant(1, A, direct());
    fixture.place(2, B, tunneled());
    fixture.place(3, C, tunneled());
    fixture.end(&first, 96);
    fixture
}

#[test]
fn the_tunneled_repetition_of_a_direct_session_that_was_not_reached_is_the_same_test_and_comes_first() {
    let mut fixture = unreached(Limits { max_tests_per_hour: 1, max_queue: 2, ..limits() });
    fixture.pass(fallback::FALLBACK_WINDOW);
    let repeated = fixture.reserve(1, A, tunneled());
    assert!(!repeated.counts_as_test);
    assert!(fixture.open(repeated.session));
    assert_eq!(fixture.sessions.snapshot(fixture.now).peers[0].tests_this_hour, 1);
    // It is not repeated again, and the waiting requests are next.
    fixture.end(&repeated, 96);
    let denied = fixture.denial(1, A, tunneled(), true);
    assert_eq!(denied.reason, DenialReason::TestsPerHour);
    assert_eq!(fixture.served().iter().map(|next| next.link.0).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_repetition_for_which_there_is_no_slot_waits_in_the_first_place() {
    let mut fixture = unreached(Limits { max_tests_per_hour: 1, max_queue: 2, ..limits() });
    let other = fixture.served().pop().unwrap();
    assert_eq!(other.link, LinkId(2));
    // The queue has room for one more, and for a repetition in any case.
    fixture.place(4, EndpointId::from_bytes([4; 32]), tunneled());
    assert_eq!(fixture.place(1, A, tunneled()).0, 1);
    assert!(fixture.open(other.session));
    fixture.end(&other, 0);
    let next = fixture.served().pop().unwrap();
    assert_eq!((next.link, next.counts_as_test), (LinkId(1), false));
}

#[test]
fn any_other_request_is_another_test() {
    let denied = |fixture: &mut Fixture, link, spec| fixture.denial(link, A, spec, true).reason;
    let limits = Limits { max_tests_per_hour: 1, ..limits() };
    let mut late = unreached(limits.clone());
    late.pass(fallback::FALLBACK_WINDOW + Duration::from_millis(1));
    assert_eq!(denied(&mut late, 1, tunneled()), DenialReason::TestsPerHour);
    let mut other_link = unreached(limits.clone());
    assert_eq!(denied(&mut other_link, 9, tunneled()), DenialReason::TestsPerHour);
    let mut direct_again = unreached(limits.clone());
    assert_eq!(denied(&mut direct_again, 1, direct()), DenialReason::TestsPerHour);
    let mut closed = unreached(limits.clone());
    closed.close(1);
    assert_eq!(denied(&mut closed, 1, tunneled()), DenialReason::TestsPerHour);
    let mut reached = Fixture::new(limits.clone());
    let first = reached.grant(1, A, direct());
    reached.sessions.streams_arrived(first.session);
    reached.end(&first, 96);
    assert_eq!(denied(&mut reached, 1, tunneled()), DenialReason::TestsPerHour);
    let mut tunneled_before = Fixture::new(limits);
    let first = tunneled_before.grant(1, A, tunneled());
    tunneled_before.end(&first, 96);
    assert_eq!(denied(&mut tunneled_before, 1, tunneled()), DenialReason::TestsPerHour);
}

#[test]
fn a_tunneled_request_that_differs_from_the_direct_session_is_another_test() {
    let same = tunneled();
    let phase = same.phases[0];
    let longer = PhaseSpec { duration_ms: phase.duration_ms + 1, ..phase };
    let others = [
        TestSpec { engine: engine("udp"), ..same.clone() },
        TestSpec { phases: vec![longer], ..same.clone() },
        TestSpec { phases: vec![PhaseSpec { load: Load::Bidir, ..phase }], ..same.clone() },
        TestSpec { phases: vec![phase; 2], ..same.clone() },
        TestSpec { streams: same.streams + 1, ..same.clone() },
        TestSpec { direction_bytes: Some(1 << 30), ..same.clone() },
        TestSpec { bitrate_bps: Some(1_000_000), ..same.clone() },
        TestSpec { probe_interval_us: 100_000, ..same.clone() },
    ];
    for other in others {
        let mut fixture = unreached(Limits { max_tests_per_hour: 1, ..limits() });
        let denied = fixture.denial(1, A, other.clone(), true);
        assert_eq!(denied.reason, DenialReason::TestsPerHour, "{other:?}");
        assert!(!fixture.reserve(1, A, same.clone()).counts_as_test, "the same test may still be repeated");
    }
}

#[test]
fn each_decision_is_counted_once_as_it_is_audited() {
    let mut f = Fixture::new(limits());
    let first = f.grant(1, A, tunneled());
    f.place(2, B, tunneled());
    f.denial(3, C, tunneled(), false);
    f.denial(3, C, TestSpec { engine: engine("mystery"), ..tunneled() }, true);
    f.pass(seconds(7));
    let waited = f.sessions.snapshot(f.now).queue[0].waited_ms;
    assert_eq!(waited, 7_000);
    let lease = f.sessions.lease(first.session, 500, f.now).unwrap();
    f.sessions.return_lease(first.session, lease);
    f.end(&first, 0);
    let second = f.served().remove(0);
    let undone = f.sessions.undo(second.session, f.now);
    f.events.extend(undone);
    let third = f.grant(4, A, tunneled());
    let reason = EndReason::Silence;
    f.over(third.session, 0, reason);

    let counts = f.sessions.snapshot(f.now).counts;
    let tcp = engine("tcp");
    assert_eq!(counts.granted, [(tcp.clone(), 2)].into());
    assert_eq!(counts.ended, [(tcp, [(EndReason::Finished, 1), (reason, 1)].into())].into());
    // The name of an engine that is not offered comes from the device, so no count has that name.
    assert_eq!(counts.denied, [(DenialReason::Busy, 1), (DenialReason::EngineNotOffered, 1)].into());
    assert_eq!(counts.undone, 1);
    assert_eq!(counts.leases, LeaseCounts { granted: 1, unwritten: 1, refused: 0 });
    assert_eq!((counts.waits.count(), counts.waits.sum_us), (3, 7_000_000));
    let audited = |is: fn(&AuditEvent) -> bool| f.events.iter().filter(|event| is(event)).count();
    assert_eq!(audited(|event| matches!(event, AuditEvent::SessionGranted { .. })), 2);
    assert_eq!(audited(|event| matches!(event, AuditEvent::SessionEnded { .. })), 2);
    assert_eq!(audited(|event| matches!(event, AuditEvent::SessionDenied { .. })), 2);
    assert_eq!(audited(|event| matches!(event, AuditEvent::SessionUndone { .. })), 1);
}
