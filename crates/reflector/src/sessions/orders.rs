//! Tests of the session rules with random sequences of events. A model keeps its own counts from the answers of the
//! state machine, and checks after every event that the limits hold and that no session is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use paramedic_link::message::{DenialReason, END_AFTER_SILENCE, END_MONITOR_AFTER_SILENCE, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::{EndpointId, SessionId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const HOUR_MS: u64 = 3_600_000;
const PEERS: u8 = 4;
const LINKS: u64 = 10;

/// One event of a sequence. A `usize` chooses one of the sessions that exist.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Ask { link: u64, direct: bool, wait: bool, duration_ms: u32 },
    AskMonitor(u64),
    Poll,
    Open(usize),
    Undo(usize),
    PortHeld(usize),
    Heard(usize),
    Lease(usize, u64),
    End(usize, u64),
    Withdraw(u64),
    LinkClosed(u64),
    PeerRemoved(u8),
    Pass(u64),
    Faulted(bool),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let which = 0usize..8;
    let link = 0..LINKS;
    prop_oneof![
        12 => (link.clone(), any::<bool>(), prop::bool::weighted(0.8), 1u32..70_000)
            .prop_map(|(link, direct, wait, duration_ms)| Op::Ask { link, direct, wait, duration_ms }),
        4 => link.clone().prop_map(Op::AskMonitor),
        8 => Just(Op::Poll),
        8 => which.clone().prop_map(Op::Open),
        2 => which.clone().prop_map(Op::Undo),
        3 => which.clone().prop_map(Op::PortHeld),
        2 => which.clone().prop_map(Op::Heard),
        6 => (which.clone(), 0u64..900).prop_map(|(which, wanted)| Op::Lease(which, wanted)),
        8 => (which, 0u64..1200).prop_map(|(which, used)| Op::End(which, used)),
        1 => link.clone().prop_map(Op::Withdraw),
        2 => link.prop_map(Op::LinkClosed),
        1 => (0..PEERS).prop_map(Op::PeerRemoved),
        4 => prop_oneof![0u64..3_000, Just(6_000), Just(20_000), Just(45_000), Just(HOUR_MS / 3), Just(9 * HOUR_MS)]
            .prop_map(Op::Pass),
        1 => prop::bool::weighted(0.3).prop_map(Op::Faulted),
    ]
}

/// Random sequences of events, some with a shutdown.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    (vec(op(), 1..50), prop::option::weighted(0.1, 0usize..50)).prop_map(|(mut ops, drain)| {
        if let Some(at) = drain {
            ops.insert(at.min(ops.len()), Op::Drain);
        }
        ops
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u32..4, 1u16..4, 1u32..5, 500u64..2000, 500u64..3000).prop_map(|(slots, ports, tests, bytes, total)| Limits {
        max_concurrent_tests: slots,
        max_test_duration: Duration::from_secs(60),
        max_streams: 4,
        max_tests_per_hour: tests,
        max_bytes_per_day: bytes,
        max_bytes_per_day_total: total,
        max_queue: 6,
        max_queue_per_peer: 2,
        max_monitors: 3,
        max_monitors_per_peer: 2,
        descriptors: usize::MAX,
        data_ports: Some(5201..=5200 + ports),
        data_modes: vec![DataMode::Tunneled, DataMode::DirectEphemeral],
        engines: vec![EngineId::try_from("tcp").unwrap()],
        engine_modes: BTreeMap::new(),
    })
}

fn spec(direct: bool, duration_ms: u32) -> TestSpec {
    let data_mode = if direct { DataMode::DirectEphemeral } else { DataMode::Tunneled };
    let phases = vec![PhaseSpec { load: Load::Bidir, duration_ms }];
    TestSpec::new(EngineId::try_from("tcp").unwrap(), data_mode, phases, 1)
}

fn peer_of(link: LinkId) -> EndpointId {
    peer((link.0 % u64::from(PEERS)) as u8)
}

fn peer(number: u8) -> EndpointId {
    EndpointId::from_bytes([number + 1; 32])
}

/// What the model knows about a session.
#[derive(Debug)]
struct Known {
    link: LinkId,
    peer: EndpointId,
    port: Option<u16>,
    tried: BTreeSet<u16>,
    opened: bool,
    is_monitor: bool,
    leased: BTreeMap<u32, u64>,
}

/// The state machine, and the model with its counts.
pub(super) struct World {
    sessions: Sessions<SessionId>,
    limits: Limits,
    now: Now,
    ids: u128,
    /// When each granted session last received something.
    last_received: BTreeMap<SessionId, Duration>,
    held: BTreeMap<SessionId, Known>,
    waiting: BTreeSet<LinkId>,
    tests: Vec<(EndpointId, u64, SessionId)>,
    /// The links whose last counted test was a direct session that ended without streams.
    unreached: BTreeSet<LinkId>,
    bytes: BTreeMap<(u32, EndpointId), u64>,
    granted: BTreeSet<SessionId>,
    ending: BTreeSet<SessionId>,
    over: BTreeSet<SessionId>,
    draining: bool,
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        let now = Now { mono: Duration::ZERO, unix_ms: 20_000 * 86_400_000 };
        Self {
            sessions: Sessions::new(limits.clone(), PastUsage::default(), now),
            limits,
            now,
            ids: 0,
            last_received: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeSet::new(),
            tests: Vec::new(),
            unreached: BTreeSet::new(),
            bytes: BTreeMap::new(),
            granted: BTreeSet::new(),
            ending: BTreeSet::new(),
            over: BTreeSet::new(),
            draining: false,
        }
    }

    fn nth(&self, which: usize) -> Option<SessionId> {
        let count = self.held.len();
        (count > 0).then(|| self.held.keys().nth(which % count).copied()).flatten()
    }

    pub(super) fn run(&mut self, op: &Op) {
        match *op {
            Op::Ask { link, direct, wait, duration_ms } => self.ask(LinkId(link), spec(direct, duration_ms), wait),
            Op::AskMonitor(link) => self.ask_monitor(LinkId(link)),
            Op::Poll => self.poll(),
            Op::Open(which) => self.with(which, Self::open),
            Op::Undo(which) => self.with(which, |world, session| {
                let events = world.sessions.undo(session, world.now);
                world.forget(session);
                world.note(events);
            }),
            Op::PortHeld(which) => self.with(which, Self::port_is_held),
            Op::Heard(which) => self.with(which, |world, session| {
                world.last_received.insert(session, world.now.mono);
            }),
            Op::Lease(which, wanted) => self.with(which, |world, session| world.lease(session, wanted)),
            Op::End(which, used) => self.with(which, |world, session| world.end(session, used)),
            Op::Withdraw(link) => {
                let events = self.sessions.withdraw(LinkId(link));
                self.withdrawn(LinkId(link));
                self.note(events);
            }
            Op::LinkClosed(link) => {
                let events = self.sessions.link_closed(LinkId(link), self.now);
                self.withdrawn(LinkId(link));
                self.note(events);
            }
            Op::PeerRemoved(number) => {
                self.sessions.peer_removed(peer(number), self.now);
                self.waiting.retain(|link| peer_of(*link) != peer(number));
            }
            Op::Pass(ms) => {
                self.now.mono += Duration::from_millis(ms);
                self.now.unix_ms += ms;
            }
            Op::Faulted(faulted) => self.sessions.set_faulted(faulted),
            Op::Drain => {
                self.draining = true;
                self.sessions.drain();
            }
        }
        self.check();
    }

    fn with(&mut self, which: usize, act: impl FnOnce(&mut Self, SessionId)) {
        if let Some(session) = self.nth(which) {
            act(self, session);
        }
    }

    fn ask(&mut self, link: LinkId, spec: TestSpec, wait: bool) {
        self.ids += 1;
        let id = SessionId::from_bytes(self.ids.to_be_bytes());
        let occupied = self.waiting.contains(&link) || self.held.values().any(|known| known.link == link);
        let (answer, events) = self.sessions.request(link, peer_of(link), spec, wait, id, self.now);
        match answer {
            Answer::Reserved(reservation) => {
                assert!(!occupied);
                assert_eq!(reservation.session, id);
                self.reserved(&reservation);
            }
            Answer::Queued { place, .. } => {
                assert!(!occupied && wait);
                assert!(self.waiting.insert(link));
                assert!((1..=self.waiting.len() as u32).contains(&place), "{place}");
                assert!(self.waiting.len() <= self.limits.max_queue);
            }
            Answer::Denied(denial) => {
                assert_eq!(occupied, denial.reason == DenialReason::AlreadyAsked);
                assert!(!denial.detail.is_empty());
            }
        }
        self.note(events);
    }

    fn ask_monitor(&mut self, link: LinkId) {
        self.ids += 1;
        let id = SessionId::from_bytes(self.ids.to_be_bytes());
        let occupied = self.waiting.contains(&link) || self.held.values().any(|known| known.link == link);
        let (answer, events) = self.sessions.request_monitor(link, peer_of(link), id, self.now);
        match answer {
            Answer::Reserved(reservation) => {
                assert!(!occupied && !self.draining);
                assert_eq!((reservation.session, reservation.purpose), (id, SessionPurpose::Monitor));
                assert!(!reservation.counts_as_test && reservation.port.is_none());
                self.reserved(&reservation);
            }
            Answer::Queued { .. } => panic!("a monitor is not queued"),
            Answer::Denied(denial) => {
                assert_eq!(occupied, denial.reason == DenialReason::AlreadyAsked);
                let of_peer = self.monitors().filter(|known| known.peer == peer_of(link)).count();
                let is_full =
                    of_peer >= self.limits.max_monitors_per_peer || self.monitors().count() >= self.limits.max_monitors;
                assert!(is_full || denial.reason != DenialReason::TooManyMonitors);
            }
        }
        self.note(events);
    }

    fn monitors(&self) -> impl Iterator<Item = &Known> {
        self.held.values().filter(|known| known.is_monitor)
    }

    fn poll(&mut self) {
        let mut ids = self.ids;
        let last_received = &self.last_received;
        let (actions, events) = self.sessions.poll(self.now, &|session| last_received[session], &mut || {
            ids += 1;
            SessionId::from_bytes(ids.to_be_bytes())
        });
        self.ids = ids;
        for action in actions {
            match action {
                SessionAction::Reserve(reservation) => {
                    assert!(self.waiting.remove(&reservation.link));
                    self.reserved(&reservation);
                }
                SessionAction::Deny { link, .. } => assert!(self.waiting.remove(&link)),
                SessionAction::Place { link, place, .. } => {
                    assert!(self.waiting.contains(&link) && place as usize <= self.limits.max_queue);
                }
                SessionAction::End { session, reason } => {
                    let known = &self.held[&session];
                    assert!(known.opened);
                    assert!(!known.is_monitor || !matches!(reason, EndReason::Deadline | EndReason::NotStarted));
                    let limit = if known.is_monitor { END_MONITOR_AFTER_SILENCE } else { END_AFTER_SILENCE };
                    let silent_for = self.now.mono - self.last_received[&session];
                    // A message that arrives after the end was first reported does not revive the session.
                    if self.ending.insert(session) && reason == EndReason::Silence {
                        assert!(silent_for >= limit, "{silent_for:?}");
                    }
                }
            }
        }
        self.note(events);
        assert!(self.sessions.next_deadline().is_none_or(|at| at > self.now.mono), "poll left an action undone");
    }

    fn reserved(&mut self, reservation: &Reservation) {
        if reservation.purpose == SessionPurpose::Monitor {
            // A monitor session takes no slot and counts as no test.
        } else if reservation.counts_as_test {
            self.tests.push((reservation.peer, self.now.unix_ms, reservation.session));
        } else {
            assert!(self.unreached.remove(&reservation.link), "another test on this link");
            assert_eq!(reservation.port, None);
        }
        let known = Known {
            link: reservation.link,
            peer: reservation.peer,
            port: reservation.port,
            tried: BTreeSet::new(),
            opened: false,
            is_monitor: reservation.purpose == SessionPurpose::Monitor,
            leased: BTreeMap::new(),
        };
        assert!(self.held.insert(reservation.session, known).is_none());
    }

    fn open(&mut self, session: SessionId) {
        let (is_wanted, events) = self.sessions.opened(session, self.now);
        assert!(is_wanted);
        self.held.get_mut(&session).unwrap().opened = true;
        self.last_received.entry(session).or_insert(self.now.mono);
        self.sessions.granted(session, session);
        self.note(events);
    }

    fn port_is_held(&mut self, session: SessionId) {
        let known = self.held.get_mut(&session).unwrap();
        let (answer, events) = self.sessions.port_is_held(session, self.now);
        let Some(port) = known.port.filter(|_| !known.opened) else {
            assert!(matches!(answer, Answer::Denied(_)) && events.is_empty());
            return;
        };
        known.tried.insert(port);
        match answer {
            Answer::Reserved(reservation) => {
                assert!(reservation.port.is_some_and(|port| !known.tried.contains(&port)));
                known.port = reservation.port;
            }
            Answer::Denied(denial) => {
                assert_eq!(denial.reason, DenialReason::NoPort);
                self.forget(session);
                // The session is undone; the event that records this is a denial.
                assert!(self.over.insert(session));
            }
            Answer::Queued { .. } => panic!("a reservation is not queued again"),
        }
        self.note(events);
    }

    fn lease(&mut self, session: SessionId, wanted: u64) {
        let day = self.now.day();
        let known = self.held.get_mut(&session).unwrap();
        let all = self.bytes.iter().filter(|((of, _), _)| *of == day).map(|(_, bytes)| bytes).sum::<u64>();
        let charged = self.bytes.entry((day, known.peer)).or_default();
        let left = self.limits.max_bytes_per_day.saturating_sub(*charged);
        let left = left.min(self.limits.max_bytes_per_day_total.saturating_sub(all));
        match self.sessions.lease(session, wanted, self.now) {
            Ok(lease) => {
                assert!(known.opened && lease.day == day && lease.bytes > 0);
                assert_eq!(lease.bytes, wanted.max(1).min(left).min((16 << 20).max(left / 16)));
                *charged += lease.bytes;
                *known.leased.entry(day).or_default() += lease.bytes;
            }
            Err(EndReason::BytesPerDay) => assert_eq!(left, 0),
            Err(_) => {}
        }
    }

    fn end(&mut self, session: SessionId, used: u64) {
        let known = self.held.remove(&session).unwrap();
        let had_streams = used > 600;
        if had_streams {
            self.sessions.streams_arrived(session);
        }
        if known.port.is_some() && !had_streams {
            self.unreached.insert(known.link);
        } else if self.tests.iter().any(|(_, _, of)| *of == session) {
            self.unreached.remove(&known.link);
        }
        let handle = self.sessions.tear_down(session, EndReason::Finished, self.now);
        assert_eq!(handle, known.opened.then_some(session));
        assert_eq!(self.sessions.tear_down(session, EndReason::Finished, self.now), None, "only one caller gets it");
        let (settled, events) = self.sessions.ended(session, used, EndReason::Finished, self.now);
        let settled = settled.unwrap();
        assert_eq!(self.sessions.ended(session, used, EndReason::Finished, self.now), (None, vec![]));
        self.note(events);
        assert_eq!(settled.peer, known.peer);
        assert_eq!(settled.bytes_by_day.iter().map(|(_, bytes)| bytes).sum::<u64>(), used);
        for (day, leased) in known.leased {
            *self.bytes.get_mut(&(day, known.peer)).unwrap() -= leased;
        }
        for (day, bytes) in settled.bytes_by_day {
            *self.bytes.entry((day, known.peer)).or_default() += bytes;
        }
    }

    /// Removes a reservation from the model, because the state machine took it back.
    fn forget(&mut self, session: SessionId) {
        let known = self.held.remove(&session).unwrap();
        self.tests.retain(|(_, _, of)| *of != session);
        for (day, leased) in known.leased {
            *self.bytes.get_mut(&(day, known.peer)).unwrap() -= leased;
        }
    }

    /// Removes the queued request and the unopened reservation of a link from the model.
    fn withdrawn(&mut self, link: LinkId) {
        self.waiting.remove(&link);
        let unopened = self.held.iter().find(|(_, known)| known.link == link && !known.opened).map(|(id, _)| *id);
        if let Some(session) = unopened {
            self.forget(session);
        }
    }

    /// Adds the audit events of one call to the model's counts, and checks them.
    fn note(&mut self, events: Vec<AuditEvent>) {
        for event in events {
            match event {
                AuditEvent::SessionGranted { session, port, .. } => {
                    assert!(self.granted.insert(session) && !self.over.contains(&session));
                    assert_eq!(self.held[&session].port, port);
                    assert!(!self.held[&session].is_monitor);
                }
                AuditEvent::MonitorGranted { session, .. } => {
                    assert!(self.granted.insert(session) && !self.over.contains(&session));
                    assert!(self.held[&session].is_monitor);
                }
                AuditEvent::SessionEnded { session, .. }
                | AuditEvent::MonitorEnded { session, .. }
                | AuditEvent::SessionUndone { session, .. } => {
                    assert!(self.over.insert(session), "over only once");
                }
                AuditEvent::SessionQueued { .. }
                | AuditEvent::SessionDenied { .. }
                | AuditEvent::MonitorDenied { .. }
                | AuditEvent::PortHeld { .. } => {}
                other => panic!("{other:?} is not a session's event"),
            }
        }
    }

    fn check(&self) {
        let tests = self.held.values().filter(|known| !known.is_monitor).count();
        assert!(tests <= self.limits.max_concurrent_tests as usize);
        assert!(self.monitors().count() <= self.limits.max_monitors);
        for number in 0..PEERS {
            let of_peer = self.monitors().filter(|known| known.peer == peer(number)).count();
            assert!(of_peer <= self.limits.max_monitors_per_peer);
        }
        let ports = self.held.values().filter_map(|known| known.port).collect::<Vec<_>>();
        let range = self.limits.data_ports.as_ref().unwrap();
        assert!(ports.iter().all(|port| range.contains(port)));
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len(), "one port twice");
        for number in 0..PEERS {
            let recent = |at: u64| self.now.unix_ms - at < HOUR_MS;
            let count = self.tests.iter().filter(|(of, at, _)| *of == peer(number) && recent(*at)).count();
            assert!(count <= self.limits.max_tests_per_hour as usize);
        }
        let seen = self.sessions.snapshot(self.now);
        assert!(
            seen.sessions.iter().map(|seen| (seen.session, seen.port)).eq(self
                .held
                .iter()
                .filter(|(_, k)| !k.is_monitor)
                .map(|(id, k)| (*id, k.port)))
        );
        assert_eq!(seen.monitors.len(), self.monitors().count());
        let today = self.bytes.iter().filter(|((day, _), _)| *day == self.now.day()).map(|(_, bytes)| bytes);
        assert_eq!(seen.bytes_today, today.sum::<u64>());
        // No session is lost, and none exists twice.
        for (session, known) in &self.held {
            assert_eq!(self.granted.contains(session), known.opened);
            assert!(!self.over.contains(session));
        }
        assert!(self.granted.iter().all(|session| self.over.contains(session) || self.held.contains_key(session)));
    }

    /// Ends all sessions, round after round, until the queue is empty.
    pub(super) fn finish(&mut self) {
        self.run(&Op::Faulted(false));
        for _ in 0..=self.waiting.len() {
            while let Some(session) = self.nth(0) {
                self.end(session, 0);
            }
            self.run(&Op::Poll);
        }
        assert!(self.waiting.is_empty(), "a request starved");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_breaks_a_promise(limits in limits(), ops in ops()) {
        let mut world = World::new(limits);
        for op in &ops {
            world.run(op);
        }
        world.finish();
    }
}

/// Random numbers for times: ordinary and extreme ones.
fn wild() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_extreme_number_panics(
        numbers in vec((wild(), wild(), wild(), 0u8..10), 1..30),
        budget in wild(),
        phases in vec(any::<u32>(), 0..20),
        slots in any::<u32>(),
    ) {
        let limits = Limits {
            max_concurrent_tests: slots,
            max_test_duration: Duration::MAX,
            max_streams: u16::MAX,
            max_tests_per_hour: u32::MAX,
            max_bytes_per_day: budget,
            max_bytes_per_day_total: budget,
            max_queue: usize::MAX,
            max_queue_per_peer: usize::MAX,
            max_monitors: usize::MAX,
            max_monitors_per_peer: usize::MAX,
            descriptors: usize::MAX,
            data_ports: Some(0..=2),
            data_modes: vec![DataMode::DirectEphemeral],
            engines: vec![EngineId::try_from("tcp").unwrap()],
            engine_modes: BTreeMap::new(),
        };
        let phases = phases.into_iter().map(|duration_ms| PhaseSpec { load: Load::Idle, duration_ms }).collect();
        let spec_of_phases = TestSpec { phases, ..spec(true, 1) };
        let past = PastUsage { tests: vec![(peer(0), budget)], bytes: vec![(peer(1), u32::MAX, budget)] };
        let mut sessions = Sessions::<SessionId>::new(limits, past, Now { mono: Duration::ZERO, unix_ms: 0 });
        let id = |n: usize| SessionId::from_bytes((n as u128).to_be_bytes());
        let mut fresh = 1_000u128;
        for (at, (mono, unix_ms, number, what)) in numbers.into_iter().enumerate() {
            let now = Now { mono: Duration::new(mono, 999_999_999), unix_ms };
            let session = id(at / 4 * 4);
            match what {
                0 | 1 => {
                    let link = LinkId(number % 5);
                    drop(sessions.request(link, peer_of(link), spec_of_phases.clone(), number % 7 > 0, id(at), now));
                }
                2 => {
                    drop(sessions.opened(session, now));
                    sessions.granted(session, session);
                }
                3 if number % 3 == 0 => {
                    drop(sessions.request_monitor(LinkId(number % 5), peer(0), id(at), now));
                }
                3 => drop(sessions.lease(session, number, now)),
                4 => drop(sessions.ended(session, number, EndReason::Failed, now)),
                5 => drop(sessions.port_is_held(session, now)),
                6 => { let _ = sessions.tear_down(session, EndReason::Failed, now); }
                7 => drop(sessions.undo(session, now)),
                _ => {
                    let last_received = Duration::from_secs(number);
                    let mut new_id = || { fresh += 1; SessionId::from_bytes(fresh.to_be_bytes()) };
                    drop(sessions.poll(now, &|_| last_received, &mut new_id));
                }
            }
            sessions.next_deadline();
            sessions.snapshot(now);
        }
    }
}
